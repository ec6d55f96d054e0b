"""Single files: footers, damage, and what is said of it. Arrow's own errors never come through."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import ipc_messages, remote_files
from batchloom.dataplane.dataset import open_dataset, scan_fragment
from batchloom.dataplane.deep_hashes import content_sha256
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetChangedError,
    DatasetError,
    FragmentCorruptError,
    MissingColumnError,
    SchemaDriftError,
    StorageError,
)
from batchloom.dataplane.fragments import (
    FragmentReader,
    FragmentRef,
    read_footer,
    read_footer_hash,
)
from batchloom.dataplane.storage import locate
from batchloom.tests.contracts.awkward import FORMATS, write_fragment

ROWS = 500


def table(rows: int = ROWS, start: int = 0) -> pa.Table:
    k = np.arange(start, start + rows)
    return pa.table(
        {
            "x": k,
            "text": pa.array([f"row {i}" if i % 5 else None for i in k.tolist()]),
            "list": pa.array([[i] * (i % 3) for i in k.tolist()], pa.list_(pa.int32())),
            "color": pa.array([f"c{i % 4}" for i in k.tolist()]).dictionary_encode(),
        }
    )


@pytest.fixture(params=FORMATS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of 500 rows in chunks of 130, in each format."""
    path = tmp_path / f"data{FORMATS[request.param]}"
    write_fragment(table(), path, request.param, 130)
    return path


def ref_of(path: Path, rows: int = ROWS) -> FragmentRef:
    return FragmentRef(str(path), f"data:{path.name}", rows, path.stat().st_size, 0)


def read_all(path: Path) -> list[dict[str, Any]]:
    """Open a file as a dataset and read it in both ways."""
    dataset = open_dataset(path)
    rows = [row for part in dataset.scan() for row in part.batch.to_pylist()]
    ids = np.arange(dataset.rows)
    assert dataset.take(ids[::-1]).to_pylist() == rows[::-1]
    return rows


def refused(path: Path) -> str:
    """Return what is said of a damaged file."""
    with pytest.raises(FragmentCorruptError) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message
    assert f"({path.stat().st_size:,} bytes) cannot be read: " in message
    assert "truncated or damaged; copy it again" in message
    return message


# --- footers --------------------------------------------------------------------------------------


def test_footers_tell_rows_size_and_schema(file: Path) -> None:
    footer = read_footer(locate(file), file.stat().st_size)
    assert (footer.rows, footer.bytes) == (ROWS, file.stat().st_size)
    assert footer.schema.names == ["x", "text", "list", "color"]
    assert read_footer_hash(locate(file), footer.bytes) == footer.footer_hash
    assert len(footer.footer_hash) == 64


def test_footer_hashes_are_by_the_rules(tmp_path: Path) -> None:
    """Parquet and IPC files: the footer's bytes; streams: all metadata, bodies skipped."""
    paths = {f: tmp_path / f"x{ending}" for f, ending in FORMATS.items()}
    for format_, path in paths.items():
        write_fragment(table(), path, format_, 130)
    data = paths["parquet"].read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    assert footer_hash(paths["parquet"]) == hashlib.sha256(data[-8 - length : -8]).hexdigest()
    data = paths["ipc"].read_bytes()
    length = int.from_bytes(data[-10:-6], "little")
    assert footer_hash(paths["ipc"]) == hashlib.sha256(data[-10 - length : -10]).hexdigest()
    data, at, metadata = paths["stream"].read_bytes(), 0, b""
    with pa.memory_map(str(paths["stream"])) as source:
        messages = pa.ipc.MessageReader.open_stream(source)
        for message in messages:
            assert data[at : at + 4] == b"\xff\xff\xff\xff"
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            metadata += data[at + 8 : at + 8 + length]
            body = message.body.size if message.body is not None else 0
            at += 8 + length + -(-body // 8) * 8
    assert footer_hash(paths["stream"]) == hashlib.sha256(metadata).hexdigest()


def footer_hash(path: Path) -> str:
    return read_footer_hash(locate(path), path.stat().st_size)


@pytest.mark.parametrize("format_", FORMATS)
def test_footer_hashes_see_rows_schema_and_layout(tmp_path: Path, format_: str) -> None:
    tables = {
        "first": (table(), 130),
        "rows": (table(499), 130),
        "chunks": (table(), 131),
        "columns": (table().select(["x", "text"]), 130),
        "names": (table().rename_columns(["x", "text", "list", "colour"]), 130),
    }
    hashes = {}
    for name, (content, chunk) in tables.items():
        path = tmp_path / f"{name}{FORMATS[format_]}"
        write_fragment(content, path, format_, chunk)
        hashes[name] = footer_hash(path)
    assert len(set(hashes.values())) == len(hashes)
    write_fragment(table(), tmp_path / f"again{FORMATS[format_]}", format_, 130)
    assert footer_hash(tmp_path / f"again{FORMATS[format_]}") == hashes["first"]


def test_content_hashes_are_over_all_bytes(file: Path) -> None:
    assert content_sha256(locate(file)) == hashlib.sha256(file.read_bytes()).hexdigest()


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("sizes", [[], [0], [5], [3, 0, 7, 1], [100] * 40])
def test_rows_are_counted_without_decoding(
    tmp_path: Path, sizes: list[int], compression: str | None
) -> None:
    (whole,) = table().combine_chunks().to_batches()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    for make, name in ((pa.ipc.new_file, "a.arrow"), (pa.ipc.new_stream, "a.arrows")):
        with make(tmp_path / name, whole.schema, options=options) as writer:
            for size in sizes:
                writer.write_batch(whole.slice(7, size))
    data = (tmp_path / "a.arrow").read_bytes()
    footer = data[-10 - int.from_bytes(data[-10:-6], "little") : -10]
    with pa.memory_map(str(tmp_path / "a.arrow")) as file:
        found = ipc_messages.file_batches(file, footer, len(data))
        assert [m.rows for m in found] == sizes
        blocks = ipc_messages.file_blocks(footer)
    assert all(data[b.offset : b.offset + 4] == b"\xff\xff\xff\xff" for b in blocks)
    size = (tmp_path / "a.arrows").stat().st_size
    with pa.memory_map(str(tmp_path / "a.arrows")) as file:
        rows = [m.rows for m in ipc_messages.walk_stream(file, size) if m.rows is not None]
    assert rows == sizes
    assert open_dataset(tmp_path).rows == 2 * sum(sizes)


@pytest.mark.parametrize(
    ("field", "value"),
    [(0, -8), (0, 2**40), (1, -8), (1, 2**30), (1, 4), (2, -8), (2, 2**40)],
)
def test_a_footer_that_points_out_of_its_file(tmp_path: Path, field: int, value: int) -> None:
    """A record batch's offset, metadata size or body size that cannot be."""
    write_fragment(pa.table({"x": [1, 2, 3]}), tmp_path / "a.arrow", "ipc")
    data = bytearray((tmp_path / "a.arrow").read_bytes())
    length = int.from_bytes(data[-10:-6], "little")
    footer = bytes(data[-10 - length : -10])
    (block,) = ipc_messages.file_blocks(footer)
    at = data.index(struct.pack("<qi4xq", block.offset, block.metadata, block.body))
    struct.pack_into("<q" if field != 1 else "<i", data, at + (0, 8, 16)[field], value)
    (tmp_path / "a.arrow").write_bytes(data)
    refused(tmp_path / "a.arrow")


def test_a_stream_without_an_end_marker_is_whole(tmp_path: Path) -> None:
    """The format allows it; what was written before is there."""
    write_fragment(table(), tmp_path / "a.arrows", "stream", 130)
    data = (tmp_path / "a.arrows").read_bytes()
    assert data.endswith(b"\xff\xff\xff\xff\0\0\0\0")
    (tmp_path / "a.arrows").write_bytes(data[:-8])
    assert len(read_all(tmp_path / "a.arrows")) == ROWS


# --- damage ---------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "to nothing": lambda data: b"",
    "to a byte": lambda data: data[:1],
    "to its signature": lambda data: data[:8],
    "to half": lambda data: data[: len(data) // 2],
    "by a byte": lambda data: data[:-1],
    "garbage": lambda data: bytes(np.random.default_rng(0).integers(0, 256, len(data), np.uint8)),
    "zeros": lambda data: bytes(len(data)),
    "garbage after the signature": lambda data: data[:8] + b"\xab" * (len(data) - 8),
    "text": lambda data: b"x,y\n1,2\n" * 100,
    "html": lambda data: b"<html><body>404 Not Found</body></html>",
    "reversed": lambda data: data[::-1],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(file: Path, damage: str) -> None:
    data = DAMAGE[damage](file.read_bytes())
    file.write_bytes(data)
    refused(file)


@pytest.mark.parametrize("damage", ["to nothing", "to half", "by a byte", "garbage"])
def test_damaged_files_in_a_dataset_are_named(tmp_path: Path, damage: str) -> None:
    for format_, ending in FORMATS.items():
        good, bad = (tmp_path / format_ / f"{name}{ending}" for name in ("good", "bad"))
        write_fragment(table(), good, format_, 130)
        bad.write_bytes(DAMAGE[damage](good.read_bytes()))
        with pytest.raises(FragmentCorruptError, match=f"{bad} "):
            open_dataset(tmp_path / format_)


def test_damage_behind_a_remote_filesystem(file: Path) -> None:
    for name, damage in DAMAGE.items():
        where = f"memory://damage/{file.name}"
        with fsspec.open(where, "wb") as out:
            out.write(damage(file.read_bytes()))
        with pytest.raises(FragmentCorruptError, match=f"{where} .* cannot be read"):
            open_dataset(where)
        assert name


@pytest.mark.parametrize("part", ["footer", "anywhere"])
def test_flipped_bytes_never_raise_what_is_not_ours(file: Path, part: str) -> None:
    """Either a typed error or a clean reading: no error of Arrow, and the process lives."""
    data = file.read_bytes()
    start = 0
    if part == "footer" and file.suffix != ".arrows":
        end = 8 if file.suffix == ".parquet" else 10
        length = int.from_bytes(data[-end : 4 - end], "little")
        start = len(data) - end - length
    rng = np.random.default_rng(len(part))
    found = {"ours": 0, "clean": 0}
    for _ in range(120):
        damaged = bytearray(data)
        for place in rng.integers(start, len(data), rng.integers(1, 4)).tolist():
            damaged[place] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            dataset = open_dataset(file)
            dataset.take(np.arange(dataset.rows)[::-7])
            list(dataset.scan())
            found["clean"] += 1
        except BatchloomError:
            found["ours"] += 1
    assert found["ours"] > 0


def test_flipped_bytes_of_a_planned_footer_are_always_found(file: Path) -> None:
    """The footer hash of a snapshot sees what a clean reading would hide."""
    whole = open_dataset(file)
    data = file.read_bytes()
    first = len(data) - 300 if file.suffix != ".arrows" else 8
    for place in range(first, min(first + 290, len(data) - 10)):
        damaged = bytearray(data)
        damaged[place] ^= 16
        file.write_bytes(damaged)
        with pytest.raises((FragmentCorruptError, DatasetChangedError), match=file.name):
            open_dataset(file, snapshot=whole.snapshot)
        with pytest.raises((FragmentCorruptError, DatasetChangedError), match=file.name):
            whole.take([0])


def test_a_damaged_string_offset_is_found_before_it_is_followed(tmp_path: Path) -> None:
    """Arrow would follow it out of the buffer and end the process."""
    content = pa.record_batch({"text": pa.array(["alpha", "beta", "gamma"] * 100)})
    for make, name in ((pa.ipc.new_file, "a.arrow"), (pa.ipc.new_stream, "a.arrows")):
        with make(tmp_path / name, content.schema) as writer:
            writer.write_batch(content)
        data = (tmp_path / name).read_bytes()
        offsets = content["text"].buffers()[1].to_pybytes()[:400]
        assert data.count(offsets) == 1
        (tmp_path / name).write_bytes(
            data.replace(offsets, offsets[:40] + b"\xff\xff\xff\x7f" + offsets[44:])
        )
        dataset = open_dataset(tmp_path / name)  # its footer is whole
        for read in (lambda d=dataset: d.take([9]), lambda d=dataset: list(d.scan(["text"]))):
            with pytest.raises(FragmentCorruptError, match=name):
                read()


def test_page_checksums_are_verified(tmp_path: Path) -> None:
    """Where the writer stored them: a flipped byte of a page would else be a wrong value."""
    path = tmp_path / "a.parquet"
    content = pa.table({"x": np.arange(1000)})
    pq.write_table(content, path, write_page_checksum=True, compression=None, use_dictionary=False)
    data = path.read_bytes()
    place = data.index((500).to_bytes(8, "little") + (501).to_bytes(8, "little"))
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    dataset = open_dataset(path)
    for read in (lambda: dataset.take([0]), lambda: list(dataset.scan(["x"]))):
        with pytest.raises(FragmentCorruptError, match="CRC checksum verification failed"):
            read()


def test_row_counts_that_disagree_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    from batchloom.dataplane import fragments

    class Lying:
        num_rows, num_row_groups = 7, 1

        def row_group(self, index: int) -> Any:
            return type("Group", (), {"num_rows": 5})

    with pytest.raises(ValueError, match="its row groups hold 5 rows"):
        fragments._row_groups(Lying())


# --- out of reach ---------------------------------------------------------------------------------


class RefusingFileSystem(fsspec.AbstractFileSystem):
    """A store whose credentials do not reach what is under ``/private``."""

    protocol = "refusing"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        if "broken" in path:
            raise RuntimeError("endpoint is upside down")
        if "*" in path:
            raise FileNotFoundError(path)
        if path.endswith(("listed", "private", "nested")):
            return {"name": path, "size": 0, "type": "directory"}
        return {"name": path, "size": 100, "type": "file"}

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        if "private" in path:
            raise PermissionError(f"403 Forbidden: {path}")
        found = [{"name": f"{path}/a.parquet", "size": 100, "type": "file"}]
        if "nested" in path:
            found = [{"name": f"{path}/private", "size": 0, "type": "directory"}]
        return found if detail else [f["name"] for f in found]

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if "late" in path:
            return LateFile(path)
        if "timeout" in path:
            raise TimeoutError("read timed out")
        raise PermissionError(f"403 Forbidden: {path}")


class LateFile(io.BytesIO):
    """A file that opens, and fails when it is read."""

    def __init__(self, path: str) -> None:
        super().__init__(bytes(100))
        self.path = path

    def read(self, size: int | None = -1) -> bytes:
        if "reset" in self.path:
            raise ConnectionResetError("peer went away")
        if "timeout" in self.path:
            raise TimeoutError("read timed out")
        raise OSError(errno.EIO, "disk")


fsspec.register_implementation("refusing", RefusingFileSystem, clobber=True)


def test_places_that_refuse_are_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_PAUSES", (0.01, 0.01, 0.01))
    with pytest.raises(StorageError, match="refusing://private cannot be read: permission denied"):
        open_dataset("refusing://private")
    for where in ("refusing://nested", "refusing://nested/**", "refusing://nested/*/*.parquet"):
        with pytest.raises(StorageError, match="refusing://nested.* permission denied"):
            open_dataset(where)  # its rows are not left out in silence
    with pytest.raises(DatasetError, match="no Parquet or Arrow file"):
        open_dataset("refusing://nested/*.parquet")  # for which it need not be listed
    for where in ("refusing://listed", "refusing://x/a.parquet", "refusing://listed/*.parquet"):
        with pytest.raises(StorageError, match=r"a\.parquet cannot be read: permission denied"):
            open_dataset(where)
    with pytest.raises(StorageError, match="cannot be read: TimeoutError: read timed out"):
        open_dataset("refusing://x/timeout.parquet")
    for name, reason in (
        ("late", "disk"),
        ("late-reset", "ConnectionResetError: peer went away"),
        ("late-timeout", "TimeoutError: read timed out"),
    ):
        with pytest.raises(StorageError, match=f"{name}.parquet cannot be read: {reason}"):
            open_dataset(f"refusing://x/{name}.parquet")
    with pytest.raises(StorageError, match=r"RuntimeError: endpoint is upside down.*credentials"):
        open_dataset("refusing://x/broken.parquet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_no_damage(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(StorageError, match="permission denied"):
        open_dataset(file)
    file.chmod(0o600)
    file.parent.chmod(0)
    try:
        for where in (file, file.parent):
            with pytest.raises(StorageError, match="permission denied"):
                open_dataset(where)
    finally:
        file.parent.chmod(0o700)


# --- readers --------------------------------------------------------------------------------------


def test_chunks_and_scans_agree(file: Path) -> None:
    reader = FragmentReader(ref_of(file), ["text", "x"])
    assert reader.chunk_rows.tolist() == [130, 130, 130, 110]
    assert reader.rows == ROWS
    chunks = [reader.chunk(i) for i in (3, 0, 2, 1, 0)]
    assert chunks[1].equals(chunks[4])
    expected = table().select(["text", "x"])
    for chunk, start in zip(chunks, (390, 0, 260, 130, 0), strict=True):
        assert chunk.to_pylist() == expected.slice(start, chunk.num_rows).to_pylist()
    scanned = list(reader.batches())
    reader.close()
    assert pa.Table.from_batches(scanned).to_pylist() == expected.to_pylist()
    assert chunks[0].to_pylist() == expected.slice(390).to_pylist()  # valid after closing


def test_one_reader_serves_threads(file: Path) -> None:
    reader = FragmentReader(ref_of(file))
    expected = [reader.chunk(i).to_pylist() for i in range(4)]
    order = np.random.default_rng(0).integers(0, 4, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: reader.chunk(i).to_pylist(), order))
    assert found == [expected[i] for i in order]


def test_refs_are_small_and_travel(file: Path) -> None:
    (ref,) = open_dataset(file).present()
    assert len(pickle.dumps(ref)) < 1000
    again = pickle.loads(pickle.dumps(ref))
    assert again == ref
    assert again.row_ids().tolist() == list(range(ROWS))
    parts = list(scan_fragment(again, ["x"]))
    assert [v for p in parts for v in p.batch.column(0).to_pylist()] == list(range(ROWS))


def test_refs_of_changed_files_are_refused(file: Path) -> None:
    (ref,) = open_dataset(file).present()
    with pytest.raises(DatasetChangedError, match=r"expected 501 rows, found 500 rows"):
        FragmentReader(FragmentRef(ref.uri, ref.label, 501, ref.bytes, 0))
    with pytest.raises(DatasetChangedError, match=r"expected 7 bytes, found [\d,]+ bytes"):
        FragmentReader(FragmentRef(ref.uri, ref.label, ROWS, 7, 0))
    with pytest.raises(DatasetChangedError, match=r"expected footer 0000000000000000…, found"):
        FragmentReader(FragmentRef(ref.uri, ref.label, ROWS, ref.bytes, 0, {}, "0" * 64))


def test_columns_are_checked_against_what_is_expected(file: Path) -> None:
    ref = ref_of(file)
    with pytest.raises(MissingColumnError, match=r"no column 'txt' in data:data.*mean 'text'"):
        FragmentReader(ref, ["txt"])
    with pytest.raises(SchemaDriftError, match=r"has no column 'y'; other fragments .* double"):
        FragmentReader(ref, ["y"], pa.schema([("y", pa.float64())]))
    with pytest.raises(SchemaDriftError, match=r"Column 'x' is int64 in .* but int32 in"):
        FragmentReader(ref, ["x"], pa.schema([("x", pa.int32())]))
    assert FragmentReader(ref, [], pa.schema([("x", pa.int32())])).rows == ROWS
