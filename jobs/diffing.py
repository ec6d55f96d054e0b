"""Comparing two manifests: what was decided differently."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..dataplane.bitmap import Bitmap, count_bits
from ..dataplane.epochs import Epoch, EpochRecord
from ..dataplane.manifest import Manifest
from ..dataplane.plan import BatchPlan

__all__ = ["Difference", "EpochDifference", "diff"]

_CHUNK = 4096  # micro-batches that are compared at a time


@dataclass(frozen=True)
class EpochDifference:
    """How an epoch differs; counts are of micro-batches and rows.

    Attributes
    ----------
    epoch : int
    batches_changed : int
        Micro-batches that hold other rows, another order or other weights, or that one side lacks.
    first_step : int or None
        Step of the first of them.
    rows_only_in_a, rows_only_in_b : int
        Distinct rows.
    """

    epoch: int
    batches_changed: int
    first_step: int | None
    rows_only_in_a: int
    rows_only_in_b: int


@dataclass(frozen=True)
class Difference:
    """What differs between two manifests.

    Attributes
    ----------
    same : bool
        Whether their ids are equal: the same decision.
    identity : dict
        Dotted key of the identity → (value in a, value in b), the epochs and fragments left out.
    fragments_only_in_a, fragments_only_in_b : tuple of str
    epochs : tuple of EpochDifference
        Epochs in both whose batches differ.
    epochs_only_in_a, epochs_only_in_b : tuple of int
    """

    same: bool
    identity: dict[str, tuple[Any, Any]]
    fragments_only_in_a: tuple[str, ...]
    fragments_only_in_b: tuple[str, ...]
    epochs: tuple[EpochDifference, ...]
    epochs_only_in_a: tuple[int, ...]
    epochs_only_in_b: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diff(
    a: str | os.PathLike[str] | Manifest,
    b: str | os.PathLike[str] | Manifest,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Difference:
    """Compare two manifests, opened or by path or URI."""
    first, second = (
        m if isinstance(m, Manifest) else Manifest.open(m, storage_options=storage_options)
        for m in (a, b)
    )
    shared = [e for e in first.epochs if e in second.records]
    in_a = {(f.label, f.footer_hash): f.path for f in first.snapshot.fragments}
    in_b = {(f.label, f.footer_hash): f.path for f in second.snapshot.fragments}
    epochs = [
        found
        for e in shared
        if not _same_digest(first.records[e], second.records[e])
        and (found := _diff_epoch(e, first.epoch(e), second.epoch(e))).batches_changed
    ]
    return Difference(
        same=first.manifest_id == second.manifest_id,
        identity=_diff_values(_settings(first), _settings(second)),
        fragments_only_in_a=tuple(p for key, p in in_a.items() if key not in in_b),
        fragments_only_in_b=tuple(p for key, p in in_b.items() if key not in in_a),
        epochs=tuple(epochs),
        epochs_only_in_a=tuple(e for e in first.epochs if e not in second.records),
        epochs_only_in_b=tuple(e for e in second.epochs if e not in first.records),
    )


def _settings(manifest: Manifest) -> dict[str, Any]:
    left_out = ("epochs", "snapshot", "planned_fragments")
    return _flat({k: v for k, v in manifest.identity.items() if k not in left_out})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists of mappings as dotted keys."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
        items = [(str(i), v) for i, v in enumerate(value)]
    if not items:
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in items:
        out |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return out


def _diff_values(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    }


def _same_digest(a: EpochRecord, b: EpochRecord) -> bool:
    """Whether two epochs are known to be equal; recipes have no digest to tell it by."""
    return a.logical_digest is not None and a.logical_digest == b.logical_digest


def _diff_epoch(number: int, a: Epoch, b: Epoch) -> EpochDifference:
    changed, first_step = abs(len(a) - len(b)), None
    shared = min(len(a), len(b))
    for start in range(0, shared, _CHUNK):
        one, two = (e.plan(start, min(start + _CHUNK, shared)) for e in (a, b))
        at = _changed(one, two)
        changed += len(at)
        if len(at) and first_step is None:
            first_step = int(one.step[at[0]])
    if first_step is None and changed:
        longer = a if len(a) > len(b) else b
        first_step = longer[shared].step
    only_a, only_b = _rows_apart(a, b) if changed else (0, 0)
    return EpochDifference(number, changed, first_step, only_a, only_b)


def _changed(one: BatchPlan, two: BatchPlan) -> list[int]:
    """Return which micro-batches of two plans of the same length differ."""
    fields = ("offsets", "step", "micro", "rows")
    if all(np.array_equal(getattr(one, f), getattr(two, f)) for f in fields) and np.array_equal(
        _weights(one), _weights(two)
    ):
        return []
    pairs = ((one.slice(k, k + 1), two.slice(k, k + 1)) for k in range(len(one)))
    return [
        k
        for k, (x, y) in enumerate(pairs)
        if (x.step[0], x.micro[0]) != (y.step[0], y.micro[0])
        or not np.array_equal(x.rows, y.rows)
        or not np.array_equal(_weights(x), _weights(y))
    ]


def _weights(plan: BatchPlan) -> Any:
    return np.ones(len(plan.rows), np.float32) if plan.weights is None else plan.weights


def _rows_apart(a: Epoch, b: Epoch) -> tuple[int, int]:
    """Return how many rows only one of the epochs holds, counted in one bit a row id."""
    largest = max(int(block.rows.max()) for e in (a, b) for block in e.blocks())
    one, two = (Bitmap.of(largest + 1, (block.rows for block in e.blocks())).words for e in (a, b))
    return count_bits(one & ~two), count_bits(two & ~one)
