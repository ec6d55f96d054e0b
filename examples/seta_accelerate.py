"""SeTa with Hugging Face Accelerate: the sampler is registered for checkpoints, and resumes.

    python examples/seta_accelerate.py       (or: accelerate launch examples/seta_accelerate.py)

The sampler knows its rank from torch.distributed, so the DataLoader needs no ``prepare``. It is
resumed at any step, with the losses so far and what was selected in the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up
import torch
from accelerate import Accelerator
from batchloom.samplers import IndexedDataset, SeTaSampler
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6
STEPS_BEFORE_THE_CRASH = 53


def make_data(rows: int = 1200) -> TensorDataset:
    """Return points of two noisy classes."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 8, generator=draw)
    y = (x[:, 0] + 0.5 * torch.randn(rows, generator=draw) > 0).long()
    return TensorDataset(x, y)


def batches(sampler: SeTaSampler, data: TensorDataset) -> Iterator[Any]:
    """Yield what is left of the training, each epoch planned when it begins."""
    loader = DataLoader(IndexedDataset(data), batch_sampler=sampler)
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)  # nothing where a checkpoint was taken in this epoch
        yield from loader


def train(data: TensorDataset, checkpoint: Path, stop_after: int | None = None) -> torch.Tensor:
    """Train from the checkpoint on, where there is one; return the weights."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    sampler = SeTaSampler(len(data), batch_size=60, epochs=EPOCHS, seed=0)
    accelerator.register_for_checkpointing(sampler)
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    for number, (rows, (x, y)) in enumerate(batches(sampler, data), start=1):
        losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        weights = sampler.weights(rows)  # 0 for a row that only fills a rank's share up
        total = accelerator.reduce(weights.sum())
        accelerator.backward(accelerator.num_processes * (weights * losses).sum() / total)
        optimizer.step()
        optimizer.zero_grad()
        sampler.update(rows, losses)
        if number == stop_after:
            accelerator.save_state(str(checkpoint))
            break
    accelerator.print(f"{number} steps, up to epoch {sampler.epoch}")
    return accelerator.unwrap_model(model).weight.detach()


def main() -> None:
    """Train twice: at one go, and with a crash."""
    home, data = made_up.folder(), make_data()
    expected = train(data, home / "at-one-go")
    train(data, home / "interrupted", stop_after=STEPS_BEFORE_THE_CRASH)
    resumed = train(data, home / "interrupted")
    print("the resumed run ends with the same weights:", torch.equal(resumed, expected))


if __name__ == "__main__":
    main()
