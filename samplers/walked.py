"""What everything that goes through a plan can be asked; see `walk`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Protocol

from .walk import PlanWalk

__all__ = ["Resumable", "Walked"]


class Walked:
    """One rank's way through a plan."""

    _walk: PlanWalk

    @property
    def rank(self) -> int:
        return self._walk.ranks.rank

    @property
    def world_size(self) -> int:
        return self._walk.ranks.world_size

    @property
    def epochs(self) -> tuple[int, ...]:
        return self._walk.epochs

    def __len__(self) -> int:
        """Return the batches of a whole iteration, the same on every rank."""
        return self._walk.batches()

    def set_epoch(self, epoch: int) -> None:
        """Let iterations cover this epoch alone, as torch's samplers have it; see `walk`."""
        self._walk.set_epoch(epoch)


class _Live(Protocol):
    def replace(self) -> None:
        """End, and let a caller who goes on all the same know."""


class Resumable(Walked):
    """A loader: one iteration is live at a time, and its state says where the caller stands."""

    # Weak: an iteration that the caller dropped must be collected, which ends what it started.
    _live: weakref.ref[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller stands, as JSON values; see `state`.

        The same for every loader of a plan, whatever it makes of the plan's rows.
        """
        return self._walk.state().to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on at a state; any rank, world size and workers may load it.

        Raises
        ------
        ResumeMismatchError
            Where it is no state, or none of this plan.
        """
        self._walk.load(state)
        self._end_live()

    def _begin_live(self, iteration: _Live) -> None:
        self._live = weakref.ref(iteration)

    def _end_live(self) -> None:
        live: _Live | None = None if self._live is None else self._live()
        if live is not None:
            live.replace()
        self._live = None
