"""The GPU's kernel without a GPU: values, bounds, requests to the bus, offsets, compilation."""

from __future__ import annotations

import inspect
import mmap
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from batchloom.gpu_access import UnifiedTensor
from batchloom.gpu_access.line_requests import line_requests, lines_per_row
from batchloom.gpu_access.request import Request
from batchloom.gpu_access.row_table import RowTable
from batchloom.gpu_access.tiling import tile
from batchloom.tests.contracts.unified import UnifiedContract, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="the kernel is written in Triton")

import triton
from batchloom.gpu_access import kernels
from batchloom.tests.contracts.interpreted import KERNEL, Interpreted, counted_lines, interpreted
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction


class TestKernel(UnifiedContract):
    def make(self, table):
        return interpreted(table)


class TestPlainKernel(UnifiedContract):
    """Without the lead-in, as it runs where rows begin at lines."""

    def make(self, table):
        return interpreted(table, lead_in=False)


def launch(request, tiling, kernel=KERNEL):
    kernels.launch(request, tiling, 3, kernel)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 64, 65, 200])
@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_any_number_of_ids_and_programs(count, programs):
    table = random_rows(torch.float32, 300, rows=50)
    ids = torch.randint(0, 50, (count,))
    assert (
        interpreted(table, programs=programs)[ids]
        .view(torch.int32)
        .equal(table.view(torch.int32)[ids])
    )


def test_places():
    table, out = random_rows(torch.float32, 20), torch.zeros(4, 20)
    status = torch.full((1,), 4)
    ids, places = torch.tensor([8, 200, 6, 5]), torch.tensor([3, 2, 1, 0])
    rows = RowTable.of(table)
    launch(Request(rows, ids, out, status, places), tile(rows, out.data_ptr()))
    assert status.item() == 2  # a place in the output, not in the sorted ids
    assert out[[3, 1, 0]].view(torch.int32).equal(table[[8, 6, 5]].view(torch.int32))
    assert not out[2].any()


@settings(max_examples=60)
@given(
    nbytes=st.integers(1, 700),
    start=st.integers(0, 127),
    apart=st.integers(0, 64),
    count=st.integers(1, 70),
    programs=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_any_layout(nbytes, start, apart, count, programs, seed):
    """Any row width, beginning and stride: the rows' bytes, and a line a row over the fewest."""
    memory = random_rows(torch.uint8, nbytes + apart, start=start, rows=40, seed=seed)
    table = RowTable(memory.data_ptr(), 40, (nbytes,), torch.uint8, nbytes + apart, memory)
    ids = np.random.default_rng(seed).integers(0, 40, count)
    out, status = torch.zeros(count, nbytes, dtype=torch.uint8), torch.tensor([count])
    kernels.launch(
        Request(table, torch.from_numpy(ids), out, status),
        tile(table, out.data_ptr()),
        programs,
        KERNEL,
    )
    assert status.item() == count
    assert np.array_equal(out.numpy(), memory.numpy()[ids, :nbytes])
    word = tile(table).word
    if word >= 4:  # narrower words take several steps a line
        asked, least = line_requests(table, ids, "kernel"), line_requests(table, ids, "least")
        assert least <= asked <= least + count


# --- requests to the bus --------------------------------------------------------------------------


def traced(table: RowTable, ids, lead_in=None, kernel=None):
    """Lines that the executed kernel asked for."""
    out, status = torch.empty(len(ids), table.row_bytes, dtype=torch.uint8), torch.tensor([10**9])
    tiling = tile(table, 0, lead_in)
    with counted_lines() as lines:
        launch(Request(table, torch.from_numpy(ids), out, status), tiling, kernel or KERNEL)
    return lines[0]


@pytest.mark.parametrize(
    ("nbytes", "start", "stride", "kernel", "plain"),
    [
        # From the table of notes that other gather kernels were counted by.
        (512, 0, 512, 4.0, 4.0),
        (512, 64, 512, 5.0, None),
        (512, 80, 512, 5.0, None),
        (516, 0, 516, 5.0, 8.88),
        (1028, 0, 1028, 9.0, 16.7),
        (1200, 0, 1200, 10.25, None),
        (2408, 0, 2408, 19.75, None),
        (132, 0, 132, 2.0, 2.97),
        (516, 0, 640, 5.0, 5.0),
        (64, 0, 64, 1.0, 1.0),
        (100, 0, 100, 1.75, 1.75),
    ],
)
def test_lines_asked_for(nbytes, start, stride, kernel, plain):
    memory = torch.zeros(256 * stride + 512, dtype=torch.uint8)
    address = -(-memory.data_ptr() // 128) * 128 + start
    table = RowTable(address, 256, (nbytes,), torch.uint8, stride, memory)
    ids = np.arange(256) * 37 % 256  # rows of one warp never share a line
    asked = traced(table, ids)
    assert asked == line_requests(table, ids, "kernel")
    assert asked / 256 == pytest.approx(kernel, abs=0.01)
    assert asked / 256 == pytest.approx(lines_per_row(table), abs=0.01)
    assert asked <= line_requests(table, ids, "least") + 256  # within a line a row
    simple = traced(table, ids, lead_in=False)
    assert simple == line_requests(table, ids, "plain")
    if plain is not None:
        assert simple / 256 == pytest.approx(plain, rel=0.01)


def test_a_shift_of_the_wrong_sign_is_seen_by_the_lines_alone():
    source = textwrap.dedent(inspect.getsource(kernels.gather_rows_kernel.fn))
    right = "((source + phase) & (LINE - 1))"
    assert right in source
    wrong = source.replace(right, "((-source - phase) & (LINE - 1))")
    kernel = InterpretedFunction(rewritten(wrong))
    values = random_rows(torch.float32, 129, rows=256)
    table, ids = RowTable.of(values), np.arange(256)
    assert interpreted(values, kernel=kernel)[ids].view(torch.int32).equal(values.view(torch.int32))
    assert traced(table, ids) / 256 <= 5.5
    assert traced(table, ids, kernel=kernel) / 256 > 6


def rewritten(source: str):
    """Compile a changed kernel in a file of its own: the interpreter reads its source again."""
    import importlib.util
    import tempfile

    body = source[source.index("def gather_rows_kernel") :]
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write("import triton\nimport triton.language as tl\n\n\n" + body)
    spec = importlib.util.spec_from_file_location("rewritten_kernel", file.name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.gather_rows_kernel


# --- memory ---------------------------------------------------------------------------------------

GUARD = """
import ctypes, mmap, sys, torch
from batchloom.gpu_access.row_table import RowTable
from batchloom.gpu_access.tiling import tile
from batchloom.gpu_access import kernels
from batchloom.gpu_access.request import Request
from batchloom.tests.contracts.interpreted import KERNEL
page = mmap.PAGESIZE
region = mmap.mmap(-1, 3 * page)
base = torch.frombuffer(region, dtype=torch.uint8).data_ptr()
libc = ctypes.CDLL(None, use_errno=True)
for guard in (base, base + 2 * page):
    assert libc.mprotect(ctypes.c_void_p(guard), page, 0) == 0
over = int(sys.argv[1])
for width in (516, 128, 1, 4096):
    rows = page // width
    first = base + 2 * page - rows * width + over
    table = RowTable(first, rows, (width,), torch.uint8, width, region)
    ids = torch.tensor([rows - 1, 0, rows - 1, 10**6, -1])
    out, status = torch.zeros(5, width, dtype=torch.uint8), torch.tensor([5])
    for lead_in in (True, False):  # a lead-in of the first row would reach the guard before
        tiling = tile(table, out.data_ptr(), lead_in)
        kernels.launch(Request(table, ids, out, status), tiling, 3, KERNEL)
        assert status.item() == 3
print("alive")
"""


def test_nothing_is_read_beyond_the_table():
    script = [sys.executable, "-c", GUARD]
    inside = subprocess.run([*script, "0"], capture_output=True, text=True, check=False)
    assert inside.stdout == "alive\n", inside.stderr
    beyond = subprocess.run([*script, "1"], capture_output=True, text=True, check=False)
    assert beyond.returncode < 0  # a byte further the guard page kills: the test can fail


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_beyond_32_bits(dtype):
    rows, width = 3_000_000, 1024
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    region = mmap.mmap(-1, rows * width * 4, flags=flags)
    values = torch.frombuffer(region, dtype=torch.float32).view(rows, width)
    before = psutil.Process().memory_info().rss
    ids = [0, 524_287, 524_288, 1_048_575, 1_048_576, 2_097_151, 2_097_152, rows - 1]
    for row in ids:
        values[row] = torch.arange(width) + row
    for unified in (interpreted(values), UnifiedTensor.from_tensor(values)):
        got = unified[torch.tensor(ids, dtype=dtype)]
        assert torch.equal(got, torch.arange(width) + torch.tensor(ids)[:, None].float())
    assert psutil.Process().memory_info().rss - before < 200 << 20


# --- compilation ----------------------------------------------------------------------------------

ARGUMENTS = ("n_ids", "n_rows", "words", "table_stride", "out_stride", "phase")
TYPES = {1: "u8", 2: "i16", 4: "i32", 8: "i64"}


def compiled(arch, word, ids, *, placed=False, lead_in=True, wide=False, cached=False):
    tiling = tile(RowTable(64, 9, (129 * word,), torch.uint8, 129 * word, None), word)
    assert tiling.word == word
    signature = {"table": f"*{TYPES[word]}", "ids": f"*{ids}", "places": "*i64"}
    signature |= {"out": f"*{TYPES[word]}", "status": "*i64"}
    signature |= {"store": f"*{TYPES[word]}", "slots": "*i32"}
    signature |= dict.fromkeys(ARGUMENTS, "i64" if wide else "i32")
    constants = {"PLACED": placed, "CACHED": cached, "LEAD_IN": lead_in, "LINE": tiling.line}
    constants |= {"ROWS": tiling.rows, "BLOCK": tiling.block}
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernels.gather_rows_kernel, signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32))


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("word", [1, 2, 4, 8])
def test_compiles_without_a_gpu(arch, word):
    forms = [("i64", {}), ("i32", {"placed": True, "lead_in": False, "wide": True, "cached": True})]
    for ids, form in forms:
        made = compiled(arch, word, ids, **form)
        assert len(made.asm["cubin"]) > 1000
        ptx = made.asm["ptx"]
        # 16-bit loads for bytes too: PTX has no 8-bit registers.
        assert re.search(rf"ld\.global\.b{8 * word}\b", ptx), word
        assert ".local" not in ptx  # nothing is spilled
        # The layout that lines are counted by: a warp takes 32 columns of a row.
        assert "threadsPerWarp = [1, 32]" in made.asm["ttgir"]


def test_no_scalar_is_made_a_constant():
    # An argument that is 1 would be one, and has no .to() any more.
    fixed = {p.name: p.do_not_specialize for p in kernels.gather_rows_kernel.params}
    assert all(fixed[name] for name in ARGUMENTS)
    pointers = [p for p in kernels.gather_rows_kernel.params if not p.is_constexpr][:7]
    assert all(p.do_not_specialize_on_alignment for p in pointers)


def test_tiles_hold_rows_of_every_width():
    for nbytes in [*range(1, 300), 512, 516, 1028, 4096, 10_000]:
        table = RowTable(4096, 9, (nbytes,), torch.uint8, nbytes, None)
        tiling = tile(table)
        assert tiling.words * tiling.word == nbytes
        assert tiling.block & (tiling.block - 1) == 0
        assert tiling.rows & (tiling.rows - 1) == 0
        assert tiling.rows * tiling.block <= 4096
        assert replace(tiling, lead_in=False).line * tiling.word == 128


def test_the_backend_under_test_is_the_kernel():
    assert Interpreted().kernel.fn is kernels.gather_rows_kernel.fn
