"""The GPU's kernel without a GPU: run by Triton's interpreter, its requests to the bus counted.

`Interpreted` is the backend ``zero_copy`` with another launcher: the same kernel, arguments and
status word, over CPU tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from batchloom.gpu_access import UnifiedTensor, kernels
from batchloom.gpu_access.backends import Backend
from batchloom.gpu_access.request import Request
from batchloom.gpu_access.tiling import LINE, tile
from triton.runtime import interpreter

KERNEL = interpreter.InterpretedFunction(kernels.gather_rows_kernel.fn)


class Interpreted(Backend):
    """The kernel in the interpreter."""

    name, ids_on, checks, caches = "zero_copy", "cpu", True, True

    def __init__(self, kernel: Any = KERNEL, programs: int = 3, **tiling: Any) -> None:
        self.kernel, self.programs, self.tiling = kernel, programs, tiling

    def gather(self, request: Request) -> None:
        tiling = tile(request.table, request.out.data_ptr(), **self.tiling)
        kernels.launch(request, tiling, self.programs, self.kernel)


def interpreted(tensor: Any, **options: Any) -> UnifiedTensor:
    """Return a unified tensor whose rows the interpreter gathers."""
    made = UnifiedTensor.from_tensor(tensor, backend="cpu", device="cpu")
    made._backend = Interpreted(**options)
    return made


@contextmanager
def counted_lines() -> Iterator[list[int]]:
    """Count the lines of 128 bytes that masked loads of two dimensions ask for, warp by warp.

    A warp's 32 lanes take consecutive elements of a tile, row after row, as the compiled kernel's
    layout says.
    """
    lines = [0]
    load = interpreter.InterpreterBuilder.create_masked_load

    def counting(self: Any, ptrs: Any, mask: Any, *others: Any) -> Any:
        if ptrs.data.ndim == 2:
            addresses, wanted = ptrs.data.reshape(-1), mask.data.reshape(-1)
            last = ptrs.get_element_ty().primitive_bitwidth // 8 - 1
            for start in range(0, len(addresses), 32):
                warp = addresses[start : start + 32][wanted[start : start + 32]].astype(np.int64)
                lines[0] += len(np.unique(np.concatenate([warp, warp + last]) // LINE))
        return load(self, ptrs, mask, *others)

    interpreter.InterpreterBuilder.create_masked_load = counting
    try:
        yield lines
    finally:
        interpreter.InterpreterBuilder.create_masked_load = load
