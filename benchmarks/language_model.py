"""CoLM on a small language model: docstrings of fourteen packages, a package a source.

A byte decoder is trained on the docstrings of Python's own library, once; from there on the mixture
of `language_texts`, with batches that are chosen in several ways, for the same number of steps at
the same rate: the best of four for 64 random rows, by held-out loss, one seed. The paper's claim is
that CoLM, at 64 rows of 128, does what 128 or 256 random rows do, in less memory.

- `keep and random 64 of 128`: small sources whole, the rest at random, source by source. What
  CoLM's choice within sources adds is its distance from that.
- `CoLM, exact`: features are gradients by the last value projection, row by row, by backpropagation
  through the last layer alone, then as the paper has it: Adam's moments, 2,560 dimensions, l1.
- `CoLM, exact, cosine`: the same gradients by their angles, without moments. It is here because it
  stood out among ten settings that were tried on one seed.
- `CoLM, 64 probes`: these gradients along 64 directions. That is what SPSA estimates by 128 passes
  through the last layer. The passes are left out of the training, which they would make take some
  twenty times as long; what they cost, and whether they choose the same, is measured beside it.
- `CoLM, one probe`: one direction for the whole training, by SPSA, as the authors' code has it.

**What came out** (three seeds; two cores that others used too). The claim is not reproduced. With
sources counting the same CoLM is at 2.072 to 2.091 nats a byte, 64, 128 and 256 random rows at
2.092, 2.063 and 2.032, and keeping small sources with a random rest at 2.067: no way of choosing
within sources is better than that. 64 random rows spread over 0.035 among seeds, so that most
of these distances are within it; 128 random rows themselves were better in two of three. By angles
the mean of rows is better than with a random rest in each seed, and small sources are worse.
A step of CoLM takes about the CPU of one of 128 rows, and 0.54 to 0.65 of its memory; so do two
micro-batches of 64, up to the noise: the same step twice differed by 20 % of CPU, 8 % of memory.
Rows' gradients are hardly alike (mean cosine 0.02 and less, 0.3 to a nearest neighbour).
This is a small model, early in its training, and says nothing of accuracy on tasks.

Losses are of held-out files, in nats a byte. A step's CPU seconds and its memory, beyond what was
held before, are those of a process of its own, on one thread. `random 128, in two halves` sums the
gradients of two micro-batches of 64: the same step as `random 128`. Ways that choose of 128 rows
see the same large batches as `random 128`; `random 64` and `random 256` see others.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from batchloom.coresets import CoLM, facility_location, small_sources, source_budgets
from batchloom.dataplane.cores import usable_cores
from batchloom.dataplane.random import Permutation, Stream, choose
from batchloom.samplers import CoLMSelector
from harness import Row, peak_rss, run_benchmark, run_fresh, run_steps
from language_decoder import (
    PROBES,
    Decoder,
    Learner,
    alike,
    exact,
    first_model,
    losses_of,
    probed,
    projected,
    rank_correlations,
)
from language_texts import SOURCES, Texts, collect

SMALL, LARGE = 64, 128
LARGEST = 2560
TEXTS, START = "texts.npz", "start.pt"

Choice = Callable[..., tuple[Any, Any]]
"""(model, rows of a large batch, their sources, their ids) → (positions, weights or None)."""


@dataclass(frozen=True)
class Sizes:
    """Steps before and on the mixture, held-out rows of a source at most, large batches to look at,
    and the ways whose costs are measured: all where empty.
    """

    sources: tuple[str, ...]
    before: int
    steps: int
    seeds: int
    test: int
    pools: int
    costs: tuple[str, ...] = ()


# --- ways to choose -------------------------------------------------------------------------------


def by_colm(features: Callable[..., Any], counts: Any, **options: Any) -> Choice:
    """Choose by features, which rows of small sources do without."""
    selector = CoLMSelector(SMALL, source_counts=dict(enumerate(counts.tolist())), **options)
    large = ~small_sources(counts)

    def chosen(model: Decoder, rows: torch.Tensor, sources: Any, ids: Any) -> tuple[Any, Any]:
        wanted = np.flatnonzero(large[sources])
        found = features(model, rows[wanted])
        values = np.zeros((len(rows), found.shape[1]), np.float32)
        values[wanted] = found
        small = selector.select(values, sources, ids=ids)
        return small.rows.numpy(), small.weights.numpy()

    return chosen


def keep_and_random(counts: Any, seed: int) -> Choice:
    small = small_sources(counts)

    def chosen(model: Decoder, rows: torch.Tensor, sources: Any, ids: Any) -> tuple[Any, Any]:
        budgets = source_budgets(np.bincount(sources, minlength=len(counts)), small, SMALL).rows
        found = []
        for source, budget in enumerate(budgets.tolist()):
            mine = np.flatnonzero(sources == source)
            kept = choose(budget, ids[mine], seed=seed, stream=Stream.RANDOM_SHARE)
            found.append(mine[kept])
        return np.concatenate(found), None

    return chosen


@dataclass(frozen=True)
class Way:
    """Rows that are drawn; (counts, seed) → how to choose of them; rows of a micro-batch."""

    drawn: int
    choice: Callable[[Any, int], Choice] | None = None
    micro: int | None = None


def colm(features: Callable[..., Any], **options: Any) -> Way:
    return Way(LARGE, lambda counts, seed: by_colm(features, counts, **options))


BASE, TWICE, KEEP = "random 64", "random 128", "keep and random 64 of 128"
EXACT, PROJECTED, SPSA = "CoLM, exact", "CoLM, 64 probes", "CoLM, 64 probes by SPSA"
HALVES = "random 128, in two halves"
OTHERS = (BASE, TWICE, KEEP)
WAYS = {
    BASE: Way(SMALL),
    TWICE: Way(LARGE),
    "random 256": Way(2 * LARGE),
    KEEP: Way(LARGE, keep_and_random),
    EXACT: colm(exact, largest=LARGEST),
    "CoLM, exact, cosine": colm(exact, adam=False, method=CoLM(metric="cosine")),
    PROJECTED: colm(projected),
    "CoLM, one probe": colm(partial(probed, probes=1)),
    HALVES: Way(LARGE, micro=SMALL),
    SPSA: colm(partial(probed, probes=PROBES)),
}
TRAINED = [name for name in WAYS if name not in (HALVES, SPSA)]  # those train as others do
FULL = Sizes(SOURCES, before=400, steps=80, seeds=3, test=256, pools=4)
QUICK = Sizes(SOURCES[1::2], 40, 5, seeds=1, test=48, pools=1, costs=(BASE, TWICE, HALVES, EXACT))


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """CPU seconds a step, those of the choice among them; bytes beyond those held before."""

    cpu: float
    choosing: float
    memory: int


def drawn(texts: Texts, size: int, seed: int, step: int) -> tuple[torch.Tensor, Any, Any]:
    """Return a step's rows, their sources and ids; none comes twice."""
    order = Permutation(len(texts.rows), seed=seed)
    ids = order[step * size : (step + 1) * size].astype(np.int64)
    return torch.from_numpy(texts.rows[ids]).long(), texts.sources[ids], ids


def train(learner: Learner, texts: Texts, name: str, seed: int, steps: int, skip: int = 0) -> Spent:
    """Train for so many steps; measure those after `skip`."""
    way = WAYS[name]
    choice = None if way.choice is None else way.choice(texts.counts, seed)
    held, began, choosing = psutil.Process().memory_info().rss, time.process_time(), 0.0
    for step in range(steps):
        if step == skip:
            began, choosing = time.process_time(), 0.0
        rows, sources, ids = drawn(texts, way.drawn, seed, step)
        weights = None
        if choice is not None:
            mark = time.process_time()
            chosen, weights = choice(learner.model, rows, sources, ids)
            rows = rows[chosen]
            choosing += time.process_time() - mark
        learner.step(rows, weights, way.micro)
    cpu, each = time.process_time() - began, steps - skip
    return Spent(cpu / each, choosing / each, peak_rss() - held)


def before(folder: Path, sizes: Sizes) -> None:
    torch.set_num_threads(1)
    model = first_model(Texts.load(folder / TEXTS), SMALL, sizes.before)
    torch.save(model.state_dict(), folder / START)


def trained(folder: Path, steps: int, name: str, seed: int) -> Any:
    """Train in this process; keep the model, return its losses."""
    torch.set_num_threads(1)
    texts, learner = Texts.load(folder / TEXTS), Learner(steps, folder / START)
    train(learner, texts, name, seed, steps)
    torch.save(learner.model.state_dict(), folder / f"{name} {seed}.pt")
    return losses_of(learner.model, texts)


def spent(folder: Path, name: str, steps: int) -> list[float]:
    """Measure in this process, after what is compiled was loaded."""
    torch.set_num_threads(1)
    texts, learner = Texts.load(folder / TEXTS), Learner(1 + steps, folder / START)
    CoLM().select(np.eye(4), [0, 0, 1, 1], 2, source_counts={0: 2, 1: 2})
    found = train(learner, texts, name, 0, 1 + steps, skip=1)
    return [found.cpu, found.choosing, found.memory]


# --- the table ------------------------------------------------------------------------------------


def mixture(folder: Path, sizes: Sizes, rows: list[Row]) -> None:
    texts = collect(sizes.sources, sizes.test)
    texts.save(folder / TEXTS)
    small, shares = small_sources(texts.counts), texts.counts / texts.counts.sum()
    rows.append(
        Row(
            f"{len(texts.rows):,} rows of {len(texts.names)} sources",
            f"{int(small.sum())} small sources, {shares[small].sum():.1%} of the rows",
            f"not installed: {', '.join(texts.missing) or 'none'}",
            f"{min(texts.counts):,} to {max(texts.counts):,} rows a source",
        )
    )


def training(folder: Path, sizes: Sizes, rows: list[Row]) -> None:
    texts, seeds = Texts.load(folder / TEXTS), range(sizes.seeds)
    tasks = [(name, seed) for seed in seeds for name in TRAINED]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, usable_cores()), context) as pool:
        jobs = {task: pool.submit(trained, folder, sizes.steps, *task) for task in tasks}
        found = {n: np.array([jobs[n, s].result() for s in seeds]) for n in TRAINED}
    first = losses_of(Learner(1, folder / START).model, texts)
    small, count = small_sources(texts.counts), len(texts.names)
    others = "random 64, random 128, keep and random"
    for view, shares in (
        ("sources", np.full(count, 1 / count)),
        ("small sources", small / small.sum()),
        ("rows", texts.counts / texts.counts.sum()),
    ):
        what = f"held-out loss, mean of {view}; {sizes.steps} steps, {sizes.seeds} seeds"
        beside = f"of {others}; seeds below"
        rows.append(Row(what, f"{first @ shares:.3f} before", beside, "of random 128's gain"))
        means = {name: values @ shares for name, values in found.items()}
        rows += [compared(name, means) for name in TRAINED]
    rows.append(Row(f"held-out loss by source: {EXACT}", "", others, "of these"))
    for at in np.argsort(-texts.counts):
        mine, *theirs = (float(found[n][:, at].mean()) for n in (EXACT, *OTHERS))
        rows.append(
            Row(
                f"  {texts.names[at]}, {texts.counts[at]:,} rows",
                f"{mine:.3f}",
                ", ".join(f"{other:.3f}" for other in theirs),
                ", ".join(f"{mine / other:.3f}" for other in theirs),
            )
        )


def compared(name: str, means: dict[str, Any]) -> Row:
    """Hold a way's losses, one a seed, against those of others."""
    mine, base, twice = (means[n] for n in (name, BASE, TWICE))
    ratios = ", ".join(f"{(mine / means[other]).mean():.3f}" for other in OTHERS)
    below = ", ".join(str(int((mine < means[other]).sum())) for other in OTHERS)
    gained = (base - mine).mean() / (base - twice).mean()
    return Row(
        f"  {name}",
        f"{mine.mean():.3f} ({mine.min():.3f}…{mine.max():.3f})",
        f"{ratios}; {below} of {len(mine)}",
        f"{gained:.0%}",
    )


_COST = """
import json, sys
from pathlib import Path
from language_model import spent
print(json.dumps(spent(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
"""


def costs(folder: Path, sizes: Sizes, rows: list[Row]) -> None:
    names = [n for n in WAYS if n in sizes.costs or not sizes.costs]
    found = {n: Spent(*run_fresh(_COST, folder, n, 1 if n == SPSA else 4)) for n in names}
    rows.append(Row("a step: CPU, memory", "", "of random 64", "of random 128"))
    for name, cost in found.items():
        over = [
            f"{cost.cpu / found[other].cpu:.2f} x CPU, "
            f"{cost.memory / found[other].memory:.2f} x memory"
            for other in (BASE, TWICE)
        ]
        least = name in (EXACT, PROJECTED)
        choosing = f", {cost.choosing / cost.cpu:.0%} of it choosing" if cost.choosing else ""
        rows.append(
            Row(
                f"  {name}",
                f"{cost.cpu:.2f} CPU s{choosing}; {cost.memory / 2**20:.0f} MiB",
                *over,
                "memory below" if least else "",
                cost.memory < found[TWICE].memory if least else None,
            )
        )


# --- what a large batch is like -------------------------------------------------------------------


def large_batches(folder: Path, sizes: Sizes, rows: list[Row]) -> None:
    torch.set_num_threads(1)
    texts = Texts.load(folder / TEXTS)
    for when, path in (("before", START), ("after random 64", f"{BASE} 0.pt"))[: sizes.seeds]:
        model = Learner(1, folder / path).model
        found = [exact(model, drawn(texts, LARGE, 99, at)[0]) for at in range(sizes.pools)]
        likeness = np.array([alike(f) for f in found]).mean(axis=0)
        errors = np.array([gradient_errors(f) for f in found]).mean(axis=0)
        ranks = np.array([rank_correlations(f) for f in found]).mean(axis=0)
        rows += [
            Row(
                f"redundancy of {LARGE} rows' gradients, {when}",
                f"cosine of pairs {likeness[0]:.3f}",
                f"lengths vary by {likeness[2]:.2f}",
                f"of nearest neighbours {likeness[1]:.3f}",
            ),
            Row(
                f"gradient error of {SMALL} of {LARGE}, {when}",
                f"uniform weights {errors[1]:.2f}, cluster weights {errors[2]:.2f}",
                f"random {errors[0]:.2f}",
                f"{errors[1] / errors[0]:.2f}, {errors[2] / errors[0]:.2f} of random",
            ),
            Row(
                f"rank correlation of distances with exact ones, {when}",
                f"{PROBES} probes {ranks[0]:.2f}",
                f"one probe {ranks[1]:.2f}",
                "",
            ),
            estimates(model, texts, when),
        ]


def gradient_errors(features: Any) -> list[float]:
    """Hold the mean of 64 against that of all: random rows, facility location, with weights."""
    mean, draw = features.mean(axis=0), np.random.default_rng(0)
    chosen = facility_location(features, SMALL)
    picks, ones = chosen.rows.astype(int), np.ones(SMALL)

    def error(rows: Any, weights: Any) -> float:
        away = weights @ features[rows] / weights.sum() - mean
        return float(np.linalg.norm(away) / np.linalg.norm(mean))

    drawn = [draw.choice(len(features), SMALL, replace=False) for _ in range(16)]
    by_chance = float(np.mean([error(rows, ones) for rows in drawn]))
    return [by_chance, error(picks, ones), error(picks, chosen.weights)]


def remembering(features: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def found(model: Decoder, rows: torch.Tensor) -> Any:
        seen.append(features(model, rows))
        return seen[-1]

    return found


def estimates(model: Decoder, texts: Texts, when: str) -> Row:
    """Hold SPSA against what it estimates: the numbers, and the second of two choices."""
    found = []
    for features in (projected, partial(probed, probes=PROBES)):
        seen: list[Any] = []
        choose_by = by_colm(remembering(features, seen), texts.counts)
        chosen = [choose_by(model, *drawn(texts, LARGE, 99, at))[0] for at in range(2)]
        found.append((seen[1], set(chosen[1].tolist())))
    (known, these), (estimated, those) = found
    error = float(np.linalg.norm(estimated - known) / np.linalg.norm(known))
    return Row(
        f"{PROBES} probes by SPSA, {when}",
        f"error {error:.1e}",
        "gradients along the same directions",
        f"{len(these & those)} of {SMALL} rows chosen alike",
        "≤ 1e-2",
        error <= 1e-2,
    )


def run(folder: Path, quick: bool) -> list[Row]:
    sizes = QUICK if quick else FULL
    rows: list[Row] = []
    run_steps(
        [
            ("texts", partial(mixture, folder, sizes, rows)),
            ("the first model", partial(before, folder, sizes)),
            ("training", partial(training, folder, sizes, rows)),
            ("costs", partial(costs, folder, sizes, rows)),
            ("large batches", partial(large_batches, folder, sizes, rows)),
        ]
    )
    return rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run))
