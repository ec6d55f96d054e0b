"""Hugging Face Accelerate: the loader is registered for checkpoints, and resumes at any step.

    python examples/accelerate_loop.py       (or: accelerate launch examples/accelerate_loop.py)

The loader needs no ``prepare``: it knows its rank from torch.distributed and its device from the
accelerator, and padding, dealing and resuming are the plan's.
"""

from __future__ import annotations

from pathlib import Path

import made_up
import torch
from accelerate import Accelerator
from batchloom.samplers import ManifestLoader, weighted_loss

STEPS_BEFORE_THE_CRASH = 53


def train(plan: Path, data: Path, checkpoint: Path, stop_after: int | None = None) -> torch.Tensor:
    """Train from the checkpoint on, where there is one; return the weights."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = ManifestLoader(
        plan,
        data,
        columns=["x", "y"],
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
    )
    accelerator.register_for_checkpointing(loader)
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))
    for number, batch in enumerate(loader, start=1):
        losses = (model(batch["x"])[:, 0] - batch["y"]) ** 2
        accelerator.backward(weighted_loss(losses, batch, accelerator.num_processes))
        optimizer.step()
        optimizer.zero_grad()
        if number == stop_after:
            accelerator.save_state(str(checkpoint))
            break
    accelerator.print(f"{number} steps, up to epoch {batch.epoch}, step {batch.step}")
    return accelerator.unwrap_model(model).weight.detach()


def main() -> None:
    """Train twice: at one go, and with a crash."""
    home = made_up.folder()
    plan, data = made_up.numbers(home)
    expected = train(plan, data, home / "at-one-go")
    train(plan, data, home / "interrupted", stop_after=STEPS_BEFORE_THE_CRASH)
    resumed = train(plan, data, home / "interrupted")
    print("the resumed run ends with the same weights:", torch.equal(resumed, expected))


if __name__ == "__main__":
    main()
