"""A section of a page, and numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BARS", "Section", "Table", "count", "largest", "number"]

BARS = 24
"""Lines of a picture."""


@dataclass(frozen=True)
class Table:
    """Lines of cells under names."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = "figures"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    key, title : str
    says : str
        What it shows and what to look for.
    pictures : sequence of str
        Inline SVG.
    facts : sequence of (str, str)
    table : Table or None
    warning : str
        What is wrong; empty where nothing is.
    """

    key: str
    title: str
    says: str
    pictures: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    table: Table | None = None
    warning: str = ""


def largest(lines: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Return the lines that a picture shows, in their order: those with most of `key`."""
    shown = sorted(range(len(lines)), key=lambda i: -lines[i][key])[:BARS]
    return [lines[i] for i in sorted(shown)]


def count(value: float) -> str:
    return f"{value:,.0f}"


def number(value: Any) -> str:
    """Return a plain value as text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(number(v) for v in value) or "-"
    return str(value)
