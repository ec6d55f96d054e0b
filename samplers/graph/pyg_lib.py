"""Sampling by pyg-lib's kernels, where it is installed and asked for: ``backend="pyg-lib"``.

It is never chosen silently: its draws are others than ours. What it takes is the same otherwise,
and so is the order of what it gives, where all neighbours are taken. Differences:

- Its random numbers are torch's global generator, which is seeded by the batch's key while it
  samples, and is then as it was: batches do not depend on workers here either. But they are
  promised for its version only.
- Seeds that are there twice are refused, unless each has a subgraph of its own: pyg-lib would lead
  edges to wrong nodes.
- It has no induced subgraphs, no edges that are left out, no LABOR, and no weights in time.
- Sources are int64 for it: a graph of int32 is copied, into memory.
- A batch's edges are counted after it was made.

Its operators are called by the names of their arguments, as their schemas have them
(``pyg_lib/csrc/sampler/neighbor.cpp`` of pyg-team/pyg-lib). A graph goes in by targets
(``csc=True``), so rows are sources there too.

pyg-lib is in no package registry; see `ADVICE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...dataplane.errors import (
    BatchTooLargeError,
    MissingExtraError,
    ParameterError,
    SelectionError,
)
from . import csc_kernels
from .draws import Weighted
from .options import Backend
from .outputs import as_tensor
from .relations import Relation, Sample, Times, check_seeds
from .sampling import Barred, Sampling, Subgraph

__all__ = ["ADVICE", "PygLibSampling", "sampling_by"]

I64 = npt.NDArray[np.int64]
EdgeType = tuple[str, str, str]

ADVICE = "pip install pyg-lib -f https://data.pyg.org/whl/torch-{version}.html"


def sampling_by(
    backend: Backend,
    relations: Sequence[Relation],
    num_nodes: Sequence[int],
    *,
    edge_kinds: Sequence[EdgeType] = (),
    **options: Any,
) -> Sampling | PygLibSampling:
    """Return what samples batches, by our own kernels or by pyg-lib's.

    Parameters
    ----------
    backend : {'numba', 'pyg-lib'}
    relations, num_nodes, **options
        As `sampling.Sampling` takes them.
    edge_kinds : sequence of (source, relation, target)
        Of a graph of several kinds.

    Raises
    ------
    MissingExtraError
        Where pyg-lib is wanted and not installed.
    """
    if backend == "numba":
        return Sampling(relations, num_nodes, **options)
    return PygLibSampling(relations, num_nodes, edge_kinds=edge_kinds, **options)


class PygLibSampling:
    """Samples batches as `sampling.Sampling` does, by pyg-lib."""

    def __init__(
        self,
        relations: Sequence[Relation],
        num_nodes: Sequence[int],
        *,
        replace: bool,
        disjoint: bool,
        subgraph: Subgraph,
        max_edges: int,
        table_bytes: int,
        kinds: Sequence[str] = (),
        edge_kinds: Sequence[EdgeType] = (),
    ) -> None:
        _operators()
        self.relations, self.num_nodes = tuple(relations), tuple(num_nodes)
        self.kinds, self.edge_kinds = tuple(kinds), tuple(edge_kinds)
        self._replace, self._disjoint, self._subgraph = replace, disjoint, subgraph
        self.max_edges = max_edges
        self._colptr = [as_tensor(r.graph.colptr) for r in relations]
        self._row = [as_tensor(r.graph.row.astype(np.int64, copy=False)) for r in relations]
        self._weights = [_weights_of(r) for r in relations]
        for r in relations:
            if r.times is not None and r.times.values.dtype.kind == "f":
                raise ParameterError(
                    "pyg-lib takes times as integers, and these are floats: convert them with "
                    ".astype(np.int64), or use backend='numba'."
                )

    def compile(self) -> None:
        """Do nothing: all of it is compiled."""

    def sample(
        self,
        seeds: Sequence[I64],
        key: int,
        *,
        seed_times: Times | None = None,
        barred: Barred | None = None,
    ) -> Sample:
        """Sample the neighbourhoods of seeds; see `sampling.Sampling.sample`."""
        if barred is not None and any(bar is not None for bar in barred):
            raise ParameterError("pyg-lib leaves out no edges: use backend='numba'.")
        names = [f" of kind '{kind}'" for kind in self.kinds] or [""] * len(seeds)
        for some, below, name in zip(seeds, self.num_nodes, names, strict=True):
            check_seeds(some, below, name)
            if not self._disjoint and np.unique(some).size < some.size:
                raise SelectionError(
                    f"A seed{name} is in the batch twice, of which pyg-lib makes wrong edges: use "
                    "backend='numba', or disjoint=True."
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key & ((1 << 63) - 1))
            many = self.edge_kinds
            made = self._several(seeds, seed_times) if many else self._one(seeds[0], seed_times)
        total = sum(e.size for e in made.edge)
        if total > self.max_edges:
            raise BatchTooLargeError(
                f"The batch has {total} edges, and may have {self.max_edges}. Use fewer seeds, "
                "smaller fan-outs, or a larger max_edges_per_batch."
            )
        return made

    # --- one kind ---------------------------------------------------------------------------------

    def _one(self, seeds: I64, seed_times: Times | None) -> Sample:
        relation = self.relations[0]
        by_source, by_edge = _times_of(relation)
        out = _call(
            _operators().neighbor_sample,
            rowptr=self._colptr[0],
            col=self._row[0],
            seed=torch.from_numpy(seeds),
            num_neighbors=list(relation.fanouts),
            node_time=by_source,
            edge_time=by_edge,
            seed_time=None if relation.times is None else _whole(seed_times),
            edge_weight=self._weights[0],
            csc=True,
            replace=self._replace,
            directed=True,
            disjoint=self._disjoint,
            temporal_strategy="last" if relation.last else "uniform",
            return_edge_id=True,
        )
        row, col, edge = (_array(out[i]) for i in (0, 1, 3))
        nodes, slots = self._nodes(out[2])
        counts: Any = [list(out[4])], [list(out[5])]
        if self._subgraph == "bidirectional":
            row, col, edge = csc_kernels.both_ways(row, col, edge, nodes.size)
            counts = None, None
        return Sample(
            [nodes], None if slots is None else [slots], [row], [col], [edge], counts[0], counts[1]
        )

    def _nodes(self, found: torch.Tensor) -> tuple[I64, I64 | None]:
        """Return nodes, and the seeds whose subgraphs they are in."""
        array = _array(found)
        if not self._disjoint:
            return array, None
        pairs = array.reshape(-1, 2)
        return np.ascontiguousarray(pairs[:, 1]), np.ascontiguousarray(pairs[:, 0])

    # --- several kinds ----------------------------------------------------------------------------

    def _several(self, seeds: Sequence[I64], seed_times: Times | None) -> Sample:
        names = ["__".join(kind) for kind in self.edge_kinds]
        timed = any(r.times is not None for r in self.relations)
        by_source: dict[str, torch.Tensor] = {}
        by_edge: dict[str, torch.Tensor] = {}
        for name, kind, relation in zip(names, self.edge_kinds, self.relations, strict=True):
            of_nodes, of_edges = _times_of(relation)
            if of_nodes is not None:
                by_source[kind[0]] = of_nodes
            if of_edges is not None:
                by_edge[name] = of_edges
        # In the order of the kinds of nodes, as subgraphs are numbered.
        given = {k: torch.from_numpy(s) for k, s in zip(self.kinds, seeds, strict=True) if s.size}
        limits = None
        if timed and seed_times is not None:
            parts = torch.split(_whole(seed_times), [s.numel() for s in given.values()])
            limits = dict(zip(given, parts, strict=True))
        weighted = any(w is not None for w in self._weights)
        weights = [
            torch.ones(r.graph.num_edges) if w is None else w
            for w, r in zip(self._weights, self.relations, strict=True)
        ]
        out = _call(
            _operators().hetero_neighbor_sample,
            node_types=list(self.kinds),
            edge_types=list(self.edge_kinds),
            rowptr_dict=dict(zip(names, self._colptr, strict=True)),
            col_dict=dict(zip(names, self._row, strict=True)),
            seed_dict=given,
            num_neighbors_dict={
                n: list(r.fanouts) for n, r in zip(names, self.relations, strict=True)
            },
            node_time_dict=by_source or None,
            edge_time_dict=by_edge or None,
            seed_time_dict=limits,
            edge_weight_dict=dict(zip(names, weights, strict=True)) if weighted else None,
            csc=True,
            replace=self._replace,
            directed=True,
            disjoint=self._disjoint,
            temporal_strategy="last" if any(r.last for r in self.relations) else "uniform",
            return_edge_id=True,
        )
        row, col, edge = ([_array(out[i][n]) for n in names] for i in (0, 1, 3))
        pairs = [self._nodes(out[2][kind]) for kind in self.kinds]
        slots = [s for _, s in pairs if s is not None]
        return Sample(
            [nodes for nodes, _ in pairs],
            slots if self._disjoint else None,
            row,
            col,
            edge,
            [list(out[4][kind]) for kind in self.kinds],
            [list(out[5][n]) for n in names],
        )


def _operators() -> Any:
    """Return pyg-lib's operators; `MissingExtraError` where it is not installed."""
    try:
        import pyg_lib  # type: ignore[import-not-found]  # noqa: F401  # it registers them

        found = torch.ops.pyg
        if hasattr(found, "neighbor_sample") and hasattr(found, "hetero_neighbor_sample"):
            return found
        reason = "this one has no sampler"
    except (ImportError, OSError) as error:
        reason = str(error).split("\n")[0]
    advice = ADVICE.format(version=torch.__version__)
    raise MissingExtraError(
        f"backend='pyg-lib' needs pyg-lib, which is in no package registry ({reason}): {advice}. "
        "Or leave it at backend='numba'."
    )


def _call(operator: Any, **arguments: Any) -> Any:
    """Call an operator by the names of its arguments, of which an older one may lack some."""
    known = [argument.name for argument in operator.default._schema.arguments]
    for name, value in arguments.items():
        if name not in known and value is not None:
            raise ParameterError(
                f"The pyg-lib that is installed takes no '{name}': install a newer one, or use "
                "backend='numba'."
            )
    out = operator(**{name: v for name, v in arguments.items() if name in known})
    if len(out) < 6:
        raise ParameterError(
            "The pyg-lib that is installed does not count what it samples: install a newer one, "
            "or use backend='numba'."
        )
    return out


def _weights_of(relation: Relation) -> torch.Tensor | None:
    """Return the weights by position, of edges that have them."""
    draws = relation.draws
    return as_tensor(draws._weights) if isinstance(draws, Weighted) else None


def _times_of(relation: Relation) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the times of the sources, or of the edges by position."""
    if relation.times is None:
        return None, None
    values = as_tensor(relation.times.values)
    return (values, None) if relation.times.by_source else (None, values)


def _whole(times: Times | None) -> torch.Tensor:
    array = np.asarray(times)
    if array.dtype.kind == "f":
        raise ParameterError(
            "pyg-lib takes times as integers, and those of the seeds are floats: convert them, or "
            "use backend='numba'."
        )
    return torch.from_numpy(array.astype(np.int64, copy=False))


def _array(values: torch.Tensor) -> I64:
    return values.numpy().astype(np.int64, copy=False)
