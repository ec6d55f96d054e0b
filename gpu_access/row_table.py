"""A table of rows in host memory, as an address and strides: what every gather reads.

Rows are bytes here. A row is contiguous, rows follow each other at a fixed stride (of at least a
row), and nothing is said of where the first one begins. Kernels move *words*: the widest integers
whose size divides all that matters, so any type travels bit by bit.

**Pages of its own.** The driver maps whole pages. Where a page at an end of the rows holds other
memory too, a CUDA copy of that other memory is taken for one of mapped memory, and fails or runs
beyond the mapping ("invalid argument", "illegal memory access"). So a table says which *region* it
is part of whose pages hold nothing else, and only regions are mapped, as a whole. A host table has
one; so has a tensor whose storage is so large that allocators map it by itself.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ..dataplane.errors import ParameterError

__all__ = [
    "OWN_PAGES_BYTES",
    "WORDS",
    "RowTable",
    "note_region",
    "region_of",
    "word_bytes",
    "words_of",
]

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer type of each word size."""

OWN_PAGES_BYTES = 64 << 20
"""Allocations of this size have pages of their own: glibc maps what is above 32 MiB by itself."""


@dataclass(frozen=True, eq=False)
class RowTable:
    """Rows in host memory.

    Attributes
    ----------
    address : int
        Of the first row.
    rows : int
    row_shape : tuple of int
        Shape of a row; ``()`` for one value a row.
    dtype : torch.dtype
    stride : int
        Bytes from a row to the next.
    owner : object
        Keeps the memory alive.
    region : (int, int) or None
        Address and bytes of the memory, the rows among it, whose pages hold nothing else; None
        where no such is known.
    """

    address: int
    rows: int
    row_shape: tuple[int, ...]
    dtype: torch.dtype
    stride: int
    owner: Any
    region: tuple[int, int] | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> RowTable:
        """Return the table that a CPU tensor is; its rows are not copied.

        Raises
        ------
        ParameterError
            For a tensor that is elsewhere, has no rows, or whose rows are not contiguous.
        """
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.ndim == 0:
            raise ParameterError(
                "A host table must be a strided CPU tensor of at least one dimension. Got one of "
                f"shape {tuple(tensor.shape)}, {tensor.layout}, on {tensor.device} instead."
            )
        shape = tuple(tensor.shape[1:])
        row = math.prod(shape) * tensor.element_size()
        stride = tensor.stride(0) * tensor.element_size() if len(tensor) > 1 else row
        if stride < row or (tensor.numel() and not tensor[0].is_contiguous()):
            raise ParameterError(
                "The rows of a host table must be contiguous and must not overlap. Got strides "
                f"{tuple(tensor.stride())} for shape {tuple(tensor.shape)}; pass "
                "tensor.contiguous(), or copy it with HostTable.from_tensor."
            )
        region = region_of(tensor)
        return cls(tensor.data_ptr(), len(tensor), shape, tensor.dtype, stride, tensor, region)

    @cached_property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes from the first row's first to the last row's last."""
        if not self.rows or not self.row_bytes:
            return 0
        return (self.rows - 1) * self.stride + self.row_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.row_shape)

    def tensor(self) -> torch.Tensor:
        """Return the rows as a tensor over the same memory, which it keeps alive."""
        return self._tensor

    @cached_property
    def _tensor(self) -> torch.Tensor:
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        item = self.dtype.itemsize
        if self.stride % item:
            raise ParameterError(
                f"Rows of {self.dtype} that are {self.stride} bytes apart are not aligned to their "
                f"{item} bytes: copy them to a HostTable."
            )
        values = torch.frombuffer(self._block, dtype=self.dtype, count=self.nbytes // item)
        inner = [math.prod(self.row_shape[i + 1 :]) for i in range(len(self.row_shape))]
        return values.as_strided(self.shape, (self.stride // item, *inner))

    def words(self, word: int) -> torch.Tensor:
        """Return all bytes as a flat tensor of words, which keeps the memory alive.

        `word` divides the address, the stride and the row; see `word_bytes`.
        """
        known = self._words.get(word)
        if known is None:
            known = torch.frombuffer(self._block, dtype=WORDS[word], count=self.nbytes // word)
            self._words[word] = known
        return known

    @cached_property
    def _words(self) -> dict[int, torch.Tensor]:
        return {}

    @cached_property
    def _block(self) -> Any:
        block = (ctypes.c_char * self.nbytes).from_address(self.address)
        block._owner = self.owner  # type: ignore[attr-defined]
        return block


_host_regions: dict[int, tuple[int, weakref.ref[Any]]] = {}


def note_region(address: int, nbytes: int, owner: Any) -> None:
    """Remember, as long as `owner` lives, that a range has its pages to itself."""
    gone = weakref.ref(owner, lambda _: _host_regions.pop(address, None))
    _host_regions[address] = nbytes, gone


def region_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Return (address, bytes) of the pages that a CPU tensor's memory has to itself, if any."""
    storage = tensor.untyped_storage()
    if storage.nbytes() >= OWN_PAGES_BYTES:
        return storage.data_ptr(), storage.nbytes()
    first = tensor.data_ptr()
    for address, (nbytes, _) in list(_host_regions.items()):
        if address <= first < address + nbytes:
            return address, nbytes
    return None


def word_bytes(table: RowTable, out_address: int = 0) -> int:
    """Return the widest word, of 1, 2, 4 or 8 bytes, that the rows and the output divide into."""
    return math.gcd(8, table.address, table.stride, table.row_bytes, out_address)


def words_of(tensor: torch.Tensor, word: int) -> torch.Tensor:
    """Return a contiguous tensor's memory as a flat tensor of words."""
    return tensor.reshape(-1).view(torch.uint8).view(WORDS[word])
