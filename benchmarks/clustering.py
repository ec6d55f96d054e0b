"""Clusters and NGAME's micro-batches: what they cost, what they hold, what a training gains.

    .venv/bin/python benchmarks/clustering.py [--check] [--quick] [--only STEP]

One table, a line a bar. CPU seconds on one thread, but where it says otherwise. `--quick` takes
small sizes, which many bars are not meant for.

balanced
    Rows of a mixture of mixtures: balanced k-means by cosine beside the clustering of NGAME's
    published code (`clustering_peers`), restated with and without the calls of scikit-learn that
    take most of its time, and the mean cosine of pairs of rows in one cluster. Both make the same
    number of clusters, a power of two. Then two threads beside one.
hard-negatives
    Texts of several labels each (`debian`), embedded by an SVD of their TF-IDF. A *hard negative*
    of a row is one of the ten rows of the largest cosine that share no label with it, of all rows;
    recall is the share of them that are in the row's own micro-batch of 1,600. "best in the batch"
    is the largest cosine with a row of it that shares no label, mean over the rows; "best of all
    rows" its upper bound. A *false negative* is a column of a micro-batch whose drawn label is a
    label of the row, too: of all columns, of the ten nearest before the mask, and of the ten that
    NGAME lists after it. The reference strings its clusters together and cuts batches of them.
training
    A small two-tower model on the same texts (`two_tower`): precision of the labels ranked first,
    on rows kept aside, after 15 epochs. Unmasked: every other row's label is a negative.
k-means, k-means-dask
    `KMeans(1000)` of a million rows beside faiss.Kmeans trained on all of them, which gives no
    labels; ours does. The same by `jobs.plan` on two workers beside none: CPU seconds of all
    processes, the start of the workers included.
k-means-large
    Ten million rows in Parquet files, `--memory 3GB`, beside a quarter: see `clustering_growth`.
    Memory is what all processes held at once; pages of mapped files are not counted, but printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.clustering import NGAME, BalancedKMeans, KMeans
from batchloom.clustering.kmeans import assign
from batchloom.dataplane.plan import BatchPlan
from clustering_growth import growth
from clustering_peers import pair_cosine, reference_batches, reference_clusters, some_rows
from debian import MultiLabel, multi_label
from harness import Row, best, interleaved, load, measured, run_benchmark, run_fresh, run_steps
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from two_tower import training

STEPS = ("balanced", "hard-negatives", "training", "k-means", "k-means-dask", "k-means-large")

# --- balanced clusters ----------------------------------------------------------------------------


def balanced(quick: bool, rows: list[Row]) -> None:
    BalancedKMeans(k=64, metric="cosine").labels(some_rows(20_000, 64), threads=1)  # compiled now
    if quick:
        sizes: list[tuple[int, int, int, float | None]] = [(50_000, 64, 4096, None)]
        sizes.append((200_000, 64, 16_384, None))
    else:
        sizes = [(100_000, 64, 8192, 8.0), (100_000, 128, 8192, None)]
        sizes.append((1_000_000, 64, 65_536, 6.0))
    for n, d, k, bar in sizes:
        x = some_rows(n, d)
        model = BalancedKMeans(k=k, metric="cosine")
        ours, theirs = interleaved(
            1 if n > 500_000 else 5,
            partial(model.labels, x, threads=1),
            partial(reference_clusters, x, k),
        )
        cost, reference = best(ours), best(theirs)
        ratio = reference.own / cost.own
        rows.append(
            Row(
                f"balanced clusters, {n:,} x {d}, k = {k:,}",
                f"{cost.own:.2f} CPU s",
                f"NGAME's algorithm {reference.own:.2f} CPU s",
                f"{ratio:.1f} x",
                "" if bar is None else f"≥ {bar:g}",
                None if bar is None else ratio >= bar,
            )
        )
        near = [pair_cosine(x, c.value) for c in (cost, reference)]
        rows.append(
            Row(
                "  mean cosine of pairs in a cluster",
                f"{near[0]:.4f}",
                f"{near[1]:.4f}",
                f"{near[0] / near[1]:.3f} x",
                "≥ 0.985",
                near[0] / near[1] >= 0.985,
            )
        )
        if n <= 100_000 and d == 64:
            with_checks(x, k, cost.own, rows)
    two_threads(x, model, rows)


def with_checks(x: Any, k: int, ours: float, rows: list[Row]) -> None:
    """Compare with the reference's algorithm as it calls scikit-learn, in every turn of a node."""
    cpu = measured(partial(reference_clusters, x, k, scaled=normalize)).own
    limit = f"with scikit-learn's normalize {cpu:.2f} CPU s"
    rows.append(
        Row("  the same as NGAME's code has it", f"{ours:.2f} CPU s", limit, f"{cpu / ours:.0f} x")
    )


def two_threads(x: Any, model: BalancedKMeans, rows: list[Row]) -> None:
    one, two = interleaved(3, *(partial(model.labels, x, threads=t) for t in (1, 2)))
    ratio = best(two).own / best(one).own
    same = bool((one[0].value == two[0].value).all())
    rows.append(
        Row(
            "  two threads / one",
            f"{best(two).own:.2f} CPU s, wall {min(c.wall for c in two):.2f} s, {load()}",
            f"{best(one).own:.2f} CPU s, wall {min(c.wall for c in one):.2f} s",
            f"{ratio:.2f} x CPU{'' if same else ', other clusters'}",
            "≤ 1.15, same",
            ratio <= 1.15 and same,
        )
    )


# --- hard negatives -------------------------------------------------------------------------------

HARDEST = 10
BATCH = 1600

WAYS = (  # what is printed, rows a cluster, bar of the recall and whether it is a floor
    ("random", 1, 0.04, False),
    ("6 clusters a batch", 260, 0.48, True),
    ("1 cluster a batch", 1600, 0.60, True),
)


@dataclass(frozen=True)
class Hardest:
    """The most similar rows that share no label with a row.

    Attributes
    ----------
    rows : int, shape (n, 10)
    cosine : float
        Of the first of them, mean over the rows: what no batch exceeds.
    """

    rows: Any
    cosine: float


def hardest(data: MultiLabel) -> Hardest:
    """Look at all pairs of rows."""
    n, labels = len(data.texts), data.labels.astype(np.float32)
    x = torch.from_numpy(data.embeddings)
    rows, best = np.empty((n, HARDEST), np.int64), np.empty(n)
    transposed = labels.T.tocsr()
    for start in range(0, n, 512):
        here = slice(start, min(start + 512, n))
        cosines = x[here] @ x.T
        shared = (labels[here] @ transposed).tocoo()
        cosines[shared.row, shared.col] = -2
        found = cosines.topk(HARDEST, dim=1)
        rows[here], best[here] = found.indices.numpy(), found.values[:, 0].numpy()
    return Hardest(rows, float(best.mean()))


def recall(hard: Hardest, batches: Any) -> float:
    """Return the share of the hardest negatives that are in the row's micro-batch."""
    return float((batches[hard.rows] == batches[:, None]).mean())


def best_inside(data: MultiLabel, batches: Any) -> float:
    """Return the largest cosine of a row with one of its batch that shares no label; the mean."""
    found = np.empty(len(batches))
    for number in range(int(batches.max()) + 1):
        rows = np.flatnonzero(batches == number)
        x, labels = data.embeddings[rows], data.labels[rows].astype(np.float32)
        cosines = x @ x.T
        shared = (labels @ labels.T).tocoo()
        cosines[shared.row, shared.col] = -2
        found[rows] = cosines.max(axis=1)
    return float(found.mean())


def batches_of(plan: BatchPlan) -> Any:
    """Return the micro-batch of each row."""
    found = np.empty(len(plan.rows), np.int64)
    found[plan.rows.astype(np.int64)] = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    return found


def false_shares(plan: BatchPlan, unmasked: BatchPlan, data: MultiLabel) -> tuple[float, ...]:
    """Return shares of columns whose positive is a label of the row.

    Of all other columns of the micro-batch; of the ten of the largest cosine among them; and of the
    ten listed, after the mask.
    """
    sizes = np.diff(plan.offsets)
    everywhere = len(plan.side["mask"].values) / float((sizes * (sizes - 1)).sum())
    own = data.labels.tocsr()
    shares = []
    for listed in (unmasked.side["negatives"], plan.side["negatives"]):
        counts = np.diff(listed.offsets)
        row = np.repeat(np.arange(len(plan.rows)), counts)
        first = np.repeat(plan.offsets[:-1], sizes)[row]
        drawn = plan.side["positive"][first + listed.values]
        rows = plan.rows.astype(np.int64)[row]
        shares.append(float(np.asarray(own[rows, drawn]).mean()))
    return everywhere, *shares


def hard_negatives(data: MultiLabel, quick: bool, rows: list[Row]) -> None:
    """Compare micro-batches of 1,600 rows by what they hold."""
    found = measured(lambda: hardest(data))
    hard: Hardest = found.value
    for name, size, bar, floor in WAYS:
        method = NGAME(batch_size=BATCH, cluster_size=size)
        made = measured(lambda method=method: method.batches(data.embeddings, data.labels))
        plan, batches = made.value, batches_of(made.value)
        unmasked = method.batches(data.embeddings)
        everywhere, ten, after = false_shares(plan, unmasked, data)
        share = recall(hard, batches)
        barred = data.real and not quick
        met = share >= bar if floor else share <= bar
        rows.append(
            Row(
                f"{BATCH:,} rows, {name}: recall@{HARDEST} of hard negatives",
                f"best in the batch {best_inside(data, batches):.3f}; {made.own:.1f} CPU s",
                f"best of all rows {hard.cosine:.3f}; {found.own:.1f} CPU s",
                f"{share:.3f}",
                f"{'≥' if floor else '≤'} {bar:.2f}" if barred else "",
                met if barred else None,
            )
        )
        rows.append(
            Row(
                "  false negatives, of all columns and of the ten nearest",
                f"{100 * everywhere:.1f} %, {100 * ten:.1f} %",
                "",
                f"masked {100 * after:.1f} %",
                "0 masked",
                after == 0,
            )
        )
    for size in (BATCH, 206):
        strung_together(data, hard, size, rows)


def strung_together(data: MultiLabel, hard: Hardest, size: int, rows: list[Row]) -> None:
    """Compare with as many clusters as the reference can make, in its batches."""
    method, n = NGAME(batch_size=BATCH, cluster_size=size), len(data.texts)
    number, k = method.deal(n, BATCH, 0).clusters, 1 << round(np.log2(n / size))
    ours = batches_of(method.batches(data.embeddings))
    theirs = reference_batches(reference_clusters(data.embeddings, k), BATCH)
    shares = [recall(hard, b) for b in (ours, theirs)]
    rows.append(
        Row(
            f"  {number} clusters, whole / {k} of the reference, strung together and cut",
            f"recall {shares[0]:.3f}, best in the batch {best_inside(data, ours):.3f}",
            f"recall {shares[1]:.3f}, best in the batch {best_inside(data, theirs):.3f}",
            f"{shares[0] - shares[1]:+.3f}",
        )
    )


# --- k-means --------------------------------------------------------------------------------------


def beside_faiss(quick: bool, rows: list[Row]) -> None:
    """Compare both with ten iterations, where ours makes them on its sample, and by defaults."""
    n, k = (100_000, 200) if quick else (1_000_000, 1000)
    x = some_rows(n, 64)
    KMeans(100, max_iter=2).fit(x[:5000])
    for iterations, model in ((10, KMeans(k, max_iter=10, tol=0)), (25, KMeans(k))):
        theirs = faiss.Kmeans(64, k, niter=iterations, seed=1, max_points_per_centroid=n)
        ours, other = interleaved(1, partial(model.fit, x), partial(theirs.train, x))
        found, limit = ours[0].value, float(assign(x, theirs.centroids)[1].sum())
        ratio = ours[0].own / other[0].own
        rows.append(
            Row(
                f"k-means, {n:,} x 64, k = {k:,}, {iterations} iterations at most",
                f"{ours[0].own:.1f} CPU s with labels; {found.iterations} made",
                f"faiss.Kmeans on all rows {other[0].own:.1f} CPU s",
                f"{ratio:.2f} x",
                "" if quick else "≤ 1",
                None if quick else ratio <= 1,
            )
        )
        worse = found.inertia / limit
        rows.append(
            Row("  inertia a row", f"{found.inertia / n:.3f}", f"{limit / n:.3f}", f"{worse:.4f} x",
                "≤ 1.01", worse <= 1.01)
        )  # fmt: skip


_PLAN = """
import json, os, sys
from pathlib import Path
from batchloom.jobs import plan
from harness import load, measured

folder, k = Path(sys.argv[1]), int(sys.argv[2])
found = []
for data, k in (("small", 10), ("large", k)):
    for workers in (0, 2):
        used = sum(os.times()[:4])
        made = measured(lambda: plan(
            "kmeans", folder / data, out=folder / f"{data}-{workers}", batch_size=256,
            columns=["x"], k=k, workers=workers
        ))
        used = sum(os.times()[:4]) - used
        report = dict(made.value.provenance["reports"]["kmeans"])
        found.append([used, made.wall, made.value.manifest_id, report, load()])
print(json.dumps(found))
"""


def through_dask(folder: Path, quick: bool, rows: list[Row]) -> None:
    n, k = (100_000, 200) if quick else (1_000_000, 1000)
    x = some_rows(n, 64)
    for name, part, files in (("small", x[:10_000], 2), ("large", x, 8)):
        (folder / name).mkdir()
        for number, values in enumerate(np.array_split(part, files)):
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 64)
            pq.write_table(pa.table({"x": column}), folder / name / f"{number}.parquet")
    del x
    _, start, here, there = run_fresh(_PLAN, folder, k)
    ratio, same = there[0] / here[0], there[2:4] == here[2:4]
    rows.append(
        Row(
            f"plan kmeans, {n:,} x 64, k = {k:,}, two workers / none",
            f"{there[0]:.1f} CPU s, wall {there[1]:.0f} s, {there[4]}",
            f"{here[0]:.1f} CPU s, wall {here[1]:.0f} s",
            f"{ratio:.2f} x{', the same plan' if same else ', ANOTHER PLAN'}",
            "≤ 1.5, same" if not quick else "same",
            same and (quick or ratio <= 1.5),
        )
    )
    rows.append(Row("  of 10,000 rows: the start of the workers", f"{start[0]:.1f} CPU s", "", ""))


# --- all of it ------------------------------------------------------------------------------------


def run(folder: Path, quick: bool, only: Sequence[str]) -> list[Row]:
    rows: list[Row] = []

    @cache
    def texts() -> MultiLabel:
        data = multi_label(8000 if quick else None)
        rows.append(Row(f"texts: {data}", "", "", ""))
        return data

    steps = {
        "balanced": partial(balanced, quick, rows),
        "hard-negatives": lambda: hard_negatives(texts(), quick, rows),
        "training": lambda: training(texts(), quick, rows),
        "k-means": partial(beside_faiss, quick, rows),
        "k-means-dask": partial(through_dask, folder, quick, rows),
        "k-means-large": partial(growth, folder / "growth", quick, rows),
    }
    torch.set_num_threads(1)
    with threadpool_limits(1):
        run_steps([(name, steps[name]) for name in STEPS if name in only or not only])
    return rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run, STEPS))
