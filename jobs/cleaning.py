"""Clearing away what killed jobs left behind; by default only listing it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..dataplane.errors import JobSpecError, ParameterError
from ..dataplane.leftovers import Leftover, leftovers, remove
from ..dataplane.storage import locate

__all__ = ["Cleared", "gc"]

_HOURS = {"s": 1 / 3600, "m": 1 / 60, "h": 1.0, "d": 24.0}


@dataclass(frozen=True)
class Cleared:
    """What was found, and whether it was removed.

    Attributes
    ----------
    leftovers : tuple of Leftover
        With `deleted`, those that were removed.
    bytes : int
        In all.
    deleted : bool
    """

    leftovers: tuple[Leftover, ...]
    bytes: int
    deleted: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def gc(
    path: str | os.PathLike[str],
    *,
    delete: bool = False,
    older_than: str | float = "24h",
    storage_options: Mapping[str, Any] | None = None,
) -> Cleared:
    """List, or remove, what killed jobs left in a folder and below.

    Parameters
    ----------
    path : path
    delete : bool
        Remove it.
    older_than : str or float
        Only what was not written to for so long: ``"30m"``, ``"24h"``, ``"7d"``, or hours. What a
        living job holds is left alone whatever its age.
    storage_options : mapping, optional
        Options of the filesystem.

    Raises
    ------
    StorageError, ParameterError
    """
    hours = _hours(older_than)
    location = locate(path, storage_options)
    if not location.is_local:
        raise JobSpecError(f"'{os.fspath(path)}': leftovers are looked for on local disks only.")
    found = leftovers(location.path, hours)
    if delete:
        found = [leftover for leftover in found if remove(leftover)]
    return Cleared(tuple(found), sum(leftover.bytes for leftover in found), delete)


def _hours(value: str | float) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
    if match is None:
        raise ParameterError(
            "The 'older_than' parameter must be a length of time, such as 30m, 24h or 7d. "
            f"Got {value!r} instead."
        )
    return float(match[1]) * _HOURS[match[2] or "h"]
