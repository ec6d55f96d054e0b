"""The nodes of a graph's folder: files of a table, linked; or a column of numbers."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..dataplane.columns import as_arrow
from ..dataplane.commit import sync_path
from ..dataplane.dataset import Dataset, open_dataset
from ..dataplane.errors import JobSpecError
from ..dataplane.fragments import FragmentRef, read_footer
from ..dataplane.storage import Location, is_hidden, storing
from ..samplers.graph.graph_header import NodeFile, NodesRecord, marker_name

__all__ = ["check_kind", "check_listing", "node_columns", "write_marker", "write_nodes"]

_WHAT = "Writing the graph's nodes"
_COLUMN = "node"
_GROUP_ROWS = 1 << 20
_COPY_BYTES = 8 << 20


def check_kind(name: str) -> None:
    """Raise `JobSpecError` unless a word can name a kind of nodes or edges."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise JobSpecError(
            f"A kind of nodes or edges is named by letters, digits, '_', '-' and '.', a letter or "
            f"digit first. Got '{name}' instead."
        )


def node_columns(dataset: Dataset | None) -> pa.Schema:
    """Return the columns of the nodes of a kind."""
    if dataset is not None:
        return dataset.schema
    return pa.schema([pa.field(_COLUMN, pa.int64(), nullable=False)])


def write_nodes(folder: Path, kind: str, count: int, dataset: Dataset | None) -> NodesRecord:
    """Put the nodes of a kind into their folder."""
    with storing(_WHAT, folder):
        folder.mkdir()
        files: list[tuple[str, FragmentRef | None]]
        if dataset is None:
            _write_numbers(folder / "nodes.parquet", count)
            files = [("nodes.parquet", None)]
        else:
            _check_sources(dataset, kind)
            files = [
                (fragment.path, ref)
                for fragment, ref in zip(dataset.snapshot.fragments, dataset.refs, strict=True)
            ]
        records = []
        for path, ref in files:
            if ref is not None:
                _bring(ref, folder / path)
            location = Location(str(folder / path))
            footer = read_footer(location, location.size())
            records.append(NodeFile(path, footer.rows, footer.bytes, footer.footer_hash))
    return NodesRecord(kind, count, tuple(records))


def _check_sources(dataset: Dataset, kind: str) -> None:
    sources = sorted({f.source for f in dataset.snapshot.fragments})
    if len(sources) > 1:
        raise JobSpecError(
            f"The nodes of kind '{kind}' are of {len(sources)} sources ({', '.join(sources)}), "
            "whose rows have no one order. Name the files of one."
        )
    for fragment in dataset.snapshot.fragments:
        if is_hidden(fragment.path):
            raise JobSpecError(
                f"The file '{fragment.path}' of the nodes of kind '{kind}' is hidden by its name, "
                "and would not be listed in the graph's folder. Rename it."
            )


def _write_numbers(path: Path, count: int) -> None:
    schema = node_columns(None)
    with (
        open(path, "wb") as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={_COLUMN: "DELTA_BINARY_PACKED"},
        ) as writer,
    ):
        for start in range(0, count, _GROUP_ROWS):
            numbers = as_arrow(np.arange(start, min(start + _GROUP_ROWS, count)))
            writer.write_batch(pa.RecordBatch.from_arrays([numbers], schema=schema))
    sync_path(path)


def _bring(ref: FragmentRef, target: Path) -> None:
    """Give a file a second name, or copy it where no link can be made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = ref.location
    if source.is_local:
        try:
            os.link(os.path.realpath(source.path), target)
        except OSError:  # another device, or a file system without links
            shutil.copyfile(source.path, target)
            sync_path(target)
        return
    handle: Any = source.open()
    try:
        with open(target, "wb") as file:
            while data := handle.read(_COPY_BYTES):
                file.write(data)
    finally:
        handle.close()
    sync_path(target)


def write_marker(folder: Path, fingerprint: str, schema: pa.Schema) -> None:
    """Write the file without rows by which snapshots of the nodes know the graph."""
    path = folder / marker_name(fingerprint)
    told = schema.with_metadata({"batchloom.graph": fingerprint})
    with storing(_WHAT, path):
        with open(path, "wb") as file, pa.ipc.new_file(file, told):
            pass
        sync_path(path)
        for below, _, _ in os.walk(folder):
            sync_path(Path(below))


def check_listing(folder: Path, counts: dict[str, int]) -> None:
    """Raise `JobSpecError` unless a folder is a dataset of these kinds and numbers of nodes."""
    found = dict.fromkeys(counts, 0)
    for fragment in open_dataset(folder).snapshot.fragments:
        found[fragment.source] = found.get(fragment.source, 0) + fragment.rows
    if found != counts:
        raise JobSpecError(
            f"The nodes were listed as {counts}, and the graph's folder has {found}. Were their "
            "files changed meanwhile? Build the graph again."
        )
