"""The join of two datasets by key, against a dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import ColumnTypeError, MissingColumnError, SelectionError
from batchloom.dataplane.remap import GONE, RowMapping
from batchloom.jobs import key_join
from batchloom.jobs.engine import Engine
from batchloom.jobs.key_join import map_rows_by_key, match_hashed
from batchloom.jobs.progress import QuietProgress
from hypothesis import given
from hypothesis import strategies as st

hashed = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12)


@given(hashed, hashed)
def test_matching_hashes(old: list[tuple[int, int]], new: list[tuple[int, int]]) -> None:
    def side(keys: list[tuple[int, int]], first: int) -> Any:
        rows = np.array([(*key, first + i) for i, key in enumerate(keys)], np.uint64)
        return rows.reshape(-1, 3).T

    found = match_hashed(side(old, 0), side(new, 100))
    for keys, pairs, first in ((old, found.twice_old, 0), (new, found.twice_new, 100)):
        assert pairs.shape[1] == len(keys) - len(set(keys))
        for a, b in pairs.T.tolist():
            assert a != b
            assert keys[a - first] == keys[b - first]
    if len(set(old)) == len(old) and len(set(new)) == len(new):
        expected = {old.index(key): 100 + new.index(key) for key in set(old) & set(new)}
        assert dict(zip(found.old.tolist(), found.new.tolist(), strict=True)) == expected


@pytest.fixture(params=[False, True], ids=["one range", "many small files and ranges"])
def join(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param:
        monkeypatch.setattr(key_join, "_FILE_ROWS", 7)
        monkeypatch.setattr(key_join, "_RANGE_ROWS", 10)
    with Engine(workers=0) as engine:

        def run(old: Any, new: Any, key: str = "k", fragments: Any = None) -> RowMapping:
            before = open_dataset(old)
            after = open_dataset(new, since=before.snapshot)
            chosen = range(len(before.refs)) if fragments is None else fragments
            return map_rows_by_key(before, after, key, fragments=chosen, engine=engine,
                                   progress=QuietProgress(), folder=tmp_path)  # fmt: skip

        yield run


def keyed(values: Any, type_: Any = None) -> pa.Table:
    return pa.table({"k": pa.array(values, type_)})


def test_rows_are_found_again(join: Any, make_dataset: Any) -> None:
    rng = np.random.default_rng(0)
    keys = [f"doc-{i}" for i in range(90)]
    old = make_dataset(keyed(keys[:40]), keyed([]).cast(pa.schema([("k", "string")])),
                       keyed(keys[40:]), name="old")  # fmt: skip
    there = rng.permutation(keys + [f"new-{i}" for i in range(10)]).tolist()
    there = [k for k in there if k not in ("doc-3", "doc-77")]
    new = make_dataset(keyed(there[:20]), keyed(there[20:]), name="new")
    mapping = join(old, new)
    after = open_dataset(new, since=mapping.old)
    assert mapping.old.next_row_id == 90
    expected = {key: 90 + i for i, key in enumerate(there)}
    assert mapping.new_ids.tolist() == [expected.get(key, int(GONE)) for key in keys]
    assert after.take(mapping.new_ids[:3], ["k"])["k"].to_pylist() == keys[:3]


def test_only_some_fragments(join: Any, make_dataset: Any) -> None:
    old = make_dataset(keyed(["a", "b"]), keyed(["c"]), name="old")
    new = make_dataset(keyed(["c", "b", "a"]), name="new")
    mapping = join(old, new, fragments=[1])
    assert mapping.new_ids.tolist() == [int(GONE), int(GONE), 3]


def test_files_that_are_in_both_keep_their_ids(join: Any, make_dataset: Any) -> None:
    old = make_dataset(keyed(["a", "b"]), keyed(["c", "d"]), name="old")
    mapping = join(old, make_dataset(keyed(["a", "b"]), keyed(["x", "d", "c"]), name="new"))
    assert mapping.new_ids.tolist() == [0, 1, 6, 5]


def test_files_sorted_anew_under_the_same_footer(join: Any, make_dataset: Any) -> None:
    old = make_dataset(keyed(["a", "b"]), keyed(["c", "d"]), name="old")
    mapping = join(old, make_dataset(keyed(["a", "b"]), keyed(["d", "c"]), name="new"))
    assert mapping.new_ids.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pa.int64(), pa.int32()),
        (pa.uint8(), pa.int64()),
        (pa.string(), pa.large_string()),
        (pa.string(), pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_types_that_hold_the_same_values(
    join: Any, make_dataset: Any, before: Any, after: Any
) -> None:
    values = list(range(20))
    if not pa.types.is_integer(before):
        values = [str(v) for v in values]  # type: ignore[misc]
    old = make_dataset(keyed(values, before), name="old")
    new = make_dataset(keyed(values[::-1], after), name="new")
    assert join(old, new).new_ids.tolist() == list(range(39, 19, -1))


def test_a_null_is_no_key(join: Any, make_dataset: Any) -> None:
    old = make_dataset(keyed(["a", None, None, "b"]), name="old")
    new = make_dataset(keyed([None, "b", None, "a", None]), name="new")
    assert join(old, new).new_ids.tolist() == [7, int(GONE), int(GONE), 5]


def test_keys_that_are_there_twice(join: Any, make_dataset: Any) -> None:
    once, twice = keyed(["a", "b", "c"]), keyed(["b", "a", "b", "c", "c", "b"])
    with pytest.raises(SelectionError) as caught:
        join(make_dataset(twice, name="a"), make_dataset(once, name="b"))
    text = str(caught.value)
    assert text.startswith(
        "The key 'k' is not unique in the old dataset: 3 rows have the key of another one, such as "
    )
    shown = set(re.findall(r"'[a-z]' \(rows \d and \d\)", text))
    assert shown == {"'b' (rows 0 and 2)", "'b' (rows 2 and 5)", "'c' (rows 3 and 4)"}
    with pytest.raises(SelectionError, match="not unique in the new dataset: 3 rows .* such as '"):
        join(make_dataset(once, name="c"), make_dataset(twice, name="d"))


def test_columns_that_make_no_key(join: Any, make_dataset: Any) -> None:
    texts, ints = make_dataset(keyed(["1"]), name="a"), make_dataset(keyed([1]), name="b")
    with pytest.raises(ColumnTypeError, match="'k' is string in the old dataset and int64 in the"):
        join(texts, ints)
    floats = make_dataset(keyed([1.5]), name="c")
    with pytest.raises(ColumnTypeError, match="a key must be integers, strings or binaries"):
        join(floats, make_dataset(keyed([1.5, 2.5]), name="d"))
    with pytest.raises(MissingColumnError, match="no column 'kk'"):
        join(texts, texts, key="kk")
