from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.bitmap import Bitmap, count_bits, set_bits
from batchloom.dataplane.errors import RowIdError
from hypothesis import given
from hypothesis import strategies as st


def made(size: int, ids: Any) -> Bitmap:
    return Bitmap.of(size, [np.asarray(ids, np.uint64)])


@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 99))
def test_select_is_indexing_of_the_sorted_ids(size: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = np.flatnonzero(rng.random(size) < share).astype(np.uint64)
    bits = made(size, rng.permutation(ids))
    assert len(bits) == len(ids) == count_bits(bits.words)
    assert bits.ids().tolist() == ids.tolist()
    ranks = rng.integers(0, max(1, len(ids)), 50 if len(ids) else 0)
    assert bits.select(ranks).tolist() == ids[ranks].tolist()


@pytest.mark.parametrize("share", [0.0001, 0.02, 0.5, 0.999, 1.0])
def test_compiled_and_numpy_forms_agree(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    size = 3_000_017
    ids = np.flatnonzero(rng.random(size) < share).astype(np.uint64)
    # Far apart, so that hints skip many empty blocks.
    ids = ids[(ids < 900_000) | (ids > 2_500_000)]
    compiled = made(size, ids)
    monkeypatch.setenv("BATCHLOOM_NUMBA", "0")
    plain = made(size, ids)
    assert compiled.words.tobytes() == plain.words.tobytes()
    ranks = rng.integers(0, len(ids), 400_000)
    expected = ids[ranks]
    assert (plain.select(ranks) == expected).all()
    monkeypatch.setenv("BATCHLOOM_NUMBA", "1")
    assert (compiled.select(ranks) == expected).all()
    assert (compiled.select(ranks.astype(np.uint64)) == expected).all()


def test_inside_at_every_edge() -> None:
    ids = [0, 1, 63, 64, 127, 128, 200]
    bits = made(201, ids)
    for start in range(0, 201, 7):
        for stop in range(start, 202, 5):
            expected = [i in ids for i in range(start, min(stop, 201))]
            assert bits.inside(start, min(stop, 201)).tolist() == expected


@pytest.mark.parametrize("ranks", [[-1], [3], [0, 99]])
def test_ranks_that_are_not_there_are_refused(ranks: list[int]) -> None:
    with pytest.raises(RowIdError, match=r"\[0, 3\)"):
        made(100, [5, 6, 99]).select(np.array(ranks))


def test_ids_beyond_the_size_are_refused() -> None:
    with pytest.raises(RowIdError, match="Row 100 is not below 100"):
        made(100, [5, 100])


def test_empty_sets() -> None:
    for bits in (made(0, []), made(500, [])):
        assert len(bits) == 0
        assert bits.ids().tolist() == []
        assert bits.select(np.zeros(0, np.int64)).tolist() == []


def test_setting_bits_twice_changes_nothing() -> None:
    words = np.zeros(4, np.uint64)
    for _ in range(2):
        set_bits(words, np.array([3, 3, 250], np.uint64))
    assert count_bits(words) == 2


@given(st.integers(0, 200), st.lists(st.booleans(), max_size=300))
def test_a_run_sets_what_its_ids_do(first: int, mask: list[bool]) -> None:
    inside = np.array(mask, bool)
    ids = np.arange(first, first + len(inside), dtype=np.uint64)
    runs, single = Bitmap.of(600, [np.array([3, 77], np.uint64)]), Bitmap.of(600, ())
    runs.add_run(first, inside)
    single.add(np.concatenate([np.array([3, 77], np.uint64), ids[inside]]))
    assert runs.words.tobytes() == single.words.tobytes()
