"""CoLM on a mixture of two sources, as a job: half of each batch, chosen by gradients.

    python examples/colm_mixture.py

Handwritten digits (scikit-learn's) come from two sources: many images of most digits, and few
of two of them. Epoch 0 is trained on whole and writes each row's gradient as a signal; the job file
`colm_mixture.toml` chooses by it which half of each batch is trained on from then on. Whole
batches and random halves of them are trained on beside it.
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
from batchloom.jobs import plan, run
from batchloom.samplers import ManifestLoader
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import one_hot, softmax

JOB = Path(__file__).with_suffix(".toml")
SOURCES = {"common": "common/", "rare": "rare/"}
RARE, OF_RARE, KEPT_ASIDE = (8, 9), 30, 500


def write_sources() -> tuple[torch.Tensor, torch.Tensor]:
    """Write both sources; return the images that are kept aside, and which digits they are."""
    images, digits = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train, test = np.arange(KEPT_ASIDE, len(images)), slice(KEPT_ASIDE)
    rare = np.isin(digits[train], RARE)
    for name, rows in (("common", train[~rare]), ("rare", train[rare][:OF_RARE])):
        Path(name).mkdir()
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(images[rows].ravel()), 64)
        pq.write_table(pa.table({"pixels": pixels, "label": digits[rows]}), f"{name}/0.parquet")
    return torch.from_numpy(images[test]), torch.from_numpy(digits[test])


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, what: Manifest, signals: SignalStore | None
) -> None:
    """Train on a plan; write the gradient of each row's loss by the logits, where it is wanted."""
    for batch in ManifestLoader(what, SOURCES, columns=["pixels", "label"]):
        logits = model(batch["pixels"])
        loss = nn.functional.cross_entropy(logits, batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if signals is not None:
            gradient = softmax(logits.detach(), dim=1) - one_hot(batch["label"], 10)
            signals.append(batch.rows, epoch=batch.epoch, step=batch.step, gradient=gradient)


def trained(
    chosen: Manifest | None, whole: Manifest, signals: SignalStore | None = None
) -> nn.Module:
    """Return a model trained on epoch 0 whole and on what was chosen of the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, whole, signals)
    if chosen is not None:
        train(model, optimizer, chosen, None)
    return model


def main() -> None:
    """Train on whole batches, on CoLM's halves and on random ones."""
    home = made_up.folder()
    shutil.copy(JOB, home)
    os.chdir(home)
    images, digits = write_sources()
    whole = plan("shuffle", SOURCES, out="whole", batch_size=64, seed=7, workers=0)
    with SignalStore.for_writing("signals", whole) as signals:
        trained(None, whole, signals)
    small = run(JOB.name)
    options = {"batch_size": 64, "epochs": (1, 7), "seed": 7, "workers": 0}
    plans = {
        "whole batches": plan("shuffle", SOURCES, out="all", **options),
        "CoLM's halves": small,
        "random halves": plan("random-rows", SOURCES, out="random", k=32, **options),
    }
    rare = torch.isin(digits, torch.tensor(RARE))
    for name, chosen in plans.items():
        model = trained(chosen, whole)
        with torch.no_grad():
            right = model(images).argmax(dim=1) == digits
        rows = chosen.epoch(1).record.distinct_rows
        print(f"{name}: {rows} rows an epoch, {right[rare].float().mean():.1%} of rare digits "
              f"right, {right[~rare].float().mean():.1%} of the others")  # fmt: skip


if __name__ == "__main__":
    main()
