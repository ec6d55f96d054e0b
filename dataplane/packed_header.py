"""``packed.json``: the records in a packed table's header, its bytes and its hashes.

What the fields mean stands in `packed`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from .canonical import digest, envelope, envelope_hashes, pretty_json
from .errors import (
    BatchloomError,
    MissingFileError,
    PackedCorruptError,
    PackedError,
    PackedVersionError,
    StorageError,
    nearest,
)
from .snapshot import Snapshot
from .storage import Location
from .versions import versions

__all__ = [
    "FORMAT",
    "HEADER",
    "PAGE_BYTES",
    "PAGE_SUM",
    "SCHEMA_VERSION",
    "ColumnRecord",
    "Order",
    "PackedFile",
    "TableParts",
    "column_file_name",
    "file_hash",
    "header_bytes",
    "identity_of",
    "read_header",
    "table_id_of",
]

HEADER = "packed.json"
FORMAT = "batchloom-packed"
SCHEMA_VERSION = "1.0"

PAGE_BYTES = 64 << 10
"""Bytes of a page: what is checked together, when a row of it is first touched."""

PAGE_SUM = 16
"""Bytes of a page's checksum, XXH3-128 in its canonical (big-endian) form."""

_ENVELOPE = {"table_id", "header_sha256", "identity", "provenance"}
_ADVICE = "Pack the dataset again."

Place: TypeAlias = tuple[int, int]
PageSums: TypeAlias = bytes


@dataclass(frozen=True)
class ColumnRecord:
    """Where a column's buffers stand in its file, as (first byte, bytes); empty of kind arrow.

    Attributes
    ----------
    values : (int, int)
    items : int
        Where there are offsets: the last one, in items.
    offsets : (int, int) or None
    validity : tuple of (int, int) or None
        A bitmap a level, outermost first.
    body : (int, int)
        First byte of the record batch's body, and the one after its last.
    """

    values: Place = (0, 0)
    items: int = 0
    offsets: Place | None = None
    validity: tuple[Place | None, ...] = ()
    body: Place = (0, 0)


@dataclass(frozen=True)
class PackedFile:
    """One column of one fragment (or, in the order of a plan, of one block).

    Attributes
    ----------
    name : str
    column : str
    rows, bytes : int
    sha256 : str
        Of its pages' checksums; see `file_hash`.
    places : ColumnRecord
    pages : bytes
        `PAGE_SUM` bytes for each `PAGE_BYTES` of the file.
    """

    name: str
    column: str
    rows: int
    bytes: int
    sha256: str
    places: ColumnRecord
    pages: PageSums = field(repr=False, compare=False)

    def to_json(self, chunk: int) -> dict[str, Any]:
        return {
            "chunk": chunk,
            "column": self.column,
            "name": self.name,
            "rows": self.rows,
            "bytes": self.bytes,
            "sha256": self.sha256,
            **vars(self.places),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], pages: PageSums) -> PackedFile:
        places = ColumnRecord(
            values=_place(value["values"]) or (0, 0),
            items=int(value["items"]),
            offsets=_place(value["offsets"]),
            validity=tuple(_place(v) for v in value["validity"]),
            body=_place(value["body"]) or (0, 0),
        )
        name, column, sha256 = (str(value[k]) for k in ("name", "column", "sha256"))
        rows, size = int(value["rows"]), int(value["bytes"])
        for place in (places.values, places.offsets, *places.validity, (0, places.body[1])):
            if place is not None and not 0 <= place[0] <= place[0] + place[1] <= size:
                raise ValueError(f"a buffer of {name} lies outside the file")
        return cls(name, column, rows, size, sha256, places, pages)


def _place(value: Sequence[int] | None) -> Place | None:
    return None if value is None else (int(value[0]), int(value[1]))


def pages_in(size: int) -> int:
    """Return how many pages a file has."""
    return -(-size // PAGE_BYTES)


def file_hash(size: int, pages: bytes) -> str:
    """Return the SHA-256 over a file's length (u64, little-endian) and its pages' checksums.

    SHA-256 over all bytes would cost half as much again as decoding them. XXH3 finds damage, not
    forgery; a table is derived data, and whoever can forge it can write its header.
    """
    return hashlib.sha256(size.to_bytes(8, "little") + pages).hexdigest()


def column_file_name(sha256: str) -> str:
    return f"column-{sha256}.arrow"


@dataclass(frozen=True)
class Order:
    """The plan's epoch whose rows a table holds, in order.

    Attributes
    ----------
    manifest_id : str
    epoch : int
    blocks : tuple of int
        Rows of each block of the plan.
    """

    manifest_id: str
    epoch: int
    blocks: tuple[int, ...]


# --- the header -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableParts:
    """What a header is made of.

    Attributes
    ----------
    snapshot : Snapshot
    schema : pyarrow.Schema
        The packed columns, with their logical types.
    fragments : tuple of int
        Indices into the snapshot's fragments of those that are packed, ascending.
    order : Order, optional
    """

    snapshot: Snapshot
    schema: pa.Schema
    fragments: tuple[int, ...]
    order: Order | None = None

    def chunks(self) -> list[tuple[int, int]]:
        """Return (first row, rows) of each chunk: row ids, or places in the order of a plan."""
        if self.order is not None:
            firsts = np.cumsum([0, *self.order.blocks]).tolist()
            return list(zip(firsts[:-1], self.order.blocks, strict=True))
        chosen = (self.snapshot.fragments[i] for i in self.fragments)
        return [(f.first_row_id, f.rows) for f in chosen]


def identity_of(parts: TableParts) -> dict[str, Any]:
    """Return what decides a table's bytes, and so its id."""
    filled = [i for i, f in enumerate(parts.snapshot.fragments) if f.rows]
    order = parts.order
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "reader_features": [],
        "snapshot": parts.snapshot.to_json(),
        "fragments": "all" if list(parts.fragments) == filled else list(parts.fragments),
        "columns": [{"name": f.name, "type": str(f.type)} for f in parts.schema],
        "order": None if order is None else {**vars(order), "blocks": list(order.blocks)},
    }


def table_id_of(parts: TableParts) -> str:
    """Return the id of a table that is not packed yet."""
    return digest(identity_of(parts))


def header_bytes(
    parts: TableParts, files: Sequence[tuple[int, PackedFile]], pages: Mapping[str, Any]
) -> bytes:
    """Return the bytes of ``packed.json``.

    Parameters
    ----------
    parts : TableParts
    files : sequence of (chunk, PackedFile)
    pages : mapping
        Name, bytes and SHA-256 of the file of page checksums.
    """
    identity = identity_of(parts)
    provenance = {
        "versions": versions(),
        "schema": base64.b64encode(memoryview(parts.schema.serialize())).decode(),
        "page_bytes": PAGE_BYTES,
        "pages": dict(pages),
        "files": [file.to_json(chunk) for chunk, file in files],
    }
    return envelope("table_id", identity, provenance)


def read_header(folder: Location) -> dict[str, Any]:
    """Read and check a table's header; see `packed.PackedTable.open` for the errors."""
    path = folder.join(HEADER)
    try:
        data = path.read_bytes()
    except MissingFileError:
        raise PackedError(_what_is(folder)) from None
    except StorageError as error:
        if not folder.is_local:
            raise
        raise PackedError(str(error)) from error
    with malformed(folder):
        header: dict[str, Any] = json.loads(data)
        if not isinstance(header, dict) or set(header) != _ENVELOPE:
            raise PackedCorruptError(
                f"{path} is not a packed table's header: expected "
                f"{', '.join(sorted(_ENVELOPE))}. {_ADVICE}"
            )
        expected = header["table_id"], header["header_sha256"]
        found = envelope_hashes(header["identity"], header["provenance"])
        for what, wanted, got in zip(("table id", "header hash"), expected, found, strict=True):
            if wanted != got:
                raise _edited(path, f"{what} {wanted}", got)
        if data != pretty_json(header):
            raise _edited(path, f"the canonical form of table {found[0]}", "other bytes")
        _check_version(path, header["identity"])
    return header


def parts_of(header: Mapping[str, Any]) -> TableParts:
    """Read what a header was made of."""
    identity, provenance = header["identity"], header["provenance"]
    snapshot = Snapshot.from_json(identity["snapshot"])
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(provenance["schema"])))
    names = [(f.name, str(f.type)) for f in schema]
    stated = [(c["name"], c["type"]) for c in identity["columns"]]
    if names != stated:
        raise ValueError(f"its schema holds {names}, its identity {stated}")
    filled = tuple(i for i, f in enumerate(snapshot.fragments) if f.rows)
    chosen, order = identity["fragments"], identity["order"]
    return TableParts(
        snapshot,
        schema,
        filled if chosen == "all" else tuple(int(i) for i in chosen),
        None
        if order is None
        else Order(str(order["manifest_id"]), int(order["epoch"]), tuple(order["blocks"])),
    )


@contextmanager
def malformed(folder: Location) -> Iterator[None]:
    """Turn what a header of another shape raises into `PackedCorruptError`."""
    try:
        yield
    except BatchloomError:
        raise
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        pa.ArrowException,
        OSError,
    ) as error:
        raise PackedCorruptError(
            f"{folder.join(HEADER)} is not a packed table's header: {type(error).__name__}: "
            f"{str(error).rstrip('.')}. {_ADVICE}"
        ) from error


def _edited(path: Location, expected: str, found: str) -> PackedCorruptError:
    return PackedCorruptError(
        f"{path}: expected {expected}, found {found}. The header was edited or damaged. {_ADVICE}"
    )


def _check_version(path: Location, identity: Mapping[str, Any]) -> None:
    if identity.get("format") != FORMAT:
        raise PackedCorruptError(
            f"{path}: expected format '{FORMAT}', found {identity.get('format')!r}."
        )
    major = int(str(identity["schema_version"]).split(".")[0])
    if major != int(SCHEMA_VERSION.split(".")[0]):
        raise PackedVersionError(
            f"{path} has format version {identity['schema_version']}; this reader knows 1.x. "
            "Update batchloom, or pack the dataset again."
        )
    if identity["reader_features"]:
        raise PackedVersionError(
            f"{path} needs the reader feature '{identity['reader_features'][0]}', which this "
            "version does not know. Update batchloom, or pack the dataset again."
        )


def _what_is(folder: Location) -> str:
    """Say what is in the place of a table that is not there."""
    if folder.join("manifest.json").exists():
        return f"{folder} is a manifest, not a packed table; name the table that was packed."
    if folder.entries() or (folder.is_local and folder.exists()):
        return (
            f"{folder} is not a packed table: it holds no {HEADER}. Make one with: batchloom pack "
            "DATASET --columns … --out DIR"
        )
    siblings = [name for name, _ in folder.parent().entries()] if folder.is_local else []
    return f"There is no packed table at {folder}.{nearest(folder.name, siblings)}"
