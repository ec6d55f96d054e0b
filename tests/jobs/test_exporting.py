"""Exports: other libraries read exactly the plan's rows from them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batchloom.dataplane import Manifest, ManifestWriter, epoch_writer, open_dataset
from batchloom.dataplane.errors import (
    ManifestConflictError,
    ManifestError,
    ParameterError,
    StorageError,
    WorldSizeError,
)
from batchloom.dataplane.plan import BatchPlan
from batchloom.jobs import export, export_forms, plan
from batchloom.jobs.progress import QuietProgress
from batchloom.samplers import ManifestBatchSampler
from batchloom.tests.contracts.plans import EPOCHS, awkward_manifest
from batchloom.tests.jobs.conftest import ROWS, small_table, write_small
from torch.utils.data import Dataset, Subset


class Told(QuietProgress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class MapStyle(Dataset[int]):
    """The small dataset as any map-style dataset has it: row number → value."""

    def __getitem__(self, index: int) -> int:
        return int(small_table(int(index), int(index) + 1)["row"][0].as_py())

    def __len__(self) -> int:
        return ROWS


@pytest.fixture(scope="module")
def shuffled(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("export") / "plan"
    return plan("shuffle", small, out=out, batch_size=32, epochs="0:2", workers=0, seed=5)


def rows_of(manifest: Manifest, epoch: int) -> np.ndarray:
    return manifest.epoch(epoch).plan().rows


def moved(data: Path, out: Path) -> Manifest:
    """Plan a dataset whose first file was rewritten: its rows' ids are the last ones."""
    first = open_dataset(data).snapshot
    pq.write_table(small_table(0, 300).slice(0, 290), data / "part-0.parquet")
    since = out.parent / "before.json"
    first.save(since)
    return plan("shuffle", data, out=out, since=str(since), batch_size=50, workers=0)


# --- indices --------------------------------------------------------------------------------------


def test_a_subset_gives_the_rows_of_the_plan(shuffled: Manifest, tmp_path: Path) -> None:
    export(shuffled.path, out=tmp_path / "x", to="indices")
    for epoch in (0, 1):
        indices = np.load(tmp_path / "x" / f"epoch-{epoch:06d}.npy")
        assert indices.dtype == np.int64
        subset = Subset(MapStyle(), indices)
        assert [subset[k] for k in range(len(subset))] == rows_of(shuffled, epoch).tolist()


def test_select_gives_the_rows_of_the_plan(
    shuffled: Manifest, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    export(shuffled.path, out=tmp_path / "x", to="indices", epochs="1:2")
    # Its reader fails at files without rows, which hold no position.
    files = [str(p) for p in sorted(small.glob("*.parquet")) if pq.read_metadata(p).num_rows]
    whole = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    planned = whole.select(np.load(tmp_path / "x" / "epoch-000001.npy"))
    assert planned["row"][:] == rows_of(shuffled, 1).tolist()
    assert planned[17]["key"] == f"doc-{rows_of(shuffled, 1)[17]}"
    assert not (tmp_path / "x" / "epoch-000000.npy").exists()


def test_batches_and_weights_stand_beside_the_indices(awkward_data: Any, tmp_path: Path) -> None:
    manifest = awkward_manifest(tmp_path / "plan", awkward_data())
    told = Told()
    made = export(manifest.path, out=tmp_path / "x", to="indices", progress=told)
    assert len(made.files) == 3 * len(EPOCHS)
    for epoch in EPOCHS:
        whole = manifest.epoch(epoch).plan()
        name = tmp_path / "x" / f"epoch-{epoch:06d}"
        np.testing.assert_array_equal(np.load(f"{name}-batches.npy"), whole.offsets)
        np.testing.assert_array_equal(np.load(f"{name}-weights.npy"), whole.weights)
        np.testing.assert_array_equal(np.load(f"{name}.npy"), whole.rows.astype(np.int64))
    assert len(told.warnings) == 1
    assert "indices carry none" in told.warnings[0]


def test_positions_count_the_files_as_they_are_and_row_ids_do_not(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    manifest = moved(data, tmp_path / "plan")
    export(manifest.path, out=tmp_path / "p", to="indices")
    export(manifest.path, out=tmp_path / "r", to="indices", index="row_id")
    positions = np.load(tmp_path / "p" / "epoch-000000.npy")
    ids = np.load(tmp_path / "r" / "epoch-000000.npy")
    np.testing.assert_array_equal(ids, rows_of(manifest, 0).astype(np.int64))
    assert ids.max() == ROWS + 289
    assert sorted(positions) == list(range(ROWS - 10))
    # The rewritten file comes last among the ids: part-1 to part-5 are the first positions.
    sampler = ManifestBatchSampler(manifest)
    assert np.concatenate(list(sampler)).tolist() == positions.tolist()


def test_a_recipe_is_exported_like_its_copy(small: Path, tmp_path: Path) -> None:
    for form in ("recipe", "explicit"):
        made = plan("shuffle", small, out=tmp_path / form, batch_size=32, form=form, workers=0)
        assert (made.records[0].recipe is not None) == (form == "recipe")
        for to in export_forms.FORMS:
            export(made.path, out=tmp_path / f"{form}-{to}", to=to)
    for name in ("indices/epoch-000000.npy", "mosaicml/epoch-000000.npy"):
        assert (tmp_path / f"recipe-{name}").read_bytes() == (
            tmp_path / f"explicit-{name}"
        ).read_bytes()


def test_a_series_is_exported_member_by_member(small: Path, tmp_path: Path) -> None:
    for epochs in ("0:1", "1:3"):
        plan("shuffle", small, out=tmp_path / "s", series=True, epochs=epochs, batch_size=64,
             workers=0)  # fmt: skip
    made = export(tmp_path / "s", out=tmp_path / "x", to="indices")
    assert list(made.epochs) == [0, 1, 2]
    assert made.epochs[0] != made.epochs[1] == made.epochs[2]
    assert made.rows == 3 * ROWS


# --- Parquet --------------------------------------------------------------------------------------


def test_parquet_holds_a_line_a_row_with_all_that_was_decided(
    awkward_data: Any, tmp_path: Path
) -> None:
    manifest = awkward_manifest(tmp_path / "plan", awkward_data())
    export(manifest.path, out=tmp_path / "x", to="parquet")
    for epoch in EPOCHS:
        read = pq.read_table(tmp_path / "x" / f"epoch-{epoch:06d}.parquet")
        expected: dict[str, list[Any]] = {name: [] for name in read.column_names}
        stored = manifest.epoch(epoch)
        for k in range(len(stored)):
            one = stored[k]
            for place, row in enumerate(one.rows.tolist()):
                expected["epoch"].append(epoch)
                expected["step"].append(one.step)
                expected["micro"].append(one.micro)
                expected["position"].append(place)
                expected["row"].append(row)
                expected["index"].append(row)
                expected["weight"].append(float(one.weights[place]))
                for column in manifest.side_columns:
                    value = one.side[column.name]
                    if column.kind == "csr":
                        value = value.slice(place, place + 1).values.tolist()
                    else:
                        value = value.item() if column.kind == "batch" else value[place].item()
                    expected[f"side_{column.name}"].append(value)
        assert repr(read.to_pydict()) == repr(expected)  # a NaN equals none, not itself either
        assert json.loads(read.schema.metadata[b"batchloom"]) == {
            "manifest_id": manifest.manifest_id, "index": "position",
        }  # fmt: skip


# --- mosaicml-streaming ---------------------------------------------------------------------------


def delivered(order: np.ndarray) -> list[list[list[int]]]:
    """Return the batches of each rank as its DataLoader hands them out, by its documented rules.

    Each worker walks its ids, −1 left out, and cuts them into batches; the DataLoader takes one
    batch of each worker in turn.
    """
    ranks, workers, _, size = order.shape
    out: list[list[list[int]]] = []
    for rank in range(ranks):
        queues = []
        for worker in range(workers):
            ids = order[rank, worker].reshape(-1)
            ids = ids[ids != -1].tolist()
            queues.append([ids[i : i + size] for i in range(0, len(ids), size)])
        out.append([])
        for turn in range(max(map(len, queues))):
            out[-1] += [queue[turn] for queue in queues if turn < len(queue)]
    return out


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 2), (8, 4), (4, 40)])
def test_mosaicml_hands_out_the_batches_of_the_plan(
    shuffled: Manifest, tmp_path: Path, world: int, workers: int
) -> None:
    export(shuffled.path, out=tmp_path / "x", to="mosaicml", world_size=world, workers=workers)
    for epoch in (0, 1):
        found = delivered(np.load(tmp_path / "x" / f"epoch-{epoch:06d}.npy"))
        for rank in range(world):
            sampler = ManifestBatchSampler(shuffled, epochs=[epoch], rank=rank, world_size=world)
            assert found[rank] == list(sampler)


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 3), (4, 1)])
def test_mosaicml_hands_out_whole_micro_batches(
    small: Path, tmp_path: Path, world: int, workers: int
) -> None:
    manifest = small_manifest(small, tmp_path / "plan", [10] * 15 + [7], unit="micro", micro=4)
    told = Told()
    export(manifest.path, out=tmp_path / "x", to="mosaicml", world_size=world, workers=workers,
           progress=told)  # fmt: skip
    found = delivered(np.load(tmp_path / "x" / "epoch-000000.npy"))
    for rank in range(world):
        sampler = ManifestBatchSampler(manifest, rank=rank, world_size=world)
        assert found[rank] == list(sampler)
    assert "16 micro-batches in 4 steps" in told.warnings[0]


def small_manifest(
    data: Path, out: Path, sizes: list[int], *, micro: int = 1, weights: Any = None, **options: Any
) -> Manifest:
    rows = np.random.default_rng(0).permutation(ROWS)[: sum(sizes)].astype(np.uint64)
    made = BatchPlan.of(np.concatenate([[0], np.cumsum(sizes)]), rows, weights).folded(micro)
    with ManifestWriter(out, snapshot=open_dataset(data).snapshot, seed=0, **options) as writer:
        with writer.epoch(0):
            writer.append(made)
        return writer.commit()


def test_mosaicml_refuses_what_it_cannot_say(small: Path, tmp_path: Path) -> None:
    def refused(sizes: list[int], error: Any, text: str, **given: Any) -> None:
        options = {k: given.pop(k) for k in ("unit", "micro", "weights", "weight_semantics")
                   if k in given}  # fmt: skip
        name = f"plan-{len(list(tmp_path.iterdir()))}"
        manifest = small_manifest(small, tmp_path / name, sizes, **options)
        with pytest.raises(error, match=text):
            export(manifest.path, out=tmp_path / "x", to="mosaicml", **given)

    refused([10, 9, 10], ManifestError, "different sizes .* stands in step 1")
    refused([10, 10, 11], ManifestError, "different sizes .* stands in step 2")
    refused([10, 10], ManifestError, "Choose a --world-size that divides 10", world_size=4)
    refused([10, 1], WorldSizeError, "2 ranks cannot share", world_size=2)
    refused([10] * 3, WorldSizeError, "2 ranks cannot share", world_size=2, unit="micro", micro=3)
    ones = np.ones(20, np.float32)
    refused([10, 10], ManifestError, "has weights", weights=ones, weight_semantics="importance")
    assert not (tmp_path / "x").exists()


# --- errors and atomicity -------------------------------------------------------------------------


def test_parameters_are_checked(shuffled: Manifest, tmp_path: Path) -> None:
    def refused(text: str, **given: Any) -> None:
        with pytest.raises(ParameterError, match=text):
            export(shuffled.path, **{"out": tmp_path / "x", "to": "indices", **given})

    refused("must be one of 'indices', 'parquet', 'mosaicml'. Got 'indexes' instead", to="indexes")
    with pytest.raises(ManifestError, match="WebDataset .* takes no order of rows"):
        export(shuffled.path, out=tmp_path / "x", to="webdataset")
    refused("indices' has no parameter 'world_size'", world_size=2)
    refused("'index' parameter of .* must be one of 'position', 'row_id'", index="rank")
    refused(r"'workers' parameter of .* must be an int in the range \[1, inf\)", to="mosaicml",
            workers=0)  # fmt: skip
    refused("'epochs' parameter must be a range", epochs="1:0")
    refused("must be a local directory. Got 's3://b/x' instead", out="s3://b/x")
    with pytest.raises(ManifestError, match="holds no epoch 2; it holds 0, 1"):
        export(shuffled.path, out=tmp_path / "x", to="indices", epochs="0:3")
    assert not list(tmp_path.iterdir())


def test_the_same_again_is_success_and_anything_else_a_conflict(
    shuffled: Manifest, tmp_path: Path
) -> None:
    first = export(shuffled.path, out=tmp_path / "x", to="indices")
    before = (tmp_path / "x" / "export.json").stat().st_mtime_ns
    assert export(shuffled.path, out=tmp_path / "x", to="indices") == first
    assert (tmp_path / "x" / "export.json").stat().st_mtime_ns == before
    with pytest.raises(ManifestConflictError, match="is not this export"):
        export(shuffled.path, out=tmp_path / "x", to="indices", epochs="0:1")
    (tmp_path / "mine").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    (tmp_path / "empty").mkdir()
    for name in ("mine", "full"):
        with pytest.raises(ManifestConflictError, match="is not this export"):
            export(shuffled.path, out=tmp_path / name, to="indices")
    export(shuffled.path, out=tmp_path / "empty", to="indices")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full", "mine", "x"]


def test_what_is_written_is_described_and_depends_on_the_plan_alone(
    shuffled: Manifest, tmp_path: Path
) -> None:
    export(shuffled.path, out=tmp_path / "a", to="parquet")
    export(shuffled.path, out=tmp_path / "b", to="parquet")
    header = (tmp_path / "a" / "export.json").read_bytes()
    assert header == (tmp_path / "b" / "export.json").read_bytes()
    described = json.loads(header)
    assert described["epochs"] == [
        {"epoch": e, "manifest_id": shuffled.manifest_id} for e in (0, 1)
    ]
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(["export.json", *(f["name"] for f in described["files"])])


def test_nothing_stays_where_writing_fails(
    shuffled: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_forms._Npy, "append", fails)
    with pytest.raises(StorageError, match="Writing the export failed: No space left on device"):
        export(shuffled.path, out=tmp_path / "x", to="indices")
    assert not list(tmp_path.iterdir())


def test_offsets_run_on_over_the_edges_of_blocks(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 7)
    manifest = small_manifest(small, tmp_path / "plan", [3] * 100)
    export(manifest.path, out=tmp_path / "x", to="indices")
    offsets = np.load(tmp_path / "x" / "epoch-000000-batches.npy")
    assert [b - a for a, b in pairwise(offsets.tolist())] == [3] * 100


def test_the_table_joins_with_the_data(shuffled: Manifest, small: Path, tmp_path: Path) -> None:
    export(shuffled.path, out=tmp_path / "x", to="parquet", epochs="0:1")
    planned = pq.read_table(tmp_path / "x" / "epoch-000000.parquet")
    data = pa.concat_tables(pq.read_table(p) for p in sorted(small.glob("*.parquet")))
    assert data.take(planned["index"])["row"].to_pylist() == rows_of(shuffled, 0).tolist()


# --- the command line -----------------------------------------------------------------------------


def test_the_verb(shuffled: Manifest, tmp_path: Path) -> None:
    from batchloom.tests.jobs.test_cli import batchloom, failed, result

    ran = batchloom("export", shuffled.path, "--to", "indices", "--out", tmp_path / "x")
    assert ran.returncode == 0, ran.stderr
    assert f"wrote {2 * ROWS:,} rows of 2 epochs to {tmp_path / 'x'}" in ran.stdout
    made = result("export", shuffled.path, "--to", "mosaicml", "--out", tmp_path / "m",
                  "--world-size", 2, "--dataloader-workers", 2, "--epochs", "0:1")  # fmt: skip
    assert made["parameters"] == {"index": "position", "world_size": 2, "workers": 2}
    assert np.load(tmp_path / "m" / "epoch-000000.npy").shape == (2, 2, 16, 16)
    error = failed(1, "export", shuffled.path, "--to", "parquet", "--out", tmp_path / "x")
    assert "is not this export" in error
    assert torch.tensor(np.load(tmp_path / "x" / "epoch-000000.npy")).dtype == torch.int64
