"""The sections on rows: what they cost, which are kept, how often they are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import pictures as draw
from .pictures import percent
from .section import Section, Table, count, largest, number

__all__ = [
    "choice_section",
    "classes_section",
    "cost_section",
    "coverage_section",
    "losses_section",
    "rows_section",
    "windows_section",
]

_TOLD_EPOCHS = 40  # lines of a table

# --- what it costs --------------------------------------------------------------------------------


def cost_section(found: Mapping[str, Any]) -> Section:
    epochs = found["epochs"]
    shares = [e["share"] for e in epochs]
    pictures = []
    if len(epochs) > 1 and max(shares) - min(shares) > 1e-9:
        x = [e["epoch"] for e in epochs]
        pictures = [draw.lines("cost", x, [("rows read", shares)], "epoch")]
    elif found["share"] < 1:
        read = [("rows read", float(found["rows"]), float(found["plain_rows"]))]
        pictures = [draw.bars("cost", read, unit="rows")]
    rows = [
        (number(e["epoch"]), count(e["steps"]), count(e["rows"]), percent(e["share"]))
        for e in epochs[-_TOLD_EPOCHS:]
    ]
    return Section(
        "cost",
        "Training cost",
        "Rows that the plan reads, beside epochs of all rows of the dataset. Where a row costs the "
        "same each time, this is the share of a plain training's time; passes that a method makes "
        "over the data beforehand come on top.",
        pictures,
        [
            ("rows read", f"{count(found['rows'])} of {count(found['plain_rows'])}"),
            ("saved", percent(max(0.0, found["saved"]))),
            ("steps", count(found["steps"])),
        ],
        Table(("epoch", "steps", "rows read", "of a plain epoch"), rows),
    )


def windows_section(found: Mapping[str, Any]) -> Section:
    epochs = found["epochs"]
    x = [e["epoch"] for e in epochs]
    pictures = []
    inside = [
        (e["epoch"], len(e["group_rows"]), tuple(e["window"]))
        for e in epochs
        if e.get("group_rows") and e.get("window")
    ]
    if inside:
        pictures.append(draw.cells("windows", inside, "epoch (groups by loss, 0 the lowest)"))
    losses = [e.get("selected_mean_loss") for e in epochs]
    if sum(loss is not None for loss in losses) > 1:
        mean = [("mean loss kept", losses)]
        pictures.append(draw.lines("mean-loss", x, mean, "epoch", shares=False))
    rows = [
        (
            number(e["epoch"]),
            number(e.get("phase")),
            "-" if "window" not in e else f"{e['window'][0]} to {e['window'][1] - 1}",
            count(e["selected"]),
            percent(max(0.0, e["saved"])) if "saved" in e else "-",
            number(e.get("selected_mean_loss")),
        )
        for e in epochs[-_TOLD_EPOCHS:]
    ]
    return Section(
        "windows",
        "Selection by loss over the epochs",
        "What each epoch keeps by loss. "
        + (
            "The window, in color, should pass over all groups of loss several times; an epoch "
            "without one keeps rows at random. "
            if inside
            else ""
        )
        + "A mean loss of the rows kept that is far above the dataset's means that they are the "
        "hard ones.",
        pictures,
        table=Table(("epoch", "phase", "groups kept", "rows kept", "saved", "mean loss"), rows),
    )


# --- which rows -----------------------------------------------------------------------------------


def _by_class(key: str, lines: Sequence[Mapping[str, Any]], what: str) -> tuple[str, Table]:
    shown = [(r["name"], r["kept"], r["rows"]) for r in largest(lines, "rows")]
    table = Table(
        (what, "rows", "kept", "dropped", "share kept", "reads", "in any epoch"),
        [
            (
                r["name"],
                count(r["rows"]),
                count(r["kept"]),
                count(r["dropped"]),
                "-" if r["share_kept"] is None else percent(r["share_kept"]),
                count(r["reads"]),
                count(r["ever"]),
            )
            for r in lines
        ],
    )
    return draw.bars(key, shown, unit="rows"), table


def rows_section(found: Mapping[str, Any]) -> Section:
    lines = found["sources"]
    picture, table = _by_class("rows", lines, "source")
    return Section(
        "rows",
        "Rows kept and dropped" + (", by source" if len(lines) > 1 else ""),
        f"The colored part of a bar is what epoch {found['epoch']} holds of a source. Sources of "
        "very different shares are trained on in other proportions than the dataset's.",
        [picture],
        table=table,
    )


def classes_section(found: Mapping[str, Any]) -> Section:
    picture, table = _by_class("classes", found["rows"], found["column"])
    cut = ", cut into ranges of equally many rows" if found["kind"] == "ranges" else ""
    facts = []
    if found["rows_not_read"]:
        facts = [("rows not read", count(found["rows_not_read"]))]
    return Section(
        "classes",
        f"Rows kept and dropped, by {found['column']}",
        f"What epoch {found['epoch']} holds of each class of the column{cut}. A class with a much "
        "smaller share than the others is one that the model will see less of.",
        [picture],
        facts,
        table,
    )


def losses_section(found: Mapping[str, Any]) -> Section:
    series = [("kept", found["kept"]), ("dropped", found["dropped"])]
    known = "" if found["before_epoch"] is None else f" known before epoch {found['before_epoch']}"
    more = found["largest"] > found["edges"][-1]
    return Section(
        "losses",
        "Rows kept and dropped, by loss",
        f"The latest losses{known} of the rows that epoch {found['epoch']} keeps and drops. Where "
        "color stands at one end only, the plan leans to easy or to hard rows.",
        [draw.histogram("losses", found["edges"], series, found["signal"], last_holds_more=more)],
        [
            ("mean loss, kept", number(found["kept_mean"])),
            ("mean loss, dropped", number(found["dropped_mean"])),
            ("kept without a loss", count(found["unscored_kept"])),
            ("dropped without a loss", count(found["unscored_dropped"])),
        ],
    )


def coverage_section(found: Mapping[str, Any]) -> Section:
    x = [e["epoch"] for e in found["epochs"]]
    pictures = []
    if found["epochs"][0]["share"] < 1 and len(x) > 1:
        seen = [("seen", [e["share"] for e in found["epochs"]])]
        pictures.append(draw.lines("coverage", x, seen, "epoch"))
    labels = [str(i) for i in range(len(found["times"]))]
    if found["times_together"] is not None:
        labels[-1] += "+"
    counts = [("rows", found["times"])]
    pictures.append(draw.columns("times", labels, counts, "times that a row is planned"))
    return Section(
        "coverage",
        "Coverage",
        "The share of the dataset's rows that were planned at least once up to each epoch, and how "
        "often rows are planned. Rows at 0 are never trained on.",
        pictures,
        [
            ("seen at least once", percent(found["epochs"][-1]["share"])),
            ("never seen", count(found["times"][0])),
            ("times a row, mean", number(found["mean_times"])),
        ],
    )


def choice_section(found: Mapping[str, Any]) -> Section:
    sources = found["sources"]
    before = max(1, sum(s["rows"] for s in sources))
    after = max(1, sum(s["selected"] for s in sources))
    pairs = [
        (str(s["source"]), s["rows"] / before, s["selected"] / after)
        for s in largest(sources, "rows")
    ]
    pictures = []
    if pairs:
        pictures = [draw.pairs("choice", pairs, "of the large batches", "of what is kept")]
    rows = [
        (
            str(s["source"]),
            count(s["rows"]),
            count(s["selected"]),
            percent(s["selected"] / max(1, s["rows"])),
            number(s.get("kept_whole")),
        )
        for s in sources
    ]
    quality = found["quality"] or {}
    facts = [
        ("rows", f"{count(found['selected'])} of {count(found['rows'])}"),
        ("saved", percent(max(0.0, found["saved"]))),
    ]
    if isinstance(quality.get("said"), str):
        facts.append(("measured", quality["said"]))
    return Section(
        "choice",
        f"What {found['method']} chose of each batch",
        "Each source's share of the large batches and of the rows that are kept of them. Small "
        "sources gain where they are kept whole.",
        pictures,
        facts,
        Table(("source", "rows", "kept", "share kept", "kept whole"), rows) if rows else None,
    )
