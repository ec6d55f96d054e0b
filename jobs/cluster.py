"""The embedded cluster: Dask workers on this machine, spawned, on the loopback only.

Each worker has one thread, one thread of its numeric libraries, and a share of the memory: a
process of Dask's, the nanny, ends a worker that takes 95% of its share and starts another one.
"""

from __future__ import annotations

import logging
import multiprocessing.spawn
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..dataplane.errors import EngineError, ParameterError

__all__ = ["CONFIG", "Exit", "Exits", "memory_share", "quiet_logs", "start_cluster", "worker_count"]

_STARTS = 3  # tries to start a cluster
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    # What glibc's own thresholds grow to. Dask's low trim threshold would keep them from growing,
    # so that every array of a batch would be mapped, faulted in page by page and unmapped.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    # A worker that is told to stop in the middle of a heartbeat need not print a traceback.
    "DASK_LOGGING": str(
        dict.fromkeys(("distributed", "tornado", "tornado.application", "asyncio"), "critical")
    ),
}
CONFIG = {
    "distributed.nanny.pre-spawn-environ": _ONE_THREAD,
    "distributed.scheduler.allowed-failures": 3,
    # A task waits at the scheduler until a worker is free: a worker that dies is blamed on the one
    # task that it ran.
    "distributed.scheduler.worker-saturation": 1.0,
    # Our tasks keep no results worth spilling. Nor would a pause help a worker that runs one task
    # at a time: what it holds between two tasks is not given back by waiting.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # A result whose worker died is computed again at once; retries would wait for the dead.
    "distributed.comm.retry.count": 0,
    # What every process does while it waits: ticks of its loop, samples of its stack. At Dask's
    # rates (20 and 10 ms) they cost a tenth of a core.
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.log-format": "%(message)s",
}
_LEAST_MEMORY = 256 << 20  # bytes that a worker needs for itself and its libraries


@dataclass(frozen=True)
class Exit:
    """How a worker ended: its name, and what `os.waitstatus_to_exitcode` says of its process."""

    name: str
    code: int


class Exits:
    """How workers ended, by address."""

    def __init__(self) -> None:
        self._found: dict[str, Exit] = {}
        self._changed = threading.Condition()

    def note(self, address: str, found: Exit) -> None:
        with self._changed:
            self._found[address] = found
            self._changed.notify_all()

    def wait(self, address: str, seconds: float) -> Exit | None:
        """Return how a worker ended, None where that is not known after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: address in self._found, seconds)
            return self._found.get(address)


def worker_count(workers: int | None, tasks: int, memory: int | None) -> int:
    """Return how many workers to start: as many as were asked for, else one a core or task."""
    if workers is not None:
        return workers
    most = max(1, min(tasks, os.cpu_count() or 1))
    return most if memory is None else max(1, min(most, memory // _LEAST_MEMORY))


def memory_share(workers: int, memory: int | None) -> int:
    """Return the bytes that each worker may use, of `memory` or of the machine's."""
    from distributed.system import MEMORY_LIMIT

    if memory is not None and memory < workers * _LEAST_MEMORY:
        least = workers * _LEAST_MEMORY >> 20
        raise ParameterError(
            f"A memory of {memory >> 20} MiB is too little for {workers} workers, which need at "
            f"least {least} MiB; use --memory {least}MiB or fewer workers."
        )
    return min(MEMORY_LIMIT, memory or MEMORY_LIMIT) // workers


@contextmanager
def start_cluster(workers: int, share: int, exits: Exits) -> Iterator[Any]:
    """Start the cluster; stopped when the block ends."""
    from distributed import LocalCluster, Nanny

    class Recorder(Nanny):
        """Notes how its worker ended, which Dask only logs."""

        def _on_worker_exit_sync(self, exitcode: int) -> None:
            if self.worker_address is not None:
                exits.note(self.worker_address, Exit(str(self.name), exitcode))
            super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]

    def start(attempt: int) -> Any:
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                worker_class=Recorder,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=share,
                silence_logs=logging.CRITICAL,
            )
        except (OSError, RuntimeError) as error:
            if attempt < _STARTS:  # a worker that dies as it starts takes the others with it
                return start(attempt + 1)
            reason = str(error).split("\n")[0].rstrip(".")
            raise EngineError(
                f"The Dask cluster of {workers} workers did not start: {reason}. Use fewer "
                "workers, or --workers 0 to run everything in one process."
            ) from error

    with _workers_with_our_main(), start(1) as cluster:
        yield cluster


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep Dask's loggers from printing tracebacks beside the one sentence that we say."""
    names = ["distributed", "tornado.application"]
    names += [n for n in logging.root.manager.loggerDict if n.startswith("distributed.")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _workers_with_our_main() -> Iterator[None]:
    """Let spawned Dask workers start with a main module of ours instead of the user's script.

    A spawned process imports the parent's main module, so that a script which calls `plan` outside
    an ``if __name__ == "__main__"`` guard would start clusters in its own workers. Our tasks live
    in importable modules and need nothing of it.
    """
    original = multiprocessing.spawn.get_preparation_data

    def prepare(name: str) -> dict[str, Any]:
        data = original(name)
        if name.startswith("Dask Worker"):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = f"{__package__}.worker_main"
        return data

    multiprocessing.spawn.get_preparation_data = prepare
    try:
        yield
    finally:
        multiprocessing.spawn.get_preparation_data = original
