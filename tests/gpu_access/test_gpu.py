"""What only a GPU can show. Run with ``make test-gpu``; figures go to a JSON file."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane.errors import (
    HostRegistrationError,
    ReleasedTableError,
    UnifiedAccessUnavailable,
)
from batchloom.gpu_access import HostTable, UnifiedTensor, register_host_memory, select_backend
from batchloom.gpu_access.cuda_runtime import READ_ONLY_SUPPORTED, SAME_POINTER, cuda_runtime
from batchloom.gpu_access.row_table import RowTable
from batchloom.tests.contracts.cache import CacheContract
from batchloom.tests.contracts.unified import UnifiedContract, bits, random_rows, same_bits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

BACKENDS = ["zero_copy", "alias", "staged", "cpu"]
ROWS = 501


@pytest.fixture(scope="module")
def figures():
    """A dict that is written where BATCHLOOM_GPU_FIGURES says."""
    found: dict[str, object] = {}
    yield found
    path = os.environ.get("BATCHLOOM_GPU_FIGURES")
    if path:
        Path(path).write_text(json.dumps(found, indent=2, default=str) + "\n")


def in_place(table, backend):
    """A unified tensor over the same rows, as many bytes into a page, in pages of their own."""
    rows = RowTable.of(table)
    pages = mmap.mmap(-1, rows.nbytes + 2 * mmap.PAGESIZE)
    start = torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
    place = start + rows.address % mmap.PAGESIZE
    there = replace(rows, address=place, owner=pages, region=(start, len(pages)))
    there.tensor().copy_(table)
    return UnifiedTensor(there, select_backend(backend), forced=True)


def same(got, want):
    return torch.equal(bits(got), bits(want))


def rows_of_bits(width, rows=ROWS):
    return random_rows(torch.float32, width, rows=rows)


def on_gpu(values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype, device="cuda")


def test_this_machine(figures):
    runtime, choice = cuda_runtime(), select_backend()
    figures["machine"] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "register_read_only": runtime.attribute(READ_ONLY_SUPPORTED),
        "same_pointer": runtime.attribute(SAME_POINTER),
        "pageable_access": runtime.attribute(88),
        "library_found": runtime._library is not None,
        "ladder": [f"{a.backend}: {a.works}: {a.reason}" for a in choice.ladder],
    }
    print(json.dumps(figures["machine"], indent=1))
    assert choice.name == "zero_copy", choice.reason
    assert choice.device == torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_works_here(name):
    choice = select_backend(name)
    assert choice.name == name
    assert choice.ladder[0].works


class TestZeroCopy(UnifiedContract):
    device = "cuda"
    backend = "zero_copy"

    def make(self, table):
        if table.numel():
            made = in_place(table, self.backend)
        else:
            made = UnifiedTensor.from_tensor(table, backend=self.backend)
        assert made.backend == self.backend
        return made


class TestAlias(TestZeroCopy):
    backend = "alias"


class TestStaged(TestZeroCopy):
    backend = "staged"


class TestCpu(TestZeroCopy):
    backend = "cpu"


class TestCacheByTheKernel(CacheContract):
    device = "cuda"
    backend = "zero_copy"

    def make(self, table):
        return UnifiedTensor.from_tensor(table, backend=self.backend)


class TestCacheOverStaged(TestCacheByTheKernel):
    backend = "staged"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [200, 1024, 5000])
def test_wide_rows_from_ids_anywhere_to_anywhere(backend, width):
    table = rows_of_bits(width)
    unified = UnifiedTensor.from_tensor(table, backend=backend)
    for count in (1, 2, 500):
        ids = torch.randint(0, ROWS, (count,))
        assert same_bits(unified[ids.cuda()], table, ids)
        assert unified[ids].device.type == "cpu"
        assert same_bits(unified[ids], table, ids)
        for sort in (True, False):
            out = torch.zeros(count, width, device="cuda")
            assert unified.gather_rows(ids, out=out, sort=sort) is out
            assert same_bits(out, table, ids)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_table(backend):
    table, ids = rows_of_bits(129), torch.randint(0, ROWS, (300,))
    padded = HostTable.from_tensor(table, row_align=128)
    assert same_bits(UnifiedTensor.from_tensor(padded, backend=backend)[ids.cuda()], table, ids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [ROWS, -1, 2**40, -(2**40)])
def test_missing_row_is_named_and_the_gpu_stays_usable(backend, bad):
    table = rows_of_bits(129)
    unified = UnifiedTensor.from_tensor(table, backend=backend)
    ids = torch.arange(400)
    ids[77], ids[300] = bad, ROWS + 5
    for sort in (False, True):
        out = torch.full((400, 129), 7.0, device="cuda")
        with pytest.raises(IndexError, match=f"Row {bad}, the id at position 77"):
            unified.gather_rows(ids.cuda(), out=out, sort=sort)
        torch.cuda.synchronize()
        assert (out[77] == 7).all()
        assert (out[300] == 7).all()
        with pytest.raises(IndexError, match=f"Row {bad}, the id at position 77"):
            unified.gather_rows(ids, out=out, sort=sort)
    good = torch.arange(ROWS)
    assert same(unified[good.cuda()], table)


@pytest.mark.parametrize("backend", BACKENDS)
def test_beside_a_training_kernel(backend):
    table = rows_of_bits(257, 20_000)
    unified = UnifiedTensor.from_tensor(table, backend=backend)
    weights = torch.rand(2048, 2048, device="cuda")
    draw = torch.Generator(device="cuda").manual_seed(1)
    future, wanted = None, None
    for _ in range(30):
        ids = torch.randint(0, 20_000, (3000,), device="cuda", generator=draw)
        following = unified.gather_rows_async(ids)
        for _ in range(3):
            weights = (weights @ weights).clamp_(0, 1)  # the training stream is busy
        if future is not None:
            assert same_bits(future.wait(), table, wanted)
        future, wanted = following, ids.cpu()
    assert same_bits(future.wait(), table, wanted)
    assert future.done()


def test_output_that_the_training_stream_still_reads_is_not_overwritten():
    table = torch.arange(64.0).repeat_interleave(4096).view(64, 4096)
    unified = UnifiedTensor.from_tensor(table)
    out = torch.zeros(32, 4096, device="cuda")
    weights = torch.rand(4096, 4096, device="cuda")
    sums = []
    for step in range(8):
        unified.gather_rows_async(torch.full((32,), step, device="cuda"), out=out).wait()
        for _ in range(4):
            weights = (weights @ weights).clamp_(0, 1)
        sums.append(out.sum())  # long after the next gather was asked for
    assert [round(float(s) / (32 * 4096)) for s in sums] == list(range(8))


def test_given_stream():
    table = rows_of_bits(64)
    unified, stream = UnifiedTensor.from_tensor(table), torch.cuda.Stream()
    ids = torch.randint(0, ROWS, (100,), device="cuda")
    assert same_bits(unified.gather_rows(ids, stream=stream), table, ids)
    out = torch.zeros(100, 64, device="cuda")
    assert same_bits(unified.gather_rows(ids.cpu(), out=out, stream=stream), table, ids)


def test_source_may_die_while_rows_are_on_their_way():
    for pinned in (False, True):
        for _ in range(10):
            table = rows_of_bits(1024, 4096)
            kept, wanted = table.clone(), torch.randint(0, 4096, (4096,))
            if pinned:
                table = table.pin_memory()
            unified = UnifiedTensor.from_tensor(table, backend="zero_copy")
            out = torch.empty(4096, 1024, device="cuda")
            unified.gather_rows(wanted, out=out)  # CPU ids: nobody waits
            del unified, table
            gc.collect()
            assert same(out, kept[wanted])


def test_host_writes_are_seen():
    host = HostTable.allocate(1000, 129)
    unified = UnifiedTensor.from_tensor(host)
    assert unified.backend == "zero_copy"
    ids = torch.arange(999, -1, -1, device="cuda")
    for value in (1.0, 2.0, -0.0):
        host.tensor.fill_(value)
        assert same(unified[ids], host.tensor)


def test_no_managed_memory():
    host = HostTable.allocate(1000, 128)
    unified = UnifiedTensor.from_tensor(host)
    assert unified.device_ptr == host.table.address
    attributes = (ctypes.c_char * 256)()
    library = cuda_runtime()._library
    assert library.cudaPointerGetAttributes(attributes, ctypes.c_void_p(unified.device_ptr)) == 0
    kind = ctypes.c_int.from_buffer(attributes).value
    assert kind == 1  # cudaMemoryTypeHost; managed memory is 3


def test_pinned_tensor_is_taken_as_it_is():
    table = torch.rand(1000, 33).pin_memory()
    unified = UnifiedTensor.from_tensor(table)
    assert unified.backend == "zero_copy"
    assert unified.is_pinned
    ids = torch.randint(0, 1000, (100,))
    assert same_bits(unified[ids.cuda()], table, ids)
    unified.release()
    assert table.is_pinned()


def test_two_tensors_on_one_page():
    base = torch.rand(1 << 21, 8)[:64]
    first, second = UnifiedTensor.from_tensor(base[:32]), UnifiedTensor.from_tensor(base[32:])
    assert (first.backend, second.backend) == ("zero_copy", "zero_copy")
    first.release()
    assert same(second[on_gpu([0, 31])], base[[32, 63]])
    with pytest.raises(ReleasedTableError):
        first[on_gpu([0])]


def test_unpin_and_pin():
    table = rows_of_bits(64)
    unified, ids = UnifiedTensor.from_tensor(table), torch.arange(ROWS, device="cuda")
    for _ in range(3):
        unified.unpin_memory_()
        assert (unified.backend, unified.is_pinned) == ("staged", False)
        assert same(unified[ids], table)
        unified.pin_memory_()
        assert (unified.backend, unified.is_pinned) == ("zero_copy", True)
        assert same(unified[ids], table)


def test_neighbours_of_tables_are_copied_as_ever():
    """Tables that share pages with other memory are not mapped where they are."""
    kept = []
    for size in range(1, 200):
        table = torch.rand(size, 7)
        unified = UnifiedTensor.from_tensor(table, backend="zero_copy")
        assert unified.table.address != table.data_ptr()
        neighbours = [torch.full((size, 9), float(n)) for n in range(4)]
        kept.append((table, unified, neighbours))
        for n, there in enumerate([x.cuda() for x in neighbours]):
            assert float(there.sum()) == n * 9 * size
            assert torch.equal(there.cpu(), neighbours[n])
        assert same(unified[torch.arange(size, device="cuda")], table)
    small = UnifiedTensor.from_tensor(torch.rand(9, 7), copy=False)
    assert small.backend == "staged"
    assert "share pages" in small.backend_reason
    with pytest.raises(UnifiedAccessUnavailable, match="share pages"):
        UnifiedTensor.from_tensor(torch.rand(9, 7), copy=False, backend="zero_copy")


def test_parts_of_a_large_tensor_are_copied_as_ever():
    """The whole storage is mapped: a copy never crosses the end of what is."""
    base = torch.rand(300_000, 64)
    unified = UnifiedTensor.from_tensor(base[1001:200_003])
    assert unified.backend == "zero_copy"
    assert unified.table.address == base[1001].data_ptr()
    assert float(base.cuda().double().sum()) == pytest.approx(float(base.double().sum()))
    assert same(unified[on_gpu([0, 7])], base[[1001, 1008]])


def test_someone_elses_registration_is_named():
    table = torch.rand(1 << 24)
    cudart = torch.cuda.cudart()
    page = table.data_ptr() // 4096 * 4096
    assert int(cudart.cudaHostRegister(page, 4 << 20, 0)) == 0
    try:
        with pytest.raises(HostRegistrationError, match="712") as error:
            register_host_memory(table)
        assert error.value.code == 712
        assert UnifiedTensor.from_tensor(table).backend == "staged"
        assert float(torch.ones(8, device="cuda").sum()) == 8  # the error was consumed
    finally:
        assert int(cudart.cudaHostUnregister(page)) == 0


def test_hundred_cycles_leak_nothing(figures):
    host = HostTable.allocate(1 << 16, 256)  # 64 MiB
    host.tensor.fill_(1.0)
    ids = torch.arange(0, 1 << 16, 97, device="cuda")

    def cycle():
        unified = UnifiedTensor.from_tensor(host, backend="zero_copy")
        assert float(unified[ids].sum()) == 256 * len(ids)
        unified.release()

    for _ in range(3):
        cycle()
    torch.cuda.synchronize()
    before, free = memory(), torch.cuda.mem_get_info()[0]
    start = time.perf_counter()
    for _ in range(100):
        cycle()
    seconds = (time.perf_counter() - start) / 100
    after = memory()
    figures["cycle_64_MiB_ms"] = round(seconds * 1e3, 2)
    figures["leak"] = {"before": before, "after": after}
    assert after["VmRSS"] - before["VmRSS"] < 16 << 10  # kB
    assert after["VmPin"] <= before["VmPin"]
    assert after["VmLck"] <= before["VmLck"]
    assert free - torch.cuda.mem_get_info()[0] < 8 << 20


def test_outputs_are_reused():
    unified = UnifiedTensor.from_tensor(torch.rand(10_000, 128))
    out = torch.empty(1000, 128, device="cuda")
    ids = [torch.randint(0, 10_000, (1000,), device="cuda") for _ in range(100)]
    unified.gather_rows(ids[0], out=out)
    torch.cuda.reset_peak_memory_stats()
    held, place = torch.cuda.memory_allocated(), out.data_ptr()
    for some in ids:
        assert unified.gather_rows(some, out=out).data_ptr() == place
    assert torch.cuda.memory_allocated() == held
    assert torch.cuda.max_memory_allocated() - held < 64 << 10  # the status words


@pytest.fixture
def mapped_file(tmp_path):
    """A column of one record batch in an IPC file: (path, its rows)."""
    values = np.random.default_rng(0).standard_normal((5000, 100)).astype(np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 100)
    table = pa.table({"x": column})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    return tmp_path / "x.arrow", torch.from_numpy(values)


def test_mapped_file_is_read_where_it_is_or_copied(mapped_file, figures):
    path, values = mapped_file
    ids = torch.randint(0, 5000, (1000,))
    try:
        unified = UnifiedTensor.from_file(path, "x", backend="zero_copy", copy=False)
    except UnifiedAccessUnavailable as error:
        figures["mapped_file"] = refused = str(error)
    else:
        figures["mapped_file"] = f"in place, flags {unified._registration.flags}"
        refused = None
        assert unified.device_ptr == unified.table.address
        assert same(unified[ids.cuda()], values[ids])
    assert refused is None or "cannot be used for this memory" in refused
    unified = UnifiedTensor.from_file(path, "x")
    assert unified.backend == "zero_copy", unified.backend_reason
    assert same(unified[ids.cuda()], values[ids])
    assert float(torch.ones(8, device="cuda").sum()) == 8


def test_arrow_heap_column_in_place():
    values = torch.rand(600_000, 33)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().ravel()), 33)
    unified = UnifiedTensor.from_arrow(column.slice(10), copy=False)
    assert unified.backend == "zero_copy"
    address = column.values.buffers()[1].address
    assert unified.table.address == address + 10 * 33 * 4
    del column
    gc.collect()
    assert same(unified[on_gpu([0, 989])], values[[10, 999]])


def test_offsets_beyond_32_bits(figures):
    rows, width = 2_300_000, 1024  # 9.4 GB: more than 2**31 words
    host = HostTable.allocate(rows, width, torch.float32)
    marked = [0, 524_287, 524_288, 1_048_576, 2_097_151, 2_097_152, rows - 1]
    for row in marked:
        host.tensor[row] = torch.arange(width) + row
    start = time.perf_counter()
    unified = UnifiedTensor.from_tensor(host, backend="zero_copy")
    figures["register_9.4_GB_s"] = round(time.perf_counter() - start, 2)
    for backend in ("zero_copy", "alias"):
        unified = UnifiedTensor.from_tensor(host, backend=backend)
        for dtype in (torch.int32, torch.int64):
            assert same(unified[on_gpu(marked, dtype)], host.tensor[marked])
    start = time.perf_counter()
    del unified, host
    gc.collect()
    figures["release_9.4_GB_s"] = round(time.perf_counter() - start, 2)


CHILD = """
import os, sys, torch
from batchloom.gpu_access import UnifiedTensor
table = torch.arange(40.0).view(10, 4)
unified = UnifiedTensor.from_tensor(table, backend="zero_copy")
future = unified.gather_rows_async(torch.tensor([1, 9], device="cuda"))
"""
FORK = """
child = os.fork()
if child == 0:
    try:
        unified[torch.tensor([1])]
    except Exception as error:
        ok = type(error).__name__ == "UnifiedAccessUnavailable" and "forked child" in str(error)
        del unified
        os._exit(0 if ok else 3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert unified[torch.tensor([1], device="cuda")].tolist() == [[4.0, 5.0, 6.0, 7.0]]
"""


@pytest.mark.parametrize("rest", ["", "print(future.wait().sum())", FORK, "del table, unified"])
def test_exit_is_clean(rest):
    ran = subprocess.run(
        [sys.executable, "-c", CHILD + rest], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    said = [line for line in ran.stderr.splitlines() if "fork" not in line]  # Python warns of it
    assert said == []


def memory():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        line[0][:-1]: int(line[1]) for line in lines if line[0] in ("VmRSS:", "VmPin:", "VmLck:")
    }
