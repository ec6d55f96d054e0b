"""Datasets on an object store: the same as on disk, in few requests; errors are one sentence."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import Dataset, open_dataset
from batchloom.dataplane.deep_hashes import content_sha256
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetChangedError,
    DatasetError,
    FragmentCorruptError,
    StorageError,
)
from batchloom.dataplane.rows import RowReader
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, FORMATS
from batchloom.tests.dataplane.store import Request, Store

ROWS, COLUMNS = 200_000, 8


def upload(store: Store, folder: Path, name: str = "data") -> str:
    for path in folder.iterdir():
        store.put(f"{name}/{path.name}", path.read_bytes())
    return store.at(name)


def opened(store: Store, data: Any, **options: Any) -> Dataset:
    return open_dataset(data, storage_options=store.options, **options)


# --- the same rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_the_awkward_dataset_is_the_same(
    store: Store, awkward_data: Callable[[str], Path], format_: str
) -> None:
    """Snapshot, scan batch for batch, rows by id, and content hashes."""
    folder = awkward_data(format_)
    url, local = upload(store, folder), open_dataset(folder)
    ending = FORMATS[format_]
    for where in (url, f"{url}/", f"{url}/*{ending}", f"{url}/part-[0-9]*{ending}"):
        remote = opened(store, where)
        assert remote.snapshot == local.snapshot
    pairs = zip(remote.scan(), local.scan(), strict=True)
    for mine, theirs in pairs:
        assert (mine.first_row_id, mine.fragment.label) == (
            theirs.first_row_id,
            theirs.fragment.label,
        )
        assert mine.batch.equals(theirs.batch)
    two = zip(remote.scan(["text", "row"]), local.scan(["text", "row"]), strict=True)
    for mine, theirs in two:
        assert mine.batch.equals(theirs.batch)
    ids = np.random.default_rng(0).integers(0, AWKWARD_ROWS, 500)
    assert remote.take(ids).equals(local.take(ids))
    for mine_ref, their_ref in zip(remote.present(), local.present(), strict=True):
        assert content_sha256(mine_ref.location) == content_sha256(their_ref.location)


def test_lists_sources_and_older_snapshots(
    store: Store, awkward_data: Callable[[str], Path]
) -> None:
    url, local = upload(store, awkward_data("parquet")), open_dataset(awkward_data("parquet"))
    files = [f"{url}/part-{n}.parquet" for n in (3, 1, 10)]
    assert [f.path for f in opened(store, files).snapshot.fragments] == [
        "part-1.parquet",
        "part-3.parquet",
        "part-10.parquet",
    ]
    assert opened(store, f"{url}/part-4.parquet").rows == 1999
    assert opened(store, {"a": url, "b": files[0]}).rows == AWKWARD_ROWS + 1
    local.snapshot.save(store.at("s/snapshot.json"), storage_options=store.options)
    for given in ("snapshot", "since"):
        again = opened(store, url, **{given: store.at("s/snapshot.json")})
        assert again.snapshot == local.snapshot
    store.put("data/part-12.parquet", store.get("data/part-3.parquet"))
    grown = opened(store, url, since=store.at("s/snapshot.json"))
    assert grown.snapshot.fragments[-1].first_row_id == AWKWARD_ROWS


def test_nested_globs_and_marker_keys(store: Store, awkward_data: Callable[[str], Path]) -> None:
    one = (awkward_data("parquet") / "part-3.parquet").read_bytes()
    for name in ("d/a/x.parquet", "d/b/y.parquet", "d/b/c/z.parquet", "d/b/_h/w.parquet"):
        store.put(name, one)
    store.put("d/b/", b"")  # what consoles leave for a folder
    found = {
        pattern: [f.path for f in opened(store, store.at(pattern)).snapshot.fragments]
        for pattern in ("d", "d/**/*.parquet", "d/*/?.parquet", "d/b/**", "d/[ab]/[!y].parquet")
    }
    assert found == {
        "d": ["a/x.parquet", "b/c/z.parquet", "b/y.parquet"],
        "d/**/*.parquet": ["a/x.parquet", "b/c/z.parquet", "b/y.parquet"],
        "d/*/?.parquet": ["a/x.parquet", "b/y.parquet"],
        "d/b/**": ["c/z.parquet", "y.parquet"],
        "d/[ab]/[!y].parquet": ["a/x.parquet"],
    }


# --- requests -------------------------------------------------------------------------------------


def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table({f"c{i}": rng.normal(size=ROWS) for i in range(COLUMNS)})


def parquet(values: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(values, out, row_group_size=50_000)
    return out.getvalue()


def ipc(values: pa.Table, make: Any, chunk: int) -> bytes:
    out = io.BytesIO()
    with make(out, values.schema) as writer:
        writer.write_table(values, max_chunksize=chunk)
    return out.getvalue()


FILES: Mapping[str, tuple[Callable[[], bytes], tuple[int, int, float], tuple[int, float]]] = {
    # file, (requests to open, to scan two columns, bytes of that / bytes of the columns), (requests
    # for a row, bytes / bytes of its chunk)
    "a.parquet": (lambda: parquet(table()), (3, 11, 1.05), (4, 1.2)),
    "a.arrow": (lambda: ipc(table(), pa.ipc.new_file, 50_000), (7, 15, 1.05), (8, 1.2)),
    "a.arrows": (lambda: ipc(table(), pa.ipc.new_stream, 50_000), (7, 11, 4.1), (8, 8.3)),
    "b.arrow": (lambda: ipc(table(), pa.ipc.new_file, 1_000), (5, 12, 8.1), (6, 1900.0)),
}


def bytes_sent(requests: list[Request]) -> int:
    return sum(r.sent for r in requests)


@pytest.mark.parametrize("name", FILES)
def test_few_requests_and_few_bytes(store: Store, name: str) -> None:
    """A footer is read by its bytes, a scan by its columns, a row by its chunk; see the docs."""
    make, (to_open, to_scan, scanned), (to_take, taken) = FILES[name]
    data = make()
    store.put(f"data/{name}", data)
    with store.counting() as made:
        dataset = opened(store, store.at("data"))
    assert len(made) <= to_open
    if name != "b.arrow":  # its messages are so small that reading them all is cheaper
        assert bytes_sent(made) < 100_000
    column = len(data) / COLUMNS
    with store.counting() as made:
        assert sum(p.batch.num_rows for p in dataset.scan(["c2", "c5"])) == ROWS
    assert len(made) <= to_scan
    assert bytes_sent(made) <= scanned * 2 * column
    chunk = column / (200 if name[0] == "b" else 4)
    with store.counting() as made:
        found = dataset.take([60_001], ["c2"])["c2"].to_pylist()
    assert found == table()["c2"].slice(60_001, 1).to_pylist()
    assert len(made) <= to_take
    assert bytes_sent(made) <= taken * chunk


def test_a_scan_holds_one_row_group(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's own pre-buffering keeps what it read of the whole file."""
    from batchloom.dataplane.remote_files import RemoteFile

    store.put("data/a.parquet", parquet(table()))
    held: list[int] = []
    fetched = RemoteFile._fetched

    def counted(self: RemoteFile, ranges: Any) -> Any:
        held.append(sum(len(d) for _, d in [*self._group, self._recent, *self._kept]))
        return fetched(self, ranges)

    monkeypatch.setattr(RemoteFile, "_fetched", counted)
    dataset = opened(store, store.at("data"))
    held += [part.batch.nbytes for part in dataset.scan(["c0", "c1", "c2"])]
    assert len(held) > 6
    assert max(held) < 3 * 1.1 * 8 * 65_536


# --- what goes wrong ------------------------------------------------------------------------------


def one_sentence(error: BaseException) -> str:
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    return str(error)


def test_what_is_not_there(store: Store) -> None:
    store.put("data/x.txt", b"1")
    for where in ("none", "none/", "none.parquet", "data/none.parquet"):
        with pytest.raises(DatasetError, match="no such file or directory"):
            opened(store, store.at(where))
    with pytest.raises(DatasetError, match=r"no Parquet or Arrow file in s3://.*found 1 other"):
        opened(store, store.at("data"))
    with pytest.raises(DatasetError, match=r"no Parquet or Arrow file in s3://.*found nothing"):
        opened(store, store.at("data/*.parquet"))
    for where in ("s3://no-such-bucket/data", "s3://no-such-bucket/a.parquet"):
        with pytest.raises(DatasetError, match="no such (bucket|file or directory)"):
            opened(store, where)


def test_credentials_that_are_wrong_or_missing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("data/a.parquet", parquet(table().slice(0, 10)))
    for where in ("data", "data/a.parquet", "data/*.parquet"):
        with pytest.raises(
            StorageError, match="permission denied.*Check the credentials"
        ) as caught:
            open_dataset(store.at(where), storage_options={**store.options, "key": "WRONG"})
        one_sentence(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(
        StorageError, match="no credentials were found.*AWS_ACCESS_KEY_ID"
    ) as caught:
        open_dataset(store.at("data"), storage_options={"endpoint_url": store.endpoint})
    one_sentence(caught.value)


def test_the_usual_environment_is_enough(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("data/a.parquet", parquet(table().slice(0, 10)))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    assert open_dataset(store.at("data")).rows == 10


def test_an_endpoint_that_is_dead(store: Store) -> None:
    """By default, too, it is an error after a few tries."""
    options = {**store.options, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match="Could not connect to the endpoint") as caught:
        open_dataset(store.at("data"), storage_options=options)
    one_sentence(caught.value)


def test_throttling_is_tried_again(store: Store) -> None:
    store.put("data/a.parquet", parquet(table().slice(0, 1000)))
    fault = store.fail("status", times=4)
    assert opened(store, store.at("data")).rows == 1000
    assert fault.seen == 4


def test_a_fragment_that_changes_under_a_reader(store: Store) -> None:
    """Another size, another footer, or the same footer: no row of the new file is delivered."""
    first, second = table().slice(0, 120_000), table().slice(50_000, 120_000)
    store.put("data/a.parquet", parquet(first))
    dataset = opened(store, store.at("data"))
    reader = RowReader(dataset, ["c1"])
    assert reader.take([5])["c1"].to_pylist() == first["c1"].slice(5, 1).to_pylist()
    store.put("data/a.parquet", parquet(second))
    with pytest.raises(DatasetChangedError, match="was replaced while it was read"):
        reader.take([100_000])
    with pytest.raises(DatasetChangedError, match="was rewritten after it was listed"):
        dataset.take([100_000])
    store.delete("data/a.parquet")
    with pytest.raises(BatchloomError, match="no such file"):
        dataset.take([1])


def test_damage_is_damage_there_too(store: Store) -> None:
    out = io.BytesIO()
    pq.write_table(table().slice(0, 100_000), out, write_page_checksum=True)
    whole = out.getvalue()
    store.put("data/a.parquet", whole[:-1])
    with pytest.raises(FragmentCorruptError, match=r"a\.parquet .* cannot be read"):
        opened(store, store.at("data"))
    store.put("data/a.parquet", whole)
    dataset = opened(store, store.at("data"))
    with store.counting() as made:
        dataset.take([1], ["c1"])
    before = [r.method for r in made].count("GET") - 1
    store.fail("flip", method="GET", match="a.parquet", skip=before)  # in the pages
    with pytest.raises(FragmentCorruptError, match="CRC checksum") as caught:
        dataset.take([1], ["c1"])
    one_sentence(caught.value)
