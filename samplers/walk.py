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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ..dataplane.epochs import Epoch, EpochRecord
from ..dataplane.errors import ParameterError, ResumeMismatchError
from ..dataplane.lineage import state_id
from ..dataplane.manifest import Manifest
from ..dataplane.plan import MicroBatch
from ..dataplane.series import Plan, Series, open_plan
from .checks import require_int, require_one_of
from .ranks import Ranks, Share, batches_in_step, check_world, share_step
from .state import LoaderState, check_state, rows_before

__all__ = ["Epochs", "Piece", "PlanLike", "PlanWalk", "Start", "steps_from"]

PlanLike: TypeAlias = "str | os.PathLike[str] | Plan"
Epochs: TypeAlias = "int | Iterable[int] | None"

_log = logging.getLogger("batchloom")


@dataclass(frozen=True)
class Start:
    """Where an iteration begins: its epochs, and the place in the first of them."""

    epochs: tuple[int, ...]
    next_step: int = 0
    samples_seen: int = 0


@dataclass(frozen=True)
class Piece:
    """One batch of one rank, before its rows are read.

    Attributes
    ----------
    manifest, record
        The plan and epoch that it is of.
    micro_batch : MicroBatch
        Whole, of which `share` is taken.
    step_rows, step_weight
        Of the whole step over all ranks.
    state : LoaderState
        Where the walk stands once this batch is delivered.
    """

    manifest: Manifest
    record: EpochRecord
    micro_batch: MicroBatch
    share: Share
    step_rows: int
    step_weight: float
    state: LoaderState


def steps_from(epoch: Epoch, step: int) -> Iterator[list[MicroBatch]]:
    """Yield the micro-batches of each step, from the first step at or after `step`."""
    gathered: list[MicroBatch] = []
    for index in range(epoch.find_step(step), len(epoch)):
        micro_batch = epoch[index]
        if gathered and micro_batch.step != gathered[0].step:
            yield gathered
            gathered = []
        gathered.append(micro_batch)
    if gathered:
        yield gathered


class PlanWalk:
    """One rank's way through a plan.

    Parameters
    ----------
    plan : path, Manifest or Series
    epochs : int or iterable of int, optional
        E: the plan's epochs below E; an iterable: these, in this order; None: all of the plan.
    ranks : Ranks
    follow : bool
        Wait for members of a series that are not there yet; needs `epochs`.
    poll_seconds : float
        How often to look for them.
    verify : {'header', 'all'}
        ``'all'`` checks every byte of a manifest before its first batch.
    """

    def __init__(
        self,
        plan: PlanLike,
        *,
        epochs: Epochs = None,
        ranks: Ranks,
        follow: bool = False,
        poll_seconds: float = 1.0,
        verify: Literal["header", "all"] = "header",
    ) -> None:
        require_one_of("verify", verify, ("header", "all"))
        if not poll_seconds > 0:
            raise ParameterError(
                "The 'poll_seconds' parameter must be a number of seconds above 0. "
                f"Got {poll_seconds!r} instead."
            )
        self.plan: Plan = open_plan(plan)
        self.ranks = ranks
        self.follow = follow
        self._poll_seconds = poll_seconds
        self._verify = verify
        self._admitted: set[tuple[str, int]] = set()
        self._verified: set[str] = set()
        self._counts: dict[tuple[str, int], int] = {}
        self._given = _given_epochs(epochs, self.plan)
        self._only: int | None = None  # set by set_epoch
        self._start: Start | None = None  # of the newest iteration
        self._loaded: LoaderState | None = None  # where the next iteration resumes
        self._delivered: LoaderState | None = None
        self._last: LoaderState | None = None  # as _delivered, but never forgotten
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
            check_world(manifest.records[epoch], manifest.unit, self.ranks)
            if self._verify == "all" and manifest.manifest_id not in self._verified:
                manifest.verify()
                self._verified.add(manifest.manifest_id)
            self._admitted.add((manifest.manifest_id, epoch))
        return manifest

    # --- iterations -------------------------------------------------------------------------------

    def begin(self) -> Start:
        """Begin an iteration: at the loaded state, else at the first step of the first epoch."""
        self._refresh()
        epochs = self.epochs if self._only is None else (self._only,)
        loaded, self._loaded = self._loaded, None
        self._delivered = loaded
        self._start = Start(epochs)
        if loaded is not None:
            rest = epochs[epochs.index(loaded.epoch) :]
            self._start = Start(rest, loaded.next_step, loaded.samples_seen)
        return self._start

    def pieces(self, start: Start, stopped: threading.Event) -> Iterator[Piece]:
        """Yield this rank's batches; `stopped` ends a wait for members to come."""
        for number in start.epochs:
            if not self._wait_for(number, stopped):
                return
            manifest = self.manifest(number)
            yield from self._epoch_pieces(manifest, number, start)
            start = replace(start, next_step=0, samples_seen=0)

    def _epoch_pieces(self, manifest: Manifest, number: int, start: Start) -> Iterator[Piece]:
        epoch, ranks = manifest.epoch(number), self.ranks
        state = LoaderState(state_id(manifest), number, start.next_step, start.samples_seen)
        for step in steps_from(epoch, start.next_step):
            rows = sum(len(m.rows) for m in step)
            weight = sum(_weight_of(m) for m in step)
            sizes = [len(m.rows) for m in step]
            shares = share_step(manifest.unit, sizes, ranks.rank, ranks.world_size)
            # The step counts as delivered with this rank's last batch of it.
            inside = replace(state, next_step=step[0].step)
            state = replace(
                state, next_step=step[0].step + 1, samples_seen=state.samples_seen + rows
            )
            for share in shares:
                after = state if share is shares[-1] else inside
                micro_batch = step[share.micro]
                yield Piece(manifest, epoch.record, micro_batch, share, rows, weight, after)

    def _wait_for(self, epoch: int, stopped: threading.Event) -> bool:
        """Wait for the member that holds an epoch; False when told to stop."""
        if not self.follow:
            return True
        told = False
        while epoch not in self.plan.epochs:
            self._refresh()
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
        record = manifest.records[number]
        if manifest.unit == "sliceable":
            return record.micro_batches
        if record.micro_divisor % world == 0:
            return record.micro_batches // world
        key = (manifest.manifest_id, number)
        if key not in self._counts:
            steps = np.concatenate([b.step for b in manifest.epoch(number).blocks()])
            sizes = np.unique(steps, return_counts=True)[1].tolist()
            self._counts[key] = sum(batches_in_step(manifest.unit, m, world) for m in sizes)
        return self._counts[key]

    # --- state ------------------------------------------------------------------------------------

    def deliver(self, start: Start, state: LoaderState) -> None:
        """Note that a batch of the iteration begun at `start` was handed to the caller."""
        if start is self._start:  # else an older iteration goes on; the state is not its own
            self._delivered = self._last = state

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
            self._delivered = None

    def state(self) -> LoaderState:
        """Return where the caller stands: after the last whole step that was delivered."""
        known = self._loaded or self._delivered
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
        self._only, self._start = None, None
        self._loaded, self._delivered, self._last = state, None, state


def _weight_of(micro_batch: MicroBatch) -> float:
    if micro_batch.weights is None:
        return float(len(micro_batch.rows))
    return float(micro_batch.weights.sum(dtype=np.float64))


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
