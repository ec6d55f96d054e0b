"""The files that bind a signal store to a dataset, and number the starts of a training.

``signals.json`` says the format. ``snapshot-<next row id>-<fingerprint>.json`` is a snapshot that
row ids belong to, and there is one more each time the dataset has grown. ``attempt-<number>.json``
takes a number, so that no other start of a training gets it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .canonical import pretty_json
from .commit import create_file
from .errors import ParameterError, SignalError
from .series import Series
from .snapshot import Snapshot
from .snapshot_bases import check_related, newest_base
from .storage import Location

__all__ = [
    "MOST_ATTEMPTS",
    "bind",
    "copy_attempts",
    "draw_attempt",
    "snapshot_given",
    "snapshot_of",
]

HEADER = "signals.json"
MOST_ATTEMPTS = 65_535

_FORMAT = "batchloom-signals/1"
_SNAPSHOT = re.compile(r"snapshot-(\d{20})-[0-9a-f]{64}\.json")
_ATTEMPT = re.compile(r"attempt-(\d{5})\.json")


def snapshot_given(dataset: Any) -> Snapshot:
    if isinstance(dataset, Series) and dataset.ranges:
        dataset = dataset.members[-1]
    snapshot = dataset if isinstance(dataset, Snapshot) else getattr(dataset, "snapshot", None)
    if not isinstance(snapshot, Snapshot):
        raise ParameterError(
            "The 'dataset' parameter must be a Snapshot, or what has one: a Dataset or a plan. "
            f"Got {type(dataset).__name__} instead."
        )
    return snapshot


def snapshot_of(location: Location) -> Snapshot | None:
    """Return the newest snapshot that a store holds; None where there is no store."""
    names = [name for name, size in location.entries() if size is not None]
    if HEADER not in names:
        return None
    try:
        found = json.loads(location.join(HEADER).read_bytes())["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise SignalError(f"{location.join(HEADER)} is damaged; put a good copy back.") from error
    if found != _FORMAT:
        raise SignalError(
            f"{location} has the format '{found}'; this version reads '{_FORMAT}'. Use the version "
            "that wrote it."
        )
    held = [name for name in names if _SNAPSHOT.fullmatch(name)]
    loaded = [
        (f"the signals in {location}", Snapshot.load(location.join(name).path,
                                                     storage_options=location.options))
        for name in sorted(held)
    ]  # fmt: skip
    newest = newest_base(loaded)
    if newest is None:
        raise SignalError(f"{location} is damaged: its snapshot is gone; put a good copy back.")
    return newest


def bind(location: Location, snapshot: Snapshot) -> Snapshot:
    """Bind a store to a dataset: make it, extend it, or see that it is the same."""
    held = snapshot_of(location)
    if held is None:
        names = [name for name, _ in location.entries()]
        if HEADER in names:
            return bind(location, snapshot)  # another writer has just made it
        strangers = [n for n in names if not n.startswith((".", "snapshot-"))]
        if strangers:
            raise SignalError(
                f"{location} holds other files and no signals, such as '{strangers[0]}'; choose "
                "another place."
            )
    else:
        check_related(f"The signal store {location}", held, snapshot)
        newest = newest_base(
            [(f"the signals in {location}", held), ("the dataset that was given", snapshot)]
        )
        if newest == held:
            return held
    body = {
        "format": "batchloom-snapshot/1",
        "fingerprint": snapshot.fingerprint,
        "snapshot": snapshot.to_json(),
    }
    name = f"snapshot-{snapshot.next_row_id:020d}-{snapshot.fingerprint}.json"
    create_file(location.join(name), pretty_json(body), "Binding the signals to the dataset")
    # After the snapshot: a store that has its header has one.
    create_file(location.join(HEADER), pretty_json({"format": _FORMAT}), "Making the signal store")
    return snapshot


def copy_attempts(source: Location, target: Location) -> None:
    """Take the numbers in a store that are taken in another one."""
    for name, _ in source.entries():
        found = _ATTEMPT.fullmatch(name)
        if found is not None:
            body = pretty_json({"attempt": int(found[1])})
            create_file(target.join(name), body, "Beginning an attempt")


def draw_attempt(location: Location) -> int:
    """Return the next attempt number, which nobody else gets."""
    names = [name for name, _ in location.entries()]
    taken = [int(m[1]) for m in map(_ATTEMPT.fullmatch, names) if m]
    number = max(taken, default=0)
    while number < MOST_ATTEMPTS:
        number += 1
        place = location.join(f"attempt-{number:05d}.json")
        if create_file(place, pretty_json({"attempt": number}), "Beginning an attempt"):
            return number
    raise SignalError(f"{location} has had {MOST_ATTEMPTS} attempts; begin another store.")
