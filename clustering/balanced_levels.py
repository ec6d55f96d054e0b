"""Upper levels of a balanced tree over parts of the rows; the same labels as from all at once.

A node of too many rows for one task is split where its rows are: the direction is learned on a
sample, here, and the cut found from counts that parts add up (`cuts`). Level by level:

1. Once: a *sample*, the rows of the smallest keys, `level_sample_rows` of them; its first rows in
   a node, by keys, are those that the node's direction is learned on when all rows are at hand.
2. A *pass*: each part sends its rows down the tree so far, scores those of nodes that are still
   too large along their directions, and counts digits of the scores. Two passes, as a rule, find
   the score up to which rows go left; where equal scores are cut through, one or two more find up
   to which row id. All nodes of a level share the passes.
3. At the end the *route* names the leaf of each row. The rows of a leaf, taken together, are
   clustered by themselves.

    >>> wanted = level_sample_rows(model, n, most)
    >>> search = LevelSearch(model, n, x[sample], ids[sample], most=most)
    >>> while search.next is not None:
    ...     search.narrow(sum(search.next.count(x, ids) for x, ids in parts))
    >>> leaf_of = search.route.leaves_of(x, ids)
    >>> for number, leaf in enumerate(search.route.leaves):
    ...     here = leaf_of == number
    ...     labels[here] = leaf.first + model.of_node(leaf).labels(x[here], ids[here])

A score is a function of the row and the direction alone, so it is the same in each part; counts
are integers; rows of equal scores are told apart by their ids.

**Size.** The sample is about ``sample_rows`` rows for each node of the last level that is split; a
pass's counts are half a megabyte for each of its nodes, most of them 0 in the first pass. Where
that is too much, let `most` be larger: a leaf's rows can be searched again in the same way, as
those of ``model.of_node(leaf)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.cuts import Cut, CutSearch, TiePass
from ..dataplane.errors import ParameterError, SelectionError
from ..dataplane.sketch import Pass
from .balanced import BalancedKMeans, Node, checked, key_order, prepared

__all__ = ["LevelPass", "LevelSearch", "OpenNode", "Route", "level_sample_rows"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_DEVIATIONS = 8.0  # by which a sample is larger than it would have to be on average
_LAST_ID = np.uint64(2**64 - 1)


def level_sample_rows(model: BalancedKMeans, rows: int, most: int) -> int:
    """Return how many rows must be sampled, so that all nodes of more than `most` can be split.

    Parameters
    ----------
    model : BalancedKMeans
    rows : int
    most : int
        Rows of a leaf at most, unless it is one cluster.
    """
    smallest, waiting = rows, [Node(0, model.clusters(rows), 0, rows)]
    while waiting:
        node = waiting.pop()
        if _large(node, most):
            smallest = min(smallest, node.rows)
            waiting += node.children()
    if smallest <= model.sample_rows:
        return rows
    slack = 1.0 + _DEVIATIONS / math.sqrt(model.sample_rows)
    return min(rows, math.ceil(rows / smallest * model.sample_rows * slack))


def _large(node: Node, most: int) -> bool:
    return node.rows > most and node.clusters > 1


# --- what parts do --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Route:
    """A tree of splits: small, so that tasks are sent it.

    Attributes
    ----------
    metric : str
    leaves : tuple of Node
        In the order of their clusters once the search has ended.
    directions : float64, shape (s, width)
    middles : float64, shape (s,)
    values : float32, shape (s,)
        The last score that goes left.
    ties : uint64, shape (s,)
        The last row id of that score that does.
    children : int64, shape (s, 2)
        Splits, or −1 − leaf.
    """

    metric: str
    leaves: tuple[Node, ...]
    directions: F64
    middles: F64
    values: F32
    ties: U64
    children: I64

    def leaves_of(self, x: npt.ArrayLike, ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
        """Return the leaf of each row, as a place in `leaves`; int32, shape (n,).

        Parameters
        ----------
        x : float, shape (n, d)
        ids : uint64, shape (n,)
        """
        values, names = checked(x, ids)
        rows = prepared(values, names, np.arange(len(values)), self.metric)
        return self._descend(rows, names).astype(np.int32)

    def _descend(self, rows: F32, ids: U64) -> I64:
        from .balanced_kernels import descend

        found = np.zeros(len(rows), np.int64)
        if len(self.children):
            splits = self.directions, self.middles, self.values, self.ties, self.children
            descend(rows, ids, *splits, found)
        return found


@dataclass(frozen=True, eq=False)
class OpenNode:
    """A node that is being split.

    Attributes
    ----------
    leaf : int
        Its place in the route's leaves.
    direction : float64, shape (width,)
    middle : float
    step : Pass or TiePass
        What to count of its scores and row ids.
    """

    leaf: int
    direction: F64
    middle: float
    step: Pass | TiePass

    def scores(self, rows: F32, places: I64) -> F32:
        from .balanced_kernels import project

        out = np.empty(len(places), np.float32)
        project(rows, places, self.direction, self.middle, out)
        return out


@dataclass(frozen=True, eq=False)
class LevelPass:
    """What one pass counts; small, so that tasks are sent it.

    Attributes
    ----------
    route : Route
        The splits above.
    open : tuple of OpenNode
        The nodes whose cuts are not found yet.
    """

    route: Route
    open: tuple[OpenNode, ...]

    @property
    def shape(self) -> tuple[int]:
        """Of the counts: those of all nodes, one after another."""
        return (sum(math.prod(node.step.shape) for node in self.open),)

    def count(self, x: npt.ArrayLike, ids: npt.ArrayLike, *, into: I64 | None = None) -> I64:
        """Count scores of a part's rows.

        Parameters
        ----------
        x : float, shape (n, d)
        ids : uint64, shape (n,)
        into : int64, shape `shape`, optional
            Counts of other rows, to which these are added.

        Returns
        -------
        int64, shape `shape`

        Raises
        ------
        InvalidValueError, SelectionError
        """
        counts = np.zeros(self.shape, np.int64) if into is None else into
        values, names = checked(x, ids)
        route = self.route
        rows = prepared(values, names, np.arange(len(values)), route.metric)
        leaf_of = route._descend(rows, names)
        order = np.argsort(leaf_of, kind="stable")
        bounds = np.searchsorted(leaf_of[order], np.arange(len(route.leaves) + 1))
        start = 0
        for node in self.open:
            stop = start + math.prod(node.step.shape)
            places = order[bounds[node.leaf] : bounds[node.leaf + 1]]
            if len(places):
                mine = counts[start:stop].reshape(node.step.shape)
                node.step.count(node.scores(rows, places), names[places], into=mine)
            start = stop
        return counts


# --- the search -----------------------------------------------------------------------------------


@dataclass(eq=False)
class _Split:
    """A node of the level, and its rows in the sample, in the order of keys."""

    node: Node
    leaf: int
    places: I64
    direction: F64
    middle: float
    search: CutSearch

    def as_open(self) -> OpenNode:
        assert self.search.next is not None  # for the type checker
        return OpenNode(self.leaf, self.direction, self.middle, self.search.next)


class LevelSearch:
    """Splits a balanced tree's nodes until none is larger than allowed.

    Parameters
    ----------
    model : BalancedKMeans
    rows : int
        In all parts.
    x : float, shape (m, d)
        The sample: the m rows of the smallest keys, ``random.choose(m, ids, seed=model.seed,
        stream=Stream.BALANCED)``.
    ids : uint64, shape (m,)
    most : int
        Rows of a leaf at most, unless it is one cluster.

    Attributes
    ----------
    next : LevelPass or None
        What to count next, over all parts, with ``next.count(x, ids)``; None: the route is found.
    route : Route
        The splits so far.

    Raises
    ------
    SelectionError
        Where the sample is too small, or there are fewer rows than clusters.
    """

    def __init__(
        self, model: BalancedKMeans, rows: int, x: npt.ArrayLike, ids: npt.ArrayLike, *, most: int
    ) -> None:
        if most < 1:
            raise ParameterError(f"A leaf's 'most' rows must be at least 1. Got {most} instead.")
        self._model, self._most = model, most
        values, names = checked(x, ids)
        order = key_order(names, model.seed)
        self._rows, self._ids = prepared(values, names, order, model.metric), names[order]
        width = self._rows.shape[1]
        self.route = Route(
            model.metric,
            (Node(0, model.clusters(rows), 0, rows),),
            np.empty((0, width)),
            np.empty(0),
            np.empty(0, np.float32),
            np.empty(0, np.uint64),
            np.empty((0, 2), np.int64),
        )
        self.next: LevelPass | None = None
        self._level: list[_Split] = []
        self._begin([0])

    def narrow(self, counts: I64) -> LevelPass | None:
        """Go on from the counts of a pass, summed over all parts; return `next`."""
        if self.next is None or counts.shape != self.next.shape:
            raise ParameterError("These are not the counts of the pass that comes next.")
        start = 0
        for split in self._level:
            if split.search.next is not None:
                stop = start + math.prod(split.search.next.shape)
                split.search.narrow(counts[start:stop].reshape(split.search.next.shape))
                start = stop
        if all(split.search.next is None for split in self._level):
            self._begin([leaf for split in self._level for leaf in self._cut(split)])
        else:
            self._go_on()
        return self.next

    def _go_on(self) -> None:
        unknown = [split.as_open() for split in self._level if split.search.next is not None]
        self.next = LevelPass(self.route, tuple(unknown)) if unknown else None

    def _begin(self, leaves: list[int]) -> None:
        """Begin a level: learn how its nodes that are too large are split."""
        large = [leaf for leaf in leaves if _large(self.route.leaves[leaf], self._most)]
        reached = self.route._descend(self._rows, self._ids)
        self._level = [self._learn(leaf, np.flatnonzero(reached == leaf)) for leaf in large]
        self._go_on()
        if self.next is None:
            self.route = _in_order(self.route)

    def _learn(self, leaf: int, places: I64) -> _Split:
        from .balanced_kernels import learn

        node, model = self.route.leaves[leaf], self._model
        wanted = min(node.rows, model.sample_rows)
        if len(places) < wanted:
            raise SelectionError(
                f"The sample of {len(self._rows):,} rows holds {len(places):,} of a node of "
                f"{node.rows:,}, whose split is learned on {wanted:,}; give the rows of the "
                "smallest keys, and as many as level_sample_rows says."
            )
        left = node.children()[0].rows
        settings = left, node.rows, model.tol, model.max_iter
        direction, middle = learn(self._rows, places[:wanted], self._ids, *settings)
        return _Split(node, leaf, places, direction, middle, CutSearch(np.float32, left))

    def _cut(self, split: _Split) -> tuple[int, int]:
        """Add a split to the route; return the two new leaves."""
        cut: Cut | None = split.search.cut
        assert cut is not None  # for the type checker
        old, number = self.route, len(self.route.children)
        left, right = split.node.children()
        leaves = list(old.leaves)
        leaves[split.leaf] = left
        leaves.append(right)
        children = np.where(old.children == -1 - split.leaf, number, old.children)
        new = -1 - np.array([[split.leaf, len(leaves) - 1]])
        tie = _LAST_ID if cut.tie is None else np.uint64(cut.tie)
        self.route = Route(
            old.metric,
            tuple(leaves),
            np.concatenate([old.directions, split.direction[None]]),
            np.append(old.middles, split.middle),
            np.append(old.values, np.float32(cut.value)),
            np.append(old.ties, tie),
            np.concatenate([children, new]),
        )
        return split.leaf, len(leaves) - 1


def _in_order(route: Route) -> Route:
    """Number a route's leaves from left to right."""
    order = sorted(range(len(route.leaves)), key=lambda leaf: route.leaves[leaf].first)
    place: Any = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    children = route.children.copy()
    ends = children < 0
    children[ends] = -1 - place[-1 - children[ends]]
    return replace(route, leaves=tuple(route.leaves[leaf] for leaf in order), children=children)
