"""The loader over a plan's seeds: the same batches whoever samples them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane.errors import (
    BatchloomError,
    BatchTooLargeError,
    ResumeMismatchError,
    WorldSizeError,
)
from batchloom.samplers import ManifestLoader
from batchloom.samplers.graph import (
    CSCGraph,
    GraphFeatures,
    NeighborSampler,
    graph_loader,
    sample_neighbors,
)
from batchloom.samplers.graph.keys import key_of_step
from batchloom.tests.contracts.batches import json_round_trip
from batchloom.tests.samplers.graph.graphs import (
    NODES,
    csc_graph,
    features,
    graph_data,
    node_plan,
    of_batch,
    pairs,
    write_nodes,
)

FANOUTS = [4, 3]
BATCHES = 20  # two epochs of ten


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nodes(tmp_path_factory.mktemp("nodes") / "nodes")


@pytest.fixture(scope="module")
def plan(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "plan"
    node_plan(folder, data)
    return folder


@pytest.fixture(scope="module")
def whole(plan: Path) -> list[Any]:
    return [of_batch(b) for b in graph_loader(plan, graph_data(), fanouts=FANOUTS)]


def test_a_batch_is_the_sample_of_its_place_with_its_features(plan: Path) -> None:
    loader = graph_loader(plan, graph_data(), fanouts=FANOUTS, seed=11)
    data, graph = graph_data(), csc_graph()
    batches = list(loader)
    assert len(batches) == len(loader) == BATCHES
    for batch in batches:
        seeds = batch.rows.numpy()
        key = key_of_step(11, batch.epoch, batch.step, batch.micro)
        made = sample_neighbors(graph, seeds, FANOUTS, key)
        assert batch.n_id.tolist() == made.nodes[0].tolist()
        assert batch.edge_index.tolist() == [made.row[0].tolist(), made.col[0].tolist()]
        assert batch.n_id[: batch.batch_size].tolist() == seeds.tolist()
        assert (batch.num_sampled_nodes, batch.num_sampled_edges) == (
            made.num_nodes[0],
            made.num_edges[0],
        )
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, data.y[batch.rows])
        assert torch.equal(batch.edge_attr, data.edge_attr[batch.e_id])
        assert torch.equal(data.edge_index[:, batch.e_id], batch.n_id[batch.edge_index])
        first = 30 * batch.step
        assert batch.input_id.tolist() == list(range(first, first + batch.batch_size))
        assert batch.num_nodes == len(batch.n_id)
        assert batch.batch is None
        assert (batch.step_rows, batch.step_weight, batch.num_rows) == (30, 30.0, 30)
    assert [(b.epoch, b.step) for b in batches] == [(e, s) for e in (0, 1) for s in range(10)]


def test_the_plan_s_seed_is_taken_where_none_is_given(plan: Path, whole: list[Any]) -> None:
    given = graph_loader(plan, graph_data(), fanouts=FANOUTS, seed=7)  # the plan's
    assert [of_batch(b) for b in given] == whole
    other = graph_loader(plan, graph_data(), fanouts=FANOUTS, seed=8)
    assert [of_batch(b) for b in other] != whole
    sampler = NeighborSampler.from_graph(csc_graph(), FANOUTS, seed=7)
    assert [of_batch(b) for b in graph_loader(plan, sampler, graph_data())] == whole


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "workers",
    [
        {"num_workers": 1},
        {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "fork"},
        {"num_workers": 3, "prefetch_factor": 1},
        {"num_workers": 2, "multiprocessing_context": "spawn"},
        pytest.param(
            {"num_workers": 2, "multiprocessing_context": "forkserver"}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_any_workers_give_the_same(plan: Path, whole: list[Any], workers: dict[str, Any]) -> None:
    loader = graph_loader(plan, graph_data(), fanouts=FANOUTS, **workers)
    torch.rand(3)
    before = torch.get_rng_state()
    if loader._workers is not None and loader._workers.persistent_workers:
        next(iter(loader))  # one that is given up
        assert [of_batch(b) for b in loader] == whole
    assert [of_batch(b) for b in loader] == whole
    assert torch.equal(before, torch.get_rng_state())
    loader.close()


def test_resuming_at_every_batch(plan: Path, whole: list[Any]) -> None:
    running = graph_loader(plan, graph_data(), fanouts=FANOUTS)
    resumed = graph_loader(plan, graph_data(), fanouts=FANOUTS)
    assert running.state_dict()["next_step"] == 0
    iterator = iter(running)
    for done in range(1, BATCHES + 1):
        next(iterator)
        state = json_round_trip(running.state_dict())
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert [of_batch(b) for b in resumed] == whole[done:]


def test_the_state_counts_what_was_delivered_and_fits_any_loader(
    plan: Path, data: Path, whole: list[Any]
) -> None:
    loader = graph_loader(plan, graph_data(), fanouts=FANOUTS, num_workers=2)
    plain = ManifestLoader(plan, data)
    for count, (_, _) in enumerate(zip(loader, plain, strict=True), start=1):
        assert loader.state_dict() == plain.state_dict()
        if count == 13:
            break
    resumed = graph_loader(plan, graph_data(), fanouts=FANOUTS)
    resumed.load_state_dict(plain.state_dict())
    assert [of_batch(b) for b in resumed] == whole[13:]
    resumed.set_epoch(1)
    assert [of_batch(b) for b in resumed] == whole[10:]
    resumed.set_epoch(0)
    assert len(resumed) == 10
    with pytest.raises(ResumeMismatchError):
        resumed.load_state_dict({**plain.state_dict(), "manifest_id": "0" * 64})
    plain.close()


def test_a_state_goes_on_in_another_process(plan: Path, whole: list[Any], tmp_path: Path) -> None:
    loader = graph_loader(plan, graph_data(), fanouts=FANOUTS)
    for _, _ in zip(range(14), loader, strict=False):
        pass
    script = f"""
from batchloom.samplers.graph import graph_loader
from batchloom.tests.samplers.graph.graphs import graph_data, of_batch
loader = graph_loader({str(plan)!r}, graph_data(), fanouts={FANOUTS}, num_workers=2)
loader.load_state_dict({loader.state_dict()!r})
print([of_batch(b) for b in loader])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(whole[14:])


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_take_whole_micro_batches(data: Path, tmp_path: Path, world: int) -> None:
    node_plan(tmp_path / "plan", data, epochs=(0,), batch=15, micro_per_step=4)
    alone = [of_batch(b) for b in graph_loader(tmp_path / "plan", graph_data(), fanouts=FANOUTS)]
    together = []
    for rank in range(world):
        loader = graph_loader(
            tmp_path / "plan", graph_data(), fanouts=FANOUTS, rank=rank, world_size=world
        )
        batches = [of_batch(b) for b in loader]
        assert len(batches) == len(loader) == len(alone) // world
        together += batches
    assert sorted(together, key=lambda b: b[:3]) == alone


def test_a_world_that_does_not_fit(data: Path, tmp_path: Path) -> None:
    node_plan(tmp_path / "plan", data, epochs=(0,), batch=30)
    make = {"fanouts": FANOUTS, "rank": 1, "world_size": 2}
    with pytest.raises(WorldSizeError, match="--micro-per-step"):
        graph_loader(tmp_path / "plan", graph_data(), **make)
    padded = list(graph_loader(tmp_path / "plan", graph_data(), on_uneven="pad", **make))
    assert all(b.pad.all() and not b.weights.any() for b in padded)
    first = next(iter(graph_loader(tmp_path / "plan", graph_data(), fanouts=FANOUTS)))
    assert torch.equal(padded[0].n_id, first.n_id)


def test_elastic_resume_within_an_epoch(data: Path, tmp_path: Path) -> None:
    node_plan(tmp_path / "plan", data, epochs=(0,), batch=15, micro_per_step=4)
    alone = graph_loader(tmp_path / "plan", graph_data(), fanouts=FANOUTS)
    expected = [of_batch(b) for b in alone]
    half = graph_loader(tmp_path / "plan", graph_data(), fanouts=FANOUTS, rank=0, world_size=2)
    for _, _ in zip(range(4), half, strict=False):  # two steps
        pass
    quarters = []
    for rank in range(4):
        loader = graph_loader(
            tmp_path / "plan", graph_data(), fanouts=FANOUTS, rank=rank, world_size=4
        )
        loader.load_state_dict(half.state_dict())
        quarters += [of_batch(b) for b in loader]
    assert sorted(quarters, key=lambda b: b[:3]) == expected[8:]


# --- iterations, and what fails in them -----------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_before_one_that_fails_are_delivered(
    data: Path, tmp_path: Path, workers: int
) -> None:
    """A hub is among the seeds of one batch, and all of its edges are more than there may be."""
    edges = np.concatenate([pairs(), [np.arange(NODES), np.full(NODES, 17)]], axis=1)
    graph = CSCGraph.from_edge_index(edges, NODES)
    manifest = node_plan(tmp_path / "plan", data, epochs=(0,))
    epoch = manifest.epoch(0)
    hub = next(i for i in range(len(epoch)) if 17 in epoch[i].rows)
    options = {"max_edges_per_batch": 350, "num_workers": workers}
    iterator = iter(graph_loader(manifest, graph, fanouts=[-1], **options))
    for _ in range(hub):
        next(iterator)
    with pytest.raises(BatchTooLargeError, match="max_edges_per_batch"):
        next(iterator)
    assert not multiprocessing.active_children()
    with pytest.raises(StopIteration):
        next(iterator)


def test_an_iteration_ends_the_one_before_it(plan: Path, whole: list[Any]) -> None:
    loader = graph_loader(plan, graph_data(), fanouts=FANOUTS)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(BatchloomError, match="newer iter"):
        next(first)
    assert of_batch(next(second)) == whole[0]
    loader.close()
    with pytest.raises(BatchloomError):
        next(second)
    assert [of_batch(b) for b in loader] == whole


@pytest.mark.parametrize("persistent", [False, True])
def test_no_worker_is_left(plan: Path, persistent: bool) -> None:
    loader = graph_loader(
        plan, graph_data(), fanouts=FANOUTS, num_workers=2, persistent_workers=persistent
    )
    for batch in loader:
        if batch.step == 3:
            break
    assert len(list(loader)) == BATCHES
    assert len(multiprocessing.active_children()) == (2 if persistent else 0)
    next(iter(loader))
    loader.close()
    assert not multiprocessing.active_children()
    assert len(list(loader)) == BATCHES  # it opens again
    loader.close()


def test_a_transform_and_features_given_apart(plan: Path) -> None:
    made = GraphFeatures({"x": features(), "label": np.arange(NODES)}, seed_only=["label"])
    loader = graph_loader(
        plan, csc_graph(), made, fanouts=[2], transform=lambda b: (b.x, b.label, b.rows)
    )
    for x, label, rows in loader:
        assert torch.equal(label, rows)
        assert len(x) > len(rows)
    assert loader.features is made


def test_disjoint_subgraphs_in_time(plan: Path) -> None:
    times = np.arange(NODES)
    loader = graph_loader(plan, csc_graph(), {"x": features()}, fanouts=[3, 3], node_time=times)
    for batch in loader:
        assert (batch.n_id <= batch.n_id[batch.batch]).all()
        assert torch.equal(batch.x, torch.from_numpy(features())[batch.n_id])
