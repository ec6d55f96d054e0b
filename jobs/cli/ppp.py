"""What PPP tells of itself, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["print_ppp"]

_BAR = 40  # characters of the largest cluster's bar
_CONDITIONS = (
    "smallest",
    "stability",
    "valley",
    "chance",
    "replication",
    "agreement",
    "worst_agreement",
)


def print_ppp(report: Mapping[str, Any]) -> None:
    """Print how many clusters there are, a line a cluster, and the evidence for each k.

    Parameters
    ----------
    report : mapping
        As the stage ``ppp`` leaves it in a manifest.
    """
    clusters = "1 cluster" if report["k"] == 1 else f"{report['k']} clusters"
    print(
        f"ppp: {clusters}, found in {report['sample_rows']:,} rows; "
        f"{report['separable_share']:.1%} of all rows are separable"
    )
    largest = max(1, *report["sizes"])
    pairs = zip(report["sizes"], report["separable_sizes"], strict=True)
    for cluster, (rows, certain) in enumerate(pairs):
        bar = "#" * round(_BAR * rows / largest)
        print(f"  cluster {cluster:<3} {rows:>13,} rows, {certain:>13,} separable  {bar}".rstrip())
    _print_line("k", "metric", _CONDITIONS, "fails in")
    for row in report["evidence"]:
        fails = "nothing, chosen" if row["chosen"] else ", ".join(row["failed"]) or "nothing"
        _print_line(row["k"], row["metric"], [_text(row[name]) for name in _CONDITIONS], fails)
    _print_line("", "limit", [_text(report["limits"][name]) for name in _CONDITIONS], "")


def _print_line(k: object, metric: str, values: Sequence[str], fails: str) -> None:
    cells = [f"{v:>{len(name)}}" for name, v in zip(_CONDITIONS, values, strict=True)]
    print("  ".join([f"  {k!s:<3}", f"{metric:9}", *cells, fails]).rstrip())


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
