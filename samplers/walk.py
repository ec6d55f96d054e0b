"""A walk over a plan: which shares of which micro-batches one rank gets, and where it stands.

What `ManifestLoader` and `ManifestBatchSampler` have in common: the epochs of an iteration, the
rank rules, the state, and resuming. It reads the plan and nothing else.

**Iterations.** An iteration covers all the epochs chosen, each from its first step. After
`load_state` the next one starts at the state and covers the rest. After `set_epoch(e)` iterations
cover epoch e alone, as torch's samplers have it; where a loaded state stands in that epoch, the
first of them still starts at the state, so the usual loop resumes:

    >>> loader.load_state_dict(state)
    >>> for epoch in range(state["epoch"], epochs):
    ...     loader.set_epoch(epoch)
    ...     for batch in loader: ...
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np

from ..dataplane.checks import require_int, require_one_of
from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import ParameterError, ResumeMismatchError
from ..dataplane.lineage import state_id
from ..dataplane.manifest import Manifest
from ..dataplane.plan import Unit
from ..dataplane.series import Plan, Series, open_plan
from .pieces import Pieces, deal, whole_steps
from .ranks import Ranks, batches_in_step, check_world
from .state import LoaderState, check_state, rows_before

__all__ = ["Cursor", "Epochs", "PlanLike", "PlanWalk"]

PlanLike: TypeAlias = "str | os.PathLike[str] | Plan"
Epochs: TypeAlias = "int | Iterable[int] | None"

_log = logging.getLogger("batchloom")


class Cursor:
    """One iteration: its epochs, where it begins in the first of them, and where it stands.

    Whoever hands out a batch sets `pieces` and `index` to it; the state is made of them when it is
    asked for.
    """

    __slots__ = ("epochs", "index", "next_step", "pieces", "samples_seen")

    def __init__(self, epochs: tuple[int, ...], next_step: int = 0, samples_seen: int = 0) -> None:
        self.epochs = epochs
        self.next_step = next_step
        self.samples_seen = samples_seen
        self.pieces: Pieces | None = None
        self.index = 0

    def state(self) -> LoaderState | None:
        """Return where the caller stands; None before the first batch."""
        return None if self.pieces is None else self.pieces.state(self.index)


class PlanWalk:
    """One rank's way through a plan.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    epochs : int or iterable of int, optional
        E: the plan's epochs below E; an iterable: these, in this order; None: all of the plan.
    ranks : Ranks
    unit : {'sliceable', 'micro'}, optional
        What ranks take, where that is not the plan's own.
    follow : bool
        Wait for members of a series that are not there yet; needs `epochs`.
    poll_seconds : float
        How often to look for them.
    verify : {'header', 'all'}
        ``'all'`` checks every byte of a manifest before its first batch.
    storage_options : mapping, optional
        Options of the plan's filesystem, for a URI.
    """

    def __init__(
        self,
        plan: PlanLike,
        *,
        epochs: Epochs = None,
        ranks: Ranks,
        unit: Unit | None = None,
        follow: bool = False,
        poll_seconds: float = 1.0,
        verify: Literal["header", "all"] = "header",
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        require_one_of("verify", verify, ("header", "all"))
        if not poll_seconds > 0:
            raise ParameterError(
                "The 'poll_seconds' parameter must be a number of seconds above 0. "
                f"Got {poll_seconds!r} instead."
            )
        self.plan: Plan = open_plan(plan, storage_options=storage_options)
        self.ranks, self._unit = ranks, unit
        self.follow = follow
        self._poll_seconds = poll_seconds
        self._verify = verify
        self._admitted: set[tuple[str, int]] = set()
        self._verified: set[str] = set()
        self._counts: dict[tuple[str, int], int] = {}
        self._given = _given_epochs(epochs, self.plan)
        self._only: int | None = None  # set by set_epoch
        self._cursor: Cursor | None = None  # of the newest iteration
        self._loaded: LoaderState | None = None  # where the next iteration resumes
        self._resumed: LoaderState | None = None  # where the newest iteration did
        self._last: LoaderState | None = None  # where the caller stood, never forgotten
        if follow:
            _check_follow(self.plan, epochs)
        self.members()

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of a whole iteration."""
        return self.plan.epochs if self._given is None else self._given

    def members(self) -> list[Manifest]:
        """Return the manifest of each epoch, checked against the world size.

        Raises
        ------
        WorldSizeError, ManifestError
        """
        held = set(self.plan.epochs)
        return [self.manifest(e) for e in self.epochs if e in held or not self.follow]

    def manifest(self, epoch: int) -> Manifest:
        """Return the manifest that holds an epoch, checked before its first batch."""
        manifest = self.plan.manifest_for(epoch)
        if (manifest.manifest_id, epoch) not in self._admitted:
            check_world(manifest.records[epoch], self._unit_of(manifest), self.ranks)
            if self._verify == "all" and manifest.manifest_id not in self._verified:
                manifest.verify()
                self._verified.add(manifest.manifest_id)
            self._admitted.add((manifest.manifest_id, epoch))
        return manifest

    def _unit_of(self, manifest: Manifest) -> Unit:
        return self._unit or manifest.unit

    # --- iterations -------------------------------------------------------------------------------

    def begin(self) -> Cursor:
        """Begin an iteration: at the loaded state, else at the first step of the first epoch."""
        self._refresh()
        self._last = self._stands() or self._last
        epochs = self.epochs if self._only is None else (self._only,)
        loaded, self._loaded = self._loaded, None
        self._resumed = loaded
        self._cursor = Cursor(epochs)
        if loaded is not None:
            rest = epochs[epochs.index(loaded.epoch) :]
            self._cursor = Cursor(rest, loaded.next_step, loaded.samples_seen)
        return self._cursor

    def windows(
        self,
        cursor: Cursor,
        size: Callable[[Manifest, EpochRecord], int],
        stopped: threading.Event,
    ) -> Iterator[list[Pieces]]:
        """Yield this rank's batches, so many at a time, over the ends of steps and epochs.

        Parameters
        ----------
        cursor : Cursor
        size : callable
            Of a manifest and an epoch: batches a window.
        stopped : threading.Event
            Ends a wait for members to come.

        Yields
        ------
        list of Pieces
            Together a window; several where it goes over the end of an epoch or of a run.
        """
        held: list[Pieces] = []
        try:
            for number in cursor.epochs:
                if held and self.follow and number not in self.plan.epochs:
                    yield held  # who knows how long the next one takes
                    held = []
                if not self._wait_for(number, stopped):
                    return
                manifest = self.manifest(number)
                count = size(manifest, manifest.records[number])
                for pieces in self._dealt(manifest, number, cursor, count):
                    first = 0
                    while first < len(pieces):
                        room = max(1, count - sum(map(len, held)))
                        held.append(pieces.part(first, first + room))
                        first += room
                        if sum(map(len, held)) >= count:
                            yield held
                            held = []
        except Exception:
            if held:  # what stands before the error is delivered before it
                yield held
            raise
        if held:
            yield held

    def _dealt(
        self, manifest: Manifest, number: int, cursor: Cursor, count: int
    ) -> Iterator[Pieces]:
        """Deal an epoch, from where the iteration begins in it, in runs of whole steps."""
        epoch = manifest.epoch(number)
        start, seen = 0, 0
        if number == cursor.epochs[0]:
            start, seen = epoch.find_step(cursor.next_step), cursor.samples_seen
        for steps in whole_steps(epoch, start, count):
            yield deal(manifest, epoch.record, steps, self.ranks, seen, unit=self._unit)
            seen += len(steps.rows)

    def _wait_for(self, epoch: int, stopped: threading.Event) -> bool:
        """Wait for the member that holds an epoch; False when told to stop."""
        if not self.follow:
            return True
        told = False
        while epoch not in self.plan.epochs:
            if isinstance(self.plan, Series):
                self.plan.look_for(epoch, self._poll_seconds)
            if epoch in self.plan.epochs:
                break
            if not told:
                _log.info("waiting for epoch %d of %s", epoch, self.plan.path)
                told = True
            if stopped.wait(self._poll_seconds):
                return False
        return True

    def _refresh(self) -> None:
        if isinstance(self.plan, Series):
            self.plan.refresh()

    def batches(self) -> int:
        """Return how many batches a whole iteration has, the same on every rank."""
        epochs = self.epochs if self._only is None else (self._only,)
        held = set(self.plan.epochs)
        if self.follow and not held.issuperset(epochs):
            # What Python expects of an iterable that cannot tell its length; list() relies on it.
            raise TypeError("The length is not known: epochs are still to come (follow=True).")
        return sum(self.batches_in(e) for e in epochs)

    def batches_in(self, number: int) -> int:
        """Return how many batches each rank gets in an epoch."""
        manifest, world = self.manifest(number), self.ranks.world_size
        record, unit = manifest.records[number], self._unit_of(manifest)
        if unit == "sliceable":
            return record.micro_batches
        if record.micro_divisor % world == 0:
            return record.micro_batches // world
        key = (manifest.manifest_id, number)
        if key not in self._counts:
            steps = np.concatenate([b.step for b in manifest.epoch(number).blocks()])
            sizes = np.unique(steps, return_counts=True)[1].tolist()
            self._counts[key] = sum(batches_in_step(unit, m, world) for m in sizes)
        return self._counts[key]

    # --- state ------------------------------------------------------------------------------------

    def _stands(self) -> LoaderState | None:
        """Where the newest iteration stands, where that is known."""
        return self._resumed if self._cursor is None else self._cursor.state() or self._resumed

    def set_epoch(self, epoch: int) -> None:
        """Let iterations cover one epoch, from its start unless the loaded state stands in it."""
        require_int("epoch", epoch, 0)
        self._refresh()
        if epoch not in self.epochs:
            raise ParameterError(
                f"There is no epoch {epoch} to set: this iteration covers "
                f"{', '.join(map(str, self.epochs))}. Plan that epoch first, or name it in epochs."
            )
        self._only = epoch
        if self._loaded is not None and self._loaded.epoch != epoch:
            self._loaded = None
        if self._loaded is None:
            self._last = self._stands() or self._last
            self._resumed = None
            if self._cursor is not None:
                self._cursor.pieces = None  # until it hands out another batch

    def state(self) -> LoaderState:
        """Return where the caller stands: after the last whole step that was delivered."""
        known = self._loaded or self._stands()
        if known is not None:
            return known
        first = self.epochs[0] if self._only is None else self._only
        if self._last is not None and first not in self.plan.epochs:
            return self._last  # the member that holds the epoch is still to come
        return LoaderState(state_id(self.plan.manifest_for(first)), first)

    def only_epoch(self) -> int:
        """Return the epoch that iterations cover, where it is one."""
        epochs = self.epochs if self._only is None else (self._only,)
        if len(epochs) > 1:
            raise ParameterError(
                f"Iterations cover {len(epochs)} epochs: say which one the step is of, with epoch=…"
            )
        return epochs[0]

    def state_after(self, step: int, epoch: int) -> LoaderState:
        """Return where a caller stands who has finished a step."""
        require_int("step", step, 0)
        manifest = self.manifest(epoch)
        manifest.epoch(epoch).step(step)  # raises where there is none
        seen = rows_before(manifest, epoch, step + 1)
        return LoaderState(state_id(manifest), epoch, step + 1, seen)

    def load(self, value: Mapping[str, Any]) -> None:
        """Let the next iteration start at a state and cover the rest of the chosen epochs.

        Raises
        ------
        ResumeMismatchError
            Where it is no state, or none of this plan.
        """
        self._refresh()
        state = check_state(LoaderState.from_json(value), self.plan)
        if state.epoch not in self.epochs:
            raise ResumeMismatchError(
                f"The loader state stands in epoch {state.epoch}: expected one of those chosen, "
                f"{', '.join(map(str, self.epochs))}. Name it in epochs=…"
            )
        self._only = self._cursor = self._resumed = None
        self._loaded = self._last = state


def _given_epochs(epochs: Epochs, plan: Plan) -> tuple[int, ...] | None:
    if epochs is None:
        return None
    if isinstance(epochs, int) and not isinstance(epochs, bool):
        given = tuple(range(plan.epochs[0], epochs))
    else:
        given = () if isinstance(epochs, str | bool) else tuple(epochs)
    fine = all(isinstance(e, int) and not isinstance(e, bool) and e >= 0 for e in given)
    if not given or not fine or len(set(given)) < len(given):
        raise ParameterError(
            "The 'epochs' parameter must be an int above the plan's first epoch "
            f"({plan.epochs[0]}), or different ints of at least 0. Got {epochs!r} instead."
        )
    return given


def _check_follow(plan: Plan, epochs: Epochs) -> None:
    if not isinstance(plan, Series):
        raise ParameterError(
            f"The 'follow' parameter needs a series, which gains members; {plan.path} is one "
            "manifest. Leave follow out."
        )
    if epochs is None:
        raise ParameterError(
            "The 'follow' parameter needs 'epochs': say where to stop, for example epochs=40."
        )
