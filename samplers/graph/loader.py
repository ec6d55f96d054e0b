"""The seed batches of a plan, sampled and with their features, for PyTorch Geometric.

    >>> graph = open_graph("graph/")
    >>> loader = graph_loader("plan/", graph, {"x": x, "y": y}, fanouts=[15, 10], num_workers=2)
    >>> for batch in loader:                    # as NeighborLoader's: x, edge_index, n_id, …
    ...     out = model(batch.x, batch.edge_index)[: batch.batch_size]
    ...     weighted_loss(losses(out, batch.y), batch).backward()
    ...     torch.save(loader.state_dict(), "loader.pt")

A batch is a function of the plan, the graph and the sampler's options: its draws are keyed by
(seed, epoch, step, micro-batch). Workers, how they are started, ranks and resuming decide who
samples it when, and change nothing in it.

Workers get seeds and send samples back. Features are gathered here (see `features`); with a GPU
those of one batch ahead, on a stream beside the training's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.utils.data

from ...dataplane.checks import require_int
from ...dataplane.errors import needs_extra
from ...dataplane.series import open_plan
from ..ranks import OnUneven
from ..walk import Epochs, PlanLike
from ..walked import Resumable
from .batches import edge_numbers, heterogeneous, homogeneous, put, with_place
from .features import Gathering, GraphFeatures
from .given import features_of, sampler_of, sizes_of
from .iteration import Iteration, Samples, Tasks, shut_down
from .outputs import HeteroSample
from .planned import PlannedBatch, PlannedSeeds, sample_of

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.data import Data, HeteroData

__all__ = ["GraphLoader", "graph_loader"]


def graph_loader(
    manifest: PlanLike,
    graph: Any,
    features: Any = None,
    fanouts: Any = None,
    *,
    kind: str | None = None,
    dataset: Any = None,
    epochs: Epochs = None,
    rank: int | None = None,
    world_size: int | None = None,
    on_uneven: OnUneven = "error",
    device: str | torch.device | None = None,
    pin_memory: bool | None = None,
    num_workers: int = 0,
    multiprocessing_context: Any = None,
    persistent_workers: bool = False,
    prefetch_factor: int | None = None,
    transform: Callable[[Any], Any] | None = None,
    verify: Literal["header", "all"] = "header",
    storage_options: Mapping[str, Any] | None = None,
    **sampling: Any,
) -> GraphLoader:
    """Return a loader over the seed batches of a plan.

    Parameters
    ----------
    manifest : path, URI, Manifest or Series
        Its rows are nodes, in the order of their ids: a plan of any method over the dataset that
        the graph was made of, or over a table of the nodes.
    graph : CSCGraph, mapping of (source, relation, target) → CSCGraph, Data, HeteroData, path
        Or a sampler, with its own fan-outs and options. A path: that of a graph's folder.
    features : GraphFeatures, mapping, PackedTable, path, Data or HeteroData, optional
        A mapping is what `GraphFeatures` takes as `nodes`; a path is that of a packed table. None:
        those of `graph`, where it is a ``Data`` or ``HeteroData``.
    fanouts : sequence of int, or mapping of (source, relation, target) → sequence of int
        Edges that a node takes in each hop; −1: all of them.
    kind : str, optional
        The kind of the planned nodes, where it is not the name of the dataset's source.
    dataset : path, URI, list, mapping or Dataset, optional
        Where the planned dataset is: checked to be there unchanged. None: not checked.
    epochs : int or iterable of int, optional
        Of one iteration. None: all of the plan; E: those below E; an iterable: these, in order.
    rank, world_size : int, optional
        Those of torch.distributed where it runs, else 0 of 1. Ranks take whole micro-batches.
    on_uneven : {'error', 'pad'}
        What to do where a step's micro-batches cannot be dealt to `world_size` ranks.
    device : str or torch.device, optional
        Where batches go; the host when None. `GraphFeatures` have theirs.
    pin_memory : bool, optional
        Leave them on the host, in pinned memory.
    num_workers : int
        Processes that sample; 0: this one.
    multiprocessing_context, persistent_workers, prefetch_factor
        Those of ``torch.utils.data.DataLoader``.
    transform : callable, optional
        Called with each batch, in this process; may return anything.
    verify : {'header', 'all'}
        ``'all'`` checks every byte of the plan before its first batch.
    storage_options : mapping, optional
        Options of the filesystem of plan, dataset and packed features, for URIs.
    **sampling
        Options of the sampler (`NeighborSampler`, `HeteroNeighborSampler`). The `seed` is the
        plan's unless given.

    Returns
    -------
    GraphLoader

    Raises
    ------
    DatasetChangedError
        Where the plan was made for another graph.
    SelectionError
        Where the plan's rows are not the graph's nodes.
    WorldSizeError, ManifestError, ParameterError
    """
    if features is None and isinstance(graph, Data | HeteroData):
        features = graph
    plan = open_plan(manifest, storage_options=storage_options)
    if sampling.get("seed") is None:
        sampling.pop("seed", None)
    sampler = sampler_of(graph, fanouts, sampling, plan.manifest_for(plan.epochs[0]).seed)
    seeds = PlannedSeeds(
        plan,
        sampler,
        kind=kind,
        dataset=dataset,
        epochs=epochs,
        rank=rank,
        world_size=world_size,
        on_uneven=on_uneven,
        verify=verify,
        storage_options=storage_options,
    )
    return GraphLoader(
        seeds,
        features_of(features, device, pin_memory, storage_options),
        num_workers=num_workers,
        multiprocessing_context=multiprocessing_context,
        persistent_workers=persistent_workers,
        prefetch_factor=prefetch_factor,
        transform=transform,
    )


class GraphLoader(Resumable):
    """Iterates over the seed batches of a plan, sampled; see `graph_loader`, which makes it.

    Parameters
    ----------
    seeds : PlannedSeeds
    features : GraphFeatures
    num_workers, multiprocessing_context, persistent_workers, prefetch_factor, transform
        Those of `graph_loader`.

    Attributes
    ----------
    rank, world_size : int
    epochs : tuple of int
        Of a whole iteration.
    kind : str or None
        Of the seeds.

    Notes
    -----
    One iteration is live at a time: a new one ends the one before it. A fresh ``iter()`` starts at
    the first epoch, or where `load_state_dict` says; see `samplers.walk`. A state is that of a
    `ManifestLoader` of the plan. The graph and the sampler's options are not in it: resume with the
    same.
    """

    def __init__(
        self,
        seeds: PlannedSeeds,
        features: GraphFeatures,
        *,
        num_workers: int = 0,
        multiprocessing_context: Any = None,
        persistent_workers: bool = False,
        prefetch_factor: int | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        require_int("num_workers", num_workers, 0)
        self.seeds, self._features, self._transform = seeds, features, transform
        self._walk, self._tasks = seeds.walk, Tasks()
        sampler = seeds.sampler
        features.check(*sizes_of(sampler))
        self._workers: torch.utils.data.DataLoader[Any] | None = None
        if num_workers:
            sampler.compile()  # before a fork, so that workers need not
            self._workers = torch.utils.data.DataLoader(
                Samples(sampler, seeds.kind),
                batch_size=None,
                sampler=self._tasks,
                num_workers=num_workers,
                multiprocessing_context=multiprocessing_context,
                persistent_workers=persistent_workers,
                prefetch_factor=prefetch_factor,
                # Its own draws, so that an iteration takes none of the training's.
                generator=torch.Generator().manual_seed(0),
            )

    @property
    def kind(self) -> str | None:
        return self.seeds.kind

    @property
    def sampler(self) -> Any:
        return self.seeds.sampler

    @property
    def features(self) -> GraphFeatures:
        return self._features

    def __iter__(self) -> Iterator[Any]:
        self._end_live()
        cursor = self._walk.begin()
        iteration = Iteration(self, cursor)
        self._begin_live(iteration)
        return iteration

    def close(self) -> None:
        """End the live iteration and its workers."""
        self._end_live()
        if self._workers is not None:
            shut_down(self._workers._iterator)  # that of persistent workers
            self._workers._iterator = None

    # --- what an iteration asks -------------------------------------------------------------------

    def samples(self, planned: Iterator[PlannedBatch]) -> Iterator[Any]:
        if self._workers is not None:
            self._tasks.next = planned
            return iter(self._workers)
        return (sample_of(self.sampler, p.nodes, p.key, self.kind) for p in planned)

    def let_go(self, samples: Iterator[Any] | None) -> None:
        """End the workers of an iteration, unless they are to stay."""
        if self._workers is not None and not self._workers.persistent_workers:
            shut_down(samples)

    def start(self, planned: PlannedBatch, sample: Any) -> tuple[Any, Gathering]:
        """Return a batch without its features, and these, started."""
        edges = edge_numbers(sample, self.sampler.edge_permutation)
        several = isinstance(sample, HeteroSample)
        data = heterogeneous(sample, edges) if several else homogeneous(sample, edges)
        data = with_place(data, planned.window, planned.index, self.kind)
        nodes, features = sample.node if several else {None: sample.node}, self._features
        if features.device.type != "cpu" or features.pin_memory:
            nodes = {kind: ids.pin_memory() for kind, ids in nodes.items()}
        seeds = {self.kind: len(planned.nodes)}
        wanted = edges if features.has_edges else None
        gathering = features.start(nodes, wanted, seeds=seeds)
        if features.device.type != "cpu" or features.pin_memory:
            data = data.pin_memory()
        if features.device.type != "cpu":
            data = data.to(features.device, non_blocking=True)
        return data, gathering

    def finish(self, data: Any, gathering: Gathering) -> Any:
        nodes, edges = gathering.wait()
        put(data, nodes)
        put(data, edges)
        return data if self._transform is None else self._transform(data)
