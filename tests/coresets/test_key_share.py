from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from batchloom.coresets.key_share import KeepSearch, KeyPass, KeyShare
from batchloom.coresets.loss_rows import LossRows
from batchloom.dataplane.errors import DatasetChangedError, SelectionError
from batchloom.dataplane.random import keys
from hypothesis import example, given
from hypothesis import strategies as st

SHARE = KeyShare(seed=7, stream=1, epoch=3)


def rows_of(ids: Any) -> LossRows:
    return LossRows(np.asarray(ids, np.uint64), np.zeros(len(ids), np.float32))


def found(search: KeepSearch, parts: list[LossRows]) -> tuple[list[int], int]:
    """Return the ids that are kept, and the number of passes."""
    passes = 0
    while search.next is not None:
        search.narrow(sum(search.next.count(part) for part in parts))
        passes += 1
    return sorted(i for p in parts for i in p.ids[search.share.mask(p)].tolist()), passes


def smallest(ids: Any, kept: int) -> list[int]:
    order = np.argsort(keys(7, 1, 3, np.asarray(ids, np.uint64)))
    return sorted(np.asarray(ids)[order[:kept]].tolist())


def always(kept: int) -> Callable[[int], int]:
    return lambda _: kept


@given(
    st.integers(1, 3_000),
    st.floats(0, 1),
    st.sampled_from([0, 1, 10, 500, 100_000]),
    st.integers(1, 5),
)
@example(1, 1.0, 0, 1)
@example(2_000, 0.5, 2_000, 3)
def test_kept_are_the_smallest_keys_whatever_was_known(
    n: int, share: float, about: int, parts: int
) -> None:
    """A window that was guessed from another number of rows costs passes, and changes nothing."""
    ids = np.random.default_rng(n).choice(1 << 40, n, replace=False)
    kept = min(n, max(1, int(share * n)))
    search = KeepSearch(SHARE, always(kept), about)
    assert found(search, [rows_of(p) for p in np.array_split(ids, parts)])[0] == smallest(ids, kept)


def test_golden_draw() -> None:
    ids = list(range(20))
    expected = [0, 2, 5, 6, 9, 10, 11, 12, 13, 15, 17, 19]
    assert found(KeepSearch(SHARE, always(12), 20), [rows_of(ids)])[0] == expected


@pytest.mark.parametrize("kept", [60_000, 300_000, 599_999])
def test_one_pass_is_the_rule_where_the_rows_are_known(kept: int) -> None:
    ids = np.arange(600_000, dtype=np.uint64)
    passes = [
        found(KeepSearch(KeyShare(seed, 1, 3), always(kept), 600_000), [rows_of(ids)])[1]
        for seed in range(8)
    ]
    assert sum(passes) <= 10


def test_window_is_narrow() -> None:
    window = KeepSearch(SHARE, always(90_000_000), 100_000_000).next
    assert window is not None
    low, high = window.low / 2**64, window.end(window.bins) / 2**64
    assert low < 0.9 < high
    assert high - low < 5e-4


@given(
    st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=200),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 54),
)
def test_compiled_and_numpy_forms_agree(ids: list[int], low: int, shift: int) -> None:
    bins = min(1 << 10, (1 << 64) - low + (1 << shift) - 1 >> shift)
    low = min(low, (1 << 64) - (bins << shift))
    window = KeyPass(SHARE, low, shift, bins)
    with pytest.MonkeyPatch.context() as patch:
        fast = window.count(rows_of(ids * 3))
        patch.setenv("BATCHLOOM_NUMBA", "0")
        plain = window.count(rows_of(ids * 3))
    assert fast.tobytes() == plain.tobytes()
    values = [int(k) for k in keys(7, 1, 3, np.array(ids, np.uint64))]
    assert fast[0, 0] == 3 * sum(v < low for v in values)
    assert fast[0, -1] == 3 * sum(v >= low + (bins << shift) for v in values)


def test_rows_that_are_the_same() -> None:
    with pytest.raises(SelectionError, match="row ids are the same"):
        found(KeepSearch(SHARE, always(1), 2), [rows_of([4, 4])])


def test_rows_that_change_between_the_passes() -> None:
    search = KeepSearch(SHARE, always(1), 0)
    assert search.next is not None
    search.narrow(search.next.count(rows_of([4, 4, 9])))
    if search.next is None:  # a bin of its own: ask for the two that are in one
        search = KeepSearch(SHARE, always(1), 0)
        assert search.next is not None
        search.narrow(search.next.count(rows_of([4, 4])))
    assert search.next is not None
    with pytest.raises(DatasetChangedError, match="changed between two passes"):
        search.narrow(search.next.count(rows_of([4])))
