"""The manifest loader's background thread: how far ahead it is, and that it always ends."""

import signal
import threading
import time

import pytest
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.batches import (
    drain,
    prefetch_threads,
)


def take(loader, seen):
    for batch in loader:
        seen.append(batch.step)  # one at a time: it may end in an error


def test_prefetch_prepares_so_many_ahead(plan, data):
    prepared = []
    loader = ManifestLoader(
        plan, data, columns=[], prefetch=3, transform=lambda b: prepared.append(b.step) or b
    )
    iterator = iter(loader)
    next(iterator)
    for _ in range(200):
        if len(prepared) == 4:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert prepared == [0, 1, 2, 3]  # one delivered, three ahead


def test_in_line_prepares_nothing_ahead(plan, data):
    names = []
    loader = ManifestLoader(
        plan,
        data,
        columns=[],
        prefetch=0,
        transform=lambda b: names.append(threading.current_thread()) or b,
    )
    iterator = iter(loader)
    next(iterator)
    assert names == [threading.main_thread()]


@pytest.mark.parametrize("how", ["close", "drop", "loader", "end", "break"])
def test_thread_ends_with_the_iteration(plan, data, how):
    loader = ManifestLoader(plan, data, columns=[], prefetch=2)
    iterator = iter(loader)
    next(iterator)
    assert len(prefetch_threads()) == 1
    if how == "close":
        iterator.close()
        assert next(iterator, None) is None
    elif how == "drop":
        del iterator
    elif how == "loader":
        loader.close()
        assert len(drain(loader)) == 20  # and may be used again
    elif how == "end":
        drain(iterator)
    else:
        del iterator
        for _ in loader:
            break
    assert prefetch_threads() == []


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_in_the_loop_ends_the_thread(plan, data):
    def train():
        for batch in ManifestLoader(plan, data, columns=[], prefetch=4):
            if batch.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert prefetch_threads() == []


def test_interrupt_while_waiting_for_a_batch_ends_the_thread(plan, data, interrupts):
    waiting, go = threading.Event(), threading.Event()

    def slow(batch):
        if batch.step == 2:
            waiting.set()
            go.wait(30)
        return batch

    def interrupt():
        waiting.wait(30)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)
        go.set()  # the thread is joined once its batch is done

    threading.Thread(target=interrupt, daemon=True).start()
    loader, seen = ManifestLoader(plan, data, columns=[], transform=slow, prefetch=2), []
    with pytest.raises(KeyboardInterrupt):
        take(loader, seen)
    assert prefetch_threads() == []
    assert seen == [0, 1]
    assert loader.state_dict()["next_step"] == 2
