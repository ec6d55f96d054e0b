"""Dask clusters as an operator starts them: a scheduler and workers, processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["DaskCluster", "wait_for"]

_DASK = [sys.executable, "-m", "dask"]
_SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def wait_for(condition: Any, seconds: float = 90) -> None:
    """Wait until a condition holds; fail where it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


class DaskCluster:
    """A scheduler on the loopback and its workers; use it as a context manager.

    Parameters
    ----------
    folder : Path
        For its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = subprocess.Popen(
            [*_DASK, "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address",
             "127.0.0.1:0", "--scheduler-file", str(self._file)],
            **_SILENT,
        )  # fmt: skip
        wait_for(lambda: self._file.exists() and self._file.stat().st_size)
        self.address: str = json.loads(self._file.read_text())["address"]

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.scheduler):
            self.kill(process)

    def start_worker(
        self, *options: str, before: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a worker; `before` is put in front of the command."""
        number = len(self.workers)
        command = [
            *before, *_DASK, "worker", self.address, "--host", "127.0.0.1", "--nthreads", "1",
            "--no-dashboard", "--local-directory", str(self.folder / f"worker-{number}"), *options,
        ]  # fmt: skip
        worker = subprocess.Popen(command, env={**os.environ, **(env or {})}, **_SILENT)
        self.workers.append(worker)
        return worker

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL a worker or the scheduler with all its processes."""
        if process.poll() is None:
            below = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
