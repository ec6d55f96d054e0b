"""What is put on disk: whole, durable, and the same bytes whoever makes them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import StorageError
from batchloom.dataplane.signal_parts import PartName, SignalPart
from batchloom.dataplane.storage import locate
from batchloom.jobs.service import durable
from batchloom.jobs.service.durable import Folder
from batchloom.jobs.service.posting import read_body
from batchloom.tests.jobs.service.running import body_of


@pytest.mark.parametrize("n", [1, 18_724, 18_725, 50_000])
def test_a_part_that_came_whole_is_kept_as_it_is(n: int, tmp_path: Path) -> None:
    data = body_of(np.arange(n))
    name, stored = read_body(data).part(0, 0, 1)
    assert stored is data
    (tmp_path / str(name)).write_bytes(stored)
    parsed = PartName.parse(str(name))
    assert parsed == name
    found = list(SignalPart(locate(tmp_path / str(name)), name).read())
    assert sum(map(len, found)) == n


def test_a_part_that_says_something_else_of_itself_is_made_anew() -> None:
    data = bytearray(body_of(np.arange(100)))
    honest, _ = read_body(bytes(data)).part(0, 0, 1)
    at = data.rindex(b'"epochs"')
    data[at + 10] = ord("7")  # its index says another epoch than its rows
    name, stored = read_body(bytes(data)).part(0, 0, 1)
    assert name == honest
    assert bytes(stored) != bytes(data)


def test_files_that_are_put_at_the_same_time_share_a_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Any] = []
    release = threading.Event()
    sync = durable.sync_path

    def slow(path: Path) -> None:
        there = sorted(p.name for p in path.iterdir())
        if path.name == "loss":
            flushed.append(there)
            if len(flushed) == 1:
                release.wait(10)
        sync(path)

    monkeypatch.setattr(durable, "sync_path", slow)
    folder = Folder(tmp_path / "loss", "Writing signals")
    threads = [threading.Thread(target=folder.put, args=("part-0", b"0"))]
    threads[0].start()
    while not flushed:
        pass
    threads += [
        threading.Thread(target=folder.put, args=(f"part-{n}", bytes([n]))) for n in range(1, 6)
    ]
    for thread in threads[1:]:
        thread.start()
    while len([p for p in (tmp_path / "loss").iterdir() if p.name.startswith("part")]) < 6:
        pass
    release.set()
    for thread in threads:
        thread.join()
    assert flushed[0] == ["part-0"]
    assert 1 < len(flushed) <= 4
    assert len(flushed[-1]) == 6  # the last flush saw them all


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "loss", "Writing signals")
    folder.put("part-0", b"x")
    write = os.write

    def full(handle: int, data: Any) -> int:
        if len(data) > 3:
            return write(handle, data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="Writing signals failed: No space left"):
        folder.put("part-1", b"abcdef")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "loss").iterdir()] == ["part-0"]
    folder.put("part-1", b"abcdef")
    assert (tmp_path / "loss" / "part-1").read_bytes() == b"abcdef"


def test_a_flush_that_fails_fails_and_the_next_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "loss", "Writing signals")
    folder.put("part-0", b"x")
    sync = durable.sync_path

    def broken(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "sync_path", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        folder.put("part-1", b"y")
    monkeypatch.setattr(durable, "sync_path", sync)
    folder.put("part-1", b"y")
