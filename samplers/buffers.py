"""Window memory that is used again.

The caller hands a window's buffers back when it goes on to the next window; the gather takes them
for a window to come. So there are as many as windows are under way at once, and no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch

from ..gpu_access.cpu import Column

__all__ = ["Buffers", "Tensors", "first_rows", "whole_buffers"]

Tensors = Mapping[str, torch.Tensor]


class Buffers:
    """Buffers that nobody reads any more; given back and taken from two threads."""

    def __init__(self) -> None:
        self._free: deque[Tensors] = deque()

    def take(self, rows: int) -> Tensors | None:
        """Return buffers of at least so many rows, where some are free; smaller ones are let go."""
        while self._free:
            found = self._free.popleft()
            if all(len(tensor) >= rows for tensor in found.values()):
                return found
        return None

    def give(self, tensors: Tensors) -> None:
        """Let buffers be used again."""
        if tensors:
            self._free.append(tensors)


def first_rows(buffers: Tensors | None, rows: int) -> Tensors | None:
    """Return the first rows of buffers, where there are some."""
    return None if buffers is None else {name: t[:rows] for name, t in buffers.items()}


def whole_buffers(columns: Mapping[str, Column], taken: Tensors | None) -> Tensors:
    """Return the buffers under a window's tensors: those taken for it, where they were used."""
    found = {name: c for name, c in columns.items() if isinstance(c, torch.Tensor)}
    if taken is None:
        return found
    same = {
        name: name in taken and tensor.data_ptr() == taken[name].data_ptr()
        for name, tensor in found.items()
    }
    return {name: taken[name] if same[name] else tensor for name, tensor in found.items()}
