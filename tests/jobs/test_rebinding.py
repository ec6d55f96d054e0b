"""Rebind: the same samples in the same steps, under new row ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import Manifest, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    DatasetError,
    JobSpecError,
    ManifestConflictError,
    ManifestError,
    ParameterError,
    SelectionError,
)
from batchloom.jobs import edit, plan, rebind, verify
from batchloom.jobs.progress import QuietProgress
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, awkward_table, write_fragment
from batchloom.tests.contracts.plans import awkward_manifest, lists_of, lists_without
from batchloom.tests.dataplane.helpers import litter
from batchloom.tests.jobs.conftest import small_table, write_small


@pytest.fixture(scope="module")
def old(awkward_data: Callable[[str], Path]) -> Path:
    return awkward_data("parquet")


@pytest.fixture(scope="module")
def parent(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return awkward_manifest(tmp_path_factory.mktemp("rebind") / "m", old)


def rewritten(folder: Path, left_out: Any = ()) -> tuple[Path, list[int]]:
    """Write the awkward rows in another order into other files; return (folder, old ids)."""
    order = np.random.default_rng(1).permutation(AWKWARD_ROWS)
    order = order[~np.isin(order, np.array(left_out, np.int64))]
    table = awkward_table().take(pa.array(order))
    for number, (start, stop) in enumerate([(0, 100), (100, 7000), (7000, len(order))]):
        path = folder / f"compact-{number}.arrow"
        write_fragment(table.slice(start, stop - start), path, "ipc")
    return folder, order.tolist()


def renamed(lists: dict[int, Any], name: Any) -> dict[int, Any]:
    return {
        e: [{**b, "rows": [(name(r), *rest) for r, *rest in b["rows"]]} for b in batches]
        for e, batches in lists.items()
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_rows_in_the_same_steps(
    parent: Manifest, old: Path, tmp_path: Path, workers: int
) -> None:
    new, order = rewritten(tmp_path / "new")
    child = rebind(parent.path, old, new, key="row", out=tmp_path / "c", workers=workers)
    dataset = child.open_dataset(new)
    place = {row: AWKWARD_ROWS + i for i, row in enumerate(order)}
    expected = renamed(lists_of(parent), lambda r: place[r])
    assert renamed(lists_of(child), lambda r: r) == expected
    verify(child.path, new, deep=False)
    child.verify(deep=True)
    rows = child.epoch(2).plan().rows
    assert dataset.take(rows, ["row"])["row"].to_pylist() == parent.epoch(2).plan().rows.tolist()
    assert child.parent == parent.manifest_id
    assert child.snapshot == open_dataset(new, since=parent.snapshot).snapshot
    assert child.identity["stages"] == [
        *parent.identity["stages"],
        {
            "stage": "rebind",
            "method": "key",
            "parameters": {"key": "row"},
            "states_of": parent.manifest_id,
            "first_change": None,
        },
    ]
    for name in ("seed", "unit", "weight_semantics", "side_columns"):
        assert child.identity[name] == parent.identity[name]
    for number, record in child.records.items():
        before = parent.records[number].to_json()
        assert {**record.to_json(), "logical_digest": ""} == {**before, "logical_digest": ""}
    assert litter(tmp_path) == []
    with pytest.raises(DatasetChangedError):
        child.open_dataset(old)


class Told(QuietProgress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_rows_that_are_gone(parent: Manifest, old: Path, tmp_path: Path) -> None:
    gone = {17, 4000, *range(9000, 10_000)}
    new, order = rewritten(tmp_path / "new", sorted(gone))
    with pytest.raises(SelectionError) as caught:
        rebind(parent, old, new, key="text", out=tmp_path / "c", workers=0)
    assert "The key 'text' is not unique in the old dataset: 909 rows have" in str(caught.value)
    with pytest.raises(SelectionError) as caught:
        rebind(parent, old, new, key="row", out=tmp_path / "c", workers=0)
    assert str(caught.value) == (
        "1,002 planned rows are not in the new dataset: it holds no row with their 'row', such as "
        "17 (row 17), 4000 (row 4000), 9000 (row 9000). Put them back, or leave them out with "
        "--missing drop."
    )
    assert not (tmp_path / "c").exists()
    told = Told()
    child = rebind(parent, old, new, key="row", out=tmp_path / "c", missing="drop", workers=0,
                   progress=told)  # fmt: skip
    assert told.warnings == ["rebind: 1,002 planned rows are gone and left out."]
    place = {row: AWKWARD_ROWS + i for i, row in enumerate(order)}
    before = lists_of(parent)
    left = {e: lists_without(v, lambda step, row: row in gone) for e, v in before.items()}
    assert renamed(lists_of(child), lambda r: r) == renamed(left, lambda r: place[r])
    first = next(
        (e, b["step"]) for e in before for b in before[e] if any(r[0] in gone for r in b["rows"])
    )
    stage = child.identity["stages"][-1]
    assert stage["first_change"] == {"epoch": first[0], "step": first[1]}
    assert child.provenance["reports"]["rebind"] == {"rows_gone": 1002}
    child.verify(deep=True)


def test_compaction_of_some_files(tmp_path: Path) -> None:
    old = write_small(tmp_path / "old", (100, 50, 30))
    made = plan("shuffle", old, out=tmp_path / "p", batch_size=16, epochs=2, workers=0)
    new = write_small(tmp_path / "new", (100,))
    pq.write_table(small_table(100, 180), new / "part-9.parquet")
    child = rebind(made, old, new, key="key", out=tmp_path / "c", workers=0)
    moved = renamed(lists_of(made), lambda r: r if r < 100 else r + 80)
    assert renamed(lists_of(child), lambda r: r) == moved
    assert [f.first_row_id for f in child.snapshot.fragments] == [0, 180]


def test_files_sorted_anew_in_place(tmp_path: Path) -> None:
    """Same name, size and footer: the fingerprint cannot tell, and no row is mistaken."""
    keys = np.arange(100)
    for folder, values in (("old", keys), ("new", keys[::-1])):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"key": values.copy()}), tmp_path / folder / "part-0.parquet",
                       compression="none", use_dictionary=False)  # fmt: skip
    old, new = tmp_path / "old", tmp_path / "new"
    made = plan("shuffle", old, out=tmp_path / "p", batch_size=16, workers=0)
    assert open_dataset(new).snapshot == made.snapshot
    child = rebind(made, old, new, key="key", out=tmp_path / "c", workers=0)
    assert renamed(lists_of(child), lambda r: r) == renamed(lists_of(made), lambda r: 99 - r)
    assert child.manifest_id != made.manifest_id


def test_rows_that_were_dropped_may_be_gone_too(tmp_path: Path) -> None:
    old = write_small(tmp_path / "old", (103,))
    made = plan("shuffle", old, out=tmp_path / "p", batch_size=10, drop_last=True, workers=0)
    assert made.records[0].dropped_rows == 3
    planned = sorted(made.epoch(0).plan().rows.tolist())
    new = tmp_path / "new"
    new.mkdir()
    pq.write_table(small_table(0, 103).take(planned[:-1]), new / "all.parquet")
    child = rebind(made, old, new, key="key", out=tmp_path / "c", missing="drop", workers=0)
    assert (child.records[0].samples, child.records[0].dropped_rows) == (99, 0)
    assert child.records[0].coverage == "exactly_once"
    child.verify(deep=True)


def test_rebound_again_and_edited(tmp_path: Path) -> None:
    old = write_small(tmp_path / "old", (100, 50))
    made = plan("shuffle", old, out=tmp_path / "p", batch_size=16, epochs=2, form="recipe",
                workers=0)  # fmt: skip
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder, rows in ((once, range(149, -1, -1)), (twice, range(150))):
        folder.mkdir()
        pq.write_table(small_table(0, 150).take(list(rows)), folder / "all.parquet")
    a = rebind(made, old, once, key="key", out=tmp_path / "a", workers=0)
    b = edit(a, out=tmp_path / "b", epoch=0, skip_steps="2:3")
    c = rebind(b, once, twice, key="key", out=tmp_path / "c", workers=0)
    expected = lists_of(made)
    expected[0] = [x for x in expected[0] if x["step"] != 2]
    assert renamed(lists_of(c), lambda r: r) == renamed(expected, lambda r: r + 300)
    assert [s["stage"] for s in c.identity["stages"]] == ["batch", "rebind", "edit", "rebind"]


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("s.parquet", "t.arrow"), ("s.arrow", "t.parquet")])
def test_signals_are_carried_over(
    parent: Manifest, old: Path, tmp_path: Path, source: str, target: str
) -> None:
    new, order = rewritten(tmp_path / "new", [5, 6])
    rows = np.array([9, 5, 10_006, 9, 20_000, 6, 0])
    signal = pa.table(
        {"epoch": pa.array(range(7), pa.uint32()), "row": rows, "loss": rows * 0.5,
         "note": pa.array([f"n{r}" for r in rows]).dictionary_encode()}
    )  # fmt: skip
    if source.endswith("parquet"):
        pq.write_table(signal, tmp_path / source)
    else:
        with pa.ipc.new_file(tmp_path / source, signal.schema) as writer:
            writer.write_table(signal, max_chunksize=2)
    options: dict[str, Any] = {
        "key": "row", "out": tmp_path / "c", "missing": "drop", "workers": 0,
        "signal": tmp_path / source, "signal_out": tmp_path / "out" / target,
    }  # fmt: skip
    child = rebind(parent, old, new, **options)
    report = child.provenance["reports"]["rebind"]
    assert (report["signal_rows"], report["signal_rows_gone"]) == (4, 3)
    found = ds.dataset(tmp_path / "out" / target, format=Path(target).suffix[1:]).to_table()
    assert found.schema.names == ["epoch", "row", "loss", "note"]
    assert found.schema.field("row").type == pa.uint64()
    place = {row: AWKWARD_ROWS + i for i, row in enumerate(order)}
    assert found["row"].to_pylist() == [place[r] for r in (9, 10_006, 9, 0)]
    assert found["loss"].to_pylist() == [4.5, 5003.0, 4.5, 0.0]
    assert found["epoch"].to_pylist() == [0, 2, 3, 6]
    assert found["note"].to_pylist() == ["n9", "n10006", "n9", "n0"]
    rebind(parent, old, new, **options)  # the same is success
    (tmp_path / "out" / target).write_bytes(b"mine")
    with pytest.raises(ManifestConflictError, match="holds another signal"):
        rebind(parent, old, new, **options)
    assert (tmp_path / "out" / target).read_bytes() == b"mine"
    assert litter(tmp_path / "out") == []


def test_a_signal_is_there_only_with_its_manifest(
    parent: Manifest, old: Path, tmp_path: Path
) -> None:
    new, _ = rewritten(tmp_path / "new")
    pq.write_table(pa.table({"row": [1], "loss": [0.5]}), tmp_path / "s.parquet")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    with pytest.raises(ManifestConflictError):
        rebind(parent, old, new, key="row", out=tmp_path / "taken", workers=0,
               signal=tmp_path / "s.parquet", signal_out=tmp_path / "t.parquet")  # fmt: skip
    assert not (tmp_path / "t.parquet").exists()
    assert litter(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda p: None, "s.parquet", "There is no signal at"),
        (lambda p: p.write_bytes(b"x" * 100), "s.parquet", "The signal .* cannot be read"),
        (lambda p: p.write_bytes(b"x" * 100), "s.arrow", "The signal .* cannot be read"),
        (lambda p: pq.write_table(pa.table({"loss": [1.0]}), p), "s.parquet",
         "has the columns loss: expected a column 'row'"),
        (lambda p: pq.write_table(pa.table({"row": ["1"]}), p), "s.parquet", "'row' of row ids"),
    ],
)  # fmt: skip
def test_signals_that_are_none(
    parent: Manifest, old: Path, tmp_path: Path, make: Any, name: str, message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DatasetError, match=message):
        rebind(parent, old, old, key="row", out=tmp_path / "c", signal=tmp_path / name,
               signal_out=tmp_path / "t.parquet")  # fmt: skip


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"missing": "ignore"}, ParameterError, "one of 'fail', 'drop'. Got 'ignore'"),
        ({"signal": "s.parquet"}, JobSpecError, "'signal' and 'signal_out' go together"),
        ({"signal": "s.csv", "signal_out": "t.parquet"}, ParameterError, "'signal' parameter must"),
        (
            {},
            JobSpecError,
            "All rows of .* are where they were planned; there is",
        ),
    ],
)
def test_what_is_no_rebinding(
    parent: Manifest, old: Path, tmp_path: Path, options: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        rebind(parent, old, old, key="row", out=tmp_path / "c", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_series_is_refused(small: Path, tmp_path: Path) -> None:
    plan("shuffle", small, out=tmp_path / "s", series=True, batch_size=50, workers=0)
    with pytest.raises(ManifestError, match="name a member of it"):
        rebind(tmp_path / "s", small, small, key="key", out=tmp_path / "c")


def test_the_old_files_must_be_those_that_were_planned(
    parent: Manifest, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetChangedError):
        rebind(parent, small, small, key="row", out=tmp_path / "c")


def test_nothing_would_be_left(tmp_path: Path) -> None:
    old = write_small(tmp_path / "old", (20,))
    made = plan("shuffle", old, out=tmp_path / "p", batch_size=5, workers=0)
    new = tmp_path / "new"
    new.mkdir()
    pq.write_table(small_table(500, 520), new / "x.parquet")
    with pytest.raises(SelectionError, match="Nothing would be left of epoch 0"):
        rebind(made, old, new, key="key", out=tmp_path / "c", missing="drop", workers=0)


def test_a_signal_store_is_carried_over(parent: Manifest, old: Path, tmp_path: Path) -> None:
    new, order = rewritten(tmp_path / "new", left_out=[7])
    rows = np.arange(20)
    for value in (1, 2):
        with SignalStore.for_writing(tmp_path / "s", parent) as store:
            store.append(rows, epoch=0, step=0, loss=rows * value, grad=np.ones((20, 2)))
    child = rebind(
        parent.path, old, new, key="row", out=tmp_path / "c", missing="drop",
        signal=tmp_path / "s", signal_out=tmp_path / "s2",
    )  # fmt: skip
    carried = SignalStore.open(tmp_path / "s2")
    place = {row: AWKWARD_ROWS + i for i, row in enumerate(order)}
    found = next(iter(carried.latest()))
    assert dict(zip(found.rows.tolist(), found.values.tolist(), strict=True)) == {
        place[r]: 2.0 * r for r in range(20) if r != 7
    }
    assert carried.signals == ("grad", "loss")
    assert carried.snapshot == child.snapshot
    report = child.provenance["reports"]["rebind"]
    assert (report["signal_rows"], report["signal_rows_gone"]) == (76, 4)
    assert SignalStore.for_writing(tmp_path / "s2", child).attempt == 3
    with pytest.raises(ManifestConflictError, match="is there already"):
        rebind(
            parent.path, old, new, key="row", out=tmp_path / "d", missing="drop",
            signal=tmp_path / "s", signal_out=tmp_path / "s2",
        )  # fmt: skip
    assert not (tmp_path / "d").exists()
    assert litter(tmp_path) == []
