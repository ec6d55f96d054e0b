"""Edit against plans as plain lists: what goes is gone everywhere, what stays is as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import Manifest, Series
from batchloom.dataplane.canonical import file_sha256
from batchloom.dataplane.errors import (
    DatasetError,
    JobSpecError,
    ManifestConflictError,
    ManifestError,
    ParameterError,
    SelectionError,
)
from batchloom.jobs import edit, plan, rebind, trace, verify
from batchloom.jobs.progress import QuietProgress
from batchloom.tests.contracts.plans import EPOCHS, awkward_manifest, lists_of, lists_without
from batchloom.tests.dataplane.helpers import litter
from batchloom.tests.jobs.conftest import write_small


@pytest.fixture(scope="module")
def data(awkward_data: Callable[[str], Path]) -> Path:
    return awkward_data("parquet")


@pytest.fixture(scope="module")
def parent(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return awkward_manifest(tmp_path_factory.mktemp("edit") / "m", data)


def keys_file(path: Path, keys: Any) -> Path:
    path.write_text("\n".join(map(str, keys)) + "\n")
    return path


class Told(QuietProgress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def check_child(child: Manifest, parent: Manifest, expected: dict[int, Any]) -> None:
    """Compare a child with what it should hold, and its header with its parent's."""
    assert lists_of(child) == expected
    verify(child.path, deep=True)
    assert child.parent == parent.manifest_id
    for name in ("seed", "unit", "weight_semantics", "side_columns", "snapshot", "signals"):
        assert child.identity[name] == parent.identity[name]
    assert child.identity["stages"][: len(parent.identity["stages"])] == parent.identity["stages"]
    for number, record in child.records.items():
        before = parent.records[number]
        sizes: dict[int, int] = {}
        for batch in expected[number]:
            sizes[batch["step"]] = sizes.get(batch["step"], 0) + 1
        assert record.micro_divisor == math.gcd(*sizes.values())
        selected = before.distinct_rows + before.dropped_rows
        assert record.distinct_rows + record.dropped_rows == selected


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(0, 1), (3, 9), (60, 70), (5, 10_000)])
def test_steps_left_out_leave_a_gap(
    parent: Manifest, tmp_path: Path, steps: tuple[int, int]
) -> None:
    child = edit(parent.path, out=tmp_path / "c", epoch=2, skip_steps=steps)
    before = lists_of(parent)
    left = [b for b in before[2] if not steps[0] <= b["step"] < steps[1]]
    check_child(child, parent, {**before, 2: left})
    (stage,) = child.identity["stages"]
    assert stage == {
        "stage": "edit",
        "method": "skip_steps",
        "parameters": {"epoch": 2, "first": steps[0], "stop": steps[1]},
        "states_of": parent.manifest_id,
        "first_change": {"epoch": 2, "step": steps[0]},
    }
    text = f"{steps[0]}:{steps[1]}"
    again = edit(parent, out=tmp_path / "c", epoch=2, skip_steps=text)  # the same is success
    assert again.manifest_id == child.manifest_id


def test_epochs_that_do_not_change_are_taken_over(parent: Manifest, tmp_path: Path) -> None:
    child = edit(parent, out=tmp_path / "c", epoch=2, skip_steps=(1, 3))
    for part in parent.parts:
        there = child.path / part.name
        if part.epoch == 2:
            continue
        assert there.stat().st_ino == (parent.path / part.name).stat().st_ino
    assert [child.records[e] for e in (0, 3)] == [parent.records[e] for e in (0, 3)]


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [None, 0, 2])
def test_rows_left_out_by_id(parent: Manifest, tmp_path: Path, epoch: int | None) -> None:
    gone = set(range(100, 2500)) | {10_006}
    file = keys_file(tmp_path / "ids.txt", gone)
    child = edit(parent.path, out=tmp_path / "c", drop=file, epoch=epoch)
    before = lists_of(parent)
    expected = {
        e: lists_without(before[e], lambda step, row: row in gone) if epoch in (None, e) else v
        for e, v in before.items()
    }
    check_child(child, parent, expected)
    with open(file, "rb") as handle:
        sha256 = file_sha256(handle)
    (stage,) = child.identity["stages"]
    assert stage["method"] == "drop"
    assert stage["parameters"] == {"epoch": epoch, "file_sha256": sha256, "key": None}
    first = min(
        (e, b["step"])
        for e in (EPOCHS if epoch is None else (epoch,))
        for b in before[e]
        for row in b["rows"]
        if row[0] in gone
    )
    assert stage["first_change"] == {"epoch": first[0], "step": first[1]}
    assert str(tmp_path) not in json.dumps(child.identity)


def bytes_of(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(folder.glob("part-*")))


def test_a_takedown_holds_everywhere(small: Path, tmp_path: Path) -> None:
    # Row ids that no other number of the files looks like, so that their bytes tell.
    data = write_small(tmp_path / "data", (4000,))
    made = plan("kmeans", data, out=tmp_path / "p", batch_size=16, columns=["x"], k=3, epochs=3,
                workers=0)  # fmt: skip
    gone = [3001, 3500, 3999]
    keys = keys_file(tmp_path / "gone.csv", ["url", *(f"doc-{i}" for i in gone)])
    child = edit(made, out=tmp_path / "c", drop=keys, key="key", data=data, workers=0)
    for row in gone:
        needle = np.uint64(row).tobytes()
        assert needle in bytes_of(made.path)
        assert needle not in bytes_of(child.path)
    assert all(not r.found for r in trace(child, row=gone).rows)  # type: ignore[union-attr]
    found = trace(child, data, key="key", value="doc-3500")
    assert [r.absent for r in found.rows] == [(0, 1, 2)]  # type: ignore[union-attr]
    assert child.provenance["reports"]["edit"]["keys_in_no_step"] == 0
    assert "kmeans" in child.provenance["reports"]


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_left_out_by_key(parent: Manifest, data: Path, tmp_path: Path, workers: int) -> None:
    gone = set(range(0, 10_007, 11)) | {25, 78}  # an empty text is a key like any other
    table = pa.table({"text": ["", "row 25", "row 78", "row 78", "nobody", None]})
    pq.write_table(table, tmp_path / "keys.parquet")
    told = Told()
    child = edit(
        parent.path, out=tmp_path / "c", drop=tmp_path / "keys.parquet", key="text", data=data,
        workers=workers, progress=told,
    )  # fmt: skip
    before = lists_of(parent)
    expected = {e: lists_without(v, lambda step, row: row in gone) for e, v in before.items()}
    check_child(child, parent, expected)
    report = child.provenance["reports"]["edit"]
    assert (report["keys"], report["keys_in_no_step"]) == (4, 1)
    assert told.warnings == [
        f"edit: 1 of 4 keys of 'text' in {tmp_path / 'keys.parquet'} are in no step of "
        f"{parent.path}."
    ]
    assert litter(tmp_path) == []


def test_rows_that_are_in_no_step_are_counted(parent: Manifest, tmp_path: Path) -> None:
    rows = {int(r) for b in parent.epoch(0).blocks() for r in b.rows}
    inside, outside = sorted(rows)[:3], [r for r in range(10_007) if r not in rows][:2]
    file = keys_file(tmp_path / "ids", [*inside, *outside, 10_007, 1 << 60, inside[0]])
    told = Told()
    child = edit(parent, out=tmp_path / "c", drop=file, epoch=0, progress=told)
    assert told.warnings == [
        f"edit: 4 of 7 row ids in {file} are in no step of epoch 0 of {parent.path}."
    ]
    first = child.identity["stages"][0]["first_change"]["step"]
    assert child.provenance["reports"]["edit"] == {
        "epochs": [{"epoch": 0, "rows": 3, "distinct_rows": 3, "first_step": first}],
        "keys": 7,
        "keys_in_no_step": 4,
    }  # fmt: skip


def test_steps_and_rows_at_once(parent: Manifest, tmp_path: Path) -> None:
    file = keys_file(tmp_path / "ids", range(3000))
    child = edit(parent, out=tmp_path / "c", epoch=3, skip_steps="40:45", drop=file)
    before = lists_of(parent)
    left = lists_without(before[3], lambda step, row: row < 3000 or 40 <= step < 45)
    check_child(child, parent, {**before, 3: left})
    assert [s["method"] for s in child.identity["stages"]] == ["skip_steps", "drop"]
    assert len({json.dumps(s["first_change"]) for s in child.identity["stages"]}) == 1


def test_an_edit_of_an_edit(parent: Manifest, tmp_path: Path) -> None:
    first = edit(parent, out=tmp_path / "a", epoch=0, skip_steps=(2, 4))
    second = edit(first, out=tmp_path / "b", epoch=0, skip_steps=(0, 3))
    before = lists_of(parent)
    check_child(second, first, {**before, 0: [b for b in before[0] if b["step"] >= 4]})
    assert [s["states_of"] for s in second.identity["stages"]] == [
        parent.manifest_id,
        first.manifest_id,
    ]


def test_recipes_become_parts_where_they_change(small: Path, tmp_path: Path) -> None:
    recipe = plan("shuffle", small, out=tmp_path / "r", batch_size=64, epochs=3, form="recipe",
                  where="row < 900", workers=0)  # fmt: skip
    child = edit(recipe, out=tmp_path / "c", epoch=1, skip_steps=(4, 6))
    before = lists_of(recipe)
    check_child(child, recipe, {**before, 1: [b for b in before[1] if b["step"] not in (4, 5)]})
    assert [child.records[e].recipe is None for e in (0, 1, 2)] == [False, True, False]
    assert child.bitmaps == recipe.bitmaps
    every = edit(recipe, out=tmp_path / "d", drop=keys_file(tmp_path / "ids", [17]))
    check_child(every, recipe, {
        e: lists_without(v, lambda step, row: row == 17) for e, v in before.items()
    })  # fmt: skip
    assert not every.bitmaps
    assert every.identity["reader_features"] == []


def test_content_hashes_go_with_the_child(small: Path, tmp_path: Path) -> None:
    made = plan("shuffle", small, out=tmp_path / "p", batch_size=50, deep=True, workers=0)
    child = edit(made, out=tmp_path / "c", epoch=0, skip_steps=(0, 1))
    assert verify(child.path, small, deep=True).contents == 5


def test_members_of_a_series(small: Path, tmp_path: Path) -> None:
    for epochs in ("0:1", "1:3"):
        plan("shuffle", small, out=tmp_path / "s", series=True, epochs=epochs, batch_size=50,
             workers=0)  # fmt: skip
    with pytest.raises(ManifestError, match="is a series of manifests; name a member of it"):
        edit(tmp_path / "s", out=tmp_path / "c", epoch=1, skip_steps=(0, 2))
    member = Series.open(tmp_path / "s").members[1]
    child = edit(member.path, out=tmp_path / "c", epoch=1, skip_steps=(0, 2))
    assert child.epochs == (1, 2)
    assert child.parent == member.manifest_id


# --- what is refused ------------------------------------------------------------------------------


def test_edits_that_change_nothing(parent: Manifest, tmp_path: Path, data: Path) -> None:
    out = tmp_path / "c"
    nobody = keys_file(tmp_path / "keys", ["nobody", "else"])
    ids = keys_file(tmp_path / "ids", [99_999])
    with pytest.raises(JobSpecError, match=r"epoch 0 of .* holds none of the steps 9000:9001"):
        edit(parent, out=out, epoch=0, skip_steps=(9000, 9001))
    with pytest.raises(JobSpecError, match="nothing: .* holds none of the 2 keys of 'text'"):
        edit(parent, out=out, drop=nobody, key="text", data=data, workers=0)
    with pytest.raises(JobSpecError, match="none of the steps 9000:9001 and none of the 1 row ids"):
        edit(parent, out=out, epoch=0, skip_steps=(9000, 9001), drop=ids)
    assert not out.exists()


def test_edits_that_leave_nothing_of_an_epoch(parent: Manifest, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"left of epoch 2 of .*: all of its 3,000 rows go"):
        edit(parent, out=tmp_path / "c", epoch=2, skip_steps=(0, 10_000))
    rows = {int(r) for b in parent.epoch(0).blocks() for r in b.rows}
    with pytest.raises(SelectionError, match="left of epoch 0"):
        edit(parent, out=tmp_path / "c", drop=keys_file(tmp_path / "ids", rows))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, JobSpecError, "Say what to leave out"),
        ({"skip_steps": (0, 1)}, JobSpecError, "say with 'epoch' which one"),
        ({"drop": "ids", "key": "text"}, JobSpecError, "its values are read from 'data'"),
        ({"key": "text", "epoch": 0, "skip_steps": (0, 1)}, JobSpecError, "'key' says what"),
        ({"epoch": 1, "skip_steps": (0, 1)}, ManifestError, "holds no epoch 1"),
        ({"epoch": 0, "skip_steps": "5"}, ParameterError, "range A:B of steps, .* Got '5'"),
        ({"epoch": 0, "skip_steps": "5:5"}, ParameterError, "Got '5:5'"),
        ({"epoch": 0, "skip_steps": "a:b"}, ParameterError, "Got 'a:b'"),
        ({"epoch": 0, "skip_steps": (-1, 4)}, ParameterError, r"Got \(-1, 4\)"),
        ({"drop": "/nowhere/ids"}, DatasetError, "The file of keys /nowhere/ids cannot be read"),
    ],
)
def test_edits_that_are_none(
    parent: Manifest, tmp_path: Path, options: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        edit(parent, out=tmp_path / "c", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_target_inside_the_dataset(small: Path, tmp_path: Path) -> None:
    made = plan("shuffle", small, out=tmp_path / "p", batch_size=50, workers=0)
    file = keys_file(tmp_path / "keys", ["doc-1"])
    with pytest.raises(JobSpecError, match="lies inside the dataset"):
        edit(made, out=small / "c", drop=file, key="key", data=small)
    with pytest.raises(JobSpecError, match="lies inside the dataset"):
        rebind(made, small, small, key="key", out=small / "c")


def test_ids_that_are_none(parent: Manifest, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="cannot be read as row ids"):
        edit(parent, out=tmp_path / "c", drop=keys_file(tmp_path / "ids", ["x"]))


def test_a_target_that_is_taken(parent: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ManifestConflictError, match="holds another manifest"):
        edit(parent, out=parent.path, epoch=0, skip_steps=(0, 1))
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestConflictError, match="is a file"):
        edit(parent, out=tmp_path / "file", epoch=0, skip_steps=(0, 1))
    assert lists_of(Manifest.open(parent.path)) == lists_of(parent)
