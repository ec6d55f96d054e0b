from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batchloom.dataplane import external_sort
from batchloom.dataplane.errors import StorageError
from batchloom.dataplane.external_sort import SORTED_BYTES, ExternalSort
from hypothesis import given
from hypothesis import strategies as st

U64 = npt.NDArray[np.uint64]


def sorted_on_disk(
    folder: Path, first: U64, second: U64, where: npt.NDArray[Any], *, limit: int, piece: int = 7
) -> list[tuple[int, int, int]]:
    """Sort records whose values are their numbers; buckets of `limit` records fit the memory."""
    sorting = ExternalSort(folder, rows=len(first), memory=limit * SORTED_BYTES)
    value = np.arange(len(first), dtype=np.uint64)
    for start in range(0, len(first), piece):
        part = slice(start, start + piece)
        sorting.add(first[part], second[part], value[part], where[part])
    found = [np.stack(chunk, axis=1) for chunk in sorting.sorted()]
    assert all(0 < len(chunk) <= max(limit, 1) for chunk in found)
    assert list(folder.iterdir()) == []
    return [tuple(row) for chunk in found for row in chunk.tolist()]


def expected(first: U64, second: U64) -> list[tuple[int, int, int]]:
    records = zip(first.tolist(), second.tolist(), range(len(first)), strict=True)
    return sorted(records)


LIMITS = {
    "few values": st.integers(0, 3),
    "neighbours": st.integers(10**18, 10**18 + 40),
    "any": st.integers(0, 2**64 - 1),
}


@pytest.mark.parametrize("kind", LIMITS)
@given(data=st.data(), limit=st.integers(1, 60))
def test_it_sorts_as_python_does(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject, limit: int
) -> None:
    """Heavy ties and skew: where everything is said to belong to one place, it is split again."""
    pairs = data.draw(st.lists(st.tuples(LIMITS[kind], LIMITS["few values"]), max_size=200))
    first = np.array([a for a, _ in pairs], dtype=np.uint64)
    second = np.array([b for _, b in pairs], dtype=np.uint64)
    for where in (np.zeros(len(first)), first * 2.0**-64):
        folder = tmp_path_factory.mktemp("sort")
        assert sorted_on_disk(folder, first, second, where, limit=limit) == expected(first, second)


@pytest.mark.parametrize("limit", [1, 3, 50, 100_000])
def test_uniform_keys(tmp_path: Path, limit: int) -> None:
    rng = np.random.default_rng(limit)
    first = rng.integers(0, 2**64, 20_000 if limit > 3 else 600, dtype=np.uint64)
    second = np.zeros(len(first), np.uint64)
    found = sorted_on_disk(tmp_path, first, second, first * 2.0**-64, limit=limit, piece=1000)
    assert found == expected(first, second)


def test_equal_keys_keep_their_order_without_being_sorted(tmp_path: Path) -> None:
    same = np.full(500, 2**64 - 1, np.uint64)
    found = sorted_on_disk(tmp_path, same, same, np.ones(500), limit=9)
    assert [value for _, _, value in found] == list(range(500))


def test_places_may_be_as_rough_as_they_like(tmp_path: Path) -> None:
    """Only that they do not descend with the keys is asked for."""
    first = np.repeat(np.arange(40, dtype=np.uint64), 25)
    second = np.tile(np.arange(25, dtype=np.uint64)[::-1], 40)
    for where in (first // np.uint64(13) / 4, np.minimum(1.0, first / 10), first > 38):
        found = sorted_on_disk(tmp_path, first, second, where, limit=20)
        assert found == expected(first, second)


@pytest.mark.parametrize("kind", ["uniform", "two values", "one value"])
def test_no_more_is_held_than_the_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    held: list[int] = []
    read = external_sort._Bucket.read

    def recorded(bucket: Any, start: int, stop: int) -> Any:
        held.append(stop - start)
        return read(bucket, start, stop)

    monkeypatch.setattr(external_sort._Bucket, "read", recorded)
    n = 5000
    keys = {
        "uniform": np.random.default_rng(0).integers(0, 2**64, n, dtype=np.uint64),
        "two values": np.arange(n, dtype=np.uint64) % np.uint64(2),
        "one value": np.zeros(n, np.uint64),
    }[kind]
    found = sorted_on_disk(tmp_path, keys, keys, np.zeros(n), limit=40, piece=500)
    assert found == expected(keys, keys)
    assert max(held) <= 40
    assert sum(held) <= 10 * n  # read a few times, not once for each of the buckets


def test_nothing_comes_of_nothing(tmp_path: Path) -> None:
    none = np.zeros(0, np.uint64)
    assert sorted_on_disk(tmp_path, none, none, none, limit=5) == []


def test_a_bucket_is_removed_as_it_is_read(tmp_path: Path) -> None:
    first = np.arange(1000, dtype=np.uint64)
    sorting = ExternalSort(tmp_path, rows=1000, memory=100 * SORTED_BYTES)
    sorting.add(first, first, first, first / 1000)
    sizes = [sum(f.stat().st_size for f in tmp_path.iterdir()) for _ in sorting.sorted()]
    assert sizes[0] <= 24_000
    assert sizes[-1] <= 4_000
    assert sizes == sorted(sizes, reverse=True)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sorting = ExternalSort(tmp_path, rows=10, memory=10_000)
    monkeypatch.setattr(sorting._buckets[0], "_path", Path("/dev/full"))
    ten = np.arange(10, dtype=np.uint64)
    with pytest.raises(StorageError, match="^Sorting rows on disk failed: No space left"):
        sorting.add(ten, ten, ten, ten / 10)
