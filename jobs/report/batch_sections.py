"""The sections on micro-batches: sizes, weights, clusters, negatives, and how mixed they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import pictures as draw
from .chi_square import WARN_ABOVE
from .pictures import percent, short
from .section import Section, Table, count, number

__all__ = [
    "batches_section",
    "chi_square_section",
    "clusters_section",
    "evidence_section",
    "hardness_section",
    "weights_section",
]

# --- batches --------------------------------------------------------------------------------------


def batches_section(found: Mapping[str, Any]) -> Section:
    facts = [
        ("micro-batches", count(found["micro_batches"])),
        ("rows, smallest to largest", f"{count(found['smallest'])} to {count(found['largest'])}"),
        ("smaller than the largest", count(found["ragged"])),
        ("last one", count(found["last"])),
        ("padding at the largest size", percent(found["padding"])),
    ]
    if found["padding_planned"] is not None:
        facts.append(("padding as planned (pad_to)", percent(found["padding_planned"])))
    pictures = []
    if found["smallest"] != found["largest"]:
        pictures = [draw.spread("sizes", found["sizes"], "rows a micro-batch", "micro-batches")]
    return Section(
        "batches",
        "Batch sizes",
        f"Rows of the micro-batches of epoch {found['epoch']}. Padding is the work that is lost "
        "where each is filled up to the largest; one short batch at the end is normal.",
        pictures,
        facts,
    )


def weights_section(found: Mapping[str, Any]) -> Section:
    return Section(
        "weights",
        "Weights",
        "How much rows count in the loss. A few very large weights make steps noisy; a mean of 1 "
        "leaves the learning rate as it was.",
        [draw.spread("weights", found, "weight", "rows")],
        [("mean", number(found["mean"])), ("weighted rows", count(found["count"]))],
    )


def clusters_section(found: Mapping[str, Any]) -> Section:
    pictures = []
    if "sizes" in found:
        ranked = sorted(found["sizes"], reverse=True)
        edges = [i + 0.5 for i in range(len(ranked) + 1)]
        pictures = [
            draw.histogram("clusters", edges, [("rows", ranked)], "clusters, by size", whole=True)
        ]
    elif "spread" in found:
        pictures = [draw.spread("clusters", found["spread"], "rows a cluster", "clusters")]
    return Section(
        "clusters",
        "Clusters",
        "Rows of each cluster. One that is far larger than the others fills most batches; many "
        "tiny ones leave short batches.",
        pictures,
        [
            ("clusters", count(found["clusters"])),
            ("smallest to largest", f"{count(found['smallest'])} to {count(found['largest'])}"),
            ("without a row", count(found["empty"])),
        ],
    )


def hardness_section(found: Mapping[str, Any]) -> Section:
    pictures, facts = [], []
    hardest = found["hardest"]
    if hardest is not None:
        what = "similarity of a row's hardest negative"
        pictures.append(draw.spread("hardest", hardest, what, "rows"))
        facts.append(("hardest negative, mean", number(hardest["mean"])))
    for key, what in (("negatives", "negatives listed a row"), ("masked", "rows masked a row")):
        if found[key]["counts"]:
            facts.append((f"{what}, mean", number(found[key]["mean"])))
            if len(found[key]["counts"]) > 1:
                pictures.append(draw.spread(key, found[key], what, "rows"))
    return Section(
        "hardness",
        "Hard negatives",
        "How like each row is the hardest negative of its micro-batch, and how many rows of it are "
        "masked because they are no negatives. Near 1 is hard; a heap at 1 may be unlabelled "
        "positives.",
        pictures,
        facts,
    )


def evidence_section(found: Mapping[str, Any]) -> Section:
    table = found["evidence"]
    x = [line["k"] for line in table]
    keys = [k for k in table[0] if k != "k"]
    shares = [k for k in keys if _is_share([line.get(k) for line in table])]
    marks = [(float(found["k"]), f"chosen: {found['k']}")] if found["k"] is not None else []
    pictures = []
    if shares and len(x) > 1:
        series = [(k.replace("_", " "), [line.get(k) for line in table]) for k in shares]
        pictures = [draw.lines("evidence", x, series, "clusters", marks=marks, shares=False)]
    rows = [[number(line.get(k)) for k in ("k", *keys)] for line in table]
    return Section(
        "evidence",
        f"What speaks for each number of clusters ({found['method']})",
        "What was measured of each number of clusters that was tried, where it was measured. The "
        "chosen number should keep all limits, and the numbers beside it should miss some.",
        pictures,
        [
            (f"limit of {k.replace('_', ' ')}", number(v))
            for k, v in (found["limits"] or {}).items()
        ],
        Table([k.replace("_", " ") for k in ("k", *keys)], rows),
    )


def _is_share(values: Sequence[Any]) -> bool:
    """Whether values are numbers in [0, 1], at two places or more."""
    held = [v for v in values if v is not None]
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in held)
    return len(held) > 1 and plain and all(0 <= v <= 1 for v in held) and max(held) > 1e-3


def chi_square_section(found: Mapping[str, Any]) -> Section:
    marks = [(1.0, "random"), (found["mean"], f"mean {short(round(found['mean'], 2))}")]
    more = found["largest"] > found["edges"][-1]
    picture = draw.histogram(
        "chi-square",
        found["edges"],
        [("micro-batches", found["counts"])],
        "chi-square over degrees of freedom",
        marks=[m for m in marks if m[0] <= found["edges"][-1]],
        last_holds_more=more,
    )
    warning = ""
    if found["warning"]:
        warning = (
            f"The mean is {found['mean']:.2f}, above {WARN_ABOVE:g}: micro-batches hold more of "
            f"the same {found['column']} than a random shuffle gives. That is meant where batches "
            "are made of clusters; else shuffle more widely (mode=full, or more open groups)."
        )
    return Section(
        "chi-square",
        f"How mixed the batches are, by {found['column']}",
        f"Chi-square of the classes in each micro-batch of epoch {found['epoch']} against the "
        "whole epoch, over its degrees of freedom. About 1 is what a random shuffle gives; larger "
        "means batches of like rows, smaller means batches more even than chance.",
        [picture],
        [
            ("mean", number(found["mean"])),
            ("median", number(found["median"])),
            ("5% to 95%", f"{number(found['p05'])} to {number(found['p95'])}"),
            ("largest", f"{number(found['largest'])}, in step {found['step_of_largest']:,}"),
            ("classes", count(found["classes"])),
        ],
        warning=warning,
    )
