"""Hashing a dataset's files on the engine: what ``--deep`` asks for."""

from __future__ import annotations

from ..dataplane.dataset import Dataset
from ..dataplane.deep_hashes import content_sha256
from .engine import Engine
from .progress import Progress
from .tasks import TASK_BYTES, ScanTask, group_tasks
from .trail import note_fragment

__all__ = ["hash_dataset", "hash_fragments"]


def hash_dataset(
    dataset: Dataset, engine: Engine, progress: Progress, task_bytes: int = TASK_BYTES
) -> dict[str, str]:
    """Return the SHA-256 of each fragment's bytes, by label."""
    hashes: dict[str, str] = {}
    tasks = group_tasks(dataset.present(), task_bytes, whole=True)
    with progress.step("hashing files", dataset.rows) as step:
        for position, found in engine.map(hash_fragments, tasks):
            hashes.update(found)
            step.advance(tasks[position].rows)
    return hashes


def hash_fragments(task: ScanTask) -> dict[str, str]:
    """Hash the bytes of a task's fragments; runs on workers."""
    hashes = {}
    for position, ref in enumerate(task.refs):
        note_fragment(position)
        hashes[ref.label] = content_sha256(ref.location)
    return hashes
