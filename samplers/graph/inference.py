"""Full-graph inference, layer by layer: one layer for all nodes, then the next.

    >>> out = layerwise_inference(model.convs, graph, features, activation=torch.relu)

Sampling is for training. To infer all nodes batch by batch would compute a node's first layer once
for each batch that has it within reach; layer by layer it is computed once (GraphSAGE's and PyG's
own ``inference`` do so, too). A layer runs over *blocks*: some consecutive nodes with all of their
edges, and the sources of these. What it gives goes to a file that the next layer maps, so memory
takes one block, whatever the graph. Results equal those of the whole graph up to the rounding of
sums.

A layer is called ``layer((x, x_target), edge_index)``, as PyG's convolutions take two sides: `x`
has the rows of the block's nodes and then of other sources, `x_target` those of its nodes. A layer
that sees more of a source than its row cannot be run so. Of those that weigh edges by the degrees
of both ends, ``GCNConv`` is known here: its weights are made of the whole graph's degrees.
"""

from __future__ import annotations

import copy
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ...dataplane.errors import BatchTooLargeError, ParameterError
from .csc import CSCGraph, as_numpy
from .inference_rows import fill, gathered, reader, release, write_rows
from .relations import Relation
from .sampling import Sampling

__all__ = ["Block", "blocks_of", "layerwise_inference"]

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Layer: TypeAlias = Callable[..., torch.Tensor]

_CHUNK = 1 << 20  # edges that are counted at a time
_BLOCK_BYTES = 1 << 30  # of messages, with which the edges of a block are limited by default
_DEGREES = frozenset(
    {
        "APPNP",
        "ARMAConv",
        "ChebConv",
        "ClusterGCNConv",
        "FAConv",
        "GCN2Conv",
        "LGConv",
        "LabelPropagation",
        "SGConv",
        "SSGConv",
        "TAGConv",
    }
)  # which sum over more than a block, or weigh by the sources' degrees


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive nodes with all of their edges.

    Attributes
    ----------
    first, stop : int
        The nodes.
    nodes : int64, shape (n,)
        These, then the other sources of their edges.
    row, col, edge : int64, shape (e,)
        Local numbers of source and target; positions in the graph.
    """

    first: int
    stop: int
    nodes: I64
    row: I64
    col: I64
    edge: I64

    @property
    def size(self) -> int:
        return self.stop - self.first


def layerwise_inference(
    layers: Sequence[Layer],
    graph: CSCGraph,
    features: Any,
    *,
    out: str | os.PathLike[str] | npt.NDArray[Any] | None = None,
    activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
    edge_weight: Any = None,
    batch_nodes: int = 16_384,
    max_edges: int | None = None,
    device: Any = None,
    folder: str | os.PathLike[str] | None = None,
) -> npt.NDArray[Any]:
    """Run layers over all nodes of a graph.

    Parameters
    ----------
    layers : sequence of callable
        Convolutions of PyG, such as ``model.convs``, or ``f((x, x_target), edge_index)`` → rows of
        the targets. Modules are put into evaluation mode meanwhile.
    graph : CSCGraph
        Of one kind of nodes.
    features : array or tensor, shape (N, d), or callable
        May be mapped; a callable takes node ids, int64, and gives their rows.
    out : path or array, optional
        A ``.npy`` file to make, whole or not at all; or an array of the right shape. None: an array
        in memory is returned.
    activation : callable, optional
        Between layers.
    edge_weight : array, shape (E,), optional
        By the caller's edges; layers get it as ``edge_weight``.
    batch_nodes : int
        Nodes of a block at most.
    max_edges : int, optional
        Edges of a block at most. None: as many as a GiB holds rows of.
    device : optional
        Where blocks are computed; the layers must be there.
    folder : path, optional
        For the rows between layers. None: the system's folder for temporary files.

    Returns
    -------
    array, shape (N, d'); mapped where `out` is a path

    Raises
    ------
    BatchTooLargeError
        Where one node has more than `max_edges` edges.
    ParameterError
        Where a layer cannot be run by blocks, or shapes do not fit.
    NoRoomError, StorageError
        Where the rows between layers cannot be written.
    """
    steps = list(layers)
    _check(steps, graph, batch_nodes, max_edges)
    weight = None if edge_weight is None else _weights(graph, edge_weight, steps)
    place = torch.device("cpu" if device is None else device)
    read = reader(features, graph.num_nodes)
    with ExitStack() as stack:
        home = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="batchloom-", dir=folder))
        )
        stack.enter_context(_evaluating(steps))
        stack.enter_context(torch.no_grad())
        made: npt.NDArray[Any] | None = None
        for number, layer in enumerate(steps):
            last = number == len(steps) - 1
            run = _runner(layer, graph, weight)
            parts = _rows(run, graph, read, batch_nodes, max_edges, place)
            if activation is not None and not last:
                parts = map(activation, parts)
            rows = (part.detach().cpu().numpy() for part in parts)
            if last and isinstance(out, np.ndarray):
                made = fill(out, rows)
            elif last and out is None:
                made = gathered(rows, graph.num_nodes)
            else:
                # The last one's is a path: arrays and None were dealt with.
                target = Path(os.fspath(out)) if last else home / f"layer-{number}.npy"  # type: ignore[arg-type]
                made = write_rows(target, rows, graph.num_nodes)
                (home / f"layer-{number - 1}.npy").unlink(missing_ok=True)
            read = reader(made, graph.num_nodes)
    assert made is not None
    return made


def blocks_of(graph: CSCGraph, batch_nodes: int, max_edges: int) -> Iterator[Block]:
    """Yield all nodes of a graph, block by block.

    Raises
    ------
    BatchTooLargeError
        Where one node has more than `max_edges` edges.
    """
    relation = Relation(graph, (-1,))
    sampling = Sampling([relation], [graph.num_nodes], max_edges=max_edges)
    first = 0
    while first < graph.num_nodes:
        begin = int(graph.colptr[first])
        fits = graph.colptr[first + 1 : first + 1 + batch_nodes]
        count = int(np.searchsorted(fits, begin + max_edges, "right"))
        if count == 0:
            raise BatchTooLargeError(
                f"Node {first} has {int(fits[0]) - begin:,} edges into it, and a block of "
                f"inference may have {max_edges:,}. Set max_edges to at least as many; they are "
                "held in memory with a row of features each."
            )
        made = sampling.sample([np.arange(first, first + count)], 0)
        yield Block(first, first + count, made.nodes[0], made.row[0], made.col[0], made.edge[0])
        release(graph.row)
        release(graph.colptr)
        first += count


# --- what is checked ------------------------------------------------------------------------------


def _check(
    layers: Sequence[Layer], graph: CSCGraph, batch_nodes: int, max_edges: int | None
) -> None:
    if not layers:
        raise ParameterError("Inference needs at least one layer.")
    for name, value in (("batch_nodes", batch_nodes), ("max_edges", max_edges)):
        if value is not None and value < 1:
            raise ParameterError(
                f"The '{name}' of inference must be an int in the range [1, inf). Got {value}."
            )
    if graph.num_sources != graph.num_nodes:
        raise ParameterError(
            f"The graph leads from {graph.num_sources} nodes to {graph.num_nodes} others; "
            "layer by layer a graph of one kind of nodes is inferred."
        )
    if graph.num_nodes == 0:
        raise ParameterError("The graph has no nodes; there is nothing to infer.")
    for layer in layers:
        name = type(layer).__name__
        if name in _DEGREES:
            raise ParameterError(
                f"{name} looks at more of a source than its row, and cannot be run by blocks. Run "
                "the whole graph in one piece, or use GCNConv or SAGEConv."
            )
        if getattr(layer, "flow", "source_to_target") != "source_to_target":
            raise ParameterError(
                f"{name} has flow='{getattr(layer, 'flow', '')}': blocks hold the edges into their "
                "nodes. Reverse the graph, and use flow='source_to_target'."
            )


def _weights(graph: CSCGraph, values: Any, layers: Sequence[Layer]) -> F32:
    given = as_numpy(values)
    if given.shape != (graph.num_edges,):
        raise ParameterError(
            f"The 'edge_weight' is one number for each of the {graph.num_edges} edges. Got shape "
            f"{given.shape}."
        )
    for layer in layers:
        found = inspect.signature(getattr(layer, "forward", layer)).parameters
        if "edge_weight" not in found:
            raise ParameterError(f"{type(layer).__name__} takes no 'edge_weight': leave it out.")
    return graph.by_position(given).astype(np.float32, copy=False)


@contextmanager
def _evaluating(layers: Sequence[Any]) -> Iterator[None]:
    modules = [m for m in layers if isinstance(m, torch.nn.Module)]
    before = [{m: m.training for m in layer.modules()} for layer in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for states in before:
            for module, training in states.items():
                module.training = training


# --- running a layer -----------------------------------------------------------------------------


def _rows(
    run: Callable[[Block, torch.Tensor], torch.Tensor],
    graph: CSCGraph,
    read: Callable[[I64], torch.Tensor],
    batch_nodes: int,
    max_edges: int | None,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Yield what a layer gives, block by block."""
    most = max_edges
    if most is None:
        width = read(np.zeros(min(1, graph.num_nodes), np.int64)).shape[-1]
        most = max(1, _BLOCK_BYTES // (4 * max(1, width)))
    for block in blocks_of(graph, batch_nodes, most):
        made = run(block, read(block.nodes).to(device))
        if made.shape[0] != block.size:
            raise ParameterError(
                f"A layer gave {made.shape[0]} rows for a block of {block.size} nodes: it gives "
                "one for each row of x_target."
            )
        yield made


def _runner(
    layer: Layer, graph: CSCGraph, weight: F32 | None
) -> Callable[[Block, torch.Tensor], torch.Tensor]:
    """Return what runs a layer on a block and the rows of its nodes."""
    if type(layer).__name__ == "GCNConv" and getattr(layer, "normalize", False):
        return _gcn_runner(layer, graph, weight)
    takes_pairs = type(layer).__name__ != "GCNConv"

    def run(block: Block, x: torch.Tensor) -> torch.Tensor:
        edges = torch.from_numpy(np.stack([block.row, block.col])).to(x.device)
        more = {}
        if weight is not None:
            more["edge_weight"] = torch.from_numpy(weight[block.edge]).to(x.device)
        if takes_pairs:
            return layer((x, x[: block.size]), edges, **more)
        return layer(x, edges, **more)[: block.size]

    return run


# --- GCN ------------------------------------------------------------------------------------------


def _gcn_runner(
    layer: Any, graph: CSCGraph, weight: F32 | None
) -> Callable[[Block, torch.Tensor], torch.Tensor]:
    """Return what runs a ``GCNConv``, with weights of the whole graph's degrees.

    As in its ``gcn_norm``: an edge from u to v weighs w / √(d(u) d(v)), where d is the sum of the
    weights into a node; with `add_self_loops` each node has exactly one loop, of weight 1, or 2
    where it is `improved` and edges have weights, or that of the last loop there is.
    """
    plain = copy.copy(layer)
    plain.normalize = False
    loops = bool(layer.add_self_loops)
    own_loop = 2.0 if layer.improved and weight is not None else 1.0
    degree, loop = _degrees(graph, weight, own_loop if loops else None)
    root = np.zeros(graph.num_nodes, np.float32)
    np.divide(1, np.sqrt(degree), out=root, where=degree > 0, casting="same_kind")

    def run(block: Block, x: torch.Tensor) -> torch.Tensor:
        row, col, edge = block.row, block.col, block.edge
        kept = block.nodes[row] != block.nodes[col] if loops else np.ones(row.size, np.bool_)
        row, col, edge = row[kept], col[kept], edge[kept]
        own = np.ones(row.size, np.float32) if weight is None else weight[edge]
        scale = root[block.nodes]
        value = scale[row] * own * scale[col]
        if loops:
            here = np.arange(block.size)
            row, col = np.append(row, here), np.append(col, here)
            value = np.append(value, scale[here] ** 2 * loop[block.first : block.stop])
        edges = torch.from_numpy(np.stack([row, col])).to(x.device)
        weights = torch.from_numpy(value.astype(np.float32)).to(x.device, x.dtype)
        made: torch.Tensor = plain(x, edges, weights)
        return made[: block.size]

    return run


def _degrees(
    graph: CSCGraph, weight: F32 | None, own_loop: float | None
) -> tuple[npt.NDArray[np.float64], F32]:
    """Return the sum of weights into each node, and the weight of its loop.

    With `own_loop` loops are replaced by one each; without they are edges as any other.
    """
    degree = np.zeros(graph.num_nodes)
    loop = np.full(graph.num_nodes, own_loop or 0, np.float32)
    for start in range(0, graph.num_edges, _CHUNK):
        stop = min(start + _CHUNK, graph.num_edges)
        places = np.arange(start, stop)
        target = np.searchsorted(graph.colptr, places, "right") - 1
        values = np.ones(stop - start) if weight is None else weight[start:stop].astype(float)
        if own_loop is not None:
            is_loop = graph.row[start:stop] == target
            loop[target[is_loop]] = values[is_loop]
            values[is_loop] = 0
        low = int(target[0])
        sums = np.bincount(target - low, values)
        degree[low : low + sums.size] += sums
        release(graph.row)
    return degree + (loop if own_loop is not None else 0), loop
