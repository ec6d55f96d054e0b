"""Homes: every rank reads the files of its own shares, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane.errors import JobSpecError, SelectionError
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.orders import Homes
from batchloom.jobs import plan
from batchloom.samplers import ManifestLoader
from hypothesis import given
from hypothesis import strategies as st

SIZES = (120, 80, 95, 101, 110, 0, 94)


@pytest.fixture
def data(make_dataset: Callable[..., Path]) -> Path:
    starts = np.concatenate([[0], np.cumsum(SIZES)])
    return make_dataset(
        *(
            pa.table({"row": np.arange(a, b)})
            for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        )
    )


def planned(data: Path, out: Path, **options: Any) -> Manifest:
    settings = {"batch_size": 10, "micro_per_step": 4, "homes": 2, "seed": 3, "workers": 0}
    return plan("shuffle", data, out=out, **{**settings, **options})


def fragments_of(manifest: Manifest, epoch: int) -> dict[int, set[int]]:
    """Return the fragments that each micro number reads."""
    found: dict[int, set[int]] = {}
    for k in range(len(manifest.epoch(epoch))):
        batch = manifest.epoch(epoch)[k]
        fragments = manifest.snapshot.locate(batch.rows)[0]
        found.setdefault(batch.micro, set()).update(fragments.tolist())
    return found


@pytest.mark.parametrize("mode", ["full", "block"])
def test_each_micro_number_reads_its_own_files_in_every_epoch(
    data: Path, tmp_path: Path, mode: str
) -> None:
    options: dict[str, Any] = {"mode": mode}
    if mode == "block":
        options |= {"group_rows": 8, "groups_open": 6}
    manifest = planned(data, tmp_path / "plan", epochs=(0, 2), **options)
    assert manifest.unit == "micro"
    for epoch in (0, 1):
        record = manifest.records[epoch]
        assert record.coverage == "exactly_once"
        assert record.last_step_micro_batches == record.micro_divisor == 4
        read = fragments_of(manifest, epoch)
        assert read[0] == read[2] == {0, 1, 2}
        assert read[1] == read[3] == {3, 4, 6}
        sizes = [len(manifest.epoch(epoch)[k].rows) for k in range(len(manifest.epoch(epoch)))]
        assert 9 <= min(sizes) <= max(sizes) <= 10
    assert manifest.provenance["reports"]["homes"] == [295, 305]
    orders = [manifest.epoch(e).plan().rows.tolist() for e in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_reads_its_homes_only(data: Path, tmp_path: Path, world: int) -> None:
    manifest = planned(data, tmp_path / "plan")
    for rank in range(world):
        rows = [
            b["row"].tolist()
            for b in ManifestLoader(tmp_path / "plan", data, rank=rank, world_size=world)
        ]
        home = [{0, 1, 2}, {3, 4, 6}][rank % 2]
        ids = np.concatenate(rows).astype(np.uint64)
        assert set(manifest.snapshot.locate(ids)[0].tolist()) == home


def test_selected_rows_are_balanced_by_what_is_selected(data: Path, tmp_path: Path) -> None:
    manifest = planned(data, tmp_path / "plan", where="row >= 350", micro_per_step=2)
    assert manifest.records[0].samples == 250
    read = fragments_of(manifest, 0)
    assert read == {0: {3}, 1: {4, 6}} or read == {0: {3, 4}, 1: {6}}


def test_drop_last_makes_full_micro_batches(data: Path, tmp_path: Path) -> None:
    manifest = planned(data, tmp_path / "plan", drop_last=True)
    record = manifest.records[0]
    assert record.steps == 295 // 20
    assert record.samples == record.steps * 40
    assert record.dropped_rows == 600 - record.samples
    assert record.smallest_micro_batch == 10


def test_the_same_plan_whatever_the_chunks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = planned(data, tmp_path / "a").manifest_id
    monkeypatch.setattr("batchloom.jobs.shuffle._CHUNK_ROWS", 70)
    assert planned(data, tmp_path / "b").manifest_id == whole


def test_uneven_files_are_told(
    make_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_dataset(pa.table({"row": np.arange(300)}), pa.table({"row": np.arange(100)}))
    manifest = planned(data, tmp_path / "plan", micro_per_step=2)
    assert "between 100 and 300 rows" in caplog.text
    sizes = [len(manifest.epoch(0)[k].rows) for k in range(len(manifest.epoch(0)))]
    assert sizes[::2] == [10] * 30
    assert set(sizes[1::2]) == {3, 4}
    assert manifest.records[0].samples == 400


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match="multiple of 3"):
        planned(data, tmp_path / "plan", homes=3)
    with pytest.raises(JobSpecError, match="without homes"):
        planned(data, tmp_path / "plan", stratify="row")
    with pytest.raises(JobSpecError, match="No recipe.*'homes'"):
        planned(data, tmp_path / "plan", form="recipe")
    with pytest.raises(SelectionError, match="6 fragments hold rows, too few for homes=7"):
        planned(data, tmp_path / "plan", homes=7, micro_per_step=7)
    with pytest.raises(SelectionError, match="too uneven"):
        planned(data, tmp_path / "plan", where="row < 121", micro_per_step=2, batch_size=2)
    assert not (tmp_path / "plan").exists()


# --- the shares, as arrays ------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 60), min_size=2, max_size=12).filter(
        lambda rows: sum(r > 0 for r in rows) >= 2
    ),
    st.data(),
)
def test_shares_are_whole_fragments_and_dealing_is_a_permutation(
    rows: list[int], data: st.DataObject
) -> None:
    filled = [r for r in rows if r]
    count = data.draw(st.integers(2, len(filled)))
    size, a_step = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 3))
    try:
        homes = Homes.of(np.array(rows), count, batch_size=size, batches_a_step=a_step)
    except SelectionError:
        return
    ends = {0, *np.cumsum(filled).tolist()}
    assert set(homes.starts.tolist()) <= ends
    assert (homes.rows > 0).all()
    assert len(homes.rows) == count
    orders = [np.arange(n) for n in homes.rows.tolist()]
    ranks, offsets = homes.deal(orders, 0, homes.steps)
    assert sorted(ranks.tolist()) == list(range(sum(rows)))
    assert len(offsets) - 1 == homes.steps * count * a_step
    sizes = np.diff(offsets)
    assert 1 <= sizes.min() <= sizes.max() <= size
    share = np.searchsorted(homes.starts, ranks, side="right") - 1
    micro = np.repeat(np.arange(len(sizes)) % (count * a_step), sizes)
    assert (share == micro % count).all()
    cut = data.draw(st.integers(0, homes.steps))
    if 0 < cut < homes.steps:
        parts = homes.deal(orders, 0, cut)[0], homes.deal(orders, cut, homes.steps)[0]
        assert np.concatenate(parts).tolist() == ranks.tolist()


def test_shares_are_cut_where_they_come_nearest_to_even() -> None:
    homes = Homes.of(np.array([10, 10, 25, 5, 10]), 2, batch_size=5, batches_a_step=1)
    assert homes.starts.tolist() == [0, 20, 60]
    homes = Homes.of(np.array([1, 1, 1, 97]), 3, batch_size=100, batches_a_step=1)
    assert homes.starts.tolist() == [0, 2, 3, 100]
