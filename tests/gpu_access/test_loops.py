"""Plain and compiled loops of the CPU gather give the same bits; the first rows are plain."""

import json
import subprocess
import sys

import numpy as np
import pytest
from batchloom.gpu_access import cpu_kernels, plain_loops
from batchloom.gpu_access.loops import loops_for
from hypothesis import given, settings
from hypothesis import strategies as st

WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([128, 500, 1024, 9001]))


class Chunks:
    """Some chunks of random bytes, and rows asked of them."""

    def __init__(self, seed, width=1, rows=50):
        draw = np.random.default_rng(seed)
        self.draw, self.rows = draw, rows
        count = int(draw.integers(1, 5))
        self.memory = [draw.integers(0, 256, rows * width + 16, np.uint8) for _ in range(count)]
        self.addresses = np.array([m.ctypes.data for m in self.memory], np.uint64)
        n = int(draw.integers(0, 40))
        self.chunk, self.offset = draw.integers(0, count, n), draw.integers(0, rows, n)

    def __len__(self):
        return len(self.chunk)


def both(call):
    """Return what a call gives, which is the same with either kind of loops."""
    plain, compiled = call(plain_loops), call(cpu_kernels)
    for a, b in zip(plain, compiled, strict=True):
        assert np.array_equal(a, b)
    return plain


@settings(max_examples=60)
@given(
    rows=st.lists(st.integers(1, 9), max_size=6),
    gap=st.sampled_from([0, 2]),
    start=st.sampled_from([0, 5, 1 << 40]),
    asked=st.lists(st.integers(-7, 70), max_size=20),
)
def test_rows_are_found(rows, gap, start, asked):
    from batchloom.dataplane.mapped import ChunkTable

    counts = np.array(rows, np.int64)
    first = (start + np.cumsum([0, *counts[:-1] + gap])[: len(rows)]).astype(np.uint64)
    table = ChunkTable(first, counts)
    ids = np.array([max(0, start + a) for a in asked], np.uint64)

    def find(loops):
        chunk, offset = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        bad = loops.locate(ids, table.first, table.rows, table.guess, table.shift, chunk, offset)
        return (bad, *((chunk, offset) if bad < 0 else ()))

    bad, *_ = both(find)
    known = {int(f) + i for f, n in zip(first, counts, strict=True) for i in range(n)}
    missing = [i for i, row in enumerate(ids.tolist()) if row not in known]
    assert bad == (missing[0] if missing else -1)


@settings(max_examples=60)
@given(
    ids=st.lists(st.integers(-3, 30) | st.just(-(1 << 63)), max_size=20), rows=st.integers(1, 30)
)
def test_rows_of_a_table(ids, rows):
    asked = np.array(ids, np.int64)
    (bad,) = both(lambda loops: (loops.first_outside(asked.ctypes.data, len(ids), rows),))
    missing = [i for i, row in enumerate(ids) if not 0 <= row < rows]
    assert bad == (missing[0] if missing else -1)


@settings(max_examples=60)
@given(width=WIDTHS, seed=st.integers(0, 999))
def test_rows_are_copied(width, seed):
    chunks = Chunks(seed, width)
    start, step = int(chunks.draw.integers(0, len(chunks) + 1)), int(chunks.draw.integers(1, 9))

    def copy(loops):
        source = np.zeros(len(chunks), np.uint64)
        loops.point_at(chunks.chunk, chunks.offset, chunks.addresses, width, source)
        out = np.zeros((len(chunks), width), np.uint8)
        turns = np.array([start, len(chunks), step, start])
        loops.row_copier(width)(source.ctypes.data, 0, 1, out.ctypes.data, turns)
        assert turns[3] == len(chunks)
        return source, out

    def take(loops):  # of the first chunk, as a table
        asked, out = chunks.offset.astype(np.int64), np.zeros((len(chunks), width), np.uint8)
        table = (len(chunks), chunks.rows, int(chunks.addresses[0]), width, out.ctypes.data)
        assert loops.row_taker(width)(asked.ctypes.data, *table) == -1
        if len(asked):
            asked[-1], before = chunks.rows, out.copy()
            out[:] = 0
            assert loops.row_taker(width)(asked.ctypes.data, *table) == len(asked) - 1
            assert not out.any()  # nothing is written
            out[:] = before
        return (out,)

    (taken,) = both(take)
    rows = chunks.memory[0][: chunks.rows * width].reshape(-1, width)
    assert np.array_equal(taken, rows[chunks.offset])
    _, out = both(copy)
    for i in range(start, len(chunks)):
        at = chunks.offset[i] * width
        assert np.array_equal(out[i], chunks.memory[chunks.chunk[i]][at : at + width])
    assert not out[:start].any()


@settings(max_examples=60)
@given(width=st.integers(1, 20), shift=st.integers(0, 40), seed=st.integers(0, 999))
def test_bits(width, shift, seed):
    """Booleans, the first null, and validity of runs; an address of 0 stands for all ones."""
    chunks = Chunks(seed, 4)
    start = chunks.draw.integers(0, shift + 1, len(chunks.memory))
    absent = np.where(chunks.draw.random(len(chunks.memory)) < 0.3, 0, chunks.addresses)
    sparse = [m | chunks.draw.integers(0, 256, len(m), np.uint8) for m in chunks.memory]
    for memory, filled in zip(chunks.memory, sparse, strict=True):
        memory[:] = filled  # three of four bits are ones
    offset, count = chunks.offset // width, chunks.draw.integers(0, 4, len(chunks))

    def spread(loops):
        out = np.zeros((len(chunks), width), np.uint8)
        loops.copy_bits(
            chunks.chunk, offset, chunks.addresses, start, width, out.reshape(-1), 0, len(chunks)
        )
        return (out,)

    def nulls(loops):
        entries = int(count.sum()) * width
        bits = np.zeros(-(-entries // 8), np.uint8)
        found = loops.take_bits(chunks.chunk, offset, count, absent, start, width, bits)
        return loops.first_null(chunks.chunk, offset, absent, start, width), found, bits

    (out,), (_, found, bits) = both(spread), both(nulls)
    expected = [np.unpackbits(m, bitorder="little") for m in chunks.memory]
    runs = []
    for i, c in enumerate(chunks.chunk):
        at = start[c] + offset[i] * width
        assert np.array_equal(out[i], expected[c][at : at + width])
        run = expected[c][at : at + count[i] * width]
        runs.append(run if absent[c] else np.ones_like(run))
    whole = np.concatenate([*runs, np.empty(0, np.uint8)])
    assert found == int((whole == 0).sum())
    assert np.array_equal(np.unpackbits(bits, count=len(whole), bitorder="little"), whole)


@settings(max_examples=60)
@given(
    wide=st.booleans(),
    item=st.sampled_from([1, 3, 8, 200]),
    bad=st.booleans(),
    seed=st.integers(0, 999),
)
def test_runs(wide, item, bad, seed):
    chunks = Chunks(seed, 8)
    kind, ends_at = (np.int64 if wide else np.int32), []
    values = [chunks.draw.integers(0, 256, 100 * item, np.uint8) for _ in chunks.memory]
    for _ in chunks.memory:
        cuts = np.sort(chunks.draw.integers(0, 101, chunks.rows + 1)).astype(kind)
        if bad:
            cuts[chunks.draw.integers(0, len(cuts))] = -1
        ends_at.append(cuts)
    offsets = np.array([o.ctypes.data for o in ends_at], np.uint64)
    addresses = np.array([v.ctypes.data for v in values], np.uint64)
    items, n = np.full(len(values), 100), len(chunks)

    def read(loops):
        begin, ends = np.zeros(n, np.int64), np.zeros(n + 1, np.int64)
        first = loops.read_offsets(chunks.chunk, chunks.offset, offsets, wide, items, begin, ends)
        if first >= 0:
            return (first,)
        out = np.zeros(int(ends[-1]) * item, np.uint8)
        target = np.uint64(out.ctypes.data)
        loops.copy_runs(
            chunks.chunk, begin, ends, addresses, item, target, np.array([0, n, 1 + seed % 9, 0])
        )
        return first, begin, ends, out

    first, *rest = both(read)
    rows = [
        ends_at[c][o : o + 2].tolist() for c, o in zip(chunks.chunk, chunks.offset, strict=True)
    ]
    wrong = [i for i, (low, high) in enumerate(rows) if low < 0 or high < low]
    assert first == (wrong[0] if wrong else -1)
    if first < 0:
        pieces = [
            values[c][low * item : high * item]
            for c, (low, high) in zip(chunks.chunk, rows, strict=True)
        ]
        assert np.array_equal(rest[2], np.concatenate([*pieces, np.empty(0, np.uint8)]))


_FIRST_ROWS = """
import json, sys, time
import numpy as np
from batchloom.dataplane.mapped import ColumnChunks
from batchloom.gpu_access import loops
from batchloom.gpu_access.row_gather import gather_rows

array = np.arange(40_000, dtype=np.float32).reshape(-1, 4)
column, draw, used = ColumnChunks.of_array(array), np.random.default_rng(0), []
for rows in map(int, sys.argv[1:]):
    ids = draw.integers(0, 10_000, rows)
    assert np.array_equal(gather_rows(column, ids), array[ids])
    used.append("numba" in sys.modules)
end = time.monotonic() + 60
while loops._loading and loops._loading.is_alive() and time.monotonic() < end:
    ids = draw.integers(0, 10_000, 100)
    assert np.array_equal(gather_rows(column, ids), array[ids])  # plain until the others are there
ids = draw.integers(0, 10_000, 9000)
assert np.array_equal(gather_rows(column, ids), array[ids])
print(json.dumps([used, loops._loaded and loops._loaded.__name__.split(".")[-1]]))
"""


@pytest.mark.parametrize(
    ("compiler", "rows", "numba", "then"),
    [
        ("1", [400, 500], [False, False], None),
        ("1", [9000, 900, 900], [False, False, ...], "cpu_kernels"),
        ("1", [300_000], [True], "cpu_kernels"),
        ("0", [9000, 9000, 300_000], [False, False, False], "plain_loops"),
    ],
)
def test_no_compiler_for_the_first_rows(compiler, rows, numba, then):
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_ROWS, *map(str, rows)],
        env={"BATCHLOOM_NUMBA": compiler, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    used, loaded = json.loads(done.stdout)
    assert all(n in (..., u) for n, u in zip(numba, used, strict=True))
    assert loaded == then


def test_without_numba(monkeypatch):
    monkeypatch.setattr("batchloom.gpu_access.loops._loaded", None)
    monkeypatch.setitem(sys.modules, "batchloom.gpu_access.cpu_kernels", None)
    monkeypatch.delattr("batchloom.gpu_access.cpu_kernels")
    assert loops_for(1 << 40) is plain_loops
