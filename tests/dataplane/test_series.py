"""Series: members that continue one another, and plans of both kinds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    ManifestCorruptError,
    ManifestError,
    SelectionError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.series import Series, member_name, open_plan
from batchloom.dataplane.snapshot import Snapshot
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write


def add(
    folder: Path,
    start: int,
    stop: int,
    *,
    snapshot: Snapshot | None = None,
    rows: list[int] | None = None,
) -> Manifest:
    """Add a member the way a job does."""
    path, parent = Series(folder).next_member(start, stop)
    rows = [start, stop] if rows is None else rows
    plans = {e: plan_of([len(rows)], rows) for e in range(start, stop)}
    return write(path, snapshot or snapshot_of(100), plans, parent=parent)


def test_member_names() -> None:
    assert member_name(3, 4) == "epochs-000003-000004"
    assert member_name(0, 1_234_567) == "epochs-000000-1234567"


def test_a_series_grows(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    ids = [add(folder, 0, 2).manifest_id, add(folder, 2, 3).manifest_id]
    series = Series.open(folder, verify="all")
    assert (series.ranges, series.epochs) == ([(0, 2), (2, 3)], (0, 1, 2))
    assert [m.manifest_id for m in series.members] == ids
    assert [m.parent for m in series.members] == [None, ids[0]]
    assert series.manifest_for(1).manifest_id == ids[0]
    assert series.manifest_for(2) is series.member(2, 3)
    assert series.epoch(2)[0].rows.tolist() == [2, 3]
    with pytest.raises(ManifestError, match="holds no epoch 3; it holds 0, 1, 2"):
        series.epoch(3)
    third = add(folder, 3, 5)
    assert series.epochs == (0, 1, 2)
    series.refresh()
    assert series.epochs == (0, 1, 2, 3, 4)
    assert series.manifest_for(4).manifest_id == third.manifest_id
    assert third.parent == ids[1]


def test_the_same_epochs_again_are_the_same_member(tmp_path: Path) -> None:
    first = add(tmp_path, 0, 1)
    add(tmp_path, 1, 2)
    assert add(tmp_path, 0, 1).manifest_id == first.manifest_id
    assert add(tmp_path, 1, 2).parent == first.manifest_id


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (1, 3), (1, 2), (3, 6), (4, 9), (0, 9)])
def test_overlaps_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    add(tmp_path, 0, 2)
    add(tmp_path, 2, 5)
    with pytest.raises(SelectionError, match=rf"epochs {start}:{stop} overlap them"):
        Series(tmp_path).next_member(start, stop)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    snapshot, plan = snapshot_of(9), plan_of([3])
    write(tmp_path / member_name(0, 3), snapshot, dict.fromkeys(range(3), plan))
    write(tmp_path / member_name(2, 4), snapshot, dict.fromkeys((2, 3), plan))
    with pytest.raises(
        ManifestError, match="epochs-000000-000003 and epochs-000002-000004 overlap"
    ):
        Series.open(tmp_path)


def test_a_member_of_another_parent_is_refused(tmp_path: Path) -> None:
    first = add(tmp_path, 0, 1)
    add(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / member_name(0, 1))
    other = write(tmp_path / member_name(0, 1), snapshot_of(100), {0: plan_of([5])})
    series = Series.open(tmp_path)
    assert series.epoch(0)[0].rows.size == 5
    with pytest.raises(ManifestError) as caught:
        series.epoch(1)
    assert "epochs-000001-000002 does not continue epochs-000000-000001" in str(caught.value)
    assert f"expected parent {other.manifest_id}, found {first.manifest_id}" in str(caught.value)
    with pytest.raises(ManifestError, match="does not continue"):
        Series.open(tmp_path, verify="all")


def test_a_member_without_the_one_before_is_read(tmp_path: Path) -> None:
    add(tmp_path, 0, 1)
    second = add(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / member_name(0, 1))
    series = Series.open(tmp_path, verify="all")
    assert series.epochs == (1,)
    assert series.manifest_for(1).manifest_id == second.manifest_id


def test_a_member_named_for_other_epochs_is_refused(tmp_path: Path) -> None:
    write(tmp_path / member_name(0, 1), snapshot_of(9), {7: plan_of([3])})
    with pytest.raises(ManifestError, match=r"named for epochs 0 to 0, but holds 7"):
        Series.open(tmp_path).epoch(0)
    (tmp_path / member_name(0, 1)).rename(tmp_path / "epochs-000004-000003")
    with pytest.raises(ManifestError, match="named by no range of epochs"):
        Series.open(tmp_path)


def test_one_member_is_opened_without_the_whole_chain(tmp_path: Path) -> None:
    """The last of many members is checked against its parent alone."""
    for epoch in range(30):
        add(tmp_path, epoch, epoch + 1)
    series = Series.open(tmp_path)
    assert series.epoch(29)[0].rows.tolist() == [29, 30]
    assert sorted(series._members) == [(28, 29), (29, 30)]
    assert len(series.members) == 30


def test_damage_of_a_member_is_found(tmp_path: Path) -> None:
    add(tmp_path, 0, 1)
    part = add(tmp_path, 1, 2).parts[0]
    path = tmp_path / member_name(1, 2) / part.name
    data = bytearray(path.read_bytes())
    data[part.blocks[0].offset] ^= 1
    path.write_bytes(data)
    series = Series.open(tmp_path)
    series.epoch(0)[0]
    with pytest.raises(ManifestCorruptError, match=part.name):
        series.epoch(1)[0]
    with pytest.raises(ManifestCorruptError, match=part.name):
        Series.open(tmp_path, verify="all")
    with pytest.raises(ManifestCorruptError, match=part.name):
        open_plan(tmp_path, verify="all")


def test_strange_entries_are_left_alone(tmp_path: Path) -> None:
    add(tmp_path, 0, 1)
    (tmp_path / "epochs-000001-000002").mkdir()  # no header: not committed by us
    (tmp_path / "epochs-1-2").mkdir()
    (tmp_path / ".epochs-000001-000002.staging-0123").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert Series.open(tmp_path).ranges == [(0, 1)]


def test_places_that_are_no_series(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ManifestError, match="is not a series: it holds no epochs"):
            Series.open(path)
    assert Series(tmp_path / "none").next_member(0, 1) == (
        tmp_path / "none" / "epochs-000000-000001",
        None,
    )


def test_open_plan_takes_both_kinds(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m", snapshot_of(9), {0: plan_of([3])})
    add(tmp_path / "s", 0, 1)
    one, two = open_plan(tmp_path / "m"), open_plan(str(tmp_path / "s"), verify="all")
    assert isinstance(one, Manifest)
    assert one.manifest_id == manifest.manifest_id
    assert isinstance(two, Series)
    assert open_plan(one) is one
    assert open_plan(two) is two
    for plan in (one, two):
        assert plan.epochs == (0,)
        assert plan.manifest_for(0).epoch(0)[0].step == 0
        plan.verify(deep=True)
    member = open_plan(tmp_path / "s" / "epochs-000000-000001")
    assert isinstance(member, Manifest)
    with pytest.raises(ManifestError, match="is a series of manifests; name a member"):
        Manifest.open(tmp_path / "s")
    with pytest.raises(ManifestError, match="There is no manifest at .*Did you mean 's'"):
        open_plan(tmp_path / "s1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"is not a manifest: it holds no manifest\.json"):
        open_plan(tmp_path / "empty")


def test_the_dataset_of_a_plan(tmp_path: Path) -> None:
    """More files than planned are fine; those that hold planned rows must be as they were."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        values = np.arange(3 * number, 3 * number + 3)
        pq.write_table(pa.table({"x": values}), data / f"{number}.parquet")
    snapshot = open_dataset(data).snapshot
    manifest = write(tmp_path / "m", snapshot, {0: plan_of([3], [0, 8, 2])})
    assert manifest.planned_fragments() == [0, 2]
    pq.write_table(pa.table({"x": [9]}), data / "9.parquet")
    (data / "1.parquet").unlink()
    dataset = manifest.open_dataset(data)
    assert dataset.unplanned == 1
    assert dataset.take(manifest.epoch(0)[0].rows)["x"].to_pylist() == [0, 8, 2]
    pq.write_table(pa.table({"x": [6, 7, 9]}), data / "2.parquet")
    with pytest.raises(DatasetChangedError, match=r"'2\.parquet' of source 'data' was rewritten"):
        manifest.open_dataset(data)
    (data / "2.parquet").unlink()
    with pytest.raises(DatasetChangedError, match=r"'2\.parquet' of source 'data' .* is gone"):
        manifest.open_dataset(data)


def test_the_dataset_of_a_series_serves_all_its_members(tmp_path: Path) -> None:
    """Rows of an old member may stand in fragments that the newest does not plan."""
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"x": [0, 1, 2]}), data / "0.parquet")
    old = open_dataset(data).snapshot
    add(tmp_path / "s", 0, 1, snapshot=old, rows=[2, 0])
    pq.write_table(pa.table({"x": [3, 4]}), data / "1.parquet")
    new = open_dataset(data, since=old).snapshot
    add(tmp_path / "s", 1, 2, snapshot=new, rows=[4, 3])
    series = Series.open(tmp_path / "s")
    dataset = series.open_dataset(data)
    for epoch, expected in ((0, [2, 0]), (1, [4, 3])):
        assert dataset.take(series.epoch(epoch)[0].rows)["x"].to_pylist() == expected
    pq.write_table(pa.table({"x": [7, 7, 7]}), data / "0.parquet")
    again = series.open_dataset(data)
    assert again.take([4, 3])["x"].to_pylist() == [4, 3]
    with pytest.raises(DatasetChangedError, match=r"0\.parquet was rewritten"):
        again.take([2])
