"""The select stage ``split``: one named share of the rows, which never moves."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from ..coresets.split import in_split, parse_split
from ..dataplane.parameters import parameters
from ..dataplane.plan import Selection
from .context import JobContext
from .shuffle import hash_rows
from .stages import PlanState, SelectStage

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

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Selection:
        shares, chosen = parse_split(self.shares)
        if self.key is None:
            values = state.rows.ids()
        else:
            values = job.map_rows(
                f"reading '{self.key}'", hash_rows, state.rows, [self.key], column=self.key
            )
        inside = in_split(values, shares, chosen, seed=self.split_seed, hashed=self.key is not None)
        return Selection(
            np.flatnonzero(inside).astype(np.uint64), report={"rows": int(inside.sum())}
        )
