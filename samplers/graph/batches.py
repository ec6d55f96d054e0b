"""Batches in PyG's form: a sample, the features of its nodes and edges, and its place in the plan.

What ``NeighborLoader`` gives is there under the same names. Beside it stands what a plan knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...dataplane.errors import needs_extra
from ..window import Window
from .outputs import HeteroSample

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.data import Data, HeteroData

__all__ = ["edge_numbers", "heterogeneous", "homogeneous", "put", "with_place"]


def edge_numbers(sample: Any, permutation: Any) -> dict[Any, torch.Tensor]:
    """Return the caller's numbers of a sample's edges, by kind; empty where they have none."""
    if not isinstance(sample, HeteroSample):
        edge, named = {None: sample.edge}, {None: permutation}
    else:
        edge, named = sample.edge or {}, permutation or {}
    return {
        kind: numbers if named.get(kind) is None else named[kind][numbers]
        for kind, numbers in edge.items()
        if numbers is not None
    }


def homogeneous(sample: Any, edges: Mapping[Any, torch.Tensor]) -> Data:
    """Return a sample of one kind as ``Data``."""
    data = Data(edge_index=torch.stack([sample.row, sample.col]))
    data.num_nodes = sample.node.numel()
    data.n_id = sample.node
    if None in edges:
        data.e_id = edges[None]
    data.batch = sample.batch
    data.num_sampled_nodes = sample.num_sampled_nodes
    data.num_sampled_edges = sample.num_sampled_edges
    return data


def heterogeneous(sample: HeteroSample, edges: Mapping[Any, torch.Tensor]) -> HeteroData:
    """Return a sample of several kinds as ``HeteroData``."""
    data = HeteroData()
    for kind, node in sample.node.items():
        data[kind].num_nodes = node.numel()
        data[kind].n_id = node
    for kind, row in sample.row.items():
        data[kind].edge_index = torch.stack([row, sample.col[kind]])
        if kind in edges:
            data[kind].e_id = edges[kind]
    data.set_value_dict("batch", sample.batch)
    data.set_value_dict("num_sampled_nodes", sample.num_sampled_nodes)
    data.set_value_dict("num_sampled_edges", sample.num_sampled_edges)
    return data


def put(data: Any, values: Mapping[tuple[Any, str], torch.Tensor]) -> None:
    """Put gathered features where they belong."""
    for (kind, name), rows in values.items():
        (data if kind is None else data[kind])[name] = rows


def with_place(data: Any, window: Window, index: int, kind: str | None) -> Any:
    """Say where in the plan a batch stands.

    ``rows``, ``weights``, ``pad``, ``epoch``, ``step``, ``micro``, ``step_rows``, ``step_weight``
    and ``num_rows`` are those of `samplers.batch.Batch`; ``side`` is there where the plan has side
    columns, ``pad`` where the batch is one. ``input_id`` are the seeds' places in the epoch.
    """
    pieces = window.pieces
    size = pieces.sizes[index]
    first = pieces.first_place + pieces.start.item(index)
    seeds = data if kind is None else data[kind]
    seeds.batch_size = size
    seeds.input_id = torch.arange(first, first + size)
    data.epoch = pieces.record.epoch
    for name in ("step", "micro", "step_rows", "step_weight"):
        data[name] = getattr(pieces, name).item(index)
    data.num_rows = size
    data.rows = window.fact("rows")[index]
    data.weights = window.fact("weights")[index]
    pad, side = window.fact("pad")[index], window.fact("side")[index]
    if pad is not None:
        data.pad = pad
    if side:
        data.side = dict(side)
    return data
