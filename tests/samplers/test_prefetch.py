import gc
import threading

import pytest
from batchloom.samplers.prefetch import Prefetched
from batchloom.tests.contracts.batches import prefetch_threads


class Source:
    """Counts to `stop`; says what it has given out and whether it was closed."""

    def __init__(self, stop=10, error=None):
        self.given, self.closed = [], threading.Event()
        self.stop, self.error = stop, error

    def __iter__(self):
        try:
            for number in range(self.stop):
                self.given.append(number)
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


def prefetched(source, depth=2):
    return Prefetched(iter(source), depth, threading.Event())


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_items_in_order(depth):
    source = Source()
    iterator = prefetched(source, depth)
    assert list(iterator) == list(range(10))
    assert source.closed.is_set()
    assert next(iterator, "over") == "over"


def test_never_more_than_depth_ahead():
    source = Source(100)
    iterator = prefetched(source, 3)
    for number in range(97):
        assert next(iterator) == number
        assert len(source.given) <= number + 1 + 3
    iterator.close()


def test_error_comes_in_its_place_and_once():
    iterator = prefetched(Source(2, ZeroDivisionError("no")), 8)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="no"):
        next(iterator)
    assert next(iterator, "over") == "over"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_any_error_comes_through(error):
    with pytest.raises(type(error)):
        list(prefetched(Source(1, error)))


def test_close_closes_the_source():
    source = Source(1000)
    iterator = prefetched(source)
    next(iterator)
    iterator.close()
    iterator.close()
    assert source.closed.is_set()
    assert next(iterator, "over") == "over"


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_in_the_making_when_it_closes_is_dropped(fails):
    inside, go, stopped = threading.Event(), threading.Event(), threading.Event()

    def source():
        yield 0
        inside.set()
        go.wait(30)
        if fails:
            raise ZeroDivisionError
        yield 1

    iterator = Prefetched(source(), 2, stopped)
    assert next(iterator) == 0
    assert inside.wait(30)
    closing = threading.Thread(target=iterator.close)
    closing.start()
    assert stopped.wait(30)
    go.set()
    closing.join()
    assert next(iterator, "over") == "over"


def test_dropping_the_iterator_ends_the_thread():
    source = Source(1000)
    iterator = prefetched(source)
    next(iterator)
    del iterator
    assert source.closed.wait(30)


def test_collected_in_a_cycle():
    source = Source(1000)
    cycle = [prefetched(source)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert source.closed.wait(30)


def test_collected_in_its_own_thread():
    """The garbage collector may run anywhere, the prefetching thread itself included."""

    def source():
        while True:
            yield 0
            if dropped.is_set():
                gc.collect()

    dropped, stopped = threading.Event(), threading.Event()
    gc.disable()
    try:
        cycle = [Prefetched(source(), 2, stopped)]
        cycle.append(cycle)
        thread = cycle[0]._shared.thread
        next(cycle[0])
        dropped.set()
        iterator, shared = cycle[0], cycle[0]._shared
        del cycle, iterator
        shared.take()  # makes room, so that the thread goes on and collects
        assert stopped.wait(30)
        thread.join(30)
        assert not thread.is_alive()
    finally:
        gc.enable()


def test_many_short_ones():
    for _ in range(100):
        next(prefetched(Source(1000), 4))
    gc.collect()
    assert prefetch_threads() == []
