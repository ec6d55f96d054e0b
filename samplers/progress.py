"""One live line on a terminal: where a loader stands, and how fast it is."""

from __future__ import annotations

import math
import time

from rich.console import Console

from .state import LoaderState
from .stats import LoaderStats

__all__ = ["LiveLine", "describe"]

_SECONDS = 0.25  # between two looks of the line


def describe(epoch: int, step: int, stats: LoaderStats) -> str:
    """Return what the line says."""
    parts = [
        f"epoch {epoch}, step {step}",
        f"{stats.samples:,} samples",
        f"{stats.samples_per_second:,.0f}/s",
        f"{stats.gb_per_second:.2f} GB/s",
        f"waited {stats.waited:.0%}",
    ]
    if stats.hit_rate is not None:
        parts.append(f"hits {stats.hit_rate:.0%}")
    return " · ".join(parts)


class LiveLine:
    """Shows a loader's numbers on stderr; silent where that is no terminal.

    No thread refreshes it: it is drawn when the caller goes on to another window.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._drawn = -math.inf

    def show(self, state: LoaderState, stats: LoaderStats) -> None:
        """Draw the line, where it is time to."""
        now = time.monotonic()
        if self._console.is_terminal and now - self._drawn >= _SECONDS:
            self._drawn = now
            text = describe(state.epoch, state.next_step, stats)
            width = self._console.width - 1  # a full line would scroll
            self._console.print(text[:width].ljust(width), end="\r", highlight=False)

    def end(self) -> None:
        """Leave the line as it stands; what is printed next begins another."""
        if self._drawn > -math.inf:
            self._console.print()
            self._drawn = -math.inf
