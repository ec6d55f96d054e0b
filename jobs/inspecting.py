"""Looking into a manifest: its header, its epochs, one step."""

from __future__ import annotations

from typing import Any

from ..dataplane.manifest import Manifest
from ..dataplane.plan import Ragged

__all__ = ["describe_manifest", "describe_step"]


def describe_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return what the header says, without the tables of fragments and blocks."""
    snapshot = manifest.snapshot
    return {
        "manifest_id": manifest.manifest_id,
        "path": str(manifest.path),
        "dataset": {
            "rows": snapshot.rows,
            "fragments": len(snapshot.fragments),
            "planned_fragments": len(manifest.planned_fragments()),
            "sources": sorted({f.source for f in snapshot.fragments}),
            "fingerprint": snapshot.fingerprint,
        },
        "stages": manifest.identity["stages"],
        "seed": manifest.seed,
        "unit": manifest.unit,
        "weight_semantics": manifest.weight_semantics,
        "side_columns": manifest.identity["side_columns"],
        "parent": manifest.parent,
        "epochs": [manifest.records[e].to_json() for e in manifest.epochs],
        "bytes": manifest.bytes,
        "created_by": manifest.provenance["created_by"],
        "reports": manifest.provenance["reports"],
    }


def describe_step(manifest: Manifest, epoch: int, step: int) -> dict[str, Any]:
    """Return the micro-batches of one step."""
    plan = manifest.epoch(epoch).step(step)
    batches = []
    for k in range(len(plan)):
        one = plan.slice(k, k + 1)
        batches.append(
            {
                "micro": int(one.micro[0]),
                "rows": one.rows.tolist(),
                "weights": None if one.weights is None else one.weights.tolist(),
                "side": {n: _values(v) for n, v in one.side.items()},
            }
        )
    return {"epoch": epoch, "step": step, "micro_batches": batches}


def _values(value: Any) -> Any:
    if isinstance(value, Ragged):
        return [
            value.values[a:b].tolist()
            for a, b in zip(value.offsets[:-1], value.offsets[1:], strict=True)
        ]
    return value.tolist()
