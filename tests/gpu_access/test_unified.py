"""Unified tensors on a machine without a GPU; the GPU's own tests are in `test_gpu`."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane.errors import (
    BatchloomError,
    InvalidValueError,
    ParameterError,
    RowIndexError,
    UnifiedAccessUnavailable,
)
from batchloom.gpu_access import HostTable, UnifiedTensor, unified
from batchloom.gpu_access.backends import Attempt, BackendChoice, Cpu
from batchloom.gpu_access.fast_path import fast_path
from batchloom.gpu_access.loops import loops_for
from batchloom.gpu_access.mapping import map_memory
from batchloom.tests.contracts.fake_cuda import PAGE, FakeRuntime
from batchloom.tests.contracts.unified import UnifiedContract, random_rows, same_bits

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")


class TestCpu(UnifiedContract):
    def make(self, table):
        return UnifiedTensor.from_tensor(table, device="cpu")


class TestFastPath(UnifiedContract):
    """From the first call on; else the calls before the compiled loops are there go without it."""

    def make(self, table):
        loops_for(1 << 40)
        made = UnifiedTensor.from_tensor(table, device="cpu")
        made._fast = fast_path(made.table, made.stats)
        assert (made._fast is None) == (not made.table.nbytes)
        return made


def test_a_gather_keeps_the_memory_that_it_reads():
    """Another thread may release the table while rows are copied."""
    source = torch.rand(50, 4)
    made = TestFastPath().make(source)
    kept, gathering = weakref.ref(made.table.owner), made._fast
    expected = source[[7, 3]]
    del source
    made.release()
    gc.collect()
    assert torch.equal(gathering(torch.tensor([7, 3]), None), expected)
    assert kept() is not None
    del gathering
    gc.collect()
    assert kept() is None


def lists(values):
    values = np.asarray(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


@NO_GPU
def test_without_a_gpu():
    made = UnifiedTensor.from_tensor(torch.rand(10, 3))
    assert (made.backend, made.device, made.is_pinned) == ("cpu", torch.device("cpu"), False)
    assert made.device_ptr is None
    assert "torch" in made.backend_reason
    assert made.is_unified
    for backend in ("zero_copy", "alias", "staged"):
        with pytest.raises(UnifiedAccessUnavailable, match=f"backend='{backend}' cannot be used"):
            UnifiedTensor.from_tensor(torch.rand(10, 3), backend=backend)
    with pytest.raises(UnifiedAccessUnavailable, match="cannot be mapped for a GPU"):
        made.pin_memory_()
    assert made.unpin_memory_() is made
    assert repr(made) == "<UnifiedTensor (10, 3) torch.float32, cpu to cpu>"


def test_rows_are_those_of_the_source_now():
    source = torch.zeros(4, 2)
    made = UnifiedTensor.from_tensor(source)
    source[3] = 7
    assert made[torch.tensor([3])].tolist() == [[7.0, 7.0]]
    del source
    gc.collect()
    assert made[[3]].tolist() == [[7.0, 7.0]]


def test_ids_of_every_kind():
    made = UnifiedTensor.from_tensor(torch.arange(300).view(300, 1), device="cpu")
    wanted = [[200], [0], [200]]
    for ids in ([200, 0, 200], (200, 0, 200)):
        assert made[ids].tolist() == wanted
    for kind in (np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64):
        array = np.array([200, 0, 200], kind)
        assert made[array].tolist() == wanted
        array.flags.writeable = False
        assert made[array].tolist() == wanted
    assert made[np.arange(300)[::-100]].tolist() == [[299], [199], [99]]
    assert made[torch.arange(300)[::150]].tolist() == [[0], [150]]
    assert made[torch.tensor([200], dtype=torch.uint8)].tolist() == [[200]]
    with pytest.raises(RowIndexError, match="Row 9223372036854775808 does not exist"):
        made[np.array([1 << 63], np.uint64)]
    with pytest.raises(RowIndexError, match="Row 18446744073709551615"):
        made[np.array([2**64 - 1], np.uint64)]


def test_errors_are_of_the_tree():
    made = UnifiedTensor.from_tensor(torch.rand(3, 2), device="cpu")
    with pytest.raises(BatchloomError) as error:
        made[[5]]
    assert isinstance(error.value, IndexError)


@pytest.mark.parametrize(
    "tensor",
    [torch.rand(4, 4).T, torch.rand(3, 4, 4).transpose(1, 2), torch.rand(1, 4).expand(3, 4)],
    ids=["transposed", "rows transposed", "expanded"],
)
def test_rows_that_are_not_contiguous(tensor):
    with pytest.raises(ParameterError, match=r"must be contiguous and must not overlap.*contig"):
        UnifiedTensor.from_tensor(tensor)


def test_no_table_at_all():
    for tensor in (torch.tensor(1.0), torch.rand(2, 2).to_sparse(), torch.rand(2, device="meta")):
        with pytest.raises(ParameterError, match="must be a strided CPU tensor"):
            UnifiedTensor.from_tensor(tensor)


def test_stats():
    made = UnifiedTensor.from_tensor(torch.rand(10, 3), device="cpu")
    made[[1, 2]]
    made[[3]]
    made[[]]
    found = made.stats.as_dict()
    assert (found["calls"], found["rows"], found["bytes_cpu"]) == (2, 3, 36)
    assert found["bytes_zero_copy"] == found["line_requests"] == found["cache_hits"] == 0
    made.stats.reset()
    assert set(made.stats.as_dict().values()) == {0}


def test_output_given_allocates_nothing():
    made = UnifiedTensor.from_tensor(torch.rand(1000, 64), device="cpu")
    out, place = torch.empty(100, 64), None
    several = [torch.randint(0, 1000, (100,)) for _ in range(100)]
    made.gather_rows(several[0], out=out)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        for ids in several:
            place = made.gather_rows(ids, out=out).data_ptr()
    assert place == out.data_ptr()
    assert sum(max(0, event.self_cpu_memory_usage) for event in seen.events()) == 0


# --- Arrow ----------------------------------------------------------------------------------------


def test_one_chunk_stays_where_it_is():
    values = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    column = lists(values)
    for some in (column, pa.chunked_array([column])):
        made = UnifiedTensor.from_arrow(some)
        assert made.table.address == column.values.buffers()[1].address
        assert torch.equal(made[[49, 0]], torch.from_numpy(values[[49, 0]]))
    part = UnifiedTensor.from_arrow(column.slice(10, 5), copy=False)
    assert part.table.address == column.values.buffers()[1].address + 120
    del column, some
    gc.collect()
    assert torch.equal(part[[0, 4]], torch.from_numpy(values[[10, 14]]))
    with pytest.raises(RowIndexError, match="rows 0 to 4"):
        part[[5]]


def test_several_chunks_are_copied():
    values = np.arange(20, dtype=np.int64).reshape(10, 2)
    column = pa.chunked_array([lists(values[:4]), lists(values[4:])])
    made = UnifiedTensor.from_arrow(column, row_align=128)
    assert made.row_stride == 128
    assert made[[9, 3, 4]].tolist() == values[[9, 3, 4]].tolist()
    for some in (column, pa.array([True, False])):
        with pytest.raises(UnifiedAccessUnavailable, match="cannot stay where it is"):
            UnifiedTensor.from_arrow(some, copy=False)
    assert UnifiedTensor.from_arrow(pa.array([True, False]))[[1, 0]].tolist() == [False, True]
    copied = UnifiedTensor.from_arrow(lists(values), copy=True)
    assert copied.table.address % 4096 == 0
    with pytest.raises(InvalidValueError, match="null"):
        UnifiedTensor.from_arrow(pa.array([1.0, None]))


@pytest.fixture
def file(tmp_path):
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    batch = pa.record_batch({"x": lists(values), "y": pa.array(values[:, 0])})
    with pa.ipc.new_file(tmp_path / "x.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    return tmp_path / "x.arrow"


def test_mapped_file(file):
    made = UnifiedTensor.from_file(file, "x")
    assert made[[9, 0]].tolist() == [[27.0, 28.0, 29.0], [0.0, 1.0, 2.0]]
    held = [m for m in Path("/proc/self/maps").read_text().splitlines() if str(file) in m]
    places = [[int(x, 16) for x in line.split()[0].split("-")] for line in held]
    assert any(low <= made.table.address < high for low, high in places)  # no copy


# --- other processes ------------------------------------------------------------------------------


def test_pickled_by_path(file):
    made = UnifiedTensor.from_file(file, "x", row_align=128, copy=True)
    sent = pickle.dumps(made)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    assert back.row_stride == 128
    assert torch.equal(back[[3, 1]], made[[3, 1]])
    with pytest.raises(UnifiedAccessUnavailable, match="sent to another process by its path"):
        pickle.dumps(UnifiedTensor.from_tensor(torch.rand(3, 2)))


def test_spawned_process_reads_the_file(file):
    script = (
        "import pickle, sys; made = pickle.loads(sys.stdin.buffer.read());print(made[[9]].tolist())"
    )
    sent = pickle.dumps(UnifiedTensor.from_file(file, "x"))
    ran = subprocess.run(
        [sys.executable, "-c", script], input=sent, capture_output=True, check=True
    )
    assert ran.stdout == b"[[27.0, 28.0, 29.0]]\n"


def test_forked_child_gets_an_error():
    loops_for(1 << 40)
    made, ids = UnifiedTensor.from_tensor(torch.rand(3, 2)), torch.tensor([0])
    made[ids]  # the next one would take the fast path
    child = os.fork()
    if child == 0:
        try:
            made[ids]
        except UnifiedAccessUnavailable as error:
            os._exit(0 if "forked child" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made[[0]].shape == (1, 2)


# --- registration, as on a GPU --------------------------------------------------------------------


class Mapped(Cpu):
    """A backend that needs mapped memory, and reads it on the CPU."""

    name, mapped = "zero_copy", True


@pytest.fixture
def with_runtime(monkeypatch):
    """Make unified tensors register with a runtime, as for a GPU."""

    def use(runtime):
        def register(table, device):
            return map_memory((table.address, table.nbytes, table.owner), runtime)

        def backend(name, device):
            return Mapped() if name == "zero_copy" else Cpu()

        ladder = (Attempt("zero_copy", True, "It works."),)
        choice = BackendChoice("zero_copy", "It works.", torch.device("cpu"), ladder)
        monkeypatch.setattr(unified, "map_table", register)
        monkeypatch.setattr(unified, "make_backend", backend)
        monkeypatch.setattr(unified, "select_backend", lambda backend, device: choice)
        return runtime

    return use


def test_registered_while_in_use(with_runtime):
    runtime = with_runtime(FakeRuntime())
    table = HostTable.from_tensor(random_rows(torch.float32, 4)).tensor
    made = UnifiedTensor.from_tensor(table)
    assert made.is_pinned
    assert made.device_ptr == table.data_ptr()
    assert len(runtime.mapped) == 1
    assert made.pin_memory_() is made
    made.unpin_memory_()
    assert runtime.mapped == {}
    assert (made.backend, made.choice.name, made.is_pinned) == ("cpu", "staged", False)
    assert "unpin_memory_" in made.backend_reason
    assert same_bits(made[[3, 1]], table, [3, 1])
    made.pin_memory_()
    assert (made.backend, made.backend_reason) == ("zero_copy", "It works.")
    del made
    gc.collect()
    assert runtime.mapped == {}
    assert len(runtime.unregistered) == 2


def test_registered_memory_is_alive_without_its_source(with_runtime):
    runtime = with_runtime(FakeRuntime())
    table = random_rows(torch.float32, 40)
    kept = table.clone()
    made = UnifiedTensor.from_tensor(table)
    del table
    gc.collect()
    assert runtime.read(made.device_ptr, 160) == kept[0].numpy().tobytes()
    assert same_bits(made[[82]], kept, [82])
    made.release()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runtime.read(kept.data_ptr(), 8)


@pytest.mark.parametrize("code", [1, 2, 712, 801])
def test_memory_that_is_refused_is_staged(with_runtime, code):
    runtime = with_runtime(FakeRuntime(fail={1: code, 2: code}))
    table = random_rows(torch.float32, 4)
    made = UnifiedTensor.from_tensor(table)
    assert made.choice.name == "staged"
    assert f"({code})" in made.backend_reason
    assert same_bits(made[[5]], table, [5])
    with pytest.raises(UnifiedAccessUnavailable, match=rf"for this memory: .*\({code}\)"):
        UnifiedTensor.from_tensor(table, backend="zero_copy")
    assert runtime.mapped == {}


def test_column_that_is_refused_is_copied(with_runtime):
    runtime = with_runtime(FakeRuntime(fail={1: 1}))
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    column = lists(values)
    made = UnifiedTensor.from_arrow(column)
    assert made.table.address != column.values.buffers()[1].address
    assert made.is_pinned
    assert list(runtime.mapped) == [made.table.address]
    assert made[[3]].tolist() == [[9.0, 10.0, 11.0]]


def test_column_that_may_only_be_read_is_mapped_so(with_runtime):
    runtime = with_runtime(FakeRuntime(writable=False, read_only_supported=True))
    column = lists(np.arange(12, dtype=np.float32).reshape(4, 3))
    made = UnifiedTensor.from_arrow(column, copy=False)
    assert made.table.address == column.values.buffers()[1].address
    assert made._registration.flags == 11
    assert len(runtime.mapped) == 1


class Pinned(torch.Tensor):
    """A tensor whose memory torch has mapped."""

    def is_pinned(self, device=None):
        return True


def test_pinned_memory_is_taken_as_it_is(with_runtime):
    runtime = with_runtime(FakeRuntime())
    table = HostTable.allocate(1000, 8).tensor.as_subclass(Pinned)
    runtime.mapped[table.data_ptr()] = 8 * PAGE  # by torch
    made = UnifiedTensor.from_tensor(table)
    assert made.is_pinned
    assert made.backend == "zero_copy"
    made.release()
    assert runtime.unregistered == []
    assert len(runtime.mapped) == 1


def test_memory_of_which_a_part_is_pinned_is_not(with_runtime):
    """torch says is_pinned() of the first byte; a GPU would fault on the rest."""
    runtime = with_runtime(FakeRuntime())
    table = HostTable.allocate(1000, 8).tensor.as_subclass(Pinned)
    runtime.mapped[table.data_ptr()] = 7 * PAGE
    made = UnifiedTensor.from_tensor(table)
    assert made.choice.name == "staged"
    assert "(712)" in made.backend_reason
    assert runtime.last_error == 0
    runtime.mapped.clear()
    first = UnifiedTensor.from_tensor(table[:10])  # its page is ours, and looks pinned
    last = UnifiedTensor.from_tensor(table[-10:])
    whole = UnifiedTensor.from_tensor(table)
    first.release()
    last.release()
    assert whole.backend == "zero_copy"
    assert sum(runtime.mapped.values()) == 8 * PAGE
    whole.release()
    assert runtime.mapped == {}


def test_no_rows_no_registration(with_runtime):
    runtime = with_runtime(FakeRuntime())
    UnifiedTensor.from_tensor(torch.empty(0, 4))
    assert runtime.calls == []


def test_two_tables_of_one_tensor(with_runtime):
    runtime = with_runtime(FakeRuntime())
    base = HostTable.allocate(64, 8)
    first = UnifiedTensor.from_tensor(base.tensor[:32])
    second = UnifiedTensor.from_tensor(base.tensor[32:])
    assert len([c for c in runtime.calls if c[0] == "register"]) == 1
    first.release()
    assert len(runtime.mapped) == 1
    assert second[[31]].tolist() == [[0.0] * 8]
    second.release()
    assert runtime.mapped == {}
