"""Where tasks run: in this process, on an embedded Dask cluster, or on a scheduler elsewhere.

Rules (the same on all three):

- A task gets paths and ranges, never arrays, and returns something small; large results are files
  in the job's staging folder. Tasks may run twice, so they write under names of their own and
  rename.
- Results come back as they are ready. What is made of them must not depend on their order.
- The embedded cluster (`cluster`) starts when the first task is asked for.
- Workers may join, leave and die while a job runs (`watch`). A worker that dies is told in a
  warning and its tasks run again; a task that kills four workers ends the job (`dispatch`) with an
  error that names the file it was reading (`trail`) and says what to do (`autopsy`).
- Workers that somebody else started are asked first whether they have this Batchloom, the job's
  folder and the dataset (`foreign`).
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..dataplane.errors import EngineError, ParameterError, needs_extra
from ..dataplane.storage import storing

__all__ = ["Engine", "Task", "parse_bytes"]

R = TypeVar("R")

_CONNECT_SECONDS = 10
_PATIENCE_SECONDS = 300.0


class Task(Protocol):
    """What the engine asks of a task."""

    @property
    def index(self) -> int:
        """Number of the task."""

    @property
    def label(self) -> str:
        """What it reads, for messages."""

    @property
    def example(self) -> str | None:
        """A local file that it reads, which workers elsewhere must see too."""


class Engine:
    """Runs tasks; use it as a context manager.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running Dask scheduler, ``tcp://…``. Its workers must see the same files.
    workers : int, optional
        Processes of the embedded cluster; 0 runs everything in this process. Default: one a core,
        at most one a task, and no more than `memory` is enough for.
    memory : int, optional
        Bytes that the workers of the embedded cluster together may use, in equal shares; default
        and most: the machine's memory.
    beside : int
        Bytes that this process keeps of the memory that the user gave, for advice on how to give
        workers more.
    folder : path, optional
        A folder that the workers share with this process, such as the job's staging folder. There
        they note what they read. The embedded cluster needs none.
    patience : float
        Seconds without a worker that takes tasks after which a job gives up.
    note, warn : callable
        Told one sentence: when a cluster starts or a worker leaves; when a worker dies.
    """

    def __init__(
        self,
        *,
        scheduler: str | None = None,
        workers: int | None = None,
        memory: int | None = None,
        beside: int = 0,
        folder: Path | None = None,
        patience: float = _PATIENCE_SECONDS,
        note: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        if scheduler is not None and workers is not None:
            raise ParameterError("Give either a scheduler or a number of workers, not both.")
        if workers is not None and workers < 0:
            raise ParameterError(
                "The number of workers must be an int in the range [0, inf). "
                f"Got {workers} instead."
            )
        self._scheduler, self._workers, self._memory = scheduler, workers, memory
        self._beside, self._folder, self._patience = beside, folder, patience
        self._note, self._warn = note, warn
        self._site: Any = None
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
        self._site = None

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
        self._connected(len(tasks))
        from .dispatch import Dispatch

        yield from Dispatch(self._site, function, tasks, args).results()

    def _connected(self, tasks: int) -> Any:
        """Return the client; the first call starts the cluster, for so many tasks."""
        if self._site is None:
            with needs_extra("Running jobs on Dask", "plan"):
                import dask.config
                import distributed  # noqa: F401
            from .cluster import CONFIG, quiet_logs

            self._cleanup.enter_context(dask.config.set(CONFIG))
            self._cleanup.enter_context(quiet_logs())
            self._site = self._start(tasks) if self._scheduler is None else self._connect()
        return self._site.client

    def _start(self, tasks: int) -> Any:
        """Start the embedded cluster."""
        from distributed import Client
        from distributed.system import MEMORY_LIMIT

        from .cluster import Exits, memory_share, start_cluster, worker_count

        if self._memory is not None and self._memory > MEMORY_LIMIT:
            self._warn(
                f"this machine has {MEMORY_LIMIT / 2**30:.1f} GiB of memory, less than the "
                f"{self._memory / 2**30:.1f} GiB given; the workers share what it has"
            )
        count = worker_count(self._workers, tasks, self._memory)
        share, exits = memory_share(count, self._memory), Exits()
        folder = self._folder or Path(
            self._cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix="batchloom-", ignore_cleanup_errors=True)
            )
        )
        notes = self._notes_in(folder)
        cluster = self._cleanup.enter_context(start_cluster(count, share, exits))
        self._note(f"Dask dashboard: {cluster.dashboard_link}")
        client = self._cleanup.enter_context(Client(cluster, set_as_default=False))
        return self._site_of(client, notes, exits)

    def _connect(self) -> Any:
        """Connect to the scheduler that was given."""
        from distributed import Client

        notes = None if self._folder is None else self._notes_in(self._folder)
        try:
            client = Client(self._scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"No Dask scheduler answers at {self._scheduler}: {error}. "
                "Start one with: dask scheduler"
            ) from error
        return self._site_of(self._cleanup.enter_context(client), notes, None)

    def _notes_in(self, folder: Path) -> Path:
        """Make the folder in which workers note what they read."""
        notes = folder / f".reading-{uuid.uuid4().hex[:12]}"
        with storing("Preparing the job's folder", notes):
            notes.mkdir()
        self._cleanup.callback(shutil.rmtree, notes, ignore_errors=True)
        return notes

    def _site_of(self, client: Any, folder: Path | None, exits: Any) -> Any:
        from distributed.system import MEMORY_LIMIT

        from .autopsy import Machine
        from .dispatch import Site
        from .watch import Watch

        watch = Watch(client, exits=exits, warn=self._warn, note=self._note)
        self._cleanup.callback(watch.close)
        machine = None if self._scheduler else Machine(MEMORY_LIMIT, self._beside)
        return Site(client, watch, self._scheduler, folder, machine, self._patience, self._warn)


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
