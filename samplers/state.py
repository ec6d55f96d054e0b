"""Loader state: where in a plan a training run stands, in five JSON values.

``{version, manifest_id, epoch, next_step, samples_seen}``: the manifest that holds the epoch, the
step to go on with, and the rows of all ranks that the epoch's steps before it hold. It counts what
was delivered to the caller, whole steps only; asked between two micro-batches of a step it is that
step's start. It is the same on every rank and knows no rank, world size or worker count.

A manifest that was materialised from a recipe writes the recipe's id, so the state fits both. A
manifest that was edited or re-addressed goes on from its parent's states up to the first change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dataplane.errors import ManifestError, ResumeMismatchError
from ..dataplane.lineage import accepted_states, state_id
from ..dataplane.manifest import Manifest
from ..dataplane.series import Plan

__all__ = ["VERSION", "LoaderState", "check_state", "rows_before"]

VERSION = 1
_FIELDS = ("manifest_id", "epoch", "next_step", "samples_seen")

_ADVICE = "Load the state that was saved with this plan, or start without one."


@dataclass(frozen=True)
class LoaderState:
    """A position in a plan, between two steps.

    Attributes
    ----------
    manifest_id : str
        See `lineage.state_id`.
    epoch : int
    next_step : int
        The first step that was not delivered; one more than the last at an epoch's end.
    samples_seen : int
        Rows of all ranks in the steps before it, in this epoch.
    """

    manifest_id: str
    epoch: int
    next_step: int = 0
    samples_seen: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **vars(self)}

    @classmethod
    def from_json(cls, value: Any) -> LoaderState:
        """Read a state; raise `ResumeMismatchError` where it is none of this version."""
        if not isinstance(value, Mapping):
            raise ResumeMismatchError(
                f"A loader state is a mapping; found {type(value).__name__}. {_ADVICE}"
            )
        if value.get("version", VERSION) != VERSION:
            raise ResumeMismatchError(
                f"The loader state has version {value['version']!r}; this reader knows {VERSION}. "
                "Update batchloom."
            )
        missing = [name for name in ("version", *_FIELDS) if name not in value]
        if missing:
            raise ResumeMismatchError(
                f"The loader state lacks '{missing[0]}': expected version, {', '.join(_FIELDS)}, "
                f"found {', '.join(map(str, value)) or 'nothing'}. {_ADVICE}"
            )
        if not isinstance(value["manifest_id"], str):
            raise _wrong("manifest_id", "a string", value["manifest_id"])
        for name in ("version", "epoch", "next_step", "samples_seen"):
            found = value[name]
            if not isinstance(found, int) or isinstance(found, bool) or found < 0:
                raise _wrong(name, "an int of at least 0", found)
        return cls(**{name: value[name] for name in _FIELDS})


def _wrong(name: str, expected: str, found: Any) -> ResumeMismatchError:
    return ResumeMismatchError(
        f"'{name}' of the loader state must be {expected}; found {found!r}. {_ADVICE}"
    )


def rows_before(manifest: Manifest, epoch: int, step: int) -> int:
    """Return the rows of an epoch's steps before `step`."""
    batches = manifest.epoch(epoch)
    return batches.rows_before(batches.find_step(step))


def check_state(state: LoaderState, plan: Plan) -> LoaderState:
    """Return the state as one of this plan; raise `ResumeMismatchError` where it is none.

    A state of a manifest that this one was made from (`lineage`) is one of this plan, too, unless
    it stands behind the first change.
    """
    try:
        manifest = plan.manifest_for(state.epoch)
    except ManifestError as error:
        raise ResumeMismatchError(
            f"The loader state stands in epoch {state.epoch}, which the plan does not hold: "
            f"{error} {_ADVICE}"
        ) from None
    if state.manifest_id != state_id(manifest):
        _check_parent(state, manifest)
        state = replace(state, manifest_id=state_id(manifest))
    batches = manifest.epoch(state.epoch)
    end = batches[len(batches) - 1].step + 1
    if state.next_step > end:
        raise ResumeMismatchError(
            f"The loader state stands at step {state.next_step} of epoch {state.epoch}: expected "
            f"at most {end}, where the epoch ends. {_ADVICE}"
        )
    expected = rows_before(manifest, state.epoch, state.next_step)
    if state.samples_seen != expected:
        raise ResumeMismatchError(
            f"The loader state counts {state.samples_seen} rows before step {state.next_step} of "
            f"epoch {state.epoch}: expected {expected}. {_ADVICE}"
        )
    return state


def _check_parent(state: LoaderState, manifest: Manifest) -> None:
    accepted = accepted_states(manifest.identity["stages"])
    if state.manifest_id not in accepted:
        raise ResumeMismatchError(
            f"The loader state belongs to another plan: expected manifest {state_id(manifest)} "
            f"({manifest.path}), found {state.manifest_id}. {_ADVICE}"
        )
    first = accepted[state.manifest_id]
    if first is not None and (state.epoch, state.next_step) > first:
        raise ResumeMismatchError(
            f"The loader state stands at step {state.next_step} of epoch {state.epoch} of manifest "
            f"{state.manifest_id}, from which {manifest.path} was made with changes from step "
            f"{first.step} of epoch {first.epoch} on: that run has seen steps which this plan does "
            "not hold. Load a state at or before the first change, or go on with the plan that the "
            "state was saved with."
        )


def check_settings(state: Any, expected: Mapping[str, Any], owner: str) -> None:
    """Raise `ResumeMismatchError` unless a state was saved with some settings.

    Parameters
    ----------
    state : mapping
    expected : mapping
        The settings, by the names that they have in the state.
    owner : str
        What takes the state: ``"sampler"``.
    """
    for name, wanted in expected.items():
        found = state.get(name) if isinstance(state, Mapping) else None
        if found != wanted:
            raise ResumeMismatchError(
                f"The {owner}'s state has {name} = {found!r}; expected {wanted!r}. Load the state "
                f"that was saved by this {owner}, or start without one."
            )
