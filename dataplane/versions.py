"""The versions of what makes a plan."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Return the versions of what makes a plan."""
    found = {"python": platform.python_version()}
    for name in ("batchloom", "numpy", "pyarrow", "scikit-learn", "faiss-gpu", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
