"""The pictures: numbers in, inline SVG out. Drawn by matplotlib, its text left as text.

Colors are names of the page's style sheet, so that a picture follows the reader's light or dark
scheme; ids are the picture's own, so that many stand in one page; nothing in it depends on the
time, so that the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ...dataplane.errors import needs_extra

__all__ = ["Series", "bars", "cells", "columns", "lines", "pairs", "spread"]

Series = tuple[str, Sequence[float | None]]
"""A label, and a number at each place."""

INK, MUTED, GRID, ACCENT, SOFT, BACK = (f"#{i:02x}{i:02x}{i:02x}" for i in range(1, 7))
_NAMES = {INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent", SOFT: "soft", BACK: "back"}
_WIDTH = 4.6  # inches: 331 points, about what a phone is wide
_TEXT = 11
_LETTERS = 26  # of a name
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "batchloom",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: its widths are known anywhere
    "font.size": _TEXT,
    "axes.labelsize": _TEXT,
    "xtick.labelsize": _TEXT,
    "ytick.labelsize": _TEXT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
    "text.usetex": False,
    "text.parse_math": False,
}


@contextmanager
def _drawn(out: list[str], name: str, height: float) -> Iterator[Any]:
    """Give axes, and put what was drawn on them into `out` as SVG."""
    with needs_extra("A report's pictures", "report"):
        from matplotlib import style
        from matplotlib.figure import Figure
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has other fonts
        figure = Figure(figsize=(_WIDTH, height))
        yield figure.subplots()
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=nothing, transparent=True)
    out.append(_inlined(text.getvalue(), name))


def _inlined(text: str, name: str) -> str:
    """Return the SVG of a file as it stands in a page."""
    root = ElementTree.fromstring(text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        given, element.attrib = dict(element.attrib), {}
        for key, value in given.items():
            key = key.rpartition("}")[2]
            if key == "id":
                if value in used:
                    element.set("id", f"{name}-{value}")
            elif key == "style":
                element.set("style", _recolored(value))
            else:
                element.set(key, re.sub(r"^(#|url\(#)", rf"\g<1>{name}-", value))
    for parent in root.iter("defs"):
        for sheet in parent.findall("style"):
            parent.remove(sheet)
    said = name.replace("-", " ")
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": said}
    return ElementTree.tostring(root, encoding="unicode").strip()


def _recolored(style: str) -> str:
    """Return a style with the page's colors and the page's font."""
    kept = []
    for item in style.split(";"):
        key, _, value = (part.strip() for part in item.partition(":"))
        if key == "font":
            kept.append(f"font-size: {re.findall(r'[0-9.]+px', value)[0]}")
        elif key and key not in ("font-family", "stroke-miterlimit"):
            kept.append(f"{key}: {f'var(--{_NAMES[value]})' if value in _NAMES else value}")
    return "; ".join(kept)


# --- numbers as text ------------------------------------------------------------------------------


def short(value: float) -> str:
    """Return a number in few letters: 950, 12.3k, 4.5M, 0.031."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            shown = value / (size if unit != "k" else 1e3)
            return f"{shown:.3g}{unit}" if shown < 1000 else f"{shown:,.0f}{unit}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a share as text; what is not all or nothing is not rounded to it."""
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0, 1) or 0.1 <= share <= 0.99 else f"{share:.1%}"


def printable(text: str) -> str:
    """Return text without control characters, which no page may hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _cut(name: str) -> str:
    plain = printable(" ".join(name.split())) or "(empty)"
    return plain if len(plain) <= _LETTERS else plain[: _LETTERS - 1] + "…"


def _scaled(axis: Any, *, whole: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=whole))
    axis.set_major_formatter(FuncFormatter(lambda v, _: short(round(v, 12))))


# --- forms ----------------------------------------------------------------------------------------


def spread(name: str, found: Mapping[str, Any], what: str, of: str, **more: Any) -> str:
    """Draw how often numbers come up, as `counts.bins_of` tells it."""
    if "values" in found:
        labels = [short(v) for v in found["values"]]
        return columns(name, labels, [(of, found["counts"])], what)
    log = found.get("scale") == "log"
    return histogram(name, found["edges"], [(of, found["counts"])], what, log=log, **more)


def columns(name: str, labels: Sequence[str], series: Sequence[Series], what: str) -> str:
    """Draw a column a label, its share of all above it."""
    out: list[str] = []
    counts = np.array(series[0][1], float)
    with _drawn(out, name, 2.2) as axes:
        place = np.arange(len(counts))
        axes.bar(place, counts, 0.7, color=ACCENT)
        shares = counts / max(1.0, counts.sum())
        for x, y, share in zip(place, counts, shares, strict=True):
            axes.annotate(
                percent(share) if share else "",
                (x, y),
                (0, 2),
                textcoords="offset points",
                ha="center",
                size=_TEXT if len(counts) <= 6 else _TEXT - 2.5,
            )
        axes.set_xlim(-0.7, max(len(counts), 3) - 0.3)
        size = _TEXT if len(counts) <= 10 else _TEXT - 2
        axes.set_xticks(place, labels, size=size, rotation=90 if _crowded(labels) else 0)
        axes.set_xlabel(what)
        axes.set_ylabel(series[0][0])
        axes.margins(y=0.15)
        _scaled(axes.yaxis, whole=True)
    return out[0]


def _crowded(labels: Sequence[str]) -> bool:
    return sum(len(label) + 1.5 for label in labels) > 48


def histogram(
    name: str,
    edges: Sequence[float],
    series: Sequence[Series],
    what: str,
    *,
    log: bool = False,
    whole: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    last_holds_more: bool = False,
) -> str:
    """Draw counts by bin, of up to two series on top of one another."""
    out: list[str] = []
    with _drawn(out, name, 2.4) as axes:
        below = np.zeros(len(edges) - 1)
        for (label, counts), color in zip(series, (ACCENT, SOFT), strict=False):
            above = below + np.array(counts, float)
            axes.stairs(above, edges, baseline=below, fill=True, color=color, label=label)
            below = above
        if log:
            axes.set_xscale("log")
        else:
            _scaled(axes.xaxis, whole=whole)
        top = float(below.max()) * (1.08 + 0.16 * len(marks))
        axes.set_ylim(0, top or 1)
        axes.set_xlim(edges[0], edges[-1])
        for number, mark in enumerate(sorted(marks)):
            share = (mark[0] - edges[0]) / (edges[-1] - edges[0])
            left = share > (0.65 if number else 0.35)
            _mark(axes, mark, left=left, height=1 - 0.12 * number)
        axes.set_xlabel(what + ("\n(the last column holds all larger)" if last_holds_more else ""))
        axes.set_ylabel(series[0][0] if len(series) == 1 else "rows")
        _scaled(axes.yaxis, whole=True)
        if len(series) > 1:
            _legend(axes)
    return out[0]


def _mark(axes: Any, mark: tuple[float, str], *, left: bool, height: float) -> None:
    """Draw a line at a place, its name beside its upper end."""
    axes.axvline(mark[0], 0, height, color=INK, linewidth=1)
    axes.annotate(
        mark[1],
        (mark[0], height),
        (-4 if left else 4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
    )


def _legend(axes: Any) -> None:
    axes.figure.legend(
        loc="outside upper left", ncols=2, frameon=False, handlelength=1, borderpad=0.2
    )


def bars(name: str, rows: Sequence[tuple[str, float, float]], *, unit: str) -> str:
    """Draw (name, part, whole) as a bar in a bar, with the numbers beside the name."""
    out: list[str] = []
    with _drawn(out, name, 0.25 + 0.52 * len(rows)) as axes:
        largest = max((whole for _, _, whole in rows), default=1) or 1
        for line, (label, part, whole) in enumerate(rows):
            axes.barh(line, whole, 0.34, color=SOFT)
            axes.barh(line, part, 0.34, color=ACCENT)
            share = percent(part / whole) if whole else "0%"
            _beside(axes, line, _cut(label), f"{short(part)} of {short(whole)} {unit} · {share}")
        _bare(axes, len(rows), largest, 0.26)
    return out[0]


def pairs(name: str, rows: Sequence[tuple[str, float, float]], first: str, second: str) -> str:
    """Draw (name, share, share) as two bars below one another."""
    out: list[str] = []
    with _drawn(out, name, 0.5 + 0.62 * len(rows)) as axes:
        largest = max((max(a, b) for _, a, b in rows), default=1) or 1
        for line, (label, one, two) in enumerate(rows):
            axes.barh(line - 0.07, one, 0.2, color=SOFT, label=first if not line else None)
            axes.barh(line + 0.15, two, 0.2, color=ACCENT, label=second if not line else None)
            _beside(axes, line - 0.04, _cut(label), f"{percent(one)} → {percent(two)}")
        _bare(axes, len(rows), largest, 0.3)
        _legend(axes)
    return out[0]


def _beside(axes: Any, line: float, left: str, right: str) -> None:
    """Write a bar's name and numbers above it."""
    import matplotlib.transforms as mt

    place = mt.blended_transform_factory(axes.transAxes, axes.transData)
    axes.text(0, line - 0.22, left, transform=place, va="bottom")
    axes.text(1, line - 0.22, right, transform=place, va="bottom", ha="right", color=MUTED)


def _bare(axes: Any, lines_: int, largest: float, room: float) -> None:
    axes.set_xlim(0, largest)
    axes.set_ylim(lines_ - 0.5 - 0.2, -0.5 - room)
    axes.axis("off")


def lines(
    name: str,
    x: Sequence[float],
    series: Sequence[Series],
    what: str,
    *,
    marks: Sequence[tuple[float, str]] = (),
    shares: bool = True,
) -> str:
    """Draw numbers over epochs, or over numbers of clusters, each line named at its end."""
    out: list[str] = []
    shades = (ACCENT, INK, MUTED, SOFT)
    with _drawn(out, name, 2.4) as axes:
        ends = []
        for number, (label, values) in enumerate(series):
            y = np.array([np.nan if v is None else v for v in values], float)
            dots = "o" if len(x) <= 30 else None
            style = ("-", "--", ":", "-.")[number // 2 % 4]
            color = shades[number % 3]
            axes.plot(x, y, style, color=color, marker=dots, markersize=3, linewidth=1.4)
            held = np.flatnonzero(np.isfinite(y))
            if len(held):
                ends.append((float(y[held[-1]]), label, color))
        for at, label in marks:
            axes.axvline(at, color=GRID, linewidth=4, zorder=0)
            axes.annotate(label, (at, 1), (3, -2), xycoords=("data", "axes fraction"),
                          textcoords="offset points", va="top", color=MUTED)  # fmt: skip
        low, high = axes.get_ylim()
        low = min(low, 0.0)
        axes.set_ylim(low, high + 0.05 * (high - low))
        _name_ends(axes, ends)
        axes.set_xlabel(what)
        _scaled(axes.xaxis, whole=True)
        _scaled(axes.yaxis)
        if shares:
            axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    return out[0]


def _name_ends(axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Write the lines' names at their right ends, apart from one another."""
    low, high = axes.get_ylim()
    apart = 0.095 * (high - low)
    place = -np.inf
    for y, label, color in sorted(ends):
        place = max(y, place + apart)
        axes.annotate(
            label,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
            annotation_clip=False,
        )


def cells(name: str, found: Sequence[tuple[int, int, tuple[int, int]]], what: str) -> str:
    """Draw (epoch, groups, window): a column of groups an epoch, those in the window in color."""
    out: list[str] = []
    most = max(groups for _, groups, _ in found)
    with _drawn(out, name, 0.9 + 0.16 * min(most, 16)) as axes:
        for epoch, groups, (start, stop) in found:
            axes.broken_barh([(epoch - 0.45, 0.9)], (-0.5, groups), color=SOFT)
            axes.broken_barh([(epoch - 0.45, 0.9)], (start - 0.5, stop - start), color=ACCENT)
        for edge in range(1, most):
            axes.axhline(edge - 0.5, color=BACK, linewidth=1)
        axes.set_xlabel(what)
        axes.set_ylabel("group")
        axes.grid(visible=False)
        axes.set_ylim(-0.5, most - 0.5)
        _scaled(axes.xaxis, whole=True)
        _scaled(axes.yaxis, whole=True)
    return out[0]
