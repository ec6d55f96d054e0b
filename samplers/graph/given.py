"""What `graph_loader` is given, in the one form that it uses: a sampler, and features."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ...dataplane.errors import ParameterError, needs_extra
from ...dataplane.packed import PackedTable
from ...gpu_access.transfer import resolve_device
from .csc import CSCGraph
from .features import GraphFeatures, features_of_data
from .hetero import HeteroNeighborSampler
from .sampler import NeighborSampler
from .tables import packed_features

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.data import Data, HeteroData
    from torch_geometric.sampler import BaseSampler

__all__ = ["features_of", "sampler_of", "sizes_of"]


def sampler_of(graph: Any, fanouts: Any, options: Mapping[str, Any], seed: int) -> Any:
    """Return a sampler of any kind of graph that is taken.

    Parameters
    ----------
    graph, fanouts
        Those of `graph_loader`.
    options : mapping
        Of the sampler.
    seed : int
        Where they name none.

    Raises
    ------
    ParameterError
    """
    if isinstance(graph, BaseSampler):
        if fanouts is not None or options:
            given = "fanouts" if fanouts is not None else sorted(options)[0]
            raise ParameterError(
                f"A sampler was given, and '{given}' beside it: it has its own. Leave that out, or "
                "pass the graph."
            )
        return graph
    if fanouts is None:
        raise ParameterError(
            "The 'fanouts' are missing: the edges that a node takes in each hop, such as [15, 10]."
        )
    options = {"seed": seed, **options}
    if isinstance(graph, str | os.PathLike):
        from .graph_files import open_graph

        graph = open_graph(graph)
    if isinstance(graph, HeteroData):
        return HeteroNeighborSampler.from_data(graph, fanouts, **options)
    if isinstance(graph, Data):
        return NeighborSampler.from_data(graph, fanouts, **options)
    if isinstance(graph, CSCGraph):
        return NeighborSampler.from_graph(graph, fanouts, **options)
    if isinstance(graph, Mapping):
        counted = {"num_nodes": getattr(graph, "num_nodes", None)}
        return HeteroNeighborSampler(graph, fanouts, **{**counted, **options})
    raise ParameterError(
        "The 'graph' must be a CSCGraph, a mapping of them by kind, a Data or HeteroData of PyG, "
        f"the folder of a graph, or a sampler. Got {type(graph).__name__} instead."
    )


def sizes_of(sampler: Any) -> tuple[dict[Any, int], dict[Any, int]]:
    """Return how many nodes and edges of each kind a sampler's graph has."""
    if hasattr(sampler, "graphs"):
        edges = {kind: graph.num_edges for kind, graph in sampler.graphs.items()}
        return dict(sampler.num_nodes), edges
    return {None: sampler.graph.num_nodes}, {None: sampler.graph.num_edges}


def features_of(
    given: Any,
    device: str | torch.device | None,
    pin_memory: bool | None,
    storage_options: Mapping[str, Any] | None = None,
) -> GraphFeatures:
    """Return features of any kind that is taken.

    Raises
    ------
    ParameterError
    """
    if isinstance(given, GraphFeatures):
        place = given.device if device is None else resolve_device(device)
        pinned = given.pin_memory if pin_memory is None else pin_memory
        if (place, pinned) != (given.device, given.pin_memory):
            raise ParameterError(
                f"The features go to {given.device}, pinned: {given.pin_memory}, and the loader "
                f"was asked for {place}, pinned: {pinned}. Say so where the features are made."
            )
        return given
    options: dict[str, Any] = {"device": device or "cpu", "pin_memory": bool(pin_memory)}
    if isinstance(given, Data | HeteroData):
        return features_of_data(given, **options)
    if isinstance(given, str | os.PathLike | PackedTable):
        given = packed_features(given, storage_options=storage_options)
    if given is not None and not isinstance(given, Mapping):
        raise ParameterError(
            "The 'features' must be GraphFeatures, tables by name, a packed table or its path, or "
            f"a Data or HeteroData of PyG. Got {type(given).__name__} instead."
        )
    return GraphFeatures(given or {}, **options)
