"""The sampler in plain Python, word for word what its docstrings say; and a few small graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from batchloom.samplers.graph import CSCGraph, Sample

MASK = (1 << 64) - 1
G = 0x9E3779B97F4A7C15

PAIRS = "1>0 2>0 3>0 0>1 4>1 5>2 0>3 6>3 5>4 6>4 4>5 5>6"


def edge_index(pairs: str = PAIRS) -> Any:
    return np.array([[int(n) for n in pair.split(">")] for pair in pairs.split()]).T.copy()


def small_graph() -> CSCGraph:
    """Eight nodes, the last of them isolated; pyg-lib's output is known for it."""
    return CSCGraph.from_edge_index(edge_index(), 8)


def random_graph(seed: int, nodes: int, edges: int) -> CSCGraph:
    """Loops, parallel edges and isolated nodes come up."""
    rng = np.random.default_rng(seed)
    return CSCGraph.from_edge_index(rng.integers(0, nodes, (2, edges)), nodes)


def regular_graph(nodes: int, degree: int) -> CSCGraph:
    """Each node has so many in-edges."""
    row = np.arange(nodes * degree, dtype=np.int64) % nodes
    return CSCGraph(np.arange(nodes + 1) * degree, row)


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def node_key(key: int, node: int, slot: int) -> int:
    own = mix(key ^ (node * G & MASK))
    return mix((own + slot * G) & MASK) if slot else own


def draw(own: int, number: int, below: int) -> int:
    return mix((own + (number + 1) * G) & MASK) * below >> 64


def picks(own: int, degree: int, fanout: int, replace: bool) -> list[int]:
    if fanout < 0 or (not replace and fanout >= degree):
        return list(range(degree))
    if replace:
        return [draw(own, j, degree) for j in range(fanout)] if degree else []
    taken: list[int] = []
    for j in range(fanout):
        last = degree - fanout + j
        x = draw(own, j, last + 1)
        taken.append(last if x in taken else x)
    return taken


def plain_sample(
    graph: CSCGraph,
    seeds: Sequence[int],
    fanouts: Sequence[int],
    key: int,
    replace: bool = False,
    disjoint: bool = False,
) -> dict[str, list[int]]:
    colptr, row = graph.colptr.tolist(), graph.row.tolist()
    nodes, slots = list(seeds), list(range(len(seeds)))
    known: dict[Any, int] = {}
    again = [0] * len(nodes)
    for i, v in enumerate(nodes):
        name = (i, v) if disjoint else v
        again[i] = i if name in known else 0
        known.setdefault(name, i)
    rows, cols, edges, hop_nodes, hop_edges = [], [], [], [len(nodes)], []
    begin = 0
    for hop, fanout in enumerate(fanouts):
        end, before = len(nodes), len(edges)
        for i in range(begin, end):
            v = nodes[i]
            slot = slots[i] if disjoint else (again[i] if hop == 0 else 0)
            own = node_key(key, v, slot)
            for x in picks(own, colptr[v + 1] - colptr[v], fanout, replace):
                u = row[colptr[v] + x]
                name = (slots[i], u) if disjoint else u
                if name not in known:
                    known[name] = len(nodes)
                    nodes.append(u)
                    slots.append(slots[i])
                rows.append(known[name])
                cols.append(i)
                edges.append(colptr[v] + x)
        hop_nodes.append(len(nodes) - end)
        hop_edges.append(len(edges) - before)
        begin = end
    return {
        "nodes": nodes,
        "slots": slots if disjoint else [],
        "row": rows,
        "col": cols,
        "edge": edges,
        "num_nodes": hop_nodes,
        "num_edges": hop_edges,
    }


def as_lists(sample: Sample) -> dict[str, list[int]]:
    assert sample.num_nodes is not None
    assert sample.num_edges is not None
    return {
        "nodes": sample.nodes[0].tolist(),
        "slots": sample.slots[0].tolist() if sample.slots is not None else [],
        "row": sample.row[0].tolist(),
        "col": sample.col[0].tolist(),
        "edge": sample.edge[0].tolist(),
        "num_nodes": sample.num_nodes[0],
        "num_edges": sample.num_edges[0],
    }


def same_bits(one: Sample, other: Sample) -> bool:
    """Whether two samples are equal, array by array."""
    parts = ("nodes", "row", "col", "edge")
    return all(
        np.array_equal(a, b)
        for part in parts
        for a, b in zip(getattr(one, part), getattr(other, part), strict=True)
    )
