"""Running the tasks of one map on a cluster, to the end or to an error that names a file.

Workers may come, leave and die meanwhile. Dask runs the tasks of a dead worker again, and gives a
task up that was on too many of them; but it blames all tasks that a worker had been given, though
only one may have killed it. So a task that it gives up is run once more, with no other task in
flight: the one that kills its worker then is to blame, and the others go on.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ..dataplane.errors import BatchloomError, EngineError
from .autopsy import Machine, killed, last_read
from .foreign import check_workers
from .trail import Trail, read_trail, run_noting
from .watch import Death, Watch, size_text

__all__ = ["Dispatch", "Site"]

_TICK_SECONDS = 1.0
_GRACE_SECONDS = (5.0, 30.0)  # without a worker before it is told; our own are started anew
_EVENT_SECONDS = 3.0  # how long the news of a death may come after the task was given up
_SPARE_TASKS = 8
# Only inside the task is anything of ours imported: a worker that has no Batchloom, or another one,
# fails the task, where it would die of a task that it cannot read.
_CALL = "__import__('pickle').loads(call)()"


@dataclass(frozen=True)
class Site:
    """A cluster that is connected, and what is said of it.

    Attributes
    ----------
    client : distributed.Client
    watch : Watch
    scheduler : str or None
        Its address; None: the embedded cluster.
    folder : Path or None
        Where workers note what they read.
    machine : Machine or None
        That of the embedded cluster.
    patience : float
        Seconds without a worker that takes tasks after which a job gives up.
    warn : callable
    """

    client: Any
    watch: Watch
    scheduler: str | None
    folder: Path | None
    machine: Machine | None
    patience: float
    warn: Callable[[str], None]

    @property
    def embedded(self) -> bool:
        return self.scheduler is None

    @property
    def room(self) -> int:
        """How many tasks may be in flight.

        Elsewhere some wait at the scheduler, so that a cluster that grows with its work sees some.
        """
        threads = self.watch.threads
        return max(1, threads) if self.embedded else threads + max(_SPARE_TASKS, threads)


class Dispatch:
    """The tasks of one map; see `Engine.map` for the parameters."""

    def __init__(
        self,
        site: Site,
        function: Callable[..., Any],
        tasks: Sequence[Any],
        args: tuple[Any, ...],
    ) -> None:
        self._site, self._client, self._watch = site, site.client, site.watch
        self._function, self._tasks, self._args = function, tasks, args
        self._group = f"{function.__name__}-{uuid.uuid4().hex}"
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._waiting = iter(range(len(tasks)))
        self._attempts = itertools.count()
        self._flying: dict[Any, Any] = {}  # key → future
        self._suspects: deque[int] = deque()
        self._alone: int | None = None
        self._retried: set[int] = set()
        self._checked: set[str] = set()
        self._looked = len(self._watch.deaths)
        self._worked = time.monotonic()
        self._told = False

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield (position, result) of each task as it is ready."""
        with self._watch.waking(self._group, self._inbox):
            try:
                self._look(idle=False)
                while self._flying:
                    future = self._finished()
                    position = future.key[1]
                    del self._flying[future.key]
                    found = self._result(future, position)
                    if position == self._alone:
                        self._alone = None
                    self._submit()
                    if found:
                        yield position, found[0]
            finally:
                if self._flying:
                    with suppress(OSError, CancelledError):
                        self._client.cancel(list(self._flying.values()), force=True)

    def _submit(self) -> None:
        """Send as many tasks as there is room for; of the suspects one, when nothing else flies."""
        if self._suspects or self._alone is not None:
            if not self._flying:
                self._alone = self._suspects.popleft()
                self._send(self._alone)
            return
        room = max(0, self._site.room - len(self._flying))
        for position in itertools.islice(self._waiting, room):
            self._send(position)

    def _send(self, position: int) -> None:
        from distributed.protocol.pickle import dumps

        key = (self._group, position, next(self._attempts))
        trail = self._trail_file(position)
        call = partial(
            run_noting,
            None if trail is None else str(trail),
            self._function,
            self._tasks[position],
            *self._args,
        )
        future = self._client.submit(eval, _CALL, {"call": dumps(call)}, key=key)
        self._flying[key] = future
        future.add_done_callback(self._inbox.put)

    def _finished(self) -> Any:
        """Wait for a future; see to the workers meanwhile."""
        while True:
            try:
                found = self._inbox.get(timeout=_TICK_SECONDS)
            except Empty:
                self._look(idle=True)
                continue
            if found is not None:
                self._worked = time.monotonic()
                return found
            self._look(idle=False)

    def _result(self, future: Any, position: int) -> tuple[Any] | None:
        """Return the result of a task, or None where it has to run again."""
        from distributed import KilledWorker

        try:
            if future.status == "finished":
                # By the scheduler, which knows at once when the worker that has it is gone.
                return (self._client.gather(future, direct=False),)
            return (future.result(),)  # raises
        except KilledWorker as error:
            self._given_up(position, error.allowed_failures + 1)
            return None
        except SystemError:
            # CPython 3.11 fails so, now and then, where two threads of a worker import what parses.
            if position in self._retried:
                raise
            self._retried.add(position)
            self._send(position)
            return None
        except (BatchloomError, ImportError, AttributeError):
            with suppress(OSError):
                self._check_workers(again=True)  # a worker's fault rather than the task's
            raise
        except CancelledError as error:
            raise _lost() from error
        except OSError as error:
            if future.status == "error":
                raise
            raise _lost() from error
        finally:
            future.release()

    # --- workers ---

    def _look(self, *, idle: bool) -> None:
        """Take in which workers came and went, and act on it."""
        try:
            self._watch.update(idle=idle)
            self._check_workers()
        except OSError as error:
            raise _lost() from error
        self._check_alone()
        self._check_patience()
        self._submit()

    def _check_workers(self, *, again: bool = False) -> None:
        """Ask workers that somebody else started whether they can run these tasks."""
        if self._site.embedded:
            return
        new = set(self._watch.workers) - (set() if again else self._checked)
        if new:
            folder, example = self._site.folder, self._tasks[0].example
            check_workers(self._client, sorted(new), folder, example)
            self._checked |= new

    def _check_patience(self) -> None:
        """Say when nobody works, and give up in the end."""
        site, workers = self._site, self._watch.workers.values()
        if any(not w.stuck for w in workers) or not self._flying:
            self._worked, self._told = time.monotonic(), False
            return
        waited = time.monotonic() - self._worked
        where = "the embedded cluster" if site.embedded else site.scheduler
        what = "all workers are paused, out of memory," if workers else "no worker is connected"
        if waited > _GRACE_SECONDS[site.embedded] and not self._told:
            self._told = True
            site.warn(f"{what} at {where}; waiting up to {site.patience:,.0f} s for one that works")
        if waited > site.patience:
            advice = f"start one with: dask worker {where}"
            if workers:
                limit = size_text(max(w.limit for w in workers))
                advice = f"start some with more than their {limit} (--memory-limit)"
            elif site.embedded:
                advice = "run the same command again, with fewer workers"
            raise EngineError(
                f"For {waited:,.0f} s {what} at {where}{self._read_last()}; {advice}."
            )

    def _read_last(self) -> str:
        """Say what the tasks in flight were reading when a worker of theirs died."""
        mine = [k for d in self._watch.deaths for k in d.keys if k in self._flying]
        read = {last_read(self._tasks[k[1]], self._trail(k[1])) for k in mine}
        return f" (the last ones died while they read {'; '.join(sorted(read))})" if read else ""

    # --- tasks that kill ---

    def _given_up(self, position: int, workers: int) -> None:
        """Raise where a task is certain to have killed its workers; else it is tried alone."""
        deaths = self._deaths(position, workers)
        trail = self._trail(position)
        begun = 0 if trail is None else trail.runs
        its_own = deaths and all(d.threads == 1 for d in deaths) and begun >= workers
        if its_own or position == self._alone:
            raise self._killed(position, deaths)
        self._suspects.append(position)

    def _check_alone(self) -> None:
        """Raise where the task that runs alone killed its worker."""
        new, self._looked = self._watch.deaths[self._looked :], len(self._watch.deaths)
        if self._alone is None:
            return
        if any(self._of(k, self._alone) for d in new for k in d.keys):
            raise self._killed(self._alone, self._deaths(self._alone))

    def _deaths(self, position: int, expected: int = 0) -> list[Death]:
        """Return the deaths that a task is blamed for, when there are as many as expected."""
        deadline = time.monotonic() + _EVENT_SECONDS
        while True:
            self._watch.update()
            found = [d for d in self._watch.deaths if any(self._of(k, position) for k in d.keys)]
            if len(found) >= expected or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def _of(self, key: Any, position: int) -> bool:
        return bool(key[0] == self._group and key[1] == position)

    def _killed(self, position: int, deaths: list[Death]) -> EngineError:
        return killed(self._tasks[position], self._trail(position), deaths, self._site.machine)

    def _trail_file(self, position: int) -> Path | None:
        folder = self._site.folder
        return None if folder is None else folder / f"{self._group}-{position}"

    def _trail(self, position: int) -> Trail | None:
        file = self._trail_file(position)
        return None if file is None else read_trail(file)


def _lost() -> EngineError:
    return EngineError("The connection to the Dask scheduler was lost; run the same command again.")
