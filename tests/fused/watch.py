"""Records what operations make, below autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm)
# Their results, or the sizes of these, are numbers on the host, which would have to wait for a device.
_WAITS = (_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten.is_nonzero)


class Watch(TorchDispatchMode):
    """The elements of the largest tensor made, the number of matrix products, and what the host would have waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        self.products += func.overloadpacket in _PRODUCTS
        if func.overloadpacket in _WAITS:
            self.waits.append(str(func.overloadpacket))
        return result
