"""The plan's batches as lists of indices, for any map-style dataset and a plain DataLoader.

    >>> sampler = ManifestBatchSampler("plan/")
    >>> loader = DataLoader(my_dataset, batch_sampler=sampler, num_workers=2)
    >>> for epoch in range(3):
    ...     sampler.set_epoch(epoch)
    ...     for step, batch in enumerate(loader):
    ...         ...
    ...         state = sampler.state_after(step)

A DataLoader with workers draws batches ahead of the training loop, so what the sampler has handed
out is more than what was trained on; `state_after` asks the plan, not the sampler. An index list
carries no weights, which is why padding is refused here, and weights are warned of.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from ..dataplane.checks import require_one_of
from ..dataplane.dataset import DatasetLike
from ..dataplane.errors import ParameterError
from ..dataplane.manifest import Manifest
from ..dataplane.snapshot import row_ids_to_int64
from .pieces import Pieces
from .ranks import OnUneven, resolve_ranks
from .walk import Cursor, Epochs, PlanLike, PlanWalk
from .walked import Walked

__all__ = ["ManifestBatchSampler"]

_AT_ONCE = 64  # batches


class ManifestBatchSampler(Walked, Sampler[list[int]]):
    """Yields one list of indices a batch of this rank.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    dataset : path, URI, list, mapping or Dataset, optional
        Where the planned dataset is: checked to be there unchanged. None: not checked.
    epochs : int or iterable of int, optional
        Of one iteration. None: all of the plan; E: those below E; an iterable: these, in order.
    rank, world_size : int, optional
        Those of torch.distributed where it runs, else 0 of 1.
    index : {'position', 'row_id'}
        ``'position'``: the row's rank among the snapshot's row ids, 0 … rows−1, which is its place
        in the files read one after the other; ``'row_id'``: the row id itself, which differs from
        the position once files were replaced.
    on_uneven : 'error'
        Padding needs rows of weight 0, which indices cannot say; `ManifestLoader` has it.
    storage_options : mapping, optional
        Options of the filesystem of plan and dataset, for URIs.
    verify : {'header', 'all'}
        ``'all'`` checks every byte of the plan before its first batch.

    Raises
    ------
    WorldSizeError
        Where the plan cannot be dealt to that many ranks.
    DatasetChangedError, ManifestCorruptError, ManifestError, ParameterError

    Warns
    -----
    UserWarning
        Where the plan has weights.
    """

    def __init__(
        self,
        plan: PlanLike,
        dataset: DatasetLike | None = None,
        *,
        epochs: Epochs = None,
        rank: int | None = None,
        world_size: int | None = None,
        index: Literal["position", "row_id"] = "position",
        on_uneven: OnUneven = "error",
        storage_options: Mapping[str, Any] | None = None,
        verify: Literal["header", "all"] = "header",
    ) -> None:
        require_one_of("index", index, ("position", "row_id"))
        if on_uneven == "pad":
            raise ParameterError(
                "ManifestBatchSampler cannot pad: a padded row has weight 0, and a list of indices "
                "carries no weights. Use ManifestLoader, or a world size that fits the plan."
            )
        require_one_of("on_uneven", on_uneven, ("error",))
        super().__init__()
        self._index = index
        self._dataset = dataset
        self._storage_options = storage_options
        self._admitted: set[str] = set()
        ranks = resolve_ranks(rank, world_size)
        self._walk = PlanWalk(
            plan, epochs=epochs, ranks=ranks, verify=verify, storage_options=storage_options
        )
        for manifest in self._walk.members():
            self._admit(manifest)

    def _admit(self, manifest: Manifest) -> None:
        """Check the dataset that a manifest planned; say that weights are lost."""
        if manifest.manifest_id in self._admitted:
            return
        if self._dataset is not None:
            manifest.open_dataset(self._dataset, storage_options=self._storage_options)
        if manifest.weight_semantics is not None and not self._admitted:
            warnings.warn(
                f"The plan {manifest.path} has weights, and lists of indices carry none: each row "
                "will count the same. Use ManifestLoader to train with the weights.",
                stacklevel=3,
            )
        self._admitted.add(manifest.manifest_id)

    def __iter__(self) -> Iterator[list[int]]:
        return self._indices(self._walk.begin())

    def _indices(self, cursor: Cursor) -> Iterator[list[int]]:
        windows = self._walk.windows(cursor, lambda _, __: _AT_ONCE, threading.Event())
        for pieces in itertools.chain.from_iterable(windows):
            self._admit(pieces.manifest)
            indices, start = self._indices_of(pieces), 0
            for index, size in enumerate(pieces.sizes):
                cursor.pieces, cursor.index = pieces, index
                yield indices[start : start + size].tolist()
                start += size

    def _indices_of(self, pieces: Pieces) -> npt.NDArray[np.int64]:
        if self._index == "position":
            return pieces.manifest.snapshot.positions(pieces.ids)
        return row_ids_to_int64(pieces.ids)

    def state_dict(self) -> dict[str, Any]:
        """Return where the sampler stands: exact without workers, ahead of the loop with them."""
        return self._walk.state().to_json()

    def state_after(self, step: int, epoch: int | None = None) -> dict[str, Any]:
        """Return the state of a training loop that has finished a step.

        Parameters
        ----------
        step : int
            The plan's step number in its epoch.
        epoch : int, optional
            May be left out where an iteration covers one epoch (`set_epoch`).
        """
        if epoch is None:
            epoch = self._walk.only_epoch()
        return self._walk.state_after(step, epoch).to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on at a state; any rank and world size may load it.

        Raises
        ------
        ResumeMismatchError
            Where it is no state, or none of this plan.
        """
        self._walk.load(state)
