"""Snapshots: ids that stay, gaps, what counts as changed, and what does not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import listing
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.deep_hashes import content_sha256, find_deep_hashes, write_deep_hashes
from batchloom.dataplane.errors import DatasetChangedError, DatasetError, RowIdError
from batchloom.dataplane.snapshot import (
    Fragment,
    Snapshot,
    as_row_ids,
    extend_snapshot,
    first_snapshot,
    match_fragments,
    row_ids_to_int64,
    schema_digest,
)
from batchloom.tests.contracts.awkward import write_fragment
from batchloom.tests.dataplane.helpers import (
    compact,
    read_json,
    sha256,
    small_manifest,
    snapshot_of,
)
from hypothesis import given
from hypothesis import strategies as st


def part(folder: Path, name: str, values: list[int]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": pa.array(values, pa.int64())}), path)
    return path


def table_of(snapshot: Snapshot) -> list[tuple[str, int, int]]:
    return [(f.path, f.first_row_id, f.rows) for f in snapshot.fragments]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four files of 3, 2, 0 and 4 rows; 0 to 8."""
    for name, values in (
        ("part-1.parquet", [0, 1, 2]),
        ("part-2.parquet", [3, 4]),
        ("part-3.parquet", []),
        ("part-10.parquet", [5, 6, 7, 8]),
    ):
        part(tmp_path / "data", name, values)
    return tmp_path / "data"


# --- first and since ------------------------------------------------------------------------------


def test_a_first_snapshot_numbers_rows_in_natural_order(data: Path) -> None:
    snapshot = open_dataset(data).snapshot
    assert table_of(snapshot) == [
        ("part-1.parquet", 0, 3),
        ("part-2.parquet", 3, 2),
        ("part-3.parquet", 5, 0),
        ("part-10.parquet", 5, 4),
    ]
    assert (snapshot.rows, snapshot.next_row_id) == (9, 9)


def test_since_without_a_change_is_the_same(data: Path) -> None:
    old = open_dataset(data).snapshot
    new = open_dataset(data, since=old).snapshot
    assert new == old
    assert new.fingerprint == old.fingerprint


def test_since_after_an_append(data: Path) -> None:
    old = open_dataset(data).snapshot
    part(data, "part-0.parquet", [9])  # before all others by name, after them by id
    part(data, "part-2b.parquet", [10, 11])
    new = open_dataset(data, since=old).snapshot
    assert table_of(new) == [
        *table_of(old),
        ("part-0.parquet", 9, 1),
        ("part-2b.parquet", 10, 2),
    ]
    assert new.next_row_id == 12


def test_since_after_a_deletion_leaves_a_gap(data: Path) -> None:
    old = open_dataset(data).snapshot
    (data / "part-1.parquet").unlink()
    new = open_dataset(data, since=old).snapshot
    assert table_of(new) == table_of(old)[1:]
    assert (new.rows, new.next_row_id) == (6, 9)
    part(data, "part-1.parquet", [0, 1, 2])  # another file of the old name
    newer = open_dataset(data, since=new).snapshot
    assert table_of(newer) == [*table_of(new), ("part-1.parquet", 9, 3)]


def test_since_after_a_rewrite_gives_new_ids(data: Path) -> None:
    """Rewritten in place, of the same rows and, uncompressed, of the same size."""
    for path in data.iterdir():
        table = pq.read_table(path)
        pq.write_table(table, path, compression="none", use_dictionary=False)
    old = open_dataset(data).snapshot
    size = (data / "part-2.parquet").stat().st_size
    table = pa.table({"x": pa.array([7, 9], pa.int64())})
    pq.write_table(table, data / "part-2.parquet", compression="none", use_dictionary=False)
    assert (data / "part-2.parquet").stat().st_size == size
    dataset = open_dataset(data, since=old)
    assert table_of(dataset.snapshot) == [
        ("part-1.parquet", 0, 3),
        ("part-3.parquet", 5, 0),
        ("part-10.parquet", 5, 4),
        ("part-2.parquet", 9, 2),
    ]
    assert dataset.snapshot.next_row_id == 11
    assert dataset.take([10, 2, 8])["x"].to_pylist() == [9, 2, 8]
    with pytest.raises(RowIdError, match=r"Row 3 is in no fragment"):
        dataset.take([3])


def test_since_after_a_rename_gives_new_ids(data: Path) -> None:
    old = open_dataset(data).snapshot
    (data / "part-2.parquet").rename(data / "part-9.parquet")
    new = open_dataset(data, since=old).snapshot
    assert table_of(new)[-1] == ("part-9.parquet", 9, 2)
    assert new.next_row_id == 11


def test_ids_are_never_used_twice(data: Path) -> None:
    """Over ten rounds of random changes an id means one row of one file, or nothing."""
    rng = np.random.default_rng(0)
    meaning: dict[int, int] = {}
    snapshot = open_dataset(data).snapshot
    counter = 1000
    for _ in range(10):
        names = sorted(p.name for p in data.iterdir())
        for name in rng.choice(names, 2, replace=False).tolist():
            if rng.random() < 0.5 and len(list(data.iterdir())) > 2:
                (data / name).unlink()
            else:
                part(data, name, list(range(counter, counter + 3)))
                counter += 3
        part(data, f"part-{counter}.parquet", [counter])
        counter += 1
        dataset = open_dataset(data, since=snapshot)
        assert dataset.snapshot.next_row_id >= snapshot.next_row_id
        snapshot = dataset.snapshot
        ids = snapshot.ids_at(np.arange(snapshot.rows))
        for row, value in zip(ids.tolist(), dataset.take(ids)["x"].to_pylist(), strict=True):
            assert meaning.setdefault(row, value) == value
        starts = [f.first_row_id for f in snapshot.fragments]
        assert starts == sorted(starts)


def test_several_sources_grow_apart(tmp_path: Path) -> None:
    part(tmp_path / "a", "1.parquet", [0])
    part(tmp_path / "b", "1.parquet", [1, 2])
    sources = {"b": tmp_path / "b", "a": tmp_path / "a"}
    old = open_dataset(sources).snapshot
    assert [(f.label, f.first_row_id) for f in old.fragments] == [
        ("a:1.parquet", 0),
        ("b:1.parquet", 1),
    ]
    part(tmp_path / "a", "0.parquet", [3])
    new = open_dataset(sources, since=old).snapshot
    assert [(f.label, f.first_row_id) for f in new.fragments][2] == ("a:0.parquet", 3)
    renamed = open_dataset({"c": tmp_path / "a", "b": tmp_path / "b"}, since=new).snapshot
    assert [(f.label, f.first_row_id) for f in renamed.fragments] == [
        ("b:1.parquet", 1),
        ("c:0.parquet", 4),
        ("c:1.parquet", 5),
    ]


# --- fingerprints ---------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_table_alone(data: Path, tmp_path: Path) -> None:
    """Touched, copied, moved, listed in another order: the same."""
    first = open_dataset(data).snapshot
    assert first.fingerprint == sha256(compact(first.to_json()))
    for path in data.iterdir():
        os.utime(path, (1, 1))
    assert open_dataset(data).snapshot.fingerprint == first.fingerprint
    copy = shutil.copytree(data, tmp_path / "elsewhere" / "copy")
    assert open_dataset(copy).snapshot.fingerprint == first.fingerprint
    files = [copy / f.path for f in first.fragments]
    assert open_dataset(files[::-1]).snapshot.fingerprint == first.fingerprint
    text = json.dumps(first.to_json())
    assert str(tmp_path) not in text


def test_the_order_of_listing_does_not_matter(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_dataset(data).snapshot
    files = listing.Location.files
    for order in (sorted, lambda f: sorted(f, reverse=True)):
        with monkeypatch.context() as patch:
            patch.setattr(listing.Location, "files", lambda self, o=order: o(files(self)))
            assert open_dataset(data).snapshot == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda d: part(d, "part-2.parquet", [3, 5]),
        lambda d: part(d, "part-2.parquet", [3, 4, 5]),
        lambda d: part(d, "part-4.parquet", []),
        lambda d: (d / "part-3.parquet").unlink(),
        lambda d: (d / "part-1.parquet").rename(d / "part-0.parquet"),
        lambda d: pq.write_table(pa.table({"y": [3, 4]}), d / "part-2.parquet"),
    ],
    ids=range(6),
)
def test_the_fingerprint_changes_with_the_dataset(
    data: Path, change: Callable[[Path], Any]
) -> None:
    before = open_dataset(data).snapshot.fingerprint
    change(data)
    assert open_dataset(data).snapshot.fingerprint != before


# --- opening with a snapshot ----------------------------------------------------------------------


def test_moved_and_touched_datasets_are_accepted(data: Path, tmp_path: Path) -> None:
    snapshot = open_dataset(data).snapshot
    moved = tmp_path / "some" / "where"
    moved.parent.mkdir()
    data.rename(moved)
    for path in moved.iterdir():
        os.utime(path, (7, 7))
    (moved / "notes.txt").write_text("x")
    dataset = open_dataset(moved, snapshot=snapshot)
    assert dataset.take(range(9))["x"].to_pylist() == list(range(9))
    assert dataset.unplanned == 0


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deleted": (
        lambda d: (d / "part-2.parquet").unlink(),
        r"Fragment 'part-2\.parquet' of source 'data' \(2 rows, [\d,]+ bytes\) is gone",
    ),
    "renamed": (
        lambda d: (d / "part-2.parquet").rename(d / "part-20.parquet"),
        r"'part-2\.parquet' .* is gone",
    ),
    "a row less": (
        lambda d: part(d, "part-10.parquet", [5, 6, 7]),
        r"'part-10\.parquet' .* was rewritten since .*: expected .* found",
    ),
    "other values": (
        lambda d: part(d, "part-1.parquet", [0, 1, 3]),
        r"'part-1\.parquet' .* was rewritten since the plan was made: expected .* found",
    ),
    "another type": (
        lambda d: pq.write_table(pa.table({"x": ["a", "b"]}), d / "part-2.parquet"),
        r"'part-2\.parquet' .* was rewritten",
    ),
    "exchanged": (
        lambda d: [
            (d / a).rename(d / b)
            for a, b in (
                ("part-1.parquet", "x"),
                ("part-2.parquet", "part-1.parquet"),
                ("x", "part-2.parquet"),
            )
        ],
        r"'part-1\.parquet' .* was rewritten",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_datasets_are_refused(data: Path, change: str) -> None:
    snapshot = open_dataset(data).snapshot
    act, message = CHANGES[change]
    act(data)
    with pytest.raises(DatasetChangedError, match=message):
        open_dataset(data, snapshot=snapshot)


def test_a_rewrite_of_one_size_is_seen_by_the_footer(data: Path) -> None:
    for rows in ([0, 1, 2], [0, 9, 1]):
        snapshot = open_dataset(data).snapshot
        table = pa.table({"x": pa.array(rows, pa.int64())})
        pq.write_table(table, data / "part-1.parquet", compression="none", use_dictionary=False)
    assert open_dataset(data).snapshot.fragments[0].bytes == snapshot.fragments[0].bytes
    with pytest.raises(DatasetChangedError, match=r"expected footer [0-9a-f]{16}…, found footer"):
        open_dataset(data, snapshot=snapshot)


def test_only_deep_hashes_see_a_change_under_an_unchanged_footer(tmp_path: Path) -> None:
    """An IPC file's footer holds no statistics: the quick fingerprint cannot know."""
    write_fragment(pa.table({"x": [1, 2]}), tmp_path / "a.arrow", "ipc")
    dataset = open_dataset(tmp_path)
    deep = content_sha256(dataset.present()[0].location)
    write_fragment(pa.table({"x": [1, 3]}), tmp_path / "a.arrow", "ipc")
    again = open_dataset(tmp_path, snapshot=dataset.snapshot)
    assert again.snapshot == dataset.snapshot
    assert content_sha256(again.present()[0].location) != deep


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A tree of two runs, of files with equal names."""
    part(tmp_path / "tree" / "run", "a/1.parquet", [0, 1])
    part(tmp_path / "tree" / "run", "a/2.parquet", [2])
    part(tmp_path / "tree" / "run", "b/1.parquet", [3, 4, 5])
    return tmp_path / "tree"


def test_a_root_one_level_up_is_matched_by_suffix(nested: Path) -> None:
    old = open_dataset(nested / "run").snapshot
    assert [f.path for f in old.fragments] == ["a/1.parquet", "a/2.parquet", "b/1.parquet"]
    dataset = open_dataset(nested, snapshot=old)
    assert dataset.take([5, 0, 2])["x"].to_pylist() == [5, 0, 2]
    extended = open_dataset(nested, since=old).snapshot
    assert [(f.path, f.first_row_id) for f in extended.fragments] == [
        ("run/a/1.parquet", 0),
        ("run/a/2.parquet", 2),
        ("run/b/1.parquet", 3),
    ]
    assert extended.next_row_id == 6
    part(nested, "run/c/1.parquet", [6])
    grown = open_dataset(nested, since=old).snapshot
    assert [f.first_row_id for f in grown.fragments] == [0, 2, 3, 6]


def test_a_root_one_level_down_is_matched_by_suffix(nested: Path) -> None:
    old = open_dataset(nested / "run" / "*" / "*.parquet").snapshot
    above = open_dataset(nested).snapshot
    for snapshot in (old, above):
        dataset = open_dataset(nested / "run" / "a", snapshot=snapshot, needed=[0, 1])
        assert dataset.take([2, 0])["x"].to_pylist() == [2, 0]
        with pytest.raises(DatasetChangedError, match="b/1"):
            open_dataset(nested / "run" / "a", snapshot=snapshot)
        extended = open_dataset(nested / "run" / "a", since=snapshot).snapshot
        assert [(f.path, f.first_row_id) for f in extended.fragments] == [
            ("1.parquet", 0),
            ("2.parquet", 2),
        ]


def test_one_source_may_move_alone(nested: Path, tmp_path: Path) -> None:
    part(tmp_path / "other", "1.parquet", [6, 7])
    sources = {"run": nested / "run", "other": tmp_path / "other"}
    old = open_dataset(sources).snapshot
    moved = open_dataset({"run": nested, "other": tmp_path / "other"}, snapshot=old)
    assert moved.take(range(8))["x"].to_pylist() == [6, 7, 0, 1, 2, 3, 4, 5]


def test_files_of_one_name_and_size_are_told_by_their_footers(tmp_path: Path) -> None:
    for run, values in (("a", [1, 2]), ("b", [3, 4])):
        part(tmp_path / "d" / run, "x.parquet", values)
    sizes = {p.stat().st_size for p in (tmp_path / "d").rglob("*.parquet")}
    assert len(sizes) == 1
    for run, values in (("a", [1, 2]), ("b", [3, 4])):
        snapshot = open_dataset(tmp_path / "d" / run).snapshot
        dataset = open_dataset(tmp_path / "d", snapshot=snapshot)
        assert dataset.take([0, 1])["x"].to_pylist() == values
        extended = open_dataset(tmp_path / "d", since=snapshot).snapshot
        known = [f.path for f in extended.fragments if f.first_row_id < 2]
        assert known == [f"{run}/x.parquet"]


def test_what_could_be_two_files_is_refused(tmp_path: Path) -> None:
    """Copies with equal footers: which of them was planned cannot be known."""
    for run in ("a", "b"):
        part(tmp_path / "d" / run, "x.parquet", [1, 2])
    snapshot = open_dataset(tmp_path / "d" / "a").snapshot
    with pytest.raises(DatasetChangedError, match="several files could be it"):
        open_dataset(tmp_path / "d", snapshot=snapshot)
    both = open_dataset(tmp_path / "d").snapshot
    with pytest.raises(DatasetChangedError, match=r"'a/x\.parquet' .* is gone, or several"):
        open_dataset(tmp_path / "d" / "a", snapshot=both)
    extended = open_dataset(tmp_path / "d", since=snapshot).snapshot
    assert [f.first_row_id for f in extended.fragments] == [2, 4]


def test_a_suffix_is_of_whole_names(tmp_path: Path) -> None:
    part(tmp_path / "d", "b/x.parquet", [1, 2])
    snapshot = open_dataset(tmp_path / "d").snapshot
    assert open_dataset(tmp_path, snapshot=snapshot).rows == 2
    (tmp_path / "d" / "b").rename(tmp_path / "d" / "ab")
    with pytest.raises(DatasetChangedError, match="is gone"):
        open_dataset(tmp_path, snapshot=snapshot)


def test_footers_are_read_of_needed_fragments_only() -> None:
    planned = [Fragment("data", f"{i}.parquet", 1, 10, f"h{i}", i) for i in range(5)]
    listed = [("data", f"{i}.parquet", 10) for i in range(4, -1, -1)]
    asked: list[int] = []

    def footer_hash_of(index: int) -> str:
        asked.append(index)
        return f"h{4 - index}"

    pairs = match_fragments(planned, listed, footer_hash_of, [1, 3])
    assert sorted(asked) == [1, 3]
    assert pairs == {i: 4 - i for i in range(5)}


# --- row ids --------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=8),
    st.integers(0, 10),
)
def test_places_and_ranks_by_brute_force(shape: list[tuple[int, int]], seed: int) -> None:
    """`shape` is (gap before it, rows) of each fragment."""
    first_ids, at = [], 0
    for gap, rows in shape:
        first_ids.append(at + gap)
        at += gap + rows
    snapshot = snapshot_of(*(rows for _, rows in shape), first_ids=first_ids)
    places = [
        (first + k, index, k)
        for index, (first, (_, rows)) in enumerate(zip(first_ids, shape, strict=True))
        for k in range(rows)
    ]
    assert snapshot.rows == len(places)
    order = np.random.default_rng(seed).permutation(len(places))
    ids = np.array([places[i][0] for i in order], dtype=np.uint64)
    fragment, offset = snapshot.locate(ids)
    assert fragment.tolist() == [places[i][1] for i in order]
    assert offset.tolist() == [places[i][2] for i in order]
    assert snapshot.positions(ids).tolist() == order.tolist()
    assert snapshot.ids_at(order).tolist() == ids.tolist()
    known = {p[0] for p in places}
    for row in set(range(at + 3)) - known:
        for find in (snapshot.locate, snapshot.positions):
            with pytest.raises(RowIdError, match=f"Row {row} is in no fragment"):
                find(np.array([*known, row], dtype=np.uint64))
    for bad in (-1, len(places)):
        with pytest.raises(RowIdError, match="Positions must lie in the range"):
            snapshot.ids_at([bad])


def test_ranks_leave_the_ids_alone() -> None:
    ids = np.array([3, 1, 2], dtype=np.uint64)
    for snapshot in (snapshot_of(4), snapshot_of(4, 5, first_ids=[0, 10])):
        ranks = snapshot.positions(ids)
        assert ranks.dtype == np.int64
        assert ranks.tolist() == [3, 1, 2]
        assert snapshot.positions(ids[::2]).tolist() == [3, 2]
        assert ids.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        snapshot_of(4).positions(ids)[0] = 9


def test_ids_for_torch() -> None:
    ids = np.array([0, 2**63 - 1], dtype=np.uint64)
    assert row_ids_to_int64(ids).tolist() == [0, 2**63 - 1]
    assert row_ids_to_int64(ids[::2]).tolist() == [0]
    assert row_ids_to_int64(ids[:0]).tolist() == []
    with pytest.raises(RowIdError, match="Row 9223372036854775808 does not fit"):
        row_ids_to_int64(np.array([2**63], dtype=np.uint64))


def test_ids_beyond_63_bits_are_never_given() -> None:
    huge = [Fragment("data", f"{i}", 2**62, 1, "h") for i in range(2)]
    with pytest.raises(RowIdError, match=r"at or above 2\*\*63"):
        first_snapshot(huge, "d")
    old = first_snapshot(huge[:1], "d")
    with pytest.raises(RowIdError, match=r"at or above 2\*\*63"):
        extend_snapshot(old, huge, "d")


def test_as_row_ids() -> None:
    assert as_row_ids([]).dtype == np.uint64
    assert as_row_ids([3, 1]).tolist() == [3, 1]
    assert as_row_ids(np.array([2**64 - 1], np.uint64)).tolist() == [2**64 - 1]
    with pytest.raises(RowIdError, match="Row -2 cannot be"):
        as_row_ids([1, -2])
    with pytest.raises(RowIdError, match="found 1 dimensions of float64"):
        as_row_ids([1.0])


# --- as a file ------------------------------------------------------------------------------------


def test_a_snapshot_survives_its_file(data: Path, tmp_path: Path) -> None:
    snapshot = open_dataset(data).snapshot
    path = tmp_path / "deep" / "er" / "snap.json"
    snapshot.save(path)
    assert Snapshot.load(path) == Snapshot.load(str(path)) == snapshot
    assert [p.name for p in path.parent.iterdir()] == ["snap.json"]
    body = read_json(path)
    assert body["format"] == "batchloom-snapshot/1"
    assert body["fingerprint"] == snapshot.fingerprint
    assert path.read_bytes() == (json.dumps(body, sort_keys=True, indent=2) + "\n").encode()
    assert table_of(open_dataset(data, since=path).snapshot) == table_of(snapshot)


def test_writers_of_one_snapshot_file_may_race(tmp_path: Path) -> None:
    snapshots = [snapshot_of(*([3] * 300), n) for n in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: snapshots[n % 4].save(tmp_path / "s.json"), range(40)))
    assert Snapshot.load(tmp_path / "s.json") in snapshots
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]


def test_a_manifest_gives_its_snapshot(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "m")
    for path in (tmp_path / "m", tmp_path / "m" / "manifest.json"):
        assert Snapshot.load(path) == manifest.snapshot
    text = (tmp_path / "m" / "manifest.json").read_text().replace('"rows": 25', '"rows": 24')
    (tmp_path / "m" / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match="is damaged: expected fingerprint"):
        Snapshot.load(tmp_path / "m")


def test_damaged_snapshot_files_are_refused(tmp_path: Path) -> None:
    snapshot_of(3, 4).save(tmp_path / "s.json")
    whole = (tmp_path / "s.json").read_bytes()
    with pytest.raises(DatasetError, match="cannot be read: .*no such file"):
        Snapshot.load(tmp_path / "none.json")
    with pytest.raises(DatasetError, match="cannot be read: .*no such file"):
        Snapshot.load(tmp_path)
    (tmp_path / "new.json").write_bytes(
        whole.replace(b"batchloom-snapshot/1", b"batchloom-snapshot/2")
    )
    with pytest.raises(DatasetError, match="has the format 'batchloom-snapshot/2'; this version"):
        Snapshot.load(tmp_path / "new.json")
    rng = np.random.default_rng(0)
    cases = [b"", whole[: len(whole) // 2], b"[]", b"null", b"{}", b"[" * 100_000, b"\xff" * 10]
    cases += [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in rng.choice(len(whole) - 1, 60, replace=False).tolist()
    ]
    refused = 0
    for case in cases:
        (tmp_path / "s.json").write_bytes(case)
        try:
            same = Snapshot.load(tmp_path / "s.json") == snapshot_of(3, 4)
            assert same, case  # a flipped blank: nothing of the table changed
        except DatasetError as error:
            refused += 1
            assert "s.json" in str(error)  # noqa: PT017
    assert refused > 40


# --- schemas and deep hashes ----------------------------------------------------------------------


def test_schema_digests_by_hand() -> None:
    schema = pa.schema([("b", pa.int8()), pa.field("a", pa.list_(pa.string()), nullable=False)])
    expected = sha256(compact([["a", "list<item: string>"], ["b", "int8"]]))
    assert schema_digest(schema) == expected


def test_deep_hashes_are_written_found_and_checked(tmp_path: Path) -> None:
    assert find_deep_hashes(tmp_path) is None
    one, two = {"data:a": "1" * 64, "data:b": "2" * 64}, {"data:c": "3" * 64}
    path = write_deep_hashes(tmp_path, one)
    assert path.name == f"deep-{sha256(compact(one))}.json"
    assert write_deep_hashes(tmp_path, one) == path
    write_deep_hashes(tmp_path, two)
    assert find_deep_hashes(tmp_path) == {**one, **two}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"1", b"2", 1),
        lambda data: data[:-5],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b'{"sha256": {}}',
        lambda data: b"[" * 100_000,
    ],
    ids=range(6),
)
def test_damaged_deep_hashes_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_deep_hashes(tmp_path, {"data:a": "1" * 64})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=f"content hashes in {path} are damaged"):
        find_deep_hashes(tmp_path)
