"""CoLM in the Trainer of transformers: half of each batch is trained on, and a crash costs nothing.

    python examples/colm_trainer.py

Each training batch of 32 rows is the large one; 16 of them are chosen to go forward and backward
with. Rows of the two small sources are kept whole. A small Llama is made from its configuration:
nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up
import torch
from batchloom.samplers import CoLMSelector, CoLMTrainer, Probes, causal_row_losses
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments

WORDS, LENGTH = 32, 16
# Rows of each source, and by how much each word of it goes on from the one before.
SOURCES = {"web": (900, 1), "code": (500, 5), "maths": (60, 11), "poems": (30, 3)}
STEPS, STEPS_BEFORE_THE_CRASH = 90, 60


def make_data() -> list[dict[str, Any]]:
    """Return rows of words and the source of each, as a dataset would give them."""
    draw, rows = torch.Generator().manual_seed(0), []
    for source, (count, step) in SOURCES.items():
        for start in torch.randint(WORDS, (count, 1), generator=draw):
            words = (start + step * torch.arange(LENGTH)) % WORDS
            rows.append({"input_ids": words, "labels": words, "source": source})
    return rows


class Crash(TrainerCallback):
    """Stops a training some steps after its checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == STEPS_BEFORE_THE_CRASH + 5


def trainer(data: list[dict[str, Any]], home: Path, *callbacks: TrainerCallback) -> Any:
    """Return a Trainer with a new model, and a new selector."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )
    arguments = TrainingArguments(
        str(home),
        per_device_train_batch_size=32,
        max_steps=STEPS,
        learning_rate=1e-2,
        save_steps=STEPS_BEFORE_THE_CRASH,
        logging_steps=30,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    counts = {source: count for source, (count, _) in SOURCES.items()}
    return CoLMTrainer(
        model,
        arguments,
        train_dataset=data,
        callbacks=list(callbacks),
        selector=CoLMSelector(16, source_counts=counts),
        source="source",  # the column
        micro_batch_size=16,  # rows of a forward pass that only probes
        features=Probes(probes=8),  # each row's loss along 8 directions of the last values' weights
    )


def say_losses(model: Any, data: list[dict[str, Any]]) -> None:
    """Print the loss of each source."""
    for source in SOURCES:
        words = torch.stack([row["input_ids"] for row in data if row["source"] == source])
        with torch.no_grad():
            losses = causal_row_losses(model, {"input_ids": words, "labels": words})
        print(f"{source:>6}: {len(words):3} rows, loss {losses.mean():.3f}")


def main() -> None:
    """Train twice: at one go, and with a crash."""
    home, data = made_up.folder(), make_data()
    whole = trainer(data, home / "at-one-go")
    say_losses(whole.model.eval(), data)
    whole.train()
    say_losses(whole.model.eval(), data)

    trainer(data, home / "interrupted", Crash()).train()
    resumed = trainer(data, home / "interrupted")
    resumed.train(resume_from_checkpoint=True)  # the selector's state is in the checkpoint, too
    pairs = zip(resumed.model.parameters(), whole.model.parameters(), strict=True)
    print("the resumed run ends with the same weights:", all(torch.equal(a, b) for a, b in pairs))


if __name__ == "__main__":
    main()
