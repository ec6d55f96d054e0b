"""What group stages share: the batch stage that follows them, and features that they go by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..dataplane.dataset import Dataset
from ..dataplane.rowset import RowSet
from .cluster_batches import make_batches
from .context import JobContext
from .features import FeatureInput, Features, feature_width, usable_rows
from .stages import BatchStage, Choice, GroupStage, PlanState

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["BatchedGroups", "FeatureGroups"]


class BatchedGroups(GroupStage):
    """A group stage whose parameters ``batches`` and ``drop_last`` are those of the batch stage."""

    if TYPE_CHECKING:
        batches: Any
        drop_last: bool

    def parameters(self) -> dict[str, Any]:
        mine = super().parameters()
        return {k: v for k, v in mine.items() if k not in ("batches", "drop_last")}

    def default_batch(self) -> BatchStage:
        return make_batches(self.batches, drop_last=self.drop_last)


class FeatureGroups(FeatureInput, BatchedGroups):
    """A group stage that goes by features of the rows."""

    def check(self, spec: JobSpec) -> None:
        self.check_input(self.method, spec)

    def reads(self) -> list[str]:
        return list(self.columns or [])

    @property
    def uses_engine(self) -> bool:
        return True

    def width(self, dataset: Dataset) -> int:
        """Return the values of a row's features; 0 where they are a signal's."""
        return sum(feature_width(dataset, c) for c in self.columns or [])

    def prepare(self, job: JobContext) -> None:
        self.read_signal(job)

    def read(self, job: JobContext, state: PlanState) -> tuple[PlanState, RowSet, Features]:
        """Return the state and the rows that are left, those of finite features, and these."""
        features = self.read_features(job, state.rows)
        rows = usable_rows(job, state.rows, features, self)
        if len(rows) < len(state.rows):
            state = state.selected(job, Choice(rows))
        return state, rows, features
