"""The reduce stages ``random-rows`` and ``keep-small``: baselines of a choice by features."""

from __future__ import annotations

from ..coresets.random_rows import KeepSmall, KeepSmallSettings, RandomRows
from ..dataplane.parameters import parameters
from .loss_stages import settings_of
from .small_batches import SizeInput, SmallBatches, SourceInput

__all__ = ["KeepSmallReduce", "RandomRowsReduce"]


@parameters
class RandomRowsReduce(SizeInput, SmallBatches):
    """Parameters of random rows."""

    method = "random-rows"
    summary = "random rows of each batch: the baseline of every choice of small batches"
    example = "batchloom plan random-rows data/ --batch-size 128 --out plan/ --set k=64"

    def chooser(self, seed: int) -> RandomRows:
        return RandomRows(seed=seed)


@parameters
class KeepSmallReduce(SizeInput, SourceInput, KeepSmallSettings, SmallBatches):
    """Parameters of keep-small."""

    method = "keep-small"
    summary = "small sources whole, the others at random: most of CoLM's gain, without features"
    source = "the budgets of CoLM (Nguyen et al., ICLR 2025), with random rows"
    example = (
        "batchloom plan keep-small data/ --batch-size 128 --out plan/ --set k=64 "
        "--set sources=source"
    )

    def chooser(self, seed: int) -> KeepSmall:
        return KeepSmall(**settings_of(self, KeepSmallSettings), seed=seed)
