"""The clusters of a training's epochs, made of its memory bank; see `ngame`.

What holds in an epoch is decided by `NGAME.refreshes`. Where the next epoch makes clusters anew and
the lag is 1, they are begun when this one is set, by another process of rank 0 (`refresh`). All
ranks are told what it finds when they need it: when that epoch is set, or a state is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ..clustering.balanced import BalancedKMeans
from ..clustering.ngame import NGAME
from ..dataplane.errors import SelectionError
from .exchange import on_several_ranks
from .memory_bank import MemoryBank
from .refresh import Refresh

__all__ = ["Made", "OnlineClusters"]

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Made:
    """Clusters.

    Attributes
    ----------
    epoch : int
        The epoch that they were made for; the ones after it go on with them.
    bank_of : int
        The epoch at whose beginning the bank held what they are made of.
    labels : int32, shape (n,)
    """

    epoch: int
    bank_of: int
    labels: I32


@dataclass(frozen=True)
class _Begun:
    """Clusters that are being made; by rank 0, the others have no `work`."""

    epoch: int
    bank_of: int
    work: Refresh | None


class OnlineClusters:
    """The clusters of an epoch, and those that are made for the next one.

    Parameters
    ----------
    method : NGAME
    rows : int
    lag : {0, 1}

    Attributes
    ----------
    current : Made or None
        Of the epoch that is set; None where its batches are random ones.
    """

    def __init__(self, method: NGAME, rows: int, lag: int) -> None:
        self.current: Made | None = None
        self._method, self._rows, self._lag = method, rows, lag
        self._coming: _Begun | Made | None = None

    def advance(self, epoch: int, bank: MemoryBank) -> None:
        """Set an epoch, and begin the next one's clusters; a collective.

        Parameters
        ----------
        epoch : int
        bank : MemoryBank
            The same on every rank.
        """
        current = self._due(epoch, bank)
        coming = self._begun(epoch + 1, bank)
        self._forget()
        self.current, self._coming = current, coming

    def _due(self, epoch: int, bank: MemoryBank) -> Made | None:
        if self._method.size_at(epoch) == 1:
            return None
        made_for = next(e for e in range(epoch, -1, -1) if self._method.refreshes(e))
        if self.current is not None and self.current.epoch == made_for:
            return self.current
        if self._coming is not None and self._coming.epoch == made_for:
            return self._made()
        self._check(made_for, bank)
        model = self._model(made_for)
        return Made(made_for, epoch, _of_first_rank(lambda: model.labels(bank.values)))

    def _begun(self, epoch: int, bank: MemoryBank) -> _Begun | None:
        if not self._lag or not self._method.refreshes(epoch):
            return None
        self._check(epoch, bank)
        work = None
        if not on_several_ranks() or dist.get_rank() == 0:
            purpose = f"the clusters of epoch {epoch}"
            work = Refresh(self._model(epoch), bank.values, purpose)
        return _Begun(epoch, epoch - 1, work)

    def _made(self) -> Made | None:
        """Wait for the next epoch's clusters, where they were begun; a collective."""
        coming = self._coming
        if isinstance(coming, _Begun):
            labels = _of_first_rank(None if coming.work is None else coming.work.labels)
            self._coming = coming = Made(coming.epoch, coming.bank_of, labels)
        return coming

    def _forget(self) -> None:
        if isinstance(self._coming, _Begun) and self._coming.work is not None:
            self._coming.work.close()

    def _model(self, epoch: int) -> BalancedKMeans:
        """Return what makes the clusters that `NGAME.cluster` does."""
        deal = self._method.deal(self._rows, self._method.batch_size, epoch)
        return BalancedKMeans(k=deal.clusters, seed=self._method.seed, metric="cosine")

    def _check(self, epoch: int, bank: MemoryBank) -> None:
        if not bank.written.any():
            raise SelectionError(
                f"The clusters of epoch {epoch} are to be made, and no embedding was written so "
                f"far. Call `update` after each batch, and let the schedule begin at epoch "
                f"{1 + self._lag} or later, or `update` all rows before the first epoch is set."
            )

    def state(self) -> dict[str, Any]:
        """Return both, as `load` takes them; a collective."""
        return {"clusters": _told(self.current), "next_clusters": _told(self._made())}

    def load(self, state: Mapping[str, Any]) -> None:
        """Hold what `state` returned."""
        self._forget()
        self.current, self._coming = _read(state["clusters"]), _read(state["next_clusters"])


def _of_first_rank(make: Callable[[], I32] | None) -> I32:
    """Return what rank 0 makes, or raise what it raises, on all ranks; a collective."""
    if not on_several_ranks():
        assert make is not None  # for the type checker: this rank is the first one
        return make()
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        assert make is not None
        try:
            box[0] = make()
        except Exception as error:
            box[0] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    labels: I32 = box[0]
    return labels


def _told(made: Made | None) -> dict[str, Any] | None:
    return None if made is None else {**vars(made), "labels": torch.from_numpy(made.labels.copy())}


def _read(told: Mapping[str, Any] | None) -> Made | None:
    return None if told is None else Made(**{**told, "labels": told["labels"].numpy().copy()})
