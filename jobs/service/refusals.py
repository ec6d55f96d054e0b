"""What the service says no with: an HTTP status, and one sentence as JSON.

``{"error": {"status", "type", "message"}}``; ``type`` names one of `dataplane.errors`, or is
``ServiceError``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from ...dataplane.errors import (
    BatchloomError,
    DatasetChangedError,
    MissingExtraError,
    NoRoomError,
    ParameterError,
    RowIdError,
    SelectionError,
    ServiceError,
    SignalConflictError,
    SignalError,
    StorageError,
)

__all__ = ["RefusedError", "error_body", "int_of", "status_of"]

_MOST_INT = (1 << 62) - 1

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STATUS: tuple[tuple[type[BatchloomError], int], ...] = (
    (NoRoomError, 507),
    (DatasetChangedError, 409),
    (SignalConflictError, 409),
    (RowIdError, 422),
    (SelectionError, 422),
    (ParameterError, 400),
    (SignalError, 409),
    (MissingExtraError, 501),
)


class RefusedError(ServiceError):
    """A request that is refused.

    Attributes
    ----------
    status : int
    retry_after : int or None
        Seconds after which it may be sent again.
    """

    status: int

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


def status_of(error: BatchloomError) -> int:
    """Return the HTTP status that an error is answered with."""
    if isinstance(error, RefusedError):
        return error.status
    if isinstance(error, StorageError) and getattr(error.__cause__, "errno", None) in _FULL:
        return 507
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(error: BatchloomError) -> dict[str, Any]:
    """Return the JSON that tells of an error."""
    kind = "ServiceError" if isinstance(error, RefusedError) else type(error).__name__
    return {"error": {"status": status_of(error), "type": kind, "message": str(error)}}


def int_of(body: Mapping[str, Any], name: str, low: int, high: int | None = None) -> int:
    """Return a whole number of a JSON body; `RefusedError` (400) where it holds none."""
    value = body.get(name)
    most = _MOST_INT if high is None else high
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= most:
        to = "on" if high is None else f"to {high}"
        raise RefusedError(400, f"'{name}' must be an int from {low} {to}.")
    return value
