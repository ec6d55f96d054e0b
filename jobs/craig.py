"""The reduce stage ``craig``: of each class of a batch the rows that stand for it, weighted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..coresets.craig import CRAIG, CRAIGSettings
from ..dataplane.parameters import parameters
from .features import FeatureInput
from .loss_stages import settings_of
from .small_batches import SizeInput, SmallBatches

__all__ = ["CRAIGReduce"]


@parameters
class CRAIGReduce(SizeInput, FeatureInput, CRAIGSettings, SmallBatches):
    """Parameters of CRAIG."""

    method = "craig"
    summary = "CRAIG: of each class weighted rows that stand for it; for redundant labelled data"
    source = (
        "Mirzasoleiman, Bilmes and Leskovec, Coresets for Data-efficient Training of Machine "
        "Learning Models, ICML 2020"
    )
    example = (
        "batchloom plan craig data/ --batch-size 128 --out plan/ --set columns=gradient "
        "--set classes=label"
    )
    column_of_sources = "classes"

    classes: Annotated[
        str | None, Field(description="the column of the classes; all rows are of one when None")
    ] = None

    def chooser(self, seed: int) -> CRAIG:
        return CRAIG(**settings_of(self, CRAIGSettings))
