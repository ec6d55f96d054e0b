"""What selecting by loss saves, and what it costs in accuracy: a small classifier, trained in full.

Fashion-MNIST where the Debian package `dataset-fashion-mnist` is installed, else the handwritten
digits of scikit-learn. Every method is held against random rows at the same number of passes: one
subset for the whole training (fixed), and one drawn anew in each epoch (fresh). Means of three
seeds, once with clean labels and once with a tenth of them drawn at random.

What a selection costs is told in two ways. *Selecting* is what happens once an epoch: taking in
the losses and choosing the rows (`set_epoch`), as it is counted of the authors' `prune()`, 31 to
39 % of such an epoch, whose loops (`selection.loops`) are timed beside it; the bar is of this. *All
calls* of the sampler are drawing batches and making them tensors, `weights` and `update` as well,
less what drawing as many batches by torch's own samplers takes: in a training like the others',
where a step of the model lies between two batches, and, stricter, in a loop of their own, where the
processor's caches hold all they need.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchloom.coresets import SeTa as SeTaMethod
from batchloom.samplers import (
    HardBatchSampler,
    ImportanceSampler,
    InfoBatchSampler,
    RandomShareSampler,
    SeTaSampler,
)
from harness import Row, load, run_benchmark, say
from selection import loops
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

SEEDS = (0, 1, 2)
EPOCHS = 10
NOISE = 0.1

SeTa = partial(SeTaSampler, epochs=EPOCHS)
METHODS: dict[str, Callable[..., Any]] = {
    "SeTa .1/5/.9": partial(SeTa, prune_ratio=0.1),
    "SeTa 0/5/.6": partial(SeTa, prune_ratio=0.0, window_scale=0.6),
    "SeTa .1/10/.5": partial(SeTa, prune_ratio=0.1, groups=10, window_scale=0.5),
    "SeTa .1/5/.9 unbiased": partial(SeTa, prune_ratio=0.1, weights="unbiased", anneal="full"),
    "SeTa 0/5/.6 monotone": partial(SeTa, prune_ratio=0.0, window_scale=0.6, schedule="monotone"),
    "InfoBatch .5": partial(InfoBatchSampler, epochs=EPOCHS),
    "InfoBatch .8": partial(InfoBatchSampler, epochs=EPOCHS, prune_ratio=0.8),
    "hard batches .5": HardBatchSampler,
    "hard rows .5": partial(HardBatchSampler, level="rows"),
    "hard rows .5, trimmed": partial(HardBatchSampler, level="rows", loss_cap_quantile=0.9),
    "importance .45": partial(ImportanceSampler, prune_ratio=0.45),
    "importance .45, root": partial(ImportanceSampler, prune_ratio=0.45, score="root"),
    "importance .45, unbiased": partial(ImportanceSampler, prune_ratio=0.45, weights="unbiased"),
}
CLEAN, NOISY = "clean labels", "a tenth of the labels at random"
# Of Fashion-MNIST: share of passes at most, then accuracy over full, over fixed and over fresh
# random at least, in points.
BARS: dict[tuple[str, str], tuple[float, float, float, float]] = {
    (CLEAN, "SeTa .1/5/.9"): (0.66, -0.8, 0.1, -0.25),
    (CLEAN, "SeTa .1/10/.5"): (0.5, -1.1, 0.2, -9),
    (CLEAN, "InfoBatch .5"): (0.75, -0.4, 0.2, -0.1),
    # Not worse than all rows, and better than a fresh share beyond the seeds' spread.
    (CLEAN, "importance .45"): (0.6, -0.2, 0.3, 0.3),
    (NOISY, "importance .45"): (0.6, -0.2, 0.3, 0.3),
}


@dataclass(frozen=True)
class Data:
    name: str
    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


@dataclass(frozen=True)
class Trained:
    """Accuracy in percent, share of all passes, CPU seconds in all and of the selection.

    Of the selection is what a shuffle by torch's own samplers would not have taken: in a loop of
    its own, and in a training. `set_epoch` is what its calls took.
    """

    accuracy: float
    passes: float
    cpu: float
    selecting: float
    selecting_in_training: float
    set_epoch: float
    pieces: dict[str, float]


def read_idx(path: Path) -> Any:
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">i4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def load_data(quick: bool) -> Data:
    found = sorted(Path("/usr/share").glob("**/*fashion*/train-images-idx3-ubyte.gz"))
    if found and not quick:
        folder = found[0].parent
        images = [read_idx(folder / f"{n}-images-idx3-ubyte.gz") for n in ("train", "t10k")]
        labels = [read_idx(folder / f"{n}-labels-idx1-ubyte.gz") for n in ("train", "t10k")]
        x, test_x = (torch.tensor(i.reshape(len(i), -1) / 255.0).float() for i in images)
        y, test_y = (torch.tensor(v.astype(np.int64)) for v in labels)
        return Data("Fashion-MNIST", x, y, test_x, test_y)
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.tensor(digits.data[order] / 16.0).float()
    y = torch.tensor(digits.target[order])
    return Data("digits", x[:1347], y[:1347], x[1347:], y[1347:])


def noisy(data: Data) -> Data:
    """Return the data with a tenth of the training labels drawn at random."""
    draw = np.random.default_rng(99)
    y = data.y.clone()
    at = draw.random(len(y)) < NOISE
    y[at] = torch.tensor(draw.integers(0, 10, int(at.sum())))
    return Data(data.name, data.x, y, data.test_x, data.test_y)


@cache
def shuffling(rows: int, size: int) -> float:
    """Return the CPU seconds a step of torch's own shuffled batches of indices."""
    batches = BatchSampler(RandomSampler(range(rows)), size, drop_last=False)
    start = time.process_time()
    for indices in batches:
        torch.tensor(indices)
    return (time.process_time() - start) / len(batches)


class Training:
    """The model and its optimiser."""

    def __init__(self, data: Data, seed: int) -> None:
        torch.manual_seed(seed)
        width = data.x.shape[1]
        self.data = data
        self.model = nn.Sequential(
            nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.criterion = nn.CrossEntropyLoss(reduction="none")

    def step(self, rows: torch.Tensor, weights: torch.Tensor, progress: float) -> torch.Tensor:
        """Train on some rows; return their losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.05 * (1 - progress)
        losses: torch.Tensor = self.criterion(self.model(self.data.x[rows]), self.data.y[rows])
        self.optimizer.zero_grad()
        (weights * losses).mean().backward()
        self.optimizer.step()
        return losses

    def accuracy(self) -> float:
        with torch.no_grad():
            right = self.model(self.data.test_x).argmax(1) == self.data.test_y
        return 100 * float(right.float().mean())


def batch_size(data: Data) -> int:
    return 128 if len(data.y) > 10_000 else 32


_IN_TRAINING: dict[str, float] = {}


def shuffling_in_training(data: Data) -> float:
    """Return the CPU seconds a step of torch's own shuffle, in a training of two epochs."""
    if data.name not in _IN_TRAINING:
        training, size, taken, steps = Training(data, 0), batch_size(data), 0.0, 0
        weights = torch.ones(size)
        for _ in range(2):
            batches = iter(BatchSampler(RandomSampler(range(len(data.y))), size, drop_last=False))
            for _ in range(-(-len(data.y) // size)):
                mark = time.process_time()
                rows = torch.tensor(next(batches))
                taken += time.process_time() - mark
                training.step(rows, weights[: len(rows)], 0.0)
                steps += 1
        _IN_TRAINING[data.name] = taken / steps
    return _IN_TRAINING[data.name]


def train(data: Data, make: Callable[..., Any], seed: int) -> Trained:
    size = batch_size(data)
    hot, beside = shuffling(len(data.y), size), shuffling_in_training(data)
    training = Training(data, seed)
    sampler = make(len(data.y), size, seed=seed)
    pieces = dict.fromkeys(("set_epoch", "batches", "weights", "update"), 0.0)
    rows_trained, taken, began = 0, 0, time.process_time()
    for epoch in range(EPOCHS):
        start = time.process_time()
        sampler.set_epoch(epoch)
        steps = sampler.steps_in_epoch()
        batches = iter(sampler)
        pieces["set_epoch"] += time.process_time() - start
        for step in range(steps):
            start = time.process_time()
            rows = torch.tensor(next(batches))
            drawn = time.process_time()
            weights = sampler.weights(rows)
            weighed = time.process_time()
            losses = training.step(rows, weights, (epoch + step / steps) / EPOCHS)
            trained = time.process_time()
            sampler.update(rows, losses)
            pieces["update"] += time.process_time() - trained
            pieces["batches"] += drawn - start
            pieces["weights"] += weighed - drawn
            rows_trained += len(rows)
        taken += steps
    cpu = time.process_time() - began
    spent = sum(pieces.values())
    a_step = {name: seconds / taken for name, seconds in pieces.items()}
    passes = rows_trained / len(data.y) / EPOCHS
    net = spent - taken * hot, spent - taken * beside
    return Trained(training.accuracy(), passes, cpu, *net, pieces["set_epoch"], a_step)


def all_seeds(data: Data, make: Callable[..., Any]) -> list[Trained]:
    return [train(data, make, seed) for seed in SEEDS]


def mean(runs: list[Trained], field: str) -> float:
    return float(np.mean([getattr(r, field) for r in runs]))


def spread(runs: list[Trained]) -> str:
    values = [r.accuracy for r in runs]
    return f"{np.mean(values):.2f} ({min(values):.2f}…{max(values):.2f})"


def a_step(runs: list[Trained]) -> str:
    """Return what the pieces of a selection take, in microseconds of CPU a step."""
    names = runs[0].pieces
    return "µs a step: " + ", ".join(
        f"{name} {1e6 * np.mean([r.pieces[name] for r in runs]):.1f}" for name in names
    )


def shuffles(data: Data) -> str:
    alone, beside = shuffling(len(data.y), batch_size(data)), shuffling_in_training(data)
    return f"shuffle {1e6 * alone:.1f}, in training {1e6 * beside:.1f}"


def costs(data: Data, runs: list[Trained]) -> list[Row]:
    """Return what SeTa's selection takes of a training."""
    cpu = mean(runs, "cpu")
    selecting = float(np.mean([r.set_epoch / r.cpu for r in runs]))
    losses = np.random.default_rng(0).lognormal(-1.5, 1.6, len(data.y)).astype(np.float32)
    kept = np.random.default_rng(0).random(len(losses)) < 0.9
    loops(losses[:1000], kept[:1000])  # what it imports is no part of it
    began = time.process_time()
    loops(losses, kept)
    theirs = (EPOCHS - 2) * (time.process_time() - began)  # not in the first, nor in the last
    bar = ("", None) if data.name == "digits" else ("< 1 %", selecting < 0.01)
    return [
        Row("  selecting, of its training", a_step(runs), f"loops over rows {theirs / cpu:.0%}",
            f"{selecting:.2%}", *bar),
        Row("  all calls, beyond a shuffle in training", "", shuffles(data),
            f"{mean(runs, 'selecting_in_training') / cpu:.2%}"),
        Row("  … beyond a shuffle in a loop of its own", "", "",
            f"{mean(runs, 'selecting') / cpu:.2%}"),
    ]  # fmt: skip


def compare(data: Data, labels: str, rows: list[Row]) -> None:
    everything = partial(RandomShareSampler, prune_ratio=0.0)
    full = all_seeds(data, everything)
    rows.append(
        Row(f"{data.name}, {labels}: all rows", spread(full), "", f"{mean(full, 'cpu'):.1f} CPU s")
    )
    for name, make in METHODS.items():
        say(f"{labels}: {name}")
        runs = all_seeds(data, make)
        passes = mean(runs, "passes")
        share = partial(RandomShareSampler, prune_ratio=min(0.99, max(0.0, 1 - passes)))
        fixed = all_seeds(data, partial(share, fresh=False))
        fresh = all_seeds(data, share)
        mine = mean(runs, "accuracy")
        over = [mine - mean(other, "accuracy") for other in (full, fixed, fresh)]
        ok, bar, bars = None, "", BARS.get((labels, name))
        if bars is not None and data.name != "digits":
            limits = zip(over, bars[1:], strict=True)
            ok = passes <= bars[0] and all(found >= least for found, least in limits)
            bar = f"≤ {bars[0]:.0%}; " + ", ".join(f"{b:+.2f}" for b in bars[1:])
        overhead = mean(runs, "selecting") / mean(runs, "cpu")
        if name == "SeTa .1/5/.9":
            rows += costs(data, runs)
        rows.append(
            Row(
                f"  {name}: {passes:.1%} of the passes",
                f"{spread(runs)}; selecting {overhead:.1%} of {mean(runs, 'cpu'):.1f} CPU s",
                f"fixed {spread(fixed)}, fresh {spread(fresh)}",
                "full {:+.2f}, fixed {:+.2f}, fresh {:+.2f}".format(*over),
                bar,
                ok,
            )
        )


def run(folder: Path, quick: bool) -> list[Row]:
    torch.set_num_threads(1)
    rows: list[Row] = []
    data = load_data(quick)
    warm = np.random.default_rng(0).random(len(data.y), np.float32)
    SeTaMethod(epochs=EPOCHS).plan(warm, epoch=1)  # the compiled loops are loaded once, untimed
    compare(data, CLEAN, rows)
    compare(noisy(data), NOISY, rows)
    say(load())
    return rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run))
