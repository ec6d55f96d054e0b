"""What a job would do, said before it does it."""

from __future__ import annotations

from dataclasses import dataclass

from .forms import manifest_bytes
from .job_file import settled
from .losses import open_signal
from .spec import JobSpec
from .start import check_job, open_job, rows_of
from .tasks import group_tasks

__all__ = ["Estimate", "estimate"]

_WRITE_RATE = 8e6  # rows ordered, written and hashed a CPU second


@dataclass(frozen=True)
class Estimate:
    """What a job would do. Rows are an upper bound where a select stage shrinks them.

    Attributes
    ----------
    rows, micro_batches : int
        An epoch.
    epochs : int
    bytes : int
        Of the manifest.
    scanned_bytes : int
        Of the dataset's files, all passes.
    tasks : int
        Dask tasks a pass.
    cpu_seconds : float
    """

    rows: int
    micro_batches: int
    epochs: int
    bytes: int
    scanned_bytes: int
    tasks: int
    cpu_seconds: float


def estimate(spec: JobSpec) -> Estimate:
    """Say what a job would do; nothing is written, no data is read."""
    spec, stages = settled(spec)
    dataset, first_added = open_job(spec, open_signal(spec))
    check_job(spec, dataset, stages)
    rows = len(rows_of(dataset, first_added))
    epochs = spec.epochs[1] - spec.epochs[0]
    scans = sum(bool(s.reads()) + (s.kind == "group") for s in stages)
    cpu = sum(s.cost(dataset, rows) for s in stages) + epochs * rows / _WRITE_RATE
    return Estimate(
        rows=rows,
        micro_batches=-(-rows // spec.batch_size),
        epochs=epochs,
        bytes=manifest_bytes(rows, spec, stages),
        scanned_bytes=scans * sum(f.bytes for f in dataset.snapshot.fragments),
        tasks=len(group_tasks(dataset.present(), spec.task_bytes)) if scans else 0,
        cpu_seconds=round(cpu, 4),
    )
