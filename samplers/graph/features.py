"""Features of nodes and edges, gathered where the training runs and nowhere else.

    >>> features = GraphFeatures({"x": np.memmap("x.bin", np.float32, "r", shape=(n, 128)), "y": y})
    >>> loader = graph_loader("plan/", graph, features, fanouts=[15, 10])

Workers sample; the process that trains gathers. So features are in memory once, a GPU reads them
where they lie (`gpu_access.unified`), and no worker ever touches CUDA.

It is a ``FeatureStore`` of PyG as well: ``NodeLoader((features, data), sampler, …,
filter_per_worker=False)`` takes it, where `data` is what holds the edges.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils.data

from ...dataplane.errors import ParameterError, needs_extra
from ...dataplane.schemas import missing_column
from ...gpu_access.gather import GatherFuture
from ...gpu_access.transfer import resolve_device
from .tables import FeatureTable, as_table

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.data import FeatureStore, TensorAttr

__all__ = ["Gathering", "GraphFeatures", "features_of_data"]

Kind = Any
"""A kind of nodes or edges; None in a graph of one."""


class GraphFeatures(FeatureStore):  # type: ignore[misc]
    """Tables of features by name.

    Parameters
    ----------
    nodes : mapping of str → table, or of kind → such a mapping
        A table has a row a node: a tensor on the host or on `device`, an array, a memory map, a
        `UnifiedTensor`, a `HotRowCache`, or a column of a packed table (`packed_features`).
    edges : the same, optional
        A row for each of the caller's edges; by (source, relation, target) where there are kinds.
    seed_only : sequence of str
        Features of nodes that a `graph_loader` gathers for a batch's seeds alone.
    device : str or torch.device
        Where rows go.
    pin_memory : bool
        Rows on the host go to pinned memory, from which copies run beside the training.

    Raises
    ------
    ParameterError
        Where a table is none, or tables of a kind have different numbers of rows.
    """

    def __init__(
        self,
        nodes: Mapping[Any, Any],
        *,
        edges: Mapping[Any, Any] | None = None,
        seed_only: Sequence[str] = ("y",),
        device: str | torch.device = "cpu",
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(seed_only, str):
            raise ParameterError(f"'seed_only' is a list of names. Got {seed_only!r} instead.")
        self.device = resolve_device(device)
        self.pin_memory = pin_memory
        self.seed_only = tuple(seed_only)
        self._pid = os.getpid()
        self._nodes = self._tables(nodes, "nodes")
        self._edges = self._tables(edges or {}, "edges")

    def _tables(self, given: Mapping[Any, Any], what: str) -> dict[Kind, dict[str, FeatureTable]]:
        by_kind = given
        if not given or not all(isinstance(value, Mapping) for value in given.values()):
            by_kind = {None: given}
        made = {}
        for kind, tables in by_kind.items():
            made[kind] = {name: self._table(value, name) for name, value in tables.items()}
            sizes = {name: table.shape[0] for name, table in made[kind].items()}
            if len(set(sizes.values())) > 1:
                of = "" if kind is None else f" of kind {kind!r}"
                raise ParameterError(
                    f"Features of the same {what}{of} must have as many rows. Got "
                    f"{', '.join(f'{name}: {rows:,}' for name, rows in sizes.items())}."
                )
        return made

    def _table(self, value: Any, name: str) -> FeatureTable:
        return as_table(value, name, self.device, pinned=self.pin_memory)

    # --- what a loader asks -----------------------------------------------------------------------

    def start(
        self,
        nodes: Mapping[Kind, torch.Tensor],
        edges: Mapping[Kind, torch.Tensor] | None = None,
        *,
        seeds: Mapping[Kind, int] | None = None,
    ) -> Gathering:
        """Start to gather all features of some nodes and edges.

        Parameters
        ----------
        nodes, edges : mapping of kind → int64 tensor
            On the host.
        seeds : mapping of kind → int, optional
            How many of a kind's nodes, the first ones, are seeds. Given, the features of
            `seed_only` are gathered for these alone, and for no nodes of other kinds.

        Raises
        ------
        ParameterError
            In a worker of a DataLoader, or in any other process than made the features.
        """
        self._check_here()
        started = Gathering()
        for kind, tables in self._nodes.items():
            if kind not in nodes:
                continue
            for name, table in tables.items():
                ids = nodes[kind]
                if seeds is not None and name in self.seed_only:
                    if kind not in seeds:
                        continue
                    ids = ids[: seeds[kind]]
                started.nodes[kind, name] = table.start(ids)
        for kind, ids in (edges or {}).items():
            for name, table in self._edges.get(kind, {}).items():
                started.edges[kind, name] = table.start(ids)
        return started

    def check(self, num_nodes: Mapping[Kind, int], num_edges: Mapping[Kind, int]) -> None:
        """Raise `ParameterError` unless the tables have a row for each node and edge.

        A graph may have fewer edges than its caller numbers.
        """
        for what, given, counts in (
            ("nodes", self._nodes, num_nodes),
            ("edges", self._edges, num_edges),
        ):
            for kind, tables in given.items():
                if tables and kind not in counts:
                    raise ParameterError(
                        f"There are features of {what} of kind {kind!r}, and the graph has none. "
                        f"It has: {', '.join(map(repr, counts))}."
                    )
                for name, table in tables.items():
                    rows, count = table.shape[0], counts[kind]
                    if rows < count or (rows > count and what == "nodes"):
                        raise ParameterError(
                            f"The features '{name}' have {rows:,} rows, and the graph has "
                            f"{count:,} {what}: one row each is needed, in their order."
                        )

    @property
    def has_edges(self) -> bool:
        """Whether there are features of edges."""
        return any(self._edges.values())

    def _check_here(self) -> None:
        if os.getpid() != self._pid or torch.utils.data.get_worker_info() is not None:
            raise ParameterError(
                "Features are gathered in the process that made them, and this is another one, "
                "such as a worker of a DataLoader: use graph_loader, or give PyG's loader "
                "filter_per_worker=False."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker that is spawned gets PyG's loader, and its features with it, and samples only.
        return _elsewhere, ()

    # --- PyG's FeatureStore -----------------------------------------------------------------------

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        if attr.index is not None:
            return False
        self._nodes.setdefault(attr.group_name, {})[attr.attr_name] = self._table(
            tensor, attr.attr_name
        )
        return True

    def _get_tensor(self, attr: TensorAttr) -> torch.Tensor:
        return self._start(attr).wait()

    def _multi_get_tensor(self, attrs: list[TensorAttr]) -> list[torch.Tensor]:
        return [started.wait() for started in [self._start(attr) for attr in attrs]]

    def _start(self, attr: TensorAttr) -> GatherFuture:
        self._check_here()
        tables = self._nodes.get(attr.group_name, {})
        if attr.attr_name not in tables:
            of = "" if attr.group_name is None else f" of kind {attr.group_name!r}"
            raise missing_column(attr.attr_name, list(tables), f"the features{of}")
        table = tables[attr.attr_name]
        ids = attr.index
        if ids is None or isinstance(ids, slice):
            ids = torch.arange(table.shape[0])[slice(None) if ids is None else ids]
        return table.start(torch.as_tensor(ids).to("cpu", torch.int64))

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        return self._nodes.get(attr.group_name, {}).pop(attr.attr_name, None) is not None

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...] | None:
        table = self._nodes.get(attr.group_name, {}).get(attr.attr_name)
        return None if table is None else tuple(table.shape)

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """Return what there is; PyG sets the index of each."""
        self._check_here()
        return [TensorAttr(kind, name) for kind, some in self._nodes.items() for name in some]

    def __repr__(self) -> str:
        names = [f"{name}" for tables in self._nodes.values() for name in tables]
        return f"<GraphFeatures {', '.join(names) or 'none'} to {self.device}>"


class Gathering:
    """Features of a batch that were started, by kind and name."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[Kind, str], GatherFuture] = {}
        self.edges: dict[tuple[Kind, str], GatherFuture] = {}

    def wait(self) -> tuple[dict[tuple[Kind, str], Any], dict[tuple[Kind, str], Any]]:
        """Return the rows of nodes and of edges; the caller's stream waits for them."""
        nodes = {key: future.wait() for key, future in self.nodes.items()}
        return nodes, {key: future.wait() for key, future in self.edges.items()}


def features_of_data(data: Any, **options: Any) -> GraphFeatures:
    """Return the features that a PyG ``Data`` or ``HeteroData`` holds.

    Parameters
    ----------
    data : Data or HeteroData
        What is a tensor or an array with a row a node, or a row an edge.
    **options
        Those of `GraphFeatures`.
    """
    if hasattr(data, "node_types"):
        nodes = {k: _attributes(data[k], "node", data[k].num_nodes) for k in data.node_types}
        edges = {k: _attributes(data[k], "edge", data[k].num_edges) for k in data.edge_types}
        return GraphFeatures(nodes, edges=edges, **options)
    return GraphFeatures(
        _attributes(data, "node", data.num_nodes),
        edges=_attributes(data, "edge", data.num_edges),
        **options,
    )


def _attributes(store: Any, level: str, rows: int) -> dict[str, Any]:
    found = {}
    for name, value in store.to_dict().items():
        if name == "edge_index" or not hasattr(value, "shape") or not len(value.shape):
            continue
        if value.shape[0] == rows and getattr(store, f"is_{level}_attr")(name):
            found[name] = value
    return found


class _Elsewhere(GraphFeatures):
    """What a process has in place of features that stayed in another."""

    def __init__(self) -> None:
        super().__init__({})
        self._pid = -1


def _elsewhere() -> GraphFeatures:
    return _Elsewhere()
