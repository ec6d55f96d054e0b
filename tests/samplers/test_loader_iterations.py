"""Epochs, states and the order of calls of the manifest loader."""

import json
import os
import subprocess
import sys

import pytest
from batchloom.dataplane import (
    epoch_writer,
)
from batchloom.dataplane.errors import (
    BatchloomError,
    ManifestError,
    ParameterError,
)
from batchloom.dataplane.part_reader import PartReader
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.batches import (
    digest,
    drain,
    fingerprints,
    json_round_trip,
    shuffled,
    write_plan,
)


def places(batches):
    return [(b.epoch, b.step) for b in batches]


EPOCH_0, EPOCH_1 = [(0, s) for s in range(10)], [(1, s) for s in range(10)]


def test_an_iteration_covers_the_epochs_and_starts_over(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    assert loader.epochs == (0, 1)
    assert len(loader) == 20
    assert places(loader) == EPOCH_0 + EPOCH_1
    assert loader.state_dict()["next_step"] == 10
    assert places(loader) == EPOCH_0 + EPOCH_1


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, EPOCH_0), (2, EPOCH_0 + EPOCH_1), ([1], EPOCH_1), ([1, 0], EPOCH_1 + EPOCH_0)],
)
def test_epochs(plan, data, epochs, expected):
    loader = ManifestLoader(plan, data, columns=[], epochs=epochs)
    assert places(loader) == expected
    assert len(loader) == len(expected)


@pytest.mark.parametrize("epochs", [0, [], [0, 0], "01", [0.5], True, [-1]])
def test_epochs_that_are_none(plan, data, epochs):
    with pytest.raises(ParameterError, match="'epochs' parameter must be an int above"):
        ManifestLoader(plan, data, columns=[], epochs=epochs)


def test_epochs_that_the_plan_lacks(plan, data):
    with pytest.raises(ManifestError, match="holds no epoch 2; it holds 0, 1"):
        ManifestLoader(plan, data, columns=[], epochs=3)


def test_epochs_of_a_plan_that_starts_later(data, tmp_path):
    write_plan(tmp_path / "plan", data, {3: shuffled(rows=64), 4: shuffled(rows=64)})
    loader = ManifestLoader(tmp_path / "plan", data, columns=[], epochs=5)
    assert places(loader) == [(3, 0), (4, 0)]


def test_set_epoch(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    for epoch, expected in [(0, EPOCH_0), (1, EPOCH_1), (0, EPOCH_0)]:
        loader.set_epoch(epoch)
        assert loader.state_dict()["epoch"] == epoch
        assert len(loader) == 10
        assert places(loader) == expected
    assert places(loader) == EPOCH_0  # as torch's samplers: until the next set_epoch
    with pytest.raises(ParameterError, match="no epoch 2 to set: this iteration covers 0, 1"):
        loader.set_epoch(2)


def test_the_usual_loop_resumes(plan, data):
    def train(state, stop=None):
        loader, seen = ManifestLoader(plan, data, columns=[]), []
        if state is not None:
            loader.load_state_dict(state)
        for epoch in range(state["epoch"] if state else 0, 2):
            loader.set_epoch(epoch)
            for batch in loader:
                seen.append((batch.epoch, batch.step))
                if seen[-1] == stop:
                    return seen, json_round_trip(loader.state_dict())
        return seen, json_round_trip(loader.state_dict())

    for stop in EPOCH_0 + EPOCH_1:
        before, state = train(None, stop)
        after, _ = train(state)
        assert before + after == EPOCH_0 + EPOCH_1


def test_last_call_of_load_and_set_epoch_wins(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    state = {**loader.state_dict(), "next_step": 4, "samples_seen": 80}
    loader.set_epoch(1)
    loader.load_state_dict(state)
    assert places(loader) == EPOCH_0[4:] + EPOCH_1
    loader.load_state_dict(state)
    loader.set_epoch(1)
    assert loader.state_dict() == {**state, "epoch": 1, "next_step": 0, "samples_seen": 0}
    assert places(loader) == EPOCH_1


def test_break_and_iterate_again_starts_over(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    for batch in loader:
        if batch.step == 3:
            break
    assert loader.state_dict()["next_step"] == 4
    assert places(loader)[:2] == [(0, 0), (0, 1)]


def test_state_before_the_first_batch(plan, data):
    loader = ManifestLoader(plan, data, columns=[], prefetch=8)
    start = loader.state_dict()
    assert (start["epoch"], start["next_step"], start["samples_seen"]) == (0, 0, 0)
    iterator = iter(loader)
    assert loader.state_dict() == start  # eight are prepared, none was delivered
    next(iterator)
    assert loader.state_dict() == {**start, "next_step": 1, "samples_seen": 20}
    loader.load_state_dict(start)
    assert places(loader) == EPOCH_0 + EPOCH_1


def test_a_newer_iteration_ends_the_older_one(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    older = iter(loader)
    next(older)
    newer = iter(loader)
    with pytest.raises(BatchloomError, match="ended by a newer iter"):
        next(older)
    assert places(newer) == EPOCH_0 + EPOCH_1
    state = loader.state_dict()
    finished = iter(loader)
    drain(finished)
    iter(loader)
    assert next(finished, None) is None  # it had ended by itself
    live = iter(loader)
    loader.load_state_dict(state)
    with pytest.raises(BatchloomError, match="load_state_dict"):
        next(live)
    assert loader.state_dict() == state
    assert places(loader) == []


def test_resuming_needs_neither_rows_nor_blocks_before_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 5)
    manifest = write_plan(tmp_path / "plan", data, {0: shuffled()})  # 32 blocks
    touched = []
    block = PartReader.block
    monkeypatch.setattr(
        PartReader, "block", lambda self, index: touched.append(index) or block(self, index)
    )
    loader = ManifestLoader(manifest, data, columns=["y"], prefetch=0)
    state = {**loader.state_dict(), "next_step": 150, "samples_seen": 150 * 64}
    loader.load_state_dict(state)
    assert next(iter(loader)).step == 150
    assert set(touched) <= {29, 30, 31}


RESUME = """if True:
    import json, logging, sys
    from batchloom.samplers import ManifestLoader
    from batchloom.tests.contracts.batches import digest, fingerprint, fingerprints

    logging.getLogger("batchloom").setLevel("ERROR")  # of course this loop waits

    plan, data, states, options = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
    loader = ManifestLoader(plan, data, columns=["x", "text", "color"], **options)
    out = []
    for state in states:
        loader.load_state_dict(state)
        rest = fingerprints(loader)
        twice = []  # a part of the rest, saved, and the rest of the rest
        loader.load_state_dict(state)
        for batch in loader:
            twice.append(fingerprint(batch))
            if batch.step >= (state["next_step"] + 40) // 2 and batch.micro == 3:
                break
        again = ManifestLoader(plan, data, columns=["x", "text", "color"], **options)
        again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        twice += fingerprints(again)
        out.append([digest(rest), digest(twice), again.state_dict()])
    print(json.dumps(out))
    left_open = iter(loader)
    next(left_open)
"""


def test_resume_at_every_step_in_fresh_processes(data, tmp_path):
    """They also leave an iteration open when they end, which must neither hang nor complain."""
    plan = shuffled(rows=2560 - 41, batch=16, micro_per_step=4, weighted=True)  # 40 steps
    write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="importance")
    columns = ["x", "text", "color"]
    loader = ManifestLoader(tmp_path / "plan", data, columns=columns)
    states, expected = {0: loader.state_dict()}, []
    for index, batch in enumerate(loader, start=1):
        expected += fingerprints([batch])
        if index % 4 == 0 or index == len(plan):
            states[index] = loader.state_dict()
    assert len(states) == 41
    options, taken = [(1, 0), (5, 1), (16, 8)], list(states.items())
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                RESUME,
                str(tmp_path / "plan"),
                str(data),
                json.dumps([state for _, state in taken[number::3]]),
                json.dumps({"window": window, "prefetch": prefetch}),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
        )
        for number, (window, prefetch) in enumerate(options)
    ]
    for number, process in enumerate(running):
        out, complaints = process.communicate(timeout=120)
        assert (process.returncode, complaints) == (0, b"")
        for (index, _), found in zip(taken[number::3], json.loads(out), strict=True):
            rest = digest(expected[index:])
            assert found == [rest, rest, loader.state_dict()]
