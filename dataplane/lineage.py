"""How a manifest was made from another one, and which loader states of that one it goes on from.

A manifest that was edited or re-addressed has its parent's stages and, after them, one more of the
kind ``edit`` or ``rebind``, with two more entries than a stage of a plan has: ``states_of``, the id
that states of the parent carry, and ``first_change``, ``{epoch, step}`` of the first step that is
not the parent's, or null where every step holds the same rows. A state of the parent at or before
the first change is a position of the child; so is one of the parent's parent, at or before both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .manifest import Manifest

__all__ = ["FirstChange", "accepted_states", "change_stage", "state_id"]


class FirstChange(NamedTuple):
    """A step of an epoch; they compare in the order of a run."""

    epoch: int
    step: int


def state_id(manifest: Manifest) -> str:
    """Return the id that states of this manifest carry: the recipe's, where it came from one."""
    origin: str | None = manifest.identity.get("materialized_from")
    return manifest.manifest_id if origin is None else origin


def change_stage(
    kind: Literal["edit", "rebind"],
    method: str,
    parameters: Mapping[str, Any],
    parent: Manifest,
    first_change: FirstChange | None,
) -> dict[str, Any]:
    """Return what the child's identity records of a change of its parent."""
    return {
        "stage": kind,
        "method": method,
        "parameters": dict(parameters),
        "states_of": state_id(parent),
        "first_change": None if first_change is None else first_change._asdict(),
    }


def accepted_states(stages: Sequence[Mapping[str, Any]]) -> dict[str, FirstChange | None]:
    """Return which manifests' states a manifest of these stages goes on from: id → first change.

    None: no step was changed since that one.
    """
    accepted: dict[str, FirstChange | None] = {}
    first: FirstChange | None = None
    for stage in reversed(stages):
        if "states_of" not in stage:
            continue
        if stage["first_change"] is not None:
            change = FirstChange(stage["first_change"]["epoch"], stage["first_change"]["step"])
            first = change if first is None else min(first, change)
        accepted[stage["states_of"]] = first
    return accepted
