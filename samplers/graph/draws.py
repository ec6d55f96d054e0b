"""Which of a node's edges are taken: the ways to draw them, each over a whole frontier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import InvalidValueError, ParameterError
from . import kernels
from .csc import CSCGraph, Ids
from .sharing import SharesArrays

__all__ = ["Drawn", "Draws", "Frontier", "Labor", "Uniform", "Weighted", "drawn_by"]

I64 = npt.NDArray[np.int64]

Drawn = Literal["uniform", "labor"]

NONE: I64 = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Frontier:
    """The nodes that edges are drawn for in one hop, over one kind of edges.

    Attributes
    ----------
    nodes : int64, shape (n,)
    slots : int64, shape (n,), or empty
        What sets the draws of the same node apart; empty where all are 0.
    start, degree : int64, shape (n,)
        Where the edges of each node begin, and how many may be drawn.
    holes, hole_ends : int64, shape (h,) and (n + 1,), or empty
        Positions among them that may not, ascending for each node.
    first : int
        Local number of the first node.
    hop : int
    """

    nodes: I64
    slots: I64
    start: I64
    degree: I64
    first: int
    hop: int = 0
    holes: I64 = field(default_factory=lambda: NONE)
    hole_ends: I64 = field(default_factory=lambda: NONE)


class Draws(Protocol):
    """A way to draw edges."""

    def pick(
        self,
        key: np.uint64,
        frontier: Frontier,
        ends: I64,
        replace: bool,
        row: Ids,
        edge: I64,
        local: I64,
        source: I64,
    ) -> None:
        """Fill in the positions of the edges taken, the local numbers of their targets, and their
        sources.

        Parameters
        ----------
        key : uint64
        frontier : Frontier
        ends : int64, shape (n + 1,)
            Those of node i go to ``ends[i]`` … ``ends[i + 1]``: as many as there are, or fewer, or
            with replacement any number.
        replace : bool
        row : int32 or int64, shape (E,)
            The source of each edge of the graph.
        edge, local, source : int64, shape (e,)
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Each edge with the same probability."""

    def pick(
        self,
        key: np.uint64,
        frontier: Frontier,
        ends: I64,
        replace: bool,
        row: Ids,
        edge: I64,
        local: I64,
        source: I64,
    ) -> None:
        f = frontier
        kernels.pick_uniform(
            key, f.nodes, f.slots, f.start, f.degree, ends, replace, row, f.first,
            edge, local, source,
        )  # fmt: skip
        if f.holes.size:
            kernels.step_over(f.start, ends, f.holes, f.hole_ends, edge)
            kernels.look_up(row, edge, source)


@dataclass(frozen=True)
class Labor:
    """Each edge with the same probability, the same sources for all nodes; see `race_kernels`."""

    def pick(
        self,
        key: np.uint64,
        frontier: Frontier,
        ends: I64,
        replace: bool,
        row: Ids,
        edge: I64,
        local: I64,
        source: I64,
    ) -> None:
        from .race_kernels import pick_labor

        f = frontier
        pick_labor(
            key, f.nodes, f.hop, f.start, f.degree, ends, row, f.first, f.holes, f.hole_ends,
            edge, local, source,
        )  # fmt: skip


class Weighted(SharesArrays):
    """Each edge with a probability in proportion to its weight; see `race_kernels`.

    Parameters
    ----------
    graph : CSCGraph
    weights : float32 or float64, shape (E,)
        By position, all positive and finite.

    Notes
    -----
    Keeps 8 bytes an edge: the running sums of the weights.
    """

    _arrays: ClassVar[tuple[str, ...]] = ("_weights", "_sums")

    def __init__(self, graph: CSCGraph, weights: npt.NDArray[Any]) -> None:
        from .race_kernels import first_unfit, running_sums

        if weights.dtype not in (np.float32, np.float64) or weights.shape != (graph.num_edges,):
            raise ParameterError(
                f"The weights of a graph of {graph.num_edges} edges must be that many float32 or "
                f"float64. Got {weights.dtype} of shape {weights.shape}."
            )
        place = int(first_unfit(weights))
        if place >= 0:
            edge = place if graph.permutation is None else int(graph.permutation[place])
            raise InvalidValueError(
                f"The weight of an edge must be positive and finite; edge {edge} has "
                f"{weights[place]}. Leave out edges of weight 0, with CSCGraph.keep."
            )
        self._weights = np.ascontiguousarray(weights)
        self._sums = np.empty(graph.num_edges, np.float64)
        running_sums(graph.colptr, self._weights, self._sums)

    def pick(
        self,
        key: np.uint64,
        frontier: Frontier,
        ends: I64,
        replace: bool,
        row: Ids,
        edge: I64,
        local: I64,
        source: I64,
    ) -> None:
        from .race_kernels import pick_weighted

        f = frontier
        pick_weighted(
            key, f.nodes, f.slots, f.start, f.degree, ends, replace, row, f.first, f.holes,
            f.hole_ends, self._weights, self._sums, edge, local, source,
        )  # fmt: skip


def drawn_by(graph: CSCGraph, draws: Drawn, weights: Any) -> Draws:
    """Return how the edges of a graph are drawn, by weights of the caller's edges if there are."""
    if weights is not None:
        return Weighted(graph, graph.by_position(weights))
    return Labor() if draws == "labor" else Uniform()
