"""A graph in compressed sparse column form: for each node, the nodes that lead to it.

``row[colptr[v]:colptr[v + 1]]`` are the sources of the edges into node v. An edge's place in `row`
is its *position*; `permutation` names the edge that the caller knows it by, such as the column of
an ``edge_index``. Edges into a node keep the order that they were given in.

Arrays may be memory maps: `row` is not copied, and checks read it once. Other processes share them;
see `sharing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import InvalidValueError, ParameterError
from .sharing import SharesArrays

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CSCGraph", "Ids", "as_ids", "as_numpy"]

I64 = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32] | npt.NDArray[np.int64]

_INT32_MOST = 2**31 - 1


class CSCGraph(SharesArrays):
    """Edges of one kind, by the node that they lead to.

    Parameters
    ----------
    colptr : int32 or int64, shape (N + 1,)
        Where the edges into each node begin; ``colptr[0]`` is 0 and ``colptr[N]`` is E.
    row : int32 or int64, shape (E,)
        The source of each edge.
    num_sources : int, optional
        Nodes that sources are named among. None: N, as in a graph of one kind of nodes.
    permutation : int64, shape (E,), optional
        The caller's number of the edge at each position. None: its position.
    check : bool
        Whether every number is looked at. Without it only types and shapes are: a graph that was
        checked when it was written need not be read again.

    Attributes
    ----------
    colptr : int64, shape (N + 1,)
    row : int32 or int64, shape (E,)
    permutation : int64, shape (E,), or None
    num_nodes : int
        Nodes that edges lead to, N.
    num_sources : int
    num_edges : int

    Raises
    ------
    InvalidValueError
        Where `colptr` is not ascending from 0 to E, or a source is not among the nodes.
    ParameterError
        Where an array is not of integers, or not of the right shape.
    """

    _arrays: ClassVar[tuple[str, ...]] = ("colptr", "row", "permutation")

    colptr: I64
    row: Ids
    permutation: I64 | None

    def __init__(
        self,
        colptr: Any,
        row: Any,
        *,
        num_sources: int | None = None,
        permutation: Any = None,
        check: bool = True,
    ) -> None:
        self.colptr = as_ids(colptr, "colptr").astype(np.int64, copy=False)
        self.row = as_ids(row, "row")
        self.permutation = None
        if self.colptr.size == 0:
            raise ParameterError("The 'colptr' of a graph of N nodes has N + 1 entries. Got none.")
        self.num_nodes = self.colptr.size - 1
        self.num_edges = self.row.size
        self.num_sources = self.num_nodes if num_sources is None else int(num_sources)
        if permutation is not None:
            numbers = as_ids(permutation, "permutation").astype(np.int64, copy=False)
            if numbers.size != self.num_edges:
                raise ParameterError(
                    f"The 'permutation' of a graph names each of its {self.num_edges} edges. Got "
                    f"{numbers.size} numbers."
                )
            self.permutation = numbers
        first, last = int(self.colptr[0]), int(self.colptr[-1])
        if first != 0 or last != self.num_edges:
            raise InvalidValueError(
                f"The 'colptr' of a graph of {self.num_edges} edges must go from 0 to "
                f"{self.num_edges}. It goes from {first} to {last}."
            )
        if check:
            self._check()

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Any,
        num_nodes: int | None = None,
        *,
        num_sources: int | None = None,
        is_sorted: bool = False,
    ) -> Self:
        """Make a graph of pairs (source, target).

        Parameters
        ----------
        edge_index : int32 or int64, shape (2, E)
            Sources, then targets, as PyG has them.
        num_nodes : int, optional
            Nodes that edges lead to. None: the largest number there is, and one.
        num_sources : int, optional
            Nodes that edges come from, where they are of another kind. None: `num_nodes`.
        is_sorted : bool
            The targets are ascending already: their order is checked, and nothing is moved.

        Returns
        -------
        CSCGraph
            Its `permutation` names the columns of `edge_index`; None where nothing was moved.
        """
        pairs = as_numpy(edge_index)
        if pairs.size == 0 and not hasattr(edge_index, "dtype"):
            pairs = pairs.astype(np.int64)  # empty lists
        if pairs.ndim != 2 or pairs.shape[0] != 2:
            raise ParameterError(
                "The 'edge_index' of a graph has shape (2, E): sources, then targets. Got shape "
                f"{pairs.shape}."
            )
        source, target = (as_ids(side, "edge_index") for side in pairs)
        if num_nodes is None:
            sides = [target] if num_sources is not None else [source, target]
            num_nodes = max((int(side.max()) + 1 for side in sides if side.size), default=0)
        sources = num_nodes if num_sources is None else num_sources
        _check_range(source, sources, "source", "edge")
        _check_range(target, num_nodes, "target", "edge")
        narrow = np.int32 if sources <= _INT32_MOST else np.int64
        from .csc_kernels import count_into, first_descent, sort_into

        colptr = np.zeros(num_nodes + 1, np.int64)
        count_into(target, colptr)
        if is_sorted:
            place = int(first_descent(target))
            if place >= 0:
                raise InvalidValueError(
                    f"The 'edge_index' is not sorted by target: edge {place} leads to node "
                    f"{target[place]}, the next to node {target[place + 1]}. Leave is_sorted out."
                )
            return cls(colptr, source, num_sources=sources, check=False)
        row, permutation = np.empty(source.size, narrow), np.empty(source.size, np.int64)
        sort_into(source, target, colptr, row, permutation)
        return cls(colptr, row, num_sources=sources, permutation=permutation, check=False)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """Make a graph of a scipy sparse matrix: an entry (i, j) is an edge from i to j.

        A matrix in CSC form is not copied. From other forms scipy converts it, and adds up entries
        of the same place.
        """
        matrix = matrix.tocsc()
        return cls(matrix.indptr, matrix.indices, num_sources=matrix.shape[0])

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Make a graph of the ``edge_index`` of a PyG ``Data``."""
        if getattr(data, "edge_index", None) is None:
            raise ParameterError(
                "The data has no 'edge_index': set data.edge_index to the (2, E) pairs of nodes."
            )
        return cls.from_edge_index(data.edge_index, int(data.num_nodes))

    def keep(self, edges: npt.NDArray[np.bool_]) -> CSCGraph:
        """Return the graph of some of the edges; `permutation` goes on naming them.

        Parameters
        ----------
        edges : bool, shape (E,)
            By position.
        """
        inside = np.asarray(edges)
        if inside.dtype != np.bool_ or inside.shape != (self.num_edges,):
            raise ParameterError(
                f"Edges are kept by a bool for each of the {self.num_edges} edges. Got "
                f"{inside.dtype} of shape {inside.shape}."
            )
        before = np.zeros(self.num_edges + 1, np.int64)
        np.cumsum(inside, out=before[1:])
        kept = np.flatnonzero(inside)
        return CSCGraph(
            before[self.colptr],
            self.row[kept],
            num_sources=self.num_sources,
            permutation=kept if self.permutation is None else self.permutation[kept],
            check=False,
        )

    def sorted_by(self, values: npt.NDArray[Any]) -> tuple[CSCGraph, npt.NDArray[Any]]:
        """Return the graph whose edges into each node ascend by a value, and the values then.

        Edges of the same value keep their order. Where they all ascend already, the graph itself.

        Parameters
        ----------
        values : array, shape (E,)
            One an edge, by position.
        """
        from .csc_kernels import sort_segments, unsorted_segment

        if unsorted_segment(self.colptr, values) < 0:
            return self, values
        order = np.empty(self.num_edges, np.int64)
        sort_segments(self.colptr, values, order)
        named = order if self.permutation is None else self.permutation[order]
        graph = CSCGraph(
            self.colptr,
            self.row[order],
            num_sources=self.num_sources,
            permutation=named,
            check=False,
        )
        return graph, values[order]

    def by_position(self, values: Any) -> npt.NDArray[Any]:
        """Return values that are given one a caller's edge in the order of positions."""
        array = as_numpy(values)
        return array if self.permutation is None else array[self.permutation]

    def _check(self) -> None:
        from .csc_kernels import first_descent

        place = int(first_descent(self.colptr))
        if place >= 0:
            raise InvalidValueError(
                f"The 'colptr' of a graph must ascend: the edges into node {place} begin at "
                f"{self.colptr[place]} and end at {self.colptr[place + 1]}."
            )
        _check_range(self.row, self.num_sources, "source", "edge")


def as_numpy(values: Any) -> npt.NDArray[Any]:
    """Return an array, a tensor or a list as numpy, without a copy where there need be none."""
    detach = getattr(values, "detach", None)
    if detach is not None:  # a tensor
        values = detach().cpu().numpy()
    return np.asarray(values) if not isinstance(values, np.ndarray) else values


def as_ids(values: Any, name: str) -> Ids:
    """Return node ids, edge ids or pointers as a contiguous int32 or int64 array.

    Raises
    ------
    ParameterError
        Where they are not of one dimension, or of another type.
    """
    array = as_numpy(values)
    if array.size == 0 and array.dtype == np.float64 and not hasattr(values, "dtype"):
        array = array.astype(np.int64)  # an empty list
    if array.dtype not in (np.int32, np.int64):
        raise ParameterError(
            f"The '{name}' must be int32 or int64. Got {array.dtype}; convert it with "
            ".astype(np.int64) if all of its values are whole."
        )
    if array.ndim != 1:
        raise ParameterError(f"The '{name}' must have one dimension. Got shape {array.shape}.")
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _check_range(ids: Ids, below: int, what: str, unit: str) -> None:
    """Raise `InvalidValueError` at the first id outside [0, below)."""
    from .csc_kernels import first_outside

    place = int(first_outside(ids, below))
    if place >= 0:
        raise InvalidValueError(
            f"The {what} of {unit} {place} is {ids[place]}, which is no node: there are {below}, "
            f"numbered from 0. Say how many there are with num_nodes, or mend the {unit}."
        )
