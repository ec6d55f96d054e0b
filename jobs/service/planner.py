"""Planning beside the service: some processes that are given one job after another.

What is to be planned follows from the runs' folders (`runs.Run.due`), so nothing is kept here but
what is being done, and why something failed. A process that dies is replaced; its plan has failed
and may be tried again.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .runs import Run

__all__ = ["Planner", "Planning"]

_LEAVE_SECONDS = 15.0

Log = Callable[..., None]


@dataclass
class Planning:
    """A plan that is being made, or could not be.

    Attributes
    ----------
    run : Run
    start, stop : int
        Its epochs.
    step : str
        What it is at.
    done, total : int
        Rows of that.
    error : str or None
        Why it has failed.
    """

    run: Run
    start: int
    stop: int
    step: str = "waiting"
    done: int = 0
    total: int = 0
    error: str | None = None
    began: float = field(default_factory=time.monotonic)
    step_began: float = field(default_factory=time.monotonic)

    def describe(self) -> dict[str, Any]:
        """Return what is told of it."""
        if self.error is not None:
            return {"state": "failed", "error": self.error}
        told = {"state": "pending", "step": self.step, "done": self.done, "total": self.total}
        spent = time.monotonic() - self.step_began
        eta = spent * (self.total - self.done) / self.done if self.done else None
        return {**told, "eta": None if eta is None else round(eta, 1)}

    def take(self, told: Mapping[str, Any]) -> None:
        """Take a line of progress."""
        if "step" in told:
            if told["step"] != self.step:
                self.step, self.step_began = str(told["step"]), time.monotonic()
            self.done, self.total = int(told["done"]), int(told["rows"])


class Planner:
    """Plans what is due, some plans at a time.

    Parameters
    ----------
    engine : mapping
        ``scheduler``, ``workers``, ``memory`` of the plans.
    at_once : int
    log : callable
        Told of events: ``log("planned", run=…)``.
    """

    def __init__(self, engine: Mapping[str, Any], at_once: int, log: Log) -> None:
        self._engine, self._log = dict(engine), log
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, int], Planning] = {}
        self._orders: queue.Queue[Planning | None] = queue.Queue()
        self._stopping = threading.Event()
        self._processes: set[subprocess.Popen[str]] = set()
        self.planned, self.failed, self.seconds = 0, 0, 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"batchloom-planner-{n}", daemon=True)
            for n in range(at_once)
        ]
        for thread in self._threads:
            thread.start()

    def look_at(self, run: Run, *, retry: bool = False) -> None:
        """Plan what is due of a run, unless that is under way, or failed and not to be retried."""
        due = run.due()
        if due is None or self._stopping.is_set():
            return
        with self._lock:
            known = self._plans.get((run.name, due[0]))
            if known is not None and (known.error is None or not retry):
                return
            plan = self._plans[run.name, due[0]] = Planning(run, *due)
        self._orders.put(plan)

    def state_of(self, run: Run, epoch: int) -> Planning | None:
        """Return the plan of an epoch that is being made, or failed."""
        with self._lock:
            return self._plans.get((run.name, run.place_of(epoch)[0]))

    @property
    def pending(self) -> int:
        with self._lock:
            return sum(p.error is None for p in self._plans.values())

    def close(self) -> None:
        """End the processes; what was not finished is planned when the service starts again."""
        self._stopping.set()
        for _ in self._threads:
            self._orders.put(None)
        for process in list(self._processes):
            if process.stdin is not None:
                process.stdin.close()
        for process in list(self._processes):
            try:
                process.wait(_LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in self._threads:
            thread.join(_LEAVE_SECONDS)

    # --- in the threads ---------------------------------------------------------------------------

    def _work(self) -> None:
        process: subprocess.Popen[str] | None = None
        while not self._stopping.is_set():
            plan = self._orders.get()
            if plan is None:
                break
            try:
                if process is None or process.poll() is not None:
                    process = self._start()
                error = self._made(process, plan)
                if error is None:
                    plan.run.refresh()
            except Exception as found:  # whoever asks for the plan is told, and may retry
                error = f"{type(found).__name__}: {found}"
            self._finish(plan, error)
        if process is not None:
            self._processes.discard(process)

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchloom.jobs.service.planner_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the service, which ends it
        )
        self._processes.add(process)
        return process

    def _made(self, process: subprocess.Popen[str], plan: Planning) -> str | None:
        """Have a process make a plan; return why it could not."""
        if process.stdin is None or process.stdout is None:
            return "the planning process has no pipes"
        order = {"folder": str(plan.run.folder), "start": plan.start, "stop": plan.stop}
        self._log("planning", run=plan.run.name, epochs=[plan.start, plan.stop])
        plan.step, plan.step_began = "starting", time.monotonic()
        try:
            process.stdin.write(json.dumps({**order, **self._engine}) + "\n")
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has died; so there is no line to read
        for line in process.stdout:
            told = json.loads(line)
            if "ready" in told:
                return None
            if "failed" in told:
                return str(told["failed"])
            for kind in ("note", "warning"):
                if kind in told:
                    self._log(kind, run=plan.run.name, text=told[kind])
            plan.take(told)
        self._processes.discard(process)
        code = process.wait()
        if self._stopping.is_set():
            return "the service was stopped"
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return (
            f"the planning process ended ({how}), most likely for want of memory: start the "
            "service with a smaller --memory or fewer --workers, then retry."
        )

    def _finish(self, plan: Planning, error: str | None) -> None:
        seconds = time.monotonic() - plan.began
        with self._lock:
            self.seconds += seconds
            if error is None:
                self.planned += 1
                self._plans.pop((plan.run.name, plan.start), None)
            else:
                self.failed += 1
                plan.error = error
        where = {"run": plan.run.name, "epochs": [plan.start, plan.stop]}
        if error is None:
            self._log("planned", seconds=round(seconds, 3), **where)
            self.look_at(plan.run)
        elif not self._stopping.is_set():
            self._log("plan failed", error=error, **where)
