"""Parity with pyg-lib where it is installed, which no package registry offers.

What it is known to give for one small graph is compared in `test_sampling` everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.samplers.graph import NeighborSampler
from torch_geometric.data import Data
from torch_geometric.sampler import NeighborSampler as TheirSampler
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.typing import WITH_PYG_LIB

pytestmark = pytest.mark.skipif(not WITH_PYG_LIB, reason="pyg-lib is not installed")


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("fanouts", [[-1], [-1, -1], [1000, 1000]])
def test_all_neighbours_are_the_same(fanouts: list[int], disjoint: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pairs = torch.from_numpy(rng.integers(0, 200, (2, 900)))
        data = Data(edge_index=pairs, num_nodes=200)
        index = NodeSamplerInput(None, torch.from_numpy(rng.choice(200, 9, replace=False)))
        ours = NeighborSampler.from_data(data, fanouts, disjoint=disjoint)
        theirs = TheirSampler(data, fanouts, disjoint=disjoint)
        same(ours.sample_from_nodes(index), theirs.sample_from_nodes(index))


@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_all_in_time_are_the_same(strategy: str) -> None:
    rng = np.random.default_rng(1)
    pairs = torch.from_numpy(rng.integers(0, 200, (2, 900)))
    when = torch.from_numpy(rng.integers(0, 50, 200))
    data = Data(edge_index=pairs, num_nodes=200, when=when)
    fanouts = [-1, -1] if strategy == "uniform" else [3, 2]
    seeds = torch.from_numpy(rng.choice(200, 9, replace=False))
    index = NodeSamplerInput(None, seeds, torch.full((9,), 30))
    out = NeighborSampler.from_data(
        data, fanouts, node_time="when", temporal_strategy=strategy
    ).sample_from_nodes(index)
    theirs = TheirSampler(data, fanouts, time_attr="when", temporal_strategy=strategy)
    same(out, theirs.sample_from_nodes(index))


def same(ours: Any, theirs: Any) -> None:
    for part in ("node", "row", "col", "edge"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert (ours.batch is None) == (theirs.batch is None)
    assert ours.batch is None or torch.equal(ours.batch, theirs.batch)
    assert ours.num_sampled_nodes == theirs.num_sampled_nodes
    assert ours.num_sampled_edges == theirs.num_sampled_edges
