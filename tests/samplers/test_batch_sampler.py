"""Index lists for a plain DataLoader over any map-style dataset."""

import itertools

import pytest
import torch
from batchloom.dataplane import BatchPlan, ManifestWriter, open_dataset
from batchloom.dataplane.errors import (
    ManifestError,
    ParameterError,
    ResumeMismatchError,
    WorldSizeError,
)
from batchloom.samplers import ManifestBatchSampler, ManifestLoader
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, awkward_table, write_fragment
from batchloom.tests.contracts.batches import flat, json_round_trip, shuffled, write_plan
from torch.utils.data import DataLoader, TensorDataset


@pytest.fixture
def plan(awkward_data, tmp_path):
    epochs = {0: shuffled(micro_per_step=4), 1: shuffled(1, micro_per_step=4)}
    return write_plan(tmp_path / "plan", awkward_data("ipc"), epochs).path


DATASET = TensorDataset(torch.arange(AWKWARD_ROWS))


def values(loader):
    return [batch.tolist() for (batch,) in loader]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_exactly_once_and_as_the_loader_has_it(plan, awkward_data, world):
    seen = []
    for rank in range(world):
        ranks = {"rank": rank, "world_size": world, "epochs": [0]}
        sampler = ManifestBatchSampler(plan, **ranks)
        loader = ManifestLoader(plan, awkward_data("ipc"), columns=[], **ranks)
        mine = list(sampler)
        assert len(mine) == len(sampler) == 157
        assert mine == [b.rows.tolist() for b in loader]
        assert sampler.state_dict() == loader.state_dict()
        seen += flat(mine)
    assert sorted(seen) == list(range(AWKWARD_ROWS))


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_data_loader(plan, workers):
    sampler = ManifestBatchSampler(plan)
    loader = DataLoader(DATASET, batch_sampler=sampler, num_workers=workers)
    expected = list(ManifestBatchSampler(plan))
    assert len(loader) == 314
    assert values(loader) == expected


def test_resume_from_workers_to_none(plan):
    """The sampler runs ahead of the loop; `state_after` does not."""
    expected = list(ManifestBatchSampler(plan, epochs=[1]))
    sampler = ManifestBatchSampler(plan)
    sampler.set_epoch(1)
    got = []
    loader = iter(DataLoader(DATASET, batch_sampler=sampler, num_workers=2, prefetch_factor=4))
    for (batch,) in itertools.islice(loader, 13 * 4):
        got.append(batch.tolist())
    state = json_round_trip(sampler.state_after(12))
    assert (state["epoch"], state["next_step"], state["samples_seen"]) == (1, 13, 13 * 256)
    assert sampler.state_dict()["next_step"] > 13
    resumed = ManifestBatchSampler(plan)
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert got + values(DataLoader(DATASET, batch_sampler=resumed)) == expected


@pytest.mark.parametrize(("workers", "stops"), [(0, range(4, 157, 8)), (2, (4, 40))])
def test_stateful_data_loader(plan, workers, stops):
    """torchdata's counts what it yielded: at the end of a step, it is exact with workers, too."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    expected = list(ManifestBatchSampler(plan, epochs=[0]))

    def make():
        sampler = ManifestBatchSampler(plan, epochs=[0])
        return stateful(DATASET, batch_sampler=sampler, num_workers=workers)

    for stop in stops:
        running, resumed = make(), make()
        got = [batch.tolist() for (batch,) in itertools.islice(running, stop)]
        resumed.load_state_dict(running.state_dict())
        assert got + values(resumed) == expected


def test_resume_at_every_step(plan):
    expected = list(ManifestBatchSampler(plan))
    sampler = ManifestBatchSampler(plan)
    for index, _ in enumerate(sampler, start=1):
        steps = index // 4 if index < 157 else 40 + (index - 157) // 4
        if index in (157, 314) or (index < 157 and index % 4 == 0):
            epoch, step = divmod(steps - 1, 40) if index < 314 else (1, 39)
            assert sampler.state_dict() == sampler.state_after(step, epoch)
            resumed = ManifestBatchSampler(plan)
            resumed.load_state_dict(json_round_trip(sampler.state_dict()))
            assert list(resumed) == expected[index:]


def test_state_moves_between_sampler_and_loader(plan, awkward_data):
    sampler = ManifestBatchSampler(plan, rank=1, world_size=2, epochs=[0])
    loader = ManifestLoader(plan, awkward_data("ipc"), columns=[], epochs=[0])
    loader.load_state_dict(sampler.state_after(30))
    assert next(iter(loader)).step == 31


def test_state_after(plan):
    sampler = ManifestBatchSampler(plan)
    with pytest.raises(ParameterError, match=r"cover 2 epochs: .* epoch=…"):
        sampler.state_after(3)
    assert sampler.state_after(39, epoch=0)["samples_seen"] == AWKWARD_ROWS
    with pytest.raises(ManifestError, match="holds no step 40"):
        sampler.state_after(40, epoch=0)
    with pytest.raises(ParameterError, match="'step' parameter"):
        sampler.state_after(-1, epoch=0)


def test_set_epoch(plan):
    sampler = ManifestBatchSampler(plan)
    whole = list(sampler)
    for epoch in (1, 0):
        sampler.set_epoch(epoch)
        assert len(sampler) == 157
        assert list(sampler) == whole[157 * epoch :][:157]


def test_older_iteration_does_not_touch_the_state(plan):
    sampler = ManifestBatchSampler(plan)
    older = iter(sampler)
    next(older)
    sampler.load_state_dict(sampler.state_after(20, epoch=0))
    newer = iter(sampler)
    for _ in range(4):
        next(newer)
    for _ in range(8):
        next(older)
    assert sampler.state_dict() == sampler.state_after(21, epoch=0)


def test_foreign_state(plan):
    sampler = ManifestBatchSampler(plan)
    foreign = {**sampler.state_dict(), "manifest_id": "f" * 64}
    with pytest.raises(ResumeMismatchError, match="expected manifest"):
        sampler.load_state_dict(foreign)


def test_positions_and_row_ids_where_files_were_replaced(tmp_path):
    """Ids have a gap; positions count through the files as they are."""
    for name, start in (("a", 0), ("b", 50)):
        write_fragment(awkward_table(start, start + 50), tmp_path / "data" / f"{name}.arrow", "ipc")
    old = open_dataset(tmp_path / "data").snapshot
    write_fragment(awkward_table(200, 250), tmp_path / "data" / "a.arrow", "ipc")
    snapshot = open_dataset(tmp_path / "data", since=old).snapshot
    with ManifestWriter(tmp_path / "plan", snapshot=snapshot) as writer:
        with writer.epoch(0):
            writer.append(BatchPlan.of([0, 3, 5], [149, 50, 100, 51, 99]))
        writer.commit()
    assert list(ManifestBatchSampler(tmp_path / "plan")) == [[99, 0, 50], [1, 49]]
    by_id = ManifestBatchSampler(tmp_path / "plan", index="row_id")
    assert list(by_id) == [[149, 50, 100], [51, 99]]


def test_whole_micro_batches(awkward_data, tmp_path):
    plan = shuffled(rows=64 * 8, micro_per_step=4)
    write_plan(tmp_path / "plan", awkward_data("ipc"), {0: plan}, unit="micro")
    halves = [list(ManifestBatchSampler(tmp_path / "plan", rank=r, world_size=2)) for r in (0, 1)]
    whole = list(ManifestBatchSampler(tmp_path / "plan"))
    assert [batch for pair in zip(*halves, strict=True) for batch in pair] == whole
    with pytest.raises(WorldSizeError, match="which 3 ranks"):
        ManifestBatchSampler(tmp_path / "plan", rank=0, world_size=3)


def test_weights_cannot_be_carried_and_that_is_said(awkward_data, tmp_path):
    plan = shuffled(rows=100, weighted=True)
    write_plan(tmp_path / "plan", awkward_data("ipc"), {0: plan}, weight_semantics="importance")
    with pytest.warns(UserWarning, match="has weights, and lists of indices carry none"):
        ManifestBatchSampler(tmp_path / "plan")


def test_padding_is_refused(plan):
    with pytest.raises(ParameterError, match=r"cannot pad: .*Use ManifestLoader"):
        ManifestBatchSampler(plan, on_uneven="pad")


@pytest.mark.parametrize("options", [{"index": "rank"}, {"on_uneven": "x"}, {"verify": "x"}])
def test_options_that_cannot_be(plan, options):
    (name,) = options
    with pytest.raises(ParameterError, match=f"'{name}' parameter must be one of"):
        ManifestBatchSampler(plan, **options)
