"""InfoBatch: drop a share of the rows of below-average loss, and weigh the rest of these up.

Qin et al., *InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning*, ICLR 2024.
In epoch e (from 0) of E, the first floor(delta · E) of which are pruned:

1. Rows whose loss is below the mean of all losses are *easy*; ties are not.
2. Of the n easy rows m = floor((1 − prune_ratio) · n) are kept, at least one, drawn at random; all
   other rows are kept, those that were never scored among them.
3. An easy row that was kept weighs n / m, any other row 1: so the weighted sum of losses is, in
   expectation, that of all rows, and the weights sum up to N in every draw.

The last epochs train on all rows (``anneal="full"``, as the paper) or on a random share
(``"keep"``). The loss of a batch is the mean over its rows of weight · loss.

Where we deviate from the authors' code: its weight is 1 / (1 − prune_ratio), which is unbiased
only where (1 − prune_ratio) · n is an integer; its mean is a float32 sum, which puts all of 2²⁴ + 1
equal losses below their mean, ours is exact; its annealing may go on with the weights of the last
pruned epoch; it draws from global generators, we by keys of the row ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..dataplane.parameters import parameters
from ..dataplane.random import Stream
from ..dataplane.sketch import exact_share
from .key_share import KeepSearch, KeyShare
from .loss_rows import F32, I64, LossRows, Mask
from .loss_search import HistogramSearch, LossPass, NonFinite, saving
from .loss_selector import LossSelector, check_epoch

__all__ = ["InfoBatch", "InfoBatchSearch", "InfoBatchSettings"]


@parameters
class InfoBatchSettings:
    """What InfoBatch can be told, the training's length and seed left out."""

    prune_ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the easy rows that is dropped at random")
    ] = 0.5
    delta: Annotated[
        float, Field(ge=0, le=1, description="share of the epochs that is pruned; then annealing")
    ] = 0.875
    anneal: Annotated[
        Literal["full", "keep"], Field(description="last epochs: all rows, or a random share")
    ] = "full"
    nonfinite: Annotated[
        NonFinite, Field(description="rows of NaN or infinite loss: an error, or always eligible")
    ] = "fail"


@parameters
class InfoBatch(InfoBatchSettings, LossSelector):
    """Parameters of InfoBatch."""

    epochs: Annotated[int, Field(ge=1, description="epochs of the whole training")] = 40
    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of the draws")] = 0

    @property
    def pruned_epochs(self) -> int:
        """Epochs before the annealing: floor(delta · epochs)."""
        return exact_share(self.delta, self.epochs)

    @property
    def kept(self) -> Fraction:
        """Share of the easy rows that is kept, exactly as the decimal text says."""
        return 1 - Fraction(repr(float(self.prune_ratio)))

    def search(self, epoch: int, rows: int) -> InfoBatchSearch:
        """Return the passes over `rows` rows in parts that lead to an epoch's selection."""
        check_epoch(epoch, self.epochs)
        return InfoBatchSearch(self, epoch, rows)


@dataclass(frozen=True)
class EasyRows:
    """The rows that were scored below a loss."""

    below: float

    def mask(self, rows: LossRows) -> Mask:
        easy: Mask = rows.losses < np.float32(self.below)  # NaN is not
        return easy


class InfoBatchSearch:
    """The passes of one epoch: the mean, then the keys of the easy rows; see `loss_search`.

    Attributes
    ----------
    next : LossPass or None
    """

    def __init__(self, parameters: InfoBatch, epoch: int, rows: int) -> None:
        self._p, self._epoch, self._rows = parameters, epoch, rows
        self._mean: Fraction | None = None
        self._scored: HistogramSearch | None = None
        self._keep: KeepSearch | None = None
        self.next: LossPass | None = None
        if epoch < parameters.pruned_epochs:
            self._scored = HistogramSearch(KeyShare(parameters.seed, Stream.INFOBATCH_KEEP, epoch))
            self.next = self._scored.next
        elif parameters.anneal == "keep":
            self._search_keys(KeyShare(parameters.seed, Stream.ANNEAL_KEEP, epoch), rows)

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""
        if self._keep is not None:
            self._keep.narrow(counts)
            self.next = self._keep.next
            return
        assert self._scored is not None  # for the type checker: it made the pass
        self._scored.narrow(counts)
        self.next = self._scored.next
        if self.next is None and self._scored.histogram is not None:
            found = self._scored.histogram
            self._mean = found.mean()
            below = int(found.rows[found.means < float(self._mean)].sum())
            easy = EasyRows(float(_least_at_or_above(self._mean)))
            p = self._p
            share = KeyShare(p.seed, Stream.INFOBATCH_KEEP, self._epoch, among=easy)
            self._search_keys(share, below)

    def _search_keys(self, share: KeyShare, about: int) -> None:
        self._keep = KeepSearch(share, partial(_share_of, self._p.kept), about)
        self.next = self._keep.next

    @property
    def choice(self) -> InfoBatchChoice:
        pruning = self._epoch < self._p.pruned_epochs
        report: dict[str, Any] = {
            "epoch": self._epoch,
            "phase": "prune" if pruning else "anneal",
        }
        rows = self._rows
        if self._keep is None:  # no row was scored, or all of them train
            everything = KeyShare(self._p.seed, Stream.INFOBATCH_KEEP, self._epoch)
            return InfoBatchChoice(everything, None, 1.0, report | saving(rows, rows))
        easy, kept = self._keep.rows, self._keep.kept
        share = self._keep.share
        if not pruning:
            return InfoBatchChoice(share, None, 1.0, report | saving(kept, rows))
        mean = None if self._mean is None else float(self._mean)
        report |= {"mean_loss": mean, "easy": easy, "easy_kept": kept, "weight_sum": rows}
        weight = easy / kept if kept else 1.0
        return InfoBatchChoice(
            share, share.among, weight, report | saving(rows - easy + kept, rows)
        )


@dataclass(frozen=True)
class InfoBatchChoice:
    """Which rows an epoch trains on.

    Attributes
    ----------
    share : KeyShare
        The easy rows that are kept; or all the rows that are.
    easy : Among or None
        The rows of which they are a share; the others are all kept. None: of all rows.
    weight : float
        Of an easy row that is kept.
    report : mapping
    """

    share: KeyShare
    easy: Any
    weight: float
    report: Mapping[str, Any]

    @property
    def weighted(self) -> bool:
        return self.easy is not None

    def keeps(self, rows: LossRows) -> Mask:
        kept = self.share.mask(rows)
        return kept if self.easy is None else kept | ~self.easy.mask(rows)

    def weights(self, rows: LossRows) -> F32:
        return np.where(self.easy.mask(rows), np.float32(self.weight), np.float32(1))


def _share_of(ratio: Fraction, rows: int) -> int:
    """Return how many of the easy rows are kept: at least one where there are some."""
    return min(rows, max(1, exact_share(ratio, rows)))


def _least_at_or_above(mean: Fraction) -> np.float32:
    """Return the smallest float32 that is not below the mean."""
    near = np.float32(float(mean))
    while Fraction(float(near)) < mean:
        near = np.nextafter(near, np.float32(np.inf))
    while Fraction(float(np.nextafter(near, np.float32(-np.inf)))) >= mean:
        near = np.nextafter(near, np.float32(-np.inf))
    return near
