"""When nodes and edges came to be, as the sampler takes them: checked, and sorted where need be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import ParameterError
from .csc import CSCGraph, as_numpy
from .relations import EdgeTimes, Times

__all__ = ["as_times", "by_edge", "by_source"]


def as_times(values: Any, size: int, name: str) -> Times:
    """Return times as int64 or float64.

    Raises
    ------
    ParameterError
        Where there are not `size` of them, or one is NaN.
    """
    array = as_numpy(values)
    if array.shape != (size,) or array.dtype.kind not in "iuf":
        raise ParameterError(
            f"The '{name}' must be {size} numbers, integers or floats. Got {array.dtype} of shape "
            f"{array.shape}."
        )
    if array.dtype.kind != "f":
        return array.astype(np.int64, copy=False)
    if np.isnan(array).any():
        raise ParameterError(
            f"The '{name}' must not be NaN, and {int(np.isnan(array).argmax())} is."
        )
    return array.astype(np.float64, copy=False)


def by_edge(graph: CSCGraph, edge_time: Any) -> tuple[CSCGraph, EdgeTimes]:
    """Return a graph whose edges into each node ascend by their times, and these.

    Parameters
    ----------
    graph : CSCGraph
    edge_time : array, shape (E,)
        One a caller's edge.
    """
    times = as_times(graph.by_position(edge_time), graph.num_edges, "edge_time")
    graph, sorted_times = graph.sorted_by(times)
    return graph, EdgeTimes(sorted_times, by_source=False)


def by_source(graph: CSCGraph, node_time: npt.NDArray[Any]) -> tuple[CSCGraph, EdgeTimes]:
    """Return a graph whose edges into each node ascend by the times of their sources, and these.

    Parameters
    ----------
    graph : CSCGraph
    node_time : int64 or float64, shape (number of sources,)
    """
    from .csc_kernels import unsorted_by_source

    if unsorted_by_source(graph.colptr, graph.row, node_time) >= 0:
        graph, _ = graph.sorted_by(node_time[graph.row])
    return graph, EdgeTimes(node_time, by_source=True)
