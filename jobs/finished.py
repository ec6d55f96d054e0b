"""What an earlier run of the same job had finished when it was killed: tasks and epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataplane.canonical import plain_json
from ..dataplane.dataset import Dataset
from ..dataplane.epochs import FinishedEpoch
from ..dataplane.manifest_writer import ManifestWriter
from ..dataplane.storage import locate
from ..dataplane.versions import versions
from .context import JobContext
from .losses import Signal
from .spec import JobSpec
from .work import remove_staging

__all__ = ["Finished", "job_identity"]

_EPOCH, _STAGING = "epoch", "staging"


def job_identity(
    spec: JobSpec,
    dataset: Dataset,
    stages: Sequence[Mapping[str, Any]],
    signal: Signal | None = None,
) -> dict[str, Any]:
    """Return what makes two jobs the same, as JSON: all that decides, and what computes it."""
    return {
        "snapshot": dataset.snapshot.fingerprint,
        "stages": list(stages),
        "seed": spec.seed,
        "epochs": list(spec.epochs),
        "batch_size": spec.batch_size,
        "micro_per_step": spec.micro_per_step,
        "form": spec.form,
        "signal": None if signal is None else signal.fingerprint(),
        "versions": versions(),
    }


class Finished:
    """Takes finished epochs over from an earlier run, and keeps this run's for a later one.

    Parameters
    ----------
    job : JobContext
    writer : ManifestWriter
    target : Path
    epochs : (int, int)
        Of the job, half-open; for the note that says what there is to go on from.
    """

    def __init__(
        self, job: JobContext, writer: ManifestWriter, target: Path, epochs: tuple[int, int]
    ) -> None:
        self._job, self._writer = job, writer
        self._reports: Mapping[str, Any] = {}
        before = job.work.find(_STAGING)
        if before is not None:
            remove_staging(target, before.value)
        job.work.record(_STAGING, {}, writer.folder.name)
        self._tell(epochs)

    @property
    def reports(self) -> dict[str, Any]:
        """What the stages told of themselves."""
        return {**self._reports, **self._job.reports}

    def _tell(self, epochs: tuple[int, int]) -> None:
        keys = [entry.key for entry in self._job.work.taken]
        done = sum(_key(epoch) in keys for epoch in range(*epochs))
        tasks = len(keys) - done - keys.count(_STAGING)
        if tasks or done:
            self._job.progress.note(
                f"going on from an earlier run: {tasks} finished tasks, "
                f"{done} of {epochs[1] - epochs[0]} epochs"
            )

    def take(self, epoch: int) -> bool:
        """Take an epoch over; False where it was not finished."""
        entry = self._job.work.find(_key(epoch))
        if entry is None:
            return False
        finished = FinishedEpoch.from_json(entry.value["epoch"])
        self._writer.adopt(finished, locate(self._job.work.path))
        self._reports = entry.value["reports"]
        self._job.reports.update(entry.value["job_reports"])
        return True

    def give(self, number: int, reports: Mapping[str, Any]) -> None:
        """Record the epoch that was written last; a recipe is not worth it."""
        self._reports = reports
        epoch = self._writer.finished(number)
        if epoch is None or not self._link(epoch):
            return
        files = {part.name: (part.bytes, part.sha256) for part in epoch.parts}
        value = {"epoch": epoch.to_json(), "reports": reports, "job_reports": self._job.reports}
        plain = plain_json(value, "reports", non_finite=True)
        self._job.work.record(_key(number), files, plain)

    def _link(self, epoch: FinishedEpoch) -> bool:
        """Give the parts of an epoch a second name in the work folder; False where none can be."""
        try:
            for part in epoch.parts:
                second = self._job.work.path / part.name
                second.unlink(missing_ok=True)
                second.hardlink_to(self._writer.folder / part.name)
        except OSError:
            return False
        return True


def _key(epoch: int) -> str:
    return f"{_EPOCH} {epoch}"
