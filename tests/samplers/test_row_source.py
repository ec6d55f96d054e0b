"""Sources of rows: the contract of all, and what is special about the dataset's own files."""

from dataclasses import replace

import numpy as np
import pytest
from batchloom.dataplane import Manifest, open_dataset
from batchloom.dataplane.errors import DatasetChangedError, MissingColumnError
from batchloom.dataplane.mapped_dataset import map_dataset
from batchloom.dataplane.pack_cache import packed_for
from batchloom.samplers.mapped_source import MappedSource
from batchloom.samplers.row_source import DatasetSource, SourceOptions, Sources, open_source
from batchloom.tests.contracts.batches import shuffled, write_plan
from batchloom.tests.contracts.row_source import RowSourceContract
from batchloom.tests.samplers.test_windows import Remembering
from torch import device


class TestDatasetSource(RowSourceContract):
    def open(self, data, columns=None):
        return DatasetSource(open_dataset(data), columns, cache_bytes=1 << 20)


class TestMappedFiles(RowSourceContract):
    formats = ("ipc", "stream")

    def open(self, data, columns=None):
        return MappedSource(map_dataset(open_dataset(data), columns), columns)


class TestPackedTable(RowSourceContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path):
        self.packed_dir = tmp_path / "packed"

    def open(self, data, columns=None):
        table = packed_for(open_dataset(data), columns, cache_dir=self.packed_dir)
        return MappedSource(table, columns)


def options(columns=("x",)):
    return SourceOptions(list(columns), device("cpu"), "auto", cache_bytes=1 << 20)


def test_chunks_are_counted(data):
    source = DatasetSource(open_dataset(data), ["x"], cache_bytes=1 << 20)
    ids = np.array([7, 3, 7], np.uint64)
    source.gather(ids)
    assert (source.stats().hits, source.stats().misses) == (0, 1)
    source.gather(ids)
    assert (source.stats().hits, source.stats().misses) == (1, 1)
    assert source.stats().bytes_read >= 700 * 16


def test_one_source_serves_all_manifests_of_a_snapshot(awkward_data, tmp_path):
    data = awkward_data("parquet")
    manifest = write_plan(tmp_path / "plan", data, {0: shuffled(rows=50)})
    sources = Sources(data, replace(options(), pack=False))
    assert sources.of(manifest) is sources.of(Manifest.open(manifest.path))
    assert sources.schema.names == ["x"]
    sources.activate(sources.of(manifest))
    sources.of(manifest).gather(np.array([1], np.uint64))
    before = sources.stats()
    sources.close()
    assert sources.stats() == before
    assert before.misses == 1


def test_a_source_of_the_callers_is_taken_as_it_is(plan):
    given = Remembering()
    sources = Sources(given, options())
    assert sources.of(Manifest.open(plan)) is given
    assert open_source(Manifest.open(plan), given, options()) is given
    sources.activate(given)
    sources.close()
    assert given.closed == 0


def test_what_is_checked_when_it_is_chosen(plan, data, tmp_path):
    with pytest.raises(MissingColumnError, match="no column 'nope'"):
        open_source(Manifest.open(plan), data, options(["nope"]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.arrow").write_bytes((data / "part-3.arrow").read_bytes())
    with pytest.raises(DatasetChangedError, match="is gone"):
        open_source(Manifest.open(plan), tmp_path / "empty", options())
