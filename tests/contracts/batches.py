"""Small plans for tests, and batches compared bit by bit."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from batchloom.dataplane import BatchPlan, Manifest, ManifestWriter, open_dataset
from batchloom.dataplane.plan import Ragged
from batchloom.dataplane.random import Permutation, uniform
from batchloom.tests.contracts.awkward import AWKWARD_ROWS

FIELDS = ("rows", "weights", "seeds", "pad", "epoch", "step", "micro", "step_rows", "step_weight")

# --- plans ----------------------------------------------------------------------------------------


def write_plan(
    target: Path,
    data: Any,
    epochs: dict[int, BatchPlan],
    *,
    seed: int = 7,
    **options: Any,
) -> Manifest:
    """Commit a manifest of the given epochs."""
    snapshot = open_dataset(data).snapshot
    with ManifestWriter(target, snapshot=snapshot, seed=seed, **options) as writer:
        for number, plan in epochs.items():
            with writer.epoch(number):
                writer.append(plan)
        return writer.commit()


def shuffled(
    epoch: int = 0,
    *,
    rows: int = AWKWARD_ROWS,
    batch: int = 64,
    micro_per_step: int = 1,
    weighted: bool = False,
) -> BatchPlan:
    """Return an epoch in random order; the awkward dataset's last micro-batch has 23 rows."""
    ids = Permutation(rows, seed=7, epoch=epoch)[:]
    weights = uniform(3, 99, epoch, ids).astype(np.float32) * 2 if weighted else None
    return BatchPlan.cut(ids, batch, weights).folded(micro_per_step)


# --- comparing ------------------------------------------------------------------------------------


def drain(loader: Iterable[Any]) -> list[Any]:
    return list(loader)


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def bits(value: Any) -> bytes:
    """Return a value's type and content, so that equal bytes mean equal values."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes()
    if isinstance(value, pa.Array):
        return f"{value.type}".encode() + repr(value.to_pylist()).encode()
    if isinstance(value, Ragged):
        return value.offsets.tobytes() + value.values.tobytes()
    return repr(value).encode()


def fingerprint(batch: Any) -> str:
    """Return a digest of everything that a batch carries."""
    hasher = hashlib.sha256()
    for name, value in [*batch.items(), *batch.side.items()]:
        hasher.update(name.encode() + bits(value))
    for name in FIELDS:
        hasher.update(name.encode() + bits(getattr(batch, name)))
    return hasher.hexdigest()


def fingerprints(batches: Iterable[Any]) -> list[str]:
    return [fingerprint(b) for b in batches]


def digest(texts: Iterable[str]) -> str:
    """Return one digest of many, and of their order."""
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()


def json_round_trip(state: Any) -> Any:
    return json.loads(json.dumps(state))


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "batchloom-prefetch"]


def real_rows(batch: Any) -> list[int]:
    """Return the row ids of a batch without its pads."""
    rows = batch.rows if batch.pad is None else batch.rows[~batch.pad]
    return [int(r) for r in rows]


def rows_by_step(batches: Iterable[Any]) -> dict[tuple[int, int], list[int]]:
    """Return sorted row ids of each (epoch, step), pads left out."""
    found: dict[tuple[int, int], list[int]] = {}
    for batch in batches:
        found.setdefault((batch.epoch, batch.step), []).extend(real_rows(batch))
    return {step: sorted(rows) for step, rows in found.items()}


def planned_by_step(manifest: Any) -> dict[tuple[int, int], list[int]]:
    """Return the same of a plan."""
    found: dict[tuple[int, int], list[int]] = {}
    for number in manifest.epochs:
        epoch = manifest.epoch(number)
        for index in range(len(epoch)):
            micro_batch = epoch[index]
            rows = found.setdefault((number, micro_batch.step), [])
            rows.extend(int(r) for r in micro_batch.rows)
    return {step: sorted(rows) for step, rows in found.items()}


def assert_resumes_everywhere(make: Callable[[], Any]) -> None:
    """Take the state after every batch, load it into a new loader, and compare what is left.

    A state taken inside a step is that step's start; one taken at an epoch's end leaves the epochs
    after it.
    """
    whole = drain(make())
    expected = fingerprints(whole)
    place = [(b.epoch, b.step) for b in whole]
    iterator = iter(running := make())
    for index in range(len(whole)):
        next(iterator)
        state = json_round_trip(running.state_dict())
        ends_step = index + 1 == len(whole) or place[index + 1] != place[index]
        rest = index + 1 if ends_step else place.index(place[index])
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert fingerprints(resumed) == expected[rest:], f"after batch {index}: {state}"
