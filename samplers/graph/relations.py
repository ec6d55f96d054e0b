"""One kind of edges as it is sampled, and what narrows it for one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import ParameterError, SelectionError
from . import kernels, link_kernels
from .csc import CSCGraph
from .draws import Draws, Frontier, Uniform
from .sharing import SharesArrays

__all__ = [
    "BarredEdges",
    "EdgeTimes",
    "Relation",
    "Sample",
    "check_fanouts",
    "check_seeds",
    "narrowed",
]

I64 = npt.NDArray[np.int64]
Times = npt.NDArray[Any]  # int64 or float64


class EdgeTimes(SharesArrays):
    """When the edges of a graph came to be; those into each node ascend.

    Parameters
    ----------
    values : int64 or float64, shape (E,) or (number of sources,)
    by_source : bool
        They are those of the sources, not of the edges.
    """

    _arrays: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, values: Times, *, by_source: bool) -> None:
        self.values, self.by_source = values, by_source

    def latest(self) -> Times:
        """Return a time that no edge is later than, of the same type, shape (1,)."""
        of = self.values.dtype
        return np.full(1, np.inf if of.kind == "f" else np.iinfo(of).max, of)


@dataclass(frozen=True, eq=False)
class Relation:
    """One kind of edges, and how many of them are drawn.

    Attributes
    ----------
    graph : CSCGraph
    fanouts : tuple of int
        Edges that a node takes in each hop; −1: all.
    source, target : int
        Kinds of the nodes that they join.
    draws : Draws
    salt : int
        What sets its draws apart from those of other kinds.
    times : EdgeTimes, optional
        Edges are taken that are not later than their seed.
    last : bool
        The latest of these, rather than any.
    """

    graph: CSCGraph
    fanouts: tuple[int, ...]
    source: int = 0
    target: int = 0
    draws: Draws = field(default_factory=Uniform)
    salt: int = 0
    times: EdgeTimes | None = None
    last: bool = False


@dataclass(frozen=True, eq=False)
class BarredEdges:
    """Edges that may not be taken in a batch.

    Attributes
    ----------
    pairs : int64, shape (2, p)
        Targets and sources, ascending.
    """

    pairs: I64

    @classmethod
    def of(cls, source: I64, target: I64) -> BarredEdges:
        """Bar all edges between these pairs of nodes."""
        order = np.lexsort((source, target))
        return cls(np.stack([target[order], source[order]]))

    def keep(self, source: I64, target: I64) -> npt.NDArray[np.bool_]:
        """Return which of some edges, by their nodes, are not barred."""
        kept = np.empty(source.size, np.bool_)
        link_kernels.outside_pairs(source, target, self.pairs, kept)
        return kept


@dataclass(frozen=True, eq=False)
class Sample:
    """What was sampled for one batch.

    Attributes
    ----------
    nodes : sequence of int64 arrays
        By kind: the nodes, seeds first.
    slots : sequence of int64 arrays, or None
        By kind: the seed whose subgraph a node is in, where they are disjoint.
    row, col : sequence of int64 arrays
        By kind of edges: the local numbers of the source and of the target.
    edge : sequence of int64 arrays
        Positions in the graph.
    num_nodes, num_edges : sequence of lists of int, or None
        By kind: seeds and the nodes that each hop discovered; edges of each hop. None where edges
        are not sorted by hops.
    """

    nodes: Sequence[I64]
    slots: Sequence[I64] | None
    row: Sequence[I64]
    col: Sequence[I64]
    edge: Sequence[I64]
    num_nodes: Sequence[list[int]] | None
    num_edges: Sequence[list[int]] | None


def narrowed(
    relation: Relation,
    nodes: I64,
    slots: I64,
    first: int,
    hop: int,
    seed_times: Times | None,
    barred: BarredEdges | None,
) -> Frontier:
    """Return the frontier of some nodes, with the edges that each may take.

    Parameters
    ----------
    relation : Relation
    nodes, slots, first, hop
        Those of the frontier.
    seed_times : array, shape (number of slots,), optional
        Needed where the relation has times.
    barred : BarredEdges, optional
    """
    graph, times = relation.graph, relation.times
    start, degree = np.empty(nodes.size, np.int64), np.empty(nodes.size, np.int64)
    if times is None or seed_times is None:
        kernels.neighborhoods(graph.colptr, nodes, start, degree)
    else:
        kernels.not_later(
            graph.colptr, graph.row, times.values, times.by_source, nodes, slots, seed_times,
            start, degree,
        )  # fmt: skip
    frontier = Frontier(nodes, slots, start, degree, first, hop)
    if barred is not None:
        ends = np.zeros(nodes.size + 1, np.int64)
        where = (nodes, start, degree, graph.row, barred.pairs, ends)
        count = int(link_kernels.count_holes(*where))
        if count:
            holes = np.empty(count, np.int64)
            link_kernels.fill_holes(*where, holes)
            frontier = replace(frontier, holes=holes, hole_ends=ends)
    return frontier


def check_fanouts(fanouts: Sequence[int], of: str = "") -> tuple[int, ...]:
    """Return fan-outs as a tuple; `ParameterError` where one is no int of at least −1."""
    try:
        values = tuple(fanouts)
        whole = all(isinstance(f, (int, np.integer)) and not isinstance(f, bool) for f in values)
    except TypeError:
        values, whole = (), False
    if not values or not whole or min(values) < -1:
        raise ParameterError(
            f"The 'fanouts'{of} must be a list of ints, one a hop: edges that each node takes, -1 "
            f"for all of them. Got {fanouts!r} instead."
        )
    return tuple(int(f) for f in values)


def check_seeds(seeds: I64, below: int, of: str = "") -> None:
    """Raise `SelectionError` where a seed is not a node."""
    if seeds.size and (int(seeds.min()) < 0 or int(seeds.max()) >= below):
        place = int(np.flatnonzero((seeds < 0) | (seeds >= below))[0])
        raise SelectionError(
            f"Seed {place} of the batch is {seeds[place]}, which is no node{of}: there are "
            f"{below}, numbered from 0."
        )
