"""What the stages that go by losses share: where the losses are, and how rows are chosen by them.

Their losses come from the job's ``signal``, or from a column of the dataset. They make a series: a
member a call, planned from what the epochs before it have taught.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..coresets.loss_rows import LossRows, sum_of
from ..coresets.loss_search import NonFinite
from ..coresets.loss_selector import LossSelector, keeps_in_parts
from ..dataplane.compiled import compiled_kernels
from ..dataplane.dataset import Dataset
from ..dataplane.errors import JobSpecError
from ..dataplane.parameters import parameters, resolved
from ..dataplane.plan import WeightSemantics
from .context import JobContext
from .loss_passes import search_rows
from .losses import Losses
from .signal_reading import column_losses, signal_losses
from .stages import Choice, PlanState, SelectStage

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["LossInput", "LossSelect", "settings_of"]

_FROM_ONE_LOSS = 5  # epochs that are planned from one state of the losses without a word
_MEMORY = 160 << 20  # counts of a pass, and the losses of a range where no worker reads them
_RATE = 20e6  # rows a CPU second: losses read, counted, and looked at again


@parameters
class LossInput:
    """Where a stage's losses are."""

    loss: Annotated[str, Field(description="name of the signal that holds the losses")] = "loss"
    column: Annotated[
        str | None, Field(description="a column of losses in the dataset, instead of a signal")
    ] = None

    about = (
        "The training writes the losses: SignalStore.for_writing('signals/', dataset).append("
        "rows, epoch=e, step=s, loss=losses), one loss a row. After epoch 2 plan epoch 3 with "
        "--epochs 3:4; --out is a series, a directory that gains one member a call. Of the losses "
        "those of earlier epochs count, each row's latest; rows that have none take part always. "
        "Epoch 0 needs none. A file with the columns row and loss does as well.\n\n"
        "What was kept, the groups and the share saved stand in the plan: batchloom inspect PLAN."
    )

    @property
    def losses_key(self) -> str:
        return f"signal {self.loss}" if self.column is None else f"column {self.column}"

    def check_input(self, name: str, spec: JobSpec) -> None:
        """Raise `JobSpecError` where the job does not say where the losses are."""
        if spec.signal is None and self.column is None and spec.epochs[1] > 1:
            raise JobSpecError(
                f"{name} selects by loss: give --signal DIR (what the training wrote with "
                "SignalStore, or a file with the columns row and loss), or a column of the dataset "
                "with --set column=NAME. Only epoch 0 (--epochs 0:1) is planned without."
            )

    def read_losses(self, job: JobContext, name: str) -> None:
        """Read the losses once for the job."""
        if self.losses_key in job.losses:
            return
        if self.column is not None:
            found = column_losses(job, self.column)
        else:
            found = signal_losses(job, job.signal, self.loss, job.epochs[0])
        job.losses[self.losses_key] = found
        job.digests[self.losses_key] = found.digest
        start, stop = job.epochs
        if stop - start > _FROM_ONE_LOSS:
            job.progress.warn(
                f"{stop - start} epochs are planned from the losses as they are now; plan one a "
                "call, from what each has taught"
            )
        job.reports.setdefault(name, {"epochs": {}})["losses"] = {
            "scored": found.scored,
            "never_scored": job.dataset.rows - found.scored - found.nonfinite,
            "nonfinite": found.nonfinite,
            "digest": found.digest,
        }


class LossSelect(SelectStage):
    """A select stage that goes by losses; beside `LossInput`, or alone where it needs none."""

    per_epoch = True
    series = True
    nonfinite: NonFinite = "keep"

    @property
    def weight_semantics(self) -> WeightSemantics | None:  # type: ignore[override]  # by instance
        """Weights are inverse inclusion probabilities, or there are none."""
        return "importance" if getattr(self, "weights", "none") == "unbiased" else None

    def selector(self, seed: int) -> LossSelector:
        """Return the method."""
        raise NotImplementedError

    def check(self, spec: JobSpec) -> None:
        if isinstance(self, LossInput):
            self.check_input(self.method, spec)
        whole = getattr(self, "training_epochs", spec.epochs[1])
        if spec.epochs[1] > whole:
            start, stop = spec.epochs
            raise JobSpecError(
                f"Epochs {start}:{stop} go beyond the training's {whole}; set training_epochs "
                "(--set training_epochs=N)."
            )

    def reads(self) -> list[str]:
        column = getattr(self, "column", None)
        return [] if column is None else [column]

    @property
    def uses_engine(self) -> bool:
        return True

    def cost(self, dataset: Dataset, rows: int) -> float:
        return super().cost(dataset, rows) + rows / _RATE

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        return _MEMORY

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 40 * rows  # losses, weights, and the parts of a signal that is one file

    def prepare(self, job: JobContext) -> None:
        if isinstance(self, LossInput):
            self.read_losses(job, self.method)

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Choice:
        losses = Losses(job.dataset.snapshot)
        if isinstance(self, LossInput):
            losses = job.losses[self.losses_key]
            losses.check(state.rows, self.nonfinite)
        choice = search_rows(job, state, losses, self.selector(job.seed), epoch)
        compiled_kernels(len(state.rows))  # loaded here where they pay: chunks are small
        measured = _Measured()

        def keeps(ids: npt.NDArray[np.uint64] | range) -> npt.NDArray[np.bool_]:
            rows = losses.of(ids)
            inside = keeps_in_parts(choice, rows)
            measured.add(rows, inside)
            return inside

        kept = state.rows.filter_runs(keeps)
        weights = None
        if choice.weighted:
            weights = job.column(choice.weights(losses.of(ids)) for ids in kept.chunks())
        report = {**choice.report, "selected": len(kept)}
        if isinstance(self, LossInput):
            report |= measured.report
        if weights is not None:
            report["weight_sum"] = float(sum(w.sum(dtype="f8") for w in weights.chunks()))
        job.reports.setdefault(self.method, {"epochs": {}})["epochs"][str(epoch)] = report
        return Choice(kept, weights)


class _Measured:
    """What is told of the rows that are selected."""

    def __init__(self) -> None:
        self._rows = self._scored = 0
        self._sum = 0.0

    def add(self, rows: LossRows, inside: npt.NDArray[np.bool_]) -> None:
        self._rows += int(np.count_nonzero(inside))
        count, total = sum_of(rows.losses, inside)
        self._scored += count
        self._sum += total

    @property
    def report(self) -> dict[str, Any]:
        mean = self._sum / self._scored if self._scored else None
        return {
            "selected_never_scored": self._rows - self._scored,
            "selected_mean_loss": mean,
        }


def settings_of(stage: Any, settings: type) -> dict[str, Any]:
    """Return the fields of a class that a stage has inherited, by name."""
    names = settings.__pydantic_fields__  # type: ignore[attr-defined]
    return {k: v for k, v in resolved(stage).items() if k in names}
