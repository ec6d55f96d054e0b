"""Selecting by loss: what a plan costs beside loops over rows, how good its groups are, signals.

The loops are an own re-statement of what the authors' code of SeTa does when it prunes:
scikit-learn's k-means of the kept losses, and a walk over the rows, tensor by tensor, into a list a
group. They are given our random keep, so both plan the same epoch.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.coresets import InfoBatch, SeTa
from batchloom.coresets.kernels import best_cuts
from batchloom.coresets.loss_groups import groups_1d
from batchloom.coresets.loss_histogram import LossHistogram
from batchloom.dataplane import open_dataset
from batchloom.dataplane.columns import as_numpy
from batchloom.dataplane.rowset import RowSet
from batchloom.jobs.budget import Budget
from batchloom.jobs.context import JobContext
from batchloom.jobs.engine import Engine
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.seta import SeTaSelect
from batchloom.jobs.stages import PlanState
from batchloom.jobs.work import work_folder
from harness import (
    PeakOfChildren,
    Row,
    best,
    interleaved,
    load,
    median,
    run_benchmark,
    run_fresh,
    run_process,
    run_steps,
)
from signal_writers import Writers

EPOCH = 2
SETTINGS: dict[str, Any] = {"groups": 5, "window_scale": 0.6, "prune_ratio": 0.1, "seed": 7}

_PEAK = """
import json
import numpy as np
from batchloom.coresets import SeTa
from harness import peak_rss
method = SeTa(groups=5, window_scale=0.6, prune_ratio=0.1, seed=7)
method.plan(np.random.default_rng(1).random(300_000, np.float32), epoch=2)
losses = np.random.default_rng(0).lognormal(-1.5, 1.6, 1_000_000).astype(np.float32)
before = peak_rss()
method.plan(losses, epoch=2)
print(json.dumps(peak_rss() - before))
"""


def some_losses(n: int, kind: str = "lognormal") -> Any:
    draw = np.random.default_rng(0)
    losses = draw.lognormal(-1.5, 1.6, n)
    if kind == "zero-heavy":
        losses[draw.random(n) < 0.6] = 0
    elif kind == "bimodal":
        losses = np.where(draw.random(n) < 0.7, draw.normal(0.1, 0.02, n), draw.normal(4, 0.7, n))
        losses = np.abs(losses)
    elif kind.startswith("narrow"):
        losses = draw.normal(2.3026, 0.005, n)
        if kind.endswith("outlier"):
            losses[0] = 900
    return losses.astype(np.float32)


# --- a plan in memory -----------------------------------------------------------------------------


def loops(losses: Any, kept: Any) -> Any:
    """Plan an epoch row by row: tensors of one number each, sorted into lists."""
    from sklearn.cluster import KMeans

    scores = torch.from_numpy(losses)
    places = torch.from_numpy(np.flatnonzero(kept))
    chosen = scores[places]
    fitted = KMeans(SETTINGS["groups"], random_state=0).fit(chosen.unsqueeze(1).numpy())
    values: list[list[Any]] = [[] for _ in range(SETTINGS["groups"])]
    rows: list[list[Any]] = [[] for _ in range(SETTINGS["groups"])]
    for value, place, label in zip(chosen, places, fitted.labels_, strict=True):
        values[label].append(value)
        rows[label].append(place)
    order = np.argsort([float(np.mean(v)) for v in values])
    width = round(len(rows) * SETTINGS["window_scale"])
    start = EPOCH % (len(rows) - width + 1)
    found = [place for group in order[start : start + width] for place in rows[group]]
    np.random.default_rng(0).shuffle(found)
    return np.array(found)


def in_memory(quick: bool, rows: list[Row]) -> None:
    losses = some_losses(1_000_000)
    method = SeTa(**SETTINGS)
    annealed = SeTa(**{**SETTINGS, "groups": 2, "window_scale": 1.0}).plan(losses, epoch=EPOCH)
    kept = np.zeros(len(losses), bool)
    kept[annealed.rows.astype(np.int64)] = True  # all groups of the same random keep
    ours, theirs = interleaved(
        3 if quick else 5,
        partial(method.plan, losses, epoch=EPOCH),
        partial(loops, losses, kept),
    )
    mine, other = set(ours[0].value.rows.tolist()), set(theirs[0].value.tolist())
    ratio = best(theirs).own / best(ours).own
    rows.append(
        Row(
            "plan one epoch of SeTa, 1 M rows",
            f"{best(ours).own * 1e3:.0f} CPU ms",
            f"loops over rows {best(theirs).own:.2f} CPU s; "
            f"{len(mine & other) / len(mine | other):.1%} of the rows are the same",
            f"{ratio:.0f} x less",
            "≥ 100",
            ratio >= 100,
        )
    )
    peak = run_fresh(_PEAK)
    rows.append(
        Row("  memory over the losses", f"{peak / 2**20:.0f} MB", "", f"{peak / 2**20:.0f} MB",
            "≤ 64 MB", peak <= 64 << 20)
    )  # fmt: skip
    n = 10_000_000 if quick else 100_000_000
    large = some_losses(1_000_000).repeat(n // 1_000_000) * np.float32(1.0000001)
    for name, chooser in (("SeTa", method), ("InfoBatch", InfoBatch(seed=7))):
        cost = best(interleaved(2, partial(chooser.plan, large, epoch=EPOCH))[0])
        seconds = cost.own * 100_000_000 / n
        rows.append(
            Row(f"{name}, {n / 1e6:.0f} M rows in memory", f"{cost.own:.2f} CPU s", "",
                f"{seconds:.1f} s per 100 M", "≤ 10", seconds <= 10)
        )  # fmt: skip


# --- from fragments, through Dask -----------------------------------------------------------------


def from_fragments(folder: Path, quick: bool, rows: list[Row]) -> None:
    files, per_file = (20 if quick else 100), 1_000_000
    data = folder / "data"
    data.mkdir()
    for number in range(files):
        losses = np.random.default_rng(number).lognormal(-1.5, 1.6, per_file).astype(np.float32)
        pq.write_table(pa.table({"loss": losses}), data / f"part-{number}.parquet")
    dataset = open_dataset(data)
    stage = SeTaSelect(**{k: v for k, v in SETTINGS.items() if k != "seed"}, column="loss")
    state = PlanState(RowSet(dataset.snapshot))

    def job(engine: Engine) -> int:
        with work_folder(folder / "target", str(time.time())) as work:
            budget = Budget(4 << 30, 2, None, 1 << 28)
            context = JobContext(
                dataset, engine, work, budget, 7, 256, "fail", QuietProgress(), epochs=(2, 3)
            )
            stage.prepare(context)
            return len(stage.select(context, state, EPOCH).rows)

    def plain() -> float:
        total = 0.0
        for path in sorted(data.iterdir()):
            with pq.ParquetFile(path, memory_map=True) as file:
                for batch in file.iter_batches(65_536, columns=["loss"], use_threads=False):
                    total += float(as_numpy(batch.column(0)).sum(dtype=np.float64))
        return total

    with Engine(workers=2) as engine:
        job(engine)
        ours, scans = interleaved(2, partial(job, engine), plain, children=True)
    cost, reference = best(ours), min(c.own for c in scans)
    ratio = cost.cpu / reference
    rows.append(
        Row(
            f"SeTa from {files} Parquet fragments of 1 M rows, Dask",
            f"{cost.cpu:.2f} CPU s (driver {cost.own:.2f}); wall {cost.wall:.1f} s, {load()}",
            f"one plain scan of the column {reference:.2f} CPU s",
            f"{ratio:.1f} x",
            "≤ 4",
            ratio <= 4,
        )
    )


# --- more rows than fit ---------------------------------------------------------------------------


def a_billion(folder: Path, quick: bool, rows: list[Row]) -> None:
    """Plan an epoch of a billion rows, with one worker and a budget of 2 GiB."""
    files, per_file = 100, 200_000 if quick else 10_000_000
    data = folder / "billion"
    data.mkdir()
    for number in range(files):
        losses = np.random.default_rng(number).lognormal(-1.5, 1.6, per_file).astype(np.float32)
        table = pa.table({"loss": losses})
        path = data / f"part-{number}.parquet"
        pq.write_table(table, path, compression="none", use_dictionary=False)
    program = Path(sys.executable).with_name("batchloom")
    options = ["--set", "column=loss", "--set", "training_epochs=10", "--batch-size", "1024"]
    options += ["--epochs", "2:3", "--form", "recipe", "--workers", "1", "--memory", "2GiB"]
    with PeakOfChildren() as peak:
        done = run_process([program, "plan", "seta", data, "--out", folder / "plan", *options])
    size = sum(p.stat().st_size for p in (folder / "plan").rglob("*") if p.is_file())
    rows.append(
        Row(
            f"SeTa, {files * per_file / 1e6:,.0f} M rows from {files} files, by the CLI",
            f"{done.cpu:.0f} CPU s, wall {done.wall:.0f} s, {size / 2**20:.0f} MiB",
            "budget 2 GiB",
            f"{peak.bytes / 2**20:.0f} MiB a process",
            "≤ 1 GiB",
            peak.bytes <= 1 << 30,
        )
    )


# --- how good the groups are ----------------------------------------------------------------------


def squares(losses: Any, cuts: Any) -> float:
    """Return the sum of squared distances to the means of the intervals of sorted losses."""
    return float(sum(((p - p.mean()) ** 2).sum() for p in np.split(losses, cuts) if len(p)))


def best_squares(losses: Any, k: int) -> float:
    """Return the same for the best intervals: dynamic programming over every loss."""
    away = losses - losses.mean()
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (np.ones(len(away)), away, away**2)]
    table = best_cuts(*sums, k)
    stops = [len(losses)]
    for c in range(k - 1, 0, -1):
        stops.append(int(table[c, stops[-1]]))
    return squares(losses, sorted(stops[1:]))


def groups(quick: bool, rows: list[Row]) -> None:
    n = 200_000 if quick else 1_000_000
    for kind, limit in (
        ("lognormal", 1e-4), ("zero-heavy", 1e-4), ("bimodal", 1e-4), ("narrow", 1e-4),
        ("narrow, one outlier", 1e-2),
    ):  # fmt: skip
        losses = some_losses(n, kind)
        for k in (5, 10):
            found = groups_1d(LossHistogram.of(losses), k)
            exact = np.sort(losses).astype(np.float64)
            mine = squares(exact, np.cumsum(found.rows)[:-1])
            gap = mine / best_squares(exact, k) - 1
            rows.append(
                Row(f"{k} groups of {n / 1e6:g} M {kind} losses", f"{len(found)} groups",
                    "best by dynamic programming", f"{gap:.1e} worse", f"≤ {limit:.0e}",
                    gap <= limit and len(found) == k)
            )  # fmt: skip
    for k, oracle in ((3, 243.143), (5, 80.870)):
        line = (np.arange(20.0) ** 2 / 10).astype(np.float32)
        found = groups_1d(LossHistogram.of(line), k)
        mine = squares(np.sort(line).astype(np.float64), np.cumsum(found.rows)[:-1])
        rows.append(
            Row(f"i²/10, {k} groups", f"{mine:.3f}", f"{oracle:.3f}", f"{mine - oracle:+.4f}",
                "± 0.001", abs(mine - oracle) < 1e-3)
        )  # fmt: skip


# --- signals --------------------------------------------------------------------------------------


def signals(folder: Path, quick: bool, rows: list[Row]) -> None:
    numbers = itertools.count()
    with Writers(4, 500 if quick else 2000) as writers:

        def ours() -> tuple[list[tuple[float, float]], list[int]]:
            place = folder / f"signals-{next(numbers)}"
            cpu = writers.append(place)
            return cpu, [p.stat().st_size for p in sorted((place / "loss").iterdir())]

        sizes = ours()[1]
        mine, reference = interleaved(
            3 if quick else 9,
            ours,
            lambda: writers.plain(folder / f"plain-{next(numbers)}", sizes),
            warm=1,
        )
    walls = [[c.wall for c in costs] for costs in (mine, reference)]
    ratio = median(walls[1]) / median(walls[0])
    mib = sum(sizes) / 2**20
    whole = min(sum(b for _, b in c.value[0]) for c in mine)
    rows.append(
        Row(
            f"append {writers.losses / 1e6:.1f} M losses, {writers.count} writers, durable, "
            f"{mib:.0f} MiB",
            f"{mib / median(walls[0]):.0f} MiB/s ({whole:.2f} CPU s)",
            f"plain fsynced writes {mib / median(walls[1]):.0f} MiB/s; {load()}",
            f"{ratio:.2f} x",
            "≥ 0.6",
            ratio >= 0.6,
        )
    )
    cpu = median([median([a for a, _ in c.value[0]]) for c in mine]) * 1e3
    rows.append(
        Row("  in the training thread, a step of 1,024", f"{cpu:.3f} CPU ms", "", f"{cpu:.3f} ms",
            "< 0.2 ms", cpu < 0.2)
    )  # fmt: skip


def run(folder: Path, quick: bool) -> list[Row]:
    rows: list[Row] = []
    run_steps(
        [
            ("a plan in memory", partial(in_memory, quick, rows)),
            ("from fragments", partial(from_fragments, folder, quick, rows)),
            ("a billion rows", partial(a_billion, folder, quick, rows)),
            ("groups", partial(groups, quick, rows)),
            ("signals", partial(signals, folder, quick, rows)),
        ]
    )
    return rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run))
