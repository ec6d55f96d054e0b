"""The sections of a plan's page, in order; they are made of its figures alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .batch_sections import (
    batches_section,
    chi_square_section,
    clusters_section,
    evidence_section,
    hardness_section,
    weights_section,
)
from .row_sections import (
    choice_section,
    classes_section,
    cost_section,
    coverage_section,
    losses_section,
    rows_section,
    windows_section,
)
from .section import Section, Table, number

__all__ = ["header_facts", "plan_sections"]


def plan_sections(figures: Mapping[str, Any]) -> list[Section]:
    """Return the sections that a plan has."""
    return [make(figures[key]) for key, make in _SECTIONS.items() if key in figures]


def _facts(found: Sequence[Mapping[str, Any]]) -> Section:
    return Section(
        "facts",
        "What the stages report",
        "Plain values that the stages wrote into the header, of the newest epoch where they tell "
        "it by epoch.",
        table=Table(
            ("stage", "what", "value"),
            [(str(f["stage"]), str(f["name"]), number(f["value"])) for f in found],
        ),
    )


_SECTIONS: dict[str, Callable[[Any], Section]] = {
    "cost": cost_section,
    "rows": rows_section,
    "classes": classes_section,
    "losses": losses_section,
    "windows": windows_section,
    "coverage": coverage_section,
    "choice": choice_section,
    "weights": weights_section,
    "batches": batches_section,
    "chi_square": chi_square_section,
    "clusters": clusters_section,
    "evidence": evidence_section,
    "hardness": hardness_section,
    "facts": _facts,
}


def header_facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what stands at a page's head."""
    return list(_header_lines(header))


def _header_lines(header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, (first, stop) = header["dataset"], header["epochs"]
    yield "dataset", f"{data['rows']:,} rows, {data['fragments']:,} fragments"
    yield "sources", ", ".join(data["sources"])
    yield "fingerprint", data["fingerprint"]
    yield "epochs", f"{first}" if stop - first == 1 else f"{first} to {stop - 1}"
    yield "seed", str(header["seed"])
    yield "weights", header["weights"] or "all 1"
    yield "ranks take", "whole micro-batches" if header["unit"] == "micro" else "slices"
    yield "id", header["manifest_id"]
    if header["parent"]:
        yield "parent", header["parent"]
    if header["members"] > 1:
        yield "members", f"{header['members']:,}; the header is that of the newest"
    if header["signals"]:
        yield "signals", str(header["signals"])
