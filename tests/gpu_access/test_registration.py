"""Registering host memory, against a runtime that keeps the driver's rules."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import (
    HostRegistrationError,
    ParameterError,
    UnifiedAccessUnavailable,
)
from batchloom.gpu_access import register_host_memory
from batchloom.tests.contracts.fake_cuda import PAGE, FakeRuntime
from hypothesis import given, settings
from hypothesis import strategies as st


def region(pages: int, skip: int = 0, size: int | None = None):
    """(address, bytes, owner) in fresh pages."""
    memory = mmap.mmap(-1, (pages + 1) * PAGE)
    start = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    return start + skip, pages * PAGE - skip if size is None else size, memory


def test_whole_pages_in_chunks():
    runtime = FakeRuntime()
    address, nbytes, owner = region(10, skip=100, size=9 * PAGE)
    made = register_host_memory((address, nbytes, owner), chunk_bytes=4 * PAGE + 5, runtime=runtime)
    start = address - 100
    pages = [(start, 4 * PAGE), (start + 4 * PAGE, 4 * PAGE), (start + 8 * PAGE, 2 * PAGE)]
    assert list(made.chunks) == pages
    assert list(runtime.mapped.items()) == pages
    assert (made.address, made.nbytes, made.device_ptr) == (address, nbytes, address)
    assert made.flags == 3
    assert not made.released
    made.release()
    assert made.released
    assert runtime.unregistered == [a for a, _ in reversed(pages)]
    made.release()
    assert len(runtime.unregistered) == 3


def test_no_bytes_no_call():
    runtime = FakeRuntime()
    made = register_host_memory(torch.empty(0, 4), runtime=runtime)
    assert made.chunks == ()
    made.release()
    assert runtime.calls == []


@pytest.mark.parametrize(
    ("code", "name", "advice"),
    [
        (1, "cudaErrorInvalidValue", "read_only=True"),
        (2, "cudaErrorMemoryAllocation", "ulimit -l"),
        (712, "cudaErrorHostMemoryAlreadyRegistered", "release that registration first"),
        (801, "cudaErrorNotSupported", "HostTable"),
        (999, "cudaError 999", "backend='staged'"),
    ],
)
def test_failure_takes_all_back_in_reverse(code, name, advice):
    runtime = FakeRuntime(fail={3: code})
    address, nbytes, owner = region(8)
    with pytest.raises(HostRegistrationError, match=name) as error:
        register_host_memory((address, nbytes, owner), chunk_bytes=2 * PAGE, runtime=runtime)
    assert (error.value.code, error.value.name) == (code, name)
    assert f"{2 * PAGE:,} bytes of host memory at {address + 4 * PAGE:#x}" in str(error.value)
    assert advice in str(error.value)
    assert runtime.unregistered == [address + 2 * PAGE, address]
    assert runtime.mapped == {}
    assert runtime.last_error == 0  # no later launch is blamed for it
    with register_host_memory((address, nbytes, owner), runtime=runtime):
        assert sum(runtime.mapped.values()) == nbytes


def test_two_tensors_on_one_page_share_it():
    runtime = FakeRuntime()
    address, _, owner = region(1)
    first = register_host_memory((address + 10, 100, owner), runtime=runtime)
    second = register_host_memory((address + 200, 100, owner), runtime=runtime)
    assert runtime.calls == [("register", address, PAGE)]
    first.release()
    assert runtime.mapped == {address: PAGE}
    second.release()
    assert runtime.mapped == {}


def test_range_that_is_partly_mapped_is_completed():
    runtime = FakeRuntime()
    address, _, owner = region(8)
    middle = register_host_memory((address + 3 * PAGE, PAGE, owner), runtime=runtime)
    whole = register_host_memory((address, 8 * PAGE, owner), runtime=runtime)
    assert [n // PAGE for _, n in whole.chunks] == [3, 1, 4]
    middle.release()
    assert sum(runtime.mapped.values()) == 8 * PAGE
    whole.release()
    assert runtime.mapped == {}


def test_shared_page_keeps_both_memories():
    class Owner:
        pass

    runtime, owners = FakeRuntime(), [Owner(), Owner()]
    alive = [weakref.ref(o) for o in owners]
    address, _, memory = region(1)
    first = register_host_memory((address, 8, owners.pop()), runtime=runtime)
    second = register_host_memory((address + 8, 8, owners.pop()), runtime=runtime)
    first.release()
    gc.collect()
    assert all(ref() is not None for ref in alive)  # its page is still mapped
    second.release()
    del first, second
    gc.collect()
    assert all(ref() is None for ref in alive)
    del memory


def test_garbage_is_released_before_its_memory_is_free():
    runtime = FakeRuntime()
    tensor = torch.zeros(1 << 24)
    alive = weakref.ref(tensor)
    seen = []
    unregister = runtime.unregister
    runtime.unregister = lambda address: seen.append(alive() is not None) or unregister(address)
    made = register_host_memory(tensor, runtime=runtime)
    del tensor
    gc.collect()
    assert alive() is not None
    del made
    gc.collect()
    assert seen == [True]
    assert runtime.mapped == {}
    assert alive() is None


def test_context_manager_and_garbage_release_once():
    runtime = FakeRuntime()
    with register_host_memory(region(1), runtime=runtime) as made:
        assert len(runtime.mapped) == 1
    assert made.released
    del made
    gc.collect()
    assert len(runtime.unregistered) == 1


def test_gathers_in_flight_are_waited_for():
    class Event:
        def __init__(self, name):
            self.name = name

        def synchronize(self):
            log.append((self.name, len(runtime.mapped)))

    class Lost:
        def synchronize(self):
            raise RuntimeError("driver shutting down")

    runtime, log = FakeRuntime(), []
    made = register_host_memory(region(1), runtime=runtime)
    made.in_flight(Event("old"), stream=7)
    made.in_flight(Event("new"), stream=7)
    made.in_flight(Event("other"), stream=8)
    made.in_flight(Lost(), stream=9)
    made.release()
    assert log == [("new", 1), ("other", 1)]
    assert runtime.mapped == {}


def test_read_only_memory_has_a_ladder():
    memory = region(1)
    runtime = FakeRuntime(writable=False, read_only_supported=True)
    with pytest.raises(HostRegistrationError, match="read_only=True") as error:
        register_host_memory(memory, runtime=runtime)
    assert error.value.code == 1
    with register_host_memory(memory, read_only=True, runtime=runtime) as made:
        assert made.flags == 11
    runtime = FakeRuntime(writable=False)
    with pytest.raises(HostRegistrationError, match="ReadOnlySupported is 0") as error:
        register_host_memory(memory, read_only=True, runtime=runtime)
    assert error.value.code == 801
    assert runtime.calls == []


def test_another_address_on_the_gpu_is_refused():
    runtime = FakeRuntime(moved=1 << 20)
    with pytest.raises(HostRegistrationError, match="no such address on the GPU"):
        register_host_memory(region(2), runtime=runtime)
    assert runtime.mapped == {}


def test_unregistering_that_fails_is_told_not_raised(caplog):
    runtime = FakeRuntime()
    made = register_host_memory(region(1), runtime=runtime)
    runtime.unregister = lambda address: 999
    made.release()
    assert "unregistering host memory failed: cudaError 999" in caplog.text
    caplog.clear()
    runtime = FakeRuntime()
    made = register_host_memory(region(1), runtime=runtime)
    runtime.unregister = lambda address: 4  # the driver is shutting down
    made.release()
    assert caplog.text == ""


def test_pages_that_are_unmapped_already_are_no_error(caplog):
    runtime = FakeRuntime()
    made = register_host_memory(region(1), runtime=runtime)
    runtime.mapped.clear()  # a device reset: 713, cudaErrorHostMemoryNotRegistered
    made.release()
    assert len(runtime.unregistered) == 1
    assert runtime.last_error == 0
    assert caplog.text == ""


def test_forked_child_leaves_the_parents_pages():
    runtime = FakeRuntime()
    made = register_host_memory(region(1), runtime=runtime)
    child = os.fork()
    if child == 0:
        made.release()
        os._exit(len(runtime.unregistered))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    made.release()
    assert len(runtime.unregistered) == 1


def test_released_at_exit():
    script = (
        "from batchloom.gpu_access import register_host_memory\n"
        "from batchloom.tests.contracts.fake_cuda import FakeRuntime\n"
        "import torch\n"
        "class Telling(FakeRuntime):\n"
        "    def unregister(self, address):\n"
        "        print('unregistered', super().unregister(address))\n"
        "        return 0\n"
        "made = register_host_memory(torch.zeros(1 << 24), runtime=Telling())\n"
        "kept = made\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "unregistered 0\n"


def test_garbage_while_registering():
    """The collector may run in the midst of a call, on its thread: nothing may wait for itself."""
    runtime = FakeRuntime()
    loops = []
    register = runtime.register

    def collecting(address, nbytes, flags):
        loops.clear()
        gc.collect()
        return register(address, nbytes, flags)

    first = register_host_memory(region(1), runtime=runtime)
    loop = [first]
    loop.append(loop)
    loops.append(loop)
    del first, loop
    runtime.register = collecting
    second = register_host_memory(region(1), runtime=runtime)
    assert len(runtime.unregistered) == 1
    second.release()
    assert runtime.mapped == {}


@settings(max_examples=60)
@given(st.data())
def test_any_order_of_overlapping_ranges(data):
    """Pages are mapped exactly while a registration needs them, and never twice."""
    runtime = FakeRuntime()
    address, _, owner = region(12)
    held = []
    for _ in range(data.draw(st.integers(1, 12))):
        if held and data.draw(st.booleans()):
            held.pop(data.draw(st.integers(0, len(held) - 1))).release()
        else:
            start = data.draw(st.integers(0, 11 * PAGE))
            size = data.draw(st.integers(1, 12 * PAGE - start))
            chunk = PAGE * data.draw(st.integers(1, 4))
            memory = (address + start, size, owner)
            held.append(register_host_memory(memory, chunk_bytes=chunk, runtime=runtime))
        needed = {
            page
            for h in held
            for page in range(
                (h.address - address) // PAGE, -(-(h.address + h.nbytes - address) // PAGE)
            )
        }
        mapped = {
            (a - address) // PAGE + i for a, n in runtime.mapped.items() for i in range(n // PAGE)
        }
        assert needed <= mapped
    while held:
        held.pop().release()
    assert runtime.mapped == {}


def test_threads():
    runtime = FakeRuntime()
    address, _, owner = region(64)
    failed = []

    def work(seed):
        draw = np.random.default_rng(seed)
        try:
            for _ in range(200):
                start = int(draw.integers(0, 60))
                with register_host_memory(
                    (address + start * PAGE, 3 * PAGE, owner), chunk_bytes=PAGE, runtime=runtime
                ):
                    pass
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert runtime.mapped == {}


def test_buffers():
    runtime = FakeRuntime()
    array = np.zeros(1 << 23)
    with register_host_memory(array, runtime=runtime) as made:
        assert (made.address, made.nbytes) == (array.ctypes.data, 8 << 23)
    with register_host_memory(mmap.mmap(-1, 100), runtime=runtime) as made:
        assert made.nbytes == 100
    tensor = torch.zeros(1 << 24)
    with register_host_memory(tensor[100:200], runtime=runtime) as made:  # the whole storage
        assert (made.address, made.nbytes) == (tensor.data_ptr(), 4 << 24)
    small = (np.zeros(10), torch.zeros(10), ctypes.create_string_buffer(100))
    for buffer in small:
        with pytest.raises(HostRegistrationError, match="may share pages with other memory"):
            register_host_memory(buffer, runtime=runtime)
    assert runtime.mapped == {}
    with pytest.raises(ParameterError, match=r"'buffer' parameter must be a contiguous tensor"):
        register_host_memory(torch.zeros(4, 4).T, runtime=runtime)
    with pytest.raises(ParameterError, match=r"'buffer' parameter.*Got list instead"):
        register_host_memory([1, 2], runtime=runtime)
    with pytest.raises(ParameterError, match=r"'chunk_bytes' parameter must be at least a page"):
        register_host_memory(array, chunk_bytes=10, runtime=runtime)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_driver_nothing_starts():
    with pytest.raises(UnifiedAccessUnavailable, match="cannot be mapped for a GPU: torch"):
        register_host_memory(torch.zeros(4))
