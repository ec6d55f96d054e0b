"""The loader's ways to a GPU: the same batches by each of them. Run with ``make test-gpu``."""

from __future__ import annotations

import pytest
import torch
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.batches import shuffled, write_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

TRANSFERS = ["unified", "staged", "cpu", "auto"]
COLUMNS = ["x", "row", "text"]


@pytest.fixture
def plan(awkward_data, tmp_path):
    plans = {e: shuffled(e, weighted=True) for e in (0, 1)}
    write_plan(tmp_path / "plan", awkward_data("ipc"), plans, weight_semantics="importance")
    return tmp_path / "plan"


def seen(batches):
    return [
        (b.epoch, b.step, b["x"].cpu(), b["row"].cpu(), b["text"].to_pylist(), b.weights.cpu())
        for b in batches
    ]


def same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("format", ["ipc", "parquet"])
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_same_batches_by_every_way(plan, awkward_data, transfer, format):
    data = awkward_data(format)
    wanted = seen(ManifestLoader(plan, awkward_data("ipc"), columns=COLUMNS))
    for options in ({}, {"window": 1}, {"window": 7, "prefetch": 0}, {"prefetch": 4}):
        loader = ManifestLoader(
            plan if format == "ipc" else replanned(plan, data),
            data,
            columns=COLUMNS,
            device="cuda",
            transfer=transfer,
            **options,
        )
        found = []
        for batch in loader:
            assert batch["x"].device.type == "cuda"
            assert batch.weights.device.type == "cuda"
            found.append(batch)
        if format == "ipc":
            same(seen(found), wanted)
        else:
            same([s[1:] for s in seen(found)], [s[1:] for s in wanted])
        loader.close()


def replanned(plan, data):
    """The same plan over the same rows in another format."""
    place = plan.with_name("again")
    if not place.exists():
        plans = {e: shuffled(e, weighted=True) for e in (0, 1)}
        write_plan(place, data, plans, weight_semantics="importance")
    return place


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_beside_training_on_another_stream(plan, awkward_data, transfer):
    """Batches are there when the training's stream reads them, however busy the GPU is."""
    data = awkward_data("ipc")
    wanted = [b["row"].sum().item() for b in ManifestLoader(plan, data, columns=["row"])]
    loader = ManifestLoader(plan, data, columns=["row", "x"], device="cuda", transfer=transfer)
    weights = torch.rand(2048, 2048, device="cuda")
    sums, stream = [], torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for batch in loader:
            weights = (weights @ weights).clamp_(0, 1)
            sums.append(batch["row"].sum())
    torch.cuda.synchronize()
    assert [int(s) for s in sums] == wanted


@pytest.mark.parametrize("threads", [0, 2])
def test_transformed_batches_on_another_stream(plan, awkward_data, threads):
    data = awkward_data("ipc")

    def doubled(batch):
        return batch.with_columns(row=batch["row"] * 2, wide=batch["row"].repeat(10_000))

    wanted = [2 * b["row"].sum().item() for b in ManifestLoader(plan, data, columns=["row"])]
    loader = ManifestLoader(
        plan,
        data,
        columns=["row"],
        device="cuda",
        transform=doubled,
        transform_threads=threads,
        prefetch=4,
    )
    weights = torch.rand(2048, 2048, device="cuda")
    sums, wide, stream = [], [], torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for batch in loader:
            weights = (weights @ weights).clamp_(0, 1)
            sums.append(batch["row"].sum())
            wide.append(batch["wide"].sum())
    torch.cuda.synchronize()
    assert [int(s) for s in sums] == wanted
    assert [int(s) for s in wide] == [5_000 * s for s in wanted]


def test_stats_tell_the_way(plan, awkward_data):
    loader = ManifestLoader(
        plan, awkward_data("ipc"), columns=["x"], device="cuda", transfer="unified"
    )
    rows = sum(b.num_rows for b in loader)
    stats = loader.stats()
    assert stats.bytes_by_path["zero_copy"] == stats.bytes > 0
    assert stats.samples == rows
    assert stats.line_requests > 0


def test_state_is_the_same_by_every_way(plan, awkward_data):
    states = []
    for transfer in TRANSFERS:
        loader = ManifestLoader(
            plan, awkward_data("ipc"), columns=["x"], device="cuda", transfer=transfer
        )
        iterator = iter(loader)
        for _ in range(5):
            next(iterator)
        states.append(loader.state_dict())
        loader.close()
    assert all(s == states[0] for s in states)
