"""In line as long as that is quick, then ahead in a thread."""

import threading
import time

import pytest
from batchloom.samplers import ManifestLoader
from batchloom.samplers.iteration import Ahead
from batchloom.samplers.transforms import Run
from batchloom.tests.contracts.batches import drain, fingerprints, prefetch_threads


def runs(*pauses):
    for number, seconds in enumerate(pauses):
        time.sleep(seconds)
        yield Run(None, number, [threading.current_thread()])


LONG = 0.02


@pytest.mark.parametrize(
    ("pauses", "in_line"),
    [
        ([LONG, 0, 0, 0, 0], 5),  # the first one opens files
        ([LONG, LONG, 0, LONG, 0], 5),  # now and then is an accident
        ([0, 0, LONG, LONG, 0, 0], 4),
        ([0, LONG, LONG, LONG], 3),
    ],
)
def test_thread_from_the_second_long_run_in_a_row_on(pauses, in_line):
    found = list(Ahead(runs(*pauses), threading.Event()))
    assert [run.first for run in found] == list(range(len(pauses)))
    here = [run.results[0] is threading.current_thread() for run in found]
    # A machine that is busy elsewhere makes quick runs long, never long ones quick.
    assert here[:2] == [True, True]
    assert not any(here[in_line:])
    assert here == sorted(here, reverse=True)
    assert prefetch_threads() == []


def test_closing_before_and_after_the_thread_has_started():
    for taken in (1, 4):
        ahead = Ahead(runs(*[LONG] * 20), stopped := threading.Event())
        for _ in range(taken):
            next(ahead)
        ahead.close()
        assert stopped.is_set()
        assert next(ahead, None) is None
        assert prefetch_threads() == []


def test_a_slow_transform_goes_into_the_background(plan, data):
    def slow(batch):
        time.sleep(0.002)
        return batch

    loader = ManifestLoader(plan, data, columns=["y"], transform=slow)
    iterator = iter(loader)
    for _ in range(6):
        next(iterator)
    assert len(prefetch_threads()) == 1
    assert loader.state_dict()["next_step"] == 6
    drain(iterator)
    assert fingerprints(loader) == fingerprints(ManifestLoader(plan, data, columns=["y"]))
