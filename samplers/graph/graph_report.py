"""What a stored graph looks like: numbers of nodes and edges, degrees, hubs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .graph_files import StoredGraph
from .graph_header import read_header

__all__ = ["describe_graph"]

I64 = npt.NDArray[np.int64]

_CHUNK = 1 << 20
_COUNTED = 1 << 16  # degrees below are counted one by one
_SHARES = {"least": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "most": 1.0}
_HUBS = 5


def describe_graph(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return numbers of nodes and edges, quantiles of degrees, isolated nodes and hubs.

    All edges are read once, some at a time; a node takes a byte in memory.
    """
    place = Path(folder)
    header = read_header(place)
    edges = {}
    linked = {kind: np.zeros(count, np.bool_) for kind, count in header.num_nodes.items()}
    graphs = [StoredGraph(place, header, record, edge_ids=False) for record in header.edges]
    for graph in graphs:
        _mark(graph, linked[graph.edge_type[0]], linked[graph.edge_type[2]])
    for record, graph in zip(header.edges, graphs, strict=True):
        size = sum(a.size * np.dtype(a.dtype).itemsize for a in record.arrays)
        isolated = np.count_nonzero(~linked[record.type[2]])
        edges[",".join(record.type)] = {
            "edges": record.edges,
            "bytes": size,
            **_degrees(graph),
            "isolated": int(isolated),
        }
    return {
        "path": str(folder),
        "graph_id": header.fingerprint,
        "nodes": header.num_nodes,
        "edges": edges,
        "created_by": header.provenance.get("created_by"),
    }


def _mark(
    graph: StoredGraph, sources: npt.NDArray[np.bool_], targets: npt.NDArray[np.bool_]
) -> None:
    for start in range(0, graph.num_edges, _CHUNK):
        sources[graph.row[start : start + _CHUNK]] = True
    for start in range(0, graph.num_nodes, _CHUNK):
        degree = np.diff(graph.colptr[start : start + _CHUNK + 1])
        targets[start : start + degree.size] |= degree > 0


def _degrees(graph: StoredGraph) -> dict[str, Any]:
    """Return exact quantiles of the in-degrees, and the largest ones."""
    counts = np.zeros(_COUNTED, np.int64)
    large: list[I64] = [np.empty(0, np.int64)]
    hubs: list[tuple[int, int]] = []
    for start in range(0, graph.num_nodes, _CHUNK):
        degree = np.diff(graph.colptr[start : start + _CHUNK + 1])
        counts += np.bincount(degree[degree < _COUNTED], minlength=_COUNTED)
        large.append(degree[degree >= _COUNTED])
        top = np.argsort(-degree, kind="stable")[:_HUBS]
        hubs += [(-int(degree[i]), start + int(i)) for i in top]
        hubs = sorted(hubs)[:_HUBS]
    above = np.sort(np.concatenate(large))
    before = np.cumsum(counts)
    quantiles = {}
    for name, share in _SHARES.items():
        rank = round(share * (graph.num_nodes - 1)) if graph.num_nodes else -1
        if rank < 0:
            quantiles[name] = 0
        elif rank < before[-1]:
            quantiles[name] = int(np.searchsorted(before, rank, "right"))
        else:
            quantiles[name] = int(above[rank - int(before[-1])])
    return {
        "in_degree": quantiles,
        "no_edges_in": int(counts[0]),
        "hubs": [{"node": node, "edges": -negative} for negative, node in hubs if negative],
    }
