"""Who works: the workers that a scheduler has, those that come, leave and die.

The scheduler tells its clients of these by events, which cost nothing while nothing happens; any
scheduler does, ours or one elsewhere. They arrive on a thread of Dask's and are taken in by the
thread that asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

from .cluster import Exit, Exits

__all__ = ["Death", "Watch", "Worker", "size_text"]

Cause = Literal["memory", "signal", "exit", "unknown"]

_EXIT_SECONDS = 2  # how long the nanny may take to say how a worker ended
_REFRESH_SECONDS = 5
_TOPICS = ("all", "worker-restart-memory")
_ECHO = "batchloom-watch"  # a topic of our own
_ECHO_SECONDS = 0.05, 10.0  # between two calls, and in all


def size_text(size: int) -> str:
    """Return bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(1, size >> 20)} MiB"


@dataclass(frozen=True)
class Worker:
    """A worker that is connected.

    Attributes
    ----------
    address, name : str
    threads : int
    limit : int
        Bytes that it may use; 0: not limited.
    stuck : bool
        Whether it runs no task and takes none, as it uses too much memory.
    """

    address: str
    name: str
    threads: int
    limit: int
    stuck: bool


@dataclass(frozen=True)
class Death:
    """A worker that died.

    Attributes
    ----------
    worker : str
        Its name, or its address where it has no name of its own.
    cause : {'memory', 'signal', 'exit', 'unknown'}
        ``memory``: its nanny ended it for taking too much.
    code : int
        Number of the signal, or exit code.
    limit : int
        Bytes that it was allowed; 0: not limited.
    threads : int
    keys : frozenset
        Keys of our tasks that it had been given.
    """

    worker: str
    cause: Cause
    code: int
    limit: int
    threads: int
    keys: frozenset[Any]

    @property
    def how(self) -> str:
        """Say how it died, in brackets."""
        return {
            "memory": f" (out of memory, limit {size_text(self.limit)})",
            "signal": f" (signal {self.code})",
            "exit": f" (exit code {self.code})",
            "unknown": "",
        }[self.cause]


class Watch:
    """The workers of a scheduler, up to date after each `update`.

    Parameters
    ----------
    client : distributed.Client
    exits : Exits, optional
        How the workers of the embedded cluster ended.
    warn, note : callable
        Told one sentence of each worker that died, and of each that left.

    Attributes
    ----------
    workers : dict of str to Worker
        By address.
    deaths : list of Death
        In order.
    """

    def __init__(
        self,
        client: Any,
        *,
        exits: Exits | None,
        warn: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self._client, self._exits, self._warn, self._note = client, exits, warn, note
        self._events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._wakes: dict[str, SimpleQueue[Any]] = {}
        self._out_of_memory: set[str] = set()
        self._seen: dict[str, Worker] = {}
        self.workers: dict[str, Worker] = {}
        self.deaths: list[Death] = []
        self._subscribe()
        self._refresh()

    def close(self) -> None:
        """Ask for no more events; else the scheduler would send one of the client's own leaving."""
        with suppress(OSError, RuntimeError):
            for topic in _TOPICS:
                self._client.unsubscribe_topic(topic)

    def _subscribe(self) -> None:
        """Ask for events, and return when they come.

        A client does not wait until the scheduler has heard what it subscribes to. A worker that
        joined after `_refresh` and before that would be told by nobody, and never be checked. What
        we subscribed to last was heard last, so we call until we hear ourselves.
        """
        heard = threading.Event()
        for topic in _TOPICS:
            self._client.subscribe_topic(topic, self._told)
        self._client.subscribe_topic(_ECHO, lambda _: heard.set())
        deadline = time.monotonic() + _ECHO_SECONDS[1]
        while not heard.is_set() and time.monotonic() < deadline:
            self._client.log_event(_ECHO, "heard")
            heard.wait(_ECHO_SECONDS[0])
        self._client.unsubscribe_topic(_ECHO)

    @property
    def threads(self) -> int:
        return sum(w.threads for w in self.workers.values())

    @contextmanager
    def waking(self, group: str, inbox: SimpleQueue[Any]) -> Iterator[None]:
        """Put None into a queue whenever something happened, so that who waits on it looks.

        `group` is what the keys of its tasks begin with.
        """
        self._wakes[group] = inbox
        try:
            yield
        finally:
            del self._wakes[group]

    def _told(self, event: tuple[float, Any]) -> None:
        """Keep an event for `update`; called on Dask's thread."""
        message = event[1]
        if not isinstance(message, dict):
            return
        if "rss" in message:
            self._out_of_memory.add(message["worker"])
        elif message.get("action") in ("add-worker", "remove-worker"):
            self._events.put(message)
            for inbox in list(self._wakes.values()):
                inbox.put(None)

    def update(self, *, idle: bool = False) -> None:
        """Take in what happened; where nothing seems to, ask the scheduler now and then.

        Raises
        ------
        OSError
            Where the scheduler does not answer.
        """
        while True:
            try:
                message = self._events.get_nowait()
            except Empty:
                break
            address = message["worker"]
            if message["action"] == "remove-worker":
                self._removed(address, message)
            elif address not in self.workers:
                self._refresh()
        if idle and time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._refresh()

    def _refresh(self) -> None:
        self._refreshed = time.monotonic()
        told = self._client.scheduler_info()["workers"]
        self.workers = {
            address: Worker(
                address,
                address if str(worker["name"]) in ("", address) else str(worker["name"]),
                worker["nthreads"],
                worker["memory_limit"] or 0,
                worker.get("status") == "paused" and not _executing(worker),
            )
            for address, worker in told.items()
        }
        self._seen |= self.workers

    def _most(self) -> int:
        return max((w.limit for w in self._seen.values()), default=0)

    def _removed(self, address: str, message: dict[str, Any]) -> None:
        self.workers.pop(address, None)
        known = self._seen.get(address) or Worker(address, address, 1, self._most(), False)
        keys = frozenset(
            key
            for key in message["processing-tasks"]
            if isinstance(key, tuple) and key[0] in self._wakes
        )
        after = "; its tasks run again" if keys else ""
        if message.get("expected") or self._said_goodbye(address):
            self._note(f"worker {known.name} left{after}")
            return
        ended = None if self._exits is None else self._exits.wait(address, _EXIT_SECONDS)
        cause, code = self._cause(address, ended)
        name = known.name if ended is None else ended.name
        death = Death(name, cause, code, known.limit, known.threads, keys)
        self.deaths.append(death)
        tell = self._warn if keys or self._exits is not None else self._note
        tell(f"worker {death.worker} died{death.how}{after}")

    def _said_goodbye(self, address: str) -> bool:
        """Whether the worker was told to close, as by its batch system."""
        if self._exits is not None:
            return False
        events = self._client.get_events(address) or ()
        return any(isinstance(e, dict) and e.get("action") == "closing-worker" for _, e in events)

    def _cause(self, address: str, ended: Exit | None) -> tuple[Cause, int]:
        if address in self._out_of_memory:
            return "memory", 0
        if ended is None:
            return "unknown", 0
        return ("signal", -ended.code) if ended.code < 0 else ("exit", ended.code)


def _executing(worker: dict[str, Any]) -> int:
    counts = worker.get("metrics", {}).get("task_counts", {})
    return int(counts.get("executing", 0))
