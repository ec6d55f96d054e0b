"""Tables of edges for the tests of graphs, and what is compared of what they make."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batchloom.samplers.graph import CSCGraph

NODES, EDGES = 700, 9_000


def edge_table(edges: int = EDGES, nodes: int = NODES, seed: int = 0) -> pa.Table:
    """Random edges with a hub, weights and times."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "src": rng.integers(0, nodes, edges),
            "dst": (rng.random(edges) ** 6 * nodes).astype(np.int64),
            "w": rng.random(edges) + 0.5,
            "t": rng.integers(0, 40, edges),
        }
    )


def write(folder: Path, table: pa.Table, files: int, group: int = 500, suffix: str = "") -> Path:
    folder.mkdir(parents=True)
    cuts = np.linspace(0, table.num_rows, files + 1).astype(int)
    for number, (a, b) in enumerate(itertools.pairwise(cuts)):
        part = table.slice(a, b - a)
        if suffix:
            with pa.ipc.new_file(folder / f"part-{number}.arrow", table.schema) as file:
                file.write_table(part, max_chunksize=group)
        else:
            pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=group)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def expected(table: pa.Table, nodes: int | None = None) -> CSCGraph:
    pairs = np.stack([table["src"].to_numpy(), table["dst"].to_numpy()])
    return CSCGraph.from_edge_index(pairs, nodes or int(pairs.max()) + 1)


def same(graph: Any, reference: CSCGraph) -> None:
    for name in ("colptr", "row", "permutation"):
        made, wanted = getattr(graph, name), getattr(reference, name)
        assert made.dtype == wanted.dtype
        assert np.array_equal(made, wanted)
