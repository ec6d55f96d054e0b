"""What ranks last said of themselves: where they are, how fast, and how long they wait.

It is for people who look, not for plans: it is kept in memory, the newest of each rank, and gone
when the service stops.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .refusals import RefusedError, int_of

__all__ = ["RankBoard", "RankNote"]

_MOST_RANKS = 4096  # of all runs
_LONGEST = 2.0**62  # seconds


@dataclass(frozen=True)
class RankNote:
    """What a rank said.

    Attributes
    ----------
    rank, world : int
    epoch, step, samples : int
        Where it is; rows that it was given so far.
    seconds, waited_seconds : float
        Of iterating; of these, those that it waited for its loader.
    heard : float
        When, of the monotonic clock.
    """

    rank: int
    world: int
    epoch: int
    step: int
    samples: int
    seconds: float
    waited_seconds: float
    heard: float

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def waited(self) -> float:
        """Share of the time."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0


class RankBoard:
    """The newest note of each rank, by run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: dict[tuple[str, int], RankNote] = {}

    def take(self, run: str, rank: int, body: Mapping[str, Any]) -> None:
        """Take a note; `RefusedError` where it is none."""
        world = int_of(body, "world", 1)
        if rank >= world:
            raise RefusedError(400, f"There is no rank {rank} of {world}.")
        note = RankNote(
            rank,
            world,
            int_of(body, "epoch", 0),
            int_of(body, "step", 0),
            int_of(body, "samples", 0),
            _seconds(body, "seconds"),
            _seconds(body, "waited_seconds"),
            heard=time.monotonic(),
        )
        with self._lock:
            self._notes.pop((run, rank), None)
            while len(self._notes) >= _MOST_RANKS:
                del self._notes[next(iter(self._notes))]  # the one that was silent for longest
            self._notes[run, rank] = note

    def of(self, run: str) -> list[RankNote]:
        """Return the notes of a run's ranks, of the training that was heard of last."""
        with self._lock:
            found = [note for (name, _), note in self._notes.items() if name == run]
        world = max(found, key=lambda note: note.heard).world if found else 0
        return sorted((n for n in found if n.world == world), key=lambda note: note.rank)


def _seconds(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LONGEST:
        raise RefusedError(400, f"'{name}' must be a number from 0 on.")
    return float(value)
