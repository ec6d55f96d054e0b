"""Neighbour sampling for PyTorch Geometric, of graphs of one kind of nodes and edges.

    >>> sampler = NeighborSampler.from_data(data, fanouts=[15, 10], seed=0)
    >>> loader = NodeLoader(data, sampler, input_nodes=train_nodes, batch_size=1024, shuffle=True)

A batch is a pure function of the graph, the sampler's options and what its draws are keyed by (see
`keys`): the number of workers, threads and ranks changes nothing. What is sampled, and in which
order, is told in `sampling`; where it leaves PyG's own samplers, it is for seeds that are there
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ...dataplane.errors import ParameterError, needs_extra
from . import times
from .csc import CSCGraph
from .draws import drawn_by
from .inputs import as_seed_times, batch_key, node_ids
from .keys import PlannedBatches
from .links import Endpoint, bars_of, draw_links
from .options import Backend, SamplerOptions, planned_batches, word_of
from .outputs import HomogeneousSample, as_tensor, link_metadata
from .pyg_lib import sampling_by
from .relations import BarredEdges, EdgeTimes, Relation, Times, check_fanouts

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.sampler import BaseSampler

if TYPE_CHECKING:
    from typing import Self

    from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NodeSamplerInput

__all__ = ["NeighborSampler"]

I64 = npt.NDArray[np.int64]


class NeighborSampler(BaseSampler):  # type: ignore[misc]
    """Samples neighbourhoods of nodes and links.

    Parameters
    ----------
    colptr : int32 or int64, shape (N + 1,)
    row : int32 or int64, shape (E,)
        The graph, as `csc.CSCGraph` has it; see also `from_graph` and `from_data`.
    fanouts : sequence of int
        Edges that a node takes in each hop; −1: all of them.
    seed : int
    replace : bool
        A node draws each of its edges anew, so that it may take one more than once.
    disjoint : bool
        Each seed has a subgraph of its own; always so where there are times.
    subgraph_type : {'directional', 'bidirectional', 'induced'}
        The edges drawn; these and their reverses, once each; or all edges among the nodes found.
    offsets : int array, shape (m + 1,), or PlannedBatches, optional
        Where the batches of a plan begin in the inputs. Draws are then keyed by the batch's epoch,
        step and micro-batch, else by the numbers of its inputs.
    permutation : int64, shape (E,), optional
        The caller's number of each edge; PyG gets it as ``edge_permutation``.
    weights : float32 or float64, shape (E,), optional
        Edges are drawn in proportion to them. By the caller's edges, as are `edge_time`.
    node_time, edge_time : array, shape (N,) or (E,), optional
        Edges are taken whose source, or which themselves, are not later than the seed.
    temporal_strategy : {'uniform', 'last'}
        Any of these, or the latest.
    draws : {'uniform', 'labor'}
        ``'labor'``: nodes of a hop draw the same sources where they can, so that there are fewer
        of them; see `race_kernels`.
    exclude_seed_edges : {'none', 'forward', 'both'}
        Of links: no edge of the batch joins the nodes of one of its links; nor its reverse.
    true_negatives : bool
        Of links: no negative is an edge of the graph or a link of the batch.
    max_edges_per_batch : int
    table_bytes : int
        Memory up to which nodes are numbered by a table of 8 bytes a node, and not by a hash.
    backend : {'numba', 'pyg-lib'}
        Whose kernels sample: ours, or pyg-lib's where it is installed; see `pyg_lib`.
    check : bool
        Whether every number of the graph is looked at.

    Raises
    ------
    ParameterError
        Where an option is out of its range, or two exclude each other.
    InvalidValueError
        Where the graph is malformed, or a weight is not positive.
    MissingExtraError
        Where pyg-lib is asked for and not installed.
    """

    def __init__(
        self,
        colptr: Any,
        row: Any,
        fanouts: Sequence[int],
        *,
        seed: int = 0,
        replace: bool = False,
        disjoint: bool = False,
        subgraph_type: str = "directional",
        offsets: npt.ArrayLike | PlannedBatches | None = None,
        permutation: Any = None,
        weights: Any = None,
        node_time: Any = None,
        edge_time: Any = None,
        temporal_strategy: str = "uniform",
        draws: str = "uniform",
        exclude_seed_edges: str = "none",
        true_negatives: bool = False,
        max_edges_per_batch: int | None = None,
        table_bytes: int | None = None,
        backend: Backend = "numba",
        check: bool = True,
    ) -> None:
        super().__init__()
        limits = {"max_edges_per_batch": max_edges_per_batch, "table_bytes": table_bytes}
        given: dict[str, Any] = {name: v for name, v in limits.items() if v is not None}
        temporal = node_time is not None or edge_time is not None
        self.options = SamplerOptions(
            seed=seed,
            replace=replace,
            disjoint=disjoint or temporal,
            subgraph_type=word_of(subgraph_type),
            draws=draws,  # type: ignore[arg-type]
            temporal_strategy=temporal_strategy,  # type: ignore[arg-type]
            exclude_seed_edges=exclude_seed_edges,  # type: ignore[arg-type]
            true_negatives=true_negatives,
            backend=backend,
            **given,
        )
        self.options.check(weighted=weights is not None, temporal=temporal)
        if node_time is not None and edge_time is not None:
            raise ParameterError("Give node_time or edge_time, not both.")
        graph = CSCGraph(colptr, row, permutation=permutation, check=check)
        self._planned = planned_batches(offsets)
        self.fingerprint: str | None = None
        self._node_time: Times | None = None
        edge_times: EdgeTimes | None = None
        if node_time is not None:
            self._node_time = times.as_times(node_time, graph.num_nodes, "node_time")
            graph, edge_times = times.by_source(graph, self._node_time)
        elif edge_time is not None:
            graph, edge_times = times.by_edge(graph, edge_time)
        self.graph = graph
        self._permutation: torch.Tensor | None = None
        self._ends: dict[bool, Endpoint] = {}
        relation = Relation(
            graph,
            check_fanouts(fanouts),
            draws=drawn_by(graph, self.options.draws, weights),
            times=edge_times,
            last=self.options.temporal_strategy == "last",
        )
        self._sampling = sampling_by(
            backend,
            [relation],
            [graph.num_nodes],
            replace=replace,
            disjoint=self.options.disjoint,
            subgraph=self.options.subgraph_type,
            max_edges=self.options.max_edges_per_batch,
            table_bytes=self.options.table_bytes,
        )

    @classmethod
    def from_graph(cls, graph: CSCGraph, fanouts: Sequence[int], **options: Any) -> Self:
        """Make a sampler of a graph that was checked already."""
        if graph.num_sources != graph.num_nodes:
            raise ParameterError(
                f"The graph leads from {graph.num_sources} nodes to {graph.num_nodes} others, and "
                "a graph of one kind of nodes to its own. Use HeteroNeighborSampler."
            )
        made = cls(
            graph.colptr,
            graph.row,
            fanouts,
            permutation=graph.permutation,
            **{"check": False, **options},
        )
        made.fingerprint = getattr(graph, "fingerprint", None)
        return made

    @classmethod
    def from_data(cls, data: Any, fanouts: Sequence[int], **options: Any) -> Self:
        """Make a sampler of the ``edge_index`` of a PyG ``Data``.

        `weights`, `node_time` and `edge_time` may be names of attributes of it.
        """
        for name in ("weights", "node_time", "edge_time"):
            if isinstance(options.get(name), str):
                options[name] = data[options[name]]
        return cls.from_graph(CSCGraph.from_data(data), fanouts, **options)

    @property
    def edge_permutation(self) -> torch.Tensor | None:
        """The caller's number of the edge at each position of `graph`."""
        if self._permutation is None and self.graph.permutation is not None:
            self._permutation = as_tensor(self.graph.permutation)
        return self._permutation

    def compile(self) -> None:
        """Compile, or load, all that a batch takes: before a fork, so that workers need not."""
        self._sampling.compile()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_permutation": None, "_ends": {}}

    # --- nodes ------------------------------------------------------------------------------------

    def sample_from_nodes(
        self, index: NodeSamplerInput, *, key: int | None = None, **_: Any
    ) -> HomogeneousSample:
        """Sample the neighbourhoods of nodes.

        Parameters
        ----------
        index : NodeSamplerInput
        key : int, optional
            What the draws are keyed by, of a caller who knows the batch's place in a plan.

        Raises
        ------
        SelectionError
            Where one is no node of the graph, or they are no batch of the plan.
        BatchTooLargeError
        """
        seeds = node_ids(index.node)
        if key is None:
            key = batch_key(self.options.seed, self._planned, index.input_id, seeds)
        limits = None if index.time is None else as_seed_times(index.time, seeds.size)
        out = self._sample(seeds, key, limits, None)
        out.metadata = (index.input_id, index.time)
        return out

    def _sample(
        self, seeds: I64, key: int, limits: Times | None, barred: BarredEdges | None
    ) -> HomogeneousSample:
        if self._sampling.relations[0].times is not None and limits is None:
            if self._node_time is None:
                raise ParameterError(
                    "A graph of edge_time is sampled at a time: give each seed one, with "
                    "input_time of the loader."
                )
            limits = self._node_time[seeds]
        made = self._sampling.sample([seeds], key, seed_times=limits, barred=[barred])
        return HomogeneousSample(
            node=as_tensor(made.nodes[0]),
            row=as_tensor(made.row[0]),
            col=as_tensor(made.col[0]),
            edge=as_tensor(made.edge[0]),
            batch=None if made.slots is None else as_tensor(made.slots[0]),
            num_sampled_nodes=None if made.num_nodes is None else made.num_nodes[0],
            num_sampled_edges=None if made.num_edges is None else made.num_edges[0],
        )

    # --- links ------------------------------------------------------------------------------------

    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> HomogeneousSample:
        """Sample the neighbourhoods of links, and draw negatives; see `links`.

        Raises
        ------
        SelectionError
            As `sample_from_nodes`, and where a negative cannot be drawn.
        """
        source, target = node_ids(index.row), node_ids(index.col)
        both = np.concatenate([source, target])
        key = batch_key(self.options.seed, self._planned, index.input_id, both)
        time = None if index.time is None else as_seed_times(index.time, source.size)
        if time is not None and not self.options.disjoint:
            raise ParameterError("Links with times need disjoint subgraphs: use disjoint=True.")
        end = self._endpoint(timed=time is not None)
        links = draw_links(
            source,
            target,
            time,
            key=key,
            neg_sampling=neg_sampling,
            sources=end,
            targets=end,
            disjoint=self.options.disjoint,
            true_for=self.graph if self.options.true_negatives else None,
        )
        seeds, limits, places = np.concatenate([links.source, links.target]), None, None
        if links.source_time is not None and links.target_time is not None:
            limits = np.concatenate([links.source_time, links.target_time])
        if not self.options.disjoint:
            seeds, places = np.unique(seeds, return_inverse=True)
        out = self._sample(
            seeds, key, limits, bars_of(source, target, self.options.exclude_seed_edges)
        )
        if out.batch is not None:
            owner = np.concatenate([links.owner(links.source), links.owner(links.target)])
            out.batch = as_tensor(owner)[out.batch]
        if places is None:
            places = np.arange(seeds.size)
        ends = (places[: links.source.size], places[links.source.size :])
        out.metadata = link_metadata(index, links, *ends, neg_sampling, self.options.disjoint)
        return out

    def _endpoint(self, *, timed: bool) -> Endpoint:
        """Return what ends of negatives are drawn among."""
        if timed not in self._ends:
            self._ends[timed] = Endpoint(self.graph.num_nodes, self._node_time if timed else None)
        return self._ends[timed]
