"""Where tasks run: in this process, on an embedded Dask cluster, or on a scheduler elsewhere.

Rules (the same on all three):

- A task gets paths and ranges, never arrays, and returns something small; large results are files
  in the job's staging folder. Tasks may run twice, so they write under names of their own and
  rename.
- Results come back as they are ready. What is made of them must not depend on their order.
- The embedded cluster is made of spawned processes that listen on the loopback only, each with one
  thread of its numeric libraries. It starts when the first task is asked for.
- A worker that dies is restarted and its tasks run again; a task that kills three workers ends the
  job with an error that names its fragments.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing.spawn
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..dataplane.errors import EngineError, ParameterError, needs_extra

__all__ = ["Engine", "Task", "parse_bytes"]

R = TypeVar("R")

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
_CONFIG = {
    "distributed.nanny.pre-spawn-environ": _ONE_THREAD,
    "distributed.scheduler.allowed-failures": 3,
    # Our tasks keep no results worth spilling; a worker near its limit pauses, then restarts.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.80,
    "distributed.worker.memory.terminate": 0.95,
    "distributed.comm.retry.count": 3,
    # What every process does while it waits: ticks of its loop, samples of its stack. At Dask's
    # rates (20 and 10 ms) they cost a tenth of a core.
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.log-format": "%(message)s",
}
_CONNECT_SECONDS = 10


class Task(Protocol):
    """What the engine asks of a task."""

    @property
    def index(self) -> int:
        """Number of the task."""

    @property
    def label(self) -> str:
        """What it reads, for messages."""


class Engine:
    """Runs tasks; use it as a context manager.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running Dask scheduler, ``tcp://…``. Its workers must see the same files.
    workers : int, optional
        Processes of the embedded cluster; 0 runs everything in this process. Default: one a core,
        at most one a task.
    memory : int, optional
        Bytes that all workers together may use; default: the machine's memory.
    note : callable
        Told one sentence when a cluster starts.
    """

    def __init__(
        self,
        *,
        scheduler: str | None = None,
        workers: int | None = None,
        memory: int | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if scheduler is not None and workers is not None:
            raise ParameterError("Give either a scheduler or a number of workers, not both.")
        if workers is not None and workers < 0:
            raise ParameterError(
                "The number of workers must be an int in the range [0, inf). "
                f"Got {workers} instead."
            )
        self._scheduler, self._workers, self._memory = scheduler, workers, memory
        self._note = note
        self._client: Any = None
        self._limit: int | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()
        self._client = None

    def map(
        self, function: Callable[..., R], tasks: Sequence[Task], *args: Any
    ) -> Iterator[tuple[int, R]]:
        """Yield (position in `tasks`, function(task, *args)) as they are ready.

        Raises
        ------
        EngineError
            Where workers or the scheduler were lost. What a task raises comes through as it is.
        """
        if self._workers == 0:
            for position, task in enumerate(tasks):
                yield position, function(task, *args)
            return
        if not tasks:
            return
        client = self._connected(len(tasks))
        from concurrent.futures import CancelledError

        from distributed import as_completed

        futures: dict[Any, int] = {}
        waiting = iter(enumerate(tasks))

        def submit(count: int) -> list[Any]:
            new = {
                client.submit(function, task, *args, pure=False): position
                for position, task in itertools.islice(waiting, count)
            }
            futures.update(new)
            return list(new)

        # One task a thread: Dask blames every task that a dead worker was assigned, also those
        # that it had not begun.
        threads = max(1, sum(client.nthreads().values()))
        try:
            done = as_completed(submit(threads), loop=client.loop)
            for future in done:
                position = futures.pop(future)
                result = self._result(future, tasks[position])
                future.release()
                done.update(submit(1))
                yield position, result
        except CancelledError as error:
            raise EngineError(
                "The connection to the Dask scheduler was lost; run the same command again."
            ) from error
        finally:
            if futures:
                client.cancel(list(futures), force=True)

    def _result(self, future: Any, task: Task) -> Any:
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            limit = f" (limit {self._limit / 2**30:.1f} GiB a worker)" if self._limit else ""
            raise EngineError(
                f"The task that reads {task.label} killed {error.allowed_failures + 1} workers one "
                f"after another. The likely cause is that it ran out of memory{limit}: use fewer "
                "workers, a larger --memory, or smaller files; or the file crashes its decoder."
            ) from None

    def _connected(self, tasks: int) -> Any:
        if self._client is not None:
            return self._client
        with needs_extra("Running jobs on Dask", "plan"):
            import dask
            from distributed import Client, LocalCluster
        self._cleanup.enter_context(dask.config.set(_CONFIG))
        self._cleanup.enter_context(_quiet_logs())
        if self._scheduler is not None:
            try:
                client = Client(self._scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError) as error:
                raise EngineError(
                    f"No Dask scheduler answers at {self._scheduler}: {error}. "
                    "Start one with: dask scheduler"
                ) from error
            self._client = self._cleanup.enter_context(client)
            return client
        count = self._workers or max(1, min(tasks, os.cpu_count() or 1))
        self._limit = None if self._memory is None else self._memory // count
        self._cleanup.enter_context(_workers_with_our_main())
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=self._limit or "auto",
            silence_logs=logging.CRITICAL,
        )
        self._cleanup.enter_context(cluster)
        self._client = self._cleanup.enter_context(Client(cluster, set_as_default=False))
        self._note(f"Dask dashboard: {cluster.dashboard_link}")
        return self._client


@contextmanager
def _quiet_logs() -> Iterator[None]:
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


def parse_bytes(text: str | int) -> int:
    """Return bytes of "4GiB", "512 MB" or a number."""
    if isinstance(text, int):
        return text
    units = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
    units |= {f"{u}b": v for u, v in list(units.items()) if u not in ("", "b")}
    units |= {f"{u}i{b}": 1024**p for p, u in enumerate("kmgt", 1) for b in ("", "b")}
    digits = text.strip().lower().rstrip("bikmgt ").strip()
    unit = text.strip().lower()[len(digits) :].strip()
    try:
        return int(float(digits) * units[unit])
    except (ValueError, KeyError):
        raise ParameterError(
            f"A size is written like '4GiB' or '512MB'. Got '{text}' instead."
        ) from None
