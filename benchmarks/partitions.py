"""PPP: does it find how many clusters there are, and none where there are none?

    .venv/bin/python benchmarks/partitions.py [--check] [--quick] [--only STEP]

A line a case, then one table, a line a bar. One thread. `--quick` takes every fifth case and leaves
the other ways to find k out; its bars are shares of fewer cases.

known
    31 cases that PPP's limits were set by (`partition_cases`): round clusters in 2, 8 and 32
    dimensions, sheared ones, uneven sizes and widths, five without structure, four real sets. A
    *hit* is the true k. Beside it k-means with the largest silhouette, the gap statistic, and the
    Gaussian mixture of the least BIC; and PPP by the Euclidean metric only.
fresh, shapes
    38 cases of uneven sizes and widths, and 61 of other shapes, of seeds that no limit was set by.
few-rows
    300 rows of one cloud, of eight kinds: how often clusters are found in it.
repeats
    A set of five near clusters and the real ones: the same rows in ten orders, with their ids and
    without, and six seeds. Then whether the separable rows have a larger silhouette than all.
large
    400,000 rows from a sample of 2,000: how the clusters agree with the true ones, and what all of
    it costs beside the sample and one assignment of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from batchloom.clustering.ppp import PPP, Partition
from harness import Row, best, interleaved, load, measured, run_benchmark, run_steps
from partition_cases import OTHERS, Case, blobs, few_rows, fresh, known, seeded, shapes
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

STEPS = ("known", "fresh", "shapes", "few-rows", "repeats", "large")


# --- hits -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The k that each way finds in a case, and how PPP's clusters agree with the true ones."""

    case: Case
    k: dict[str, int]
    rand: float | None


def found_in(cases: Iterable[Case], *, others: bool = False) -> list[Found]:
    """Find k in each case; print a line each."""
    out = []
    for case in cases:
        spent = measured(partial(PPP().fit, case.x))
        part: Partition = spent.value
        says = {"PPP": part.k}
        if others:
            says["PPP, Euclidean"] = PPP(metric="euclidean").fit(case.x).k
            says |= {name: way(case.x) for name, way in OTHERS.items()}
        rand = None if case.truth is None else adjusted_rand_score(case.truth, part.labels)
        out.append(Found(case, says, rand))
        chosen = part.evidence[part.k - 1]
        words = [
            f"{case.name:32}k={case.k:<3}found {part.k:<3}",
            f"{'' if part.k == case.k else 'MISSED':6}",
            f"ARI {rand:.3f}" if rand is not None else " " * 9,
            f"{chosen['metric'] if part.k > 1 else '':9}",
            f"separable {part.separable.mean():.2f}  {spent.own:5.1f} s",
            ", ".join(f"{name} {k}" for name, k in list(says.items())[1:]),
        ]
        if part.k != case.k and len(part.evidence) >= case.k:
            words.append(f"(true k fails: {', '.join(part.evidence[case.k - 1]['failed'])})")
        print("  ".join(words).rstrip(), flush=True)
    return out


def hits(found: list[Found], way: str = "PPP") -> int:
    return sum(f.k[way] == f.case.k for f in found)


def the_known(quick: bool, rows: list[Row]) -> None:
    cases = list(known())[:: 5 if quick else 1]
    found = found_in(cases, others=not quick)
    n, mine = len(found), hits(found)
    others = "" if quick else ", ".join(f"{w} {hits(found, w)}" for w in list(found[0].k)[1:])
    least = round(27 / 31 * n) - (1 if quick else 0)
    bar = f"≥ {least}"
    rows.append(
        Row("known cases, true k found", f"{mine} of {n}", others, str(mine), bar, mine >= least)
    )
    empty = [f for f in found if f.case.k == 1]
    mine = hits(empty)
    others = "" if quick else ", ".join(f"{w} {hits(empty, w)}" for w in list(found[0].k)[1:])
    text = f"{mine} of {len(empty)}"
    ok = mine == len(empty)
    rows.append(Row("  of them without structure", text, others, str(mine), "all", ok))


def the_others(name: str, cases: Any, quick: bool, rows: list[Row]) -> None:
    found = found_in(list(cases())[:: 5 if quick else 1])
    mine, n = hits(found), len(found)
    share = mine / n
    rows.append(
        Row(f"{name}, true k found", f"{mine} of {n}", "", f"{share:.0%}", "≥ 92 %", share >= 0.92)
    )
    least = min(f.rand for f in found if f.rand is not None and f.k["PPP"] == f.case.k)
    rows.append(Row("  least ARI of them", f"{least:.3f}", "", f"{least:.3f}"))


def the_few(quick: bool, rows: list[Row]) -> None:
    found = found_in(few_rows(1 if quick else 10))
    false = len(found) - hits(found)
    share = false / len(found)
    text = f"{false} of {len(found)}"
    rows.append(
        Row(
            "300 rows of one cloud, clusters found",
            text,
            "",
            f"{share:.1%}",
            "≤ 5 %",
            share <= 0.05,
        )
    )


# --- repeats --------------------------------------------------------------------------------------


def agreement(parts: list[Any]) -> float:
    """Return the least adjusted Rand index of two partitions."""
    return min(adjusted_rand_score(a, b) for a, b in combinations(parts, 2))


def repeats(quick: bool, rows: list[Row]) -> None:
    near = Case("five near clusters", *blobs(seeded(5), 1000, 5, 2, 4.0), 5)
    real = {c.name: c for c in known() if c.name in ("wine", "iris", "breast_cancer", "digits")}
    for case in [near] if quick else [near, *real.values()]:
        n, method = len(case.x), PPP(k_max=12)
        plain, parts, same = method.fit(case.x), [], True
        for seed in range(10 if case is near else 3):
            order = seeded(seed, 1).permutation(n)
            part = method.fit(case.x[order], order.astype(np.uint64))
            same &= part.labels.tobytes() == plain.labels[order].tobytes()
            same &= part.posterior.tobytes() == plain.posterior[order].tobytes()
            parts.append(np.empty(n, np.int32))
            parts[-1][order] = method.fit(case.x[order]).labels
        least = agreement([plain.labels, *parts])
        bar, ok = ("≥ 0.99", least >= 0.99) if case in (near, real.get("wine")) else ("", None)
        found = f"k = {plain.k} of {case.k}"
        rows.append(
            Row(
                f"{case.name}: other orders, ids kept",
                found,
                "",
                "same bits" if same else "other bits",
                "same bits",
                same,
            )
        )
        rows.append(Row("  ids not kept: least ARI", f"{least:.3f}", "", f"{least:.3f}", bar, ok))
        seeds = [PPP(k_max=12, seed=s).fit(case.x) for s in range(6)]
        least = agreement([s.labels for s in seeds])
        ks = " ".join(str(s.k) for s in seeds)
        rows.append(Row("  six seeds: k, least ARI", ks, "", f"{least:.3f}"))
        if plain.k > 1:
            whole = silhouette_score(case.x, plain.labels)
            kept = plain.separable
            part = silhouette_score(case.x[kept], plain.labels[kept])
            bar, ok = ("> 1", part > whole) if case in (near, real.get("wine")) else ("", None)
            rows.append(
                Row(
                    f"  silhouette of the {kept.mean():.1%} separable rows",
                    f"{part:.3f}",
                    f"of all {whole:.3f}",
                    f"{part / whole:.3f}",
                    bar,
                    ok,
                )
            )


# --- many rows ------------------------------------------------------------------------------------


def large(quick: bool, rows: list[Row]) -> None:
    n = 40_000 if quick else 400_000
    x, truth = make_blobs(n, n_features=16, centers=13, cluster_std=1.5, random_state=5)
    x, ids, method = x.astype(np.float32), np.arange(n, dtype=np.uint64), PPP(rows=2000)
    chosen = method.sample(ids)
    model = method.train(x[chosen], ids[chosen])
    model.assign(x[:100])  # compiled now

    def sample() -> None:
        method.train(x[method.sample(ids)], ids[chosen])

    sampled, assigned, whole = (
        best(c)
        for c in interleaved(2, sample, partial(model.assign, x), partial(method.fit, x, ids))
    )
    rand = adjusted_rand_score(truth, whole.value.labels)
    text = f"k = {whole.value.k} of 13"
    rows.append(
        Row(
            f"{n:,} rows from a sample of 2,000: ARI",
            text,
            "",
            f"{rand:.4f}",
            "≥ 0.99",
            rand >= 0.99,
        )
    )
    ratio = whole.own / (sampled.own + assigned.own)
    parts = f"sample {sampled.own:.2f} + assignment {assigned.own:.2f}"
    rows.append(
        Row(
            "  cost",
            f"{whole.own:.2f} CPU s, {load()}",
            parts,
            f"{ratio:.2f}",
            "≤ 1.3",
            ratio <= 1.3,
        )
    )


def run(folder: Path, quick: bool, only: list[str]) -> list[Row]:
    rows: list[Row] = []
    steps = {
        "known": partial(the_known, quick, rows),
        "fresh": partial(the_others, "fresh cases", fresh, quick, rows),
        "shapes": partial(the_others, "other shapes", shapes, quick, rows),
        "few-rows": partial(the_few, quick, rows),
        "repeats": partial(repeats, quick, rows),
        "large": partial(large, quick, rows),
    }
    with threadpool_limits(1):
        run_steps([(name, steps[name]) for name in only or STEPS])
    return rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run, STEPS))
