"""The figures of the difference of two plans: what `diff` finds, and rows counted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.epochs import Epoch
from ...dataplane.manifest import Manifest
from ..diffing import EpochDifference, diff
from .counts import pieces
from .planned import rows_by, source_codes

__all__ = ["difference_figures"]

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def difference_figures(
    a: str | os.PathLike[str] | Manifest,
    b: str | os.PathLike[str] | Manifest,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the figures of the difference of two manifests.

    Rows are compared by their ids, which mean the same where both plan the same files. Memory is
    two to twelve bytes a row of the dataset.

    Parameters
    ----------
    a, b : path, URI or Manifest
    storage_options : mapping, optional

    Returns
    -------
    dict
        As JSON holds it; `docs/report.md` says what it holds.
    """
    first, second = (
        m if isinstance(m, Manifest) else Manifest.open(m, storage_options=storage_options)
        for m in (a, b)
    )
    found = diff(first, second)
    changed = {e.epoch: e for e in found.epochs}
    shared = [e for e in first.epochs if e in second.records]
    epochs = [
        _compared(first.epoch(e), second.epoch(e), e, changed.get(e), first, second) for e in shared
    ]
    figures = {
        "same": found.same,
        "a": _header(first),
        "b": _header(second),
        "settings": [
            {"key": key, "a": one, "b": two} for key, (one, two) in sorted(found.identity.items())
        ],
        "fragments_only_in_a": list(found.fragments_only_in_a),
        "fragments_only_in_b": list(found.fragments_only_in_b),
        "epochs_only_in_a": list(found.epochs_only_in_a),
        "epochs_only_in_b": list(found.epochs_only_in_b),
        "epochs": epochs,
    }
    if shared:
        # The epoch to picture: the first of those whose rows differ most, else whose batches do.
        shown = max(epochs, key=lambda e: (e["only_a"] + e["only_b"], e["batches_changed"]))
        number = shown["epoch"]
        figures["sources"] = {"epoch": number, **_by_source(first, second, number)}
    plain: dict[str, Any] = json.loads(json.dumps(figures, allow_nan=False, default=str))
    return plain


def _header(manifest: Manifest) -> dict[str, Any]:
    records = manifest.records.values()
    return {
        "manifest_id": manifest.manifest_id,
        "method": " → ".join(str(s["method"]) for s in manifest.identity["stages"]),
        "seed": manifest.seed,
        "parent": manifest.parent,
        "epochs": len(manifest.records),
        "steps": sum(r.steps for r in records),
        "rows": sum(r.samples for r in records),
        "dataset_rows": manifest.snapshot.rows,
        "fingerprint": manifest.snapshot.fingerprint,
    }


def _compared(
    one: Epoch,
    two: Epoch,
    number: int,
    found: EpochDifference | None,
    a: Manifest,
    b: Manifest,
) -> dict[str, Any]:
    most = max(len(one), len(two))
    ids = max(a.snapshot.next_row_id, b.snapshot.next_row_id)
    in_a = _held(one, ids)
    if found is None:
        only_a = only_b = changed = weights = 0
        equal_until, both = None, int(in_a.sum())
    else:
        in_b = _held(two, ids)
        both = int((in_a & in_b).sum())
        only_a, only_b = int((in_a & ~in_b).sum()), int((in_b & ~in_a).sum())
        changed, equal_until = found.batches_changed, found.first_step
        weights = 0
        if a.weight_semantics is not None or b.weight_semantics is not None:
            weights = _weights_changed(one, two, in_a & in_b)
    return {
        "epoch": number,
        "rows_a": one.record.samples,
        "rows_b": two.record.samples,
        "both": both,
        "only_a": only_a,
        "only_b": only_b,
        "steps_a": one.record.steps,
        "steps_b": two.record.steps,
        "batches_changed": changed,
        "batches": most,
        "equal_until_step": equal_until,
        "weights_changed": weights,
    }


def _held(epoch: Epoch, ids: int) -> Bools:
    there = np.zeros(ids, bool)
    for rows in epoch.row_chunks():
        there[rows.view(np.int64)] = True
    return there


def _weights_changed(one: Epoch, two: Epoch, both: Bools) -> int:
    """Count the rows that both hold with another weight; of repeats the last one counts."""
    mine, other = (_weights(e, len(both)) for e in (one, two))
    return sum(int((both[here] & (mine[here] != other[here])).sum()) for here in pieces(len(both)))


def _weights(epoch: Epoch, ids: int) -> F32:
    found = np.ones(ids, np.float32)
    for block in epoch.blocks():
        if block.weights is not None:
            found[block.rows.view(np.int64)] = block.weights
    return found


def _by_source(a: Manifest, b: Manifest, epoch: int) -> dict[str, Any]:
    """Return the rows that each plan keeps of each source."""
    lines: dict[str, dict[str, Any]] = {}
    for side, manifest in (("a", a), ("b", b)):
        ids = manifest.snapshot.next_row_id
        held = _held(manifest.epoch(epoch), ids)
        names, codes = source_codes(manifest.snapshot, ids)
        for line in rows_by(names, codes, held.view(np.uint8), held):
            mine = lines.setdefault(line["name"], {"name": line["name"]})
            mine |= {f"rows_{side}": line["rows"], f"kept_{side}": line["kept"]}
    empty = {"rows_a": 0, "kept_a": 0, "rows_b": 0, "kept_b": 0}
    return {"rows": [{**empty, **lines[name]} for name in sorted(lines)]}
