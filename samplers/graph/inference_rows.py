"""Rows of nodes, as layer-wise inference reads and writes them; see `inference`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...dataplane.commit import sync_path
from ...dataplane.errors import ParameterError
from ...dataplane.residency import drop_resident
from ...dataplane.storage import storing
from .outputs import as_tensor

__all__ = ["fill", "gathered", "reader", "release", "write_rows"]

I64 = npt.NDArray[np.int64]

_READ_ROWS = 512  # of a map at a time; each may bring 64 KiB of it into memory
_WHAT = "Writing a layer's rows"


def reader(features: Any, nodes: int) -> Callable[[I64], torch.Tensor]:
    """Return what gives the rows of node ids."""
    if callable(features):
        return lambda ids: _as_rows(features(ids))
    if isinstance(features, torch.Tensor):
        _check_shape(tuple(features.shape), nodes)
        table = features.detach()
        return lambda ids: table.index_select(0, torch.from_numpy(ids).to(table.device))
    array = np.asarray(features) if not isinstance(features, np.ndarray) else features
    _check_shape(array.shape, nodes)
    if not isinstance(array, np.memmap):
        return lambda ids: torch.from_numpy(array[ids])

    def read(ids: I64) -> torch.Tensor:
        order = np.argsort(ids, kind="stable")  # a disk is read forwards
        rows = np.empty((ids.size, *array.shape[1:]), array.dtype)
        for start in range(0, ids.size, _READ_ROWS):
            here = order[start : start + _READ_ROWS]
            rows[here] = array[ids[here]]
            release(array[int(ids[here[0]]) : int(ids[here[-1]]) + 1])
        return torch.from_numpy(rows)

    return read


def _as_rows(values: Any) -> torch.Tensor:
    return values if isinstance(values, torch.Tensor) else as_tensor(np.asarray(values))


def _check_shape(shape: tuple[int, ...], nodes: int) -> None:
    if len(shape) != 2 or shape[0] != nodes:
        raise ParameterError(
            f"The 'features' have a row for each of the {nodes} nodes. Got shape {shape}."
        )


def release(array: npt.NDArray[Any]) -> None:
    """Drop what was read of a map; the operating system may still have it."""
    if isinstance(array, np.memmap) and array.mode == "r":
        start = array.ctypes.data
        drop_resident(start, start + array.nbytes)


def fill(out: npt.NDArray[Any], rows: Iterator[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    at = 0
    for part in rows:
        here = out[at : at + len(part)]
        if here.shape != part.shape:
            raise ParameterError(
                f"The 'out' of inference has shape {out.shape}; its layers give rows of "
                f"{part.shape[1:]}."
            )
        here[:] = part
        at += len(part)
    return out


def gathered(rows: Iterator[npt.NDArray[Any]], nodes: int) -> npt.NDArray[Any]:
    made: npt.NDArray[Any] | None = None
    at = 0
    for part in rows:
        if made is None:
            made = np.empty((nodes, *part.shape[1:]), part.dtype)
        made[at : at + len(part)] = part
        at += len(part)
    return np.empty((0, 0), np.float32) if made is None else made


def write_rows(target: Path, rows: Iterator[npt.NDArray[Any]], nodes: int) -> npt.NDArray[Any]:
    """Write rows as a ``.npy`` file, whole or not at all; return them mapped."""
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with storing(_WHAT, target), open(staged, "wb") as file:
            for number, part in enumerate(rows):
                if number == 0:
                    shape = (nodes, *part.shape[1:])
                    header = {"descr": part.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(part).data)
        with storing(_WHAT, target):
            sync_path(staged)
            staged.replace(target)
            sync_path(target.parent)
    finally:
        staged.unlink(missing_ok=True)
    found: npt.NDArray[Any] = np.load(target, mmap_mode="r")
    return found
