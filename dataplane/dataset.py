"""Datasets: one or more named sources of Parquet and Arrow files, with row ids.

>>> dataset = open_dataset("data/")                       # a directory, file, glob or list
>>> dataset = open_dataset({"web": "web/*.parquet", "books": "s3://bucket/books/"})
>>> for part in dataset.scan(["loss"]): part.fragment, part.first_row_id, part.batch
>>> dataset.take([7, 3, 3], ["text"])
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import DatasetError, SchemaDriftError
from .fragments import (
    SUFFIXES,
    Footer,
    FragmentReader,
    FragmentRef,
    drift_message,
    missing_column,
    read_footer,
    read_footer_hash,
)
from .snapshot import (
    Fragment,
    Snapshot,
    extend_snapshot,
    first_snapshot,
    match_fragments,
    schema_digest,
)
from .storage import Location, locate, natural_key

__all__ = ["Dataset", "DatasetLike", "ScanPart", "open_dataset"]

DatasetLike: TypeAlias = (
    "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
    " | Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]] | Dataset"
)

_FOOTER_THREADS = 8


@dataclass(frozen=True)
class _Listed:
    """A file of a source before its footer is read."""

    source: str
    path: str  # relative to the source's root
    location: Location
    bytes: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.source, self.path, self.bytes


@dataclass(frozen=True)
class ScanPart:
    """One record batch of a scan; its rows are ``first_row_id``, ``first_row_id + 1``, …"""

    fragment: FragmentRef
    first_row_id: int
    batch: pa.RecordBatch

    def row_ids(self) -> npt.NDArray[np.uint64]:
        start = self.first_row_id
        return np.arange(start, start + self.batch.num_rows, dtype=np.uint64)


@dataclass(frozen=True)
class Dataset:
    """A snapshot and where its fragments are.

    Attributes
    ----------
    snapshot : Snapshot
    refs : tuple of FragmentRef or None
        Parallel to ``snapshot.fragments``; None for a fragment that was not needed and is gone.
    schemas : tuple of pyarrow.Schema or None
        As read from the footers; None where only the fingerprint was compared.
    unplanned : int
        Files beside those of the snapshot, when it was opened with a given snapshot.
    """

    snapshot: Snapshot
    refs: tuple[FragmentRef | None, ...]
    schemas: tuple[pa.Schema | None, ...] = field(repr=False)
    unplanned: int = 0

    @property
    def rows(self) -> int:
        return self.snapshot.rows

    @cached_property
    def schema(self) -> pa.Schema:
        """All columns, each with the type of the first fragment that has it."""
        schemas = [s for s in self.schemas if s is not None]
        if not schemas:
            ref = next((r for r in self.refs if r is not None), None)
            schemas = [read_footer(ref.location, ref.bytes).schema] if ref is not None else []
        return _union(schemas)

    def present(self) -> list[FragmentRef]:
        """The fragments that are there, in order of row ids."""
        return [r for r in self.refs if r is not None]

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raise unless every fragment holds every column, with one type each."""
        wanted = list(columns)
        for name in wanted:
            if self.schema.get_field_index(name) < 0:
                raise missing_column(name, self.schema.names, "the dataset")
        seen: set[int] = set()
        for fragment, schema in zip(self.snapshot.fragments, self.schemas, strict=True):
            if schema is None or id(schema) in seen:
                continue
            seen.add(id(schema))  # fragments with equal schemas share one object
            for name in wanted:
                expected = self.schema.field(name).type
                index = schema.get_field_index(name)
                if index < 0:
                    raise SchemaDriftError(
                        f"{fragment.label} has no column '{name}'; other fragments have it as "
                        f"{expected}. Leave that file out, or rewrite it with the column."
                    )
                if schema.field(index).type != expected:
                    found = schema.field(index).type
                    raise SchemaDriftError(drift_message(fragment.label, name, found, expected))

    def scan(
        self, columns: Sequence[str] | None = None, *, fragments: Sequence[int] | None = None
    ) -> Iterator[ScanPart]:
        """Yield (fragment, first row id, record batch) in order of row ids.

        Parameters
        ----------
        columns : sequence of str, optional
            Columns to decode; all when None.
        fragments : sequence of int, optional
            Indices into ``snapshot.fragments``; all when None.
        """
        if columns is not None:
            self.check_columns(columns)
        chosen = range(len(self.refs)) if fragments is None else fragments
        for index in chosen:
            ref = self.refs[index]
            if ref is not None and ref.rows:
                yield from scan_fragment(ref, columns, self.schema)

    def take(self, ids: npt.ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of row ids, in the order given, repeats included."""
        from .rows import RowReader

        return RowReader(self, columns).take(np.asarray(ids, dtype=np.uint64))


def scan_fragment(
    ref: FragmentRef, columns: Sequence[str] | None, expected: pa.Schema | None = None
) -> Iterator[ScanPart]:
    """Scan one fragment; what `Dataset.scan` and the Dask tasks share."""
    reader = FragmentReader(ref, columns, expected)
    try:
        first = ref.first_row_id
        for batch in reader.batches():
            yield ScanPart(ref, first, batch)
            first += batch.num_rows
    finally:
        reader.close()


def open_dataset(
    data: DatasetLike,
    *,
    snapshot: Snapshot | str | Path | None = None,
    since: Snapshot | str | Path | None = None,
    needed: Iterable[int] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """List a dataset's files and give their rows ids.

    Parameters
    ----------
    data : path, URI, list or mapping
        A file, a directory, a glob, a list of files, or a mapping from source names to these. An
        unnamed source is called ``data``. Files are chosen by suffix (``.parquet .pq .arrow
        .feather .ipc .arrows``); hidden ones (``.x``, ``_x``) are left out.
    snapshot : Snapshot or path, optional
        Open exactly this snapshot: its fragments must be there unchanged; others are ignored.
    since : Snapshot or path, optional
        Number the rows so that every fragment which `since` knows keeps its ids.
    needed : iterable of int, optional
        With `snapshot`: indices of the fragments that must be there; all when None.
    storage_options : mapping, optional
        Options of the filesystem (credentials, endpoints), for URIs.

    Raises
    ------
    DatasetError, SchemaDriftError, FragmentCorruptError, DatasetChangedError
    """
    if isinstance(data, Dataset):
        if snapshot is None and since is None:
            return data
        listed = _relist(data)
    else:
        listed = _list_sources(data, storage_options)
    if snapshot is not None:
        return _bind(listed, _as_snapshot(snapshot), needed)
    footers = _read_footers(listed)
    schemas = _checked_schemas(listed, footers)
    fragments = [
        Fragment(file.source, file.path, footer.rows, footer.bytes, footer.footer_hash)
        for file, footer in zip(listed, footers, strict=True)
    ]
    digest_ = schema_digest(_union(schemas))
    made = (
        first_snapshot(fragments, digest_)
        if since is None
        else extend_snapshot(_as_snapshot(since), fragments, digest_)
    )
    place = {(file.source, file.path): i for i, file in enumerate(listed)}
    order = [place[f.source, f.path] for f in made.fragments]
    return Dataset(
        made,
        tuple(_ref(f, listed[i]) for f, i in zip(made.fragments, order, strict=True)),
        tuple(schemas[i] for i in order),
    )


def _as_snapshot(value: Snapshot | str | Path) -> Snapshot:
    return value if isinstance(value, Snapshot) else Snapshot.load(value)


def _ref(fragment: Fragment, file: _Listed) -> FragmentRef:
    return FragmentRef(
        file.location.path,
        fragment.label,
        fragment.rows,
        fragment.bytes,
        fragment.first_row_id,
        file.location.options,
    )


def _bind(listed: list[_Listed], snapshot: Snapshot, needed: Iterable[int] | None) -> Dataset:
    """Find a snapshot's fragments among the listed files."""
    wanted = list(range(len(snapshot.fragments)) if needed is None else needed)

    def footer_hash_of(index: int) -> str:
        return read_footer_hash(listed[index].location, listed[index].bytes)

    pairs = match_fragments(snapshot.fragments, [f.key for f in listed], footer_hash_of, wanted)
    refs = [
        _ref(fragment, listed[pairs[i]]) if i in pairs else None
        for i, fragment in enumerate(snapshot.fragments)
    ]
    return Dataset(snapshot, tuple(refs), (None,) * len(refs), unplanned=len(listed) - len(pairs))


# --- listing --------------------------------------------------------------------------------------


def _list_sources(data: Any, options: Mapping[str, Any] | None) -> list[_Listed]:
    sources = data if isinstance(data, Mapping) else {"data": data}
    if not sources:
        raise DatasetError("A dataset needs at least one source.")
    listed: list[_Listed] = []
    for name, where in sources.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise DatasetError(
                f"Source name '{name}' must be made of letters, digits, '_', '-' and '.'."
            )
        listed += _list_source(name, where, options)
    return listed


def _list_source(name: str, where: Any, options: Mapping[str, Any] | None) -> list[_Listed]:
    if isinstance(where, str | os.PathLike):
        location = locate(where, options)
        if re.search(r"[*?\[]", location.path) and not location.exists():
            files = _list_glob(location)
        elif location.is_dir():
            files = [(rel, location.join(rel), size) for rel, size in location.files()]
        elif location.exists():
            files = [(location.name, location, location.size())]
        else:
            raise DatasetError(f"{location}: no such file or directory.")
        what = str(location)
    else:
        locations = [locate(w, options) for w in where]
        files = _relative([(place, place.size()) for place in locations])
        what = f"the list of {len(locations)} files"
    chosen = [f for f in files if f[0].lower().endswith(SUFFIXES)]
    if not chosen:
        found = f"{len(files)} other files" if files else "nothing"
        raise DatasetError(
            f"There is no Parquet or Arrow file in {what} (found {found}). "
            f"Data files end with {', '.join(SUFFIXES)}."
        )
    chosen.sort(key=lambda f: natural_key(f[0]))
    return [_Listed(name, relative, place, size) for relative, place, size in chosen]


def _list_glob(pattern: Location) -> list[tuple[str, Location, int]]:
    """Paths are relative to the pattern's fixed prefix."""
    fixed = re.split(r"[*?\[]", pattern.path, maxsplit=1)[0]
    root = fixed[: fixed.rfind("/") + 1]
    places = [p for p in pattern.glob() if not p.is_dir()]
    return [(p.path.removeprefix(root).lstrip("/"), p, p.size()) for p in places]


def _relative(places: list[tuple[Location, int]]) -> list[tuple[str, Location, int]]:
    """Paths are relative to the files' common folder."""
    if len({place.path for place, _ in places}) < len(places):
        raise DatasetError("A list of files names the same file twice.")
    folders = [posixpath.dirname(place.path) for place, _ in places]
    common = posixpath.commonpath(folders) if folders else ""
    return [(p.path.removeprefix(common).lstrip("/"), p, size) for p, size in places]


def _relist(dataset: Dataset) -> list[_Listed]:
    return [
        _Listed(f.source, f.path, ref.location, ref.bytes)
        for f, ref in zip(dataset.snapshot.fragments, dataset.refs, strict=True)
        if ref is not None
    ]


# --- footers and schemas --------------------------------------------------------------------------


def _read_footers(listed: list[_Listed]) -> list[Footer]:
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(lambda f: read_footer(f.location, f.bytes), listed))


def _checked_schemas(listed: list[_Listed], footers: list[Footer]) -> list[pa.Schema]:
    """Share equal schemas; raise where a column's type differs inside one source."""
    shared: dict[str, pa.Schema] = {}
    types: dict[tuple[str, str], Any] = {}
    checked: set[tuple[str, str]] = set()
    out = []
    for file, footer in zip(listed, footers, strict=True):
        key = str([(f.name, str(f.type)) for f in footer.schema])
        schema = shared.setdefault(key, footer.schema)
        out.append(schema)
        if (file.source, key) in checked:
            continue
        checked.add((file.source, key))
        for column in schema:
            first = types.setdefault((file.source, column.name), column.type)
            if column.type != first:
                label = f"{file.source}:{file.path}"
                raise SchemaDriftError(drift_message(label, column.name, column.type, first))
    return out


def _union(schemas: Iterable[pa.Schema]) -> pa.Schema:
    fields: dict[str, pa.Field] = {}
    seen: set[int] = set()
    for schema in schemas:
        if id(schema) not in seen:
            seen.add(id(schema))
            for column in schema:
                fields.setdefault(column.name, pa.field(column.name, column.type))
    return pa.schema(list(fields.values()))
