"""The select stage ``importance``: rows are drawn the more often, the larger their loss."""

from __future__ import annotations

from ..coresets.importance import Importance, ImportanceSettings
from ..dataplane.parameters import parameters
from .loss_stages import LossInput, LossSelect, settings_of

__all__ = ["ImportanceSelect"]


@parameters
class ImportanceSelect(LossInput, ImportanceSettings, LossSelect):
    """Parameters of importance sampling by loss."""

    method = "importance"
    summary = "importance sampling: rows are drawn the more often, the larger their loss"
    source = (
        "Katharopoulos and Fleuret, Biased Importance Sampling for Deep Neural Network Training, "
        "2017; Duffield, Lund and Thorup, Priority Sampling, J. ACM 2007"
    )
    example = (
        "batchloom plan importance data/ --signal signals/ --epochs 3:4 --out plan/ "
        "--set prune_ratio=0.45"
    )

    def selector(self, seed: int) -> Importance:
        return Importance(**settings_of(self, ImportanceSettings), seed=seed)
