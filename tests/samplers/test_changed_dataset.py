"""What happened to the dataset since it was planned: refused where it matters, else accepted."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import DatasetChangedError
from batchloom.samplers import ManifestBatchSampler, ManifestLoader
from batchloom.tests.contracts.awkward import FORMATS, awkward_table, write_fragment
from batchloom.tests.contracts.batches import drain, flat, shuffled, write_plan


@pytest.fixture(params=FORMATS)
def suffix(request):
    return request.param


@pytest.fixture
def data(tmp_path, suffix):
    """Three files of 100, 64 and 50 rows."""
    for name, (a, b) in {"a": (0, 100), "b": (100, 164), "c": (164, 214)}.items():
        write_fragment(awkward_table(a, b), file_of(tmp_path / "data", name, suffix), suffix)
    return tmp_path / "data"


def file_of(folder, name, format):
    return folder / f"{name}{FORMATS[format]}"


@pytest.fixture
def plan(data, tmp_path):
    write_plan(tmp_path / "plan", data, {0: shuffled(rows=214, batch=30)})
    return tmp_path / "plan"


def assert_all_there(plan, data):
    batches = drain(ManifestLoader(plan, data, columns=["row"]))
    assert sorted(flat(b["row"].tolist() for b in batches)) == list(range(214))
    assert all(b["row"].tolist() == b.rows.tolist() for b in batches)
    assert len(ManifestBatchSampler(plan, data)) == len(batches)


def assert_refused(plan, data, message):
    with pytest.raises(DatasetChangedError, match=message):
        ManifestLoader(plan, data, columns=["row"])
    with pytest.raises(DatasetChangedError, match=message):
        ManifestBatchSampler(plan, data)


def test_deleted_file(plan, data, suffix):
    file_of(data, "b", suffix).unlink()
    assert_refused(plan, data, r"'b\..*' of source 'data' \(64 rows, .*\) is gone")


def test_deleted_row(plan, data, suffix):
    write_fragment(awkward_table(100, 163), file_of(data, "b", suffix), suffix)
    assert_refused(plan, data, r"Fragment 'b\..*was rewritten .*: expected .*, found ")


def test_rewritten_file_of_the_same_size(tmp_path, suffix):
    """The two chunks of a file change places: as many bytes, another footer."""
    data = tmp_path / "swapped"
    path = file_of(data, "a", suffix)
    first, second = pa.table({"row": range(40)}), pa.table({"row": range(40, 214)})
    data.mkdir()
    write_chunks([first, second], path, suffix)
    size = path.stat().st_size
    plan = write_plan(tmp_path / "plan", data, {0: shuffled(rows=214, batch=30)}).path
    assert_all_there(plan, data)
    write_chunks([second, first], path, suffix)
    assert path.stat().st_size == size
    assert_refused(plan, data, "was rewritten .*: expected footer .*, found footer")


def write_chunks(tables, path, format):
    if format == "parquet":
        with pq.ParquetWriter(path, tables[0].schema, use_dictionary=False) as writer:
            for table in tables:
                writer.write_table(table)
        return
    make = pa.ipc.new_file if format == "ipc" else pa.ipc.new_stream
    with make(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)


def test_changed_type(plan, data, suffix):
    table = awkward_table(100, 164)
    index = table.schema.get_field_index("y")
    table = table.set_column(index, "y", table["y"].cast("int32"))
    write_fragment(table, file_of(data, "b", suffix), suffix)
    assert_refused(plan, data, "was rewritten")


def test_renamed_files(plan, data, suffix):
    file_of(data, "b", suffix).rename(file_of(data, "z", suffix))
    assert_refused(plan, data, r"'b\..*is gone")


@pytest.mark.parametrize("pack", [True, False])
def test_file_rewritten_after_the_loader_was_made(plan, data, suffix, pack):
    expected = [b["row"].tolist() for b in ManifestLoader(plan, data, columns=["row"])]
    loader = ManifestLoader(plan, data, columns=["row"], pack=pack)
    # Another inode: a file must not be written over while it is mapped.
    file_of(data, "b", suffix).unlink()
    write_fragment(awkward_table(0, 64), file_of(data, "b", suffix), suffix)
    if pack or suffix != "parquet":  # what was planned is mapped already
        assert [b["row"].tolist() for b in loader] == expected
        return
    with pytest.raises(DatasetChangedError, match="rewritten"):
        drain(loader)


@pytest.mark.parametrize("name", ["d", "0"])  # behind and before the planned files
def test_grown_dataset_is_fine(plan, data, suffix, name):
    write_fragment(awkward_table(0, 77), file_of(data, name, suffix), suffix)
    assert_all_there(plan, data)


def test_moved_dataset_is_fine(plan, data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    data.rename(tmp_path / "elsewhere" / "deep")
    assert_all_there(plan, tmp_path / "elsewhere" / "deep")
    assert_all_there(plan, tmp_path / "elsewhere")


def test_copied_and_touched_dataset_is_fine(plan, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert_all_there(plan, copy)
    assert_all_there(plan, open_dataset(copy))


def test_file_without_planned_rows_may_change(data, tmp_path, suffix):
    manifest = write_plan(tmp_path / "few", data, {0: shuffled(rows=100, batch=30)})
    write_fragment(awkward_table(0, 3), file_of(data, "b", suffix), suffix)
    file_of(data, "c", suffix).unlink()
    rows = flat(b["row"].tolist() for b in ManifestLoader(manifest, data, columns=["row"]))
    assert sorted(rows) == list(range(100))


def test_read_only_dataset_and_plan(plan, data):
    for folder in (plan, data):
        for path in folder.iterdir():
            path.chmod(0o444)
        folder.chmod(0o555)
    try:
        assert_all_there(plan, data)
    finally:
        for folder in (plan, data):
            folder.chmod(0o755)
