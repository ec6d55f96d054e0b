"""What a manifest's header tells: its stages, and the reports that they made of themselves.

Reports are read by what they hold, not by the names of methods, so that a method of a user's own
that reports ``sizes``, ``sources``, ``evidence`` or epochs with ``saved`` is shown as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...dataplane.manifest import Manifest
from .counts import whole_bins

__all__ = [
    "choice_figures",
    "cluster_figures",
    "evidence_figures",
    "fact_figures",
    "header_figures",
    "window_figures",
]

_SHOWN_CLUSTERS = 64
_UNTOLD = ("epoch", "digest")
_WINDOW_KEYS = (
    "phase", "rows", "selected", "saved", "window", "group_rows", "group_mean_loss",
    "selected_mean_loss", "easy", "easy_kept", "mean_loss", "never_scored",
)  # fmt: skip


def header_figures(members: Sequence[Manifest], epochs: Sequence[int]) -> dict[str, Any]:
    """Return what was planned, of what, how; of a series what its newest member says."""
    newest = members[-1]
    snapshot, stages = newest.snapshot, newest.identity["stages"]
    return {
        "method": " → ".join(str(stage["method"]) for stage in stages),
        "stages": [
            {
                "stage": stage["stage"],
                "method": stage["method"],
                "parameters": {k: v for k, v in stage["parameters"].items() if v is not None},
            }
            for stage in stages
        ],
        "seed": newest.seed,
        "unit": newest.unit,
        "weights": newest.weight_semantics,
        "manifest_id": newest.manifest_id,
        "parent": newest.parent,
        "members": len(members),
        "signals": newest.identity["signals"],
        "dataset": {
            "rows": snapshot.rows,
            "fragments": len(snapshot.fragments),
            "sources": sorted({f.source for f in snapshot.fragments}),
            "fingerprint": snapshot.fingerprint,
        },
        "epochs": [epochs[0], epochs[-1] + 1],
        "bytes": sum(m.bytes for m in members),
    }


def _reports(manifest: Manifest) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for method, report in sorted(manifest.provenance["reports"].items()):
        if isinstance(report, Mapping):
            yield str(method), report


def _epochs_told(members: Sequence[Manifest]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yield (method, epoch, report) of each epoch that a stage reports of."""
    for manifest in members:
        for method, report in _reports(manifest):
            told = report.get("epochs")
            if isinstance(told, Mapping):
                for epoch in sorted(told, key=int):
                    if isinstance(told[epoch], Mapping):
                        yield method, int(epoch), told[epoch]


def window_figures(members: Sequence[Manifest]) -> dict[str, Any] | None:
    """Return what stages that go by losses kept of each epoch, and their windows over groups."""
    found = [
        {"epoch": epoch, "method": method, **{k: told[k] for k in _WINDOW_KEYS if k in told}}
        for method, epoch, told in _epochs_told(members)
        if "selected" in told and "rows" in told and "sources" not in told
    ]
    return {"epochs": sorted(found, key=lambda f: f["epoch"])} if found else None


def choice_figures(members: Sequence[Manifest]) -> dict[str, Any] | None:
    """Return what small batches kept of each source, in the newest epoch that tells it."""
    found = [
        {
            "method": method,
            "epoch": epoch,
            "rows": told["rows"],
            "selected": told["selected"],
            "saved": told["saved"],
            "sources": [dict(s) for s in told["sources"]],
            "quality": told.get("quality"),
        }
        for method, epoch, told in _epochs_told(members)
        if "sources" in told and "selected" in told
    ]
    return found[-1] if found else None


def evidence_figures(members: Sequence[Manifest]) -> dict[str, Any] | None:
    """Return what speaks for each number of clusters, as the newest member tells it."""
    for method, report in _reports(members[-1]):
        table = report.get("evidence")
        if isinstance(table, list) and table and all(_has_k(line) for line in table):
            rows = sorted((dict(line) for line in table), key=lambda line: line["k"])
            limits = report.get("limits")
            return {
                "method": method,
                "k": report.get("k"),
                "limits": dict(limits) if isinstance(limits, Mapping) else None,
                "evidence": rows,
            }
    return None


def _has_k(line: Any) -> bool:
    return isinstance(line, Mapping) and isinstance(line.get("k"), int)


def cluster_figures(members: Sequence[Manifest], counted: Any) -> dict[str, Any] | None:
    """Return the sizes of clusters: as a stage reports them, else as the plan's labels count.

    Parameters
    ----------
    members : sequence of Manifest
    counted : int64, shape (k,)
        Rows of each cluster in the newest epoch, by a side column; empty where there is none.
    """
    sizes, by = np.asarray(counted), "the plan's side column 'cluster'"
    for method, report in _reports(members[-1]):
        told = report.get("sizes")
        if not isinstance(told, list) or not told or not all(isinstance(v, int) for v in told):
            continue
        if len(told) == 2 and isinstance(report.get("clusters"), int) and report["clusters"] > 2:
            if not len(sizes):  # balanced: sizes of the smallest and the largest
                return {
                    "by": method,
                    "clusters": report["clusters"],
                    "smallest": min(told),
                    "largest": max(told),
                    "mean": None,
                    "empty": 0,
                }
            continue
        sizes, by = np.array(told), method
        break
    if not len(sizes):
        return None
    held = sizes[sizes > 0]
    found: dict[str, Any] = {
        "by": by,
        "clusters": len(sizes),
        "empty": len(sizes) - len(held),
        "smallest": int(held.min()),
        "largest": int(held.max()),
        "mean": float(held.mean()),
    }
    if len(sizes) <= _SHOWN_CLUSTERS:
        return found | {"sizes": sizes.tolist()}
    return found | {"spread": whole_bins(*np.unique(held, return_counts=True))}


def fact_figures(members: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Return the plain values that stages report, as lines of (stage, name, value)."""
    facts = []
    for method, report in _reports(members[-1]):
        lines = [("", report)]
        told = report.get("epochs")
        if isinstance(told, Mapping) and told:
            newest = max(told, key=int)
            lines.append((f"epoch {newest}: ", told[newest]))
        for prefix, values in lines:
            if isinstance(values, Mapping):
                facts += [
                    {"stage": method, "name": f"{prefix}{name.replace('_', ' ')}", "value": value}
                    for name, value in _plain(values)
                ]
    return facts


def _plain(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in ("epochs", "limits"):
            yield from _plain(value, f"{prefix}{name} ")
        elif isinstance(value, bool | int | float | str) and name not in _UNTOLD:
            yield f"{prefix}{name}", value
