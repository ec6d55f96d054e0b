"""Datasets: one or more named sources of Parquet and Arrow files, with row ids.

>>> dataset = open_dataset("data/")                       # a directory, file, glob or list
>>> dataset = open_dataset({"web": "web/*.parquet", "books": "s3://bucket/books/"})
>>> for part in dataset.scan(["loss"]): part.fragment, part.first_row_id, part.batch
>>> dataset.take([7, 3, 3], ["text"])
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import DatasetError, ParameterError
from .fragments import (
    FOOTER_THREADS,
    Footer,
    FragmentReader,
    FragmentRef,
    read_footer,
    read_footer_hash,
)
from .listing import Listed, list_sources
from .schemas import (
    drift,
    missing_column,
    plain_schema,
    plain_type,
    refuse_equal_names,
    schema_digest,
)
from .snapshot import Fragment, Snapshot, extend_snapshot, first_snapshot, match_fragments

__all__ = ["Dataset", "DatasetLike", "ScanPart", "open_dataset"]

DatasetLike: TypeAlias = (
    "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
    " | Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]] | Dataset"
)


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
        Whatever is opened through them is checked against the snapshot first.
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
        """All columns, each with the plain type of the first fragment that has it."""
        return plain_schema(self.source_schemas.values())

    @cached_property
    def source_schemas(self) -> dict[str, pa.Schema]:
        """All columns of each source; those of one fragment where the footers were not parsed."""
        found: dict[str, list[pa.Schema]] = {}
        for fragment, ref, schema in zip(
            self.snapshot.fragments, self.refs, self.schemas, strict=True
        ):
            known = found.setdefault(fragment.source, [])
            if schema is not None:
                known.append(schema)
            elif ref is not None and not known:
                known += _schema_if_unchanged(fragment, ref)
        return {source: plain_schema(schemas) for source, schemas in found.items()}

    def present(self) -> list[FragmentRef]:
        """The fragments that are there, in order of row ids."""
        return [r for r in self.refs if r is not None]

    def check_columns(
        self, columns: Iterable[str], *, fragments: Iterable[int] | None = None
    ) -> None:
        """Raise unless the fragments (all when None) hold every column, with one type each."""
        wanted = list(columns)
        for name in wanted:
            if name not in self.schema.names:
                raise missing_column(name, self.schema.names, "the dataset")
        seen: set[int] = set()
        types: dict[str, Any] = {}
        for index in range(len(self.schemas)) if fragments is None else fragments:
            schema = self.schemas[index]
            if schema is None or id(schema) in seen:
                continue
            seen.add(id(schema))  # fragments with equal schemas share one object
            label = self.snapshot.fragments[index].label
            for name in wanted:
                if name not in schema.names:
                    raise drift(label, name, None, self.schema.field(name).type)
                found = plain_type(schema.field(name).type)
                if found != types.setdefault(name, found):
                    raise drift(label, name, found, types[name])

    def check_sources(self, columns: Iterable[str]) -> None:
        """Raise unless each source holds what it holds of the columns in all its fragments."""
        wanted = list(columns)
        self.check_columns(wanted, fragments=[])
        for source, schema in self.source_schemas.items():
            inside = [i for i, f in enumerate(self.snapshot.fragments) if f.source == source]
            self.check_columns([c for c in wanted if c in schema.names], fragments=inside)

    def scan(
        self, columns: Sequence[str] | None = None, *, fragments: Sequence[int] | None = None
    ) -> Iterator[ScanPart]:
        """Yield (fragment, first row id, record batch) in order of row ids.

        Parameters
        ----------
        columns : sequence of str, optional
            Columns to decode; when None all of each fragment's source.
        fragments : sequence of int, optional
            Indices into ``snapshot.fragments``; all when None.
        """
        if columns is None:
            self.check_sources(self.schema.names)
        else:
            self.check_columns(columns, fragments=fragments)
        chosen = range(len(self.refs)) if fragments is None else fragments
        return itertools.chain.from_iterable(self._scan(index, columns) for index in chosen)

    def _scan(self, index: int, columns: Sequence[str] | None) -> Iterator[ScanPart]:
        ref, own = self.refs[index], self.source_schemas[self.snapshot.fragments[index].source]
        if ref is not None and ref.rows:
            expected = plain_schema([own, self.schema])  # its source's types go first
            yield from scan_fragment(ref, own.names if columns is None else columns, expected)

    def take(self, ids: npt.ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of row ids, in the order given, repeats included."""
        from .rows import RowReader

        reader = RowReader(self, columns)
        try:
            return reader.take(ids)
        finally:
            reader.close()


def scan_fragment(
    ref: FragmentRef,
    columns: Sequence[str] | None,
    expected: pa.Schema | None = None,
    chunks: range | None = None,
) -> Iterator[ScanPart]:
    """Scan one fragment, or some runs of its chunks; `Dataset.scan` and the Dask tasks share it."""
    reader = FragmentReader(ref, columns, expected)
    try:
        before = 0 if chunks is None else int(reader.chunk_rows[: chunks.start].sum())
        first = ref.first_row_id + before
        for batch in reader.batches(chunks):
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
        unnamed source is called ``data``, or is one source a split where a directory names splits
        (`hub_folders`). Files are chosen by suffix (``.parquet .pq .arrow
        .feather .ipc .arrows``); hidden ones (``.x``, ``_x``) are left out.
    snapshot : Snapshot, path or URI, optional
        Open exactly this snapshot: its fragments must be there unchanged; others are ignored.
    since : Snapshot, path or URI, optional
        Number the rows so that every fragment which `since` knows keeps its ids.
    needed : iterable of int, optional
        With `snapshot`: indices of the fragments that must be there; all when None. The others are
        checked when they are read.
    storage_options : mapping, optional
        Options of the filesystem (credentials, endpoints), for URIs.

    Raises
    ------
    DatasetError, SchemaDriftError, FragmentCorruptError, DatasetChangedError
    """
    if snapshot is not None and since is not None:
        raise ParameterError("Give a 'snapshot' to open or one to go on from ('since'), not both.")
    given = since if snapshot is None else snapshot
    base = None if given is None else _as_snapshot(given, storage_options)
    if isinstance(data, Dataset):
        if base is None:
            return data
        listed = _relist(data)
    else:
        unnamed = base is not None and {f.source for f in base.fragments} == {"data"}
        listed = list_sources(data, storage_options, by_split=not unnamed)
    if base is not None and snapshot is not None:
        return _bind(listed, base, needed)
    footers = _read_footers(listed)
    schemas = _checked_schemas(listed, footers)
    fragments = [
        Fragment(file.source, file.path, footer.rows, footer.bytes, footer.footer_hash)
        for file, footer in zip(listed, footers, strict=True)
    ]
    digest_ = schema_digest(plain_schema(schemas))
    made = (
        first_snapshot(fragments, digest_)
        if base is None
        else extend_snapshot(base, fragments, digest_)
    )
    place = {(file.source, file.path): i for i, file in enumerate(listed)}
    order = [place[f.source, f.path] for f in made.fragments]
    return Dataset(
        made,
        tuple(_ref(f, listed[i]) for f, i in zip(made.fragments, order, strict=True)),
        tuple(schemas[i] for i in order),
    )


def _as_snapshot(
    value: Snapshot | str | Path, storage_options: Mapping[str, Any] | None
) -> Snapshot:
    if isinstance(value, Snapshot):
        return value
    return Snapshot.load(value, storage_options=storage_options)


def _ref(fragment: Fragment, file: Listed) -> FragmentRef:
    return FragmentRef(
        file.location.path,
        fragment.label,
        fragment.rows,
        fragment.bytes,
        fragment.first_row_id,
        file.location.options,
        fragment.footer_hash,
    )


def _bind(listed: list[Listed], snapshot: Snapshot, needed: Iterable[int] | None) -> Dataset:
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


def _schema_if_unchanged(fragment: Fragment, ref: FragmentRef) -> list[pa.Schema]:
    """Return a bound fragment's schema; nothing where it changed, as one not needed may have."""
    try:
        footer = read_footer(ref.location, ref.location.size())
    except DatasetError:
        return []
    found = Fragment("", "", footer.rows, footer.bytes, footer.footer_hash)
    return [footer.schema] if fragment.same_file(found) else []


def _relist(dataset: Dataset) -> list[Listed]:
    return [
        Listed(f.source, f.path, ref.location, ref.location.size())
        for f, ref in zip(dataset.snapshot.fragments, dataset.refs, strict=True)
        if ref is not None
    ]


# --- footers and schemas --------------------------------------------------------------------------


def _read_footers(listed: list[Listed]) -> list[Footer]:
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(lambda f: read_footer(f.location, f.bytes), listed))


def _checked_schemas(listed: list[Listed], footers: list[Footer]) -> list[pa.Schema]:
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
        refuse_equal_names(schema, file.label)
        for column in schema:
            found = plain_type(column.type)
            first = types.setdefault((file.source, column.name), found)
            if found != first:
                raise drift(file.label, column.name, found, first)
    return out
