"""The loader as a torch dataset, where a framework insists on a `DataLoader` around one.

    >>> dataset = ManifestDataset("plan/", "data/", columns=["x", "y"])
    >>> loader = StatefulDataLoader(dataset, batch_size=None, collate_fn=as_is)

``batch_size=None``: its items are batches already. ``collate_fn=as_is``: torch would make a plain
dict of a `Batch`. No worker processes: the loader has threads of its own, and `transform_workers`;
a plan that several processes read would be delivered several times, and each would know only its
own place in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from ..dataplane.dataset import DatasetLike
from ..dataplane.errors import ParameterError
from .loader import ManifestLoader
from .row_source import RowSource
from .walk import PlanLike

__all__ = ["ManifestDataset", "as_is"]

T = TypeVar("T")


def as_is(batch: T) -> T:
    """Return what it is given; the ``collate_fn`` of a `DataLoader` over batches."""
    return batch


class ManifestDataset(IterableDataset[Any]):
    """A `ManifestLoader` that is an ``IterableDataset``.

    Parameters
    ----------
    plan, dataset, **options
        Of `ManifestLoader`.

    Attributes
    ----------
    loader : ManifestLoader

    Notes
    -----
    ``state_dict`` and ``load_state_dict`` are the loader's, so torchdata's `StatefulDataLoader`
    saves and restores it at every step; a plain `DataLoader` leaves that to the caller.
    """

    def __init__(self, plan: PlanLike, dataset: DatasetLike | RowSource, **options: Any) -> None:
        super().__init__()
        self.loader = ManifestLoader(plan, dataset, **options)

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise ParameterError(
                "A ManifestDataset cannot be read by a DataLoader's worker processes: each of them "
                "would deliver the whole plan. Pass num_workers=0, and transform_threads or "
                "transform_workers to the ManifestDataset."
            )
        return iter(self.loader)

    def __len__(self) -> int:
        """Return the batches of a whole iteration."""
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Let iterations cover this epoch alone."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller stands."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on at a state."""
        self.loader.load_state_dict(state)
