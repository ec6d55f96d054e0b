from __future__ import annotations

import numpy as np
import pytest
from batchloom.dataplane import rowset
from batchloom.dataplane.errors import SelectionError
from batchloom.dataplane.random import array_of
from batchloom.dataplane.rowset import RowSet, as_run
from batchloom.dataplane.snapshot import Fragment, Snapshot

# Ids 0-9, 20-24 and 30-39: gaps, as a dataset has whose files were replaced.
SNAPSHOT = Snapshot(
    tuple(Fragment("data", f"{start}", rows, 1, "h", start) for start, rows in
          ((0, 10), (20, 5), (30, 10))), 40, "s",
)  # fmt: skip
ALL = [*range(10), *range(20, 25), *range(30, 40)]


def test_all_rows() -> None:
    rows = RowSet(SNAPSHOT)
    assert len(rows) == 25
    assert rows.ids().tolist() == ALL
    assert rows.at(np.array([0, 10, 24])).tolist() == [0, 20, 39]


def test_keeping_rows_again_and_again() -> None:
    expected = np.array(ALL)
    rows = RowSet(SNAPSHOT)
    rng = np.random.default_rng(0)
    for _ in range(3):
        mask = rng.random(len(rows)) < 0.7
        rows, expected = rows.keep(mask), expected[mask]
        assert rows.ids().tolist() == expected.tolist()
        ranks = rng.integers(0, len(rows), 20)
        assert rows.at(ranks).tolist() == expected[ranks].tolist()


def test_a_test_of_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids without a gap come as a range, in pieces; others as they are."""
    monkeypatch.setattr(rowset, "_CHUNK", 7)
    given: list[object] = []

    def even(ids: object) -> np.ndarray:
        given.append(ids)
        return np.array([i % 2 == 0 for i in map(int, ids)])  # type: ignore[call-overload]

    evens = RowSet(SNAPSHOT).filter_runs(even)
    assert given == [
        range(7), range(7, 10), range(20, 25), range(30, 37), range(37, 40),
    ]  # fmt: skip
    assert evens.ids().tolist() == [i for i in ALL if i % 2 == 0]
    given.clear()
    thirds = evens.filter_runs(lambda ids: even(ids) & (array_of(ids) % 3 == 0))
    assert np.concatenate([array_of(ids) for ids in given]).tolist() == evens.ids().tolist()
    assert thirds.ids().tolist() == [i for i in ALL if i % 6 == 0]
    assert evens.filter_runs(lambda ids: np.ones(len(ids), bool)) is evens


def test_runs() -> None:
    assert list(SNAPSHOT.runs()) == [range(10), range(20, 25), range(30, 40)]
    whole = Snapshot(tuple(Fragment("data", f"{k}", 4, 1, "h", 4 * k) for k in range(3)), 12, "s")
    assert list(whole.runs()) == [range(12)]
    assert list(Snapshot((), 0, "s").runs()) == []
    assert as_run(np.array([4, 5, 6], np.uint64)) == range(4, 7)
    gap, none = np.array([4, 6], np.uint64), np.zeros(0, np.uint64)
    assert as_run(gap) is gap
    assert as_run(none) is none
    assert as_run(range(3, 9)) == range(3, 9)


def test_keeping_everything_costs_nothing() -> None:
    rows = RowSet(SNAPSHOT)
    assert rows.keep(np.ones(25, bool)) is rows


def test_rows_since_an_id() -> None:
    assert RowSet(SNAPSHOT).since(22).ids().tolist() == [22, 23, 24, *range(30, 40)]
    assert len(RowSet(SNAPSHOT).since(40)) == 0


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(SelectionError, match="mask of 3 values .* 25 rows"):
        RowSet(SNAPSHOT).keep(np.ones(3, bool))
