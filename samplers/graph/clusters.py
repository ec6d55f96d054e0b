"""Cluster-GCN: batches of whole clusters, with all edges among them.

Source: Chiang et al., "Cluster-GCN: An Efficient Algorithm for Training Deep and Large Graph
Convolutional Networks" (KDD 2019, arXiv 1905.07953), section 3.2, stochastic multiple partitions:

1. The graph is cut into many clusters once (`partitions`).
2. In each epoch the clusters are dealt anew, `clusters_per_batch` of them a batch.
3. A batch is the subgraph that their nodes induce: the edges within clusters, and those between the
   chosen ones. Layers that weigh edges by degrees, such as ``GCNConv``, see the batch's degrees, as
   in the paper.

The order of clusters is that of their keys, a function of (seed, epoch, cluster), so batches are
the same for any number of workers. Nodes stand cluster by cluster, ascending in each; edges by
target, those of a node in the order of the graph.

    >>> partition = metis_partition(graph, 1500)
    >>> loader = ClusterLoader(data, partition, clusters_per_batch=20, seed=0)
    >>> for epoch in range(epochs):
    ...     loader.set_epoch(epoch)
    ...     for batch in loader:  # a ``Data``: x, y, edge_index, n_id, e_id, …
    ...         loss = criterion(model(batch.x, batch.edge_index)[batch.train_mask], …)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data

from ...dataplane.errors import BatchTooLargeError, ParameterError, SelectionError, needs_extra
from ...dataplane.random import Stream, checked_seed, keys
from .csc import CSCGraph
from .outputs import as_tensor
from .partitions import Partition
from .relations import Relation, Sample
from .sampling import MAX_EDGES, Sampling

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.data import Data

__all__ = ["ClusterBatches", "ClusterLoader"]

I64 = npt.NDArray[np.int64]


class ClusterBatches:
    """Which clusters make which batch, and the subgraph of each.

    Parameters
    ----------
    graph : CSCGraph
    partition : Partition
        Of its nodes.
    clusters_per_batch : int
    seed : int
    shuffle : bool
        Clusters are dealt anew in each epoch; else always in their order.
    max_edges : int
        Edges of a batch at most.

    Raises
    ------
    ParameterError
        Where the partition is not the graph's, or a number is out of its range.
    """

    def __init__(
        self,
        graph: CSCGraph,
        partition: Partition,
        clusters_per_batch: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
        max_edges: int = MAX_EDGES,
    ) -> None:
        if partition.labels.size != graph.num_nodes or graph.num_sources != graph.num_nodes:
            raise ParameterError(
                f"The partition is of {partition.labels.size} nodes, and the graph leads from "
                f"{graph.num_sources} nodes to {graph.num_nodes}. Partition this graph, of one "
                "kind of nodes."
            )
        if not 1 <= clusters_per_batch <= max(1, partition.count):
            raise ParameterError(
                f"The 'clusters_per_batch' must be an int in the range [1, {partition.count}]. Got "
                f"{clusters_per_batch}."
            )
        self.graph, self.partition = graph, partition
        self.clusters_per_batch, self.shuffle = clusters_per_batch, shuffle
        self.seed = checked_seed(seed)
        self._sampling = Sampling(
            [Relation(graph, (0,))], [graph.num_nodes], subgraph="induced", max_edges=max_edges
        )

    def __len__(self) -> int:
        return -(-self.partition.count // self.clusters_per_batch)

    def clusters(self, epoch: int) -> list[I64]:
        """Return the clusters of each batch of an epoch; the last one may have fewer."""
        order = np.arange(self.partition.count)
        if self.shuffle:
            order = np.argsort(keys(self.seed, Stream.PART_ORDER, epoch, order), kind="stable")
        size = self.clusters_per_batch
        return [order[a : a + size] for a in range(0, order.size, size)]

    def nodes(self, clusters: Sequence[int] | I64) -> I64:
        """Return the nodes of clusters, one after the other."""
        parts = [self.partition.nodes(int(c)) for c in clusters]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def sample(self, clusters: Sequence[int] | I64) -> Sample:
        """Return the subgraph of some clusters.

        Raises
        ------
        BatchTooLargeError
            Where it has more edges than it may.
        """
        nodes = self.nodes(clusters)
        try:
            return self._sampling.sample([nodes], 0)
        except BatchTooLargeError as error:
            raise BatchTooLargeError(
                f"The {len(clusters)} clusters of the batch, of {nodes.size:,} nodes, have more "
                f"than {self._sampling.max_edges:,} edges among them. Use fewer clusters a batch, "
                "more clusters, or a larger max_edges."
            ) from error


class ClusterLoader:
    """Batches of whole clusters as ``Data`` of PyG.

    Parameters
    ----------
    data : Data
        Its node-level attributes are cut to a batch's nodes, its edge-level ones to its edges; the
        others are handed on.
    partition : Partition
    clusters_per_batch : int
    graph : CSCGraph, optional
        That of the data, where it is there already, such as a mapped one; its `permutation` names
        the columns of ``data.edge_index``. None: it is made of that.
    seed : int
    shuffle : bool
    max_edges : int
    **options
        Of torch's ``DataLoader``: `num_workers`, `pin_memory`, `multiprocessing_context` …

    Notes
    -----
    A batch also has ``n_id`` and ``e_id``, the numbers of its nodes and edges, ``cluster``, which
    it is of each node, ``clusters``, ``epoch`` and ``step``.
    """

    def __init__(
        self,
        data: Any,
        partition: Partition,
        clusters_per_batch: int = 1,
        *,
        graph: CSCGraph | None = None,
        seed: int = 0,
        shuffle: bool = True,
        max_edges: int = MAX_EDGES,
        **options: Any,
    ) -> None:
        for name in ("batch_size", "sampler", "batch_sampler", "dataset", "drop_last"):
            if name in options:
                raise ParameterError(
                    f"The batches of a ClusterLoader are clusters: leave out '{name}', and set "
                    "clusters_per_batch."
                )
        made = CSCGraph.from_data(data) if graph is None else graph
        self.batches = ClusterBatches(
            made, partition, clusters_per_batch, seed=seed, shuffle=shuffle, max_edges=max_edges
        )
        if data.num_nodes is not None and int(data.num_nodes) != made.num_nodes:
            raise ParameterError(
                f"The data has {data.num_nodes} nodes, and the graph {made.num_nodes}. Give the "
                "graph of this data."
            )
        self._steps = _Steps(self.batches)
        self._loader: Any = torch.utils.data.DataLoader(
            _Subgraphs(data, self.batches), batch_size=None, sampler=self._steps, **options
        )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch that is dealt next, and the batch that it begins with."""
        if epoch < 0 or not 0 <= start <= len(self.batches):
            raise SelectionError(
                f"Epochs count from 0, and an epoch has {len(self.batches)} batches. Got epoch "
                f"{epoch}, batch {start}."
            )
        self._steps.epoch, self._steps.start = epoch, start

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


class _Steps(torch.utils.data.Sampler[tuple[int, int, list[int]]]):
    """The batches of an epoch: (epoch, step, clusters)."""

    def __init__(self, batches: ClusterBatches) -> None:
        self._batches = batches
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return len(self._batches) - self.start

    def __iter__(self) -> Iterator[tuple[int, int, list[int]]]:
        for step, clusters in enumerate(self._batches.clusters(self.epoch)):
            if step >= self.start:
                yield self.epoch, step, clusters.tolist()


class _Subgraphs(torch.utils.data.Dataset[Any]):
    """The subgraph of a batch's clusters, with the data's attributes."""

    def __init__(self, data: Any, batches: ClusterBatches) -> None:
        self._data, self._batches = data, batches

    def __getitem__(self, index: tuple[int, int, list[int]]) -> Any:
        epoch, step, clusters = index
        made = self._batches.sample(clusters)
        nodes, edges = as_tensor(made.nodes[0]), as_tensor(made.edge[0])
        permutation = self._batches.graph.permutation
        if permutation is not None:
            edges = as_tensor(permutation[made.edge[0]])
        batch = Data(edge_index=as_tensor(np.stack([made.row[0], made.col[0]])))
        for name, value in self._data.to_dict().items():
            if name in ("edge_index", "num_nodes"):
                continue
            if self._data.is_node_attr(name):
                value = value[nodes]
            elif self._data.is_edge_attr(name):
                value = value[edges]
            batch[name] = value
        batch.num_nodes = nodes.numel()
        batch.n_id, batch.e_id = nodes, edges
        batch.cluster = as_tensor(self._batches.partition.labels[made.nodes[0]].astype(np.int64))
        batch.clusters = torch.tensor(clusters)
        batch.epoch, batch.step = epoch, step
        return batch
