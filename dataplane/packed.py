"""Packed tables: a dataset's columns as row-addressable, uncompressed files. This is the format.

A packed table is a directory, or a prefix of an object store::

    packed.json               the header, written last
    column-<sha256>.arrow     one column of one fragment
    pages-<sha256>.bin        checksums of all pages

**Column files** are ordinary uncompressed Arrow IPC files, which pyarrow reads. They hold a single
record batch (of kind *arrow*, which has no better form: several) whose buffers all lie at multiples
of 64 bytes, in the file and so in a map of it: row k of a fixed-width column is ``row_bytes`` bytes
at ``values + k · row_bytes``. `packed_layout` lists what becomes of which type; where the type in
the file is not the logical one (booleans are bytes, offsets int64), the field's metadata says so
under ``batchloom.type``. A fragment without rows has no files.

**Rows** are addressed by row id: a file's rows are its fragment's, from ``first_row_id`` up. A
table in the *order* of a plan holds the rows of one epoch of one manifest instead, cut at the
plan's blocks, with a column ``row`` that says which they are; there a row's address is its place in
the epoch, and the table serves no other plan.

**Pages** are 64 KiB of a file each, the last one what is left. ``pages-….bin`` holds the XXH3-128
of every page of every file, in the order of ``files``, 16 bytes each. A page is checked when a row
of it is first touched; no row of a damaged page is ever delivered. A file's ``sha256``, its name,
is over its length and its pages' checksums.

**packed.json** is canonical JSON as a manifest's header is: ``{table_id, header_sha256, identity,
provenance}``. The identity (snapshot, packed fragments, columns with their types, order) gives the
``table_id``, which is so known before a table is packed; the provenance (versions, the Arrow
schema, files with their sizes, hashes and the places of their buffers) does not. The same dataset
and columns give the same files, whatever packed them: a table of a dataset that grew takes over the
files of the fragments it knows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .errors import DatasetChangedError, PackedCorruptError, PackedError
from .mapped import ChunkTable, MappedColumn, MappedColumns
from .packed_columns import map_files
from .packed_header import (
    PAGE_SUM,
    Order,
    PackedFile,
    PageSums,
    file_hash,
    malformed,
    pages_in,
    parts_of,
    read_header,
)
from .packed_mirror import Mirror, MirrorGuard
from .packed_pages import MappedFile, PageGuard, check_file, missing, wrong_size
from .schemas import missing_column
from .snapshot import Snapshot
from .storage import Location, locate

__all__ = ["PackedTable"]

CACHE_BYTES = 4 << 30
"""Bytes of a remote table that are kept on this machine, unless said otherwise."""


class PackedTable:
    """A committed packed table; see `open`.

    Attributes
    ----------
    path : Path or str
    table_id : str
    snapshot : Snapshot
        Of the dataset that was packed: its quick fingerprint.
    schema : pyarrow.Schema
        The packed columns, with their logical types.
    order : Order or None
        The plan whose order the rows are in.
    chunks : ChunkTable
    """

    def __init__(
        self,
        path: Path | str,
        location: Location,
        header: Mapping[str, Any],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.path, self.location = path, location
        self._cache = cache_dir, cache_bytes
        self.table_id: str = header["table_id"]
        parts = parts_of(header)
        self.parts = parts
        self.snapshot: Snapshot = parts.snapshot
        self.schema: pa.Schema = parts.schema
        self.order: Order | None = parts.order
        placed = sorted(enumerate(parts.chunks()), key=lambda chunk: chunk[1][0])
        placed = [(i, chunk) for i, chunk in placed if chunk[1]]
        self.chunks = ChunkTable(
            np.array([first for _, (first, _) in placed], dtype=np.uint64),
            np.array([rows for _, (_, rows) in placed], dtype=np.int64),
        )
        self._numbers = [number for number, _ in placed]
        self.files = self._read_files(header["provenance"])
        self._mapped: dict[str, MappedColumn] = {}
        self._lock = Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        verify: Literal["touch", "all"] = "touch",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> PackedTable:
        """Open a packed table.

        Parameters
        ----------
        path : path or URI
        storage_options : mapping, optional
            Options of the filesystem (credentials, endpoints), for a URI.
        verify : {'touch', 'all'}
            ``'touch'`` checks the header, that all files are there in their sizes, and each page
            when a row of it is first read; ``'all'`` checks every byte now.
        cache_dir : path, optional
            Of a remote table: where fetched pages are kept while this process has it; the folder
            for temporary files when None.
        cache_bytes : int
            Of a remote table: how many bytes of them.

        Raises
        ------
        PackedError
            Where there is no packed table.
        PackedCorruptError, PackedVersionError, StorageError
        """
        location = locate(path, storage_options)
        header = read_header(location)
        with malformed(location):
            table = cls(
                location.as_named(path),
                location,
                header,
                cache_dir=cache_dir,
                cache_bytes=cache_bytes,
            )
        table._check_sizes()
        if verify == "all":
            table.verify()
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the table itself."""
        return _reopened, (str(self.path), dict(self.location.options), *self._cache)

    def __repr__(self) -> str:
        return f"<PackedTable {self.table_id[:12]} {self.path} columns={self.columns}>"

    @property
    def columns(self) -> list[str]:
        """Names of the packed columns."""
        return list(self.schema.names)

    @property
    def rows(self) -> int:
        return int(self.chunks.rows.sum())

    @property
    def bytes(self) -> int:
        """Bytes of the column files."""
        return sum(f.bytes for f in {f.name: f for _, f in self.files}.values())

    # --- opening ----------------------------------------------------------------------------------

    def _read_files(self, provenance: Mapping[str, Any]) -> list[tuple[int, PackedFile]]:
        """Return (chunk, file) of all files, with the checksums of their pages."""
        pages = self._read_pages(provenance["pages"])
        files, at = [], 0
        for value in provenance["files"]:
            count = PAGE_SUM * pages_in(int(value["bytes"]))
            file = PackedFile.from_json(value, pages[at : at + count])
            if file.sha256 != file_hash(file.bytes, file.pages):
                raise ValueError(f"the page checksums are not those of {file.name}")
            files.append((int(value["chunk"]), file))
            at += count
        rows = dict(enumerate(r for _, r in self.parts.chunks()))
        expected = {(c, name) for c, n in rows.items() if n for name in self.schema.names}
        found = {(c, f.column) for c, f in files if f.rows == rows.get(c)}
        if found != expected or len(files) != len(expected):
            raise ValueError(f"it lists {len(found)} files, {len(expected)} were expected")
        return files

    def _read_pages(self, record: Mapping[str, Any]) -> PageSums:
        self.pages_name = str(record["name"])
        place = self.location.join(self.pages_name)
        if not place.exists():
            raise missing(str(place))
        data = place.read_bytes()
        if len(data) != int(record["bytes"]):
            raise wrong_size(str(place), int(record["bytes"]), len(data))
        found = hashlib.sha256(data).hexdigest()
        if found != record["sha256"]:
            raise _wrong_hash(str(place), str(record["sha256"]), found)
        return data

    def _check_sizes(self) -> None:
        sizes = dict(self.location.entries())
        for _, file in self.files:
            found = sizes.get(file.name)
            if found is None:
                raise missing(str(self.location.join(file.name)))
            if found != file.bytes:
                raise wrong_size(str(self.location.join(file.name)), file.bytes, found)

    # --- what it serves ---------------------------------------------------------------------------

    def require(self, snapshot: Snapshot, needed: Iterable[int] | None = None) -> None:
        """Raise unless the table holds fragments of a snapshot under the same row ids.

        Parameters
        ----------
        snapshot : Snapshot
            A plan's, or a dataset's as it is now.
        needed : iterable of int, optional
            Indices into its fragments; all that hold rows when None.

        Raises
        ------
        DatasetChangedError
            Naming the first fragment that was not packed, or not as it is.
        """
        if self.order is not None:
            raise PackedError(
                f"{self.path} holds the rows of epoch {self.order.epoch} of plan "
                f"{self.order.manifest_id[:12]}… in its order, and serves that only. Pack the "
                "dataset without --order for others."
            )
        held = {self.snapshot.fragments[i] for i in self.parts.fragments}
        by_label = {f.label: f for f in held}
        wanted = range(len(snapshot.fragments)) if needed is None else needed
        for fragment in (snapshot.fragments[i] for i in wanted):
            if not fragment.rows or fragment in held:
                continue
            other = by_label.get(fragment.label)
            how = "is not in it" if other is None else "has changed since it was packed"
            raise DatasetChangedError(
                f"The packed table {self.path} cannot stand for this dataset: fragment "
                f"{fragment.label} ({fragment.rows:,} rows from row id {fragment.first_row_id:,}) "
                f"{how}. Pack the dataset again; what did not change is taken over."
            )

    def require_order(self, manifest_id: str, epoch: int) -> None:
        """Raise `PackedError` unless the rows are in the order of an epoch of a manifest."""
        found = self.order
        if found is None or (found.manifest_id, found.epoch) != (manifest_id, epoch):
            holds = "its rows by row id"
            if found is not None:
                holds = f"epoch {found.epoch} of plan {found.manifest_id[:12]}…"
            raise PackedError(
                f"{self.path} holds {holds}, not epoch {epoch} of plan {manifest_id[:12]}…. Pack "
                "the dataset with --order and --epoch for it."
            )

    def mapped(self, columns: Sequence[str] | None = None) -> MappedColumns:
        """Return columns as they lie in memory; nothing is read yet.

        Raises
        ------
        MissingColumnError, PackedCorruptError, StorageError
        """
        chosen = self.columns if columns is None else list(columns)
        for name in chosen:
            if name not in self.schema.names:
                raise missing_column(name, self.columns, f"the packed table {self.path}")
        with self._lock:
            for name in chosen:
                if name not in self._mapped:
                    self._mapped[name] = self._map(name)
        return MappedColumns(self.chunks, {name: self._mapped[name] for name in chosen})

    @cached_property
    def _by_column(self) -> dict[str, dict[int, PackedFile]]:
        found: dict[str, dict[int, PackedFile]] = {name: {} for name in self.schema.names}
        for chunk, file in self.files:
            found[file.column][chunk] = file
        return found

    def _map(self, name: str) -> MappedColumn:
        field = self.schema.field(name)
        records = [self._by_column[name][number] for number in self._numbers]
        if self.location.is_local:
            files = [MappedFile(Path(self.location.path) / r.name, r) for r in records]
            return map_files(field, files, PageGuard(files))
        index = {file.name: i for i, file in enumerate(self.mirror.records)}
        places = [index[record.name] for record in records]
        return map_files(
            field, [self.mirror.file(i) for i in places], MirrorGuard(self.mirror, places)
        )

    @cached_property
    def mirror(self) -> Mirror:
        """Where the pages of a remote table are kept."""
        folder, limit = self._cache
        unique = {file.name: file for _, file in self.files}
        return Mirror(self.location, list(unique.values()), limit, folder)

    def release(self) -> None:
        """Give back the memory that reading a local table took; what was checked stays so."""
        with self._lock:
            columns = list(self._mapped.values())
        for column in columns:
            for file in column.owner[0]:
                if isinstance(file, MappedFile):
                    file.release()

    def verify(self) -> None:
        """Hash every byte once.

        Raises
        ------
        PackedCorruptError
            Naming file, page, expected and found.
        """
        for file in {f.name: f for _, f in self.files}.values():
            place = self.location.join(file.name)
            with place.open() as opened:
                check_file(str(place), file, opened)


def _reopened(
    path: str, options: Mapping[str, Any], cache_dir: Any, cache_bytes: int
) -> PackedTable:
    return PackedTable.open(
        path, storage_options=options, cache_dir=cache_dir, cache_bytes=cache_bytes
    )


def _wrong_hash(place: str, expected: str, found: str) -> PackedCorruptError:
    return PackedCorruptError(
        f"{place}: expected SHA-256 {expected}, found {found}. The file is damaged; copy the table "
        "again or pack the dataset again."
    )
