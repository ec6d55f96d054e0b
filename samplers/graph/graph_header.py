"""``graph.json``: what a folder of a graph holds, its bytes and its hashes.

A folder made by ``batchloom graph build``::

    graph.json                                 what there is; written last
    dataset_dict.json                          makes each kind of nodes a source of the dataset
    <kind>/…                                   the nodes, row by row: Parquet or Arrow files
    <kind>/graph-<fingerprint>.arrow           no rows; it carries the fingerprint into snapshots
    _edges/<source>,<relation>,<target>/       edges into each node, as `csc.CSCGraph` has them
        colptr.npy row.npy permutation.npy     int64; int32 where the sources allow; int64
        weights.npy times.npy                  where they were asked for

So the folder is a dataset: ``open_dataset`` gives one source a kind of nodes, and a node's id is
its row id less the first one of its kind. `permutation` holds the edges' row ids in their table.

``graph.json`` is ``{graph_id, header_sha256, identity, provenance}`` in canonical JSON. The
fingerprint is the `graph_id`, the SHA-256 of the identity: kinds, counts, the fragments of the
nodes, and of each array type, size and hash. The hash of an array is the SHA-256 over its length in
bytes (u64, little-endian) and the XXH3-128 of each MiB of it; the file's own header is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.canonical import digest, envelope, envelope_hashes, known_fields
from ...dataplane.errors import DatasetError, FragmentCorruptError, MissingFileError
from ...dataplane.storage import natural_key, storing

__all__ = [
    "EDGES",
    "HEADER",
    "ArrayRecord",
    "EdgeType",
    "EdgesRecord",
    "GraphHeader",
    "NodeFile",
    "NodesRecord",
    "array_hash",
    "edges_folder",
    "is_graph",
    "map_array",
    "marker_name",
    "new_array",
    "read_header",
]

EdgeType = tuple[str, str, str]

HEADER = "graph.json"
EDGES = "_edges"
_FORMAT = "batchloom-graph"
_VERSION = "1.0"
_BLOCK_BYTES = 1 << 20
_ADVICE = "Copy the folder again, or build the graph again."


@dataclass(frozen=True)
class ArrayRecord:
    """An array: ``<name>.npy``; `dtype` as numpy writes it, such as ``<i8``."""

    name: str
    dtype: str
    size: int
    sha256: str


@dataclass(frozen=True)
class EdgesRecord:
    """Edges of one kind.

    Attributes
    ----------
    type : (source, relation, target)
    edges : int
    arrays : tuple of ArrayRecord
    """

    type: EdgeType
    edges: int
    arrays: tuple[ArrayRecord, ...]


@dataclass(frozen=True)
class NodeFile:
    """A fragment of nodes, by its path in the folder of its kind."""

    path: str
    rows: int
    bytes: int
    footer_hash: str


@dataclass(frozen=True)
class NodesRecord:
    """Nodes of one kind."""

    type: str
    nodes: int
    files: tuple[NodeFile, ...]


@dataclass(frozen=True)
class GraphHeader:
    """What a graph is made of.

    Attributes
    ----------
    nodes : tuple of NodesRecord
        In the order of the dataset's sources.
    edges : tuple of EdgesRecord
    provenance : dict
    """

    nodes: tuple[NodesRecord, ...]
    edges: tuple[EdgesRecord, ...]
    provenance: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "nodes": [asdict(record) for record in self.nodes],
            "edges": [asdict(record) for record in self.edges],
        }

    @property
    def fingerprint(self) -> str:
        return digest(json.loads(json.dumps(self.identity)))

    @property
    def num_nodes(self) -> dict[str, int]:
        return {record.type: record.nodes for record in self.nodes}

    @property
    def first_row_ids(self) -> dict[str, int]:
        """The row id of the first node of each kind."""
        found, before = {}, 0
        for record in self.nodes:
            found[record.type] = before
            before += record.nodes
        return found

    def to_bytes(self) -> bytes:
        return envelope("graph_id", json.loads(json.dumps(self.identity)), self.provenance)


def read_header(folder: Path) -> GraphHeader:
    """Read the header of a graph.

    Raises
    ------
    MissingFileError
        Where there is none.
    DatasetError
        Where it is of a newer format.
    FragmentCorruptError
        Where it is not what it was written as.
    """
    path = folder / HEADER
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(
            f"{folder} is no graph: it holds no {HEADER}. Make one with: batchloom graph build "
            f"EDGES --out {folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise FragmentCorruptError(f"{path} cannot be read: {error}. {_ADVICE}") from error
    try:
        identity, provenance = body["identity"], body["provenance"]
        expected = (body["graph_id"], body["header_sha256"])
        version = str(identity["version"])
    except (KeyError, TypeError):
        raise FragmentCorruptError(f"{path} is not the header of a graph. {_ADVICE}") from None
    found = envelope_hashes(identity, provenance)
    if found != expected:
        raise FragmentCorruptError(
            f"{path} is damaged: expected SHA-256 {expected[1]}, found {found[1]}. {_ADVICE}"
        )
    if version.split(".")[0] != _VERSION.split(".")[0]:
        raise DatasetError(
            f"{path} has version {version} of the format; this Batchloom reads {_VERSION}. Use a "
            "newer one."
        )
    return GraphHeader(
        tuple(_nodes(record) for record in identity["nodes"]),
        tuple(_edges(record) for record in identity["edges"]),
        provenance,
    )


def _nodes(record: Any) -> NodesRecord:
    files = tuple(known_fields(NodeFile, f) for f in record["files"])
    return NodesRecord(record["type"], int(record["nodes"]), files)


def _edges(record: Any) -> EdgesRecord:
    arrays = tuple(known_fields(ArrayRecord, a) for a in record["arrays"])
    source, relation, target = record["type"]
    return EdgesRecord((source, relation, target), int(record["edges"]), arrays)


def is_graph(path: str | os.PathLike[str]) -> bool:
    """Whether a folder of this machine holds a graph."""
    return (Path(path) / HEADER).is_file()


def ordered_kinds(kinds: Sequence[str]) -> list[str]:
    """Return kinds of nodes in the order of a dataset's sources."""
    return sorted(kinds, key=natural_key)


def edges_folder(kind: EdgeType) -> str:
    """Return where the edges of a kind are, in the graph's folder."""
    return f"{EDGES}/{','.join(kind)}"


def marker_name(fingerprint: str) -> str:
    """Return the name of the file without rows that carries the fingerprint."""
    return f"graph-{fingerprint}.arrow"


# --- arrays ---------------------------------------------------------------------------------------


def new_array(path: Path, dtype: np.dtype[Any], size: int) -> int:
    """Make the file of an array, all 0; return where its values begin.

    Its room on the disk is taken at once, where the file system can.
    """
    header = {"descr": dtype.str, "fortran_order": False, "shape": (size,)}
    with storing("Preparing the graph's arrays", path), open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        stop = start + size * dtype.itemsize
        if stop > start:
            if hasattr(os, "posix_fallocate"):
                file.flush()
                os.posix_fallocate(file.fileno(), start, stop - start)
            file.truncate(stop)
    return start


def map_array(folder: Path, kind: EdgeType, record: ArrayRecord) -> npt.NDArray[Any]:
    """Map an array of a graph.

    Raises
    ------
    FragmentCorruptError
        Where it is not there, or of another type or size.
    """
    path = folder / edges_folder(kind) / f"{record.name}.npy"
    try:
        if record.size == 0:  # nothing to map
            array: npt.NDArray[Any] = np.load(path)
        else:
            array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FragmentCorruptError(f"{path} cannot be mapped: {reason}. {_ADVICE}") from error
    found = (array.dtype.str, array.shape)
    if found != (record.dtype, (record.size,)):
        raise FragmentCorruptError(
            f"{path}: expected {record.size:,} values of {record.dtype}, found {found[1]} of "
            f"{found[0]}. {_ADVICE}"
        )
    return array


def array_hash(path: Path) -> tuple[str, str, int]:
    """Return (hash, dtype, size) of an array's file."""
    import xxhash

    with storing("Reading the graph's arrays", path), open(path, "rb", buffering=0) as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        total = shape[0] * dtype.itemsize
        hasher = hashlib.sha256(total.to_bytes(8, "little"))
        seen = 0
        for block in _blocks(file):
            seen += len(block)
            hasher.update(xxhash.xxh3_128_digest(block))
    if seen != total:
        raise FragmentCorruptError(
            f"{path}: expected {total:,} bytes of values, found {seen:,}. {_ADVICE}"
        )
    return hasher.hexdigest(), dtype.str, shape[0]


def _blocks(file: Any) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    while True:
        filled = 0
        while filled < len(buffer):
            count = file.readinto(buffer[filled:])
            if not count:
                break
            filled += count
        if not filled:
            return
        yield buffer[:filled]
