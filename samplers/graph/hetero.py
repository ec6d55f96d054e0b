"""Neighbour sampling for PyTorch Geometric, of graphs of several kinds of nodes and edges.

    >>> sampler = HeteroNeighborSampler.from_data(data, fanouts=[10, 5])
    >>> loader = NodeLoader(data, sampler, input_nodes=("paper", train_nodes), batch_size=1024)

All of `sampler` holds here too; what differs is named below. In each hop the kinds of edges are
taken in their order, and a kind's draws depend on its name, not on its place among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from ...dataplane.errors import InvalidValueError, ParameterError, nearest, needs_extra
from . import times
from .csc import CSCGraph
from .draws import drawn_by
from .inputs import as_seed_times, batch_key, node_ids
from .keys import PlannedBatches
from .links import Endpoint, Links, bars_of, draw_links
from .options import Bar, SamplerOptions, planned_batches, word_of
from .outputs import HeteroSample, as_tensor, link_metadata
from .pyg_lib import sampling_by
from .relations import BarredEdges, EdgeTimes, Relation, Times, check_fanouts

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.sampler import BaseSampler

if TYPE_CHECKING:
    from typing import Self

    from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling, NodeSamplerInput

__all__ = ["EdgeType", "HeteroNeighborSampler"]

I64 = npt.NDArray[np.int64]
EdgeType = tuple[str, str, str]


class HeteroNeighborSampler(BaseSampler):  # type: ignore[misc]
    """Samples neighbourhoods of nodes and links of several kinds.

    Parameters
    ----------
    graphs : mapping of (source, relation, target) → CSCGraph
    fanouts : sequence of int, or mapping of (source, relation, target) → sequence of int
        Edges that a node takes of each kind in each hop; −1: all of them.
    num_nodes : mapping of str → int, optional
        Nodes of each kind; those that no edge leads to or from need it.
    weights, edge_time : mapping of (source, relation, target) → array, optional
        Of the kinds of edges that have them; others are drawn uniformly, at any time.
    node_time : mapping of str → array, optional
        Of the kinds of nodes that have them.
    reverses : mapping of (source, relation, target) → the same, optional
        Kinds of edges that are each other's reverse, for ``exclude_seed_edges='both'``. Those named
        ``relation`` and ``rev_relation`` are known.
    **options
        `seed`, `replace`, `disjoint`, `subgraph_type`, `offsets`, `temporal_strategy`, `draws`,
        `exclude_seed_edges`, `true_negatives`, `max_edges_per_batch`, `table_bytes`, `backend`:
        those of `sampler.NeighborSampler`. ``'bidirectional'`` is as PyG has it: without edge
        numbers.
    """

    def __init__(
        self,
        graphs: Mapping[EdgeType, CSCGraph],
        fanouts: Sequence[int] | Mapping[EdgeType, Sequence[int]],
        *,
        num_nodes: Mapping[str, int] | None = None,
        weights: Mapping[EdgeType, Any] | None = None,
        node_time: Mapping[str, Any] | None = None,
        edge_time: Mapping[EdgeType, Any] | None = None,
        reverses: Mapping[EdgeType, EdgeType] | None = None,
        offsets: npt.ArrayLike | PlannedBatches | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if node_time and edge_time:
            raise ParameterError("Give node_time or edge_time, not both.")
        temporal = bool(node_time or edge_time)
        options["disjoint"] = bool(options.get("disjoint", False)) or temporal
        options["subgraph_type"] = word_of(options.get("subgraph_type", "directional"))
        self.options = SamplerOptions(**options)
        self.options.check(weighted=bool(weights), temporal=temporal)
        self._planned = planned_batches(offsets)
        self.fingerprint: str | None = getattr(graphs, "fingerprint", None)
        self.num_nodes = _count_nodes(graphs, num_nodes or {})
        self.node_types, self.edge_types = list(self.num_nodes), list(graphs)
        for given in (weights, edge_time, fanouts if isinstance(fanouts, Mapping) else None):
            _check_names(given or {}, self.edge_types, "edges")
        _check_names(node_time or {}, self.node_types, "nodes")
        self._node_time = {
            kind: times.as_times(values, self.num_nodes[kind], f"node_time of '{kind}'")
            for kind, values in (node_time or {}).items()
        }
        self._reverses = {**_known_reverses(self.edge_types), **(reverses or {})}
        self.graphs: dict[EdgeType, CSCGraph] = {}
        self._permutations: dict[EdgeType, torch.Tensor | None] = {}
        self._ends: dict[tuple[str, bool], Endpoint] = {}
        relations = []
        hops = _fanouts_of(fanouts, self.edge_types)
        for kind, graph in graphs.items():
            graph, edge_times = self._in_time(kind, graph, (edge_time or {}).get(kind))
            self.graphs[kind] = graph
            relations.append(
                Relation(
                    graph,
                    hops[kind],
                    source=self.node_types.index(kind[0]),
                    target=self.node_types.index(kind[2]),
                    draws=drawn_by(graph, self.options.draws, (weights or {}).get(kind)),
                    salt=xxhash.xxh3_64_intdigest("__".join(kind).encode()),
                    times=edge_times,
                    last=self.options.temporal_strategy == "last" and edge_times is not None,
                )
            )
        bidirectional = self.options.subgraph_type == "bidirectional"
        self._sampling = sampling_by(
            self.options.backend,
            relations,
            list(self.num_nodes.values()),
            replace=self.options.replace,
            disjoint=self.options.disjoint,
            subgraph="directional" if bidirectional else self.options.subgraph_type,
            max_edges=self.options.max_edges_per_batch,
            table_bytes=self.options.table_bytes,
            kinds=self.node_types,
            edge_kinds=self.edge_types,
        )

    @classmethod
    def from_data(
        cls, data: Any, fanouts: Sequence[int] | Mapping[EdgeType, Sequence[int]], **options: Any
    ) -> Self:
        """Make a sampler of a PyG ``HeteroData``.

        `weights`, `node_time` and `edge_time` may be the name of an attribute of it.
        """
        graphs = {}
        for kind in data.edge_types:
            graphs[kind] = CSCGraph.from_edge_index(
                data[kind].edge_index,
                int(data[kind[2]].num_nodes),
                num_sources=int(data[kind[0]].num_nodes),
            )
        for name in ("weights", "node_time", "edge_time"):
            if isinstance(options.get(name), str):
                options[name] = data.collect(options[name])
        num_nodes = {kind: int(data[kind].num_nodes) for kind in data.node_types}
        return cls(graphs, fanouts, **{"num_nodes": num_nodes, **options})

    def _in_time(
        self, kind: EdgeType, graph: CSCGraph, edge_time: Any
    ) -> tuple[CSCGraph, EdgeTimes | None]:
        """Return a graph as it is sampled, and the times of its edges."""
        if edge_time is not None:
            return times.by_edge(graph, edge_time)
        if kind[0] in self._node_time:
            return times.by_source(graph, self._node_time[kind[0]])
        return graph, None

    @property
    def edge_permutation(self) -> dict[EdgeType, torch.Tensor | None]:
        """By kind: the caller's number of the edge at each position of its graph."""
        if not self._permutations:
            self._permutations = {
                kind: None if graph.permutation is None else as_tensor(graph.permutation)
                for kind, graph in self.graphs.items()
            }
        return self._permutations

    def compile(self) -> None:
        """Compile, or load, all that a batch takes: before a fork, so that workers need not."""
        self._sampling.compile()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_permutations": {}, "_ends": {}}

    # --- nodes ------------------------------------------------------------------------------------

    def sample_from_nodes(
        self, index: NodeSamplerInput, *, key: int | None = None, **_: Any
    ) -> HeteroSample:
        """Sample the neighbourhoods of nodes of one kind, ``index.input_type``."""
        seeds = {self._known_kind(index.input_type): node_ids(index.node)}
        if key is None:
            key = batch_key(self.options.seed, self._planned, index.input_id, node_ids(index.node))
        limits = {}
        if index.time is not None:
            limits[index.input_type] = as_seed_times(index.time, index.node.numel())
        out = self._sample(seeds, key, limits, {})
        out.metadata = (index.input_id, index.time)
        return self._both_ways(out)

    def _sample(
        self,
        seeds: dict[str, I64],
        key: int,
        limits: dict[str, Times],
        barred: dict[EdgeType, BarredEdges | None],
    ) -> HeteroSample:
        none = np.empty(0, np.int64)
        seed_times = None
        if any(r.times is not None for r in self._sampling.relations):
            # In the order of the kinds of nodes, as subgraphs are numbered.
            own = [self._times_of(k, seeds[k], limits) for k in self.node_types if k in seeds]
            seed_times = np.concatenate(own)
        made = self._sampling.sample(
            [seeds.get(kind, none) for kind in self.node_types],
            key,
            seed_times=seed_times,
            barred=[barred.get(kind) for kind in self.edge_types],
        )
        sides = {"row": made.row, "col": made.col, "edge": made.edge}
        parts: dict[str, Any] = {
            name: dict(zip(self.edge_types, map(as_tensor, arrays), strict=True))
            for name, arrays in sides.items()
        }
        parts["node"] = dict(zip(self.node_types, map(as_tensor, made.nodes), strict=True))
        if made.slots is not None:
            parts["batch"] = dict(zip(self.node_types, map(as_tensor, made.slots), strict=True))
        if made.num_nodes is not None and made.num_edges is not None:
            parts["num_sampled_nodes"] = dict(zip(self.node_types, made.num_nodes, strict=True))
            parts["num_sampled_edges"] = dict(zip(self.edge_types, made.num_edges, strict=True))
        return HeteroSample(**parts)

    def _times_of(self, kind: str, seeds: I64, limits: dict[str, Times]) -> Times:
        if kind in limits:
            return limits[kind]
        if kind not in self._node_time:
            raise ParameterError(
                f"Nodes of kind '{kind}' have no time of their own: give each seed one, with "
                "input_time of the loader."
            )
        return self._node_time[kind][seeds]

    def _known_kind(self, kind: Any) -> str:
        if kind not in self.num_nodes:
            raise ParameterError(
                f"The seeds are of kind {kind!r}, and the graph has no such nodes. It has: "
                f"{', '.join(self.node_types)}."
            )
        return str(kind)

    def _both_ways(self, out: HeteroSample) -> HeteroSample:
        if self.options.subgraph_type != "bidirectional":
            return out
        made: HeteroSample = out.to_bidirectional()
        return made

    # --- links ------------------------------------------------------------------------------------

    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> HeteroSample:
        """Sample the neighbourhoods of links of one kind, ``index.input_type``; see `links`."""
        kind = index.input_type
        if kind not in self.graphs:
            raise ParameterError(
                f"The links are of kind {kind!r}, and the graph has no such edges. It has: "
                f"{', '.join(map(str, self.edge_types))}."
            )
        source, target = node_ids(index.row), node_ids(index.col)
        both = np.concatenate([source, target])
        key = batch_key(self.options.seed, self._planned, index.input_id, both)
        time = None if index.time is None else as_seed_times(index.time, source.size)
        if time is not None and not self.options.disjoint:
            raise ParameterError("Links with times need disjoint subgraphs: use disjoint=True.")
        links = draw_links(
            source,
            target,
            time,
            key=key,
            neg_sampling=neg_sampling,
            sources=self._endpoint(kind[0], timed=time is not None),
            targets=self._endpoint(kind[2], timed=time is not None),
            disjoint=self.options.disjoint,
            true_for=self.graphs[kind] if self.options.true_negatives else None,
        )
        seeds, places, limits = self._seeds_of(kind, links)
        out = self._sample(seeds, key, limits, self._bars(kind, source, target))
        if out.batch is not None:
            out.batch = self._owners(kind, links, out.batch)
        disjoint = self.options.disjoint
        out.metadata = link_metadata(index, links, *places, neg_sampling, disjoint)
        return self._both_ways(out)

    def _endpoint(self, kind: str, *, timed: bool) -> Endpoint:
        """Return what an end of negatives is drawn among."""
        if (kind, timed) not in self._ends:
            time = self._node_time.get(kind) if timed else None
            self._ends[kind, timed] = Endpoint(self.num_nodes[kind], time)
        return self._ends[kind, timed]

    def _seeds_of(
        self, kind: EdgeType, links: Links
    ) -> tuple[dict[str, I64], tuple[I64, I64], dict[str, Times]]:
        """Return the seeds of links by kind, where each end is among them, and their times."""
        ends = {kind[0]: [links.source]}
        ends.setdefault(kind[2], []).append(links.target)
        limits: dict[str, Times] = {}
        if links.source_time is not None and links.target_time is not None:
            spans = {kind[0]: [links.source_time]}
            spans.setdefault(kind[2], []).append(links.target_time)
            limits = {end: np.concatenate(parts) for end, parts in spans.items()}
        seeds, places = {}, []
        for end, parts in ends.items():
            nodes = np.concatenate(parts)
            where = np.arange(nodes.size)
            if not self.options.disjoint:
                nodes, where = np.unique(nodes, return_inverse=True)
            seeds[end] = nodes
            places += np.split(where, [parts[0].size])[: len(parts)]
        return seeds, (places[0], places[1]), limits

    def _owners(
        self, kind: EdgeType, links: Links, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the link that each node belongs to, by kind of nodes."""
        ends = {kind[0]: [links.owner(links.source)]}
        ends.setdefault(kind[2], []).append(links.owner(links.target))
        # Subgraphs are numbered in the order of the kinds of nodes.
        parts = [part for k in self.node_types for part in ends.get(k, [])]
        owner = as_tensor(np.concatenate(parts))
        return {k: owner[slots] for k, slots in batch.items()}

    def _bars(self, kind: EdgeType, source: I64, target: I64) -> dict[EdgeType, BarredEdges | None]:
        bar = self.options.exclude_seed_edges
        if bar != "both":
            return {kind: bars_of(source, target, bar)}
        reverse = self._reverses.get(kind)
        if reverse is None and kind[0] != kind[2]:
            raise ParameterError(
                f"The reverse of edges of kind {kind} is not known: name it with reverses=, or use "
                "exclude_seed_edges='forward'."
            )
        inside: Bar = "both" if kind[0] == kind[2] else "forward"
        bars = {kind: bars_of(source, target, inside)}
        if reverse is not None and reverse != kind:
            bars[reverse] = bars_of(target, source, inside)
        return bars


def _count_nodes(graphs: Mapping[EdgeType, CSCGraph], given: Mapping[str, int]) -> dict[str, int]:
    """Return the number of nodes of each kind; `InvalidValueError` where graphs disagree."""
    counts = {kind: int(n) for kind, n in given.items()}
    for kind, graph in graphs.items():
        if not isinstance(kind, tuple) or len(kind) != 3:
            raise ParameterError(
                f"Graphs are named by their kind, (source, relation, target). Got {kind!r} instead."
            )
        for end, count in ((kind[0], graph.num_sources), (kind[2], graph.num_nodes)):
            if counts.setdefault(end, count) != count:
                raise InvalidValueError(
                    f"The graph of {kind} has {count} nodes of kind '{end}', and there are "
                    f"{counts[end]} of them elsewhere. Make all graphs of the same numbers."
                )
    return counts


def _check_names(given: Mapping[Any, Any], known: Sequence[Any], what: str) -> None:
    for name in given:
        if name not in known:
            close = nearest(str(name), map(str, known))
            raise ParameterError(f"The graph has no {what} of kind {name!r}.{close}")


def _fanouts_of(
    fanouts: Sequence[int] | Mapping[EdgeType, Sequence[int]], kinds: Sequence[EdgeType]
) -> dict[EdgeType, tuple[int, ...]]:
    if not isinstance(fanouts, Mapping):
        return dict.fromkeys(kinds, check_fanouts(fanouts))
    missing = [kind for kind in kinds if kind not in fanouts]
    if missing:
        raise ParameterError(
            f"The 'fanouts' name no number for edges of kind {missing[0]}. Give each kind its own, "
            "[0, …] where none are taken, or one list for all."
        )
    made = {kind: check_fanouts(fanouts[kind], f" of {kind}") for kind in kinds}
    if len({len(f) for f in made.values()}) > 1:
        raise ParameterError(f"The 'fanouts' of all kinds are of as many hops. Got {fanouts!r}.")
    return made


def _known_reverses(kinds: Sequence[EdgeType]) -> dict[EdgeType, EdgeType]:
    found = {}
    for source, relation, target in kinds:
        reverse = (target, f"rev_{relation}", source)
        if reverse in kinds:
            found[source, relation, target] = reverse
            found[reverse] = (source, relation, target)
    return found
