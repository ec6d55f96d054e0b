"""Features that need not fit into memory, a plan, a cache that knows it, and a crash.

    python examples/graph_large.py

Features are read from a packed table, or from a memory map, row by row as batches need them. The
plan tells before training which rows those are: a tenth of the rows is kept near, those that are
needed soonest. The training is interrupted, and goes on at the batch where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.gpu_access import HotRowCache, UnifiedTensor
from batchloom.jobs import pack, plan
from batchloom.samplers import weighted_loss
from batchloom.samplers.graph import (
    CSCGraph,
    NeighborSampler,
    graph_loader,
    packed_features,
    planned_accesses,
)
from torch.nn.functional import mse_loss
from torch_geometric.nn import SAGEConv

NODES, WIDTH, STEPS_BEFORE_THE_CRASH = 20_000, 64, 13


def make_data(home: Path) -> CSCGraph:
    """Write nodes with features, pack them, plan two epochs of a tenth; return their graph."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NODES, WIDTH)).astype(np.float32)
    columns = {
        "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH),
        "y": x[:, :4].sum(axis=1),
        "part": rng.random(NODES),
    }
    pq.write_table(pa.table(columns), home / "nodes.parquet")
    x.tofile(home / "x.bin")
    pack(home / "nodes.parquet", home / "packed", columns=["x", "y"])
    plan(
        "shuffle", home / "nodes.parquet", out=home / "plan", where="part < 0.1", batch_size=200,
        epochs=(0, 2), seed=7, workers=0,
    )  # fmt: skip
    ends = (NODES * rng.random((2, 10 * NODES)) ** 3).astype(np.int64)  # some are linked by many
    return CSCGraph.from_edge_index(ends, NODES)


def train(
    home: Path, graph: CSCGraph, features: Any, name: str, stop_after: int | None = None
) -> torch.Tensor:
    """Train from the checkpoint on, where there is one; return the weights."""
    torch.manual_seed(0)
    model, checkpoint = SAGEConv(WIDTH, 1), home / name
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = graph_loader(home / "plan", graph, features, fanouts=[10, 5])
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for number, batch in enumerate(loader, start=1):
        out = model(batch.x, batch.edge_index)[: batch.batch_size, 0]
        optimizer.zero_grad()
        weighted_loss(mse_loss(out, batch.y, reduction="none"), batch).backward()
        optimizer.step()
        if number == stop_after:
            states = {"model": model, "optimizer": optimizer, "loader": loader}
            torch.save({part: s.state_dict() for part, s in states.items()}, checkpoint)
            print(f"stopped after {number} batches, in epoch {batch.epoch}")
            break
    return model.lin_l.weight.detach()


def main() -> None:
    """Train at one go from a memory map, with a crash from a packed table, and use a cache."""
    home = made_up.folder()
    graph, packed = make_data(home), packed_features(home / "packed")
    mapped = np.memmap(home / "x.bin", np.float32, "r", shape=(NODES, WIDTH))
    expected = train(home, graph, {"x": mapped, "y": packed["y"]}, "at-one-go.pt")
    train(home, graph, packed, "interrupted.pt", stop_after=STEPS_BEFORE_THE_CRASH)
    resumed = train(home, graph, packed, "interrupted.pt")
    print("the resumed run ends with the same weights:", torch.equal(resumed, expected))

    sampler = NeighborSampler.from_graph(graph, [10, 5], seed=7)  # the plan's seed
    table = UnifiedTensor.from_tensor(torch.from_numpy(np.array(mapped)))
    accesses = planned_accesses(home / "plan", sampler)
    cache = HotRowCache.from_plan(table, accesses, capacity_bytes=mapped.nbytes // 10)
    batches = list(graph_loader(home / "plan", sampler, {"x": cache}))
    right = all(np.array_equal(b.x.numpy(), mapped[b.n_id.numpy()]) for b in batches)
    print(f"a tenth of the rows, {table.stats.hit_rate:.0%} of the reads, all right:", right)


if __name__ == "__main__":
    main()
