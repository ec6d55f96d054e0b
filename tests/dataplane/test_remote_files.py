"""Remote files: what is asked for, how often, and what a broken connection can do to it."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from batchloom.dataplane import remote_files
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetChangedError,
    MissingFileError,
    StorageError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.remote_files import RemoteFile, fetch_ranges
from batchloom.dataplane.series import open_plan
from batchloom.dataplane.storage import locate
from batchloom.tests.dataplane.helpers import small_manifest
from batchloom.tests.dataplane.store import Request, Store
from hypothesis import given
from hypothesis import strategies as st

DATA = bytes(i * 7 % 251 for i in range(200_000))


def gets(requests: list[Request]) -> list[str | None]:
    return [r.range for r in requests if r.method == "GET"]


# --- ranges ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 5_100), st.integers(0, 700), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_reads_in_any_order_are_those_of_the_bytes(reads: list[tuple[int, int, bool]]) -> None:
    """Small limits, so that read-ahead, tail, groups and pieces all take part."""
    data = DATA[:5000]
    fsspec.filesystem("memory").pipe_file("/ranges/x", data)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_TAIL", 300), ("_PIECE", 400), ("_HOP", 200), ("_MERGED", 20)):
            patch.setattr(remote_files, name, value)
        patch.setattr(remote_files, "_AHEAD", (50, 600))
        file = RemoteFile("memory://ranges/x", {})
        file.expect([[(500, 600), (900, 1000)], [(610, 700), (2000, 3000)]])
        file.keep([(3000, 3010), (3100, 3200)])
        for start, size, move in reads:
            if move:
                file.seek(start)
            at = file.tell()
            assert file.read(size) == data[at : at + size]
            assert file.tell() == max(at, min(at + size, len(data)))
        assert (file.seek(0, os.SEEK_END), file.read()) == (5000, b"")


@given(st.lists(st.tuples(st.sampled_from("xy"), st.integers(0, 900), st.integers(0, 99))))
def test_ranges_are_those_of_the_bytes(ranges: list[tuple[str, int, int]]) -> None:
    contents = {"x": DATA[:1000], "y": DATA[1000:2000]}
    for name, data in contents.items():
        fsspec.filesystem("memory").pipe_file(f"/ranges/{name}", data)
    wanted = [(f"memory://ranges/{name}", start, start + size) for name, start, size in ranges]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_files, "_MERGED", 30)
        found = fetch_ranges(wanted, {})
    assert found == [contents[name][start : start + size] for name, start, size in ranges]


def test_a_read_asks_for_what_is_wanted(store: Store) -> None:
    """fsspec's own files read 5 to 50 MB for 8 bytes."""
    store.put("x", DATA)
    with store.counting() as made:
        file = RemoteFile(store.at("x"), store.options, len(DATA))
        assert file.read(8) == DATA[:8]
        file.seek(-8, os.SEEK_END)
        assert file.read(8) == DATA[-8:]
        file.seek(-5000, os.SEEK_END)
        assert file.read(5000) == DATA[-5000:]
    assert [r.method for r in made] == ["GET", "GET"]
    assert sum(r.sent for r in made) <= (8 << 10) + (64 << 10)


def test_large_reads_come_in_pieces_and_small_hops_are_read_ahead_of(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("x", DATA)
    monkeypatch.setattr(remote_files, "_PIECE", 50_000)
    with store.counting() as made:
        assert locate(store.at("x"), store.options).read_bytes() == DATA
    assert sorted(gets(made), key=str) == [
        "bytes=0-49999",
        "bytes=100000-149999",
        "bytes=150000-199999",
        "bytes=50000-99999",
    ]
    with store.counting() as made:
        file = RemoteFile(store.at("x"), store.options, len(DATA))
        for start in range(0, 130_000, 1000):
            file.seek(start)
            assert file.read(10) == DATA[start : start + 10]
    assert len(made) <= 8


def test_ranges_of_several_files_are_fetched_together(store: Store) -> None:
    store.put("x", DATA)
    store.put("y", DATA[::-1])
    near = [(store.at("x"), 0, 10), (store.at("x"), 100, 110), (store.at("x"), 60, 70)]
    far = [(store.at("x"), 150_000, 150_020), (store.at("y"), 5, 5), (store.at("y"), 5, 9)]
    with store.counting() as made:
        found = fetch_ranges(near + far, store.options)
    assert found == [DATA[a:b] for u, a, b in near + far[:1]] + [b"", DATA[::-1][5:9]]
    assert sorted(gets(made), key=str) == ["bytes=0-109", "bytes=150000-150019", "bytes=5-8"]


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut-body", "short", "cut-before", "status"])
@pytest.mark.parametrize("way", ["file", "ranges"])
def test_what_is_cut_off_is_asked_for_again(store: Store, kind: str, way: str) -> None:
    store.put("x", DATA)
    fault = store.fail(kind, method="GET", match="/x", times=2)
    options = store.options_with(retries={"mode": "standard", "total_max_attempts": 3})
    if way == "file":
        file = RemoteFile(store.at("x"), options)
        file.seek(1000)
        assert file.read(100_000) == DATA[1000:101_000]
    else:
        assert fetch_ranges([(store.at("x"), 1000, 2000)], options) == [DATA[1000:2000]]
    assert fault.seen == 2


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut-body", r"/x cannot be read: .*Payload"),
        ("short", r"/x cannot be read: 1,000 bytes were asked for, and 500 came"),
        ("cut-before", r"/x cannot be read: \w+: .*(closed|connect|reset)"),
        ("status", r"/x cannot be read: SlowDown by the proxy"),
    ],
)
@pytest.mark.parametrize("way", ["file", "ranges"])
def test_what_stays_cut_off_is_one_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: str, said: str, way: str
) -> None:
    store.put("x", DATA)
    options = store.options_with(retries={"mode": "standard", "total_max_attempts": 1})
    store.fail(kind, method="GET", match="/x", times=100)

    def read() -> None:
        if way == "ranges":
            fetch_ranges([(store.at("x"), 1000, 2000)], options)
        file = RemoteFile(store.at("x"), options)
        file.seek(-1000, os.SEEK_END)
        file.read(1000)

    monkeypatch.setattr(remote_files, "_TAIL", 0)
    with pytest.raises(StorageError, match=said) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_attempts_do_not_multiply(store: Store) -> None:
    """Both botocore and s3fs try again where no answer comes; one of them is enough."""
    retries = {"mode": "standard", "total_max_attempts": 2}
    options = store.options_with(read_timeout=0.3, retries=retries)
    store.fail("delay", seconds=1.0, times=100)
    with pytest.raises(StorageError, match="/x cannot be read: .*[Tt]imeout"):
        locate(store.at("x"), options).size()
    assert len(store.log) == 2


def test_a_slow_store_is_waited_for_and_asked_again(store: Store) -> None:
    store.put("x", DATA)
    fault = store.fail("delay", method="GET", seconds=2.0)
    options = store.options_with(read_timeout=1)
    file = RemoteFile(store.at("x"), options)
    assert file.read(10) == DATA[:10]
    assert fault.seen == 1
    assert len(gets(store.log)) == 2


def test_a_file_that_is_replaced_while_it_is_read(store: Store) -> None:
    """The same size, so that only the store's own version tells."""
    store.put("x", DATA)
    file = RemoteFile(store.at("x"), store.options)
    assert file.read(10) == DATA[:10]
    store.put("x", DATA[::-1])
    file.seek(50_000)
    with pytest.raises(DatasetChangedError, match="/x was replaced while it was read"):
        file.read(100)


def test_a_file_that_is_removed_while_it_is_read(store: Store) -> None:
    store.put("x", DATA)
    file = RemoteFile(store.at("x"), store.options)
    store.delete("x")
    with pytest.raises(MissingFileError, match="/x: no such file or directory"):
        file.read(100)


def test_storage_options_go_before_our_own(store: Store) -> None:
    config = {"read_timeout": 7, "retries": {"total_max_attempts": 2}}
    options = {**store.options, "config_kwargs": config, "use_listings_cache": True}
    fs, _ = locate(store.at("x"), options).filesystem()
    found = {**remote_files._S3_CONFIG, **config}
    assert fs.config_kwargs == found
    assert found["connect_timeout"] == 5
    assert fs.storage_options["use_listings_cache"] is True
    fs, _ = locate(store.at("x"), store.options).filesystem()
    assert fs.config_kwargs == remote_files._S3_CONFIG
    assert fs.storage_options["use_listings_cache"] is False


def test_new_keys_are_seen_at_once(store: Store) -> None:
    """Also where the user wants listings to be cached."""
    for options in (store.options, {**store.options, "use_listings_cache": True}):
        folder = locate(store.at(f"d{len(options)}"), options)
        assert folder.entries() == []
        assert not folder.join("a").exists()
        store.put(f"{folder.name}/a", b"1")
        assert folder.entries() == [("a", 1)]
        assert folder.join("a").exists()
        store.put(f"{folder.name}/b/c", b"12")
        assert sorted(folder.entries(), key=str) == [("a", 1), ("b", None)]
        assert sorted(folder.files()) == [("a", 1), ("b/c", 2)]


# --- forks ----------------------------------------------------------------------------------------


def _child(file: RemoteFile, replies: Any) -> None:
    try:
        file.seek(100_000)
        replies.put(file.read(5))
    except Exception as error:
        replies.put(f"{type(error).__name__}: {error}")


def test_a_file_that_was_opened_before_a_fork(store: Store) -> None:
    """fsspec's thread is not in the child; nothing may hang, and both go on reading."""
    store.put("x", DATA)
    file = RemoteFile(store.at("x"), store.options)
    assert file.read(3) == DATA[:3]
    context = multiprocessing.get_context("fork")
    replies = context.Queue()
    for expected in (DATA[100_000:100_005], "DatasetChangedError: "):
        child = context.Process(target=_child, args=(file, replies))
        child.start()
        found = replies.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
        if isinstance(expected, bytes):
            assert found == expected
            file.seek(7)
            assert file.read(3) == DATA[7:10]
            store.put("x", DATA[::-1])  # what the next child finds
        else:
            assert found.startswith(expected)


# --- the web --------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that knows no ranges, as ``python -m http.server``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_plan_and_a_dataset_over_the_web(
    web: str, tmp_path: Path, awkward_data: Callable[[str], Path]
) -> None:
    """By their names: the web lists nothing that can be relied on."""
    small_manifest(tmp_path / "m")
    assert Manifest.open(f"{web}/m", verify="all").epochs == (0, 1)
    assert open_plan(f"{web}/m").epochs == (0, 1)
    for format_, name in (("parquet", "part-1.parquet"), ("stream", "part-1.arrows")):
        (tmp_path / name).write_bytes((awkward_data(format_) / name).read_bytes())
        found, local = open_dataset(f"{web}/{name}"), open_dataset(tmp_path / name)
        assert found.snapshot == local.snapshot
        assert found.take([7, 3000]).equals(local.take([7, 3000]))
    with pytest.raises(BatchloomError, match="no such file"):
        open_dataset(f"{web}/part-2.parquet")


def test_a_web_server_without_ranges(web: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    for size in (None, len(DATA)):
        file = RemoteFile(f"{web}/x", {}, size)
        file.seek(1234)
        assert file.read(10) == DATA[1234:1244]
    assert fetch_ranges([(f"{web}/x", 5, 9), (f"{web}/x", 190_000, 190_001)], {}) == [
        DATA[5:9],
        DATA[190_000:190_001],
    ]
    with pytest.raises(MissingFileError, match="/y: no such file"):
        RemoteFile(f"{web}/y", {})
