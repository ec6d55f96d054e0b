"""The select stage ``where``: rows for which an expression over columns is true."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..coresets.where import Expression, parse_where
from ..dataplane.parameters import parameters
from .context import JobContext
from .stages import Choice, PlanState, SelectStage

__all__ = ["Where"]


@parameters
class Where(SelectStage):
    """Parameters of where."""

    method = "where"
    summary = "rows for which an expression over columns is true"
    example = "batchloom plan shuffle data/ --out plan/ --where \"score > 0.5 and lang == 'en'\""

    expression: Annotated[str, Field(description="as in Python, for example: score > 0.5")]

    def __post_init__(self) -> None:
        parse_where(self.expression)  # refuse it now rather than on a worker

    def parsed(self) -> Expression:
        return parse_where(self.expression)

    def reads(self) -> list[str]:
        return list(self.parsed().columns)

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Choice:
        mask = job.map_rows(
            "selecting", evaluate, state.rows, self.reads(), expression=self.expression
        )
        rows = state.rows.filter(lambda _, ranks: mask[ranks])
        return Choice(rows, report={"rows": len(rows)})

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return rows


def evaluate(batch: pa.RecordBatch, ids: Any, expression: str) -> npt.NDArray[np.bool_]:
    """Evaluate the expression on a batch; a row function."""
    return parse_where(expression).mask(batch)
