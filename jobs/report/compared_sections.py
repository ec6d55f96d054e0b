"""The sections of the page of two plans, made of figures alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import pictures as draw
from .section import Section, Table, largest, number

__all__ = ["compared_facts", "compared_sections"]

_SETTINGS = 200


def compared_facts(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what stands at the page's head."""
    facts = []
    for side in ("a", "b"):
        one = figures[side]
        facts += [
            (side.upper(), f"{one['method']}, seed {one['seed']}"),
            (f"id of {side.upper()}", one["manifest_id"]),
            (
                f"size of {side.upper()}",
                f"{one['rows']:,} rows in {one['steps']:,} steps of {one['epochs']:,} "
                f"{'epoch' if one['epochs'] == 1 else 'epochs'}",
            ),
        ]
    return facts


def compared_sections(figures: Mapping[str, Any]) -> list[Section]:
    """Return the sections that a difference has."""
    sections = []
    if figures["epochs"] or figures["epochs_only_in_a"] or figures["epochs_only_in_b"]:
        sections += [_rows(figures), _batches(figures)]
    if "sources" in figures:
        sections.append(_sources(figures["sources"]))
    if figures["settings"]:
        sections.append(_settings(figures))
    if figures["fragments_only_in_a"] or figures["fragments_only_in_b"]:
        sections.append(_fragments(figures))
    return sections


def _rows(figures: Mapping[str, Any]) -> Section:
    epochs = figures["epochs"]
    pictures, warning = [], ""
    if epochs:
        e = next(e for e in epochs if e["epoch"] == figures["sources"]["epoch"])
        whole = float(max(1, e["both"] + e["only_a"] + e["only_b"]))
        lines = [("in both", e["both"], whole), ("only in A", e["only_a"], whole),
                 ("only in B", e["only_b"], whole)]  # fmt: skip
        pictures = [draw.bars("rows", lines, unit="rows")]
    if figures["fragments_only_in_a"] or figures["fragments_only_in_b"]:
        warning = (
            "The plans are of different files. Rows are compared by their ids, which mean the same "
            "only in the files that both plan."
        )
    facts = [
        (f"epochs only in {side}", ", ".join(map(str, figures[key])))
        for side, key in (("A", "epochs_only_in_a"), ("B", "epochs_only_in_b"))
        if figures[key]
    ]
    table = Table(
        ("epoch", "in both", "only in A", "only in B", "weight changed"),
        [
            [f"{e[k]:,}" for k in ("epoch", "both", "only_a", "only_b", "weights_changed")]
            for e in epochs
        ],
    )
    return Section(
        "rows",
        "Rows",
        "Different rows that an epoch holds in both plans, or in one only"
        + (f"; the picture is of epoch {figures['sources']['epoch']}." if epochs else ".")
        + " All in both means that only order, batches or weights differ.",
        pictures,
        facts,
        table if epochs else None,
        warning,
    )


def _batches(figures: Mapping[str, Any]) -> Section:
    rows = [
        (
            f"{e['epoch']:,}",
            "all" if e["equal_until_step"] is None else f"{e['equal_until_step']:,}",
            f"{e['batches_changed']:,} of {e['batches']:,}",
            f"{e['steps_a']:,}",
            f"{e['steps_b']:,}",
        )
        for e in figures["epochs"]
    ]
    names = (
        "epoch", "first step that differs", "micro-batches that differ", "steps of A", "steps of B",
    )  # fmt: skip
    pictures = []
    if len(figures["epochs"]) > 1:
        x = [e["epoch"] for e in figures["epochs"]]
        share = [e["batches_changed"] / max(1, e["batches"]) for e in figures["epochs"]]
        pictures = [draw.lines("batches", x, [("differ", share)], "epoch")]
    return Section(
        "batches",
        "Micro-batches",
        "The first step whose micro-batches differ in rows, order or weights, and how many do. A "
        "state of one plan that was saved before that step goes on with the other where the header "
        "names it as parent.",
        pictures,
        table=Table(names, rows),
    )


def _sources(found: Mapping[str, Any]) -> Section:
    lines = found["rows"]
    total = {side: max(1, sum(r[f"kept_{side}"] for r in lines)) for side in "ab"}
    pairs = [
        (r["name"], r["kept_a"] / total["a"], r["kept_b"] / total["b"])
        for r in largest(lines, "kept_a")
    ]
    names = ("source", "rows of A's dataset", "kept by A", "rows of B's dataset", "kept by B")
    table = Table(
        names,
        [
            (r["name"], *(f"{r[k]:,}" for k in ("rows_a", "kept_a", "rows_b", "kept_b")))
            for r in lines
        ],
    )
    return Section(
        "sources",
        "Rows kept, by source",
        f"Each source's share of the rows that epoch {found['epoch']} holds, in A and in B. Look "
        "for a source that one plan leaves out.",
        [draw.pairs("sources", pairs, "A", "B")],
        table=table,
    )


def _settings(figures: Mapping[str, Any]) -> Section:
    return Section(
        "settings",
        "Header",
        "Settings that differ: what made the plans different decisions.",
        table=Table(
            ("setting", "A", "B"),
            [(s["key"], number(s["a"]), number(s["b"])) for s in figures["settings"][:_SETTINGS]],
        ),
    )


def _fragments(figures: Mapping[str, Any]) -> Section:
    rows = [(side.upper(), path) for side in "ab" for path in figures[f"fragments_only_in_{side}"]]
    return Section(
        "fragments",
        "Files",
        f"Files of one dataset that the other lacks, or holds changed; {len(rows):,} of them.",
        table=Table(("only in", "file"), rows[:_SETTINGS]),
    )
