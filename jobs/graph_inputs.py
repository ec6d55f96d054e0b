"""What a graph is built from, looked at before anything is read; and what the job may take.

``--memory`` is for the whole job. This process keeps what it needs for itself, and the workers
share the rest; each takes a fixed part for the program, and sorts in what is left. On a scheduler
elsewhere it is what one task may take.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ..dataplane.dataset import Dataset, open_dataset
from ..dataplane.errors import (
    JobSpecError,
    NoRoomError,
    ParameterError,
    SelectionError,
    StorageError,
)
from ..dataplane.storage import locate, storing
from ..dataplane.targets import check_space
from ..samplers.graph.edge_runs import RunLayout
from ..samplers.graph.edge_sort import CellCounts, Ranges
from ..samplers.graph.graph_header import EdgeType, is_graph
from .budget import machine_memory, mebibytes, size_text
from .graph_keys import KeyTable
from .graph_nodes import check_kind
from .graph_tasks import EdgeColumns

__all__ = [
    "MOST_EDGES",
    "ONE_KIND",
    "EdgeTable",
    "Share",
    "by_kind",
    "bytes_needed",
    "check_kinds",
    "cut_ranges",
    "of_kinds",
    "open_edges",
    "open_table",
    "room_for",
    "share_memory",
    "target_of",
]

ONE_KIND: EdgeType = ("node", "to", "node")
"""What the only kind of nodes and edges is called."""

MOST_EDGES = 4 << 20
"""Of a range and of a run: what fits the processor's caches sorts faster."""

_MIB = 1 << 20
_PROGRAM = 320 * _MIB  # this process, with Dask's scheduler in it
_TASK = 224 * _MIB  # of a task's process: the program, and what it reads and writes at a time
_LEAST = 32 * _MIB  # for sorting
_MOST_RANGES = 4096
_GUESSES = (("src", "dst"), ("source", "target"), ("source", "destination"), ("from", "to"))


@dataclass(frozen=True)
class Share:
    """What the processes of the job may take."""

    workers: int | None
    for_workers: int | None
    sorting: int  # bytes of one task


@dataclass(frozen=True)
class EdgeTable:
    """An edge table that was looked at."""

    kind: EdgeType
    dataset: Dataset
    columns: EdgeColumns

    @property
    def name(self) -> str:
        return ",".join(self.kind)


@contextmanager
def room_for(target: Path, bytes_needed: int) -> Iterator[None]:
    """Refuse to begin where a disk has no room for a graph; say how much it took where it fills up.

    Workers write there too, and their errors come without the system's number.
    """
    check_space(target.parent, bytes_needed, "The graph")
    try:
        yield
    except StorageError as error:
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        status = os.statvfs(target.parent)
        raise NoRoomError(
            f"{error} The graph needs about {bytes_needed:,} bytes in {target.parent}; "
            f"{status.f_bavail * status.f_frsize:,} are free."
        ) from error


def by_kind(edges: Any) -> TypeGuard[Mapping[EdgeType, Any]]:
    return isinstance(edges, Mapping) and all(isinstance(k, tuple) for k in edges)


def target_of(out: str | os.PathLike[str]) -> Path:
    location = locate(out)
    if not location.is_local:
        raise JobSpecError(
            f"A graph is mapped from the disk, and {location} is not on this machine. Choose a "
            "folder for --out; copy it where it belongs afterwards."
        )
    target = Path(os.path.realpath(location.path))
    with storing("Looking at the target", target):
        taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    if taken and not is_graph(target):
        raise StorageError(f"{target} holds something else already; choose another target.")
    return target


def check_kinds(
    tables: Mapping[EdgeType, Any],
    kinds: Sequence[str],
    nodes: Mapping[str, Any],
    counts: Mapping[str, int],
) -> None:
    if not tables:
        raise JobSpecError("A graph needs a table of edges.")
    for kind in tables:
        if len(kind) != 3:
            raise JobSpecError(
                f"A kind of edges is named by source, relation and target. Got {kind!r} instead."
            )
        for name in kind:
            check_kind(name)
    for name in (*nodes, *counts):
        if name not in kinds:
            raise JobSpecError(
                f"No edges lead from or to nodes of kind '{name}'. There are: {', '.join(kinds)}."
            )
        if name in nodes and name in counts:
            raise JobSpecError(
                f"The table of '{name}' says how many nodes there are: leave num_nodes out for it."
            )
    for name, count in counts.items():
        if count < 0 or count >= 1 << 47:
            raise ParameterError(
                f"The number of nodes of kind '{name}' must be an int in the range [0, 2**47). Got "
                f"{count} instead."
            )


def open_table(data: Any, storage_options: Mapping[str, Any] | None) -> Dataset:
    """Open a table of edges or nodes, whose rows are numbered from 0 without a gap."""
    dataset = open_dataset(data, storage_options=storage_options)
    if dataset.rows != dataset.snapshot.next_row_id:
        raise JobSpecError(
            f"The rows of {dataset.snapshot.fragments[0].label} and the files after it are "
            "numbered with gaps, as those of a dataset that was opened since a snapshot, and a "
            "graph numbers them from 0. Open it without one."
        )
    return dataset


def open_edges(
    kind: EdgeType,
    data: Any,
    src: str | None,
    dst: str | None,
    weights: str | None,
    times: str | None,
    counts: Mapping[str, int],
    keys: Mapping[str, KeyTable],
    storage_options: Mapping[str, Any] | None,
) -> EdgeTable:
    """Open a table of edges, and see that its columns can be what they are named."""
    dataset = open_table(data, storage_options)
    names = dataset.schema.names
    source, target = _ends(names, src, dst)
    columns = EdgeColumns(
        source,
        target,
        weights if weights in names else None,
        times if times in names else None,
        counts.get(kind[0]),
        counts.get(kind[2]),
        (kind[0], kind[2]),
        keys.get(kind[0]),
        keys.get(kind[2]),
    )
    label = "the edges" if kind == ONE_KIND else f"the edges {','.join(kind)}"
    dataset.check_columns(columns.names)
    columns.check(dataset.schema, label)
    if dataset.rows == 0:
        raise SelectionError(
            f"The table of {label} holds {len(dataset.snapshot.fragments)} files and no rows; "
            "there is no graph to build."
        )
    return EdgeTable(kind, dataset, columns)


def of_kinds(given: Any) -> dict[str, Any]:
    """Return what was given for the only kind of nodes, or for several, by kind."""
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {ONE_KIND[0]: given}


def _ends(names: Sequence[str], src: str | None, dst: str | None) -> tuple[str, str]:
    """Return the columns of the sources and of the targets."""
    guess = next((pair for pair in _GUESSES if set(pair) <= set(names)), None)
    if guess is None and len(names) == 2:
        guess = (names[0], names[1])
    if (src is None or dst is None) and guess is None:
        raise JobSpecError(
            "The table of edges names its columns neither src and dst nor source and target: say "
            f"which they are with --src and --dst. It has: {', '.join(names[:30]) or 'none'}."
        )
    return src or (guess or ("", ""))[0], dst or (guess or ("", ""))[1]


# --- memory and disk ------------------------------------------------------------------------------


def share_memory(memory: int | None, workers: int | None, scheduler: str | None) -> Share:
    """Share out the job's memory; refuse one that is too little."""
    total = machine_memory() // 2 if memory is None else memory
    each = _TASK + _LEAST
    if scheduler is not None or workers == 0:
        least = each + (_PROGRAM - _TASK if scheduler is None else 0)
        _require(total, least, 0)
        return Share(workers, None, total - least + _LEAST)
    most = workers if workers is not None else os.cpu_count() or 1
    count = most
    if workers is None:
        count = max(0, min(most, (total - _PROGRAM) // (each + _LEAST)))
        if count == 0:
            return share_memory(memory, 0, None)
    _require(total, _PROGRAM + count * each, count)
    share = (total - _PROGRAM) // count
    # Dask ends a worker at 95 % of its share.
    return Share(count, total - _PROGRAM, int(share * 0.9) - _TASK)


def _require(total: int, least: int, workers: int) -> None:
    if total < least:
        fewer = f" for {workers} workers; use fewer, or" if workers else ";"
        raise ParameterError(
            f"Building a graph needs at least {size_text(least)} of memory{fewer} give it "
            f"--memory {mebibytes(least)}MiB or more. Got {size_text(total)}."
        )


def cut_ranges(
    cells: CellCounts, nodes: int, layout: RunLayout, columns: EdgeColumns, memory: int
) -> tuple[int, Ranges]:
    """Return how many edges a task holds, and the ranges."""
    # A window of edges, and once more while it is sorted by time or its values are split.
    per_edge = layout.sorted_bytes + 4 * layout.value_words
    if columns.times is not None:
        per_edge += layout.sorted_bytes + 16
    limit = max(1, memory // 2 // per_edge)
    each = min(limit, max(MOST_EDGES, -(-cells.edges // _MOST_RANGES)))
    # Of a node: how many edges, where they end, where they begin, where the next one goes.
    nodes_each = max(1, memory // 2 // 40)
    return limit, Ranges.cut(cells, nodes, edges_each=each, nodes_each=nodes_each)


def bytes_needed(tables: Sequence[EdgeTable]) -> int:
    """Return about how many bytes the folder takes while it is made."""
    total = most = 0
    for table in tables:
        layout = table.columns.layout(table.dataset.schema, table.columns.sources or 0)
        total += table.dataset.rows * layout.sorted_bytes + 8 * (table.columns.targets or 0)
        most = max(most, table.dataset.rows * layout.record_bytes)
    return total + most
