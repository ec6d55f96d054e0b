"""Making packed tables: what is packed, where, and how it is committed.

Fragments are packed one by one by `pack_refs`, which knows no scheduler: the job runs it on Dask,
the loader on threads. Files go under the names of their contents into a staging folder (or, named
so, straight to an object store); the header comes last, so that a table is there whole or not at
all. A target that holds a table of the same dataset before it grew is extended: the header is
replaced, and what the old one names stays.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from .cores import usable_cores
from .dataset import Dataset
from .errors import DatasetChangedError, PackedConflictError, PackedError
from .fragments import FragmentRef
from .objects import put_file
from .packed import PackedTable
from .packed_header import PackedFile, TableParts, table_id_of
from .packed_pages import check_file
from .packed_target import commit, place_of, what_is_there
from .packed_writer import pack_fragment
from .snapshot import Fragment
from .storage import Location, locate, storing
from .targets import check_space

__all__ = ["Runner", "pack_dataset", "pack_refs", "packed_parts", "run_on_threads"]

Runner: TypeAlias = Callable[
    [Sequence[FragmentRef], Sequence[str], pa.Schema, Location],
    Iterator[tuple[int, list[PackedFile]]],
]
"""(fragments, columns, schema, place) → (position of the fragment, its files), in any order."""


def pack_refs(
    refs: Sequence[FragmentRef], columns: Sequence[str], schema: pa.Schema, place: Location
) -> list[list[PackedFile]]:
    """Pack fragments one after another into a folder, or an object store's prefix.

    Returns
    -------
    list of list of PackedFile
        Parallel to `refs`, then to `columns`.
    """
    if place.is_local:
        return [pack_fragment(ref, columns, schema, Path(place.path)) for ref in refs]
    out = []
    for ref in refs:
        with tempfile.TemporaryDirectory(prefix="batchloom-") as folder:
            files = pack_fragment(ref, columns, schema, Path(folder))
            for file in files:
                put_file(place.join(file.name), Path(folder) / file.name)
            out.append(files)
    return out


def run_on_threads(workers: int | None = None) -> Runner:
    """Return what packs fragments on threads of this process: decoding leaves Python alone."""
    count = workers or usable_cores()

    def run(
        refs: Sequence[FragmentRef], columns: Sequence[str], schema: pa.Schema, place: Location
    ) -> Iterator[tuple[int, list[PackedFile]]]:
        if count <= 1 or len(refs) <= 1:
            for index, ref in enumerate(refs):
                yield index, pack_refs([ref], columns, schema, place)[0]
            return
        with ThreadPoolExecutor(count, thread_name_prefix="batchloom-pack") as pool:
            made = pool.map(lambda ref: pack_refs([ref], columns, schema, place)[0], refs)
            try:
                yield from enumerate(made)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return run


def packed_parts(
    dataset: Dataset, columns: Sequence[str] | None = None, fragments: Iterable[int] | None = None
) -> TableParts:
    """Return what a packed table of a dataset holds, which gives it its id.

    Parameters
    ----------
    dataset : Dataset
    columns : sequence of str, optional
        All when None.
    fragments : iterable of int, optional
        Indices into the snapshot's fragments; all that are there when None.
    """
    names = list(dict.fromkeys(dataset.schema.names if columns is None else columns))
    if not names:
        raise PackedError("A packed table holds at least one column; name some.")
    chosen = range(len(dataset.refs)) if fragments is None else fragments
    kept = []
    for index in sorted(set(chosen)):
        if not dataset.snapshot.fragments[index].rows:
            continue
        if dataset.refs[index] is None:
            if fragments is None:
                continue
            label = dataset.snapshot.fragments[index].label
            raise DatasetChangedError(f"Fragment {label} is gone, so it cannot be packed.")
        kept.append(index)
    dataset.check_columns(names, fragments=kept)
    schema = pa.schema([dataset.schema.field(name) for name in names])
    return TableParts(dataset.snapshot, schema, tuple(kept))


def pack_dataset(
    dataset: Dataset,
    out: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    fragments: Iterable[int] | None = None,
    run: Runner | None = None,
    reuse: Sequence[PackedTable] = (),
    storage_options: Mapping[str, Any] | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> PackedTable:
    """Decode columns once into a packed table, and commit it.

    Parameters
    ----------
    dataset : Dataset
    out : path or URI
    columns : sequence of str, optional
        All when None.
    fragments : iterable of int, optional
        Indices into the snapshot's fragments; all that are there when None.
    run : Runner, optional
        What packs the fragments; threads of this process when None.
    reuse : sequence of PackedTable
        Their files stand in for the same columns of the same fragments.
    storage_options : mapping, optional
        Options of the target's filesystem, for a URI.
    done : callable
        Told how many rows were packed since it was last called.

    Raises
    ------
    PackedConflictError
        Where the target holds something else.
    DatasetError, StorageError
    """
    parts = packed_parts(dataset, columns, fragments)
    target = locate(out, storage_options)
    there = what_is_there(target, out, storage_options)
    if there is not None and there.table_id == table_id_of(parts):
        return there
    if there is not None:
        _refuse_other(there, parts)
    known = _known_files([*([there] if there is not None else []), *reuse])
    refs = [dataset.refs[index] for index in parts.fragments]
    tasks = [ref for ref in refs if ref is not None]
    with ExitStack() as stack:
        place = place_of(target, stack)
        files: dict[int, list[PackedFile]] = {}
        missing: dict[tuple[str, ...], list[int]] = {}
        for chunk, index in enumerate(parts.fragments):
            fragment = dataset.snapshot.fragments[index]
            files[chunk], left = _taken_over(fragment, parts.schema, known, place, target)
            if left:
                missing.setdefault(tuple(left), []).append(chunk)
            else:
                done(fragment.rows)
        if place.is_local:
            _check_room(Path(place.path), parts, missing)
        for names, chunks in missing.items():
            todo = [tasks[c] for c in chunks]
            for position, made in (run or run_on_threads())(todo, names, parts.schema, place):
                files[chunks[position]] += made
                done(todo[position].rows)
        return commit(parts, files, place, target, out, storage_options, there)


# --- what is there already ------------------------------------------------------------------------


def _refuse_other(there: PackedTable, parts: TableParts) -> None:
    """Raise unless a table is one of the same dataset before it grew, or of fewer columns."""
    held = {there.snapshot.fragments[i] for i in there.parts.fragments}
    now = {parts.snapshot.fragments[i] for i in parts.fragments}
    names = set(parts.schema.names)
    if there.order is not None or not held <= now or not set(there.columns) <= names:
        what = "of other rows" if not held <= now else f"of the columns {', '.join(there.columns)}"
        raise PackedConflictError(
            f"{there.path} holds another packed table already, {what}. Choose another target; a "
            "table is only ever extended, by new fragments or more columns of the same dataset."
        )


Key: TypeAlias = tuple[Fragment, str, str]


def _known_files(tables: Sequence[PackedTable]) -> dict[Key, tuple[PackedTable, PackedFile]]:
    """Return the files of packed fragments, by what they were made of."""
    found: dict[Key, tuple[PackedTable, PackedFile]] = {}
    for table in tables:
        if table.order is not None:
            continue
        for chunk, file in table.files:
            fragment = table.snapshot.fragments[table.parts.fragments[chunk]]
            found[_key(fragment, table.schema.field(file.column))] = table, file
    return found


def _key(fragment: Fragment, field: pa.Field) -> Key:
    # Where its rows are counted from does not matter to their bytes.
    return Fragment(**{**vars(fragment), "first_row_id": -1}), field.name, str(field.type)


def _taken_over(
    fragment: Fragment,
    schema: pa.Schema,
    known: Mapping[Key, tuple[PackedTable, PackedFile]],
    place: Location,
    target: Location,
) -> tuple[list[PackedFile], list[str]]:
    """Return (files that are used again, columns that must be packed) of a fragment."""
    files, left = [], []
    for field in schema:
        found = known.get(_key(fragment, field))
        if found is None:
            left.append(field.name)
            continue
        table, file = found
        files.append(file)
        source = table.location.join(file.name)
        if table.location.path == target.path:
            continue
        if place.is_local:
            _bring(source, Path(place.path), file)
        elif not place.join(file.name).exists():
            with tempfile.TemporaryDirectory(prefix="batchloom-") as folder:
                _bring(source, Path(folder), file)
                put_file(place.join(file.name), Path(folder) / file.name)
    return files, left


def _bring(source: Location, folder: Path, file: PackedFile) -> None:
    """Give a packed file a second name, or copy it, checked, where no link can be made."""
    target = folder / file.name
    if source.is_local:
        with suppress(OSError):  # another device, or a file system without links
            os.link(os.path.realpath(source.path), target)
            return
    with storing("Copying a packed file", target), source.open() as opened:
        with open(target, "wb") as copy:
            shutil.copyfileobj(opened, copy, 8 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        with open(target, "rb", buffering=0) as copied:
            check_file(str(target), file, copied)


def _check_room(
    folder: Path, parts: TableParts, missing: Mapping[tuple[str, ...], Sequence[int]]
) -> None:
    """Refuse to begin where the fixed-width columns alone do not fit the disk."""
    from .packed_layout import layout_of

    rows = [n for _, n in parts.chunks()]
    needed = 0
    for names, chunks in missing.items():
        width = sum(layout_of(parts.schema.field(name).type).item_bytes for name in names)
        needed += width * sum(rows[c] for c in chunks)
    check_space(folder, needed, "The packed table")
