"""What a selection tells of itself, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .ppp import print_ppp

__all__ = ["print_selections"]

_BAR = 40  # characters of the largest group's bar


def print_selections(reports: Mapping[str, Any]) -> None:
    """Print what each epoch saves, and what it was chosen by: groups of loss, or sources."""
    for method, report in reports.items():
        if not isinstance(report, Mapping):
            continue
        if method == "ppp":
            print_ppp(report)
        elif isinstance(report.get("epochs"), Mapping):
            for epoch in sorted(report["epochs"], key=int):
                _print_epoch(method, epoch, report["epochs"][epoch])
        elif {"rows", "selected", "saved"} <= set(report):
            kept = f"{report['selected']:,} of {report['rows']:,} rows"
            print(f"{method}: {kept}, {report['saved']:.1%} saved")


def _print_epoch(method: str, epoch: str, found: Mapping[str, Any]) -> None:
    text = f"{method}, epoch {epoch}"
    if "cluster_size" in found:
        _print_clusters(text, found)
    if "selected" not in found:
        return
    if "phase" in found:
        text += f" ({'annealing' if found['phase'] == 'anneal' else 'pruned'})"
    text += f": {found['selected']:,} of {found['rows']:,} rows, {found['saved']:.1%} saved"
    if found.get("selected_never_scored"):
        text += f", {found['selected_never_scored']:,} of them never scored"
    if found.get("selected_mean_loss") is not None:
        text += f", mean loss {found['selected_mean_loss']:.4g}"
    if "weight_sum" in found:
        text += f", weight sum {found['weight_sum']:,.6g}"
    print(text)
    if "easy" in found:
        print(
            f"  easy: {found['easy']:,} below {found['mean_loss']:.4g}, {found['easy_kept']:,} kept"
        )
    if "group_rows" in found:
        _print_groups(found)
    if found.get("sources"):
        _print_sources(found["sources"])
    if found.get("quality"):
        print(f"  {found['quality']['said']}")


def _print_clusters(text: str, found: Mapping[str, Any]) -> None:
    """Print a line of micro-batches of whole clusters."""
    text += f": {found['clusters']:,} clusters of about {found['cluster_size']:,} rows, "
    text += f"{found['clusters_a_batch']:,} a micro-batch; {found['masked_pairs']:,} pairs masked"
    if found["hardest_negative"] is not None:
        text += f"; cosine of the hardest negative {found['hardest_negative']:.3f}"
    print(text)


def _print_groups(found: Mapping[str, Any]) -> None:
    """Print a line a group: whether it is in the window, rows, mean loss, and a bar of the rows."""
    start, stop = found["window"]
    largest = max(found["group_rows"])
    for group, (rows, mean) in enumerate(
        zip(found["group_rows"], found["group_mean_loss"], strict=True)
    ):
        bar = "#" * max(1, round(_BAR * rows / largest))
        inside = "in " if start <= group < stop else "out"
        print(f"  group {group:<3} {inside}  {rows:>13,} rows  mean loss {mean:<9.4g} {bar}")


def _print_sources(sources: Sequence[Mapping[str, Any]]) -> None:
    """Print a line a source: its rows before and after, and a bar of what is kept."""
    width = max(len(str(s["source"])) for s in sources)
    for s in sources:
        share = s["selected"] / max(1, s["rows"])
        kept = "whole" if s["kept_whole"] else f"{share:.0%}"
        bar = "#" * round(_BAR * share)
        print(
            f"  {s['source']!s:<{width}}  {s['rows']:>13,} rows, {s['selected']:>13,} kept "
            f"{kept:>6} {bar}"
        )
