"""The runs that the service keeps: a folder each, in which files are only ever added.

::

    DIR/runs/NAME/job.toml          what to plan, as for ``batchloom run``; the operator's
    DIR/runs/NAME/plan/             the series: a member an epoch
    DIR/runs/NAME/signals/          the signal store
    DIR/runs/NAME/seals/            which rank has sent all of which epoch; `seals`

There is no database and no cursor: what is served is what the folder holds, and a service that was
killed is started again. ``out`` and ``signal`` of the job file are the folder's own, whatever it
says; ``epochs`` is the whole training, of which one epoch is planned at a time where a method makes
a series or goes by a signal (or the file says ``series = true``), else all of them at once. A first
epoch, before which nothing was written, is planned without the stages that wait for a signal: of
whole micro-batches, of all rows.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any

from ...dataplane.errors import BatchloomError, ManifestError
from ...dataplane.manifest import Manifest
from ...dataplane.remote_wire import NAME
from ...dataplane.series import Series
from ...dataplane.signal_binding import snapshot_of
from ...dataplane.snapshot import Snapshot
from ...dataplane.storage import locate
from ..job_file import load_job, settled
from ..methods import stage_of
from ..spec import JobSpec
from ..stages import BatchStage, GroupStage, Stage
from .refusals import RefusedError
from .seals import Seals

__all__ = ["JOB", "Run", "Runs", "load_spec", "member_spec"]

JOB = "job.toml"


def load_spec(folder: Path) -> tuple[JobSpec, list[Stage]]:
    """Read a run's job file.

    Raises
    ------
    JobSpecError
    """
    return settled(load_job(folder / JOB, out=str(folder / "plan"), signal=str(folder / "signals")))


def member_spec(spec: JobSpec, start: int, stop: int, **engine: Any) -> JobSpec:
    """Return the job that plans one member of a run's series."""
    if start == 0 and spec.signal is not None and not _has_signals(spec.signal):
        spec = _before_signals(spec, (start, stop))
    given = {name: value for name, value in engine.items() if value is not None}
    if given.get("scheduler") is not None:
        given["workers"] = None
    elif given.get("workers") is not None:
        given["scheduler"] = None
    return dataclasses.replace(spec, epochs=(start, stop), series=True, **given)


def _before_signals(spec: JobSpec, epochs: tuple[int, int]) -> JobSpec:
    """Return the job of a run's first epochs: without the stages that wait for a signal."""
    stages, grouped = [], False
    for table in spec.stages:
        stage = stage_of(table)
        groupless = isinstance(stage, BatchStage) and stage.needs_groups and not grouped
        if stage.waits_for_signal(epochs) or groupless:
            continue
        grouped = grouped or isinstance(stage, GroupStage)
        stages.append(table)
    return dataclasses.replace(spec, stages=stages, signal=None)


def _has_signals(path: str) -> bool:
    return any(size is None for _, size in locate(path).entries())


class Run:
    """One run.

    Attributes
    ----------
    name : str
    folder : Path
    epochs : range
        Of the whole training.
    by_epoch : bool
        Whether each epoch is planned when the one before it is sealed.
    problem : str or None
        Why its job file cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.signals, self.seals = locate(folder / "signals"), Seals(folder / "seals")
        self.lock = threading.Lock()  # of what is posted
        self._reading = threading.Lock()
        self._series: Series | None = None
        self._members: dict[tuple[int, int], Manifest] = {}
        self._snapshot: Snapshot | None = None
        self.problem: str | None = None
        self.keeps_nonfinite = False
        self._load()
        self.refresh()

    def _load(self) -> None:
        self.epochs, self.by_epoch = range(0), False
        try:
            spec, stages = load_spec(self.folder)
        except BatchloomError as error:
            self.problem = str(error)
            return
        self.epochs = range(*spec.epochs)
        self.by_epoch = spec.series or any(s.waits_for_signal(spec.epochs) for s in stages)
        self.keeps_nonfinite = spec.on_invalid == "drop" or any(
            getattr(stage, "nonfinite", "fail") == "keep" for stage in stages
        )

    # --- members ----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look for members that were added."""
        with self._reading:
            if self._series is None:
                self._series = Series(self.folder / "plan")
            self._series.refresh()
            for place in self._series.ranges:
                if place not in self._members:
                    self._members[place] = self._series.member(*place)

    @property
    def members(self) -> dict[tuple[int, int], Manifest]:
        """The manifest of each range of epochs that is planned."""
        return dict(sorted(self._members.items()))

    def holds(self, epoch: int) -> Manifest | None:
        """Return the member that holds an epoch."""
        found = [m for (a, b), m in list(self._members.items()) if a <= epoch < b]
        return found[0] if found else None

    def place_of(self, epoch: int) -> tuple[int, int]:
        """Return the range of epochs that is planned with one."""
        return (epoch, epoch + 1) if self.by_epoch else (self.epochs.start, self.epochs.stop)

    def due(self) -> tuple[int, int] | None:
        """Return the epochs that can be planned now, and are not."""
        if self.problem is not None:
            return None
        missing = next((e for e in self.epochs if self.holds(e) is None), None)
        if missing is None:
            return None
        if missing > self.epochs.start and self.seals.sealed(missing - 1) is None:
            return None
        return self.place_of(missing)

    def check_epoch(self, epoch: int) -> None:
        if self.problem is not None:
            raise RefusedError(409, f"The run '{self.name}' cannot be planned: {self.problem}")
        if epoch not in self.epochs:
            raise RefusedError(
                404,
                f"The run '{self.name}' has no epoch {epoch}: it is of epochs "
                f"{self.epochs.start} to {self.epochs.stop - 1}.",
            )

    # --- signals ----------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the newest snapshot that the rows of signals belong to."""
        newest = self.holds_last()
        if newest is not None and (
            self._snapshot is None or newest.snapshot.next_row_id > self._snapshot.next_row_id
        ):
            self._snapshot = newest.snapshot
        if self._snapshot is None:
            self._snapshot = snapshot_of(self.signals)
        if self._snapshot is None:
            raise RefusedError(
                409, f"The run '{self.name}' has no plan yet, so its rows are not known. Wait."
            )
        return self._snapshot

    def holds_last(self) -> Manifest | None:
        members = self._members
        return members[max(members)] if members else None

    def knows(self, fingerprint: str) -> bool:
        """Whether a snapshot is one of those that this run was planned from."""
        known = {m.snapshot.fingerprint for m in self._members.values()}
        return fingerprint in known or fingerprint == self.snapshot().fingerprint

    def describe(self) -> dict[str, Any]:
        """Return what is told of the run."""
        members = [
            {"start": a, "stop": b, "id": m.manifest_id} for (a, b), m in self.members.items()
        ]
        told: dict[str, Any] = {
            "run": self.name,
            "epochs": [self.epochs.start, self.epochs.stop],
            "by_epoch": self.by_epoch,
            "members": members,
            "sealed": self.seals.all_sealed(),
        }
        if self.problem is not None:
            told["problem"] = self.problem
        return told


class Runs:
    """All runs of a folder; found by name, their manifests by id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, Run] = {}
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()

    def rescan(self) -> list[Run]:
        """Look for runs and members that were added; return all runs."""
        with self._lock:
            names = [n for n, size in locate(self.folder).entries() if size is None]
            for name in sorted(names):
                if not re.fullmatch(NAME, name) or not (self.folder / name / JOB).exists():
                    continue
                known = self._runs.get(name)
                try:
                    if known is None or known.problem is not None:
                        self._runs[name] = Run(self.folder / name)
                    else:
                        known.refresh()
                    self._problems.pop(name, None)
                except BatchloomError as error:
                    self._problems[name] = str(error)
            return list(self._runs.values())

    def names(self) -> list[str]:
        return sorted({*self._runs, *self._problems})

    def run(self, name: str) -> Run:
        """Return a run; `RefusedError` where there is none."""
        if re.fullmatch(NAME, name) is None:
            raise RefusedError(400, "A run's name is of letters, digits, '_' and '-', 64 at most.")
        if name not in self._runs:
            self.rescan()
        if name in self._runs:
            return self._runs[name]
        if name in self._problems:
            raise RefusedError(500, f"The run '{name}' cannot be read: {self._problems[name]}")
        raise RefusedError(404, f"There is no run '{name}'.")

    def known(self, name: str) -> Run | None:
        """Return a run that was found already; no file is looked at."""
        return self._runs.get(name)

    def manifest(self, manifest_id: str) -> Manifest:
        """Return a manifest of any run by its id; `RefusedError` where there is none."""
        if re.fullmatch("[0-9a-f]{64}", manifest_id) is None:
            raise RefusedError(400, "A manifest's id is of 64 hexadecimal digits.")
        for again in (False, True):
            if again:
                self.rescan()
            for run in list(self._runs.values()):
                for manifest in run.members.values():
                    if manifest.manifest_id == manifest_id:
                        return manifest
        raise RefusedError(404, f"There is no manifest {manifest_id}.")


def epoch_of(manifest: Manifest, epoch: int) -> Any:
    """Return an epoch of a manifest; `RefusedError` where it has none."""
    try:
        return manifest.epoch(epoch)
    except ManifestError as error:
        if epoch in manifest.records:
            raise
        raise RefusedError(404, str(error)) from None
