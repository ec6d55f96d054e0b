"""The group stage ``groups``: clusters that are there already, in a column or as named sources."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ..dataplane.parameters import parameters
from .context import JobContext
from .group_stages import BatchedGroups
from .sources import read_sources
from .stages import PlanState

__all__ = ["ColumnGroups"]

_NAMES_TOLD = 1000


@parameters
class ColumnGroups(BatchedGroups):
    """Parameters of groups."""

    method = "groups"
    summary = "groups that a column names: batches within or across them, or of whole ones"
    source = "Chiang et al., Cluster-GCN, KDD 2019, where groups are the parts of a graph"
    example = (
        "batchloom plan groups nodes/ --out plan/ --batch-size 1024 --set column=part "
        "--set batches=aligned"
    )

    column: Annotated[
        str | None,
        Field(description="of the groups: text or integers; the dataset's sources when None"),
    ] = None
    batches: Annotated[
        Literal["within", "across", "aligned"],
        Field(description="of one group each, of all in equal shares, or of whole groups"),
    ] = "within"
    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    def reads(self) -> list[str]:
        return [] if self.column is None else [self.column]

    @property
    def uses_engine(self) -> bool:
        return self.column is not None

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        del in_memory
        return 16 * rows  # codes by hash and by name

    def group(self, job: JobContext, state: PlanState) -> PlanState:
        found = read_sources(job, state.rows, self.column, what="group")
        report: dict[str, Any] = {"sizes": found.counts.tolist()}
        if len(found.names) <= _NAMES_TOLD:
            report["names"] = [str(name) for name in found.names]
        return replace(state, groups=found.codes).reported(self.method, report)
