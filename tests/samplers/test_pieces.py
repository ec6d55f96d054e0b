"""Runs of whole steps, dealt at once, against the rules applied to one micro-batch at a time."""

import itertools

import numpy as np
import pytest
from batchloom.dataplane import Manifest, epoch_writer
from batchloom.samplers.pieces import deal, whole_steps
from batchloom.samplers.ranks import Ranks
from batchloom.tests.contracts.batches import shuffled, write_plan


def joined(runs):
    return [
        (
            int(run.step[k]),
            int(run.micro[k]),
            run.rows[run.offsets[k] : run.offsets[k + 1]].tolist(),
        )
        for run in runs
        for k in range(len(run))
    ]


@pytest.fixture
def blocks(data, tmp_path, monkeypatch):
    """A plan whose blocks hold 7 micro-batches, its steps 3."""
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 7)
    return write_plan(
        tmp_path / "blocks", data, {0: shuffled(rows=1000, batch=16, micro_per_step=3)}
    )


@pytest.mark.parametrize("count", [1, 2, 3, 16, 5000])
def test_runs_hold_whole_steps_and_all_of_them(blocks, count):
    epoch = blocks.epoch(0)
    expected = joined([epoch.plan()])
    for start in (0, 3, 30, 60, 63):
        runs = list(whole_steps(epoch, start, count))
        assert joined(runs) == expected[start:]
        for before, after in itertools.pairwise(runs):
            assert before.step[-1] != after.step[0]


def test_first_run_is_short(blocks):
    sizes = [len(run) for run in whole_steps(blocks.epoch(0), 0, 3)]
    assert sizes[0] == 3
    assert max(sizes) == 6  # no more than whole steps of a block


@pytest.mark.parametrize(("unit", "world"), [("sliceable", 3), ("sliceable", 70), ("micro", 2)])
def test_dealt_as_one_by_one(data, tmp_path, unit, world):
    plan = shuffled(rows=500, batch=64, micro_per_step=3, weighted=True)
    manifest = write_plan(
        tmp_path / "plan", data, {0: plan}, unit=unit, weight_semantics="importance"
    )
    record = manifest.records[0]
    for rank in (0, 1, world - 1):
        pieces = deal(manifest, record, plan, Ranks(rank, world, "pad"), samples_seen=1000)
        found, index = [], 0
        for step in range(3):
            of_step = [k for k in range(len(plan)) if plan.step[k] == step]
            weight = sum(
                float(plan.weights[plan.offsets[k] : plan.offsets[k + 1]].sum(dtype=np.float64))
                for k in of_step
            )
            rows = int(plan.offsets[of_step[-1] + 1] - plan.offsets[of_step[0]])
            mine = of_step
            if unit == "micro":
                turns = range(-(-len(of_step) // world))
                mine = [min(of_step[0] + rank + world * t, of_step[-1]) for t in turns]
            before = 1000 + int(plan.offsets[of_step[0]])
            for turn, k in enumerate(mine, start=1):
                assert pieces.step[index] == step
                assert pieces.micro[index] == plan.micro[k]
                assert pieces.step_rows[index] == rows
                assert pieces.step_weight[index] == pytest.approx(weight, rel=1e-12)
                state = pieces.state(index)
                expected = (step + 1, before + rows) if turn == len(mine) else (step, before)
                assert (state.next_step, state.samples_seen) == expected
                index += 1
            found += mine
        assert index == len(pieces)
        starts, stops = pieces.start.tolist(), pieces.stop.tolist()
        for k, a, b, p in zip(found, starts, stops, pieces.position.tolist(), strict=True):
            assert plan.offsets[k] <= a < b <= plan.offsets[k + 1]
            assert p == a - plan.offsets[k]


@pytest.mark.parametrize("world", [1, 3])
def test_windows_are_cut_out_of_it(plan, data, world):
    manifest = Manifest.open(plan)
    whole = deal(manifest, manifest.records[0], manifest.epoch(0).plan(), Ranks(0, world), 0)
    ids = np.concatenate([whole.part(a, a + 3).ids for a in range(0, 10, 3)])
    assert ids.tolist() == whole.ids.tolist()
    assert len(ids) == sum(whole.sizes)
    assert [whole.part(4, 6).state(k) for k in (0, 1)] == [whole.state(4), whole.state(5)]


def test_step_weight_does_not_depend_on_where_it_is_asked_for(data, tmp_path):
    plan = shuffled(rows=3000, batch=64, micro_per_step=5, weighted=True)
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="importance")
    record, ranks = manifest.records[0], Ranks()
    whole = deal(manifest, record, plan, ranks, 0).step_weight
    for step in range(0, 9):
        part = plan.slice(5 * step, min(5 * step + 10, len(plan)))
        alone = deal(manifest, record, part, ranks, 0).step_weight
        assert alone.tobytes() == whole[5 * step :][: len(alone)].tobytes()
