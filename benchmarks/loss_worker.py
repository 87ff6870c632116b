"""Worker of loss.py: one implementation in a process of its own, which waits for requests. Run by loss.py.

Requests and replies are lines of JSON on standard input and output. A request names what to do, the file with the
inputs and the loss. The first line written, before any request, states the versions.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from loss_implementations import IMPLEMENTATIONS, Problem
from machine import peak_memory_mb, resident_memory_mb, versions

_SPARE_BYTES = 256 * 2**20  # of the free memory, left to all other processes
_OUT_OF_MEMORY = ("can't allocate memory", "bad_alloc", "ALLOC_FAILED")


class Worker:
    """What loss.py asks of one implementation on one device."""

    def __init__(self, name: str, device: str) -> None:
        self._implementation = IMPLEMENTATIONS[name]
        self._device = torch.device(device)

    def gradients(self, inputs: str, loss: str) -> dict[str, Any]:
        """Value and gradients of a small problem, in full."""
        problem = self._load(inputs)
        value = self._implementation.prepare(problem, loss)()
        assert value is not None, "the floor has no value"
        assert problem.hidden.grad is not None
        assert problem.weight.grad is not None
        return {
            "value": float(value),
            "hidden_gradient": problem.hidden.grad.tolist(),
            "weight_gradient": problem.weight.grad.tolist(),
        }

    def seconds(self, inputs: str, loss: str) -> dict[str, Any]:
        """Seconds of one pass on inputs loaded for it and dropped after it: idle workers hold no memory."""
        problem = self._load(inputs)
        run = self._implementation.prepare(problem, loss)
        if self._device.type == "cuda":  # memory comes from the device slowly the first time, then from PyTorch's cache
            run()
            problem.forget_gradients()
        gc.collect()
        self._synchronise()
        start = time.perf_counter()
        value = run()
        self._synchronise()
        return {"seconds": time.perf_counter() - start, "value": None if value is None else float(value)}

    def memory(self, inputs: str, loss: str) -> dict[str, Any]:
        """Largest memory during a pass less what was held before it, in MiB; ask it of a fresh process.

        A first pass lets the libraries load and compile what they keep.
        """
        problem = self._load(inputs)
        run = self._implementation.prepare(problem, loss)
        run()
        problem.forget_gradients()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            run()
            return {"peak_mb": (torch.cuda.max_memory_allocated() - held) / 2**20}
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now: see proc(5)
        before = resident_memory_mb()
        run()
        return {"peak_mb": peak_memory_mb() - before}

    def answer(self, do: str, **arguments: str) -> dict[str, Any]:
        """The reply to one request; one that needs more memory than there is, is a reply too."""
        methods = {"gradients": self.gradients, "seconds": self.seconds, "memory": self.memory}
        try:
            with nullcontext() if self._device.type == "cuda" else _allocations_may_fail():
                return methods[do](**arguments)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            return {"does_not_fit": str(error).splitlines()[0]}
        finally:
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _load(self, inputs: str) -> Problem:
        tensors = torch.load(inputs, mmap=True, weights_only=True)
        problem = Problem(**{name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()})
        problem.hidden.requires_grad_()
        problem.weight.requires_grad_()
        return problem

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _allocations_may_fail() -> Iterator[None]:
    """Refuses memory beyond what is free now, as a GPU does; otherwise the kernel would kill the process, or another."""
    free, used = _kilobytes("/proc/meminfo", "MemAvailable"), _kilobytes("/proc/self/status", "VmData")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, ((used + free) * 1024 - _SPARE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(phrase in str(error) for phrase in _OUT_OF_MEMORY)


def _kilobytes(file: str, field: str) -> int:
    (line,) = (line for line in Path(file).read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


def main() -> None:
    name, device = sys.argv[1:]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not land among the replies
    worker = Worker(name, device)
    print(json.dumps(versions(*IMPLEMENTATIONS[name].packages)), file=replies)
    for line in sys.stdin:
        print(json.dumps(worker.answer(**json.loads(line))), file=replies)


if __name__ == "__main__":
    main()
