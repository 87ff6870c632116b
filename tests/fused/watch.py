"""Records what operations make, below autograd."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm)
# Their results, or the sizes of these, are numbers on the host, which would have to wait for a device.
_WAITS = (_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten.is_nonzero)


class Watch(TorchDispatchMode):
    """What the operations under it make and do.

    Attributes:
        largest: elements of the largest tensor made.
        peak: the most bytes alive at once, after any operation, of memory made here: views of what was there before count
            nothing, and no memory counts twice. What an operation takes only while it runs is not seen.
        products: number of matrix products.
        waits: the operations that the host would have waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.peak, self.products = 0, 0, 0
        self.waits: list[str] = []
        self._live: WeakValueDictionary[int, Any] = WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _memory((args, kwargs)).keys()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        self._live.update({key: memory for key, memory in _memory(result).items() if key not in given})
        self.peak = max(self.peak, sum(_size(memory) for memory in self._live.values()))
        self.products += func.overloadpacket in _PRODUCTS
        if func.overloadpacket in _WAITS:
            self.waits.append(str(func.overloadpacket))
        return result


def _memory(tree: Any) -> dict[int, Any]:
    """What holds the memory of the tensors in a tree of arguments, by its address: storages; oneDNN's tensors have none."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    holders = (tensor if tensor.is_mkldnn else tensor.untyped_storage() for tensor in tensors)
    return {holder._cdata: holder for holder in holders}


def _size(memory: Any) -> int:
    """Bytes of one of `_memory`."""
    return int(memory.nbytes if isinstance(memory, torch.Tensor) else memory.nbytes())
