"""Building a graph: edge tables larger than memory to arrays that are mapped.

    edges ─► counted by target ─► dealt to ranges of targets ─► sorted by range ─► hashed ─► commit

Each arrow is a map of tasks on the engine; `samplers.graph.edge_sort` says how edges are sorted.
The folder (`samplers.graph.graph_header`) does not depend on workers, tasks or memory. It is built
beside its place and renamed once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..dataplane.canonical import pretty_json
from ..dataplane.commit import publish, staging, sync_path, write_synced
from ..dataplane.dataset import Dataset, DatasetLike
from ..dataplane.errors import StorageError
from ..dataplane.storage import storing
from ..dataplane.versions import versions
from ..samplers.graph.edge_runs import RunLayout
from ..samplers.graph.edge_sort import CellCounts, Ranges
from ..samplers.graph.graph_header import (
    EDGES,
    HEADER,
    ArrayRecord,
    EdgesRecord,
    EdgeType,
    GraphHeader,
    edges_folder,
    is_graph,
    new_array,
    ordered_kinds,
    read_header,
)
from .engine import Engine, parse_bytes
from .graph_inputs import (
    MOST_EDGES,
    ONE_KIND,
    EdgeTable,
    Share,
    by_kind,
    bytes_needed,
    check_kinds,
    cut_ranges,
    of_kinds,
    open_edges,
    open_table,
    room_for,
    share_memory,
    target_of,
)
from .graph_keys import KeyTable, check_keys, forget_tables, make_tables
from .graph_nodes import check_listing, node_columns, write_marker, write_nodes
from .graph_tasks import HashTask, RangeTask, count_edges, deal_edges, hash_array, sort_edges
from .progress import LogProgress, Progress
from .start import refuse_inside
from .tasks import TASK_BYTES, group_tasks

__all__ = ["ONE_KIND", "build_graph"]


def build_graph(
    edges: DatasetLike | Mapping[EdgeType, DatasetLike],
    out: str | os.PathLike[str],
    *,
    nodes: DatasetLike | Mapping[str, DatasetLike] | None = None,
    num_nodes: int | Mapping[str, int] | None = None,
    key: str | Mapping[str, str] | None = None,
    src: str | None = None,
    dst: str | None = None,
    weights: str | None = None,
    times: str | None = None,
    memory: int | str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    task_bytes: int = TASK_BYTES,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> GraphHeader:
    """Make a folder of mapped arrays of edge tables.

    Parameters
    ----------
    edges : path, URI, list, mapping or Dataset; or mapping of (source, relation, target) to these
        Tables of a row an edge. A mapping by kinds is of a graph of several.
    out : path
        Folder to make, on this machine's file systems. The same graph already there is success.
    nodes : the same, or a mapping of kinds to these, optional
        Tables of a row a node, which become part of the folder: links, or copies where none can be
        made. Without one a kind has the nodes that its edges name.
    num_nodes : int, or mapping of kinds to int, optional
        Nodes of a kind without a table, where there may be more than edges name.
    key : str, or mapping of kinds to str, optional
        A column of the table of nodes by which edges name them, of integers or text, unique. None:
        edges name them by the numbers of their rows.
    src, dst : str, optional
        Columns of the nodes' numbers, from 0, or of their keys. None:
        ``src`` and ``dst``, ``source`` and ``target``, or the only two columns.
    weights, times : str, optional
        Columns that edges keep, in each table that has them. Edges into a node ascend by time.
    memory : int or str, optional
        Bytes, or ``"4GiB"``, of the whole job. None: half of the machine's.
    workers : int, optional
        Processes of the embedded cluster; 0: none. None: one a core, as memory allows.
    scheduler : str, optional
        Address of a running Dask scheduler, whose workers see the same files.
    task_bytes : int
        Compressed bytes a task reads. Changes no byte.
    progress : Progress, optional
    storage_options : mapping, optional
        Options of the filesystem of the tables.

    Returns
    -------
    GraphHeader

    Raises
    ------
    BatchloomError
        One clear sentence; nothing half-written stays.
    """
    progress = progress or LogProgress()
    target = target_of(out)
    share = share_memory(None if memory is None else parse_bytes(memory), workers, scheduler)
    tables = dict(sorted(edges.items())) if by_kind(edges) else {ONE_KIND: edges}
    node_data, counts, key_columns = of_kinds(nodes), of_kinds(num_nodes), of_kinds(key)
    kinds = ordered_kinds(list(dict.fromkeys(e for k in tables for e in (k[0], k[2]))))
    check_kinds(tables, kinds, node_data, counts)
    for data in (*tables.values(), *node_data.values()):
        refuse_inside(target, data, storage_options)
    node_tables = {k: open_table(d, storage_options) for k, d in node_data.items()}
    counts |= {kind: dataset.rows for kind, dataset in node_tables.items()}
    keys = check_keys(key_columns, node_tables, share.sorting)
    opened = [
        open_edges(kind, data, src, dst, weights, times, counts, keys, storage_options)
        for kind, data in tables.items()
    ]
    for wanted in (weights, times):
        if wanted is not None and not any(wanted in e.columns.values for e in opened):
            opened[0].dataset.check_columns([wanted])
    with (
        room_for(target, bytes_needed(opened)),
        staging(target) as folder,
    ):
        with Engine(
            scheduler=scheduler,
            workers=share.workers,
            memory=share.for_workers,
            folder=folder,
            note=progress.note,
            warn=progress.warn,
        ) as engine:
            job = _Job(folder, engine, progress, share, task_bytes)
            with job.joined(opened, keys, node_tables) as tables_by_number:
                header = job.run(tables_by_number, kinds, node_tables, counts)
        return _commit(folder, target, header)


class _Job:
    """The maps of one graph."""

    def __init__(
        self, folder: Path, engine: Engine, progress: Progress, share: Share, task_bytes: int
    ) -> None:
        self._folder, self._engine, self._progress = folder, engine, progress
        self._share, self._task_bytes = share, task_bytes

    @contextmanager
    def joined(
        self,
        tables: Sequence[EdgeTable],
        keys: Mapping[str, KeyTable],
        node_tables: Mapping[str, Dataset],
    ) -> Iterator[Sequence[EdgeTable]]:
        """Give the tables what they look keys up in, of those that have any."""
        if not keys:
            yield tables
            return
        folder = self._folder / ".keys"
        with storing("Preparing the graph's folder", folder):
            folder.mkdir()
        try:
            made = make_tables(keys, node_tables, folder, self._engine, self._progress)
            yield [
                replace(
                    t,
                    columns=replace(
                        t.columns,
                        source_keys=made.get(t.kind[0]),
                        target_keys=made.get(t.kind[2]),
                    ),
                )
                for t in tables
            ]
        finally:
            forget_tables()
            shutil.rmtree(folder, ignore_errors=True)

    def run(
        self,
        tables: Sequence[EdgeTable],
        kinds: Sequence[str],
        node_tables: Mapping[str, Dataset],
        known: Mapping[str, int],
    ) -> GraphHeader:
        counted = [self._count(table) for table in tables]
        nodes = {kind: known.get(kind, 0) for kind in kinds}
        for table, cells in zip(tables, counted, strict=True):
            for kind, most in ((table.kind[0], cells.source), (table.kind[2], cells.target)):
                if kind not in known:
                    nodes[kind] = max(nodes[kind], most + 1)
        edges = [
            self._sort(table, cells, nodes) for table, cells in zip(tables, counted, strict=True)
        ]
        records = tuple(
            write_nodes(self._folder / kind, kind, nodes[kind], node_tables.get(kind))
            for kind in kinds
        )
        provenance = {
            "created_by": versions(),
            "edges": {
                table.name: {
                    "fingerprint": table.dataset.snapshot.fingerprint,
                    "columns": table.columns.names,
                }
                for table in tables
            },
        }
        header = GraphHeader(records, tuple(edges), provenance)
        for kind in kinds:
            schema = node_columns(node_tables.get(kind))
            write_marker(self._folder / kind, header.fingerprint, schema)
        return header

    def _count(self, table: EdgeTable) -> CellCounts:
        tasks = group_tasks(table.dataset.present(), self._task_bytes)
        cells = CellCounts.none()
        with self._progress.step(f"counting {table.name}", table.dataset.rows) as step:
            for position, found in self._engine.map(
                count_edges, tasks, table.columns, table.dataset.schema
            ):
                cells = cells + found
                step.advance(tasks[position].rows)
        return cells

    def _sort(self, table: EdgeTable, cells: CellCounts, nodes: Mapping[str, int]) -> EdgesRecord:
        count, schema = nodes[table.kind[2]], table.dataset.schema
        layout = table.columns.layout(schema, nodes[table.kind[0]])
        limit, ranges = cut_ranges(cells, count, layout, table.columns, self._share.sorting)
        spill = self._folder / ".spill"
        with storing("Preparing the graph's folder", spill):
            spill.mkdir()
        try:
            listing = self._deal(table, layout, ranges, spill)
            arrays = self._arrays(table, layout, count, cells.edges)
            tasks = [
                RangeTask(
                    b,
                    int(ranges.first[b]),
                    int(ranges.first[b + 1]),
                    int(ranges.position[b]),
                    int(ranges.position[b + 1]),
                    listing,
                )
                for b in range(len(ranges))
            ]
            by_time = None if table.columns.times is None else len(layout.values) - 1
            with self._progress.step(f"sorting {table.name}", cells.edges) as step:
                places = [(str(path), start) for path, start in arrays]
                for _, done in self._engine.map(sort_edges, tasks, layout, places, limit, by_time):
                    step.advance(done)
        finally:
            shutil.rmtree(spill, ignore_errors=True)
        hashing = [HashTask(i, str(path), path.stem) for i, (path, _) in enumerate(arrays)]
        found: dict[int, ArrayRecord] = {}
        with self._progress.step(f"hashing {table.name}", len(hashing)) as step:
            for position, record in self._engine.map(hash_array, hashing):
                found[position] = record
                step.advance(1)
        records = tuple(found[i] for i in range(len(hashing)))
        return EdgesRecord(table.kind, cells.edges, records)

    def _deal(self, table: EdgeTable, layout: RunLayout, ranges: Ranges, spill: Path) -> str:
        """Deal the edges; return the listing of the files."""
        ranges_file = spill / "ranges.npz"
        ranges.save(ranges_file)
        tasks = group_tasks(table.dataset.present(), self._task_bytes)
        per_edge = 16 + 4 * layout.value_words + layout.record_bytes
        run_edges = max(1, min(MOST_EDGES, self._share.sorting // per_edge))
        found: dict[int, tuple[str, str]] = {}
        with self._progress.step(f"dealing {table.name}", table.dataset.rows) as step:
            for position, files in self._engine.map(
                deal_edges, tasks, table.columns, table.dataset.schema, layout, str(ranges_file),
                str(spill), run_edges,
            ):  # fmt: skip
                found[position] = files
                step.advance(tasks[position].rows)
        listing = spill / "listing.json"
        with storing("Writing intermediate results", listing):
            listing.write_text(json.dumps([found[i] for i in sorted(found)]))
        return str(listing)

    def _arrays(
        self, table: EdgeTable, layout: RunLayout, nodes: int, edges: int
    ) -> list[tuple[Path, int]]:
        """Make the files of the arrays; return where their values begin."""
        folder = self._folder / edges_folder(table.kind)
        with storing("Preparing the graph's arrays", folder):
            folder.mkdir(parents=True)
        wide = np.dtype(np.int64)
        names = [n for n in ("weights", "times") if getattr(table.columns, n) is not None]
        shapes = [
            ("colptr", wide, nodes + 1),
            ("row", layout.row_dtype, edges),
            ("permutation", wide, edges),
            *((n, d, edges) for n, d in zip(names, layout.values, strict=True)),
        ]
        found = []
        for name, dtype, size in shapes:
            path = folder / f"{name}.npy"
            found.append((path, new_array(path, dtype, size)))
        return found


# --- commit ---------------------------------------------------------------------------------------


def _commit(folder: Path, target: Path, header: GraphHeader) -> GraphHeader:
    kinds = {"splits": [record.type for record in header.nodes]}
    with storing("Writing the graph's header", folder):
        write_synced(folder / "dataset_dict.json", pretty_json(kinds))
        check_listing(folder, header.num_nodes)
        for record in header.edges:
            sync_path(folder / edges_folder(record.type))
        sync_path(folder / EDGES)
        write_synced(folder / HEADER, header.to_bytes())
    if publish(folder, target):
        return header
    if is_graph(target) and read_header(target).fingerprint == header.fingerprint:
        return header
    raise StorageError(f"{target} holds another graph already; choose another target.")
