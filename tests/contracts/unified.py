"""What a unified tensor must do, whatever the backend. Subclass and give `make` and `device`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import ParameterError, ReleasedTableError, RowIndexError

DTYPES = [
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.int64,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.uint16,
]
WIDTHS = [1, 3, 31, 32, 33, 64, 127, 128, 129, 300]
ROWS = 83


def random_rows(
    dtype: torch.dtype, width: int, *, start: int = 0, rows: int = ROWS, seed: int = 0
) -> torch.Tensor:
    """Rows of random bits (NaNs of all kinds, -0.0), the first of them `start` bytes into memory.

    The memory begins at a line.
    """
    draw = torch.Generator().manual_seed(seed)
    nbytes = rows * width * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (nbytes + 512,), generator=draw)
    raw = raw.to(torch.uint8)
    skip = -raw.data_ptr() % 128 + start
    return raw[skip : skip + nbytes].view(dtype).view(rows, width)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def same_bits(got: torch.Tensor, table: torch.Tensor, ids: Any) -> bool:
    """Whether `got` holds the rows of a table, bit by bit."""
    ids = torch.as_tensor(ids, dtype=torch.int64).cpu()
    return torch.equal(bits(got), bits(table).view(len(table), -1)[ids].reshape(-1))


class UnifiedContract:
    """Every backend."""

    device = "cpu"

    def make(self, table: torch.Tensor) -> Any:
        raise NotImplementedError

    def ids(self, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.as_tensor(values, dtype=dtype).to(self.device)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_type_bit_by_bit(self, dtype: torch.dtype) -> None:
        for start in (0, dtype.itemsize):
            table = random_rows(dtype, 33, start=start)
            ids = np.random.default_rng(0).integers(0, ROWS, 40)
            got = self.make(table)[self.ids(ids)]
            assert got.dtype == dtype
            assert got.device.type == self.device
            assert same_bits(got, table, ids)

    @pytest.mark.parametrize("width", WIDTHS)
    def test_every_width(self, width: int) -> None:
        for dtype in (torch.uint8, torch.float32):
            table = random_rows(dtype, width)
            for kind in (torch.int32, torch.int64):
                ids = [5, 82, 0, 5, 41, 81, 82]
                assert same_bits(self.make(table)[self.ids(ids, kind)], table, ids)

    @pytest.mark.parametrize("start", [0, 16, 64, 80])
    def test_every_beginning(self, start: int) -> None:
        for width in (1, 100, 129):
            table = random_rows(torch.float64, width, start=start)
            ids = np.arange(ROWS)[::-1].copy()
            assert same_bits(self.make(table)[self.ids(ids)], table, ids)

    def test_rows_of_any_shape(self) -> None:
        table = random_rows(torch.float32, 24).view(ROWS, 2, 3, 4)
        assert self.make(table)[self.ids([3, 3])].shape == (2, 2, 3, 4)
        numbers = random_rows(torch.int64, 1).view(ROWS)
        assert torch.equal(self.make(numbers)[self.ids([7, 0])].cpu(), numbers[[7, 0]])
        assert self.make(torch.empty(5, 0))[self.ids([1, 4])].shape == (2, 0)

    @pytest.mark.parametrize("stride", [33, 40, 64, 96])
    def test_rows_apart(self, stride: int) -> None:
        whole = random_rows(torch.float32, stride)
        table, ids = whole[:, :33], [0, 82, 17]
        assert same_bits(self.make(table)[self.ids(ids)], table, ids)

    def test_no_ids(self) -> None:
        got = self.make(random_rows(torch.float32, 4))[self.ids([])]
        assert (got.shape, got.dtype, got.device.type) == ((0, 4), torch.float32, self.device)

    def test_no_rows(self) -> None:
        empty = self.make(torch.empty(0, 4))
        assert empty[self.ids([])].shape == (0, 4)
        with pytest.raises(RowIndexError, match="Row 0, the id at position 0.*holds no rows"):
            empty[self.ids([0])]

    def test_output_given(self) -> None:
        table = random_rows(torch.float32, 129)
        unified, ids = self.make(table), self.ids(range(40))
        whole = torch.zeros(41, 129, device=self.device)
        out = whole[1:]
        assert unified.gather_rows(ids, out=out) is out
        assert same_bits(out, table, range(40))
        assert not whole[0].any()
        for sort in (True, False, "auto"):
            assert same_bits(unified.gather_rows(ids, sort=sort), table, range(40))

    @pytest.mark.parametrize("bad", [ROWS, -1, 2**31, 2**40, -(2**62)])
    @pytest.mark.parametrize("sort", [True, False, "auto"])
    def test_missing_row_is_named_and_not_written(self, bad: int, sort: Any) -> None:
        table = random_rows(torch.float32, 40)
        ids = torch.arange(80)
        ids[33], ids[70] = bad, ROWS + 1
        out = torch.full((80, 40), 7.0, device=self.device)
        with pytest.raises(IndexError, match=rf"Row {bad}, the id at position 33, .*0 to 82\."):
            self.make(table).gather_rows(self.ids(ids), out=out, sort=sort)
        assert (out[[33, 70]] == 7).all()

    def test_later(self) -> None:
        table = random_rows(torch.float32, 40)
        unified = self.make(table)
        futures = [unified.gather_rows_async(self.ids([i, i + 1])) for i in range(5)]
        for i, future in enumerate(futures):
            assert same_bits(future.wait(), table, [i, i + 1])
            assert future.done()

    def test_released(self) -> None:
        unified = self.make(random_rows(torch.float32, 4))
        unified.release()
        unified.release()
        with pytest.raises(ReleasedTableError, match="83 rows was released"):
            unified[self.ids([0])]

    @pytest.mark.parametrize(
        "ids", [[0.5], [True], [[0, 1]], 3, torch.tensor([1.0]), torch.tensor([True]), ["a"]]
    )
    def test_ids_of_another_kind(self, ids: Any) -> None:
        with pytest.raises(ParameterError, match="'ids' parameter must be a one-dimensional"):
            self.make(random_rows(torch.float32, 4))[ids]

    @pytest.mark.parametrize(
        "out",
        [torch.empty(2, 5), torch.empty(3, 4), torch.empty(2, 4).double(), torch.empty(4, 2).T],
        ids=["width", "rows", "type", "order"],
    )
    def test_output_of_another_kind(self, out: torch.Tensor) -> None:
        unified = self.make(random_rows(torch.float32, 4))
        with pytest.raises(ParameterError, match=r"'out' parameter.*float32.*\(2, 4\).*Got torch"):
            unified.gather_rows(self.ids([0, 1]), out=out.to(self.device))
        with pytest.raises(ParameterError, match="'sort' parameter must be one of 'auto'"):
            unified.gather_rows(self.ids([0, 1]), sort="maybe")
