"""One way through a plan's seeds: what is asked of workers, what is started, and what is delivered.

Batches come in the order of the plan. What stands before an error is delivered before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.utils.data
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ...dataplane.errors import BatchloomError
from ..walk import Cursor
from .features import Gathering
from .planned import PlannedBatch, sample_of

if TYPE_CHECKING:
    from .loader import GraphLoader

__all__ = ["Iteration", "Samples", "Tasks", "shut_down"]


class Iteration(Iterator[Any]):
    """One way through the plan; its cursor says where the caller stands."""

    def __init__(self, loader: GraphLoader, cursor: Cursor) -> None:
        self._loader, self._cursor = loader, cursor
        self._asked: deque[PlannedBatch] = deque()  # of whoever samples, and not back yet
        self._failed: list[Exception] = []  # raised when what stands before it is delivered
        self._started: deque[tuple[PlannedBatch, Any, Gathering]] = deque()
        self._ahead = 0 if loader.features.device.type == "cpu" else 1
        self._ended = self._replaced = False
        planned = noted(loader.seeds.batches(cursor), self._asked, self._failed)
        self._samples: Iterator[Any] | None = loader.samples(planned)

    def __next__(self) -> Any:
        if self._replaced:
            raise BatchloomError(
                "This iteration was ended by a newer iter() or load_state_dict() of its loader. "
                "Make a second loader to read a plan twice at once."
            )
        while len(self._started) <= self._ahead and self._start():
            pass
        if not self._started:
            self.close()
            if self._failed:
                raise self._failed.pop()
            raise StopIteration
        planned, data, gathering = self._started.popleft()
        batch = self._loader.finish(data, gathering)
        self._cursor.pieces, self._cursor.index = planned.window.pieces, planned.index
        return batch

    def _start(self) -> bool:
        """Start the next batch; False where there is none, or it failed."""
        if self._samples is None:
            return False
        try:
            sample = next(self._samples)
            planned = self._asked.popleft()
            self._started.append((planned, *self._loader.start(planned, sample)))
        except StopIteration:
            self._samples = None
            return False
        except Exception as error:
            self._loader.let_go(self._samples)  # its traceback would keep them
            self._samples = None
            self._failed.append(error)
            return False
        return True

    def close(self) -> None:
        """Stop sampling; the iteration is over."""
        self._loader.let_go(self._samples)
        self._ended, self._samples = True, None
        self._started.clear()
        self._asked.clear()

    def replace(self) -> None:
        """Close, and let a caller who goes on all the same know."""
        self._replaced = not self._ended
        self.close()


def shut_down(samples: Any) -> None:
    """End the workers that a DataLoader's iterator has."""
    if isinstance(samples, _MultiProcessingDataLoaderIter):
        # As PyG does. Left to the garbage collector, the queues may be gone before their workers.
        samples.__del__()


def noted(
    batches: Iterator[PlannedBatch], asked: deque[PlannedBatch], failed: list[Exception]
) -> Iterator[PlannedBatch]:
    """Pass batches on, and note them; whoever holds this does not hold the iteration."""
    try:
        for planned in batches:
            asked.append(planned)
            yield planned
    except Exception as error:  # of the plan
        failed.append(error)


class Tasks:
    """What workers are to sample; a DataLoader takes it as its sampler."""

    def __init__(self) -> None:
        self.next: Iterator[PlannedBatch] = iter(())

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return ((planned.nodes, planned.key) for planned in self.next)


class Samples(torch.utils.data.Dataset[Any]):
    """What workers hold: the sampler, and no features."""

    def __init__(self, sampler: Any, kind: str | None) -> None:
        self._sampler, self._kind = sampler, kind

    def __getitem__(self, task: tuple[Any, int]) -> Any:
        return sample_of(self._sampler, *task, self._kind)
