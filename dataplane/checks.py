"""Checks of arguments, in the one form that parameter errors have."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .errors import ParameterError, nearest

__all__ = ["require_int", "require_one_of"]


def require_int(name: str, value: Any, least: int, below: int | None = None) -> None:
    """Raise `ParameterError` unless `value` is an int in the range [least, below)."""
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not fine or (below is not None and value >= below):
        top = "inf" if below is None else below
        raise ParameterError(
            f"The '{name}' parameter must be an int in the range [{least}, {top}). "
            f"Got {value!r} instead."
        )


def require_one_of(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise `ParameterError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ParameterError(
            f"The '{name}' parameter must be one of {', '.join(map(repr, allowed))}. "
            f"Got {value!r} instead.{nearest(str(value), allowed)}"
        )
