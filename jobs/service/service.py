"""The service's core: runs, their inboxes, and what plans them; without HTTP."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...dataplane.commit import hold
from ...dataplane.errors import StorageError
from .metrics import EventLog, Metrics
from .planner import Planner
from .posting import Inbox
from .ranks import RankBoard
from .refusals import RefusedError, int_of
from .runs import Run, Runs

__all__ = ["Service"]

_RESCAN_SECONDS = 2.0
_MOST_RANKS = 100_000


class Service:
    """What the service does; its methods may be called from several threads.

    Parameters
    ----------
    folder : path
        Of the runs: ``folder/runs/NAME/job.toml``.
    engine : mapping
        ``scheduler``, ``workers``, ``memory`` of plans.
    plans_at_once : int
    log : EventLog

    Raises
    ------
    StorageError
        Where another service keeps the folder, or it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine: Mapping[str, Any] | None = None,
        plans_at_once: int = 2,
        log: EventLog | None = None,
    ) -> None:
        self.folder, self.log, self.metrics = folder, log or EventLog(), Metrics()
        runs = folder / "runs"
        try:
            runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{runs} cannot be made: {error.strerror}.") from error
        self._lock_of_folder = hold(runs)
        if not self._lock_of_folder.__enter__():
            raise StorageError(f"{runs} is kept by another service; stop that one first.")
        self.runs, self.ranks = Runs(runs), RankBoard()
        self._inboxes: dict[str, Inbox] = {}
        self._lock = threading.Lock()
        self.ready, self.stopping = False, threading.Event()
        self.planner = Planner(engine or {}, plans_at_once, self.log)
        self._scan = threading.Thread(target=self._look, name="batchloom-rescan", daemon=True)
        self._scan.start()

    def close(self) -> None:
        """Stop planning, and let the folder go."""
        self.stopping.set()
        self._scan.join()
        self.planner.close()
        self._lock_of_folder.__exit__(None, None, None)

    def _look(self) -> None:
        """Look for runs, and for what is to be planned, now and again."""
        while not self.stopping.is_set():
            try:
                self.rescan()
            except Exception as error:  # the next look may find the folder well again
                self.log("rescan failed", error=f"{type(error).__name__}: {error}")
            self.ready = True
            self.stopping.wait(_RESCAN_SECONDS)

    def rescan(self) -> None:
        runs = self.runs.rescan()
        for run in runs:
            self.planner.look_at(run)
        for name, value in (
            ("batchloom_runs", len(runs)),
            ("batchloom_plans_pending", self.planner.pending),
            ("batchloom_plans_total", self.planner.planned),
            ("batchloom_plans_failed_total", self.planner.failed),
            ("batchloom_plan_seconds_total", self.planner.seconds),
        ):
            self.metrics.set(name, value)

    # --- runs -------------------------------------------------------------------------------------

    def describe(self, name: str) -> dict[str, Any]:
        """Return what is told of a run."""
        try:
            run = self.runs.run(name)
        except RefusedError as error:
            if error.status != 500:
                raise
            return {"run": name, "problem": str(error), "members": []}
        told = run.describe()
        due = run.due()
        if due is not None:
            told["planning"] = {"start": due[0], "stop": due[1], **self.epoch(run, due[0])}
        return told

    def epoch(self, run: Run, epoch: int) -> dict[str, Any]:
        """Return how far the plan of an epoch is: ready, pending, or failed."""
        run.check_epoch(epoch)
        manifest = run.holds(epoch)
        if manifest is not None:
            return {"state": "ready", "id": manifest.manifest_id}
        plan = self.planner.state_of(run, epoch)
        if plan is not None:
            return plan.describe()
        return {"state": "pending", "step": "not sealed yet", "done": 0, "total": 0, "eta": None}

    def retry(self, run: Run, epoch: int) -> dict[str, Any]:
        """Plan an epoch again that could not be planned."""
        run.check_epoch(epoch)
        self.planner.look_at(run, retry=True)
        return self.epoch(run, epoch)

    # --- signals ----------------------------------------------------------------------------------

    def inbox(self, run: Run) -> Inbox:
        with self._lock:
            if run.name not in self._inboxes:
                self._inboxes[run.name] = Inbox(run)
            return self._inboxes[run.name]

    def register(self, run: Run, body: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an attempt of a training."""
        fingerprint = body.get("fingerprint")
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise RefusedError(400, "'fingerprint' must be the snapshot's, as text.")
        attempt = self.inbox(run).register(fingerprint)
        self.log("attempt", run=run.name, attempt=attempt)
        return {"attempt": attempt}

    def post(
        self, run: Run, signal: str, attempt: int, writer: int, sequence: int, data: Any
    ) -> dict[str, Any]:
        """Take a part of a signal in; see `posting.Inbox.post`."""
        told = self.inbox(run).post(signal, attempt, writer, sequence, data)
        self.metrics.add("batchloom_signal_parts_total")
        self.metrics.add("batchloom_signal_rows_total", told["rows"])
        return told

    def seal(self, run: Run, epoch: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take a rank's word that it has sent all of an epoch; plan the next one when all have."""
        run.check_epoch(epoch)
        attempt = int_of(body, "attempt", 1, 65_535)
        world = int_of(body, "world", 1, _MOST_RANKS)
        rank = int_of(body, "rank", 0, world - 1)
        parts = body.get("parts")
        if not isinstance(parts, dict) or not all(_is_count(n) for n in parts.values()):
            raise RefusedError(400, "'parts' must say how many parts there are of each signal.")
        if run.holds(epoch) is None:
            raise RefusedError(409, f"Epoch {epoch} of '{run.name}' is not planned yet.")
        inbox = self.inbox(run)
        inbox.check_attempt(attempt)
        missing = inbox.missing(attempt, rank, parts)
        if missing:
            raise RefusedError(
                409,
                f"Rank {rank} counts parts that are not here: {', '.join(missing)}. Send them, "
                "then seal again.",
            )
        waiting = run.seals.seal(epoch, attempt, rank, world, parts)
        if waiting:
            return {"state": "waiting", "ranks": waiting[:100]}
        self.log("sealed", run=run.name, epoch=epoch)
        self.planner.look_at(run)
        return {"state": "sealed"}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 24
