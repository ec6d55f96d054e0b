"""The select stage ``seta``: drop redundant rows at random, slide a window over groups of loss."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..coresets.seta import SeTa, SeTaSettings
from ..dataplane.parameters import parameters
from .loss_stages import LossInput, LossSelect, settings_of

__all__ = ["SeTaSelect"]


@parameters
class SeTaSelect(LossInput, SeTaSettings, LossSelect):
    """Parameters of SeTa."""

    method = "seta"
    summary = "SeTa: drop redundant rows at random, slide a window over groups of loss"
    source = "Zhou, Zhang and Zhang, Scale Efficient Training for Large Datasets, CVPR 2025"
    example = (
        "batchloom plan seta data/ --signal signals/ --epochs 3:4 --out plan/ "
        "--set training_epochs=40"
    )

    training_epochs: Annotated[
        int, Field(ge=1, description="epochs of the whole training; delta is a share of them")
    ] = 40

    def selector(self, seed: int) -> SeTa:
        return SeTa(**settings_of(self, SeTaSettings), epochs=self.training_epochs, seed=seed)
