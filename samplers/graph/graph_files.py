"""Graphs in folders, mapped: what ``batchloom graph build`` makes (`graph_header` has the format).

    >>> graph = open_graph("graph/")
    >>> sampler = NeighborSampler.from_graph(graph, fanouts=[15, 10])
    >>> graphs = open_graph("papers/")  # of several kinds of nodes or edges
    >>> sampler = HeteroNeighborSampler(graphs, fanouts=[10, 5], num_nodes=graphs.num_nodes)

Nothing is read but the header; the numbers were checked when the graph was built. Processes that
map the same graph share its pages.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import FragmentCorruptError, InvalidValueError
from ...dataplane.fragments import read_footer
from ...dataplane.storage import Location
from .csc import CSCGraph
from .graph_header import (
    HEADER,
    EdgesRecord,
    EdgeType,
    GraphHeader,
    array_hash,
    edges_folder,
    is_graph,
    map_array,
    marker_name,
    read_header,
)

__all__ = ["StoredGraph", "StoredGraphs", "is_graph", "open_graph", "verify_graph"]

I64 = npt.NDArray[np.int64]

_CHUNK = 1 << 20


class StoredGraph(CSCGraph):
    """Edges of one kind, mapped from a folder.

    Attributes
    ----------
    fingerprint : str
        Of the folder, all kinds together.
    folder : Path
    edge_type : (source, relation, target)
    first_row_id : int
        The row id of node 0, among those that edges lead to.
    """

    _arrays: ClassVar[tuple[str, ...]] = ("colptr", "row", "permutation", "_weights", "_times")

    def __init__(
        self, folder: Path, header: GraphHeader, record: EdgesRecord, *, edge_ids: bool
    ) -> None:
        mapped = {a.name: map_array(folder, record.type, a) for a in record.arrays}
        super().__init__(
            mapped["colptr"],
            mapped["row"],
            num_sources=header.num_nodes[record.type[0]],
            permutation=mapped["permutation"] if edge_ids else None,
            check=False,
        )
        self.fingerprint, self.folder, self.edge_type = header.fingerprint, folder, record.type
        self.first_row_id = header.first_row_ids[record.type[2]]
        self._weights, self._times = mapped.get("weights"), mapped.get("times")

    @property
    def weights(self) -> npt.NDArray[Any] | None:
        """The edges' weights, as samplers take them; None where the graph has none."""
        return self._named(self._weights)

    @property
    def times(self) -> npt.NDArray[Any] | None:
        """The edges' times, as samplers take them; those into each node ascend."""
        return self._named(self._times)

    def _named(self, values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        """Return values by the caller's number of the edge: a copy, where that is no position."""
        if values is None or self.permutation is None:
            return values
        named = np.empty_like(values, subok=False)
        named[self.permutation] = values
        return named


class StoredGraphs(dict[EdgeType, StoredGraph]):
    """Graphs of several kinds, by (source, relation, target).

    Attributes
    ----------
    fingerprint : str
    folder : Path
    num_nodes : dict of str → int
    first_row_ids : dict of str → int
        The row id of the first node of each kind.
    """

    def __init__(self, folder: Path, header: GraphHeader, *, edge_ids: bool) -> None:
        super().__init__(
            (record.type, StoredGraph(folder, header, record, edge_ids=edge_ids))
            for record in header.edges
        )
        self.fingerprint, self.folder = header.fingerprint, folder
        self.num_nodes, self.first_row_ids = header.num_nodes, header.first_row_ids


def open_graph(
    folder: str | os.PathLike[str], *, edge_ids: bool = True, verify: bool = False
) -> StoredGraph | StoredGraphs:
    """Map a graph that ``batchloom graph build`` made.

    Parameters
    ----------
    folder : path
    edge_ids : bool
        Edges are named by their rows in the table that they are from: `permutation` is there. Else
        by their positions; weights and times then need no copy.
    verify : bool
        Read all of it first, and compare it with its hashes.

    Returns
    -------
    StoredGraph
        Where there is one kind of nodes, and one of edges.
    StoredGraphs
        Where there are several.

    Raises
    ------
    MissingFileError, FragmentCorruptError, DatasetError
    """
    place = Path(folder)
    header = verify_graph(place) if verify else read_header(place)
    if len(header.nodes) == len(header.edges) == 1:
        return StoredGraph(place, header, header.edges[0], edge_ids=edge_ids)
    return StoredGraphs(place, header, edge_ids=edge_ids)


def verify_graph(
    folder: str | os.PathLike[str], done: Callable[[int], None] = lambda _: None
) -> GraphHeader:
    """Compare every byte of a graph's edges with its hashes, and the nodes' files with theirs.

    Parameters
    ----------
    folder : path
    done : callable
        Told edges as they are done.

    Raises
    ------
    MissingFileError, FragmentCorruptError, DatasetError
        At the first thing that is not as it should be.
    """
    place = Path(folder)
    header = read_header(place)
    for nodes in header.nodes:
        for file in nodes.files:
            _check_nodes(place / nodes.type / file.path, vars(file))
        if not (place / nodes.type / marker_name(header.fingerprint)).exists():
            raise FragmentCorruptError(
                f"{place / nodes.type} has no file {marker_name(header.fingerprint)}, by which "
                "snapshots know the graph. Copy the folder again, or build the graph again."
            )
    for edges in header.edges:
        for record in edges.arrays:
            path = place / edges_folder(edges.type) / f"{record.name}.npy"
            map_array(place, edges.type, record)
            found = array_hash(path)[0]
            if found != record.sha256:
                raise FragmentCorruptError(
                    f"{path} is damaged: expected hash {record.sha256}, found {found}. Copy the "
                    "folder again, or build the graph again."
                )
        graph = StoredGraph(place, header, edges, edge_ids=True)
        check_edges(graph)
        done(edges.edges)
    return header


def _check_nodes(path: Path, record: dict[str, Any]) -> None:
    location = Location(str(path))
    footer = read_footer(location, location.size())
    for name in ("rows", "bytes", "footer_hash"):
        if getattr(footer, name) != record[name]:
            raise FragmentCorruptError(
                f"{path} is not the file that the graph was built with: expected {name} "
                f"{record[name]}, found {getattr(footer, name)}. Put it back, or build the graph "
                f"again ({HEADER} names it)."
            )


def check_edges(graph: CSCGraph) -> None:
    """Raise `InvalidValueError` unless a graph is one: some numbers at a time, whatever its size.

    `colptr` ascends from 0 to E, sources are nodes, and no edge is there twice.
    """
    from .csc_kernels import first_descent, first_outside

    for start in range(0, graph.num_nodes, _CHUNK):
        part = graph.colptr[start : start + _CHUNK + 1]
        place = int(first_descent(part))
        if place >= 0:
            raise InvalidValueError(
                f"The 'colptr' of the graph does not ascend at node {start + place:,}. Build it "
                "again."
            )
    total = 0
    for start in range(0, graph.num_edges, _CHUNK):
        place = int(first_outside(graph.row[start : start + _CHUNK], graph.num_sources))
        if place >= 0:
            raise InvalidValueError(
                f"The source at position {start + place:,} is {graph.row[start + place]}, which is "
                f"none of the {graph.num_sources:,} nodes. Build the graph again."
            )
        if graph.permutation is not None:
            part = graph.permutation[start : start + _CHUNK]
            if int(first_outside(part, graph.num_edges)) >= 0:
                raise InvalidValueError(
                    f"An edge between positions {start:,} and {start + part.size:,} is named by no "
                    "row of the edge table. Build the graph again."
                )
            total += int(part.sum())
    expected = graph.num_edges * (graph.num_edges - 1) // 2
    if graph.permutation is not None and total != expected:
        raise InvalidValueError(
            f"The rows of the edge table that the graph names add up to {total:,}, not to "
            f"{expected:,}: one is there twice. Build the graph again."
        )
