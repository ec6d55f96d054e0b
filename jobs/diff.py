"""Comparing two manifests: what was decided differently."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..dataplane.manifest import Epoch, Manifest

__all__ = ["Difference", "EpochDifference", "diff"]


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
        _diff_epoch(e, first.epoch(e), second.epoch(e))
        for e in shared
        if first.records[e].logical_digest != second.records[e].logical_digest
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


def _diff_epoch(number: int, a: Epoch, b: Epoch) -> EpochDifference:
    changed, first_step = abs(len(a) - len(b)), None
    for index in range(min(len(a), len(b))):
        one, two = a[index], b[index]
        if (
            (one.step, one.micro) != (two.step, two.micro)
            or not np.array_equal(one.rows, two.rows)
            or not np.array_equal(_weights(one), _weights(two))
        ):
            changed += 1
            first_step = one.step if first_step is None else first_step
    if first_step is None and changed:
        longer = a if len(a) > len(b) else b
        first_step = longer[min(len(a), len(b))].step
    rows_a, rows_b = _distinct(a), _distinct(b)
    return EpochDifference(
        number,
        changed,
        first_step,
        len(np.setdiff1d(rows_a, rows_b, assume_unique=True)),
        len(np.setdiff1d(rows_b, rows_a, assume_unique=True)),
    )


def _weights(batch: Any) -> Any:
    return np.ones(len(batch.rows), np.float32) if batch.weights is None else batch.weights


def _distinct(epoch: Epoch) -> Any:
    return np.unique(np.concatenate([block.rows for block in epoch.blocks()]))
