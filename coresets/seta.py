"""SeTa: drop redundant rows at random, group the rest by loss, and slide a window over the groups.

Zhou, Zhang and Zhang, *Scale Efficient Training for Large Datasets*, CVPR 2025; the schedule is
that of the authors' code. In epoch e (from 0) of E:

1. **Keep.** Exactly n = floor((1 − prune_ratio) · N) rows, at least one, drawn at random.
2. **Anneal.** In the last E − floor(delta · E) epochs these are the selection (``anneal="keep"``),
   or all rows (``"full"``).
3. **Group.** The kept rows fall into groups by loss, easy first, by exact 1-D k-means
   (`loss_groups`).
4. **Window.** In epoch 0 all groups; then w = round(groups · window_scale) neighbouring groups,
   half to even, at least one. With G groups the window of epoch e starts at e mod (G − w + 1): it
   drops the easiest group first, and comes back to it (``schedule="cyclic"``, as the code does).
   ``"monotone"`` goes from the easiest to the hardest groups once.
5. Rows that were never scored are in no group and always take part.

**Weights** are 1 (``weights="none"``, as the paper), or inverse inclusion probabilities
(``"unbiased"``): N/n times one over the share of the cycle's windows that hold the row's group, so
that with losses that stay as they are, the sum of weighted losses over one cycle is, in
expectation, that of all rows.

Where we deviate from the authors' code:

- It draws from the global generators of numpy and torch; we by keys of the row ids.
- It groups with k-means of a random start; we find the best groups. Rows of equal loss are never
  parted: where all are equal there is one group, and its window is all of it.
- Where fewer different losses than groups exist, G is their number, and w = round(G ·
  window_scale), at least 1. The code fails or trains on nothing.
- It gives rows that were never scored a loss of 3.0, and groups them by it.
- ``prune_ratio`` above 0.9 is silently 0.9 there; here it is what it says, and 1 is refused.
- n is exact: 0.2 of 1,000,000 rows is 200,000, where the code's float gives 199,999.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from ..dataplane.errors import ParameterError
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream
from ..dataplane.sketch import exact_share
from .key_share import KeepSearch, KeyShare
from .loss_groups import LossGroups, groups_1d
from .loss_rows import F32, I64, LossRows, Mask
from .loss_search import BothPasses, HistogramSearch, LossPass, NonFinite
from .loss_selector import LossSelector, check_epoch

__all__ = ["SeTa", "SeTaSearch", "SeTaSettings"]

Schedule = Literal["cyclic", "monotone"]


@parameters
class SeTaSettings:
    """What SeTa can be told, the training's length and seed left out."""

    groups: Annotated[
        int,
        Field(
            ge=2,
            le=256,
            description="groups of rows by loss",
            json_schema_extra={"advice": "One group is a random share of the rows: use random."},
        ),
    ] = 5
    window_scale: Annotated[
        float, Field(gt=0, le=1, description="share of the groups that an epoch trains on")
    ] = 0.9
    prune_ratio: Annotated[
        float, Field(ge=0, lt=1, description="share of the rows that is dropped at random")
    ] = 0.1
    delta: Annotated[
        float, Field(ge=0, le=1, description="share of the epochs that is pruned; then annealing")
    ] = 0.875
    anneal: Annotated[
        Literal["keep", "full"], Field(description="last epochs: the kept share, or all rows")
    ] = "keep"
    schedule: Annotated[
        Schedule, Field(description="the window comes back to the easy groups, or goes by once")
    ] = "cyclic"
    weights: Annotated[
        Literal["none", "unbiased"],
        Field(description="all 1, or inverse inclusion probabilities over a cycle"),
    ] = "none"
    nonfinite: Annotated[
        NonFinite, Field(description="rows of NaN or infinite loss: an error, or always eligible")
    ] = "fail"

    def __post_init__(self) -> None:
        if window_size(self.groups, self.window_scale) < 1:
            raise ParameterError(
                f"SeTa: round(groups · window_scale) must be at least 1. Got {self.groups} · "
                f"{self.window_scale} instead."
            )


@parameters
class SeTa(SeTaSettings, LossSelector):
    """Parameters of SeTa."""

    epochs: Annotated[int, Field(ge=1, description="epochs of the whole training")] = 40
    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of the draws")] = 0

    @property
    def pruned_epochs(self) -> int:
        """Epochs before the annealing: floor(delta · epochs)."""
        return exact_share(self.delta, self.epochs)

    def search(self, epoch: int, rows: int) -> SeTaSearch:
        """Return the passes over `rows` rows in parts that lead to an epoch's selection."""
        check_epoch(epoch, self.epochs)
        return SeTaSearch(self, epoch, rows)


def window_size(groups: int, scale: float) -> int:
    """Return round(groups · scale), half to even, from the scale's decimal text."""
    return round(Fraction(repr(float(scale))) * groups)


def window_starts(groups: int, width: int, schedule: Schedule, pruned_epochs: int) -> list[int]:
    """Return where the window starts in the epochs 1, 2, …; a cyclic one goes round for ever."""
    places = groups - width + 1
    if schedule == "cyclic":
        return [e % places for e in range(1, places + 1)]
    epochs = max(1, pruned_epochs - 1)
    return [e * places // epochs for e in range(epochs)]


class SeTaSearch:
    """The passes of one epoch; see `loss_search`.

    Attributes
    ----------
    next : LossPass or None
    """

    def __init__(self, parameters: SeTa, epoch: int, rows: int) -> None:
        self._p, self._epoch, self._rows = parameters, epoch, rows
        self._annealing = epoch >= parameters.pruned_epochs
        self._keep = self._keep_search()
        self._histogram: HistogramSearch | None = None
        if not self._annealing and epoch > 0:
            self._histogram = HistogramSearch(self._keep.share)
        self._both: BothPasses | None = None
        self.next: LossPass | None = self._first_pass()

    def _keep_search(self) -> KeepSearch:
        p = self._p
        stream = Stream.ANNEAL_KEEP if self._annealing else Stream.SETA_KEEP
        ratio = Fraction(repr(float(p.prune_ratio)))
        if self._annealing and p.anneal == "full":
            ratio = Fraction(0)
        kept = max(1, exact_share(1 - ratio, self._rows))
        search = KeepSearch(KeyShare(p.seed, stream, self._epoch), lambda _: kept, self._rows)
        search.rows, search.kept = self._rows, kept
        if kept == self._rows:
            search.next = None
        return search

    def _first_pass(self) -> LossPass | None:
        """Return the pass that finds the share and between which losses the groups lie."""
        keep, histogram = self._keep.next, self._histogram
        if histogram is None or histogram.next is None:
            return keep
        if keep is None:
            return histogram.next
        self._both = BothPasses(keep, histogram.next)
        return self._both

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""
        if self._both is not None:
            keep, losses = self._both.parted(counts)
            self._both = None
            self._keep.narrow(keep)
            assert self._histogram is not None  # for the type checker: it was the other one
            self._histogram.narrow(losses)
        elif self._keep.next is not None:
            self._keep.narrow(counts)
        elif self._histogram is not None:
            self._histogram.narrow(counts)
        self.next = self._keep.next
        if self.next is None and self._histogram is not None:
            self._histogram.among = self._keep.share
            self.next = self._histogram.next

    @property
    def choice(self) -> SeTaChoice:
        found = None if self._histogram is None else self._histogram.histogram
        groups = None if found is None else groups_1d(found, self._p.groups)
        return _choice(self._p, self._epoch, self._keep, groups)


@dataclass(frozen=True)
class SeTaChoice:
    """Which rows an epoch trains on.

    Attributes
    ----------
    share : KeyShare
        The rows that were kept at random.
    groups : LossGroups or None
        Of the kept rows that were scored; None: no window.
    window : tuple of int
        First group that takes part, and the one after the last.
    group_weights : tuple of float, or None
        Of each group's rows, and last of the rows that were never scored.
    report : mapping
    """

    share: KeyShare
    groups: LossGroups | None
    window: tuple[int, int]
    group_weights: tuple[float, ...] | None
    report: Mapping[str, Any]

    @property
    def weighted(self) -> bool:
        return self.group_weights is not None

    def keeps(self, rows: LossRows) -> Mask:
        kept = self.share.mask(rows)
        if self.groups is not None:  # NaN is on neither side: such rows take part
            low, high = self._limits
            if low > -np.inf:
                kept &= ~(rows.losses < low)
            if high < np.inf:
                kept &= ~(rows.losses >= high)
        return kept

    @cached_property
    def _limits(self) -> tuple[np.float32, np.float32]:
        assert self.groups is not None  # for the type checker; the caller looked
        return self.groups.limits(*self.window)

    def weights(self, rows: LossRows) -> F32:
        assert self.group_weights is not None  # for the type checker; the caller looked
        of_group: F32 = np.array(self.group_weights, np.float32)
        label = np.full(len(rows), len(of_group) - 1)
        if self.groups is not None:
            label[rows.scored] = self.groups.label(rows.losses[rows.scored])
        weights: F32 = of_group[label]
        return weights


def _choice(p: SeTa, epoch: int, keep: KeepSearch, groups: LossGroups | None) -> SeTaChoice:
    count = 0 if groups is None else len(groups)
    window, shares = (0, count), [1.0] * count
    if groups is not None:
        width = max(1, window_size(count, p.window_scale))
        starts = window_starts(count, width, p.schedule, p.pruned_epochs)
        start = starts[(epoch - 1) % len(starts)]
        window = start, start + width
        shares = [sum(s <= g < s + width for s in starts) / len(starts) for g in range(count)]
    weights = None
    if p.weights == "unbiased":
        of_keep = keep.rows / keep.kept
        weights = (*(of_keep / share if share else 0.0 for share in shares), of_keep)
    return SeTaChoice(keep.share, groups, window, weights, _report(p, epoch, keep, groups, window))


def _report(
    p: SeTa, epoch: int, keep: KeepSearch, groups: LossGroups | None, window: tuple[int, int]
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "epoch": epoch,
        "phase": "anneal" if epoch >= p.pruned_epochs else "prune",
        "rows": keep.rows,
        "kept_at_random": keep.kept,
        "selected": keep.kept,
    }
    if groups is not None:
        inside = int(groups.rows[window[0] : window[1]].sum())
        unscored = keep.kept - int(groups.rows.sum())
        report |= {
            "group_rows": groups.rows.tolist(),
            "group_mean_loss": groups.means.tolist(),
            "window": list(window),
            "never_scored": unscored,
            "selected": inside + unscored,
        }
    report["saved"] = 1 - report["selected"] / keep.rows
    return report
