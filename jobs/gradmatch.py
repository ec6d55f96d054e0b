"""The reduce stage ``gradmatch``: weighted rows whose gradients add up to that of their batch."""

from __future__ import annotations

from ..coresets.gradmatch import GradMatch, GradMatchSettings
from ..dataplane.parameters import parameters
from .features import FeatureInput
from .loss_stages import settings_of
from .small_batches import SizeInput, SmallBatches

__all__ = ["GradMatchReduce"]


@parameters
class GradMatchReduce(SizeInput, FeatureInput, GradMatchSettings, SmallBatches):
    """Parameters of GradMatch."""

    method = "gradmatch"
    summary = "GradMatch: weighted rows that add up to the batch's gradient; for exact gradients"
    source = (
        "Killamsetty et al., GRAD-MATCH: Gradient Matching based Data Subset Selection for "
        "Efficient Deep Model Training, ICML 2021"
    )
    example = (
        "batchloom plan gradmatch data/ --batch-size 128 --out plan/ --set k=32 "
        "--set columns=gradient"
    )

    def chooser(self, seed: int) -> GradMatch:
        return GradMatch(**settings_of(self, GradMatchSettings))
