"""Old rows → new rows by a unique key column: a join of two datasets in bounded memory.

Each side is scanned once; what comes of it is files of (two hashes of the key, row id), sorted by
the first hash. One range of hashes at a time is read from all files, sorted and matched. Two rows
match where both hashes are equal, 128 bits in all (`key_hash`). The result is one array over the
old rows, in a mapped file.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.columns import as_arrow, as_numpy
from ..dataplane.dataset import Dataset
from ..dataplane.errors import ColumnTypeError, SelectionError
from ..dataplane.key_hash import hash_column_wide
from ..dataplane.remap import GONE, RowMapping
from ..dataplane.storage import storing
from .engine import Engine
from .progress import Progress
from .tasks import ScanTask, group_tasks, scan_rows

__all__ = ["Matched", "hash_keys", "map_rows_by_key", "match_hashed"]

U64 = npt.NDArray[np.uint64]

_FILE_ROWS = 1 << 21
_RANGE_ROWS = 1 << 21  # of both sides, matched at once
_EXAMPLES = 3


@dataclass(frozen=True)
class Matched:
    """Rows of two sides with equal keys.

    Attributes
    ----------
    old, new : uint64, shape (k,)
        Row ids, parallel.
    twice_old, twice_new : uint64, shape (2, j)
        Pairs of rows of one side that have one key.
    """

    old: U64
    new: U64
    twice_old: U64
    twice_new: U64


def match_hashed(old: U64, new: U64) -> Matched:
    """Match two sides by both their hashes.

    Parameters
    ----------
    old, new : uint64, shape (3, n) and (3, m)
        First hash, second hash, row id; in any order.
    """
    both = np.concatenate([old, new], axis=1)
    is_new = np.arange(both.shape[1]) >= old.shape[1]
    order = np.lexsort((both[2], is_new, both[1], both[0]))
    both, is_new = both[:, order], is_new[order]
    same = (both[:2, 1:] == both[:2, :-1]).all(axis=0)
    crosses = is_new[1:] & ~is_new[:-1]
    pairs = np.stack([both[2, :-1], both[2, 1:]])
    matched = pairs[:, same & crosses]
    return Matched(
        matched[0],
        matched[1],
        pairs[:, same & ~is_new[1:]],
        pairs[:, same & is_new[:-1]],
    )


def hash_keys(
    task: ScanTask, column: str, schema: pa.Schema, folder: str
) -> tuple[tuple[str, ...], int]:
    """Write the hashed keys of a task's rows; return (files, rows without a key). Runs on workers.

    A file holds a uint64 array of shape (3, n), see `match_hashed`, ascending by the first hash.
    """
    files: list[str] = []
    held: list[U64] = []
    nulls = 0

    def write() -> None:
        part = np.concatenate(held, axis=1)
        target = Path(folder) / f"keys-{uuid.uuid4().hex}.npy"
        with storing("Writing intermediate results", target), open(target, "wb") as file:
            np.save(file, part[:, np.argsort(part[0], kind="stable")])
        files.append(str(target))
        held.clear()

    for batch, ids in scan_rows(task, [column], schema, None):
        values = batch.column(column)
        valid = np.flatnonzero(as_numpy(values.is_valid()))
        if len(valid) < len(values):
            nulls += len(values) - len(valid)
            values, ids = values.take(as_arrow(valid)), ids[valid]
        held.append(np.concatenate([hash_column_wide(values, column), ids[None]]))
        if sum(part.shape[1] for part in held) >= _FILE_ROWS:
            write()
    if held:
        write()
    return tuple(files), nulls


def map_rows_by_key(
    old: Dataset,
    new: Dataset,
    key: str,
    *,
    fragments: Sequence[int],
    engine: Engine,
    progress: Progress,
    folder: Path,
) -> RowMapping:
    """Find for each old row the new row with the same key.

    Parameters
    ----------
    old, new : Dataset
    key : str
        A column whose values are unique on either side; rows where it is null match none.
    fragments : sequence of int
        Indices of the old fragments whose rows are wanted.
    engine : Engine
    progress : Progress
    folder : Path
        For intermediate files and the mapping; workers must see it.

    Raises
    ------
    SelectionError
        Where a key is there twice.
    ColumnTypeError
        Where keys of these types cannot be compared.
    """
    old.check_columns([key], fragments=fragments)
    new.check_columns([key])
    _check_types(old, new, key)
    sides = []
    for dataset, chosen, name in ((old, fragments, "old"), (new, range(len(new.refs)), "new")):
        tasks = group_tasks([ref for i in chosen if (ref := dataset.refs[i]) is not None])
        files: list[str] = []
        with progress.step(f"reading {name} keys", sum(t.rows for t in tasks)) as step:
            for position, (written, _) in engine.map(
                hash_keys, tasks, key, dataset.schema, str(folder)
            ):
                files += written
                step.advance(tasks[position].rows)
        sides.append([np.load(file, mmap_mode="r") for file in files])
    target = folder / "rows.npy"
    with storing("Writing the mapping of rows", target):
        ids = np.lib.format.open_memmap(
            target, mode="w+", dtype=np.uint64, shape=(old.snapshot.rows,)
        )
    for start in range(0, len(ids), _FILE_ROWS):
        ids[start : start + _FILE_ROWS] = GONE
    doubles = _Doubles(key)
    rows = sum(part.shape[1] for side in sides for part in side)
    with progress.step("matching keys", rows) as step:
        for low, high in itertools.pairwise(_bounds(rows)):
            here = [_between(side, low, high) for side in sides]
            matched = match_hashed(*here)
            ids[old.snapshot.positions(matched.old)] = matched.new
            doubles.add(matched)
            step.advance(sum(part.shape[1] for part in here))
    doubles.refuse(old, new)
    return RowMapping(old.snapshot, ids)


def _bounds(rows: int) -> list[int]:
    """Cut the 64-bit hashes into ranges of about `_RANGE_ROWS` rows."""
    ranges = max(1, -(-rows // _RANGE_ROWS))
    return [(i << 64) // ranges for i in range(ranges + 1)]


def _between(parts: Sequence[U64], low: int, high: int) -> U64:
    """Return the entries of sorted files whose first hash lies in [low, high)."""
    found = [np.zeros((3, 0), np.uint64)]
    for part in parts:
        start = np.searchsorted(part[0], np.uint64(low))
        stop = part.shape[1] if high >> 64 else np.searchsorted(part[0], np.uint64(high))
        found.append(part[:, start:stop])
    return np.concatenate(found, axis=1)


# --- what makes no key ----------------------------------------------------------------------------


def _check_types(old: Dataset, new: Dataset, key: str) -> None:
    types = [_value_type(dataset, key) for dataset in (old, new)]
    if pa.types.is_integer(types[0]) != pa.types.is_integer(types[1]):
        raise ColumnTypeError(
            f"The key '{key}' is {types[0]} in the old dataset and {types[1]} in the new one, "
            "which never are equal. Name a column of one kind in both."
        )


def _value_type(dataset: Dataset, key: str) -> Any:
    type_ = dataset.schema.field(key).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.int8() if pa.types.is_boolean(type_) else type_


class _Doubles:
    """Counts keys that are there twice, and keeps some for the message."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._counts = [0, 0]
        self._examples: list[list[U64]] = [[], []]

    def add(self, matched: Matched) -> None:
        for side, pairs in enumerate((matched.twice_old, matched.twice_new)):
            self._counts[side] += pairs.shape[1]
            missing = _EXAMPLES - len(self._examples[side])
            self._examples[side] += list(pairs.T[:missing])

    def refuse(self, old: Dataset, new: Dataset) -> None:
        for name, dataset, count, examples in zip(
            ("old", "new"), (old, new), self._counts, self._examples, strict=True
        ):
            if not count:
                continue
            values = dataset.take([pair[0] for pair in examples], [self._key])[self._key]
            shown = ", ".join(
                f"{value!r} (rows {pair[0]} and {pair[1]})"
                for value, pair in zip(values.to_pylist(), examples, strict=True)
            )
            raise SelectionError(
                f"The key '{self._key}' is not unique in the {name} dataset: {count:,} rows have "
                f"the key of another one, such as {shown}. Name a column whose values are unique."
            )
