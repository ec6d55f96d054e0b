"""Clearing away what killed jobs left behind; by default only listing it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ..dataplane.errors import MissingFileError, ParameterError
from ..dataplane.leftovers import Leftover, leftovers, leftovers_here, remove
from ..dataplane.storage import locate
from ..dataplane.store_leftovers import remove_from_store, store_leftovers

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

    Of jobs whose target was on a store this is also what they left in this machine's folder for
    temporary files: parts that were not sent, and intermediate results.

    Parameters
    ----------
    path : path or URI
    delete : bool
        Remove it.
    older_than : str or float
        Only what was not written to for so long: ``"30m"``, ``"24h"``, ``"7d"``, or hours. What a
        living job holds is left alone whatever its age; a store knows no locks, so there take more
        than the longest job runs.
    storage_options : mapping, optional
        Options of the filesystem.

    Raises
    ------
    StorageError, ParameterError
    """
    hours = _hours(older_than)
    location = locate(path, storage_options)
    if location.is_local:
        found, away = leftovers(location.path, hours), remove
    else:
        here = leftovers_here(location.path, hours)
        try:
            found = [*here, *store_leftovers(location, hours)]
        except MissingFileError:
            if not here:
                raise
            found = here  # killed before anything was sent
        local = {leftover.path for leftover in here}
        elsewhere = partial(remove_from_store, storage_options=storage_options)

        def away(leftover: Leftover) -> bool:
            return (remove if leftover.path in local else elsewhere)(leftover)

    if delete:
        found = [leftover for leftover in found if away(leftover)]
    return Cleared(tuple(found), sum(leftover.bytes for leftover in found), delete)


def _hours(value: str | float) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
    if match is None:
        raise ParameterError(
            "The 'older_than' parameter must be a length of time, such as 30m, 24h or 7d. "
            f"Got {value!r} instead."
        )
    return float(match[1]) * _HOURS[match[2] or "h"]
