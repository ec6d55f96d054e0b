"""Edges that name nodes by a key, such as a DOI, and not by the number of its row.

The keys of a kind of nodes are hashed to 128 bits (`dataplane.key_hash`), with the node's number
each, and sorted by their hashes into one file that workers map. A key in the edge table is looked
up there by bisection. The file takes 24 bytes a node of a worker's memory, and `SORTING_BYTES`
while it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.dataset import Dataset
from ..dataplane.errors import (
    ColumnTypeError,
    InvalidValueError,
    JobSpecError,
    ParameterError,
    SelectionError,
)
from ..dataplane.key_hash import hash_column_wide
from ..dataplane.storage import storing
from .budget import size_text
from .engine import Engine
from .key_join import hash_keys
from .progress import Progress
from .tasks import group_tasks

__all__ = [
    "KeyTable",
    "check_key_type",
    "check_keys",
    "forget_tables",
    "look_up",
    "make_tables",
    "unknown_key",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

SORTING_BYTES = 64
"""Of memory a node, while the keys are sorted."""

_WHAT = "Sorting the nodes' keys"


@dataclass(frozen=True)
class KeyTable:
    """The sorted keys of a kind of nodes.

    Attributes
    ----------
    path : str
        A uint64 array of shape (3, N): two hashes, ascending, and the node's number.
    column : str
        Of the table of nodes.
    integers : bool
        Keys are integers, not text.
    """

    path: str
    column: str
    integers: bool


@dataclass(frozen=True)
class _MergeTask:
    """The sorted files of a kind of nodes, which become one."""

    index: int
    files: tuple[str, ...]
    label: str

    @property
    def example(self) -> str | None:
        return self.files[0] if self.files else None


def check_keys(
    keys: Mapping[str, str], nodes: Mapping[str, Dataset], memory: int
) -> dict[str, KeyTable]:
    """Return what will be looked up, the files to come.

    Raises
    ------
    JobSpecError, MissingColumnError, ColumnTypeError
        Of nodes without a table, or a column that holds no keys.
    ParameterError
        Of more keys than memory sorts.
    """
    planned = {}
    for kind, column in keys.items():
        if kind not in nodes:
            raise JobSpecError(
                f"Nodes of kind '{kind}' have no table, in which their keys would stand: give it "
                "with --nodes, or leave --key out for them."
            )
        dataset = nodes[kind]
        dataset.check_columns([column])
        type_, where = dataset.schema.field(column).type, f"the nodes of kind '{kind}'"
        planned[kind] = KeyTable("", column, _is_integer(type_, column, where))
        needed = dataset.rows * SORTING_BYTES
        if needed > memory:
            raise ParameterError(
                f"Joining the {dataset.rows:,} keys of nodes of kind '{kind}' takes "
                f"{size_text(needed)}, and a task has {size_text(memory)} left for it. Give the "
                "job more with --memory, or fewer workers."
            )
    return planned


def _is_integer(type_: pa.DataType, column: str, where: str) -> bool:
    inner = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_integer(inner):
        return True
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary,
            pa.types.is_large_binary)  # fmt: skip
    if any(is_text(inner) for is_text in text):
        return False
    raise ColumnTypeError(
        f"Column '{column}' of {where} is {type_}; a key must be integers, strings or binaries."
    )


def check_key_type(table: KeyTable, type_: pa.DataType, column: str, where: str) -> None:
    """Raise `ColumnTypeError` where a column cannot hold keys of a table."""
    if _is_integer(type_, column, where) != table.integers:
        raise ColumnTypeError(
            f"Column '{column}' of {where} is {type_}, and the key '{table.column}' of the nodes "
            f"is {'integers' if table.integers else 'text'}, which never are equal. Write both as "
            "one type."
        )


def make_tables(
    planned: Mapping[str, KeyTable],
    nodes: Mapping[str, Dataset],
    folder: Path,
    engine: Engine,
    progress: Progress,
) -> dict[str, KeyTable]:
    """Hash and sort the keys of each kind of nodes.

    Raises
    ------
    SelectionError
        Where a key is there twice, or null.
    """
    made = {}
    for kind, table in planned.items():
        dataset, column = nodes[kind], table.column
        tasks = group_tasks(dataset.present())
        found: dict[int, tuple[str, ...]] = {}
        with progress.step(f"reading keys of {kind}", dataset.rows) as step:
            for position, (files, nulls) in engine.map(
                hash_keys, tasks, column, dataset.schema, str(folder)
            ):
                if nulls:
                    raise SelectionError(
                        f"The key '{column}' is null in {nulls:,} nodes of kind '{kind}'. Give "
                        "each node a key."
                    )
                found[position] = files
                step.advance(tasks[position].rows)
        target = folder / f"keys-of-{kind}.npy"
        files = tuple(f for i in sorted(found) for f in found[i])
        merge = _MergeTask(0, files, f"the keys of {kind}")
        [(_, twice)] = engine.map(merge_keys, [merge], str(target))
        _refuse_twice(twice, dataset, column, kind)
        made[kind] = replace(table, path=str(target))
    return made


def merge_keys(task: _MergeTask, target: str) -> tuple[int, list[tuple[int, int]]]:
    """Sort the keys of some files into one; return how many are there twice, and some of them."""
    with storing(_WHAT, target):
        parts = [np.load(file) for file in task.files]
        table = np.concatenate([np.empty((3, 0), np.uint64), *parts], axis=1)
        del parts
        order = np.lexsort((table[2], table[1], table[0]))
        with open(target, "wb") as file:
            header = {"descr": "<u8", "fortran_order": False, "shape": table.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in range(3):
                table[row] = table[row][order]
                file.write(table[row].data)
        for name in task.files:
            Path(name).unlink(missing_ok=True)
    same = np.flatnonzero((table[:2, 1:] == table[:2, :-1]).all(axis=0))
    shown = [(int(table[2, i]), int(table[2, i + 1])) for i in same[:3]]
    return same.size, shown


def _refuse_twice(
    twice: tuple[int, list[tuple[int, int]]], dataset: Dataset, column: str, kind: str
) -> None:
    count, pairs = twice
    if not count:
        return
    values = dataset.take([a for a, _ in pairs], [column])[column].to_pylist()
    shown = ", ".join(
        f"{value!r} (nodes {a} and {b})" for value, (a, b) in zip(values, pairs, strict=True)
    )
    raise SelectionError(
        f"The key '{column}' of nodes of kind '{kind}' is not unique: {count:,} nodes have the key "
        f"of another one, such as {shown}. Name a column whose values are unique."
    )


@lru_cache(maxsize=8)
def _mapped(path: str) -> Any:
    with storing("Reading the nodes' keys", path):
        return np.load(path, mmap_mode="r" if Path(path).stat().st_size > 256 else None)


def forget_tables() -> None:
    """Let go of what this process mapped, so that the disk has its room back."""
    _mapped.cache_clear()


def look_up(table: KeyTable, values: pa.Array, column: str) -> tuple[I64, int]:
    """Return the nodes of keys, and the place of the first key that no node has, or −1."""
    known = _mapped(table.path)
    wanted = hash_column_wide(values, column)
    count = known.shape[1]
    order = np.argsort(wanted[0], kind="stable")  # neighbours are near each other in the file
    at = np.empty(len(values), np.int64)
    at[order] = np.searchsorted(known[0], wanted[0][order])
    nodes = np.full(len(values), -1, np.int64)
    left = np.flatnonzero(at < count)
    while left.size:  # more than once only where different keys share the first hash
        here = at[left]
        first, second = known[0][here] == wanted[0][left], known[1][here] == wanted[1][left]
        hit = left[first & second]
        nodes[hit] = known[2][at[hit]].astype(np.int64)
        left = left[first & ~second]
        at[left] += 1
        left = left[at[left] < count]
    missing = np.flatnonzero(nodes < 0)
    return nodes, int(missing[0]) if missing.size else -1


def unknown_key(
    values: pa.Array, place: int, column: str, where: str, kind: str
) -> InvalidValueError:
    """Say that an edge names a node that there is not."""
    return InvalidValueError(
        f"Column '{column}' is {values[place].as_py()!r} in {where}, and no node of kind '{kind}' "
        "has that key. Leave the edge out, or give the node a row."
    )
