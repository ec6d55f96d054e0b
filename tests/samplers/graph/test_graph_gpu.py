"""Batches of a graph on a GPU are those of the CPU, by any table. Run with ``make test-gpu``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane.errors import ParameterError
from batchloom.gpu_access import HotRowCache, UnifiedTensor
from batchloom.jobs import pack
from batchloom.samplers.graph import (
    GraphFeatures,
    NeighborSampler,
    graph_loader,
    packed_features,
    planned_accesses,
)
from batchloom.tests.samplers.graph.graphs import (
    WIDTH,
    csc_graph,
    features,
    graph_data,
    hetero_data,
    node_plan,
    of_batch,
    write_nodes,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    node_plan(folder / "plan", write_nodes(folder / "nodes"))
    pack(folder / "nodes", out=folder / "packed")
    features().tofile(folder / "x.bin")
    return folder


def tables(home: Path, sampler: Any) -> dict[str, Any]:
    x = torch.from_numpy(features())
    accesses, size = planned_accesses(home / "plan", sampler), 40 * WIDTH * 4

    def cached(make: Any, *arguments: Any) -> Any:
        return make(UnifiedTensor.from_tensor(x, device="cuda"), *arguments, size)

    return {
        "tensor": x,
        "memory map": np.memmap(home / "x.bin", np.float32, "r", shape=tuple(x.shape)),
        "staged": UnifiedTensor.from_tensor(x, device="cuda", backend="staged"),
        "packed": packed_features(home / "packed")["x"],
        "on the GPU": x.cuda(),
        "belady": cached(HotRowCache.from_plan, accesses),
        "counts": cached(HotRowCache.from_counts, accesses.counts()),
        "lru": cached(HotRowCache.lru),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_cpu(home: Path, workers: int) -> None:
    sampler = NeighborSampler.from_graph(csc_graph(), [4, 3])
    y = np.arange(len(features()))
    expected = [
        of_batch(b) for b in graph_loader(home / "plan", sampler, {"x": features(), "y": y})
    ]
    for name, table in tables(home, sampler).items():
        loader = graph_loader(
            home / "plan", sampler, {"x": table, "y": y}, device="cuda", num_workers=workers
        )
        found = []
        for batch in loader:
            assert batch.x.is_cuda
            assert batch.y.is_cuda
            assert batch.edge_index.is_cuda
            assert batch.weights.is_cuda
            found.append(of_batch(batch.cpu()))
        assert found == expected, name


def test_a_batch_is_ahead_and_the_state_is_not(home: Path) -> None:
    running = graph_loader(home / "plan", graph_data(), fanouts=[4, 3], device="cuda")
    whole = [of_batch(b.cpu()) for b in running]
    for done, _ in enumerate(running, start=1):
        resumed = graph_loader(home / "plan", graph_data(), fanouts=[4, 3])
        resumed.load_state_dict(running.state_dict())
        assert [of_batch(b) for b in resumed] == whole[done:]


def test_several_kinds(home: Path) -> None:
    data = hetero_data()
    loader = graph_loader(home / "plan", data, fanouts=[3, 2], kind="paper", device="cuda")
    for batch in loader:
        for kind in data.node_types:
            assert batch[kind].x.is_cuda
            assert torch.equal(batch[kind].x.cpu(), data[kind].x[batch[kind].n_id.cpu()])


def test_pinned_batches(home: Path) -> None:
    for batch in graph_loader(home / "plan", graph_data(), fanouts=[4], pin_memory=True):
        assert batch.x.is_pinned()
        assert batch.edge_index.is_pinned()
        assert torch.equal(batch.x, graph_data().x[batch.n_id])


def test_features_for_another_place(home: Path) -> None:
    with pytest.raises(ParameterError, match="Say so where the features are made"):
        graph_loader(
            home / "plan", csc_graph(), GraphFeatures({}, device="cuda"), fanouts=[2], device="cpu"
        )
