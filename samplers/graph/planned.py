"""The batches of a plan as a sampler takes them: seeds, and what the draws are keyed by.

A plan over nodes is dealt to ranks in whole micro-batches, whatever its unit: which neighbours are
sampled depends on all seeds of a batch, so a micro-batch that ranks sliced would be another one on
another number of ranks.

Sampling is deterministic, so what a training will read can be told before it begins:

    >>> accesses = planned_accesses("plan/", sampler)
    >>> table = UnifiedTensor.from_tensor(x)
    >>> cache = HotRowCache.from_plan(table, accesses, capacity_bytes=1 << 30)
    >>> loader = graph_loader("plan/", sampler, {"x": cache, "y": y})
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ...dataplane.checks import require_int
from ...dataplane.errors import ParameterError, needs_extra
from ..ranks import OnUneven, Ranks, resolve_ranks
from ..walk import Cursor, Epochs, PlanLike, PlanWalk
from ..window import Window
from .keys import key_of_step
from .node_rows import Nodes

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.sampler import NodeSamplerInput

__all__ = ["PlannedAccesses", "PlannedBatch", "PlannedSeeds", "planned_accesses", "sample_of"]

I64 = npt.NDArray[np.int64]

_AT_ONCE = 64  # batches whose place in the plan is worked out together


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One batch, before it is sampled.

    Attributes
    ----------
    window : Window
        What the plan says of it and of those beside it.
    index : int
        Which of the window's it is.
    nodes : int64, shape (n,)
    key : int
        Of the draws.
    """

    window: Window
    index: int
    nodes: I64
    key: int


class PlannedSeeds:
    """One rank's seeds of a plan.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    sampler : NeighborSampler or HeteroNeighborSampler
    kind : str, optional
        Of the seeds.
    dataset : path, URI, list, mapping or Dataset, optional
        Checked to be the one that was planned.
    """

    def __init__(
        self,
        plan: PlanLike,
        sampler: Any,
        *,
        kind: str | None = None,
        dataset: Any = None,
        epochs: Epochs = None,
        rank: int | None = None,
        world_size: int | None = None,
        on_uneven: OnUneven = "error",
        verify: Literal["header", "all"] = "header",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if getattr(sampler, "_planned", None) is not None:
            raise ParameterError(
                "The sampler has a plan's offsets, and here the plan itself says where batches "
                "begin: make the sampler without offsets."
            )
        ranks = resolve_ranks(rank, world_size, on_uneven)
        self.walk = PlanWalk(
            plan,
            epochs=epochs,
            ranks=ranks,
            unit="micro",
            verify=verify,
            storage_options=storage_options,
        )
        self.sampler = sampler
        hetero = hasattr(sampler, "graphs")
        num_nodes = sampler.num_nodes if hetero else sampler.graph.num_nodes
        self.nodes = Nodes(num_nodes, kind, getattr(sampler, "fingerprint", None))
        for manifest in self.walk.members():
            self.nodes.bind(manifest)
            if dataset is not None:
                manifest.open_dataset(dataset, storage_options=storage_options)
        self._stopped = threading.Event()

    @property
    def kind(self) -> str | None:
        """The kind of the seeds; None in a graph of one."""
        return self.nodes.kind

    @property
    def ranks(self) -> Ranks:
        return self.walk.ranks

    def batches(self, cursor: Cursor) -> Iterator[PlannedBatch]:
        """Yield the batches of an iteration."""
        windows = self.walk.windows(cursor, lambda _, __: _AT_ONCE, self._stopped)
        seed = self.sampler.options.seed
        for pieces in itertools.chain.from_iterable(windows):
            window = Window(pieces, {})
            nodes, start = self.nodes.of(pieces.manifest, pieces.ids), 0
            for index, size in enumerate(pieces.sizes):
                step, micro = pieces.step.item(index), pieces.micro.item(index)
                key = key_of_step(seed, pieces.record.epoch, step, micro)
                own = np.array(nodes[start : start + size])  # the window may be a map's
                yield PlannedBatch(window, index, own, key)
                start += size


def sample_of(sampler: Any, nodes: I64, key: int, kind: str | None) -> Any:
    """Return the sample of a planned batch."""
    seeds = NodeSamplerInput(None, torch.from_numpy(nodes), input_type=kind)
    return sampler.sample_from_nodes(seeds, key=key)


class PlannedAccesses(Iterable[I64]):
    """The nodes that each batch of a plan reads, sampled anew each time this is iterated over.

    Parameters
    ----------
    seeds : PlannedSeeds
    of : str, optional
        The kind of nodes.
    state : mapping, optional
        Of a loader: the batches from there on.
    every : int
        Of so many batches one.
    """

    def __init__(
        self,
        seeds: PlannedSeeds,
        of: str | None,
        state: Mapping[str, Any] | None = None,
        every: int = 1,
    ) -> None:
        require_int("every", every, 1)
        self._seeds, self._of, self._state, self._every = seeds, of, state, every
        known = seeds.sampler.num_nodes if seeds.kind is not None else None
        if known is not None and of not in known:
            raise ParameterError(
                f"Say which nodes' rows are meant, with of=…: {', '.join(known)}. Got {of!r}."
            )
        self.num_nodes: int = seeds.sampler.graph.num_nodes if known is None else known[of]

    def __iter__(self) -> Iterator[I64]:
        if self._state is not None:
            self._seeds.walk.load(self._state)
        cursor = self._seeds.walk.begin()
        for planned in itertools.islice(self._seeds.batches(cursor), 0, None, self._every):
            made = sample_of(self._seeds.sampler, planned.nodes, planned.key, self._seeds.kind)
            found = made.node
            yield (found if self._seeds.kind is None else found[self._of]).numpy()

    def counts(self) -> I64:
        """Return how many of the batches read each node."""
        counts = np.zeros(self.num_nodes, np.int64)
        for nodes in self:
            counts[nodes if len(nodes) < 2 else np.unique(nodes)] += 1
        return counts


def planned_accesses(
    plan: PlanLike,
    sampler: Any,
    *,
    kind: str | None = None,
    of: str | None = None,
    epochs: Epochs = None,
    rank: int | None = None,
    world_size: int | None = None,
    on_uneven: OnUneven = "error",
    state: Mapping[str, Any] | None = None,
    every: int = 1,
    storage_options: Mapping[str, Any] | None = None,
) -> PlannedAccesses:
    """Tell which nodes' rows a plan reads, batch by batch, before anything is trained.

    It costs the sampling of the epochs asked for, once for each use. Where that is too much, a few
    batches tell about as well which rows are read most: ``every=20``.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    sampler : NeighborSampler or HeteroNeighborSampler
        The one that the loader has.
    kind, epochs, rank, world_size, on_uneven, storage_options
        Those of the loader.
    of : str, optional
        The kind of nodes whose rows are meant; the seeds' by default.
    state : mapping, optional
        Of a loader that is resumed: batches from there on.
    every : int
        Of so many batches one. Not for `HotRowCache.from_plan`, which wants them all.

    Returns
    -------
    PlannedAccesses
        An iterable of arrays of nodes, for `HotRowCache.from_plan`; its ``counts()`` are for
        `HotRowCache.from_counts`.

    Raises
    ------
    DatasetChangedError, SelectionError
        Where the plan is not of this graph.
    """
    seeds = PlannedSeeds(
        plan,
        sampler,
        kind=kind,
        epochs=epochs,
        rank=rank,
        world_size=world_size,
        on_uneven=on_uneven,
        storage_options=storage_options,
    )
    return PlannedAccesses(seeds, seeds.kind if of is None else of, state, every)
