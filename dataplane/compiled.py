"""Whether the compiled kernels are worth loading: one switch for all loops that have two forms.

Both forms give the same bits. ``BATCHLOOM_NUMBA=0`` turns the compiled one off.
"""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["compiled_allowed", "compiled_kernels"]

_COMPILED_FROM = 200_000  # numbers; below, numpy is done before numba has loaded
_COMPILED_WITH_NUMBA = 4_096  # numba is there, its kernels are not: milliseconds
_COMPILED_ONCE_LOADED = 128


def compiled_kernels(size: int) -> Any:
    """Return the module of compiled kernels where it pays for an input of `size`, else None."""
    if size < _worth_compiling():
        return None
    if not compiled_allowed():
        return None
    try:
        from . import kernels
    except ImportError:
        return None
    return kernels


def compiled_allowed() -> bool:
    """Whether compiled loops may be used at all."""
    return os.environ.get("BATCHLOOM_NUMBA") != "0"


def _worth_compiling() -> int:
    """Return from which size on the compiled form is as fast, given what is loaded already."""
    if f"{__package__}.kernels" in sys.modules:
        return _COMPILED_ONCE_LOADED
    return _COMPILED_WITH_NUMBA if "numba" in sys.modules else _COMPILED_FROM
