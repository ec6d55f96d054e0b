import json
from dataclasses import replace

import pytest
from batchloom.dataplane import Manifest
from batchloom.dataplane.errors import ResumeMismatchError
from batchloom.dataplane.lineage import state_id
from batchloom.samplers import LoaderState, ManifestLoader
from batchloom.samplers.state import check_state, rows_before
from batchloom.tests.contracts.batches import shuffled, write_plan


@pytest.fixture
def manifest(data, tmp_path):
    return write_plan(tmp_path / "plan", data, {2: shuffled(micro_per_step=4), 3: shuffled(3)})


@pytest.fixture
def state(manifest):
    return {
        "version": 1,
        "manifest_id": manifest.manifest_id,
        "epoch": 2,
        "next_step": 10,
        "samples_seen": 2560,
    }


def test_round_trip(state):
    assert LoaderState.from_json(json.loads(json.dumps(state))).to_json() == state
    assert len(json.dumps(state)) < 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2; this reader knows 1"),
        ({"manifest_id": "0" * 64}, r"expected manifest [0-9a-f]{64} .*, found 0000"),
        ({"epoch": 7}, "epoch 7, which the plan does not hold: .*it holds 2, 3"),
        ({"next_step": 41}, "step 41 of epoch 2: expected at most 40"),
        ({"next_step": 2**70}, "expected at most 40"),
        ({"samples_seen": 2561}, "counts 2561 rows before step 10 of epoch 2: expected 2560"),
        ({"next_step": -1}, "'next_step' of the loader state must be an int of at least 0"),
        ({"next_step": 1.5}, "'next_step' .* found 1.5"),
        ({"next_step": "3"}, "'next_step' .* found '3'"),
        ({"epoch": True}, "'epoch' .* found True"),
        ({"version": True}, "'version' .* found True"),
        ({"manifest_id": 5}, "'manifest_id' of the loader state must be a string; found 5"),
    ],
)
def test_states_that_do_not_fit(manifest, data, state, change, message):
    loader = ManifestLoader(manifest, data, columns=[])
    with pytest.raises(ResumeMismatchError, match=message):
        loader.load_state_dict({**state, **change})
    # A refused state changes nothing.
    assert loader.state_dict()["next_step"] == 0


@pytest.mark.parametrize("key", ["version", "manifest_id", "epoch", "next_step", "samples_seen"])
def test_missing_key(state, key):
    del state[key]
    with pytest.raises(ResumeMismatchError, match=f"lacks '{key}': expected version, manifest_id"):
        LoaderState.from_json(state)


@pytest.mark.parametrize("value", [None, [], "state", 3])
def test_no_mapping(value):
    with pytest.raises(ResumeMismatchError, match="A loader state is a mapping; found"):
        LoaderState.from_json(value)


def test_epoch_that_was_not_chosen(manifest, data, state):
    loader = ManifestLoader(manifest, data, columns=[], epochs=[3])
    with pytest.raises(ResumeMismatchError, match=r"epoch 2: expected one of those chosen, 3"):
        loader.load_state_dict(state)


def test_rows_before_every_step(manifest):
    epoch, expected = manifest.epoch(2), 0
    for step in range(40):
        assert rows_before(manifest, 2, step) == expected
        expected += len(epoch.step(step).rows)
    assert rows_before(manifest, 2, 40) == 10_007


def test_rows_before_over_several_blocks_and_parts(data, tmp_path, monkeypatch):
    from batchloom.dataplane import epoch_writer

    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 7)
    monkeypatch.setattr(epoch_writer, "PART_ROWS", 1000)
    plans = {0: shuffled(micro_per_step=3), 1: shuffled(1)}
    manifest = write_plan(tmp_path / "blocks", data, plans)
    assert len(manifest.parts) > 10
    for number, plan in plans.items():
        for step in range(int(plan.step[-1]) + 2):
            expected = int(plan.offsets[(plan.step < step).sum()])
            assert rows_before(manifest, number, step) == expected


def test_materialised_plan_writes_the_recipes_id(manifest, state, data):
    origin = "a" * 64
    copy = Manifest.open(manifest.path)
    copy.identity["materialized_from"] = origin
    assert (state_id(manifest), state_id(copy)) == (manifest.manifest_id, origin)
    assert ManifestLoader(copy, data, columns=[]).state_dict()["manifest_id"] == origin
    check_state(LoaderState.from_json({**state, "manifest_id": origin}), copy)
    with pytest.raises(ResumeMismatchError, match=f"expected manifest {origin}"):
        check_state(LoaderState.from_json(state), copy)


def test_a_state_after_a_gap_in_the_steps(data, tmp_path):
    """Plans from which steps were cut out keep their numbers."""
    plan = shuffled(rows=640)
    kept = replace(plan.slice(0, 8), step=plan.step[[0, 1, 2, 5, 6, 7, 8, 9]])
    manifest = write_plan(tmp_path / "cut", data, {0: kept})
    loader = ManifestLoader(manifest, data, columns=[])
    for batch in loader:
        if batch.step == 2:
            break
    assert loader.state_dict()["next_step"] == 3
    again = ManifestLoader(manifest, data, columns=[])
    again.load_state_dict(loader.state_dict())
    assert [b.step for b in again] == [5, 6, 7, 8, 9]
    assert again.state_dict()["next_step"] == 10
