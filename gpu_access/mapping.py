"""How a table's memory is mapped for a GPU, and which tables must be copied first.

Memory that has its pages to itself is mapped as a whole, once for all tables in it. Memory that
its owner has pinned is taken as it is. All else may share its pages (see `row_table`) and is not
mapped where it is.
"""

from __future__ import annotations

from typing import Any

import torch

from ..dataplane.errors import HostRegistrationError
from .cuda_runtime import Runtime
from .registration import (
    HostRegistration,
    is_registered,
    register_host_memory,
    shares_pages,
)
from .row_table import RowTable

__all__ = ["can_be_mapped", "map_memory", "map_table"]


def can_be_mapped(table: RowTable) -> bool:
    """Whether a table's memory can be mapped where it is."""
    return table.region is not None or _is_pinned(table)


def map_table(table: RowTable, device: torch.device) -> HostRegistration:
    """Map a table's memory for a device.

    Raises
    ------
    HostRegistrationError, UnifiedAccessUnavailable
    """
    rows = table.address, table.nbytes, table.owner
    if device.type != "cuda":
        return register_host_memory(rows)  # says why there is no GPU
    with torch.cuda.device(device):
        if is_registered(*rows[:2]):  # part of memory that another table has mapped: share it
            return register_host_memory(rows)
        if table.region is not None:
            return map_memory((*table.region, table.owner))
        if _is_pinned(table):
            return HostRegistration.of_pinned(*rows)
        raise shares_pages(table.nbytes)


def map_memory(memory: tuple[int, int, Any], runtime: Runtime | None = None) -> HostRegistration:
    """Map (address, nbytes, owner) as it allows: as written, as pinned by its owner, as read only.

    Raises
    ------
    HostRegistrationError, UnifiedAccessUnavailable
        As `register_host_memory`.
    """
    try:
        return register_host_memory(memory, runtime=runtime)
    except HostRegistrationError as error:
        owner = memory[2]
        if error.code == 712 and isinstance(owner, torch.Tensor) and owner.is_pinned():
            return HostRegistration.of_pinned(*memory, runtime=runtime)
        if error.code != 1:
            raise
        try:
            return register_host_memory(memory, read_only=True, runtime=runtime)
        except HostRegistrationError as second:
            message = f"{error} As memory that is only read: {second}"
            raise HostRegistrationError(message, error.code, error.name) from second


def _is_pinned(table: RowTable) -> bool:
    """Whether the driver has the rows mapped already, from the first to the last byte."""
    if not isinstance(table.owner, torch.Tensor) or not table.nbytes:
        return False
    rows = table.words(1)
    return bool(rows[:1].is_pinned() and rows[-1:].is_pinned())
