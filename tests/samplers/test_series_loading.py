"""Series: a loader reads the members as one plan, and can wait for the next one."""

import threading
import time

import pytest
from batchloom.dataplane import ManifestWriter, Series, open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    ManifestError,
    ParameterError,
    ResumeMismatchError,
    WorldSizeError,
)
from batchloom.samplers import ManifestBatchSampler, ManifestLoader
from batchloom.tests.contracts.awkward import awkward_table, write_fragment
from batchloom.tests.contracts.batches import (
    assert_resumes_everywhere,
    drain,
    fingerprints,
    json_round_trip,
    prefetch_threads,
    shuffled,
)

POLL = 0.01


@pytest.fixture
def data(tmp_path):
    write_fragment(awkward_table(0, 120), tmp_path / "data" / "a.arrow", "ipc", chunk=50)
    return tmp_path / "data"


def add_member(folder, data, start, stop, *, since=None, batch=20, rows=120, seed=7, unit=None):
    """Commit the next member of a series."""
    series = Series(folder)
    target, parent = series.next_member(start, stop)
    snapshot = open_dataset(data, since=since).snapshot
    with ManifestWriter(
        target, snapshot=snapshot, seed=seed, parent=parent, unit=unit or "sliceable"
    ) as writer:
        for epoch in range(start, stop):
            with writer.epoch(epoch):
                writer.append(shuffled(epoch, rows=rows, batch=batch))
        return writer.commit()


@pytest.fixture
def series(tmp_path, data):
    add_member(tmp_path / "series", data, 0, 2)
    add_member(tmp_path / "series", data, 2, 3)
    return tmp_path / "series"


def epochs_of(batches):
    return sorted({b.epoch for b in batches})


def test_members_are_one_plan(series, data):
    loader = ManifestLoader(series, data, columns=["row"])
    batches = drain(loader)
    assert (len(loader), loader.epochs) == (18, (0, 1, 2))
    assert [(b.epoch, b.step) for b in batches] == [(e, s) for e in range(3) for s in range(6)]
    alone = ManifestLoader(series / "epochs-000002-000003", data, columns=["row"])
    assert fingerprints(alone) == fingerprints(batches)[12:]


def test_resume_across_members(series, data):
    assert_resumes_everywhere(lambda: ManifestLoader(series, data, columns=["x"]))


def test_state_carries_the_id_of_the_member(series, data):
    members = Series(series).members
    loader = ManifestLoader(series, data, columns=[])
    for batch in loader:
        member = members[0] if batch.epoch < 2 else members[1]
        state = loader.state_dict()
        assert (state["epoch"], state["manifest_id"]) == (batch.epoch, member.manifest_id)
    wrong = {**state, "manifest_id": members[0].manifest_id}
    with pytest.raises(ResumeMismatchError, match=f"expected manifest {members[1].manifest_id}"):
        loader.load_state_dict(wrong)
    ManifestLoader(members[1], data, columns=[]).load_state_dict(state)


def test_epochs_planned_one_by_one(tmp_path, data):
    """Plan, train, plan: the loader finds each new member when its epoch is set."""
    loader, seen = None, []
    for epoch in range(3):
        add_member(tmp_path / "series", data, epoch, epoch + 1)
        loader = loader or ManifestLoader(tmp_path / "series", data, columns=[])
        sampler = ManifestBatchSampler(tmp_path / "series", data)
        loader.set_epoch(epoch)
        sampler.set_epoch(epoch)
        batches = drain(loader)
        assert len(batches) == len(list(sampler)) == 6
        seen += epochs_of(batches)
    assert seen == [0, 1, 2]
    with pytest.raises(ParameterError, match="no epoch 3 to set"):
        loader.set_epoch(3)


def test_dataset_that_grew_between_members(tmp_path, data):
    first = add_member(tmp_path / "series", data, 0, 1)
    write_fragment(awkward_table(120, 160), data / "0.arrow", "ipc")  # sorts before the other
    add_member(tmp_path / "series", data, 1, 2, since=first.snapshot, rows=160)
    batches = drain(ManifestLoader(tmp_path / "series", data, columns=["row"]))
    assert [b.epoch for b in batches] == [0] * 6 + [1] * 8
    assert all(b["row"].tolist() == b.rows.tolist() for b in batches)


def test_file_that_only_an_older_member_needs(tmp_path, data):
    """The newest snapshot does not hold it; the older member's rows are read all the same."""
    write_fragment(awkward_table(120, 160), data / "b.arrow", "ipc")
    first = add_member(tmp_path / "series", data, 0, 1, rows=160)
    kept = tmp_path / "kept.arrow"
    (data / "b.arrow").rename(kept)
    add_member(tmp_path / "series", data, 1, 2, since=first.snapshot)
    kept.rename(data / "b.arrow")
    batches = drain(ManifestLoader(tmp_path / "series", data, columns=["row"]))
    assert [b.epoch for b in batches] == [0] * 8 + [1] * 6
    assert all(b["row"].tolist() == b.rows.tolist() for b in batches)


def test_members_that_come_later_are_checked_against_the_dataset(tmp_path, data):
    first = add_member(tmp_path / "series", data, 0, 1)
    loader = ManifestLoader(tmp_path / "series", data, columns=["row"])
    sampler = ManifestBatchSampler(tmp_path / "series", data)
    write_fragment(awkward_table(120, 160), data / "b.arrow", "ipc")
    add_member(tmp_path / "series", data, 1, 2, since=first.snapshot, rows=160)
    (data / "b.arrow").unlink()
    for one in (loader, sampler):
        one.set_epoch(1)
        with pytest.raises(DatasetChangedError, match=r"'b\.arrow' .* is gone"):
            drain(one)
        one.set_epoch(0)
        assert len(drain(one)) == 6


def test_every_member_is_checked_against_the_world_size(tmp_path, data):
    add_member(tmp_path / "series", data, 0, 1)
    add_member(tmp_path / "series", data, 1, 2, batch=7)  # its last has one row
    ManifestLoader(tmp_path / "series", data, columns=[], epochs=1, rank=0, world_size=8)
    with pytest.raises(WorldSizeError, match="Epoch 1 has a micro-batch of 1 rows"):
        ManifestLoader(tmp_path / "series", data, columns=[], rank=0, world_size=8)


# --- follow ---------------------------------------------------------------------------------------


def later(action, delay=0.1):
    def run():
        time.sleep(delay)
        action()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("prefetch", [0, 2])
def test_follow_waits_for_the_next_member(series, data, prefetch):
    loader = ManifestLoader(
        series, data, columns=["row"], epochs=5, follow=True, poll_seconds=POLL, prefetch=prefetch
    )
    with pytest.raises(TypeError, match="still to come"):
        len(loader)
    batches, planner = [], None
    for batch in loader:
        batches.append(batch)
        if (batch.epoch, batch.step) == (2, 5):
            planner = later(lambda: add_member(series, data, 3, 5))
    planner.join()
    assert [(b.epoch, b.step) for b in batches] == [(e, s) for e in range(5) for s in range(6)]
    assert all(b["row"].tolist() == b.rows.tolist() for b in batches)
    assert len(loader) == 30
    assert prefetch_threads() == []


def test_follow_stops_at_its_last_epoch(series, data):
    loader = ManifestLoader(series, data, columns=[], epochs=3, follow=True, poll_seconds=POLL)
    assert epochs_of(loader) == [0, 1, 2]
    assert len(loader) == 18


def test_without_follow_it_stops_after_the_last_member(series, data):
    assert epochs_of(ManifestLoader(series, data, columns=[])) == [0, 1, 2]
    with pytest.raises(ManifestError, match="holds no epoch 3"):
        ManifestLoader(series, data, columns=[], epochs=4)


def test_resume_into_a_member_that_was_still_to_come(series, data):
    options = {"columns": ["x"], "epochs": 4, "follow": True, "poll_seconds": POLL}
    loader, expected = ManifestLoader(series, data, **options), []
    iterator = iter(loader)
    for _ in range(18):
        expected += fingerprints([next(iterator)])
    state = json_round_trip(loader.state_dict())
    assert (state["epoch"], state["next_step"]) == (2, 6)
    iterator.close()
    planner = later(lambda: add_member(series, data, 3, 4))
    resumed = ManifestLoader(series, data, **options)
    resumed.load_state_dict(state)
    expected += fingerprints(resumed)
    planner.join()
    assert expected == fingerprints(ManifestLoader(series, data, columns=["x"]))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_closing_while_it_waits(series, data, prefetch):
    loader = ManifestLoader(
        series, data, columns=[], epochs=9, follow=True, poll_seconds=60, prefetch=prefetch
    )
    iterator = iter(loader)
    for _ in range(18):
        next(iterator)
    assert loader.state_dict()["next_step"] == 6
    loader.set_epoch(4)  # not there yet: a state taken now is the last that was
    assert (loader.state_dict()["epoch"], loader.state_dict()["next_step"]) == (2, 6)
    iterator.close()
    assert prefetch_threads() == []


def test_member_that_does_not_fit_is_an_error_in_the_caller(series, data):
    loader = ManifestLoader(
        series,
        data,
        columns=[],
        epochs=4,
        follow=True,
        poll_seconds=POLL,
        rank=0,
        world_size=8,
    )
    planner = later(lambda: add_member(series, data, 3, 4, batch=7), delay=0)
    with pytest.raises(WorldSizeError, match="Epoch 3"):
        drain(loader)
    planner.join()
    assert prefetch_threads() == []


def test_follow_needs_to_know_where_to_stop(series, data):
    with pytest.raises(ParameterError, match="'follow' parameter needs 'epochs'"):
        ManifestLoader(series, data, columns=[], follow=True)
