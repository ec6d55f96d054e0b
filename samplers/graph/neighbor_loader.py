"""PyG's ``NeighborLoader`` and ``LinkNeighborLoader`` with this sampler: imports are what changes.

    from torch_geometric.loader import NeighborLoader          # before
    from batchloom.samplers.graph import NeighborLoader        # after

They are subclasses of PyG's, which handle their own arguments; here the sampler is made of them.
Beside PyG's arguments they take the sampler's options that PyG has none for: `seed`, `draws`,
`max_edges_per_batch`, `table_bytes`, and of links `exclude_seed_edges`, `true_negatives`.

What differs: weights may be 0, and such an edge is then never there, not even in an induced
subgraph; a batch is the same in every epoch that holds the same inputs in the same order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...dataplane.errors import ParameterError, needs_extra
from .csc import CSCGraph, as_numpy
from .hetero import HeteroNeighborSampler
from .sampler import NeighborSampler

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.data import Data, HeteroData, remote_backend_utils
    from torch_geometric.loader import LinkNeighborLoader as _PyGLinkNeighborLoader
    from torch_geometric.loader import NeighborLoader as _PyGNeighborLoader
    from torch_geometric.sampler.base import NumNeighbors

__all__ = ["LinkNeighborLoader", "NeighborLoader"]

_OWN = ("seed", "draws", "max_edges_per_batch", "table_bytes")
_OF_LINKS = ("exclude_seed_edges", "true_negatives")


class NeighborLoader(_PyGNeighborLoader):  # type: ignore[misc]
    """Mini-batches of nodes with sampled neighbourhoods.

    Parameters
    ----------
    data, num_neighbors, input_nodes, input_time, replace, subgraph_type, disjoint, \
temporal_strategy, time_attr, weight_attr, transform, transform_sampler_output, is_sorted, \
filter_per_worker, neighbor_sampler, directed
        As ``torch_geometric.loader.NeighborLoader`` has them.
    **kwargs
        `seed`, `draws`, `max_edges_per_batch` and `table_bytes` of `sampler.NeighborSampler`; all
        others are of ``torch.utils.data.DataLoader``.

    Raises
    ------
    ParameterError, InvalidValueError
        Of the sampler.
    ValueError
        Where PyG has it.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        input_nodes: Any = None,
        input_time: torch.Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        transform_sampler_output: Callable[[Any], Any] | None = None,
        is_sorted: bool = False,
        filter_per_worker: bool | None = None,
        neighbor_sampler: Any = None,
        directed: bool = True,
        **kwargs: Any,
    ) -> None:
        own = _taken(kwargs, _OWN)
        options = _options(replace, subgraph_type, disjoint, temporal_strategy, directed, own)
        if neighbor_sampler is None:
            neighbor_sampler = _sampler(
                data, num_neighbors, time_attr, weight_attr, is_sorted, options
            )
        super().__init__(
            data,
            num_neighbors,
            input_nodes,
            input_time,
            time_attr=time_attr,
            transform=transform,
            transform_sampler_output=transform_sampler_output,
            filter_per_worker=filter_per_worker,
            neighbor_sampler=neighbor_sampler,
            **kwargs,
        )


class LinkNeighborLoader(_PyGLinkNeighborLoader):  # type: ignore[misc]
    """Mini-batches of links with the sampled neighbourhoods of their ends.

    Parameters
    ----------
    data, num_neighbors, edge_label_index, edge_label, edge_label_time, replace, subgraph_type, \
disjoint, temporal_strategy, neg_sampling, neg_sampling_ratio, time_attr, weight_attr, transform, \
transform_sampler_output, is_sorted, filter_per_worker, neighbor_sampler, directed
        As ``torch_geometric.loader.LinkNeighborLoader`` has them.
    **kwargs
        `seed`, `draws`, `max_edges_per_batch`, `table_bytes`, `exclude_seed_edges` and
        `true_negatives` of `sampler.NeighborSampler`; all others are of
        ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        edge_label_index: Any = None,
        edge_label: torch.Tensor | None = None,
        edge_label_time: torch.Tensor | None = None,
        replace: bool = False,
        subgraph_type: Any = "directional",
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        neg_sampling: Any = None,
        neg_sampling_ratio: float | None = None,
        time_attr: str | None = None,
        weight_attr: str | None = None,
        transform: Callable[[Any], Any] | None = None,
        transform_sampler_output: Callable[[Any], Any] | None = None,
        is_sorted: bool = False,
        filter_per_worker: bool | None = None,
        neighbor_sampler: Any = None,
        directed: bool = True,
        **kwargs: Any,
    ) -> None:
        own = _taken(kwargs, (*_OWN, *_OF_LINKS))
        options = _options(replace, subgraph_type, disjoint, temporal_strategy, directed, own)
        if neighbor_sampler is None:
            neighbor_sampler = _sampler(
                data, num_neighbors, time_attr, weight_attr, is_sorted, options
            )
        super().__init__(
            data,
            num_neighbors,
            edge_label_index,
            edge_label,
            edge_label_time,
            neg_sampling=neg_sampling,
            neg_sampling_ratio=neg_sampling_ratio,
            time_attr=time_attr,
            transform=transform,
            transform_sampler_output=transform_sampler_output,
            filter_per_worker=filter_per_worker,
            neighbor_sampler=neighbor_sampler,
            **kwargs,
        )


def _taken(kwargs: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Take options of the sampler out of those of the loader."""
    return {name: kwargs.pop(name) for name in names if name in kwargs}


def _options(
    replace: bool,
    subgraph_type: Any,
    disjoint: bool,
    temporal_strategy: str,
    directed: bool,
    own: dict[str, Any],
) -> dict[str, Any]:
    """Return options of the sampler."""
    if not directed:
        warnings.warn(
            "The 'directed' argument is deprecated by PyG: use subgraph_type='induced'.",
            stacklevel=3,
        )
        subgraph_type = "induced"
    return {
        "replace": replace,
        "subgraph_type": subgraph_type,
        "disjoint": disjoint,
        "temporal_strategy": temporal_strategy,
        **own,
    }


def _sampler(
    data: Any,
    num_neighbors: Any,
    time_attr: str | None,
    weight_attr: str | None,
    is_sorted: bool,
    options: dict[str, Any],
) -> NeighborSampler | HeteroNeighborSampler:
    """Return the sampler that PyG's arguments describe."""
    if time_attr is None:
        options["temporal_strategy"] = "uniform"  # PyG does not look at it then
    if isinstance(data, HeteroData):
        return _of_several(data, num_neighbors, time_attr, weight_attr, is_sorted, options)
    if isinstance(data, Data):
        return _of_one(data, num_neighbors, time_attr, weight_attr, is_sorted, options)
    return _of_stores(data, num_neighbors, time_attr, weight_attr, options)


def _of_one(
    data: Any, fanouts: Any, time: str | None, weight: str | None, sorted_: bool, options: Any
) -> NeighborSampler:
    graph = CSCGraph.from_edge_index(
        _plain(data.edge_index), int(data.num_nodes), is_sorted=sorted_
    )
    if time is not None:
        if time not in data:
            raise ParameterError(f"The data has no time attribute '{time}'.")
        level = "node_time" if data.is_node_attr(time) else "edge_time"
        options[level] = data[time]
    if weight is not None:
        options["weights"] = _attribute(data, weight)
        graph = _weighted(graph, options["weights"])
    return NeighborSampler.from_graph(graph, _hops(fanouts), **options)


def _of_several(
    data: Any, fanouts: Any, time: str | None, weight: str | None, sorted_: bool, options: Any
) -> HeteroNeighborSampler:
    graphs = {
        kind: CSCGraph.from_edge_index(
            _plain(data[kind].edge_index),
            int(data[kind[2]].num_nodes),
            num_sources=int(data[kind[0]].num_nodes),
            is_sorted=sorted_,
        )
        for kind in data.edge_types
    }
    if time is not None:
        nodes = {k: data[k][time] for k in data.node_types if time in data[k]}
        edges = {k: data[k][time] for k in data.edge_types if time in data[k]}
        if bool(nodes) == bool(edges):
            raise ParameterError(
                f"The time attribute '{time}' must be one of nodes or of edges. It is "
                f"{'of both' if nodes else 'of neither'}."
            )
        options.update({"node_time": nodes} if nodes else {"edge_time": edges})
    if weight is not None:
        weights = {k: data[k][weight] for k in data.edge_types if weight in data[k]}
        graphs |= {kind: _weighted(graphs[kind], values) for kind, values in weights.items()}
        options["weights"] = weights
    num_nodes = {kind: int(data[kind].num_nodes) for kind in data.node_types}
    return HeteroNeighborSampler(
        graphs, _hops(fanouts, data.edge_types), num_nodes=num_nodes, **options
    )


def _of_stores(
    data: Any, fanouts: Any, time: str | None, weight: str | None, options: Any
) -> NeighborSampler | HeteroNeighborSampler:
    """Return a sampler of a (FeatureStore, GraphStore)."""
    if time is not None or weight is not None:
        raise ParameterError(
            "Times and weights of a (FeatureStore, GraphStore) are not known here: make a "
            "NeighborSampler with them, and pass it as neighbor_sampler."
        )
    features, edges = data
    attributes = edges.get_all_edge_attrs()
    row, col, _ = edges.coo()
    if len(attributes) == 1 and attributes[0].edge_type is None:
        (only,) = attributes
        count = max(only.size) if only.size else None
        if isinstance(row, Mapping):
            row, col = next(iter(row.values())), next(iter(col.values()))
        graph = CSCGraph.from_edge_index(torch.stack([row, col]), count)
        return NeighborSampler.from_graph(graph, _hops(fanouts), **options)
    kinds = list(row)
    names = dict.fromkeys(end for kind in kinds for end in (kind[0], kind[2]))
    num_nodes = {n: int(remote_backend_utils.num_nodes(features, edges, n)) for n in names}
    graphs = {
        kind: CSCGraph.from_edge_index(
            torch.stack([row[kind], col[kind]]),
            num_nodes[kind[2]],
            num_sources=num_nodes[kind[0]],
        )
        for kind in kinds
    }
    return HeteroNeighborSampler(graphs, _hops(fanouts, kinds), num_nodes=num_nodes, **options)


def _hops(fanouts: Any, kinds: Any = None) -> Any:
    """Return numbers of neighbours, checked as PyG does."""
    if isinstance(fanouts, NumNeighbors):
        return fanouts.get_values(kinds)
    if isinstance(fanouts, Mapping):
        if kinds is None:
            raise ParameterError(
                "The graph has one kind of edges: 'num_neighbors' is one list of ints."
            )
        return NumNeighbors(dict(fanouts)).get_values(kinds)
    return list(fanouts)


def _plain(edge_index: Any) -> Any:
    """Return an ``edge_index`` without the class that PyG may have given it."""
    if edge_index is None:
        raise ParameterError(
            "The data has no 'edge_index': set data.edge_index to the (2, E) pairs of nodes."
        )
    as_tensor = getattr(edge_index, "as_tensor", None)
    return edge_index if as_tensor is None else as_tensor()


def _attribute(data: Any, name: str) -> Any:
    if name not in data:
        raise ParameterError(f"The data has no attribute '{name}'.")
    return data[name]


def _weighted(graph: CSCGraph, weights: Any) -> CSCGraph:
    """Return the graph of the edges that have a weight, which are those that can be drawn."""
    values = graph.by_position(weights)
    none = as_numpy(values) == 0
    return graph.keep(~none) if none.any() and none.shape == (graph.num_edges,) else graph
