"""Opening a signal store from a training loop, on one rank or all of them."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from ..dataplane.signals import SignalStore
from .exchange import on_several_ranks

__all__ = ["open_signal_store"]


def open_signal_store(path: str | os.PathLike[str], dataset: Any, **options: Any) -> SignalStore:
    """Open a store that every rank appends its own rows to.

    Rank 0 makes it and draws the number of this start of the training; the others are told it: a
    collective where torch.distributed runs.

    Parameters
    ----------
    path : path or URI
    dataset : Snapshot, Dataset, Manifest or Series
        What the row ids belong to.
    **options
        Of `SignalStore.for_writing`.

    Examples
    --------
    >>> with open_signal_store("signals/", open_plan("plan/")) as store:
    ...     for batch in loader:
    ...         losses = ...
    ...         store.append(
    ...             batch.rows, epoch=batch.epoch, step=batch.step, loss=losses, pad=batch.pad
    ...         )
    """
    if not on_several_ranks():
        return SignalStore.for_writing(path, dataset, **options)
    rank = dist.get_rank()
    told: list[Any] = [None, None]
    store = None
    if rank == 0:
        try:
            store = SignalStore.for_writing(path, dataset, writer=0, **options)
            told = [store.attempt, None]
        except Exception as error:  # the others must not wait for it
            told = [None, error]
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    if store is None:
        store = SignalStore.for_writing(path, dataset, writer=rank, attempt=told[0], **options)
    return store
