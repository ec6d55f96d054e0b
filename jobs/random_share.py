"""The select stage ``random``: a random share of the rows, fresh in each epoch or one for all."""

from __future__ import annotations

from ..coresets.random_share import RandomShare, RandomShareSettings
from ..dataplane.parameters import parameters
from .loss_stages import LossSelect, settings_of

__all__ = ["RandomSelect"]


@parameters
class RandomSelect(RandomShareSettings, LossSelect):
    """Parameters of a random share."""

    method = "random"
    summary = "a random share of the rows: what selecting by loss is held against"
    example = "batchloom plan random data/ --epochs 0:40 --out plan/ --set prune_ratio=0.4"
    series = False  # it learns nothing from an epoch

    def selector(self, seed: int) -> RandomShare:
        return RandomShare(**settings_of(self, RandomShareSettings), seed=seed)
