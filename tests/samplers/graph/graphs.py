"""Datasets of nodes, plans over them, and a graph: what tests of loaders share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from batchloom.dataplane import BatchPlan, Manifest
from batchloom.dataplane.random import Permutation
from batchloom.samplers.graph import CSCGraph
from batchloom.tests.contracts.batches import write_plan
from torch_geometric.data import Data, HeteroData

NODES, EDGES, WIDTH = 300, 2400, 6


def write_nodes(
    folder: Path, rows: int = NODES, *, files: int = 2, chunk: int | None = None
) -> Path:
    """Write a dataset of so many rows."""
    folder.mkdir(parents=True)
    cuts = np.linspace(0, rows, files + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        ids = np.arange(start, stop)
        x = as_lists(features(rows)[start:stop])
        table = pa.table({"node": ids, "x": x, "part": ids % 20})
        with pa.ipc.new_file(str(folder / f"{number}.arrow"), table.schema) as writer:
            writer.write_table(table, chunk)
    return folder


def as_lists(values: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def features(rows: int = NODES) -> Any:
    return np.random.default_rng(9).random((rows, WIDTH), np.float32)


def pairs(nodes: int = NODES, edges: int = EDGES) -> Any:
    return np.random.default_rng(3).integers(0, nodes, (2, edges))


def graph_data(nodes: int = NODES, edges: int = EDGES) -> Data:
    return Data(
        x=torch.from_numpy(features(nodes)),
        y=torch.arange(nodes) % 4,
        edge_index=torch.from_numpy(pairs(nodes, edges)),
        edge_attr=torch.arange(float(edges)),
        num_nodes=nodes,
    )


def csc_graph() -> CSCGraph:
    return CSCGraph.from_edge_index(pairs(), NODES)


def hetero_data() -> HeteroData:
    rng = np.random.default_rng(5)
    data = HeteroData()
    data["paper"].x, data["paper"].y = torch.from_numpy(features(NODES)), torch.arange(NODES) % 4
    data["author"].x = torch.from_numpy(features(80))
    wrote = torch.from_numpy(np.stack([rng.integers(0, 80, 900), rng.integers(0, NODES, 900)]))
    data["author", "wrote", "paper"].edge_index = wrote
    data["author", "wrote", "paper"].edge_attr = torch.arange(900.0)
    data["paper", "by", "author"].edge_index = wrote.flip(0)
    return data


def node_plan(
    target: Path,
    data: Any,
    *,
    epochs: Iterable[int] = (0, 1),
    rows: int = NODES,
    batch: int = 30,
    micro_per_step: int = 1,
    first_row: int = 0,
    weighted: bool = False,
    **options: Any,
) -> Manifest:
    """Commit a shuffle of so many rows."""
    plans = {}
    for epoch in epochs:
        ids = Permutation(rows, seed=7, epoch=epoch)[:] + np.uint64(first_row)
        weights = (ids % 3 + 1).astype(np.float32) if weighted else None
        plans[epoch] = BatchPlan.cut(ids, batch, weights).folded(micro_per_step)
    return write_plan(target, data, plans, **options)


def of_batch(batch: Any) -> list[Any]:
    """Return what a batch holds, comparable."""
    parts = ("n_id", "e_id", "edge_index", "x", "y", "edge_attr", "rows", "weights", "input_id")
    place = [batch.epoch, batch.step, batch.micro, batch.step_rows, batch.step_weight]
    counts = [batch.batch_size, batch.num_sampled_nodes, batch.num_sampled_edges]
    return [*place, *counts, *(batch[p].tolist() for p in parts if p in batch)]
