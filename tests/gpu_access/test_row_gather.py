"""Rows of any width out of any chunks, bit by bit; buffers that come back; threads that share."""

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import ParameterError, RowIdError
from batchloom.dataplane.mapped import ColumnChunks
from batchloom.gpu_access import cpu_kernels
from batchloom.gpu_access.buffers import BufferPool, host_buffer
from batchloom.gpu_access.row_gather import gather_rows
from batchloom.gpu_access.sharing import gather_threads, share
from hypothesis import given, settings
from hypothesis import strategies as st


def chunked(array, cuts, gap=0):
    """Return an array as a column of several chunks, `gap` unused ids between them."""
    parts = [np.ascontiguousarray(p) for p in np.split(array, cuts) if len(p)]
    rows = np.array([len(p) for p in parts], np.int64)
    first = np.concatenate([[0], np.cumsum(rows + gap)[:-1]]).astype(np.uint64)
    addresses = np.array([p.ctypes.data for p in parts], np.uint64)
    width = array.nbytes // len(array)
    return ColumnChunks(
        "x", array.dtype, array.shape[1:], first, rows, addresses, width, parts
    ), np.concatenate([np.arange(n) + f for n, f in zip(rows, first.astype(int), strict=True)])


@settings(max_examples=60)
@given(
    width=st.one_of(st.integers(1, 300), st.sampled_from([512, 640, 1024, 4100, 9001])),
    rows=st.integers(1, 200),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    gap=st.sampled_from([0, 3, 1 << 20, 1 << 40]),
    seed=st.integers(0, 99),
)
def test_any_width_any_chunks(width, rows, cuts, gap, seed):
    draw = np.random.default_rng(seed)
    array = draw.integers(0, 256, (rows, width), np.uint8)
    chunks, ids = chunked(array, sorted(min(c, rows) for c in cuts), gap)
    asked = draw.integers(0, rows, draw.integers(0, 300))
    room = np.full((len(asked) + 2, width), 77, np.uint8)
    found = gather_rows(chunks, ids[asked], room[1:-1])
    assert np.array_equal(found, array[asked])
    assert (room[[0, -1]] == 77).all()  # nothing before, nothing behind
    assert np.array_equal(gather_rows(chunks, ids[asked]), array[asked])


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "int32", "uint64", "float16", "float64", "complex64"]
)
def test_every_bit_of_every_type(dtype):
    bits = np.random.default_rng(0).integers(0, 256, 64 * 16, np.uint8)
    array = bits.astype(bool) if dtype == "bool" else bits.view(dtype)
    array = array.reshape(-1, 2)
    ids = np.random.default_rng(1).integers(0, len(array), 1000)
    found = gather_rows(ColumnChunks.of_array(array), ids)
    assert found.dtype == array.dtype
    assert found.tobytes() == array[ids].tobytes()  # NaN payloads, -0.0 and all


@pytest.mark.parametrize("count", [1, 3])
def test_first_bad_id_is_named_and_nothing_is_written(count):
    array = np.arange(30, dtype=np.int64)
    chunks, _ = chunked(array, [10, 20][: count - 1], gap=5)
    out = np.full(4, -1)
    stop = int(chunks.first[-1]) + int(chunks.rows[-1])
    for bad in (stop, (1 << 64) - 1, *([10] if count > 1 else [])):
        with pytest.raises(RowIdError, match=f"Row {bad} is in no chunk: the table holds 30 rows"):
            gather_rows(chunks, np.array([1, bad, stop + 7, 2], np.uint64), out)
        assert (out == -1).all()
    shifted = ColumnChunks.of_array(array, first=100)
    with pytest.raises(RowIdError, match="Row 99 is in no chunk"):
        gather_rows(shifted, [100, 99])
    with pytest.raises(ParameterError, match="'out' parameter of gather_rows must be"):
        gather_rows(shifted, [100], np.empty(2, np.int64))


@pytest.mark.parametrize("width", [8, 100, 128])
def test_many_rows_on_several_threads(width):
    """Large requests of whole lines are written past the caches, and threads see them."""
    array = np.random.default_rng(0).standard_normal((5000, width))
    chunks, _ = chunked(array, [7, 1000, 4000])
    ids = np.random.default_rng(1).integers(0, 5000, 20_000)
    expected = array[ids]
    shifted = np.empty(expected.size + 1)[1:].reshape(expected.shape)  # begins inside a line
    assert np.array_equal(gather_rows(chunks, ids, shifted), expected)
    for threads in (1, 2, 5):
        assert np.array_equal(gather_rows(chunks, ids, threads=threads), expected)


# --- buffers --------------------------------------------------------------------------------------


def test_buffer_comes_back_with_its_last_view():
    pool = BufferPool()
    array = pool.take(1 << 20)
    address = array.ctypes.data
    assert address % 64 == 0
    tensor = torch.from_numpy(array.view(np.float32).reshape(-1, 64))
    views = tensor.split(16)
    del array, tensor
    assert pool.take(1 << 20).ctypes.data != address  # a view holds it
    views = views[3]
    gc.collect()
    assert pool.take(1 << 20).ctypes.data != address
    views.fill_(1)
    del views
    gc.collect()
    addresses = {pool.take(1 << 20).ctypes.data for _ in range(3)}
    assert address in addresses


def test_no_allocation_after_the_first_windows():
    array = np.zeros((100, 1024), np.float32)
    chunks = ColumnChunks.of_array(array)
    from batchloom.gpu_access import buffers

    for number in range(50):
        batch = torch.from_numpy(gather_rows(chunks, np.arange(100))).split(10)
        if number == 3:
            made = buffers._pool.made
    assert buffers._pool.made == made
    assert len(batch) == 10


def test_unused_buffers_are_limited():
    pool = BufferPool(limit=3 << 20)
    held = [pool.take(1 << 20) for _ in range(8)]
    held.clear()
    gc.collect()
    assert pool._held <= 3 << 20
    assert pool.take(5).shape == (5,)
    assert host_buffer(0).shape == (0,)


# --- threads --------------------------------------------------------------------------------------


def in_turns(work):
    """Return what takes turns in Python as kernels do, and calls work(start, stop)."""
    lock = threading.Lock()

    def take(turns):
        while True:
            with lock:
                start, stop = int(turns[0]), int(min(turns[0] + turns[2], turns[1]))
                turns[0] += turns[2]
            if start >= stop:
                return
            work(start, stop)
            with lock:
                turns[3] += stop - start

    return take


def test_every_row_once_whoever_takes_it():
    seen = np.zeros(10_000, int)

    def work(start, stop):
        seen[start:stop] += 1

    for threads in (1, 2, 4):
        seen[:] = 0
        share(in_turns(work), len(seen), 1000, threads)
        assert (seen == 1).all()


@pytest.mark.parametrize("width", [4, 64, 72, 8192])
def test_kernels_take_each_turn_once(width):
    """Two threads deal out a thousand turns between them."""
    array = np.random.default_rng(0).integers(0, 256, (5000, width), np.uint8)
    ids = np.random.default_rng(1).integers(0, 5000, 1000)
    source = (array.ctypes.data + ids * width).astype(np.uint64)
    copy = cpu_kernels.row_copier(width)
    for _ in range(20):
        out, turns = np.zeros((1000, width), np.uint8), np.array([0, 1000, 1, 0])
        work = (source.ctypes.data, 0, 1, out.ctypes.data, turns)
        other = threading.Thread(target=copy, args=work)
        other.start()
        copy(*work)
        other.join()
        assert turns[3] == 1000
        assert np.array_equal(out, array[ids])


def test_helper_that_gets_no_core_is_not_waited_for():
    """A helper that comes when all turns are taken does nothing, and nobody waits for it."""
    from batchloom.gpu_access import sharing

    helpers, release, held = sharing._helpers_of_process(), threading.Event(), []
    helpers.ask(8, lambda _: held.append(release.wait()), np.zeros(4, int), None)
    try:
        done = []
        share(in_turns(lambda start, stop: done.append((start, stop))), 8000, 1000, 2)
        assert len(done) > 1
        assert sum(stop - start for start, stop in done) == 8000
    finally:
        release.set()
    end = time.monotonic() + 20
    while len(held) < 8 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(held) == 8


def test_error_of_a_helper_is_raised():
    caller, took = threading.current_thread(), threading.Event()

    def work(turns):
        if threading.current_thread() is caller:
            assert took.wait(20)  # nothing is left for the caller
            return
        turns[0] = turns[1]
        took.set()
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        share(work, 8000, 1000, 2)


def test_number_of_threads(monkeypatch):
    assert gather_threads(3) == 3
    monkeypatch.setenv("BATCHLOOM_GATHER_THREADS", "2")
    assert gather_threads() == 2
    for text in ("0", "many", "-1"):
        monkeypatch.setenv("BATCHLOOM_GATHER_THREADS", text)
        with pytest.raises(ParameterError, match="BATCHLOOM_GATHER_THREADS.*range"):
            gather_threads()


FORKED = """
import os, numpy as np
from batchloom.dataplane.mapped import ColumnChunks
from batchloom.gpu_access.row_gather import gather_rows
array = np.arange(4_000_000).reshape(-1, 64)
chunks = ColumnChunks.of_array(array)
ids = np.arange(len(array))[::-1].copy()
assert np.array_equal(gather_rows(chunks, ids, threads=3), array[ids])
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(gather_rows(chunks, ids, threads=3), array[ids]) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("ok")
"""


def test_forked_child_has_helpers_of_its_own():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ran.stdout == "ok\n", ran.stderr
