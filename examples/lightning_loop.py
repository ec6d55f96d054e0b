"""Lightning: the loader's state goes into its checkpoints, and `ckpt_path` resumes within an epoch.

    python examples/lightning_loop.py

A Lightning epoch is one iteration of the loader, so the module hands out a loader of that epoch,
and ``reload_dataloaders_every_n_epochs=1`` asks for it each time.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning
import made_up
import torch
from batchloom.samplers import Batch, ManifestLoader, weighted_loss
from lightning.pytorch.callbacks import Callback

EPOCHS = 2
STEPS_BEFORE_THE_CRASH = 53


class Model(lightning.LightningModule):
    """A linear model, and where its batches come from."""

    def __init__(self, plan: Path, data: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plan, self.data = plan, data
        self.linear = torch.nn.Linear(8, 1)

    def train_dataloader(self) -> ManifestLoader:
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        epochs = [self.current_epoch]
        return ManifestLoader(self.plan, self.data, columns=["x", "y"], epochs=epochs, **ranks)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        losses = (self.linear(batch["x"])[:, 0] - batch["y"]) ** 2
        return weighted_loss(losses, batch, self.trainer.world_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Crash(Callback):
    """Saves a checkpoint after a step, and stops."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == STEPS_BEFORE_THE_CRASH:
            trainer.save_checkpoint(self.path)
            raise ConnectionError("the machine is gone")


def train(model: Model, *callbacks: Callback, resume: Path | None = None) -> torch.Tensor:
    """Train to the end or to the crash; return the weights."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        reload_dataloaders_every_n_epochs=1,
        callbacks=list(callbacks),
        default_root_dir=model.plan.parent,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(model, ckpt_path=resume, weights_only=True if resume else None)
    except ConnectionError as error:
        print(f"stopped at step {trainer.global_step}: {error}")
    else:
        print(f"trained to step {trainer.global_step}")
    return model.linear.weight.detach()


def main() -> None:
    """Train twice: at one go, and with a crash."""
    logging.getLogger("lightning.pytorch").setLevel("ERROR")
    warnings.filterwarnings("ignore", module="lightning")  # that the loader is none of torch's
    home = made_up.folder()
    plan, data = made_up.numbers(home, epochs=EPOCHS)
    expected = train(Model(plan, data))
    train(Model(plan, data), Crash(home / "crash.ckpt"))
    resumed = train(Model(plan, data), resume=home / "crash.ckpt")
    print("the resumed run ends with the same weights:", torch.equal(resumed, expected))


if __name__ == "__main__":
    main()
