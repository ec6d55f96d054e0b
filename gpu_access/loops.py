"""Which loops gather a request on the CPU: compiled ones, or those that need no compiler.

Compiled loops take a quarter of a second to load. The first rows of a process are not worth that,
and a training loop that was restored waits for them: they are gathered by `plain_loops`. When there
are more, the compiled ones are loaded on a thread, and the plain ones go on until they are there;
only who asks for many rows at once waits. Both give the same bits.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from ..dataplane.compiled import compiled_allowed
from . import plain_loops

__all__ = ["compiled_loops", "loops_for"]

_PLAIN_ROWS = 10_000  # rows of a process that are not worth loading anything for
_WORTH_WAITING = 200_000  # rows of a request that plain loops take as long for as loading takes

_asked = 0
_loaded: Any = None
_loading: threading.Thread | None = None


def loops_for(rows: int) -> Any:
    """Return the module of loops for a request of so many rows."""
    global _asked, _loading
    if _loaded is not None:
        return _loaded
    _asked += rows  # or so: threads may count past one another
    if rows >= _WORTH_WAITING:
        return _load()
    if _asked > _PLAIN_ROWS and _loading is None:
        _loading = threading.Thread(target=_load, name="batchloom-compiled-loops", daemon=True)
        _loading.start()
    return plain_loops


def compiled_loops() -> Any:
    """Return the module of compiled loops where it was loaded, else None."""
    return None if _loaded is plain_loops else _loaded


def _load() -> Any:
    global _loaded
    found: Any = plain_loops
    if compiled_allowed():
        with contextlib.suppress(ImportError):
            from . import cpu_kernels as found
    _loaded = found
    return found
