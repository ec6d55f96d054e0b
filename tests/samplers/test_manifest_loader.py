"""The manifest loader: the contract of all loaders, and what its batches carry."""

import traceback
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import (
    BatchPlan,
    ManifestWriter,
    Ragged,
    SideColumn,
    open_dataset,
)
from batchloom.dataplane.errors import (
    InvalidValueError,
    ManifestCorruptError,
    ManifestError,
    MissingColumnError,
    ParameterError,
)
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.awkward import awkward_table, write_fragment
from batchloom.tests.contracts.batches import (
    drain,
    fingerprints,
    flat,
    prefetch_threads,
    shuffled,
    write_plan,
)
from batchloom.tests.contracts.loader import LoaderContract


class TestManifestLoader(LoaderContract):
    def make(self, plan, data, **options):
        return ManifestLoader(plan, data, **options)


def take(loader, seen):
    for batch in loader:
        seen.append(batch.step)  # one at a time: it may end in an error


def test_batch_is_a_mapping(plan, data):
    batch = next(iter(ManifestLoader(plan, data, columns=["x", "text"], epochs=1)))
    assert dict(batch) == batch.columns
    assert (list(batch), len(batch), batch.num_rows) == (["x", "text"], 2, 20)
    assert "x" in batch
    assert batch.rows.dtype == torch.int64
    assert repr(batch) == "<Batch epoch 0, step 0, micro 0: 20 rows of x, text>"
    assert batch == batch
    assert len({batch, batch.with_columns()}) == 2
    with pytest.raises(KeyError):
        batch["y"]


def test_batch_moves_with_all_its_tensors(data, tmp_path):
    side = [SideColumn("pad_to", "batch", "int32"), SideColumn("score", "row", "float32")]
    plan = BatchPlan.of(
        [0, 2],
        [1, 2],
        side={"pad_to": np.array([7], np.int32), "score": np.array([1, 2], np.float32)},
    )
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    (batch,) = ManifestLoader(
        manifest, data, columns=["x", "text"], device="meta", world_size=1, rank=0
    )
    tensors = [batch["x"], batch.rows, batch.weights, batch.seeds, batch.side["score"]]
    assert {t.device.type for t in tensors} == {"meta"}
    assert isinstance(batch["text"], pa.Array)
    assert batch.side["pad_to"] == 7
    padded = batch.replace(pad=torch.tensor([True, False]))
    assert padded.to("meta").pad.device.type == "meta"


def test_side_columns(data, tmp_path):
    side = [
        SideColumn("tag", "batch", "uint16"),
        SideColumn("score", "row", "float32"),
        SideColumn("group", "row", "uint32"),
    ]
    values = {
        "tag": np.array([65_535, 3], np.uint16),
        "score": np.arange(10, dtype=np.float32),
        "group": np.arange(10, dtype=np.uint32) + np.uint32(4_000_000_000),
    }
    plan = BatchPlan.of([0, 6, 10], np.arange(10), side=values)
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    batches = flat(
        drain(ManifestLoader(manifest, data, columns=[], rank=r, world_size=2)) for r in (0, 1)
    )
    assert [b.side["tag"] for b in batches] == [65_535, 3, 65_535, 3]
    assert all(type(b.side["tag"]) is int for b in batches)
    assert [b.side["score"].tolist() for b in batches] == [[0, 1, 2], [6, 7], [3, 4, 5], [8, 9]]
    assert batches[3].side["group"].tolist() == [4_000_000_008, 4_000_000_009]
    assert batches[3].side["group"].dtype == torch.int64
    batches[0].side["score"].zero_()  # memory of its own, not the plan's
    assert manifest.epoch(0)[0].side["score"].tolist() == [0, 1, 2, 3, 4, 5]


def test_ragged_side_column_comes_whole(data, tmp_path):
    masks = Ragged(np.array([0, 2, 2, 5, 6], np.int64), np.arange(6, dtype=np.int32))
    plan = BatchPlan.of([0, 2, 4], [1, 2, 3, 4], side={"mask": masks}).folded(2)
    side = [SideColumn("mask", "csr", "int32")]
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    assert manifest.unit == "micro"
    (batch,) = ManifestLoader(manifest, data, columns=[], rank=1, world_size=2)
    assert batch.side["mask"].offsets.tolist() == [0, 3, 4]
    assert batch.side["mask"].values.tolist() == [2, 3, 4, 5]
    assert batch.side["mask"].values.flags.writeable


def test_nothing_delivered_aliases_the_plan(plan, data):
    loader = ManifestLoader(plan, data, columns=["y"], epochs=1)
    first = fingerprints(loader)
    for batch in loader:
        for tensor in (batch.rows, batch.weights, batch.seeds, batch["y"]):
            tensor.zero_()
    assert fingerprints(loader) == first


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["y", "lable"], MissingColumnError, "no column 'lable'"),
        ("y", ParameterError, "'columns' parameter must be a list"),
        (["y", "y"], ParameterError, "different column names"),
    ],
)
def test_columns_that_cannot_be(plan, data, columns, error, message):
    with pytest.raises(error, match=message):
        ManifestLoader(plan, data, columns=columns)


def test_columns(plan, data):
    assert ManifestLoader(plan, data).columns == awkward_table(0, 1).schema.names
    loader = ManifestLoader(plan, data, columns=["y", "row"])
    assert loader.columns == ["y", "row"]
    assert list(next(iter(loader))) == ["y", "row"]


def test_null_in_a_planned_row_names_it(tmp_path):
    table = pa.table({"v": pa.array([1, None, 3, None, 5])})
    write_fragment(table, tmp_path / "data" / "a.parquet", "parquet")
    fine = write_plan(tmp_path / "fine", tmp_path / "data", {0: BatchPlan.of([0, 3], [4, 0, 2])})
    (batch,) = ManifestLoader(fine, tmp_path / "data")
    assert batch["v"].tolist() == [5, 1, 3]
    bad = write_plan(tmp_path / "bad", tmp_path / "data", {0: BatchPlan.of([0, 2], [4, 3])})
    with pytest.raises(InvalidValueError, match=r"'v' holds a null in row 3, .*--where"):
        drain(ManifestLoader(bad, tmp_path / "data"))


def test_several_sources(tmp_path):
    sources = {"web": tmp_path / "web", "books": tmp_path / "books"}
    write_fragment(awkward_table(0, 30), sources["books"] / "b.arrow", "ipc", chunk=7)
    write_fragment(awkward_table(30, 50), sources["web"] / "w.parquet", "parquet", chunk=7)
    manifest = write_plan(tmp_path / "plan", sources, {0: shuffled(rows=50, batch=8)})
    batches = drain(ManifestLoader(manifest, sources))
    assert sorted(flat(b["row"].tolist() for b in batches)) == list(range(50))
    for batch in batches:
        assert batch["row"].tolist() == batch.rows.tolist()
        assert batch["text"].to_pylist() == [f"row {i}" if i % 11 else "" for i in batch.rows]
        assert batch["color"].to_pylist() == [["red", "green", "blue"][i % 3] for i in batch.rows]


def test_row_ids_beyond_32_bits(tmp_path):
    """A dataset whose files were replaced many times."""
    write_fragment(awkward_table(0, 100), tmp_path / "data" / "a.arrow", "ipc")
    dataset = open_dataset(tmp_path / "data")
    start = 2**33
    fragment = replace(dataset.snapshot.fragments[0], first_row_id=start)
    snapshot = replace(dataset.snapshot, fragments=(fragment,), next_row_id=start + 100)
    with ManifestWriter(tmp_path / "plan", snapshot=snapshot) as writer:
        with writer.epoch(0):
            writer.append(BatchPlan.of([0, 3], np.array([start + 99, start, start + 7])))
        writer.commit()
    (batch,) = ManifestLoader(tmp_path / "plan", tmp_path / "data", columns=["row"])
    assert batch.rows.tolist() == [start + 99, start, start + 7]
    assert batch["row"].tolist() == [99, 0, 7]


@pytest.mark.parametrize("prefetch", [0, 4])
def test_transform(plan, data, prefetch):
    doubled = ManifestLoader(
        plan,
        data,
        columns=["y"],
        prefetch=prefetch,
        transform=lambda b: b.with_columns(y=b["y"] * 2, z=b["y"]),
    )
    batch = next(iter(doubled))
    assert batch["y"].tolist() == (batch["z"] * 2).tolist()
    pairs = ManifestLoader(
        plan, data, columns=["y"], prefetch=prefetch, transform=lambda b: (b.step, b["y"])
    )
    assert [step for step, _ in pairs] == [*range(10)] * 2
    assert pairs.state_dict()["epoch"] == 1


@pytest.mark.parametrize("prefetch", [0, 4])
def test_transform_that_raises(plan, data, prefetch):
    def awful_transform(batch):
        if batch.step == 3:
            raise ZeroDivisionError("no")
        return batch

    loader = ManifestLoader(
        plan, data, columns=[], epochs=[1], prefetch=prefetch, transform=awful_transform
    )
    seen = []
    with pytest.raises(ZeroDivisionError, match="no") as caught:
        take(loader, seen)
    assert seen == [0, 1, 2]  # those before it were delivered
    assert loader.state_dict()["next_step"] == 3
    (note,) = caught.value.__notes__
    assert "epoch 1, step 3, micro 0" in note
    frames = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert "awful_transform" in frames
    assert prefetch_threads() == []


@pytest.mark.parametrize("prefetch", [0, 4])
def test_damaged_block_is_an_error_in_the_caller(data, tmp_path, prefetch):
    manifest = write_plan(tmp_path / "plan", data, {0: shuffled()})
    part = tmp_path / "plan" / manifest.parts[0].name
    block = manifest.parts[0].blocks[0]
    content = bytearray(part.read_bytes())
    content[block.offset + block.length // 2] ^= 1
    part.chmod(0o644)
    part.write_bytes(content)
    loader = ManifestLoader(tmp_path / "plan", data, columns=[], prefetch=prefetch)
    with pytest.raises(ManifestCorruptError, match=rf"{manifest.parts[0].name}, block 0"):
        next(iter(loader))
    with pytest.raises(ManifestCorruptError, match="block 0"):
        ManifestLoader(tmp_path / "plan", data, columns=[], verify="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch": -1}, r"'prefetch' parameter must be an int in the range \[0, inf\)"),
        ({"prefetch": 1.5}, "Got 1.5 instead"),
        ({"cache_bytes": -1}, "'cache_bytes'"),
        ({"transfer": "gds"}, "must be one of 'auto', 'unified', 'staged', 'cpu'"),
        ({"device": "gpu"}, "'device' parameter"),
        ({"on_uneven": "drop"}, "'on_uneven' parameter must be one of 'error', 'pad'"),
        ({"verify": "deep"}, "'verify' parameter must be one of 'header', 'all'"),
        ({"poll_seconds": 0}, "'poll_seconds'"),
        ({"rank": 3}, "'rank' parameter was given without 'world_size'"),
        ({"follow": True, "epochs": 4}, "'follow' parameter needs a series"),
    ],
)
def test_options_that_cannot_be(plan, data, options, message):
    with pytest.raises(ParameterError, match=message):
        ManifestLoader(plan, data, columns=[], **options)


def test_plan_that_is_not_there(data, tmp_path):
    with pytest.raises(ManifestError, match="There is no manifest at"):
        ManifestLoader(tmp_path / "nowhere", data)
