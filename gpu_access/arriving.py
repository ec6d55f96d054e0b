"""Columns that are on their way to a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .cpu import Column

__all__ = ["Arriving", "under_way"]


class Arriving(dict[str, Column]):
    """Columns whose rows a stream is still writing; call `wait` before using them.

    Parameters
    ----------
    columns : mapping of str → Column
    event : torch.cuda.Event, optional
        Recorded when all of them are there; None: they are.
    """

    def __init__(self, columns: Mapping[str, Column], event: torch.cuda.Event | None) -> None:
        super().__init__(columns)
        self._event = event

    def wait(self) -> None:
        """Let the caller's stream wait for the columns; the caller itself does not."""
        if self._event is None:
            return
        for column in self.values():
            if isinstance(column, torch.Tensor) and column.device.type == "cuda":
                stream = torch.cuda.current_stream(column.device)
                stream.wait_event(self._event)
                column.record_stream(stream)  # it was allocated for another one


def under_way(value: Any, device: torch.device) -> Arriving | None:
    """Return the tensors in a value, which the current stream has begun to move to a device.

    A copy from memory that is not pinned may still be going on when its call returns, and a stream
    other than the caller's would not wait for it. None where there is nothing to wait for.
    """
    if device.type != "cuda":
        return None
    tensors = {str(i): t for i, t in enumerate(_tensors_in(value))}
    if not tensors:
        return None
    return Arriving(tensors, torch.cuda.current_stream(device).record_event())


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors_in(inner)
    elif hasattr(value, "__dataclass_fields__"):  # what `collate` makes
        yield from _tensors_in([getattr(value, name) for name in value.__dataclass_fields__])
