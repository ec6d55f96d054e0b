"""The form of an epoch: its rows written out in parts, or a recipe that they are computed from.

A recipe stands for a plain shuffle of the rows that the stages selected, with up to four different
weights (`dataplane.recipe`). ``form = "auto"`` writes one where the parts of all epochs would take
more than a gigabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dataplane.epochs import LARGEST_CLASSES
from ..dataplane.errors import JobSpecError
from ..dataplane.recipe import WeightClass, weight_classes
from .pipeline import Pipeline
from .spec import JobSpec
from .stages import BatchStage, PlanState, ReduceStage, Stage

__all__ = ["explicit_bytes", "manifest_bytes", "recipe_of"]

RECIPE_ABOVE = 10**9  # bytes of the parts of all epochs


def explicit_bytes(rows: int, spec: JobSpec) -> int:
    """Return about how many bytes the parts take, weights and side columns left out."""
    epochs = spec.epochs[1] - spec.epochs[0]
    batches = -(-rows // spec.batch_size)
    return int(1.01 * epochs * (8 * rows + 18 * batches)) + 4096


def manifest_bytes(rows: int, spec: JobSpec, stages: Sequence[Stage]) -> int:
    """Return about how many bytes the manifest takes, in the form that its stages allow."""
    possible = not any(isinstance(s, ReduceStage) for s in stages) and all(
        s.no_recipe() is None for s in stages if isinstance(s, BatchStage)
    )
    written_out = explicit_bytes(rows, spec)
    if not possible or not _wanted(spec, written_out):
        return written_out
    return (spec.epochs[1] - spec.epochs[0]) * (rows // 8) + 4096


def _wanted(spec: JobSpec, written_out: int) -> bool:
    return spec.form == "recipe" or (spec.form == "auto" and written_out > RECIPE_ABOVE)


def recipe_of(spec: JobSpec, pipeline: Pipeline, state: PlanState) -> dict[str, Any] | None:
    """Return what `ManifestWriter.write_recipe` takes for an epoch; None: write its rows out.

    Raises
    ------
    JobSpecError
        Where a recipe was asked for and none stands for the plan.
    """
    if not _wanted(spec, explicit_bytes(len(state.rows), spec)):
        return None
    reason, classes = pipeline.no_recipe(), None
    if reason is None:
        classes = _classes(state)
        reason = f"its rows have more than {LARGEST_CLASSES} different weights"
    if classes is None:
        if spec.form == "recipe":
            raise JobSpecError(f"No recipe stands for this plan: {reason}. Use form=explicit.")
        return None
    return {
        "classes": classes,
        "batch_size": spec.batch_size,
        "micro_per_step": spec.micro_per_step,
        "drop_last": pipeline.batch.drops_last,
    }


def _classes(state: PlanState) -> tuple[WeightClass, ...] | None:
    if state.weights is None:
        return (WeightClass(state.rows.chosen),)
    return weight_classes(state.rows.snapshot, state.weighted_rows())
