"""Two methods in one job: SeTa chooses the rows, NGAME the micro-batches they are in.

    python examples/seta_ngame.py

Handwritten digits (scikit-learn's) are embedded beside the ten classes. The job file
`seta_ngame.toml` is run before each epoch: its first stage reads the losses that the epoch before
wrote as a signal, its second clusters the images that are left.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.dataplane import Manifest, SignalStore
from batchloom.jobs import run
from batchloom.samplers import ManifestLoader, false_negatives, triplet_loss
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import normalize

JOB = Path(__file__).with_suffix(".toml")
EPOCHS, TRAINED, WIDTH = 10, 1400, 16


class Embedding(nn.Module):
    """Images and classes, at length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.classes = nn.Embedding(10, WIDTH)

    def similarities(self, pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        images = normalize(self.images(pixels / 16), dim=1)
        return images @ normalize(self.classes(classes), dim=1).T


def write_digits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the images to train on; return those that are kept aside, and their classes."""
    images, classes = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(TRAINED), 3)):
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(images[part].ravel()), 64)
        table = pa.table({"pixels": pixels, "label": classes[part]})
        pq.write_table(table, folder / f"part-{number}.parquet")
    return torch.from_numpy(images[TRAINED:]), torch.from_numpy(classes[TRAINED:])


def train_epoch(model: Embedding, optimizer: torch.optim.Optimizer, plan: Manifest) -> None:
    """Train on an epoch's micro-batches, and write the loss of each row for the next plan."""
    loader = ManifestLoader(plan, "digits", columns=["pixels"])
    with SignalStore.for_writing("signals", plan) as signals:
        for batch in loader:
            similarities = model.similarities(batch["pixels"], batch.side["positive"])
            losses = triplet_loss(similarities, false_negatives(batch.side["mask"]))
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            signals.append(batch.rows, epoch=batch.epoch, step=batch.step, loss=losses.detach())


def main() -> None:
    """Plan an epoch, train on it, and again."""
    home = made_up.folder()
    shutil.copy(JOB, home)
    os.chdir(home)
    images, classes = write_digits(home / "digits")
    torch.manual_seed(0)
    model = Embedding()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    read = 0
    for epoch in range(EPOCHS):
        plan = run(JOB.name, epochs=(epoch, epoch + 1))
        train_epoch(model, optimizer, plan)
        rows = plan.epoch(epoch).record.distinct_rows
        read += rows
        ngame = plan.provenance["reports"]["ngame"]["epochs"][str(epoch)]
        print(f"epoch {epoch}: {rows} rows, {ngame['clusters_a_batch']} clusters a micro-batch, "
              f"cosine of the hardest negative {ngame['hardest_negative']:.2f}")  # fmt: skip
    with torch.no_grad():
        found = model.similarities(images, torch.arange(10)).argmax(dim=1)
    print(f"rows trained on, of all epochs' rows: {read / (EPOCHS * TRAINED):.0%}")
    print(f"images kept aside: {(found == classes).float().mean():.1%} right")


if __name__ == "__main__":
    main()
