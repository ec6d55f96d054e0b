"""The reduce stage ``k-center``: rows that leave none of their batch far from all of them."""

from __future__ import annotations

from ..coresets.k_center import KCenter, KCenterSettings
from ..dataplane.parameters import parameters
from .features import FeatureInput
from .loss_stages import settings_of
from .small_batches import SizeInput, SmallBatches

__all__ = ["KCenterReduce"]


@parameters
class KCenterReduce(SizeInput, FeatureInput, KCenterSettings, SmallBatches):
    """Parameters of k-centre greedy."""

    method = "k-center"
    summary = "k-centre greedy: rows that leave none far from all; for coverage of clean data"
    source = (
        "Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, TCS 38 (1985); Sener "
        "and Savarese, Active Learning for Convolutional Neural Networks, ICLR 2018"
    )
    example = "batchloom plan k-center data/ --batch-size 128 --out plan/ --set columns=embedding"

    def chooser(self, seed: int) -> KCenter:
        return KCenter(**settings_of(self, KCenterSettings))
