"""Importance: of all rows that many, drawn the more often, the larger their loss.

Importance sampling by loss, biased on purpose as in Katharopoulos and Fleuret, *Biased Importance
Sampling for Deep Neural Network Training*, 2017; the draw is that of Duffield, Lund and Thorup,
*Priority Sampling for Estimation of Arbitrary Subset Sums*, J. ACM 54(6), 2007. In each epoch:

1. **Score.** s is the loss (``score="loss"``) or its root (``"root"``), that of a loss below
   ``floor`` times the mean loss being that of ``floor`` times the mean: so every row is drawn at
   times. Where the mean loss is not above 0, all scores are 1.
2. **Draw.** Of the m rows that were scored k = floor((1 − prune_ratio) · m), at least one: those of
   the smallest u / s, where u in (0, 1] is drawn for the row and epoch. With τ, the (k + 1)-th
   smallest u / s, a row is drawn with a chance of about min(1, s · τ).
3. Rows that were never scored always take part.

**Weights** are 1 (``weights="none"``): the hard rows weigh more, which is what makes this better
than a fresh random share of the same size. ``"unbiased"`` weighs a row 1 / min(1, s · τ), so that
the sum of weighted losses is, in expectation, exactly that of all rows (Duffield et al., 2007).

Where we deviate: the papers draw single rows with replacement, batch by batch; this draws the rows
of an epoch, each at most once, from the losses of the epochs before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.parameters import parameters
from ..dataplane.random import Stream, array_of, keys
from ..dataplane.sketch import Pass, RankSearch, exact_share
from .key_share import AllRows
from .loss_rows import F32, I64, LossRows, Mask
from .loss_search import HistogramSearch, LossPass, NonFinite, saving
from .loss_selector import LossSelector

__all__ = ["Importance", "ImportanceSearch", "ImportanceSettings"]

F64 = npt.NDArray[np.float64]


@parameters
class ImportanceSettings:
    """What importance sampling can be told, its seed left out."""

    prune_ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the scored rows that is left out")
    ] = 0.45
    score: Annotated[
        Literal["loss", "root"],
        Field(description="rows are drawn in proportion to their loss, or to its root"),
    ] = "loss"
    floor: Annotated[
        float, Field(gt=0, le=1, description="share of the mean loss that every row counts as")
    ] = 0.1
    weights: Annotated[
        Literal["none", "unbiased"], Field(description="all 1, or inverse inclusion probabilities")
    ] = "none"
    nonfinite: Annotated[
        NonFinite, Field(description="rows of NaN or infinite loss: an error, or always eligible")
    ] = "fail"


@parameters
class Importance(ImportanceSettings, LossSelector):
    """Parameters of importance sampling by loss."""

    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of the draws")] = 0

    def search(self, epoch: int, rows: int) -> ImportanceSearch:
        """Return the passes over `rows` rows in parts that lead to an epoch's selection."""
        return ImportanceSearch(self, epoch, rows)


@dataclass(frozen=True)
class Draw:
    """The draw of an epoch.

    Attributes
    ----------
    seed, epoch : int
    least : float
        The loss that every row counts as, at least; 0: all rows score 1.
    root : bool
    """

    seed: int
    epoch: int
    least: float
    root: bool

    def scores(self, losses: F32) -> F64:
        """Return the scores of losses, above 0; shape (n,)."""
        if not self.least:
            return np.ones(len(losses))
        found = np.maximum(losses.astype(np.float64), self.least)
        return np.sqrt(found) if self.root else found

    def priorities(self, rows: LossRows) -> F64:
        """Return u / s of rows, which have scores; shape (n,)."""
        drawn = keys(self.seed, Stream.IMPORTANCE, self.epoch, array_of(rows.ids)) >> np.uint64(11)
        return (drawn.astype(np.float64) + 1.0) * 2.0**-53 / self.scores(rows.losses)


@dataclass(frozen=True)
class PriorityPass:
    """Counts digits of the priorities of rows that were scored."""

    draw: Draw
    digits: Pass

    @property
    def shape(self) -> tuple[int, int]:
        return self.digits.shape

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        return self.digits.count(self.draw.priorities(_scored(rows)), into=into)


class ImportanceSearch:
    """The passes of one epoch: the mean, then the (k + 1)-th priority; see `loss_search`.

    Attributes
    ----------
    next : LossPass or None
    """

    def __init__(self, parameters: Importance, epoch: int, rows: int) -> None:
        self._p, self._epoch, self._rows = parameters, epoch, rows
        self._losses = HistogramSearch(AllRows())
        self._ranks: RankSearch | None = None
        self._draw = Draw(parameters.seed, epoch, 0.0, parameters.score == "root")
        self._mean: float | None = None
        self._scored = self._kept = 0
        self.next: LossPass | None = self._losses.next

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""
        if self._ranks is not None:
            self._ranks.narrow(counts)
            self._go_on()
            return
        self._losses.narrow(counts)
        self.next, found = self._losses.next, self._losses.histogram
        if self.next is None and found is not None:
            self._begin(found.mean(), int(found.rows.sum()))

    def _begin(self, mean: Fraction, scored: int) -> None:
        """Begin the search for the priority that tells who is drawn."""
        p = self._p
        share = 1 - Fraction(repr(float(p.prune_ratio)))
        self._scored, self._kept = scored, max(1, exact_share(share, scored))
        self._mean = float(mean)
        least = max(0.0, p.floor * self._mean)
        self._draw = Draw(p.seed, self._epoch, least, p.score == "root")
        if self._kept < scored:
            self._ranks = RankSearch(np.float64, lambda _: [self._kept + 1])
            self._go_on()

    def _go_on(self) -> None:
        assert self._ranks is not None  # for the type checker: it is searched
        digits = self._ranks.next
        self.next = None if digits is None else PriorityPass(self._draw, digits)

    @property
    def choice(self) -> ImportanceChoice:
        threshold, kept = math.inf, self._scored
        if self._ranks is not None:
            (found,) = self._ranks.found
            threshold, kept = float(found.value), found.below
        selected = self._rows - self._scored + kept
        report = {
            "epoch": self._epoch,
            **saving(selected, self._rows),
            "scored": self._scored,
            "mean_loss": self._mean,
        }
        weighted = self._p.weights == "unbiased" and self._ranks is not None
        return ImportanceChoice(self._draw, threshold, weighted, report)


@dataclass(frozen=True)
class ImportanceChoice:
    """Which rows an epoch trains on.

    Attributes
    ----------
    draw : Draw
    threshold : float
        The priorities of rows that are drawn are below it.
    weighted : bool
    report : mapping
    """

    draw: Draw
    threshold: float
    weighted: bool
    report: Mapping[str, Any]

    def keeps(self, rows: LossRows) -> Mask:
        kept = np.ones(len(rows), bool)
        if self.threshold < math.inf:
            kept[rows.scored] = self.draw.priorities(_scored(rows)) < self.threshold
        return kept

    def weights(self, rows: LossRows) -> F32:
        weights = np.ones(len(rows), np.float32)
        chances = np.minimum(1.0, self.draw.scores(_scored(rows).losses) * self.threshold)
        weights[rows.scored] = 1 / chances
        return weights


def _scored(rows: LossRows) -> LossRows:
    """Return the rows that have a loss."""
    if rows.scored.all():
        return rows
    return rows.take(rows.scored)
