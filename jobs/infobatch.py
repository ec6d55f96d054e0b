"""The select stage ``infobatch``: drop a share of the easy rows, weigh the rest of these up."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..coresets.infobatch import InfoBatch, InfoBatchSettings
from ..dataplane.parameters import parameters
from .loss_stages import LossInput, LossSelect, settings_of

__all__ = ["InfoBatchSelect"]


@parameters
class InfoBatchSelect(LossInput, InfoBatchSettings, LossSelect):
    """Parameters of InfoBatch."""

    method = "infobatch"
    summary = "InfoBatch: drop a share of the easy rows, weigh the rest of these up"
    source = (
        "Qin et al., InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning, "
        "ICLR 2024"
    )
    example = (
        "batchloom plan infobatch data/ --signal signals/ --epochs 3:4 --out plan/ "
        "--set training_epochs=40"
    )
    weight_semantics = "importance"

    training_epochs: Annotated[
        int, Field(ge=1, description="epochs of the whole training; delta is a share of them")
    ] = 40

    def selector(self, seed: int) -> InfoBatch:
        settings = settings_of(self, InfoBatchSettings)
        return InfoBatch(**settings, epochs=self.training_epochs, seed=seed)
