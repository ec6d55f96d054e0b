"""NGAME in training: batches of rows that are hard to tell apart, against random ones.

    python examples/ngame_training.py

Made-up texts of several labels each are matched to a table of label embeddings. Labels come in
topics and share their topic's words: what is hard is to tell the labels of one topic apart. Few
rows of a random batch are of one topic; rows that are near in embedding are. One more training is
interrupted in the middle of an epoch, while the clusters of the next one are made, and resumed.
"""

from __future__ import annotations

from pathlib import Path

import made_up
import numpy as np
import torch
from batchloom.clustering import NGAME
from batchloom.samplers import IndexedDataset, NGAMESampler, triplet_loss
from scipy.sparse import csr_array
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

TOPICS, LABELS_EACH, WIDTH, EPOCHS = 100, 8, 32, 10
LABELS = TOPICS * LABELS_EACH
WORDS = 2 * LABELS + 20 * TOPICS + 600  # two of a label, twenty of a topic, and any text's

RANDOM = NGAME(batch_size=64, cluster_size=1)
# Clusters of 4 rows from epoch 3 on, of 16 from epoch 6 on, made anew in every third epoch.
CLUSTERED = NGAME(batch_size=64, schedule={3: 4, 6: 16}, refresh_every=3)
STEPS_BEFORE_THE_CRASH = 425


def make_data(rows: int, seed: int) -> tuple[torch.Tensor, csr_array]:
    """Return texts of 12 words, and the one to three labels of each, of one topic."""
    draw, row = np.random.default_rng(seed), np.arange(rows)[:, None]
    topic, count = draw.integers(TOPICS, size=(rows, 1)), draw.integers(1, 4, size=(rows, 1))
    picks = LABELS_EACH * topic + draw.random((rows, LABELS_EACH)).argsort(axis=1)
    labels = picks[row, np.arange(3) % count]
    shape = rows, 12
    of_label = 2 * labels[row, draw.integers(3, size=shape)] + draw.integers(2, size=shape)
    of_topic = 2 * LABELS + 20 * topic + draw.integers(20, size=shape)
    of_any = 2 * LABELS + 20 * TOPICS + draw.integers(600, size=shape)
    part = draw.random(shape)
    words = np.where(part < 0.25, of_label, np.where(part < 0.65, of_topic, of_any))
    has = np.zeros((rows, LABELS), bool)
    has[row, labels] = True
    return torch.from_numpy(words), csr_array(has)


class TwoTowers(nn.Module):
    """Embeds texts and labels, at length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.labels = nn.EmbeddingBag(WORDS, WIDTH), nn.Embedding(LABELS, WIDTH)

    def texts(self, words: torch.Tensor) -> torch.Tensor:
        return normalize(self.words(words), dim=1)

    def table(self, labels: torch.Tensor) -> torch.Tensor:
        return normalize(self.labels(labels), dim=1)


def train(method: NGAME, checkpoint: Path, stop_after: int | None = None) -> TwoTowers:
    """Train from the checkpoint on, where there is one; write one where the training stops."""
    words, labels = make_data(5000, seed=0)
    torch.manual_seed(0)
    model = TwoTowers()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    sampler = NGAMESampler(len(words), method, width=WIDTH, labels=labels)
    parts = {"model": model, "optimizer": optimizer, "sampler": sampler}
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    loader = DataLoader(IndexedDataset(words), batch_sampler=sampler)
    number = 0
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)  # clusters anew, where the schedule says so
        for rows, texts in loader:
            facts = sampler.facts(rows)
            x = model.texts(texts)
            similarities = x @ model.table(facts.positive).T
            loss = triplet_loss(similarities, facts.mask).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.update(rows, x)  # what the next clusters are made of
            number += 1
            if number == stop_after:
                torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
                print(f"stopped at step {number}, in epoch {epoch}")
                return model
    return model


def precision_at_1(model: TwoTowers) -> float:
    """Return the share of new texts whose nearest label is one of theirs."""
    words, labels = make_data(2000, seed=1)
    with torch.no_grad():
        nearest = (model.texts(words) @ model.table(torch.arange(LABELS)).T).argmax(dim=1)
    return float(labels.toarray()[np.arange(len(words)), nearest.numpy()].mean())


def main() -> None:
    """Train with random batches, with NGAME's, and with NGAME's and a crash."""
    home = made_up.folder()
    print(f"random batches: P@1 {precision_at_1(train(RANDOM, home / 'random.pt')):.3f}")
    whole = train(CLUSTERED, home / "at-one-go.pt")
    print(f"NGAME's batches: P@1 {precision_at_1(whole):.3f}")
    train(CLUSTERED, home / "interrupted.pt", stop_after=STEPS_BEFORE_THE_CRASH)
    resumed = train(CLUSTERED, home / "interrupted.pt")
    same = all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))
    print("the resumed run ends with the same weights:", same)


if __name__ == "__main__":
    main()
