"""Sampling of neighbours, on plain arrays: one kind of edges after the other, hop by hop.

A batch starts from its seeds. In each hop, every node that the hop before discovered takes some of
its in-edges, and their sources, where they are new, are the next hop's. Kinds of nodes are numbered
from 0, and so are kinds of edges; a graph of one kind has one of each.

**Seeds.** Each seed keeps its own place among the nodes, in the order given, even where a node is a
seed twice: both places then take edges, by draws of their own, and a node that is found again is
the first of them.

**Order.** Nodes: seeds, then the order of discovery. Edges: hop by hop, by target, then in the
order drawn; all edges of a node in the order of the graph.

Nothing here knows of PyG or torch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import BatchTooLargeError, SelectionError
from . import csc_kernels, kernels
from .csc import CSCGraph, as_ids
from .draws import NONE, Frontier
from .numbering import Numbering
from .relations import BarredEdges, Relation, Sample, Times, check_fanouts, check_seeds, narrowed

__all__ = ["MAX_EDGES", "TABLE_BYTES", "Sampling", "Subgraph", "sample_neighbors"]

I64 = npt.NDArray[np.int64]
Barred = Sequence[BarredEdges | None]

Subgraph = Literal["directional", "bidirectional", "induced"]

MAX_EDGES = 100_000_000
"""Edges of a batch by default: 2.4 GB."""

TABLE_BYTES = 1 << 30
"""Memory up to which nodes are numbered by a table, by default."""

_MASK = (1 << 64) - 1


class _Edges:
    """The edges of one kind, as they grow."""

    def __init__(self) -> None:
        self.row = self.col = self.edge = NONE
        self.counts: list[int] = []

    def extend(self, count: int) -> tuple[I64, I64, I64]:
        """Make room for so many more; return it."""
        done = self.edge.size
        for name in ("row", "col", "edge"):
            grown = np.empty(done + count, np.int64)
            grown[:done] = getattr(self, name)
            setattr(self, name, grown)
        self.counts.append(count)
        return self.row[done:], self.col[done:], self.edge[done:]


class Sampling:
    """Samples batches of a graph of any number of kinds.

    Parameters
    ----------
    relations : sequence of Relation
    num_nodes : sequence of int
        Nodes of each kind.
    replace : bool
        A node may take an edge more than once.
    disjoint : bool
        Each seed has a subgraph of its own; needed where edges have times.
    subgraph : {'directional', 'bidirectional', 'induced'}
        The edges drawn; these and their reverses, once each (of one kind of nodes); or all edges
        among the nodes that were found.
    max_edges : int
        Edges that a batch may have.
    table_bytes : int
        Memory up to which nodes are numbered by a table.
    kinds : sequence of str, optional
        Names of the kinds of nodes, for messages.

    Notes
    -----
    Threads may share it: each has tables of its own while it samples. They are kept for later
    batches, but not when it is pickled.
    """

    def __init__(
        self,
        relations: Sequence[Relation],
        num_nodes: Sequence[int],
        *,
        replace: bool = False,
        disjoint: bool = False,
        subgraph: Subgraph = "directional",
        max_edges: int = MAX_EDGES,
        table_bytes: int = TABLE_BYTES,
        kinds: Sequence[str] = (),
    ) -> None:
        self.relations, self.num_nodes = tuple(relations), tuple(num_nodes)
        self.replace, self.disjoint, self.subgraph = replace, disjoint, subgraph
        self.max_edges, self.table_bytes = max_edges, table_bytes
        self.kinds = tuple(kinds)
        self._hops = max((len(r.fanouts) for r in self.relations), default=0)
        self._idle: list[list[Numbering]] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_idle": []}

    def sample(
        self,
        seeds: Sequence[I64],
        key: int,
        *,
        seed_times: Times | None = None,
        barred: Barred | None = None,
    ) -> Sample:
        """Sample the neighbourhoods of seeds.

        Parameters
        ----------
        seeds : sequence of int64 arrays
            By kind of nodes. Their subgraphs, where disjoint, are numbered in this order.
        key : int
            What the draws are keyed by; see `keys`.
        seed_times : array, shape (number of seeds,), optional
            Needed where edges have times.
        barred : sequence of BarredEdges or None, optional
            By kind of edges: those that may not be taken.

        Raises
        ------
        SelectionError
            Where a seed is not a node.
        BatchTooLargeError
            Where there would be more than `max_edges` edges.
        """
        names = [f" of kind '{kind}'" for kind in self.kinds] or [""] * len(seeds)
        for some, below, name in zip(seeds, self.num_nodes, names, strict=True):
            check_seeds(some, below, name)
        try:
            numberings = self._idle.pop()
        except IndexError:
            numberings = [self._numbering(n) for n in self.num_nodes]
        try:
            return _Batch(self, numberings, key, seed_times, barred).sample(seeds)
        finally:
            self._idle.append(numberings)

    def compile(self) -> None:
        """Compile, or load, all that a batch takes: before a fork, so that workers need not."""
        relations = [replace(r, fanouts=(1,)) for r in self.relations]
        short = copy.copy(self)
        short.relations, short._hops = tuple(relations), 1
        for relation in relations:
            if relation.graph.num_edges == 0:
                continue
            seeds = [NONE] * len(self.num_nodes)
            seeds[relation.target] = np.searchsorted(relation.graph.colptr, [0], "right") - 1
            late = None if relation.times is None else relation.times.latest()
            short.sample(seeds, 0, seed_times=late)

    def _numbering(self, num_nodes: int) -> Numbering:
        hashed = self.disjoint or 8 * num_nodes > self.table_bytes
        return Numbering(num_nodes, hashed=hashed, disjoint=self.disjoint)


class _Batch:
    """One batch as it is sampled."""

    def __init__(
        self,
        of: Sampling,
        numberings: list[Numbering],
        key: int,
        seed_times: Times | None,
        barred: Barred | None,
    ) -> None:
        self._of, self._numberings, self._key = of, numberings, key
        self._seed_times = seed_times
        self._barred = [None] * len(of.relations) if barred is None else barred
        self._edges = [_Edges() for _ in of.relations]

    def sample(self, seeds: Sequence[I64]) -> Sample:
        numberings = self._numberings
        stops = np.cumsum([0, *(s.size for s in seeds)])
        slots = [np.arange(a, b) for a, b in itertools.pairwise(stops)]
        again = [n.begin(s, p) for n, s, p in zip(numberings, seeds, slots, strict=True)]
        begins, ends = [0] * len(numberings), [n.count for n in numberings]
        found = [[n.count] for n in numberings]
        for hop in range(self._of._hops):
            for number, relation in enumerate(self._of.relations):
                begin, end = begins[relation.target], ends[relation.target]
                apart = NONE if hop else again[relation.target]
                self._expand(number, hop, begin, end, apart)
            begins, ends = ends, [n.count for n in numberings]
            for counts, begin, end in zip(found, begins, ends, strict=True):
                counts.append(end - begin)
        return self._finish(found)

    def _expand(self, number: int, hop: int, begin: int, end: int, again: I64) -> None:
        """Take edges of one kind for the nodes that the hop before discovered."""
        relation = self._of.relations[number]
        targets = self._numberings[relation.target]
        slots = targets.slots[begin:end]
        nodes = targets.nodes[begin:end]
        apart = slots if self._of.disjoint else again
        times, barred = self._seed_times, self._barred[number]
        frontier = narrowed(relation, nodes, apart, begin, hop, times, barred)
        fanout = relation.fanouts[hop] if hop < len(relation.fanouts) else 0
        if relation.last and fanout >= 0:
            kernels.keep_last(frontier.start, frontier.degree, fanout)
        stops = np.empty(nodes.size + 1, np.int64)
        total = int(kernels.plan_takes(frontier.degree, fanout, self._of.replace, stops))
        if total + sum(e.edge.size for e in self._edges) > self._of.max_edges:
            raise _too_large(frontier, stops, fanout, self._of.max_edges)
        source, target, edge = self._edges[number].extend(total)
        if total == 0:
            return
        relation.draws.pick(
            np.uint64((self._key ^ relation.salt) & _MASK),
            frontier,
            stops,
            self._of.replace and fanout >= 0,
            relation.graph.row,
            edge,
            target,
            source,
        )
        self._numberings[relation.source].add(source, slots, target, begin)

    def _finish(self, found: list[list[int]]) -> Sample:
        nodes = [n.nodes.copy() for n in self._numberings]
        slots = [n.slots.copy() for n in self._numberings] if self._of.disjoint else None
        directional, numbers = self._of.subgraph == "directional", range(len(self._edges))
        if directional:
            parts = [(e.row, e.col, e.edge) for e in self._edges]
        elif self._of.subgraph == "induced":
            parts = [self._induced(number) for number in numbers]
        else:
            parts = [self._both_ways(number) for number in numbers]
        row, col, edge = ([part[side] for part in parts] for side in range(3))
        return Sample(
            nodes,
            slots,
            row,
            col,
            edge,
            found if directional else None,
            [e.counts for e in self._edges] if directional else None,
        )

    def _both_ways(self, number: int) -> tuple[I64, I64, I64]:
        """Return the edges that were drawn, of one kind, and their reverses."""
        drawn = self._edges[number]
        count = self._numberings[self._of.relations[number].target].count
        row, col, edge = csc_kernels.both_ways(drawn.row, drawn.col, drawn.edge, count)
        return row, col, edge

    def _induced(self, number: int) -> tuple[I64, I64, I64]:
        """Return all edges of one kind among the nodes of the batch."""
        relation, barred = self._of.relations[number], self._barred[number]
        sources, targets = (self._numberings[k] for k in (relation.source, relation.target))
        # Barred edges are dropped below; their holes would have to be stepped over.
        frontier = narrowed(relation, targets.nodes, targets.slots, 0, 0, self._seed_times, None)
        row, most = relation.graph.row, self._of.max_edges
        made = sources.induced(frontier.start, frontier.degree, targets.slots, row, most)
        if made is None:
            raise BatchTooLargeError(
                f"The {targets.count} nodes of the batch have more than {most} edges among them. "
                "Use fewer seeds, smaller fan-outs, or a larger max_edges_per_batch."
            )
        if barred is None:
            return made
        kept = barred.keep(sources.nodes[made[0]], targets.nodes[made[1]])
        return made[0][kept], made[1][kept], made[2][kept]


def _too_large(frontier: Frontier, ends: I64, fanout: int, most: int) -> BatchTooLargeError:
    takes = np.diff(ends)
    largest = int(takes.argmax())
    return BatchTooLargeError(
        f"The batch would have more than {most} edges: in hop {frontier.hop + 1} its nodes take "
        f"{int(ends[-1])}, node {int(frontier.nodes[largest])} alone {int(takes[largest])} by a "
        f"fan-out of {fanout}. Use fewer seeds, a smaller fan-out, or a larger "
        "max_edges_per_batch."
    )


def sample_neighbors(
    graph: CSCGraph,
    seeds: npt.ArrayLike,
    fanouts: Sequence[int],
    key: int = 0,
    *,
    replace: bool = False,
    disjoint: bool = False,
    subgraph: Subgraph = "directional",
    max_edges: int = MAX_EDGES,
    table_bytes: int = TABLE_BYTES,
) -> Sample:
    """Sample one batch of a graph of one kind, by uniform draws; see `Sampling`.

    Parameters
    ----------
    graph : CSCGraph
    seeds : int32 or int64, shape (n,)
    fanouts : sequence of int
    key : int
        What the draws are keyed by, in the range [0, 2**64).

    Returns
    -------
    Sample
        Of one kind of nodes and of edges.
    """
    if graph.num_sources != graph.num_nodes:
        raise SelectionError(
            f"A graph that leads from {graph.num_sources} nodes to {graph.num_nodes} others is of "
            "two kinds of nodes: sample it as a heterogeneous graph."
        )
    sampling = Sampling(
        [Relation(graph, check_fanouts(fanouts))],
        [graph.num_nodes],
        replace=replace,
        disjoint=disjoint,
        subgraph=subgraph,
        max_edges=max_edges,
        table_bytes=table_bytes,
    )
    return sampling.sample([as_ids(seeds, "seeds").astype(np.int64, copy=False)], key)
