"""Batches of links: their nodes as seeds, and links that are none, drawn beside them.

**Negatives** are drawn as PyG's ``NegativeSampling`` says: *binary* pairs of any two nodes, or
*triplets* of other targets for each source. A number's draw is keyed by the batch and the number,
so it depends on nothing else. Where nodes have times, only those are drawn that are not later than
the link: uniformly among these, or by weight among these.

**True negatives**, on request: a pair that the graph or the batch holds as a link is drawn again.

**Order.** As PyG has it: without disjoint subgraphs the seeds are the distinct nodes, ascending;
else they are all sources, then all targets, positives first. Negative j of link i of a triplet is
in place ``i·amount + j`` of the indices, and target ``P + j·P + i`` of P links.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import ParameterError, SelectionError
from ...dataplane.random import Stream, base_key
from .csc import CSCGraph, as_numpy
from .draws import NONE
from .options import Bar
from .relations import BarredEdges, Times

__all__ = ["Endpoint", "Links", "bars_of", "draw_links"]

I64 = npt.NDArray[np.int64]

ATTEMPTS = 100
"""Draws of a negative before it counts as impossible."""

_NO_SUMS: npt.NDArray[np.float64] = np.empty(0, np.float64)


class Endpoint:
    """The nodes that one end of a negative is drawn among.

    Parameters
    ----------
    num_nodes : int
    node_time : int64 or float64, shape (num_nodes,), optional

    Notes
    -----
    Sorts the nodes by time once, and keeps the running sums of the weights that it saw last.
    """

    def __init__(self, num_nodes: int, node_time: Times | None = None) -> None:
        self.num_nodes = num_nodes
        self._order, self._ascending = NONE, node_time
        self._weighed: tuple[Any, int, npt.NDArray[np.float64]] = (None, 0, _NO_SUMS)
        if node_time is not None:
            self._order = np.argsort(node_time, kind="stable").astype(np.int64)
            self._ascending = node_time[self._order]

    def eligible(self, limits: Times | None, count: int) -> I64:
        """Return how many nodes, the earliest first, each of `count` negatives may be."""
        if limits is None or self._ascending is None:
            return np.full(count, self.num_nodes, np.int64)
        return np.searchsorted(self._ascending, limits, "right").astype(np.int64)

    def sums(self, weight: Any) -> npt.NDArray[np.float64]:
        """Return the running sums of weights in the order of the nodes; empty where there are none.

        Raises
        ------
        ParameterError
            Where they are not one a node, or one is negative, or not finite.
        """
        if weight is None:
            return _NO_SUMS
        known, version, sums = self._weighed
        if known is weight and version == getattr(weight, "_version", 0):  # of a tensor
            return sums
        values = as_numpy(weight).astype(np.float64)
        if values.shape != (self.num_nodes,) or not (np.isfinite(values) & (values >= 0)).all():
            raise ParameterError(
                f"The weights of negatives must be {self.num_nodes} finite numbers of at least 0, "
                f"one a node. Got shape {values.shape}."
            )
        sums = np.cumsum(values[self._order] if self._order.size else values)
        self._weighed = (weight, getattr(weight, "_version", 0), sums)
        return sums

    def draw(
        self, key: int, attempt: int, numbers: I64, sums: Any, eligible: I64, out: I64
    ) -> None:
        """Draw the nodes of some numbers."""
        from .link_kernels import draw_nodes

        few = eligible[numbers] == 0
        if not few.any() and sums.size:
            few = sums[eligible[numbers] - 1] <= 0
        if few.any():
            raise SelectionError(
                f"Negative {int(numbers[few][0])} of the batch cannot be drawn: no node is "
                "there at its time, or none of those has a weight. Leave out the earliest links."
            )
        draw_nodes(np.uint64(key), attempt, numbers, self._order, sums, eligible, out)


@dataclass(frozen=True, eq=False)
class Links:
    """The links of a batch, negatives behind the positives.

    Attributes
    ----------
    source, target : int64, shape (s,) and (t,)
    num_pos : int
    num_neg : int
        Negatives of binary sampling, or targets of triplets.
    source_time, target_time : array, or None
        Of each end.
    """

    source: I64
    target: I64
    num_pos: int
    num_neg: int
    source_time: Times | None
    target_time: Times | None

    def owner(self, side: I64) -> I64:
        """Return the positive that each entry of a side belongs to."""
        return np.arange(side.size) % max(self.num_pos, 1)


def draw_links(
    source: I64,
    target: I64,
    time: Times | None,
    *,
    key: int,
    neg_sampling: Any,
    sources: Endpoint,
    targets: Endpoint,
    disjoint: bool,
    true_for: CSCGraph | None,
) -> Links:
    """Return links with their negatives.

    Parameters
    ----------
    source, target : int64, shape (P,)
    time : array, shape (P,), optional
    key : int
        That of the batch.
    neg_sampling : torch_geometric.sampler.NegativeSampling, or None
    sources, targets : Endpoint
    disjoint : bool
        Decides the order of the targets of triplets.
    true_for : CSCGraph, optional
        The graph whose links no negative may be.
    """
    positives = source.size
    if neg_sampling is None or positives == 0:
        return Links(source, target, positives, 0, time, time)
    count = math.ceil(positives * neg_sampling.amount)
    binary = neg_sampling.is_binary()
    amount = 1 if binary else int(neg_sampling.amount)
    # Number n of triplets belongs to link n // amount.
    owner = np.arange(count) % positives if binary else np.arange(count) // amount
    limits = None if time is None else time[owner]
    tails = np.empty(count, np.int64) if binary else source[owner]
    heads = np.empty(count, np.int64)
    ends = [(targets, neg_sampling.dst_weight, heads, 1)]
    if binary:
        ends.append((sources, neg_sampling.src_weight, tails, 0))
    drawn = [
        (end, base_key(key, Stream.NEGATIVES, side), end.sums(w), end.eligible(limits, count), out)
        for end, w, out, side in ends
    ]
    bars = BarredEdges.of(source, target)
    numbers = np.arange(count)
    for attempt in range(ATTEMPTS):
        for end, own, sums, eligible, out in drawn:
            end.draw(own, attempt, numbers, sums, eligible, out)
        if true_for is None:
            break
        numbers = _still_linked(tails, heads, numbers, true_for, bars)
        if numbers.size == 0:
            break
    else:
        raise SelectionError(
            f"No true negative was found for {numbers.size} of {count} in {ATTEMPTS} draws each: "
            f"node {int(tails[numbers[0]])} is linked to almost all others. Use "
            "true_negatives=False, or weights that leave it out."
        )
    if not binary and disjoint:
        heads = heads.reshape(positives, amount).T.ravel()
    source = np.concatenate([source, tails]) if binary else source
    target = np.concatenate([target, heads])
    if time is None:
        return Links(source, target, positives, count, None, None)
    of_target = time[np.arange(target.size) % positives]
    return Links(source, target, positives, count, of_target if binary else time, of_target)


def _still_linked(
    source: I64, target: I64, numbers: I64, graph: CSCGraph, bars: BarredEdges
) -> I64:
    from .link_kernels import still_linked

    linked = np.empty(numbers.size, np.bool_)
    still_linked(source, target, numbers, graph.colptr, graph.row, bars.pairs, linked)
    return numbers[linked]


def bars_of(source: I64, target: I64, bar: Bar) -> BarredEdges | None:
    """Return the edges that a batch of links may not have."""
    if bar == "none" or source.size == 0:
        return None
    if bar == "both":
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
    return BarredEdges.of(source, target)
