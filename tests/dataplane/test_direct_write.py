from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import direct_write
from batchloom.dataplane.direct_write import BLOCK, aligned_bytes, write_all

LARGE = 1 << 18
LINUX = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="writes are direct on Linux alone")


def content(size: int, skip: int = 0) -> Any:
    """Random bytes, so many after a block begins."""
    data = aligned_bytes(size + skip)[skip:]
    data[:] = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    return data


def written(path: Path, data: Any, *, first: bytes = b"") -> bytes:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        if first:
            os.write(handle, first)
        write_all(handle, data)
        os.write(handle, b"on")  # what comes after goes on behind it
        assert fcntl.fcntl(handle, fcntl.F_GETFL) == flags
    finally:
        os.close(handle)
    return path.read_bytes()


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Sizes of the writes that are made, and whether they are direct."""
    made: list[tuple[int, bool]] = []
    write = os.write

    def noted(handle: int, data: Any) -> int:
        flags = fcntl.fcntl(handle, fcntl.F_GETFL)
        made.append((len(data), bool(flags & getattr(os, "O_DIRECT", 0))))
        return write(handle, data)

    monkeypatch.setattr(os, "write", noted)
    return made


@pytest.mark.parametrize("skip", [0, 1, 512])
@pytest.mark.parametrize("extra", [0, 1, BLOCK - 1, BLOCK, 3 << 20])
def test_all_is_written(tmp_path: Path, extra: int, skip: int) -> None:
    data = content(LARGE + extra, skip)
    assert written(tmp_path / "a", data) == data.tobytes() + b"on"


@pytest.mark.parametrize("size", [0, 1, BLOCK, LARGE - 1])
def test_what_is_small_too(tmp_path: Path, size: int) -> None:
    data = content(size)
    assert written(tmp_path / "a", data.tobytes()) == data.tobytes() + b"on"


def test_any_bytes(tmp_path: Path) -> None:
    data = content(LARGE + 8)
    kinds = [data.tobytes(), bytearray(data), data.data, data.view(np.uint32).reshape(2, -1)]
    for number, kind in enumerate(kinds):
        assert written(tmp_path / str(number), kind) == data.tobytes() + b"on"


def test_a_file_that_has_begun(tmp_path: Path) -> None:
    data = content(LARGE)
    assert written(tmp_path / "a", data, first=b"x") == b"x" + data.tobytes() + b"on"
    block = b"y" * BLOCK
    assert written(tmp_path / "b", data, first=block) == block + data.tobytes() + b"on"


@LINUX
def test_blocks_go_past_the_page_cache(tmp_path: Path, writes: list[tuple[int, bool]]) -> None:
    data = content(LARGE + 7)
    with open(tmp_path / "a", "wb", buffering=0) as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_DIRECT)
        except OSError:
            pytest.skip("this file system knows no direct writes")
    written(tmp_path / "a", data)
    assert writes == [(LARGE, True), (7, False), (2, False)]
    writes.clear()
    written(tmp_path / "b", content(3 * (1 << 20) + 1, skip=8))  # by way of aligned memory
    assert writes == [(1 << 20, True)] * 3 + [(1, False), (2, False)]


@pytest.mark.parametrize("after", [0, BLOCK, BLOCK + 5])
def test_a_file_system_that_will_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Some say so at the first write, some write less; the rest goes as ever."""
    write, told = os.write, []

    def refusing(handle: int, data: Any) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0):
            if not after:
                told.append(0)
                raise OSError(errno.EINVAL, "Invalid argument")
            told.append(after)
            at = os.lseek(handle, after, os.SEEK_CUR) - after
            with open(tmp_path / "a", "r+b") as file:
                file.seek(at)
                file.write(bytes(data[:after]))
            return after
        return write(handle, data)

    monkeypatch.setattr(os, "write", refusing)
    data = content(2 * LARGE + 3)
    assert written(tmp_path / "a", data) == data.tobytes() + b"on"
    if told:  # else there are no direct writes here
        assert len(told) == (1 if after % BLOCK or not after else 2 * LARGE // BLOCK)


def test_direct_writes_that_cannot_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_flags = fcntl.fcntl

    def refusing(handle: int, what: int, flags: int = 0) -> int:
        if what == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return set_flags(handle, what, flags)

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    data = content(LARGE)
    assert written(tmp_path / "a", data) == data.tobytes() + b"on"
    monkeypatch.setattr(direct_write, "_DIRECT", 0)  # another system
    assert written(tmp_path / "b", data) == data.tobytes() + b"on"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with open(tmp_path / "a", "wb", buffering=0) as file:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        with pytest.raises(OSError, match="No space left"):
            write_all(file.fileno(), content(LARGE))
        assert fcntl.fcntl(file, fcntl.F_GETFL) == flags


def test_memory_begins_with_a_block() -> None:
    assert len(aligned_bytes(0)) == 0
    for size in (1, 100, BLOCK, 3 << 20):
        made = aligned_bytes(size)
        assert len(made) == size
        assert made.ctypes.data % BLOCK == 0
        assert made.flags.writeable
