"""A small decoder of bytes, what trains it, and gradients of rows by its last value projection."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchloom.coresets import per_sample_gradients, spsa_probes
from batchloom.coresets.gradients import probe_direction
from batchloom.dataplane.random import Permutation
from batchloom.samplers import in_micro_batches
from language_texts import CONTEXT, Texts
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import nn

__all__ = [
    "PROBES",
    "Decoder",
    "Learner",
    "alike",
    "exact",
    "first_model",
    "losses_of",
    "probed",
    "projected",
    "rank_correlations",
]

WIDTH, LAYERS, HEADS = 128, 2, 4
MICRO = 16  # rows at a time of features
RATE, WARM = 2e-3, 5
PROBES = 64
VALUE = "0.attention.value.weight"  # of the last layers


# --- the model ------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, _ = x.shape
        query, key = self.query_key(x).view(n, length, 2, HEADS, -1).permute(2, 0, 3, 1, 4)
        value = self.value(x).view(n, length, HEADS, -1).transpose(1, 2)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(seen.transpose(1, 2).reshape(n, length, WIDTH))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.feed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before(x))
        return x + self.feed(self.between(x))


class Decoder(nn.Module):
    """Bytes to logits; `last` is what follows the hidden states that features start from."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(257, WIDTH)  # 256 begins a row
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        nn.init.normal_(self.embed.weight, std=0.02)
        self.first = nn.Sequential(*[Layer() for _ in range(LAYERS - 1)])
        self.last = nn.Sequential(Layer(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def hidden(self, rows: torch.Tensor) -> torch.Tensor:
        begun = torch.cat([torch.full_like(rows[:, :1], 256), rows[:, :-1]], dim=1)
        return self.first(self.embed(begun) + self.places)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return each row's loss, shape (n,), in nats a byte."""
        return row_losses(self.last(self.hidden(rows)), rows)


def row_losses(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.transpose(1, 2), rows, reduction="none").mean(1)


class Learner:
    """A model and what trains it: AdamW, warmed up, then down to 0 on a line."""

    def __init__(self, steps: int, start: Path | None = None) -> None:
        torch.manual_seed(0)
        self.model = Decoder()
        if start is not None:
            self.model.load_state_dict(torch.load(start))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1, (step + 1) / WARM) * (1 - step / steps)
        )

    def step(self, rows: torch.Tensor, weights: Any = None, micro: int | None = None) -> None:
        """Go along the gradient of the weighted mean, summed over micro-batches."""
        mass = torch.ones(len(rows)) if weights is None else torch.as_tensor(weights)
        shares = mass / mass.sum()
        self.optimizer.zero_grad()
        for at in torch.arange(len(rows)).split(micro or len(rows)):
            (shares[at] * self.model(rows[at])).sum().backward()
        self.optimizer.step()
        self.schedule.step()


def first_model(texts: Texts, size: int, steps: int) -> Decoder:
    """Train on Python's own docstrings, in random batches."""
    rows = torch.from_numpy(texts.general).long()
    learner = Learner(steps)
    for step in range(steps):
        drawn = Permutation(len(rows), seed=0, epoch=step)[:size].astype(np.int64)
        learner.step(rows[torch.from_numpy(drawn)])
    return learner.model


@torch.no_grad()
def losses_of(model: Decoder, texts: Texts) -> Any:
    """Return the mean loss of each source's held-out rows, float64, shape (c,)."""
    rows, sources = torch.from_numpy(texts.test).long(), texts.test_sources
    found = torch.cat([model(part) for part in rows.split(64)]).double().numpy()
    return np.bincount(sources, found) / np.bincount(sources)


# --- features -------------------------------------------------------------------------------------


def exact(model: Decoder, rows: torch.Tensor) -> Any:
    """Return gradients by the last value projection, float32, shape (n, 16384)."""
    return np.concatenate([_exact(model, part) for part in rows.split(MICRO)])


def _exact(model: Decoder, rows: torch.Tensor) -> Any:
    with torch.no_grad():
        hidden = model.hidden(rows)
    return per_sample_gradients(model.last, row_losses, hidden, rows, parameters=[VALUE])


@cache
def directions() -> Any:
    like = torch.empty(WIDTH, WIDTH)
    found = [probe_direction(like, seed=0, step=0, number=n).flatten() for n in range(PROBES)]
    return torch.stack(found, dim=1).numpy()


def projected(model: Decoder, rows: torch.Tensor) -> Any:
    """Return gradients along the directions of SPSA, float32, shape (n, 64)."""
    parts = [_exact(model, part) @ directions() for part in rows.split(MICRO)]
    return np.concatenate(parts) / PROBES**0.5


def probed(model: Decoder, rows: torch.Tensor, probes: int) -> Any:
    """Return the estimates of SPSA, float32, shape (n, probes); the same directions in each step.

    Directions stay, as the moments of Adam would mean nothing along others.
    """
    with torch.no_grad():
        hidden = torch.cat([model.hidden(part) for part in rows.split(MICRO)])

    def losses(at: torch.Tensor) -> torch.Tensor:
        return row_losses(model.last(hidden[at]), rows[at])

    passes = in_micro_batches(losses, len(rows), size=MICRO)
    return spsa_probes(passes, model.last.get_parameter(VALUE), probes=probes, seed=0)


# --- what features are like -----------------------------------------------------------------------


def alike(features: Any) -> list[float]:
    """Return the mean cosine of pairs, that of nearest neighbours, and how lengths vary."""
    lengths = np.linalg.norm(features, axis=1)
    cosines = (features / lengths[:, None]) @ (features / lengths[:, None]).T
    pairs = cosines[~np.eye(len(cosines), dtype=bool)]
    np.fill_diagonal(cosines, -1)
    return [pairs.mean(), cosines.max(axis=1).mean(), lengths.std() / lengths.mean()]


def rank_correlations(features: Any) -> list[float]:
    far = pdist(features)
    along = features @ directions()
    views = (along, along[:, :1])
    return [spearmanr(far, pdist(view)).statistic for view in views]
