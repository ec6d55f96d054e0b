import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import ParameterError, RowIdError
from batchloom.dataplane.mapped_dataset import map_dataset
from batchloom.dataplane.packing import pack_dataset
from batchloom.gpu_access import PackedGather, cpu_kernels, plain_loops
from batchloom.tests.contracts.awkward import FORMATS, awkward_table
from batchloom.tests.contracts.gather import GatherContract, expected_values, values_of


@pytest.fixture(scope="session")
def packed(awkward_data, tmp_path_factory):
    """The awkward dataset, packed."""
    out = tmp_path_factory.mktemp("packed") / "table"
    return pack_dataset(open_dataset(awkward_data("parquet")), out)


def written(folder, chunks):
    """Write each chunk as a file of one record batch, and return the dataset."""
    for number, chunk in enumerate(chunks):
        with pa.ipc.new_file(folder / f"{number}.arrow", chunk.schema) as writer:
            writer.write_batch(chunk)
    return open_dataset(folder)


@pytest.fixture(params=["plain", "compiled"])
def loops(request, monkeypatch):
    """Gather by loops of one kind, whatever was gathered before."""
    kinds = {"plain": plain_loops, "compiled": cpu_kernels}
    monkeypatch.setattr("batchloom.gpu_access.loops._loaded", kinds[request.param])


@pytest.mark.usefixtures("loops")
class TestPackedGather(GatherContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path_factory):
        self._new = lambda: tmp_path_factory.mktemp("gather")

    def of_chunks(self, chunks, ids):
        folder = self._new()
        (folder / "data").mkdir()
        dataset = written(folder / "data", chunks)
        return PackedGather(pack_dataset(dataset, folder / "packed")).gather(ids)


@pytest.mark.usefixtures("loops")
class TestMappedGather(GatherContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path_factory):
        self._new = lambda: tmp_path_factory.mktemp("gather")

    def of_chunks(self, chunks, ids):
        mapped = map_dataset(written(self._new(), chunks))
        assert mapped is not None
        return PackedGather(mapped).gather(ids)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_files(awkward_data, tmp_path, format):
    dataset = open_dataset(awkward_data(format))
    packed, mapped = pack_dataset(dataset, tmp_path / "packed"), map_dataset(dataset)
    assert (mapped is None) == (format == "parquet")
    ids = np.random.default_rng(0).integers(0, dataset.rows, 3000)
    table = awkward_table()
    for source in filter(None, (packed, mapped)):
        for name, column in PackedGather(source).gather(ids).items():
            assert values_of(column) == expected_values(table, name, ids), name
            if isinstance(column, pa.Array):
                column.validate(full=True)


def test_out_is_written_and_returned(packed):
    gather = PackedGather(packed, ["x", "y", "u16"])
    out = {"x": torch.empty(3, 4), "u16": torch.empty(3, dtype=torch.int32)}
    batch = gather.gather([5, 9000, 5], out)
    assert batch["x"] is out["x"]
    assert batch["u16"] is out["u16"]
    for name, column in batch.items():
        assert values_of(column) == expected_values(awkward_table(), name, np.array([5, 9000, 5]))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"x": torch.empty(2, 4)}, r"'x' needs .* shape \(3, 4\).*Got .* shape \(2, 4\)"),
        ({"x": torch.empty(3, 4, dtype=torch.float64)}, "'x' needs .*float32"),
        ({"x": torch.empty(4, 3).T}, "'x' needs a contiguous"),
        ({"text": torch.empty(3)}, "'text' .* is no tensor"),
        ({"z": torch.empty(3)}, "no column 'z'"),
    ],
)
def test_out_that_does_not_fit(packed, out, message):
    with pytest.raises(ParameterError, match=message):
        PackedGather(packed, ["x", "text"]).gather([0, 1, 2], out)


@pytest.mark.parametrize("bad", [10_007, 1 << 63, (1 << 64) - 1])
def test_id_in_no_chunk_is_named_and_nothing_is_written(packed, bad):
    out = {"y": torch.full((3,), -1)}
    ids = np.array([1, bad, 2], np.uint64)
    with pytest.raises(RowIdError, match=f"Row {bad} is in no chunk.*10,007 rows"):
        PackedGather(packed, ["y"]).gather(ids, out)
    assert out["y"].tolist() == [-1, -1, -1]


def test_ids_that_are_none(packed):
    gather = PackedGather(packed, ["y"])
    for ids, message in (([-3], "Row -3 cannot be"), ([0.5], "float64"), ([[1]], "2 dimensions")):
        with pytest.raises(RowIdError, match=message):
            gather.gather(ids)
