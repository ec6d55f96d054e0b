"""Few parts of a signal instead of many: each of a range of rows, one observation a key.

The new parts are named ``compact-…`` and count for nothing until ``compacted-<sha256>.json`` is
there, which lists them and all parts that they stand for, of earlier compactions too: so it stays
known which parts were written. Then these are removed; a process that dies in between leaves files
that no reader looks at, and the next compaction clears away.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from .canonical import pretty_json
from .commit import create_file, write_file
from .errors import MissingFileError, SignalCorruptError
from .objects import put_if_absent, remove
from .observations import Observations, winners
from .signal_parts import PartName, SignalPart, part_bytes
from .storage import Location

__all__ = ["compact", "live_parts", "put_part", "written_parts"]

RANGE_OBSERVATIONS = 1 << 20

_RECORD = re.compile(r"compacted-([0-9a-f]{64})\.json")


def live_parts(folder: Location) -> list[SignalPart]:
    """Return the parts of a signal that count, by name."""
    names = [name for name, size in folder.entries() if size is not None]
    made, replaced = _records(folder, names)
    parts = []
    for text in sorted(names):
        name = PartName.parse(text)
        if name is not None and text not in replaced and (name.kind == "part" or text in made):
            parts.append(SignalPart(folder.join(text), name))
    return parts


def written_parts(folder: Location) -> list[PartName]:
    """Return the names of all parts that writers have put, those that were compacted too."""
    names = [name for name, size in folder.entries() if size is not None]
    _, replaced = _records(folder, names)
    found = (PartName.parse(text) for text in sorted({*names, *replaced}))
    return [name for name in found if name is not None and name.kind == "part"]


def _records(folder: Location, names: Sequence[str]) -> tuple[set[str], set[str]]:
    """Return (names that compactions made, names that they stand for)."""
    made: set[str] = set()
    replaced: set[str] = set()
    for name in names:
        found = _RECORD.fullmatch(name)
        if found is None:
            continue
        try:
            data = folder.join(name).read_bytes()
        except MissingFileError:  # another compaction has just taken its place
            continue
        if hashlib.sha256(data).hexdigest() != found[1]:
            raise SignalCorruptError(
                f"{folder.join(name)} is damaged: expected SHA-256 {found[1]}. Put a good copy "
                "back; without it the parts that it lists are not read."
            )
        record = json.loads(data)
        made |= set(record["parts"])
        replaced |= set(record["replaces"])
    return made, replaced


def put_part(folder: Location, name: PartName, data: pa.Buffer) -> None:
    """Commit a part; the same one already there is success."""
    place = folder.join(str(name))
    if place.is_local:
        write_file(place, data, "Writing signals")
    else:
        put_if_absent(place, data.to_pybytes())


def compact(folder: Location, signal: str, parts: Sequence[SignalPart]) -> int:
    """Rewrite parts; return how many there are now. See `SignalStore.compact`."""
    _clear(folder)
    if len(parts) < 2 or _are_compact(parts):
        return len(parts)
    _, before = _records(folder, [name for name, _ in folder.entries()])
    made, generation = [], _next_generation(before, parts)
    for number, (start, stop) in enumerate(_ranges(parts)):
        found = [o for part in parts for o in part.read(start, stop)]
        observed = winners(Observations.concat(found), signal) if found else Observations.zeros()
        if len(observed):
            name, data = part_bytes(observed, writer=generation, sequence=number, kind="compact")
            put_part(folder, name, data)
            made.append(str(name))
    replaces = sorted({*before, *(str(p.name) for p in parts)})
    record = pretty_json({"parts": made, "replaces": replaces})
    name_ = f"compacted-{hashlib.sha256(record).hexdigest()}.json"
    create_file(folder.join(name_), record, "Compacting signals")
    _clear(folder)
    return len(made)


def _are_compact(parts: Sequence[SignalPart]) -> bool:
    """Return whether parts are what one compaction has made."""
    return len({p.name.writer for p in parts}) == 1 and all(p.name.kind == "compact" for p in parts)


def _next_generation(before: set[str], parts: Sequence[SignalPart]) -> int:
    """Return the writer's number of new parts: names of the same content must not come again."""
    names = [PartName.parse(name) for name in before] + [p.name for p in parts]
    known = [n.writer for n in names if n is not None and n.kind == "compact"]
    return max(known, default=-1) + 1


def _ranges(parts: Sequence[SignalPart]) -> Iterator[tuple[int, int]]:
    """Yield ranges of row ids that hold about `RANGE_OBSERVATIONS` each."""
    blocks = sorted((first, rows) for p in parts for first, _, rows, _ in p.index["blocks"])
    before = np.cumsum([rows for _, rows in blocks])
    marks = before // RANGE_OBSERVATIONS
    new = np.flatnonzero(np.diff(marks, prepend=0)).tolist()
    cuts = sorted({0, *(blocks[i][0] for i in new), 1 << 63})
    return itertools.pairwise(cuts)


def _clear(folder: Location) -> None:
    """Remove what compactions stand for, and records of which nothing is left."""
    names = [name for name, size in folder.entries() if size is not None]
    _, replaced = _records(folder, names)
    for name in names:
        if name in replaced:
            _remove(folder.join(name))
    for name in names:
        if _RECORD.fullmatch(name):
            record = json.loads(folder.join(name).read_bytes())
            if set(record["parts"]) <= replaced:
                _remove(folder.join(name))


def _remove(place: Location) -> None:
    if place.is_local:
        Path(place.path).unlink(missing_ok=True)
    else:
        remove(place)
