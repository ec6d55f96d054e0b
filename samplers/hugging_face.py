"""CoLM in the Trainer of Hugging Face's transformers.

    >>> arguments = TrainingArguments("out", per_device_train_batch_size=128)
    >>> trainer = CoLMTrainer(model, arguments, train_dataset=data, data_collator=collate,
    ...     selector=CoLMSelector(64, source_counts=collections.Counter(data["source"])),
    ...     source="source", micro_batch_size=16)
    >>> trainer.train()

A training batch of the Trainer is CoLM's large batch: ``per_device_train_batch_size`` rows on each
rank. Of each of them

1. features are made by forward passes of `micro_batch_size` rows (`Probes`, or the caller's own);
2. `CoLMSelector.select` chooses the small batch, over all ranks;
3. the Trainer's step goes forward and backward with the small batch alone. Its loss is the weighted
   mean over the small batch of all ranks.

Sampler, optimizer, accumulation, mixed precision, evaluation and logging stay the Trainer's.
Activations are those of a micro-batch, or of this rank's part of the small batch. A large batch of
no more rows than the selector takes, such as an epoch's last, is trained on whole.

**Accumulation.** Every large batch has its own small one, and all that are accumulated count the
same, as with any loss that is a mean over a batch.

**Ranks.** One process, or distributed data parallel training. A rank trains on the chosen rows of
its own part: about k / ranks of them, at times more.

**Checkpoints** hold the selector's state in ``colm.json``, from which
``train(resume_from_checkpoint=…)`` goes on. Resumed within an epoch, a training does what the
uninterrupted one does.

**Why a Trainer**, and no callback: callbacks cannot change inputs. `CoLMTrainerMixin` is for the
Trainers of other libraries: ``class Mine(CoLMTrainerMixin, SFTTrainer): pass``.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from ..dataplane.checks import require_int
from ..dataplane.errors import (
    MissingColumnError,
    ParameterError,
    ResumeMismatchError,
    SelectionError,
    needs_extra,
)
from ..dataplane.parameters import resolved
from .colm import CoLMSelector, SmallBatch
from .exchange import on_several_ranks, rank_sizes
from .probes import Prober, Probes, kept_noise
from .state import check_settings

__all__ = ["CoLMTrainer", "CoLMTrainerMixin", "causal_row_losses"]

Inputs = Mapping[str, Any]
RowLosses = Callable[[nn.Module, Inputs], torch.Tensor]
Features = Callable[[nn.Module, Inputs], Any]

_FILE = "colm.json"
_SOURCES, _ROW_IDS = "batchloom_sources", "batchloom_row_ids"  # what the collator adds to a batch

if TYPE_CHECKING:
    _Trainer: Any
else:
    _Trainer = object


def causal_row_losses(model: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Return the loss of each row of a causal language model.

    The mean over the row's tokens of −log p(next token), without those whose label is -100; 0 for
    a row of none. What a model adds to its own loss, such as a router's, is left out.

    Parameters
    ----------
    model : torch.nn.Module
        Gives logits, shape (n, tokens, vocabulary).
    inputs : mapping
        The model's, with ``labels``, shape (n, tokens), not shifted.

    Returns
    -------
    float32 tensor, shape (n,)

    Raises
    ------
    MissingColumnError
        Where there are no labels.
    """
    if "labels" not in inputs:
        raise MissingColumnError(
            f"The batch has no 'labels' to compute losses from; it has {', '.join(inputs)}. Let "
            "the collator make them, or give 'row_losses'."
        )
    outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
    logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
    labels = inputs["labels"][:, 1:].to(logits.device)
    flat = logits[:, :-1].flatten(0, 1).float()
    losses = nn.functional.cross_entropy(flat, labels.flatten(), reduction="none")  # 0 at -100
    tokens = (labels != -100).sum(dim=1).clamp(min=1)
    rows: torch.Tensor = losses.view(labels.shape).sum(dim=1) / tokens
    return rows


class CoLMTrainerMixin(_Trainer):  # type: ignore[misc]
    """Makes a Trainer of transformers train on small batches; to be named before its class.

    Parameters
    ----------
    *args, **kwargs
        The Trainer's.
    selector : CoLMSelector
    source : str
        The column of `train_dataset` that names each row's source.
    row_id : str, optional
        A column of whole numbers by which ties are decided; positions in the batch when None.
    micro_batch_size : int, optional
        Rows of a forward pass for features; those of an evaluation batch when None.
    features : Probes or callable, optional
        (model, inputs of a micro-batch) → array or tensor of shape (n, d). It is called without
        gradients, with the model in the mode in which it trains. `Probes()` when None.
    row_losses : callable
        (model, inputs) → losses of shape (n,), not reduced.

    Raises
    ------
    ParameterError
        Where the Trainer's settings do not go together with small batches.
    """

    data_collator: Any
    _signature_columns: Any
    loss_is_scaled_for_ga = False  # the Trainer divides by the batches that are accumulated

    def __init__(
        self,
        *args: Any,
        selector: CoLMSelector,
        source: str = "source",
        row_id: str | None = None,
        micro_batch_size: int | None = None,
        features: Probes | Features | None = None,
        row_losses: RowLosses = causal_row_losses,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.selector = selector
        self._source, self._row_id = source, row_id
        self._micro = self.args.eval_batch_size if micro_batch_size is None else micro_batch_size
        require_int("micro_batch_size", self._micro, 1)
        own = Probes() if features is None else features
        self._features = Prober(own) if isinstance(own, Probes) else own
        self._row_losses = row_losses
        self._small: SmallBatch | None = None
        self._said: Counter[str] = Counter()
        self._refuse_others()

    def _refuse_others(self) -> None:
        """Raise `ParameterError` for settings of the Trainer that would be wrong or unheeded."""
        kind = str(getattr(self.accelerator.distributed_type, "value", ""))
        parts = getattr(self.accelerator, "parallelism_config", None) is not None
        if self.args.n_gpu > 1 or parts or not (kind == "NO" or kind.startswith("MULTI_")):
            raise ParameterError(
                "CoLM in a Trainer needs whole parameters and one device a process: found "
                f"{self.args.n_gpu} GPUs in this process, and distributed type {kind}. Start one "
                "process a device (torchrun), without FSDP, DeepSpeed or parallel layers."
            )
        if self.compute_loss_func is not None:
            raise ParameterError(
                "'compute_loss_func' gives one loss a batch, and CoLM weighs rows: give "
                "'row_losses', which gives one a row."
            )
        if self.args.label_smoothing_factor and self._row_losses is causal_row_losses:
            raise ParameterError(
                "'label_smoothing_factor' has no effect on the losses of CoLM's rows: set it to 0, "
                "or give 'row_losses' that smooth."
            )

    # --- inputs -----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's, with each row's source in its batches; evaluation's have none."""
        self._set_signature_columns_if_needed()
        before = self.data_collator, self._signature_columns
        own = [self._source] if self._row_id is None else [self._source, self._row_id]
        self.data_collator = _Collator(before[0], self._source, self._row_id, self.selector)
        self._signature_columns = [*before[1], *own]  # those that are not removed
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator, self._signature_columns = before

    def _columns_of(self, batch: dict[str, Any]) -> tuple[list[Any], npt.NDArray[np.int64] | None]:
        """Take sources and row ids out of a batch."""
        if _SOURCES in batch:
            names = list(self.selector.source_counts)
            sources = [names[place] for place in batch.pop(_SOURCES).tolist()]
        else:
            sources = _taken(batch, self._source, "source")
        if self._row_id is None:
            return sources, None
        column = _ROW_IDS if _ROW_IDS in batch else self._row_id
        return sources, np.asarray(_taken(batch, column, "row_id"), np.int64)

    def prediction_step(self, model: Any, inputs: Inputs, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, without the columns that are no inputs of the model."""
        own = (self._source, self._row_id)
        inputs = {name: value for name, value in inputs.items() if name not in own}
        return super().prediction_step(model, inputs, *args, **kwargs)

    # --- a step -----------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Inputs, *args: Any, **kwargs: Any) -> Any:
        """Choose the small batch, and make the Trainer's step with it."""
        for part in (model, self.optimizer):  # an evaluation may have been before
            if callable(getattr(part, "train", None)):
                part.train()
        batch = dict(self._prepare_inputs(inputs))
        sources, ids = self._columns_of(batch)
        self._small = self._choose(batch, sources, ids)
        try:  # the large batch's tokens, by which some losses are divided, are not handed on
            return super().training_step(model, _rows_of(batch, len(sources), self._small.rows))
        finally:
            self._small = None

    def compute_loss(
        self, model: Any, inputs: Inputs, return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Return this rank's share of the small batch's loss; outside training the Trainer's."""
        small = self._small
        if small is None:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        losses = self._losses(model, inputs, len(small.rows))
        ranks = dist.get_world_size() if on_several_ranks() else 1  # whose gradients' mean is taken
        loss = ranks * (small.weights.to(losses.device) * losses).sum() / small.total
        return (loss, {"losses": losses}) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: Inputs, rows: int) -> torch.Tensor:
        losses = self._row_losses(model, inputs)
        if tuple(losses.shape) != (rows,):
            raise SelectionError(
                f"'row_losses': expected one loss a row, shape ({rows},), got "
                f"{tuple(losses.shape)}; do not reduce them."
            )
        return losses

    def _choose(self, batch: Inputs, sources: list[Any], ids: Any) -> SmallBatch:
        rows = len(sources)
        total = sum(rank_sizes(rows))
        if total <= self.selector.k:
            report = {"rows": total, "selected": total, "sources": [], "left_out": []}
            small = SmallBatch(torch.arange(rows), torch.ones(rows), float(total), report)
        else:
            small = self.selector.select(self._features_of(batch, rows), sources, ids=ids)
        self._said.update(_scalars(small.report))
        return small

    def _features_of(self, batch: Inputs, rows: int) -> Any:
        model, own = self.model, self._features  # as it is without a wrapper for several ranks

        def losses(part: torch.Tensor) -> torch.Tensor:
            return self._losses(model, _rows_of(batch, rows, part), len(part))

        if isinstance(own, Prober):
            # The same directions at each step: moments are of dimensions that stay the same.
            return own.features(model, losses, rows, size=self._micro, step=0)
        parts = torch.arange(rows).split(self._micro)
        with torch.no_grad(), kept_noise():
            found = [own(model, _rows_of(batch, rows, part)) for part in parts]
        return torch.cat([torch.as_tensor(f).detach().float().cpu() for f in found])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, beside the training's loss, what was chosen, in the mean since the last time."""
        if "loss" in logs and (choices := self._said.pop("choices", 0)):
            logs.update({f"colm/{name}": value / choices for name, value in self._said.items()})
            self._said.clear()
        super().log(logs, *args, **kwargs)

    # --- checkpoints ------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        own = self._features
        return {"features": resolved(own.settings) if isinstance(own, Prober) else None}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and in a checkpoint the selector's state."""
        super().save_model(output_dir, _internal_call)
        if output_dir is not None and _internal_call and self.args.should_save:
            state = {**self._settings(), "selector": self.selector.state_dict()}
            text = json.dumps(state, indent=1, default=lambda value: value.tolist())
            (Path(output_dir) / _FILE).write_text(text + "\n", encoding="utf-8")

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint on with the state that the selector had there."""
        folder = resume_from_checkpoint
        if folder is True:
            tools = import_module("transformers.trainer_utils")
            folder = tools.get_last_checkpoint(self.args.output_dir)
        if folder:
            self._load(Path(folder) / _FILE)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load(self, path: Path) -> None:
        if not path.exists():
            raise ResumeMismatchError(
                f"{path.parent} has no {_FILE}: no Trainer with CoLM saved it. Resume from a "
                "checkpoint of one, or start without."
            )
        state = json.loads(path.read_text(encoding="utf-8"))
        check_settings(state, self._settings(), "Trainer")
        self.selector.load_state_dict(state["selector"])


class _Collator:
    """Keeps sources and row ids from a collator, and puts them into its batch as numbers."""

    def __init__(
        self, collate: Callable[..., Any], source: str, row_id: str | None, selector: CoLMSelector
    ) -> None:
        self.collate, self.source, self.row_id = collate, source, row_id
        self.place = selector.place

    def __call__(self, rows: list[Any]) -> Any:
        own = {self.source, self.row_id}
        for row in rows:
            own &= row.keys() if isinstance(row, Mapping) else set()
        if not own:
            return self.collate(rows)
        batch = self.collate([{k: v for k, v in row.items() if k not in own} for row in rows])
        if self.source in own:
            batch[_SOURCES] = torch.tensor([self.place(row[self.source]) for row in rows])
        if self.row_id in own:
            batch[_ROW_IDS] = torch.tensor([int(row[self.row_id]) for row in rows])
        return batch


def _taken(batch: dict[str, Any], column: str, setting: str) -> list[Any]:
    """Take a column out of a batch."""
    if column not in batch:
        raise MissingColumnError(
            f"A training batch has no column '{column}', which {setting}=… names; it has "
            f"{', '.join(batch)}. Put it into every row of 'train_dataset', or name another; a "
            "data loader of your own must pass it on."
        )
    values = batch.pop(column)
    listed: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return listed


def _rows_of(batch: Inputs, rows: int, chosen: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of some rows of a batch; what is not of its rows stays as it is."""
    found = dict(batch)
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) != 1:
            if len(value) != rows:
                raise SelectionError(
                    f"The batch's '{name}' has shape {tuple(value.shape)}, and {rows} rows have a "
                    "source: expected one of it a row. Collate rows without packing them."
                )
            found[name] = value[chosen.to(value.device)]
        elif isinstance(value, list) and len(value) == rows:
            found[name] = [value[row] for row in chosen.tolist()]
    return found


def _scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """Return what is logged of a choice."""
    sources = report["sources"]
    return {
        "choices": 1,
        "rows": report["rows"],
        "selected": report["selected"],
        "kept_whole": sum(s["selected"] for s in sources if s["small"]),
        "left_out": len(report["left_out"]),
    }


# --- the class itself, which needs transformers ---------------------------------------------------


@functools.cache
def _trainer() -> type:
    with needs_extra("CoLMTrainer", "transformers"):
        base = import_module("transformers").Trainer
    own = {"__module__": __name__, "__doc__": CoLMTrainerMixin.__doc__}
    return type("CoLMTrainer", (CoLMTrainerMixin, base), own)


if TYPE_CHECKING:

    class CoLMTrainer(CoLMTrainerMixin):
        """`transformers.Trainer` that trains on small batches; see `CoLMTrainerMixin`."""

else:

    def __getattr__(name: str) -> Any:
        if name == "CoLMTrainer":
            return _trainer()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
