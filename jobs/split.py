"""The select stage ``split``: one named share of the rows, which never moves."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..coresets.split import in_split, parse_split
from ..dataplane.key_hash import hash_column
from ..dataplane.parameters import parameters
from .context import JobContext
from .stages import Choice, PlanState, SelectStage

__all__ = ["Split"]


@parameters
class Split(SelectStage):
    """Parameters of split."""

    method = "split"
    summary = "one named share of the rows, keyed so that it never moves"
    example = "batchloom plan shuffle data/ --out plan/ --split train=0.9,val=0.1:train"

    shares: Annotated[str, Field(description="shares and the chosen one: train=0.9,val=0.1:train")]
    key: Annotated[
        str | None, Field(description="column that rows are shared out by; row ids where none")
    ] = None
    split_seed: Annotated[int, Field(ge=0, description="the split's own seed")] = 0

    def __post_init__(self) -> None:
        parse_split(self.shares)

    def reads(self) -> list[str]:
        return [] if self.key is None else [self.key]

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Choice:
        shares, chosen = parse_split(self.shares)
        if self.key is None:
            rows = state.rows.filter(
                lambda ids, _: in_split(ids, shares, chosen, seed=self.split_seed)
            )
        else:
            inside = job.map_rows(
                f"reading '{self.key}'", share_rows, state.rows, self.reads(),
                column=self.key, shares=self.shares, seed=self.split_seed,
            )  # fmt: skip
            rows = state.rows.filter(lambda _, ranks: inside[ranks])
        return Choice(rows, report={"rows": len(rows)})

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return rows if self.reads() else 0


def share_rows(
    batch: pa.RecordBatch, ids: Any, column: str, shares: str, seed: int
) -> npt.NDArray[np.bool_]:
    """Return which rows of a batch are in the chosen share; a row function."""
    values = hash_column(batch.column(column), column)
    return in_split(values, *parse_split(shares), seed=seed, hashed=True)
