"""Columns that are on their way to a device."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .cpu import Column

__all__ = ["Arriving"]


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
