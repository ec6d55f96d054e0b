"""A plan that is awkward on purpose, over the awkward dataset, and plans as plain lists.

Three epochs, importance weights, side columns of all kinds, up to five micro-batches a step of 1 to
30 rows each, cut into many small blocks and parts. Epoch 0 holds 3,000 rows once, epoch 2 the same
number with repeats, epoch 3 every row once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import Manifest, ManifestWriter, epoch_writer, open_dataset
from batchloom.dataplane.plan import BatchPlan, Ragged
from batchloom.tests.contracts.awkward import AWKWARD_ROWS
from batchloom.tests.dataplane.helpers import SIDE, plan_of, sides_of

EPOCHS = (0, 2, 3)


def awkward_plan(epoch: int) -> BatchPlan:
    """Return one epoch of the plan."""
    rng = np.random.default_rng(epoch)
    rows = {
        0: lambda: rng.permutation(AWKWARD_ROWS)[:3000],
        2: lambda: rng.integers(0, AWKWARD_ROWS, 3000),
        3: lambda: rng.permutation(AWKWARD_ROWS),
    }[epoch]()
    sizes: list[int] = []
    while sum(sizes) < len(rows):
        sizes.append(min(int(rng.integers(1, 31)), len(rows) - sum(sizes)))
    steps: list[tuple[int, int]] = []
    while len(steps) < len(sizes):
        step = steps[-1][0] + 1 if steps else 0
        steps += [(step, m) for m in range(int(rng.integers(1, 6)))]
    return plan_of(
        sizes,
        rows,
        steps=steps[: len(sizes)],
        weights=rng.random(len(rows)).astype(np.float32) * 3,
        side=sides_of(sizes, rng),
    )


def awkward_manifest(target: Path, data: Any, **options: Any) -> Manifest:
    """Write the plan over the awkward dataset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 17)
        patch.setattr(epoch_writer, "PART_ROWS", 900)
        given = {"weight_semantics": "importance", "side": SIDE, "seed": 3, **options}
        with ManifestWriter(target, snapshot=open_dataset(data).snapshot, **given) as writer:
            for epoch in EPOCHS:
                with writer.epoch(epoch):
                    writer.append(awkward_plan(epoch))
            return writer.commit()


# --- plans as lists -------------------------------------------------------------------------------


def as_lists(plan: BatchPlan) -> list[dict[str, Any]]:
    """Return each micro-batch as step, micro and rows, each row as (id, weight, side values).

    Floats stand as their bytes, so that equal lists mean equal bits. Values of kind ``batch`` are
    the micro-batch's.
    """
    found = []
    for k in range(len(plan)):
        one = plan.slice(k, k + 1)
        batch, rows = {}, []
        for name, value in one.side.items():
            if not isinstance(value, Ragged) and name == "tag":
                batch[name] = value[0].tobytes()
        for i, row in enumerate(one.rows.tolist()):
            weight = None if one.weights is None else one.weights[i].tobytes()
            side = {
                n: v.slice(i, i + 1).values.tobytes() if isinstance(v, Ragged) else v[i].tobytes()
                for n, v in one.side.items()
                if n not in batch
            }
            rows.append((row, weight, tuple(sorted(side.items()))))
        found.append(
            {"step": int(one.step[0]), "micro": int(one.micro[0]), "side": batch, "rows": rows}
        )
    return found


def lists_without(batches: list[dict[str, Any]], goes: Any) -> list[dict[str, Any]]:
    """Leave rows out for which ``goes(step, row id)`` is true, one row at a time."""
    left: list[dict[str, Any]] = []
    for batch in batches:
        rows = [row for row in batch["rows"] if not goes(batch["step"], row[0])]
        if rows:
            before = left[-1] if left else None
            again = before is not None and before["step"] == batch["step"]
            micro = before["micro"] + 1 if before is not None and again else 0
            left.append({**batch, "micro": micro, "rows": rows})
    return left


def lists_of(manifest: Any) -> dict[int, list[dict[str, Any]]]:
    """Return all epochs of a manifest as lists."""
    return {e: as_lists(manifest.epoch(e).plan()) for e in manifest.epochs}
