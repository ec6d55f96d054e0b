"""What workers that somebody else started must have: this Batchloom, the job's folder, the files.

They are asked by functions of the standard library only, which any worker can run.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..dataplane.errors import EngineError

__all__ = ["check_workers"]


def check_workers(
    client: Any, addresses: Sequence[str], folder: Path | None, example: str | None
) -> None:
    """Raise `EngineError` unless each worker could run this job's tasks.

    Parameters
    ----------
    client : distributed.Client
    addresses : sequence of str
        Workers to ask.
    folder : Path, optional
        Where tasks write their results.
    example : str, optional
        A local file that a task reads.
    """

    def refuse(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """Return what workers answer, errors included; who does not answer is about to be gone."""
        told = client.run(function, *args, workers=list(addresses), on_error="return")
        return {a: v for a, v in told.items() if not isinstance(v, OSError)}

    version = importlib.metadata.version("batchloom")
    for address, found in refuse(importlib.metadata.version, "batchloom").items():
        if found != version:
            has = "has none" if isinstance(found, Exception) else f"has {found}"
            raise EngineError(
                f"This job runs Batchloom {version}, but worker {address} {has}: install the same "
                f"version on all workers, pip install 'batchloom[plan]=={version}'"
            )
    if folder is not None:
        for address, sees in refuse(os.access, folder, os.R_OK | os.W_OK).items():
            if sees is not True:
                raise EngineError(
                    f"Worker {address} does not see the job's folder {folder.parent}, or may not "
                    "write there. Choose a target on a file system that this machine and all "
                    "workers share, under the same path."
                )
    if example is not None:
        for address, sees in refuse(os.access, example, os.R_OK).items():
            if sees is not True:
                raise EngineError(
                    f"Worker {address} cannot read {example}. Put the dataset on a file system "
                    "that all workers share, under the same path, or name it by a URI."
                )
