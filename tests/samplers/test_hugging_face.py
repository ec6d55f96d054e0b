"""CoLM in transformers' Trainer: what plain torch computes, resumed anywhere, on any ranks."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.coresets import CoLM
from batchloom.dataplane.errors import (
    MissingColumnError,
    MissingExtraError,
    ParameterError,
    ResumeMismatchError,
    SelectionError,
)
from batchloom.samplers import CoLMSelector, hugging_face
from batchloom.samplers.hugging_face import CoLMTrainer, causal_row_losses
from batchloom.samplers.probes import Probes
from batchloom.tests.samplers.two_ranks import two_ranks
from datasets import Dataset
from torch import nn

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")

VOCABULARY, TOKENS = 40, 10
SHARES = {"wiki": 0.55, "code": 0.3, "law": 0.1, "poems": 0.05}
K = 12
MODEL_INPUTS = ("input_ids", "labels", "attention_mask")


def made_rows(n: int = 80) -> list[dict[str, Any]]:
    """Rows of random words and lengths, each of a source and with an id."""
    draw = np.random.default_rng(0)
    rows = []
    for number, source in enumerate(draw.choice(list(SHARES), n, p=list(SHARES.values()))):
        ids = torch.from_numpy(draw.integers(0, VOCABULARY, TOKENS))
        kept = torch.arange(TOKENS) < int(draw.integers(3, TOKENS + 1))
        labels = torch.where(kept, ids, -100)
        row = {"input_ids": ids, "labels": labels, "attention_mask": kept.long()}
        rows.append({**row, "source": str(source), "number": 1000 - number})
    return rows


ROWS = made_rows()
COUNTS = Counter(row["source"] for row in ROWS)


def llama(dropout: float = 0.0, layers: int = 3) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            attention_dropout=dropout,
        )
    )


def arguments(home: Path, **options: Any) -> Any:
    given = {
        "per_device_train_batch_size": 24,
        "per_device_eval_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
        **options,
    }
    return transformers.TrainingArguments(str(home), **given)


class Recording(CoLMSelector):
    """A selector that remembers what it chose."""

    def __init__(self, **options: Any) -> None:
        super().__init__(K, source_counts=COUNTS, **options)
        self.choices: list[Any] = []

    def select(self, features: Any, sources: Any, *, ids: Any = None) -> Any:
        small = super().select(features, sources, ids=ids)
        chosen = [int(ids[row]) for row in small.rows]
        self.choices.append((chosen, small.weights.tolist(), small.total))
        return small


def made(
    home: Path,
    model: Any,
    *,
    selector: Any = None,
    rows: Any = None,
    kind: Any = CoLMTrainer,
    **options: Any,
) -> tuple[Any, Recording]:
    settings = {
        name: options.pop(name)
        for name in ("features", "row_losses", "micro_batch_size", "eval_dataset", "callbacks")
        if name in options
    }
    settings = {"features": Probes(probes=4), "micro_batch_size": 7, **settings}
    chooser = selector or Recording()
    trainer = kind(
        model,
        arguments(home, **options),
        train_dataset=ROWS if rows is None else rows,
        selector=chooser,
        row_id="number",
        **settings,
    )
    return trainer, chooser


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def by_hand(model: Any, steps: list[list[Any]], rate: float) -> list[torch.Tensor]:
    """Train a model on chosen rows, one row at a time; a step is a list of choices."""
    rows = {row["number"]: row for row in ROWS}
    for choices in steps:
        model.zero_grad()
        for numbers, weights, total in choices:
            for number, weight in zip(numbers, weights, strict=True):
                words, labels = rows[number]["input_ids"], rows[number]["labels"]
                mask = rows[number]["attention_mask"][None]
                logits = model(input_ids=words[None], attention_mask=mask).logits[0]
                told = [
                    -torch.log_softmax(logits[at], -1)[labels[at + 1]]
                    for at in range(TOKENS - 1)
                    if labels[at + 1] != -100
                ]
                (weight / total * sum(told) / len(told) / len(choices)).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
    return values(model)


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "batches"), [("uniform", 1), ("cluster", 1), ("cluster", 3)])
def test_steps_are_those_of_plain_torch(tmp_path: Path, weights: Any, batches: int) -> None:
    selector = Recording(method=CoLM(weights=weights))
    trainer, _ = made(
        tmp_path, llama(), selector=selector, gradient_accumulation_steps=batches,
        per_device_train_batch_size=20,
    )  # fmt: skip
    trainer.train()
    found = selector.choices
    assert len(found) == min(2 * batches, 4)  # an epoch has 4, and its last step what is left
    assert {total for _, _, total in found} == {K if weights == "uniform" else 20}
    steps = [found[:batches], found[batches:]]
    for mine, theirs in zip(values(trainer.model), by_hand(llama(), steps, 0.1), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_logged_is_the_small_batch(tmp_path: Path) -> None:
    trainer, selector = made(tmp_path, llama(), max_steps=1)
    rows = {row["number"]: row for row in ROWS}
    trainer.train()
    told = trainer.state.log_history[0]
    chosen = [rows[number] for number in selector.choices[0][0]]
    inputs = {name: torch.stack([row[name] for row in chosen]) for name in MODEL_INPUTS}
    assert told["loss"] == pytest.approx(
        float(causal_row_losses(llama(), inputs).mean().detach()), abs=1e-4
    )
    assert (told["colm/rows"], told["colm/selected"], told["colm/left_out"]) == (24, K, 0)
    small = [row for row in chosen if row["source"] in ("law", "poems")]
    assert told["colm/kept_whole"] == len(small) > 0


def test_no_forward_pass_is_larger_than_a_micro_batch_or_the_small_batch(tmp_path: Path) -> None:
    seen: list[tuple[bool, int]] = []
    model = llama()
    model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append((torch.is_grad_enabled(), len(inputs["input_ids"]))),
        with_kwargs=True,
    )
    layers: Counter[int] = Counter()
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: layers.update([number]))
    trainer, _ = made(tmp_path, model, max_steps=3)
    trainer.train()
    assert [n for grad, n in seen if grad] == [K] * 3
    assert {n for grad, n in seen if not grad} == {7, 24 % 7}
    # 4 probes, twice, of 4 micro-batches; the first time 3 passes try whether layers can be left
    # out. Of the layers before the last there is one pass a micro-batch, and 2 of those 3.
    tried, steps, parts = 3, 3, 4
    assert layers[2] == tried + steps * (2 * 4 * parts + 1)
    assert layers[0] == layers[1] == 2 + steps * (parts + 1)


def test_batches_that_are_not_larger_are_trained_on_whole(tmp_path: Path) -> None:
    rows = ROWS[: 24 + K]
    trainer, selector = made(tmp_path, llama(), rows=rows)
    trainer.train()
    assert len(selector.choices) == selector.step == 1
    assert [told["colm/rows"] for told in trainer.state.log_history[:2]] == [24, K]
    first = set(selector.choices[0][0])
    assert len(first) == K


def test_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # some Trainers leave it at "bf16"
    trainer, selector = made(tmp_path, llama(), bf16=True, max_steps=3)
    trainer.train()
    assert len(selector.choices) == 3
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert trainer._features._exact


# --- features -------------------------------------------------------------------------------------


def test_features_of_the_callers_own(tmp_path: Path) -> None:
    """They see micro-batches, in training, without gradients; random numbers do not go on."""
    calls = []

    def features(model: Any, inputs: Any) -> Any:
        calls.append((model.training, torch.is_grad_enabled(), set(inputs)))
        torch.rand(5)
        return torch.nn.functional.one_hot(inputs["input_ids"], VOCABULARY).float().mean(dim=1)

    def losses(model: Any, inputs: Any) -> torch.Tensor:
        drawn.append(float(torch.rand(())))
        return causal_row_losses(model, inputs)

    drawn: list[float] = []
    trainer, selector = made(tmp_path, llama(), features=features, row_losses=losses)
    trainer.train()
    assert calls == [(True, False, set(MODEL_INPUTS))] * 8
    assert len(selector._moments.mean) == VOCABULARY
    again, _ = made(tmp_path, llama(), features=lambda m, i: features(m, i).numpy(),
                    row_losses=losses)  # fmt: skip
    again.train()
    assert drawn[:2] == drawn[2:]
    ends = zip(values(trainer.model), values(again.model), strict=True)
    assert all(torch.equal(a, b) for a, b in ends)


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=16
    )
    return transformers.GPT2LMHeadModel(config)  # of dropout 0.1


# --- what is left to the Trainer ------------------------------------------------------------------


def test_evaluation_is_the_trainers(tmp_path: Path) -> None:
    """Also of rows whose source is new, or none; and of columns that are not removed."""
    unknown = [{**row, "source": "news"} for row in ROWS[:20]]
    bare = [{k: v for k, v in row.items() if k not in ("source", "number")} for row in ROWS[:20]]
    model = llama()
    plain = transformers.Trainer(model, arguments(tmp_path), eval_dataset=unknown)
    expected = plain.evaluate()["eval_loss"]
    trainer, selector = made(tmp_path, model)
    for rows in (unknown, bare):
        assert trainer.evaluate(rows)["eval_loss"] == expected
    numbered = [{**row, "source": 3} for row in ROWS[:20]]
    kept, _ = made(tmp_path, model, remove_unused_columns=False)
    assert kept.evaluate(numbered)["eval_loss"] == expected
    assert selector.step == 0


class Watching:
    """Of a Trainer, which words its batches have."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"]]
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]


def test_the_order_of_the_rows_is_the_trainers(tmp_path: Path) -> None:
    plain = type("Plain", (Watching, transformers.Trainer), {})
    ours = type("Ours", (Watching, CoLMTrainer), {})
    seen = []
    for kind, options in (
        (plain, {}),
        (ours, {"selector": Recording(), "row_id": "number", "features": Probes(probes=2)}),
    ):
        trainer = kind(gpt2(), arguments(tmp_path, max_steps=6), train_dataset=ROWS, **options)
        trainer.train()
        seen.append(trainer.seen)
    assert [len(batch) for batch in seen[0]] == [24, 24, 24, 8, 24, 24]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_where_the_rows_come_from_changes_nothing(tmp_path: Path) -> None:
    """A list; a table, by a worker; a loader of one's own, whose batches have the column."""
    table = Dataset.from_list(
        [{**row, **{name: row[name].tolist() for name in MODEL_INPUTS}} for row in ROWS]
    )

    class Own(CoLMTrainer):
        def get_train_dataloader(self) -> Any:
            def batches() -> Iterator[Any]:
                for batch in loader:
                    rows = [ROWS[1000 - n] for n in batch.pop("batchloom_row_ids").tolist()]
                    batch.pop("batchloom_sources")
                    numbers = torch.tensor([row["number"] for row in rows])
                    yield {**batch, "source": [row["source"] for row in rows], "number": numbers}

            loader = super().get_train_dataloader()
            return list(batches())

    runs = [
        made(tmp_path, llama()),
        made(tmp_path, llama(), rows=table, dataloader_num_workers=1),
        made(tmp_path, llama(), kind=Own),
    ]
    for trainer, _ in runs:
        trainer.train()
        assert "source" not in trainer._signature_columns
    (first, chosen), *others = runs
    for other, choices in others:
        assert choices.choices == chosen.choices
        ends = zip(values(first.model), values(other.model), strict=True)
        assert all(torch.equal(a, b) for a, b in ends)


class Stop(transformers.TrainerCallback):  # type: ignore[name-defined,misc]
    """Ends a training a step after a checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_resumed_within_an_epoch(tmp_path: Path, optimizer: str) -> None:
    options = {
        "max_steps": 7, "save_steps": 3, "save_strategy": "steps", "optim": optimizer,
        "learning_rate": 0.01, "lr_scheduler_type": "linear", "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 16,
    }  # fmt: skip
    whole, chosen = made(tmp_path / "whole", gpt2(), **options)  # with dropout
    whole.train()
    made(tmp_path / "parts", gpt2(), callbacks=[Stop()], **options)[0].train()
    resumed, rest = made(tmp_path / "parts", gpt2(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert len(rest.choices) == 7  # of steps of 2, 2, 1 and 2 batches: an epoch has 5
    assert rest.choices == chosen.choices[-len(rest.choices) :]
    assert rest.step == chosen.step
    for a, b in zip(values(whole.model), values(resumed.model), strict=True):
        assert torch.equal(a, b)
    logs = [
        {t["step"]: (t["loss"], t["colm/kept_whole"]) for t in r.state.log_history if "loss" in t}
        for r in (whole, resumed)
    ]
    assert logs[0] == logs[1]


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    options = {"save_steps": 1, "save_strategy": "steps", "max_steps": 1}
    made(tmp_path, llama(), **options)[0].train()
    path = tmp_path / "checkpoint-1" / "colm.json"
    assert json.loads(path.read_text())["selector"]["step"] == 1
    other, _ = made(tmp_path, llama(), features=Probes(probes=4, seed=3), **options)
    with pytest.raises(
        ResumeMismatchError, match=r"The Trainer's state has features = .*'seed': 0"
    ):
        other.train(resume_from_checkpoint=str(path.parent))
    another, _ = made(tmp_path, llama(), selector=Recording(largest=2), **options)
    with pytest.raises(ResumeMismatchError, match="largest = None; expected 2"):
        another.train(resume_from_checkpoint=True)
    path.unlink()
    with pytest.raises(ResumeMismatchError, match=r"checkpoint-1 has no colm\.json"):
        made(tmp_path, llama(), **options)[0].train(resume_from_checkpoint=True)
    (tmp_path / "model").mkdir()
    other.save_model(str(tmp_path / "model"))  # no checkpoint
    assert not (tmp_path / "model" / "colm.json").exists()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["source", "number"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    bare = [{k: v for k, v in row.items() if k != column} for row in ROWS]
    setting = "source" if column == "source" else "row_id"
    message = f"no column '{column}', which {setting}=… names; it has .*input_ids"
    with pytest.raises(MissingColumnError, match=message):
        made(tmp_path, llama(), rows=bare)[0].train()


def test_other_bad_input(tmp_path: Path) -> None:
    strange = [{**row, "source": "news"} for row in ROWS]
    with pytest.raises(SelectionError, match="Source 'news' has no count"):
        made(tmp_path, llama(), rows=strange)[0].train()
    reduced, _ = made(tmp_path, llama(), row_losses=lambda m, i: causal_row_losses(m, i).mean())
    with pytest.raises(SelectionError, match=r"shape \(7,\), got \(\); do not reduce"):
        reduced.train()
    bare = [{k: v for k, v in row.items() if k != "labels"} for row in ROWS]
    with pytest.raises(MissingColumnError, match="no 'labels'"):
        made(tmp_path, llama(), rows=bare)[0].train()

    def packed(rows: list[Any]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.stack([row["input_ids"] for row in rows])[:5]}

    trainer, _ = made(tmp_path, llama())
    trainer.data_collator = packed
    with pytest.raises(SelectionError, match=r"'input_ids' has shape \(5, 10\), and 24 rows"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"label_smoothing_factor": 0.1}, "'label_smoothing_factor' has no effect"),
        ({"compute_loss_func": lambda *_: 0}, {}, "'compute_loss_func' gives one loss a batch"),
        ({"micro_batch_size": 0}, {}, "'micro_batch_size'"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, settings: Any, options: Any, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        CoLMTrainer(llama(), arguments(tmp_path, **options), selector=Recording(), **settings)


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "transformers", None)
    hugging_face._trainer.cache_clear()
    yield
    hugging_face._trainer.cache_clear()


@pytest.mark.usefixtures("without_transformers")
def test_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"CoLMTrainer needs .* 'batchloom\[transformers\]"):
        _ = hugging_face.CoLMTrainer
    with pytest.raises(AttributeError, match="no attribute 'CoLM'"):
        _ = hugging_face.CoLM


# --- ranks ----------------------------------------------------------------------------------------

_RANK = """
import os, sys, torch, torch.distributed as dist
os.environ["LOCAL_RANK"] = os.environ["RANK"]
from batchloom.tests.samplers.test_hugging_face import of_ranks, values
trainer, selector = of_ranks(sys.argv[1], save_steps=2, save_strategy="steps")
trainer.train()
losses = [told["loss"] for told in trainer.state.log_history if "loss" in told]
again, rest = of_ranks(sys.argv[1])
again.train(resume_from_checkpoint=sys.argv[1] + "/checkpoint-2")
found = {"values": values(trainer.model), "choices": selector.choices, "losses": losses,
         "resumed": values(again.model), "rest": rest.choices}
torch.save(found, f"{sys.argv[1]}/{dist.get_rank()}")
dist.barrier()
dist.destroy_process_group()
"""


def of_ranks(home: str, **options: Any) -> tuple[Any, Recording]:
    options |= {"per_device_train_batch_size": 12, "ddp_backend": "gloo", "max_steps": 4}
    rows = ROWS[:72]  # so that no rank is given a row twice
    selector = Recording(method=CoLM(weights="cluster"))
    return made(Path(home), llama(), selector=selector, rows=rows, **options)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_ranks_train_on_one_small_batch(tmp_path: Path) -> None:
    two_ranks([sys.executable, "-c", _RANK, str(tmp_path)])
    a, b = (torch.load(tmp_path / str(rank), weights_only=False) for rank in range(2))
    steps = []
    for left, right in zip(a["choices"], b["choices"], strict=True):
        assert left[2] == right[2] == sum(left[1]) + sum(right[1]) == 24
        assert len({*left[0], *right[0]}) == K
        steps.append([(left[0] + right[0], left[1] + right[1], left[2])])
    assert len(steps) == 4
    by_one = by_hand(llama(), steps, 0.1)
    for one, left, right, resumed in zip(
        by_one, a["values"], b["values"], a["resumed"], strict=True
    ):
        torch.testing.assert_close(one, left, rtol=1e-5, atol=1e-6)
        assert torch.equal(left, right)
        assert torch.equal(left, resumed)
    assert a["rest"] == a["choices"][2:]
    assert b["rest"] == b["choices"][2:]
    rows = {row["number"]: row for row in ROWS}
    numbers, weights, total = steps[0][0]
    inputs = {name: torch.stack([rows[n][name] for n in numbers]) for name in MODEL_INPUTS}
    first = (torch.tensor(weights) * causal_row_losses(llama(), inputs).detach()).sum() / total
    assert a["losses"][0] == pytest.approx(float(first), abs=2e-4)
