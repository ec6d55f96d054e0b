"""A small two-tower model, trained with random and with NGAME's micro-batches.

A text is the mean of its terms' vectors, a label a vector of its own, both of 64 dimensions and at
length 1; a score is their cosine. Micro-batches hold 512 rows, the loss is `triplet_loss` of the
ten hardest labels among those that the micro-batch drew, by Adam. Clusters grow from 4 to 128 rows
over the epochs; every second epoch `NGAMESampler` makes them anew, of what the steps wrote into its
memory bank. Random micro-batches come from the same code, as clusters of one row, and models of a
seed begin with the same weights. 5,000 rows are kept aside, and all labels ranked for each of them
that the others have.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from batchloom.clustering import NGAME
from batchloom.clustering.mining import Labels
from batchloom.samplers import NGAMESampler, triplet_loss
from debian import MultiLabel
from harness import Row, load, say, spread
from torch import nn
from torch.nn.functional import normalize

__all__ = ["training"]

WIDTH, BATCH, EPOCHS, TEST, RATE = 64, 512, 15, 5000, 5e-3
SCHEDULE = {2: 4, 4: 16, 6: 64, 8: 128}
SEEDS = 3

Bags = tuple[torch.Tensor, torch.Tensor]


class Split:
    """Rows to train on and rows to test on."""

    def __init__(self, data: MultiLabel, seed: int) -> None:
        n = len(data.texts)
        order = np.random.default_rng(seed).permutation(n)
        test, train = np.split(order, [min(TEST, n // 10)])
        known = np.flatnonzero(np.asarray(data.labels[train].sum(axis=0)).ravel())
        truth = data.labels[test][:, known].tocsr()
        some = np.flatnonzero(np.diff(truth.indptr))
        self.labels, self.truth = data.labels[train][:, known].tocsr(), truth[some]
        self.texts, self.test_texts = Texts(data.terms[train]), Texts(data.terms[test[some]])

    def __len__(self) -> int:
        return int(self.labels.shape[0])


class Texts:
    """The terms of texts, as an embedding bag takes them."""

    def __init__(self, terms: Any) -> None:
        matrix = terms.tocsr()
        self.rows, self.words = matrix.shape
        self._terms = Labels(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64))

    def __getitem__(self, rows: Any) -> Bags:
        some = self._terms.take(np.asarray(rows))
        return torch.from_numpy(some.values), torch.from_numpy(some.offsets[:-1])


class TwoTower(nn.Module):
    """Texts and labels in one space."""

    def __init__(self, words: int, labels: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, WIDTH, mode="mean")
        self.labels = nn.Embedding(labels, WIDTH)
        for weights in self.parameters():
            nn.init.normal_(weights, std=WIDTH**-0.5)

    def embed(self, texts: Bags) -> torch.Tensor:
        return normalize(self.words(*texts))

    def table(self, labels: torch.Tensor) -> torch.Tensor:
        return normalize(self.labels(labels))


@torch.no_grad()
def precision(model: TwoTower, split: Split) -> tuple[float, float]:
    """Return P@1 and P@5: which share of the labels ranked first are the row's."""
    z = normalize(model.labels.weight)
    right = []
    for rows in torch.arange(split.test_texts.rows).split(512):
        top = (model.embed(split.test_texts[rows]) @ z.T).topk(5, dim=1).indices.numpy()
        found = split.truth[np.repeat(rows.numpy(), 5), top.ravel()]
        right.append(np.asarray(found).reshape(-1, 5))
    hits = np.concatenate(right)
    return float(hits[:, 0].mean()), float(hits.mean())


@dataclass
class Trained:
    """What came of a training.

    Attributes
    ----------
    precision : list of (float, float)
        P@1 and P@5 after each epoch.
    steps : int
    cpu, clusters : float
        CPU seconds of the epochs, and what setting them took of that: clusters are made there.
    waited, wall : float
        Seconds, of the same.
    """

    precision: list[tuple[float, float]] = field(default_factory=list)
    steps: int = 0
    cpu: float = 0.0
    clusters: float = 0.0
    waited: float = 0.0
    wall: float = 0.0


def train(split: Split, method: NGAME, *, masked: bool = True, lag: int = 0) -> Trained:
    """Train a model; with a lag of 1 another process makes the clusters."""
    torch.manual_seed(method.seed)
    model, found = TwoTower(split.texts.words, split.labels.shape[1]), Trained()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    sampler = NGAMESampler(len(split), method, width=WIDTH, labels=split.labels, lag=lag)
    for epoch in range(EPOCHS):
        begun, wall = time.process_time(), time.perf_counter()
        sampler.set_epoch(epoch)
        found.clusters += time.process_time() - begun
        found.waited += time.perf_counter() - wall
        for rows in sampler:
            facts = sampler.facts(rows)
            x, z = model.embed(split.texts[rows]), model.table(facts.positive)
            mask = facts.mask if masked else torch.eye(len(rows), dtype=torch.bool)
            loss = triplet_loss(x @ z.T, mask).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.update(rows, x)
            found.steps += 1
        found.cpu += time.process_time() - begun
        found.wall += time.perf_counter() - wall
        found.precision.append(precision(model, split))
    return found


# --- what is compared -----------------------------------------------------------------------------


def methods(seed: int) -> dict[str, NGAME]:
    return {
        "random": NGAME(batch_size=BATCH, cluster_size=1, seed=seed),
        "NGAME": NGAME(batch_size=BATCH, schedule=SCHEDULE, refresh_every=2, seed=seed),
    }


def training(data: MultiLabel, quick: bool, rows: list[Row]) -> None:
    """Train with both kinds of micro-batches, with the mask and without, and once with a lag."""
    seeds = range(1 if quick else SEEDS)
    found: dict[tuple[str, bool], list[Trained]] = {}
    for seed in seeds:
        split = Split(data, seed)
        for name, method in methods(seed).items():
            for masked in (True, False):
                say(f"  training, seed {seed}, {name}{'' if masked else ', no mask'}")
                made = train(split, method, masked=masked)
                found.setdefault((name, masked), []).append(made)
    beside = train(Split(data, 0), methods(0)["NGAME"], lag=1)
    barred = data.real and not quick
    for name in ("random", "NGAME"):
        mask_row(name, found[name, True], found[name, False], barred, rows)
    batches_row(found["random", True], found["NGAME", True], barred, rows)
    cost_rows(found["random", True], found["NGAME", True], beside, rows)


def last(trained: list[Trained]) -> Any:
    """Return P@1 and P@5 after the last epoch; shape (seeds, 2)."""
    return np.array([t.precision[-1] for t in trained])


def text(values: Any) -> str:
    """Return "P@1 0.512 (0.507…0.519), P@5 0.262"."""
    one, five = values.T
    between = f" ({spread(one, digits=3)})" if len(one) > 1 else ""
    return f"P@1 {one.mean():.3f}{between}, P@5 {five.mean():.3f}"


def mask_row(
    name: str, masked: list[Trained], bare: list[Trained], barred: bool, rows: list[Row]
) -> None:
    gain = float((last(masked) - last(bare))[:, 0].mean())
    rows.append(
        Row(
            f"two towers, {name} batches, masked / unmasked, seeds: {len(masked)}",
            text(last(masked)),
            text(last(bare)),
            f"P@1 {gain:+.3f}",
            "≥ +0.08" if barred else "",
            gain >= 0.08 if barred else None,
        )
    )


def batches_row(chance: list[Trained], ours: list[Trained], barred: bool, rows: list[Row]) -> None:
    gains = last(ours) - last(chance)
    gain, fifth = gains.mean(axis=0)
    rows.append(
        Row(
            "two towers, masked, NGAME / random batches",
            f"ahead in {int((gains[:, 0] > 0).sum())} of {len(gains)} seeds",
            f"P@5 {fifth:+.3f}",
            f"P@1 {gain:+.3f}",
            "≥ 0" if barred else "",
            bool(gain >= 0) if barred else None,
        )
    )
    curves = [np.mean([[p for p, _ in t.precision] for t in who], axis=0) for who in (ours, chance)]
    goal = 0.98 * curves[1].max()
    epochs = [int(np.argmax(curve >= goal)) + 1 if curve.max() >= goal else 0 for curve in curves]
    rows.append(
        Row(
            f"  epochs to P@1 {goal:.3f}, 98 % of the best of random batches",
            f"{epochs[0] or 'never'}",
            f"{epochs[1]}",
            "",
        )
    )


def cost_rows(chance: list[Trained], ours: list[Trained], beside: Trained, rows: list[Row]) -> None:
    rates = [sum(t.steps for t in who) / sum(t.cpu for t in who) for who in (ours, chance)]
    share = sum(t.clusters for t in ours) / sum(t.cpu for t in ours)
    rows.append(
        Row(
            "  making the clusters, share of the training's CPU seconds",
            f"{rates[0]:.0f} steps/CPU s",
            f"random batches {rates[1]:.0f} steps/CPU s",
            f"{100 * share:.1f} %",
            "≤ 10 %",
            share <= 0.1,
        )
    )
    rows.append(
        Row(
            "  made by another process, of embeddings one epoch older; seed 0",
            text(last([beside])),
            f"here {text(last(ours[:1]))}",
            f"waited {beside.waited:.2f} of {beside.wall:.0f} s, {load()}",
        )
    )
