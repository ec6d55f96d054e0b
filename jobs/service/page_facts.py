"""What the service's pages show, as plain values: the templates only set them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...dataplane.manifest import Manifest

if TYPE_CHECKING:
    from .ranks import RankNote
    from .runs import Run
    from .service import Service

__all__ = ["EpochLine", "RankLine", "RunFacts", "run_facts", "service_facts", "summary"]

_SHOWN = 200  # epochs and ranks that a page lists
_NOW_SECONDS, _SILENT_SECONDS = 15.0, 60.0
_LONG_WAIT = 0.2  # of the time


@dataclass(frozen=True)
class EpochLine:
    """An epoch of a run."""

    epoch: int
    state: str
    rows: int | None = None
    share: float | None = None
    steps: int | None = None
    why: str = ""


@dataclass(frozen=True)
class RankLine:
    """A rank of a training."""

    rank: int
    where: str
    rows_per_second: str
    waited: str
    waits_long: bool
    heard: str
    silent: bool


@dataclass(frozen=True)
class RunFacts:
    """A run.

    Attributes
    ----------
    name : str
    says : str
        One sentence: where it is.
    alarm : str
        What is wrong; empty where nothing is.
    facts : list of (str, str)
    sealed, planned, total : int
        Epochs.
    progress : float or None
        Of the plan that is being made, 0 to 1.
    epochs : list of EpochLine
        The newest first.
    hidden : int
        Epochs that are not listed.
    ranks : list of RankLine
    """

    name: str
    says: str = ""
    alarm: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    sealed: int = 0
    planned: int = 0
    total: int = 0
    progress: float | None = None
    epochs: list[EpochLine] = field(default_factory=list)
    hidden: int = 0
    ranks: list[RankLine] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        """Whether the page is worth loading again."""
        return not self.alarm and self.sealed < self.total


def summary(service: Service, name: str) -> RunFacts:
    """Return what is shown of a run among others: without its epochs, ranks and facts."""
    return _summary(service, service.describe(name))


def run_facts(service: Service, name: str) -> RunFacts:
    """Return what is shown of a run; `RefusedError` where there is none of that name."""
    told = service.describe(name)
    short = _summary(service, told)
    if "epochs" not in told:
        return short
    run, planning = service.runs.run(name), told.get("planning")
    shown = [e for e in reversed(run.epochs) if run.holds(e) or _is_due(e, planning)]
    return replace(
        short,
        facts=_facts(run),
        epochs=[_line(run, epoch, planning) for epoch in shown[:_SHOWN]],
        hidden=max(0, len(shown) - _SHOWN),
        ranks=[_rank_line(note) for note in service.ranks.of(name)[:_SHOWN]],
    )


def _summary(service: Service, told: Mapping[str, Any]) -> RunFacts:
    if "epochs" not in told:
        return RunFacts(told["run"], "It cannot be read.", told["problem"])
    run = service.runs.run(told["run"])
    says, alarm, progress = _state(run, told, told.get("planning"))
    return RunFacts(
        run.name,
        says,
        alarm,
        sealed=len(told["sealed"]),
        planned=sum(m["stop"] - m["start"] for m in told["members"]),
        total=len(run.epochs),
        progress=progress,
    )


def service_facts(service: Service) -> list[tuple[str, str]]:
    """Return what the service has done since it was started."""
    get = service.metrics.get
    plans, seconds = get("batchloom_plans_total"), get("batchloom_plan_seconds_total")
    return [
        ("micro-batches sent", f"{get('batchloom_batches_sent_total'):,.0f}"),
        ("ranges being sent", f"{get('batchloom_streams_open'):,.0f}"),
        ("observations taken in", f"{get('batchloom_signal_rows_total'):,.0f}"),
        ("plans made", f"{plans:,.0f}" + (f", {seconds / plans:.1f} s each" if plans else "")),
        ("plans that failed", f"{get('batchloom_plans_failed_total'):,.0f}"),
        ("requests without the token", f"{get('batchloom_unauthorized_total'):,.0f}"),
    ]


# --- a run ----------------------------------------------------------------------------------------


def _state(
    run: Run, told: Mapping[str, Any], planning: Mapping[str, Any] | None
) -> tuple[str, str, float | None]:
    """Return the sentence, what is wrong, and how far the plan that is made has come."""
    if run.problem is not None:
        return "It cannot be planned.", run.problem, None
    if planning is not None:
        which = _epochs(planning["start"], planning["stop"])
        if planning["state"] == "failed":
            return f"{which} could not be planned.", planning["error"], None
        done, total = planning["done"], planning["total"]
        share = done / total if total else None
        text = f"{which} {_is(planning)} being planned: {planning['step']}"
        if share is not None:
            text += f", {share:.0%}"
        if planning["eta"]:
            text += f", about {planning['eta']:.0f} s to go"
        return f"{text}.", "", share or 0.0
    sealed = told["sealed"]
    if len(sealed) == len(run.epochs):
        return "All epochs are sealed: the training is done.", "", None
    at = next((e for e in run.epochs if e not in sealed), None)
    if at is None or run.holds(at) is None:
        return "Nothing is planned yet.", "", None
    return f"Epoch {at} is planned, and not sealed yet: it is trained on.", "", None


def _epochs(start: int, stop: int) -> str:
    return f"Epoch {start}" if stop - start == 1 else f"Epochs {start} to {stop - 1}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _is(planning: Mapping[str, Any]) -> str:
    return "is" if planning["stop"] - planning["start"] == 1 else "are"


def _facts(run: Run) -> list[tuple[str, str]]:
    newest = run.holds_last()
    if newest is None:
        return []
    identity = newest.identity
    stages = [str(stage["method"]) for stage in identity["stages"]]
    files = len(newest.snapshot.fragments)
    return [
        ("methods", " → ".join(stages)),
        ("dataset", f"{newest.snapshot.rows:,} rows, {_count(files, 'file')}"),
        ("seed", str(identity["seed"])),
        ("newest plan", newest.manifest_id[:12]),
    ]


def _is_due(epoch: int, planning: Mapping[str, Any] | None) -> bool:
    return planning is not None and planning["start"] <= epoch < planning["stop"]


def _line(run: Run, epoch: int, planning: Mapping[str, Any] | None) -> EpochLine:
    manifest = run.holds(epoch)
    if manifest is None:
        failed = planning is not None and planning["state"] == "failed"
        return EpochLine(epoch, "failed" if failed else "being planned")
    record = manifest.records[epoch]
    return EpochLine(
        epoch,
        "planned" if run.seals.sealed(epoch) is None else "sealed",
        record.distinct_rows,
        record.distinct_rows / max(1, manifest.snapshot.rows),
        record.steps,
        why(manifest, epoch),
    )


def why(manifest: Manifest, epoch: int) -> str:
    """Return why an epoch holds the rows that it holds, as its stages tell it."""
    parts = []
    for method, report in manifest.provenance.get("reports", {}).items():
        epochs = report.get("epochs") if isinstance(report, Mapping) else None
        found = epochs.get(str(epoch)) if isinstance(epochs, Mapping) else report
        if isinstance(found, Mapping):
            parts += _told(method, found)
    return "; ".join(parts)


def _told(method: str, found: Mapping[str, Any]) -> list[str]:
    parts = []
    if "selected" in found and "rows" in found:
        text = f"{method} kept {found['selected']:,} of {found['rows']:,} rows"
        if "window" in found and "group_rows" in found:
            start, stop = found["window"]
            text += f": groups {start} to {stop - 1} of {len(found['group_rows'])} by loss"
        elif found.get("phase") == "anneal":
            text += ": the last epochs train on all"
        parts.append(text)
    if found.get("hardest_negative") is not None:
        parts.append(f"{method}: cosine of the hardest negative {found['hardest_negative']:.2f}")
    if isinstance(found.get("quality"), Mapping):
        parts.append(str(found["quality"]["said"]))
    return parts


# --- ranks ----------------------------------------------------------------------------------------


def _rank_line(note: RankNote) -> RankLine:
    silent = time.monotonic() - note.heard
    return RankLine(
        note.rank,
        f"epoch {note.epoch}, step {note.step}",
        f"{note.samples_per_second:,.0f}",
        f"{note.waited:.0%}",
        note.waited > _LONG_WAIT,
        "now" if silent < _NOW_SECONDS else f"{silent:,.0f} s ago",
        silent > _SILENT_SECONDS,
    )
