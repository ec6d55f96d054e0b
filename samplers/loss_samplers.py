"""SeTa, InfoBatch and the other methods by loss as batch samplers for a plain `DataLoader`.

How they are used, and what they promise on several ranks and when a training is resumed, stands in
`loss_sampler`; the methods in `coresets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..coresets.hard_batches import HardBatches
from ..coresets.importance import Importance
from ..coresets.infobatch import InfoBatch
from ..coresets.loss_search import saving
from ..coresets.random_share import RandomShare
from ..coresets.seta import SeTa
from ..dataplane.bitmap import Bitmap
from ..dataplane.plan import BatchPlan, Selection
from ..dataplane.random import checked_seed
from .loss_sampler import Chosen, LossSampler
from .ranks import OnUneven

__all__ = [
    "HardBatchSampler",
    "ImportanceSampler",
    "InfoBatchSampler",
    "RandomShareSampler",
    "SeTaSampler",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class _SelectionSampler(LossSampler):
    """Trains on a shuffle of the rows that a method selects."""

    _kind: ClassVar[Any]

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        on_uneven: OnUneven = "pad",
        **settings: Any,
    ) -> None:
        method = self._kind(**settings)
        super().__init__(
            rows,
            method,
            batch_size=batch_size,
            seed=method.seed,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            on_uneven=on_uneven,
        )

    def _choose(self, epoch: int, losses: F32, scored: Mask) -> Chosen:
        found: Selection = self.method.plan(losses, epoch=epoch, scored=scored)
        return Chosen(epoch, Bitmap.of(self.rows, [found.rows]), found.weights, found.report)


class SeTaSampler(_SelectionSampler):
    """SeTa: drops redundant rows at random, slides a window over groups of loss.

    Parameters
    ----------
    rows, batch_size, rank, world_size, drop_last, on_uneven
        See `LossSampler`.
    **settings
        Of `SeTa`: ``epochs=40``, ``groups=5``, ``seed=0``, …
    """

    _kind = SeTa


class InfoBatchSampler(_SelectionSampler):
    """InfoBatch: drops a share of the easy rows, weighs the rest of these up.

    The loss of a step is the mean over its rows of weight · loss: ``sampler.weights(rows)``.

    Parameters
    ----------
    rows, batch_size, rank, world_size, drop_last, on_uneven
        See `LossSampler`.
    **settings
        Of `InfoBatch`: ``epochs=40``, ``prune_ratio=0.5``, ``seed=0``, …
    """

    _kind = InfoBatch


class ImportanceSampler(_SelectionSampler):
    """Importance sampling: draws rows the more often, the larger their loss.

    Parameters
    ----------
    rows, batch_size, rank, world_size, drop_last, on_uneven
        See `LossSampler`.
    **settings
        Of `Importance`: ``prune_ratio=0.45``, ``score="loss"``, ``seed=0``, …
    """

    _kind = Importance


class RandomShareSampler(_SelectionSampler):
    """A random share of the rows: what the others are held against. It needs no losses.

    Parameters
    ----------
    rows, batch_size, rank, world_size, drop_last, on_uneven
        See `LossSampler`.
    **settings
        Of `RandomShare`: ``prune_ratio=0.5``, ``fresh=True``, ``seed=0``.
    """

    _kind = RandomShare


class HardBatchSampler(LossSampler):
    """Hard batches: trains on the batches of a shuffle, or their rows, of the highest loss.

    Parameters
    ----------
    rows, batch_size, rank, world_size, drop_last, on_uneven
        See `LossSampler`.
    seed : int
        Of the shuffle.
    **settings
        Of `HardBatches`: ``delta=0.5``, ``level="batches"``, ``refresh_every=5``, …
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        on_uneven: OnUneven = "pad",
        **settings: Any,
    ) -> None:
        super().__init__(
            rows,
            HardBatches(**settings),
            batch_size=batch_size,
            seed=checked_seed(seed),
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
            on_uneven=on_uneven,
        )
        self._kept: tuple[Chosen, I64] | None = None

    def _choose(self, epoch: int, losses: F32, scored: Mask) -> Chosen:
        size = self.batch_size
        used = self.rows // size * size if self._drop_last else self.rows
        order = self._permutation(self.rows, epoch)[:used]
        plan = BatchPlan.cut(order, size)
        at = order.view(np.int64)
        reduced = self.method.reduce(plan, losses[at], epoch, scored=scored[at])
        report = {"epoch": epoch, **saving(len(reduced.rows), self.rows)}
        return Chosen(epoch, Bitmap.of(self.rows, [reduced.rows]), None, report)

    def _steps(self, chosen: Chosen) -> int:
        return len(self._batches(chosen))

    def _batches(self, chosen: Chosen) -> I64:
        """Return which batches of the shuffle hold rows that are trained on."""
        if self._kept is None or self._kept[0] is not chosen:
            kept = [
                start // self.batch_size
                + np.flatnonzero(
                    np.logical_or.reduceat(inside, np.arange(0, len(inside), self.batch_size))
                )
                for start, _, inside in self._chunks(chosen, 0)
            ]
            self._kept = chosen, np.concatenate(kept)
        return self._kept[1]

    def _chunks(self, chosen: Chosen, first: int) -> Iterator[tuple[int, I64, Mask]]:
        """Yield (position, rows, which are trained on) of the shuffle, whole batches at a time."""
        order = self._permutation(self.rows, chosen.epoch)
        step = max(1, (1 << 20) // self.batch_size) * self.batch_size
        for start in range(first * self.batch_size, self.rows, step):
            rows = order[start : start + step]
            yield start, rows.view(np.int64), chosen.rows.contains(rows)

    def _rows_of(self, chosen: Chosen, first: int) -> Iterator[tuple[I64, I64]]:
        batches = self._batches(chosen)
        if first >= len(batches):
            return
        for _, rows, inside in self._chunks(chosen, int(batches[first])):
            starts = np.arange(0, len(rows), self.batch_size)
            sizes = np.add.reduceat(inside, starts, dtype=np.int64)
            yield rows[inside], sizes[sizes > 0]
