"""A plain training loop that is interrupted, resumes, and ends as if nothing had happened.

python examples/plain_torch.py
"""

from __future__ import annotations

from pathlib import Path

import made_up
import torch
from batchloom.samplers import ManifestLoader, weighted_loss

STEPS_BEFORE_THE_CRASH = 53


def train(plan: Path, data: Path, checkpoint: Path, stop_after: int | None = None) -> torch.Tensor:
    """Train from the checkpoint on, where there is one; return the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = ManifestLoader(plan, data, columns=["x", "y"])
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    for number, batch in enumerate(loader, start=1):  # all planned epochs, one after the other
        losses = (model(batch["x"])[:, 0] - batch["y"]) ** 2
        weighted_loss(losses, batch).backward()  # exact over ranks and micro-batches
        optimizer.step()
        optimizer.zero_grad()
        if number % 10 == 0 or number == stop_after:
            states = {"model": model, "optimizer": optimizer, "loader": loader}
            torch.save({name: s.state_dict() for name, s in states.items()}, checkpoint)
        if number == stop_after:
            break
    print(f"{number} steps, up to epoch {batch.epoch}, step {batch.step}")
    loader.close()
    return model.weight.detach()


def main() -> None:
    """Train twice: at one go, and with a crash."""
    home = made_up.folder()
    plan, data = made_up.numbers(home)
    expected = train(plan, data, home / "at-one-go.pt")
    train(plan, data, home / "interrupted.pt", stop_after=STEPS_BEFORE_THE_CRASH)
    resumed = train(plan, data, home / "interrupted.pt")
    print("the resumed run ends with the same weights:", torch.equal(resumed, expected))


if __name__ == "__main__":
    main()
