"""Which loops gather a request on the CPU: compiled ones, or those that need no compiler.

Compiled loops take a quarter of a second to load. The first rows of a process are not worth that,
and a training loop that was restored waits for them: they are gathered by `plain_loops`, and the
compiled ones are loaded for what comes after, while the trainer is busy. Both give the same bits.
"""

from __future__ import annotations

import os
from typing import Any

from . import plain_loops

__all__ = ["loops_for"]

_PLAIN_ROWS = 20_000  # rows of a process, or so: threads may count past one another

_asked = 0
_loaded: Any = None


def loops_for(rows: int) -> Any:
    """Return the module of loops for a request of so many rows."""
    global _asked, _loaded
    if _loaded is None:
        _asked += rows
        if _asked <= _PLAIN_ROWS:
            return plain_loops
        _loaded = _load()
    return _loaded


def _load() -> Any:
    if os.environ.get("BATCHLOOM_NUMBA") == "0":
        return plain_loops
    try:
        from . import cpu_kernels
    except ImportError:
        return plain_loops
    return cpu_kernels
