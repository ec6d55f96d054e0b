"""Training on a mixture of sources: small batches by CoLM beside random ones of several sizes.

Fourteen sources of very different sizes, twelve modes each, ten classes, a small MLP; accuracy is
the mean over the sources, so that small ones count as much as large ones. Features are exact
gradients of the last layer. `keep and random` keeps small sources whole and draws the rest at
random, source by source: what CoLM's choice within sources adds is its distance from that. CRAIG
chooses class by class, GradMatch and k-centre of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from batchloom.coresets import (
    CRAIG,
    CoLM,
    GradMatch,
    KCenter,
    KeepSmall,
    facility_location,
    last_layer_gradients,
)
from batchloom.coresets.batch_coresets import BatchCoreset
from batchloom.samplers import CoLMSelector
from harness import Row
from torch import nn

__all__ = ["gradient_errors", "training"]

SHARES = (
    .341, .189, .108, .093, .054, .053, .050, .037, .027, .027, .009, .007, .003, .002,
)  # fmt: skip
ROWS, WIDTH, MODES, CLASSES = 20_000, 64, 12, 10
NOISE, STEPS, LARGE, SMALL = 0.7, 200, 128, 64

Choice = Callable[[Any, Any, Any, int], tuple[Any, Any]]
"""(features of a large batch, its sources, its classes, step) → (rows, weights)."""


class Mixture:
    """The data of a seed."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = np.random.default_rng(seed)
        self.centers = draw.standard_normal((len(SHARES), MODES, WIDTH))
        self.classes = draw.integers(0, CLASSES, (len(SHARES), MODES))
        self.odds = 1 / np.arange(1, MODES + 1)
        self.odds /= self.odds.sum()
        shares = np.array(SHARES) / sum(SHARES)
        self.sources = draw.choice(len(SHARES), ROWS, p=shares)
        self.counts = np.bincount(self.sources, minlength=len(SHARES))
        self.x, self.y = self.rows_of(self.sources)
        test = np.repeat(np.arange(len(SHARES)), 200)
        self.test_sources, (self.test_x, self.test_y) = test, self.rows_of(test)

    def rows_of(self, sources: Any) -> tuple[torch.Tensor, torch.Tensor]:
        modes = self.draw.choice(MODES, len(sources), p=self.odds)
        noise = NOISE * self.draw.standard_normal((len(sources), WIDTH))
        x = self.centers[sources, modes] + noise
        return torch.tensor(x, dtype=torch.float32), torch.tensor(self.classes[sources, modes])


class Learner:
    """The model, and gradients of its last layer."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, CLASSES)
        parameters = [*self.body.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3)

    @torch.no_grad()
    def features(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        inputs = self.body(x)
        return last_layer_gradients(inputs, self.head(inputs), y)

    def step(self, x: torch.Tensor, y: torch.Tensor, weights: Any = None) -> None:
        losses = nn.functional.cross_entropy(self.head(self.body(x)), y, reduction="none")
        if weights is not None:
            losses = losses * torch.as_tensor(weights) * (len(x) / float(np.sum(weights)))
        self.optimizer.zero_grad()
        losses.mean().backward()
        self.optimizer.step()

    @torch.no_grad()
    def accuracy(self, data: Mixture) -> float:
        """Return the mean over sources, in percent."""
        right = (self.head(self.body(data.test_x)).argmax(1) == data.test_y).numpy()
        return 100 * float(right.reshape(len(SHARES), -1).mean())


# --- ways to choose -------------------------------------------------------------------------------


def by_selector(selector: CoLMSelector) -> Choice:
    def choose(features: Any, sources: Any, classes: Any, step: int) -> tuple[Any, Any]:
        found = selector.select(features, sources)
        return found.rows.numpy(), found.weights.numpy()

    return choose


def by_one_probe(selector: CoLMSelector) -> Choice:
    """One direction for the whole training, as the authors' code has it."""
    direction = np.random.default_rng(0).standard_normal(CLASSES * 129).astype(np.float32)
    choose = by_selector(selector)
    return lambda features, *rest: choose(features @ direction[:, None], *rest)


def by_method(method: BatchCoreset, counts: Any, *, by_class: bool = False) -> Choice:
    """Choose by a method as it is, without moments."""
    known = {s: int(n) for s, n in enumerate(counts)}

    def choose(features: Any, sources: Any, classes: Any, step: int) -> tuple[Any, Any]:
        pools = classes if by_class else sources
        found = method.select(features, pools, SMALL, source_counts=known, epoch=step)
        return found.rows.astype(np.int64), found.weights

    return choose


def accuracy(seed: int, size: int, choice: Callable[[Mixture], Choice] | None) -> float:
    """Train on batches of a size, or on small ones that are chosen of these."""
    data, learner, draw = Mixture(seed), Learner(seed), np.random.default_rng(1000 + seed)
    choose = None if choice is None else choice(data)
    for step in range(STEPS):
        rows, weights = draw.choice(ROWS, size, replace=False), None
        if choose is not None:
            features = learner.features(data.x[rows], data.y[rows])
            classes = data.y[rows].numpy()
            chosen, weights = choose(features, data.sources[rows], classes, step)
            rows = rows[chosen]
        learner.step(data.x[rows], data.y[rows], weights)
    return learner.accuracy(data)


def training(quick: bool, rows: list[Row]) -> None:
    torch.set_num_threads(1)
    seeds = range(3 if quick else 16)

    def selector(data: Mixture, **options: Any) -> CoLMSelector:
        counts = {s: int(n) for s, n in enumerate(data.counts) if n}
        return CoLMSelector(SMALL, source_counts=counts, **options)

    ways: dict[str, tuple[int, Callable[[Mixture], Choice] | None]] = {
        "random 64": (SMALL, None),
        "random 128": (LARGE, None),
        "random 256": (2 * LARGE, None),
        "keep and random 64 of 128": (LARGE, lambda d: by_method(KeepSmall(), d.counts)),
        "CoLM 64 of 128, one probe": (LARGE, lambda d: by_one_probe(selector(d, adam=False))),
        "CoLM 64 of 128": (LARGE, lambda d: by_selector(selector(d, largest=640))),
        "CoLM 64 of 128, no Adam": (
            LARGE, lambda d: by_selector(selector(d, adam=False, largest=640)),
        ),
        "CoLM 64 of 128, cluster weights": (
            LARGE,
            lambda d: by_selector(selector(d, largest=640, method=CoLM(weights="cluster"))),
        ),
        "CRAIG 64 of 128": (LARGE, lambda d: by_method(CRAIG(), d.counts, by_class=True)),
        "GradMatch 64 of 128": (LARGE, lambda d: by_method(GradMatch(), d.counts)),
        "k-centre 64 of 128": (LARGE, lambda d: by_method(KCenter(), d.counts)),
    }  # fmt: skip
    found = {name: np.array([accuracy(s, *way) for s in seeds]) for name, way in ways.items()}
    colm = found["CoLM 64 of 128"]
    bars = {"random 64": 5.0, "random 128": 0.0, "keep and random 64 of 128": 0.0}
    for name, values in found.items():
        ahead, won = float((colm - values).mean()), int((colm > values).sum())
        error = values.std(ddof=1) / len(values) ** 0.5
        least = bars.get(name)
        rows.append(
            Row(
                f"mixture, {name}",
                f"{values.mean():.1f} ± {error:.1f} % macro accuracy",
                "" if values is colm else f"CoLM ahead in {won} of {len(seeds)} seeds",
                f"CoLM {ahead:+.1f}",
                "" if least is None else f"≥ {least:+.0f}",
                None if least is None else ahead >= least,
            )
        )  # fmt: skip


def gradient_errors(quick: bool, rows: list[Row]) -> None:
    """Compare Σ w g / Σ w of a choice from the whole batch with the batch's mean gradient."""
    for steps, bar in ((0, 0.6), (30, 0.35)):
        errors: dict[str, list[float]] = {"random": [], "cluster": [], "uniform": []}
        for seed in range(3 if quick else 8):
            data, learner, draw = Mixture(seed), Learner(seed), np.random.default_rng(seed)
            for _ in range(steps):
                batch = draw.choice(ROWS, SMALL, replace=False)
                learner.step(data.x[batch], data.y[batch])
            batch = draw.choice(ROWS, LARGE, replace=False)
            features = learner.features(data.x[batch], data.y[batch])
            mean = features.mean(axis=0)

            def error(chosen: Any, weights: Any, mean: Any = mean, f: Any = features) -> float:
                away = weights @ f[chosen] / weights.sum() - mean
                return float(np.linalg.norm(away) / np.linalg.norm(mean))

            chosen = facility_location(features, SMALL)
            ones, picks = np.ones(SMALL), chosen.rows.astype(int)
            errors["random"].append(error(draw.choice(LARGE, SMALL, replace=False), ones))
            errors["cluster"].append(error(picks, chosen.weights))
            errors["uniform"].append(error(picks, ones))
        means = {name: float(np.mean(values)) for name, values in errors.items()}
        ratio = means["cluster"] / means["random"]
        rows.append(
            Row(
                f"gradient error of 64 of 128 after {steps} steps, cluster weights",
                f"{means['cluster']:.3f}",
                f"random {means['random']:.3f}, uniform weights {means['uniform']:.3f}",
                f"{ratio:.2f} of random",
                f"≤ {bar}",
                ratio <= bar,
            )
        )
