import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import PackedTable, open_dataset
from batchloom.dataplane.canonical import envelope_hashes, pretty_json
from batchloom.dataplane.errors import (
    ColumnTypeError,
    DatasetChangedError,
    InvalidValueError,
    MissingColumnError,
    PackedConflictError,
    PackedCorruptError,
    PackedError,
    PackedVersionError,
)
from batchloom.dataplane.packed_header import HEADER, read_header
from batchloom.dataplane.packing import pack_dataset, run_on_threads
from batchloom.dataplane.snapshot import Snapshot
from batchloom.dataplane.storage import locate
from batchloom.gpu_access import PackedGather
from batchloom.gpu_access.row_gather import gather_rows
from batchloom.tests.contracts.awkward import FORMATS, awkward_table, write_fragment
from batchloom.tests.contracts.damage import KINDS, damages
from batchloom.tests.contracts.gather import values_of
from hypothesis import given, settings
from hypothesis import strategies as st

COLUMNS = ["x", "flag", "text", "list", "color", "when"]


@pytest.fixture(scope="session")
def packed(awkward_data, tmp_path_factory):
    """The awkward dataset, packed."""
    out = tmp_path_factory.mktemp("packed") / "table"
    return pack_dataset(open_dataset(awkward_data("parquet")), out)


def rows_of(table, ids, columns=None):
    return {n: values_of(c) for n, c in PackedGather(table, columns).gather(ids).items()}


def test_files_are_plain_arrow_files(packed):
    table = awkward_table()
    found = {name: [] for name in table.schema.names}
    for _, file in packed.files:
        with pa.memory_map(str(packed.path / file.name)) as source:
            reader = pa.ipc.open_file(source)
            assert reader.num_record_batches == 1
            batch = reader.get_batch(0)
            batch.validate(full=True)
            found[file.column] += batch.column(0).to_pylist()
            for buffer in batch.column(0).buffers():
                assert buffer is None or buffer.address % 64 == 0
    for name, values in found.items():
        assert values == table[name].combine_chunks().to_pylist(), name
    said = {
        f.column: pa.ipc.open_file(str(packed.path / f.name)).schema.field(0)
        for _, f in packed.files
    }
    assert said["flag"].type == pa.uint8()
    assert said["flag"].metadata == {b"batchloom.type": b"bool"}
    assert said["x"].metadata is None
    assert said["image"].type == table.schema.field("image").type


def test_table_says_what_it_is(packed, awkward_data):
    dataset = open_dataset(awkward_data("parquet"))
    again = PackedTable.open(packed.path, verify="all")
    assert again.table_id == packed.table_id
    assert again.rows == 10_007
    assert again.schema == dataset.schema
    assert again.snapshot == dataset.snapshot
    again.require(dataset.snapshot)
    assert len(again.chunks) == 6  # one fragment is empty
    assert again.bytes == sum(
        f.stat().st_size for f in packed.path.iterdir() if f.name[:7] == "column-"
    )


def test_every_format_gives_the_same_rows(awkward_data, tmp_path):
    ids = np.array([10_006, 3000, 3001, 3002, 0, 9064, 9065], np.uint64)
    found = []
    for format in FORMATS:
        dataset = open_dataset(awkward_data(format))
        found.append(rows_of(pack_dataset(dataset, tmp_path / format), ids))
    assert found[0] == found[1] == found[2]


def test_same_bytes_whoever_packs(awkward_data, packed, tmp_path):
    moved = shutil.copytree(awkward_data("parquet"), tmp_path / "elsewhere")
    for workers in (1, 3):
        other = pack_dataset(
            open_dataset(moved), tmp_path / f"packed-{workers}", run=run_on_threads(workers)
        )
        mine = {p.name: p.read_bytes() for p in packed.path.iterdir()}
        assert {p.name: p.read_bytes() for p in other.path.iterdir()} == mine


def test_packing_again_does_nothing(awkward_data, tmp_path):
    dataset = open_dataset(awkward_data("ipc"))
    first = pack_dataset(dataset, tmp_path / "t", ["y"])
    before = {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()}
    assert pack_dataset(dataset, tmp_path / "t", ["y"]).table_id == first.table_id
    assert {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def grow(folder, table, number):
    write_fragment(table, folder / f"part-{number}.parquet", "parquet")


def test_only_new_fragments_and_columns_are_packed(tmp_path, monkeypatch):
    data = tmp_path / "data"
    for number in range(3):
        grow(data, awkward_table(100 * number, 100 * number + 100), number)
    first = open_dataset(data)
    old = pack_dataset(first, tmp_path / "t", ["x", "y"])
    grow(data, awkward_table(300, 450), 3)
    grown = open_dataset(data, since=first.snapshot)
    packed = []
    from batchloom.dataplane import packing

    real = packing.pack_fragment
    monkeypatch.setattr(
        packing,
        "pack_fragment",
        lambda ref, columns, *rest: (
            packed.append((ref.label, *columns)) or real(ref, columns, *rest)
        ),
    )
    new = pack_dataset(grown, tmp_path / "t", ["x", "y"])
    assert packed == [("data:part-3.parquet", "x", "y")]
    assert new.rows == 450
    assert rows_of(new, [449, 0, 299])["y"] == [9, 0, 9]
    assert rows_of(old, [299])["y"] == [9]  # what was opened before goes on
    packed.clear()
    more = pack_dataset(grown, tmp_path / "t", ["x", "y", "text"])
    assert {entry[1:] for entry in packed} == {("text",)}
    assert rows_of(more, [449])["text"] == ["row 449"]
    litter = "column-" + "0" * 64 + ".arrow"  # of an extension that was killed
    (tmp_path / "t" / litter).write_bytes(b"x")
    grow(data, awkward_table(450, 460), 4)
    more = pack_dataset(open_dataset(data, since=grown.snapshot), tmp_path / "t", more.columns)
    assert not (tmp_path / "t" / litter).exists()
    packed.clear()
    linked = pack_dataset(grown, tmp_path / "u", ["x"], reuse=[more])  # of fewer fragments
    assert packed == []
    name = linked.files[0][1].name
    assert os.path.samefile(linked.path / name, more.path / name)
    linked.verify()


def test_target_that_holds_something_else(tmp_path, awkward_data):
    dataset = open_dataset(awkward_data("ipc"))
    (tmp_path / "file").write_text("")
    with pytest.raises(PackedConflictError, match="is a file"):
        pack_dataset(dataset, tmp_path / "file", ["y"])
    (tmp_path / "file").unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("")
    with pytest.raises(PackedConflictError, match="holds other files"):
        pack_dataset(dataset, tmp_path / "full", ["y"])
    grow(tmp_path / "other", awkward_table(0, 10), 0)
    pack_dataset(open_dataset(tmp_path / "other"), tmp_path / "t", ["y"])
    with pytest.raises(PackedConflictError, match="another packed table already, of other rows"):
        pack_dataset(dataset, tmp_path / "t", ["y"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "other", "t"]


def test_changed_and_foreign_datasets(tmp_path):
    grow(tmp_path / "data", awkward_table(0, 10), 0)
    table = pack_dataset(open_dataset(tmp_path / "data"), tmp_path / "t", ["y"])
    table.require(open_dataset(tmp_path / "data").snapshot)
    grow(tmp_path / "data", awkward_table(10, 25), 1)
    with pytest.raises(DatasetChangedError, match=r"part-1\.parquet .15 rows.* is not in it"):
        table.require(open_dataset(tmp_path / "data").snapshot)
    grow(tmp_path / "data", awkward_table(5, 15), 0)
    with pytest.raises(DatasetChangedError, match=r"part-0\.parquet.*has changed since"):
        table.require(open_dataset(tmp_path / "data").snapshot, [0])


def test_places_where_there_is_no_table(tmp_path, packed):
    with pytest.raises(PackedError, match=r"no packed table at .*tabel.*Did you mean 'table'"):
        PackedTable.open(packed.path.parent / "tabel")
    with pytest.raises(PackedError, match=r"holds no packed\.json"):
        PackedTable.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PackedError, match="is a manifest, not a packed table"):
        PackedTable.open(tmp_path)


def test_columns_for_those_who_read_memory_themselves(packed, tmp_path):
    mapped = packed.mapped(["x", "flag", "text"])
    chunks = mapped.column_chunks("x")
    assert (chunks.dtype, chunks.row_shape, chunks.row_bytes) == (np.float32, (4,), 16)
    assert chunks.rows.sum() == packed.rows
    assert not (chunks.addresses % np.uint64(64)).any()
    ids = [0, 3000, 3001, 10_006]
    assert gather_rows(chunks, ids).tolist() == rows_of(packed, ids, ["x"])["x"]
    assert mapped.column_chunks("flag").dtype == bool
    with pytest.raises(ColumnTypeError, match="'text' .string. does not lie in memory"):
        mapped.column_chunks("text")
    pq.write_table(pa.table({"v": [1, None]}), tmp_path / "a.parquet")
    nulls = pack_dataset(open_dataset(tmp_path / "a.parquet"), tmp_path / "t")
    with pytest.raises(InvalidValueError, match="'v' holds nulls"):
        nulls.mapped().column_chunks("v")
    packed.release()
    assert gather_rows(chunks, ids).tolist() == rows_of(packed, ids, ["x"])["x"]


def test_missing_column(packed, awkward_data, tmp_path):
    with pytest.raises(MissingColumnError, match="no column 'txt' in the packed table.*'text'"):
        packed.mapped(["txt"])
    with pytest.raises(MissingColumnError, match="no column 'txt'"):
        pack_dataset(open_dataset(awkward_data("ipc")), tmp_path / "t", ["txt"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema_version": "2.0"}, PackedVersionError, "has format version 2.0"),
        ({"reader_features": ["zip"]}, PackedVersionError, "reader feature 'zip'"),
        ({"format": "other"}, PackedCorruptError, "expected format 'batchloom-packed'"),
        ({"columns": []}, PackedCorruptError, "its schema holds"),
    ],
)
def test_headers_of_other_versions(packed, tmp_path, change, error, message):
    copy = shutil.copytree(packed.path, tmp_path / "t", copy_function=os.link)
    header = read_header(locate(copy))
    header["identity"] = {**header["identity"], **change}
    ids = envelope_hashes(header["identity"], header["provenance"])
    header["table_id"], header["header_sha256"] = ids
    (copy / HEADER).unlink()
    (copy / HEADER).write_bytes(pretty_json(header))
    with pytest.raises(error, match=message):
        PackedTable.open(copy)


def rows_or_refusal(path, ids):
    try:
        return rows_of(PackedTable.open(path), ids)
    except PackedError as error:
        return error


def test_no_damaged_row_is_delivered(awkward_data, tmp_path):
    dataset = open_dataset(awkward_data("parquet"))
    table = pack_dataset(dataset, tmp_path / "t", COLUMNS)
    ids = np.arange(table.rows)
    truth = rows_of(table, ids)
    tries = 2 * len(KINDS) * sum(1 for _ in table.path.iterdir())
    refused = 0
    for damage, copy in damages(table.path, tmp_path, min(tries, 240)):
        found = rows_or_refusal(copy, ids)
        if isinstance(found, PackedError):
            named = damage.file in str(found) or damage.file.startswith("pages")
            assert named or damage.kind == "swapped", (damage, found)
            refused += 1
        else:
            assert found == truth, damage
            assert damage.kind == "flip", damage  # of a byte that no row is made of
        with pytest.raises(PackedError):
            PackedTable.open(copy, verify="all")
    assert refused > 150


def test_rows_of_whole_pages_of_a_damaged_file_are_delivered(tmp_path):
    rows = 50_000
    pq.write_table(pa.table({"y": np.arange(rows)}), tmp_path / "data.parquet")
    table = pack_dataset(open_dataset(tmp_path / "data.parquet"), tmp_path / "t")
    [(_, file)] = table.files
    data = bytearray((table.path / file.name).read_bytes())
    data[3 * 65_536 + 17] ^= 1
    (table.path / file.name).write_bytes(data)
    damaged = PackedTable.open(table.path)
    assert rows_of(damaged, [0, 49_999])["y"] == [0, 49_999]
    with pytest.raises(PackedCorruptError, match=rf"{file.name}, page 3 .bytes 196,608 and on.*"):
        rows_of(damaged, [0, 26_000])
    assert rows_of(damaged, [1, 40_000])["y"] == [1, 40_000]
    with pytest.raises(PackedCorruptError, match="page 3"):
        damaged.verify()


# --- any type -------------------------------------------------------------------------------------

ITEMS = st.one_of(st.none(), st.integers(-100, 100))
VALUES = {
    pa.int16(): ITEMS,
    pa.bool_(): st.one_of(st.none(), st.booleans()),
    pa.string(): st.one_of(st.none(), st.text(max_size=5)),
    pa.binary(3): st.one_of(st.none(), st.binary(min_size=3, max_size=3)),
    pa.large_binary(): st.one_of(st.none(), st.binary(max_size=9)),
    pa.list_(pa.int32()): st.one_of(st.none(), st.lists(ITEMS, max_size=4)),
    pa.list_(pa.bool_()): st.lists(st.one_of(st.none(), st.booleans()), max_size=9),
    pa.large_list(pa.list_(pa.int8(), 2)): st.one_of(
        st.none(),
        st.lists(st.one_of(st.none(), st.lists(ITEMS, min_size=2, max_size=2)), max_size=3),
    ),
    pa.list_(pa.string()): st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=2)),
    pa.dictionary(pa.int8(), pa.string()): st.sampled_from([None, "a", "b", "c", "d"]),
    pa.timestamp("ms"): st.one_of(st.none(), st.integers(0, 10**9)),
    pa.decimal128(9, 2): st.one_of(st.none(), st.decimals(0, 999, places=2)),
    pa.struct([("a", pa.int8())]): st.one_of(st.none(), st.fixed_dictionaries({"a": ITEMS})),
}


@settings(max_examples=30)
@given(data=st.data(), type_=st.sampled_from(list(VALUES)))
def test_any_column_is_what_it_was(data, type_, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    (folder / "data").mkdir()
    parts = data.draw(st.lists(st.lists(VALUES[type_], max_size=20), min_size=1, max_size=3))
    for number, values in enumerate(parts):
        array = pa.array(values, type_)
        chunk = pa.record_batch({"v": array}).slice(1)  # offsets that do not begin at 0
        batches = [chunk.slice(0, 5), chunk.slice(5)]
        with pa.ipc.new_file(folder / f"data/{number}.arrow", chunk.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    expected = [v for values in parts for v in pa.array(values, type_).slice(1).to_pylist()]
    table = pack_dataset(open_dataset(folder / "data"), folder / "t")
    ids = data.draw(st.lists(st.integers(0, max(0, len(expected) - 1)), max_size=30))
    ids = ids if expected else []
    wanted = [expected[i] for i in ids]
    is_number = pa.types.is_integer(type_) or pa.types.is_boolean(type_)
    if is_number and None in wanted:
        with pytest.raises(Exception, match=f"holds a null in row {ids[wanted.index(None)]}"):
            rows_of(table, ids)
        ids = [i for i in ids if expected[i] is not None]
        wanted = [expected[i] for i in ids]
    assert rows_of(table, ids)["v"] == wanted
    table.verify()
    for _, file in table.files:
        pa.ipc.open_file(str(table.path / file.name)).read_all().validate(full=True)


def test_dataset_without_rows(tmp_path):
    empty = pa.table({"y": pa.array([], pa.int64()), "t": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    table = pack_dataset(open_dataset(tmp_path / "a.parquet"), tmp_path / "t")
    assert table.rows == 0
    assert rows_of(table, []) == {"y": [], "t": []}
    assert isinstance(table.snapshot, Snapshot)
    with pytest.raises(Exception, match="Row 0 is in no chunk"):
        rows_of(table, [0])
