"""A random share of the rows: the baseline that selecting by loss is held against.

``fresh=True`` draws anew in each epoch, so that in time all rows are seen; ``fresh=False`` trains
on one subset. Compare at the same number of passes: a method that prunes to 60 % of the passes is
worth its trouble where it beats a fresh share of 60 %, which costs nothing and needs no losses.
Weights are 1; rows are drawn by keys of their ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..dataplane.parameters import parameters
from ..dataplane.random import Stream
from ..dataplane.sketch import exact_share
from .key_share import KeepSearch, KeyShare
from .loss_rows import F32, I64, LossRows, Mask
from .loss_search import LossPass, saving
from .loss_selector import LossSelector

__all__ = ["RandomShare", "RandomShareSearch", "RandomShareSettings"]


@parameters
class RandomShareSettings:
    """What a random share can be told, its seed left out."""

    prune_ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the rows that is dropped at random")
    ] = 0.5
    fresh: Annotated[bool, Field(description="draw anew in each epoch")] = True


@parameters
class RandomShare(RandomShareSettings, LossSelector):
    """Parameters of a random share."""

    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of the draws")] = 0

    def search(self, epoch: int, rows: int) -> RandomShareSearch:
        """Return the passes over `rows` rows in parts that lead to an epoch's selection."""
        return RandomShareSearch(self, epoch, rows)


class RandomShareSearch:
    """The passes of one epoch; see `loss_search`.

    Attributes
    ----------
    next : LossPass or None
    """

    def __init__(self, parameters: RandomShare, epoch: int, rows: int) -> None:
        drawn_in = epoch if parameters.fresh else 0
        share = KeyShare(parameters.seed, Stream.RANDOM_SHARE, drawn_in)
        kept = max(1, exact_share(1 - Fraction(repr(float(parameters.prune_ratio))), rows))
        self._epoch, self._rows, self._kept = epoch, rows, kept
        self._keep = KeepSearch(share, lambda _: kept, rows)
        self.next: LossPass | None = self._keep.next

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""
        self._keep.narrow(counts)
        self.next = self._keep.next

    @property
    def choice(self) -> RandomShareChoice:
        report = {"epoch": self._epoch, **saving(self._kept, self._rows)}
        return RandomShareChoice(self._keep.share, report)


@dataclass(frozen=True)
class RandomShareChoice:
    """Which rows an epoch trains on."""

    share: KeyShare
    report: Mapping[str, Any]
    weighted: bool = False

    def keeps(self, rows: LossRows) -> Mask:
        return self.share.mask(rows)

    def weights(self, rows: LossRows) -> F32:
        return np.ones(len(rows), np.float32)
