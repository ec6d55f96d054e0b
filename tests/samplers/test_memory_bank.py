"""The bank of embeddings: what it takes, when, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import RowIdError, SelectionError
from batchloom.samplers.memory_bank import MemoryBank, _Copy


def test_embeddings_are_taken_as_they_are_now() -> None:
    bank = MemoryBank(9, 2)
    rows, x = torch.arange(4), torch.ones((4, 2), requires_grad=True)
    bank.write(rows, x)
    with torch.no_grad():
        x *= 5
    rows += 4
    bank.write([2, 2], torch.tensor([[7.0, 1.0], [9.0, 1.0]], dtype=torch.bfloat16))
    assert bank.values[:, 0].tolist() == [1, 1, 9, 1, 0, 0, 0, 0, 0]
    assert bank.values.dtype == np.float32
    assert np.flatnonzero(bank.written).tolist() == [0, 1, 2, 3]


def test_rows_that_are_ignored() -> None:
    bank = MemoryBank(5, 1)
    bank.ignored = {1, 3}
    bank.write([0, 1, 2], [[1.0], [2.0], [3.0]])
    bank.ignored = set()
    bank.write([3], [[4.0]])
    assert bank.values[:, 0].tolist() == [1, 0, 3, 4, 0]
    assert bank.written.tolist() == [True, False, True, True, False]


class Event:
    """A copy from a GPU that has arrived, or has not."""

    def __init__(self, arrived: bool) -> None:
        self.arrived = arrived

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = True


def test_copies_land_in_their_order() -> None:
    bank = MemoryBank(4, 1)
    events = [Event(True), Event(False), Event(True)]
    for number, event in enumerate(events, start=1):
        copied = torch.tensor([0, number]), torch.full((2, 1), float(number))
        bank._under_way.append(_Copy(*copied, event))
    assert bank._arrived()
    bank._store_oldest()
    assert not bank._arrived()
    assert bank.values[:, 0].tolist() == [1, 1, 0, 0]
    bank.write([3], [[8.0]])  # waits for those before it
    assert bank.values[:, 0].tolist() == [3, 1, 2, 8]
    assert all(event.arrived for event in events)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_embeddings_on_a_gpu() -> None:
    bank, on_host = MemoryBank(3000, 64), MemoryBank(3000, 64)
    draw = torch.Generator().manual_seed(0)
    for step in range(50):
        rows = torch.randint(3000, (200,), generator=draw).unique()
        x = torch.randn((len(rows), 64), generator=draw).to(torch.bfloat16)
        on_host.write(rows, x)
        there = x.cuda()
        bank.write(rows.cuda() if step % 2 else rows, there)
        there.zero_()
    bank.exchange()
    assert np.array_equal(bank.values, on_host.values)
    assert np.array_equal(bank.written, on_host.written)


def test_bad_input() -> None:
    bank = MemoryBank(5, 2)
    with pytest.raises(SelectionError, match=r"expected shape \(2, 2\), got \(2,\)"):
        bank.write([1, 2], [1.0, 2.0])
    with pytest.raises(SelectionError, match=r"expected shape \(2, 2\), got \(2, 3\)"):
        bank.write([1, 2], np.ones((2, 3)))
    with pytest.raises(SelectionError, match="one of that width for each row"):
        bank.write(1, np.ones((1, 2)))
    for row in (-1, 5):
        with pytest.raises(RowIdError, match=f"row {row} was given; .* made for 5 rows, 0 to 4"):
            bank.write([row], np.ones((1, 2)))
    assert not bank.written.any()
