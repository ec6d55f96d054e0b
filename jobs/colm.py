"""The reduce stage ``colm``: of each large batch of a mixture the small one that stands for it."""

from __future__ import annotations

from ..coresets.colm import CoLM, CoLMSettings
from ..dataplane.parameters import parameters
from .features import FeatureInput
from .loss_stages import settings_of
from .small_batches import SizeInput, SmallBatches, SourceInput

__all__ = ["CoLMReduce"]


@parameters
class CoLMReduce(SizeInput, FeatureInput, SourceInput, CoLMSettings, SmallBatches):
    """Parameters of CoLM."""

    method = "colm"
    summary = "CoLM: small sources whole, of the others rows that stand for them; for mixtures"
    source = (
        "Nguyen et al., Mini-batch Coresets for Memory-efficient Language Model Training on Data "
        "Mixtures, ICLR 2025"
    )
    example = (
        "batchloom plan colm data/ --batch-size 128 --out plan/ --set k=64 --set columns=gradient "
        "--set sources=source"
    )

    def chooser(self, seed: int) -> CoLM:
        return CoLM(**settings_of(self, CoLMSettings))
