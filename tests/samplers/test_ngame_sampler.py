"""NGAME while training: the offline plan's batches, resumed anywhere, whatever a process does."""

from __future__ import annotations

import copy
import io
import pickle
import signal
import sys
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.clustering import NGAME, BalancedKMeans
from batchloom.dataplane.errors import (
    InvalidValueError,
    ParameterError,
    ResumeMismatchError,
    RowIdError,
    SelectionError,
    WorldSizeError,
)
from batchloom.samplers import IndexedDataset, false_negatives, online_clusters, refresh
from batchloom.samplers.ngame import NGAMESampler
from scipy.sparse import csr_array
from torch.utils.data import DataLoader

N, D, B, E = 150, 6, 16, 7
METHOD = NGAME(batch_size=B, schedule={2: 4, 4: 8}, refresh_every=2, seed=7)


def make_labels(n: int = N, seed: int = 0) -> Any:
    draw = np.random.default_rng(seed)
    has = np.zeros((n, 12), bool)
    for row in range(n):
        has[row, draw.choice(12, draw.integers(1, 4), replace=False)] = True
    return csr_array(has)


LABELS = make_labels()


def make(method: NGAME = METHOD, **options: Any) -> NGAMESampler:
    return NGAMESampler(N, method, width=D, **{"labels": LABELS, **options})


def embedding(rows: Any, epoch: int, step: int) -> torch.Tensor:
    """Embeddings that depend on when they were made."""
    at = torch.as_tensor(rows)[:, None]
    angle = at * (1 + torch.arange(D)) * 0.7 + epoch * 1.3 * (at % 3) + step * 0.01
    return torch.sin(angle).float()


class Inline:
    """Makes the clusters at once, in this process."""

    def __init__(self, model: BalancedKMeans, values: Any, purpose: str) -> None:
        self._labels = model.labels(values.copy())

    def labels(self) -> Any:
        return self._labels

    def close(self) -> None:
        pass


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes: what is tested does not depend on them."""
    monkeypatch.setattr(online_clusters, "Refresh", Inline)


def bank_of(sampler: NGAMESampler) -> Any:
    return sampler._bank.values.copy()


def process_of(sampler: NGAMESampler) -> Any:
    coming: Any = sampler._clusters._coming
    return coming.work._process


def train(
    samplers: list[NGAMESampler], epoch: int, *, first: int = 0, stop: int | None = None
) -> list[Any]:
    """Train an epoch as so many ranks, in step; return the rows of each step's micro-batches.

    Without a process group each rank is told all ranks' embeddings.
    """
    for sampler in samplers:
        sampler.set_epoch(epoch)
    if stop == first:
        return []
    per_step = -(-samplers[0]._micro_per_step // len(samplers))
    left = len(samplers[0]) - first * per_step
    steps: list[Any] = [[]]
    for k, parts in enumerate(zip(*samplers, strict=True)):
        step = first + k // per_step
        for sampler, rows in zip(samplers, parts, strict=True):
            if sampler.facts(rows).weights.all():
                steps[-1].append(rows)
            else:
                assert not sampler.facts(rows).weights.any()
        rows = [row for part in parts for row in part]
        for sampler in samplers:
            sampler.update(rows, embedding(rows, epoch, step))
        if (k + 1) % per_step == 0 or k + 1 == left:
            if stop is not None and step + 1 == stop:
                break
            steps.append([])
    return [step for step in steps if step]


# --- the same as offline --------------------------------------------------------------------------


def check_offline(sampler: NGAMESampler, lag: int) -> None:
    """Its batches are the offline ones of the bank as an epoch `lag` before began."""
    banks, made_of = [], None
    for epoch in range(E):
        sampler.set_epoch(epoch)
        banks.append(bank_of(sampler))
        if METHOD.refreshes(epoch):
            made_of = epoch - lag
        plan = METHOD.batches(banks[made_of or 0], LABELS, epoch=epoch)
        assert sampler.report["bank_of"] == made_of
        assert sampler.report["cluster_size"] == METHOD.size_at(epoch)
        assert len(sampler) == sampler.steps_in_epoch() == len(plan)
        for step, rows in enumerate(sampler):
            batch = plan.slice(step, step + 1)
            facts = sampler.facts(torch.tensor(rows))
            assert rows == batch.rows.tolist()
            assert facts.positive.tolist() == batch.side["positive"].tolist()  # type: ignore[union-attr]
            assert torch.equal(facts.mask, false_negatives(batch.side["mask"]))  # type: ignore[arg-type]
            assert facts.weights.tolist() == [1] * len(rows)
            sampler.update(rows, embedding(rows, epoch, step))


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.usefixtures("inline")
def test_its_batches_are_the_offline_ones_of_the_bank(lag: int) -> None:
    check_offline(make(lag=lag), lag)


def test_another_process_changes_nothing() -> None:
    check_offline(make(), 1)


@pytest.mark.usefixtures("inline")
def test_masks_by_brute_force_and_no_labels() -> None:
    sampler, has = make(), LABELS.toarray()
    rows = np.array([5, 140, 3, 77, 21, 8])
    facts = sampler.facts(rows)
    assert has[rows, facts.positive].all()
    expected = has[rows][:, facts.positive] | np.eye(6, dtype=bool)
    assert facts.mask.tolist() == expected.tolist()
    train([sampler], 0)
    sampler.set_epoch(1)
    assert sampler.facts(rows).positive.tolist() != facts.positive.tolist()
    bare = make(labels=None).facts(rows)
    assert bare.positive.tolist() == [-1] * 6
    assert torch.equal(bare.mask, torch.eye(6, dtype=torch.bool))


@pytest.mark.usefixtures("inline")
def test_epochs_that_are_left_out_and_come_again() -> None:
    whole = make()
    for epoch in range(3):
        train([whole], epoch)
    banks = bank_of(whole)
    whole.set_epoch(5)  # 4 makes clusters anew, and was not set
    assert whole.report["bank_of"] == 5
    plan = METHOD.batches(banks, epoch=5)
    assert next(iter(whole)) == plan.slice(0, 1).rows.tolist()
    again = list(whole)
    whole.set_epoch(5)
    assert list(whole) == again
    whole.set_epoch(1)
    assert whole.report["bank_of"] is None


@pytest.mark.usefixtures("inline")
def test_clusters_from_the_first_epoch_on() -> None:
    method = NGAME(batch_size=B, cluster_size=4, seed=1)
    sampler = make(method)
    with pytest.raises(SelectionError, match="clusters of epoch 0 .* no embedding was written"):
        sampler.set_epoch(0)
    everything = torch.arange(N)
    sampler.update(everything, embedding(everything, 0, 0))
    plan = method.batches(embedding(everything, 0, 0))
    assert list(sampler) == [plan.slice(k, k + 1).rows.tolist() for k in range(len(plan))]
    with pytest.raises(SelectionError, match="begin at epoch 2 or later"):
        make(NGAME(batch_size=B, schedule={1: 4}, refresh_every=1)).set_epoch(0)


# --- the other process ----------------------------------------------------------------------------


def begun(**options: Any) -> tuple[NGAMESampler, Any]:
    """A sampler whose process is at work for epoch 2, and what will come of it."""
    sampler = make(**options)
    train([sampler], 0)
    sampler.set_epoch(1)
    plan = METHOD.batches(bank_of(sampler), epoch=2)
    return sampler, [plan.slice(k, k + 1).rows.tolist() for k in range(len(plan))]


@pytest.fixture
def never_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are still at work whenever they are looked at."""
    monkeypatch.setattr(refresh, "_PROGRAM", ["-c", "import time; time.sleep(200)"])


@pytest.mark.usefixtures("never_done")
def test_a_process_that_is_killed() -> None:
    sampler, expected = begun()
    process_of(sampler).kill()
    train([sampler], 1)  # changes the bank
    with pytest.warns(UserWarning, match="clusters of epoch 2 ended with exit code -9"):
        sampler.set_epoch(2)
    assert list(sampler) == expected


def test_a_process_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    sampler, expected = begun()
    train([sampler], 1)
    with pytest.warns(UserWarning, match="could not be started .*no/python"):
        sampler.set_epoch(2)
    assert list(sampler) == expected


def test_a_process_that_fails() -> None:
    sampler = make()
    train([sampler], 0)
    sampler.update([5], np.full((1, D), np.nan))
    train([sampler], 1)
    for _ in range(2):
        with pytest.raises(InvalidValueError, match=r"1 rows hold NaN .*: 5\.") as caught:
            sampler.set_epoch(2)
    notes = "\n".join(caught.value.__notes__)
    assert "In the process that makes clusters:\nTraceback" in notes
    assert "It was to make the clusters of epoch 2." in notes
    assert sampler.epoch == 1
    sampler.load_state_dict(make().state_dict())
    sampler.set_epoch(0)


def test_interrupts_do_not_reach_it() -> None:
    sampler, expected = begun()
    process = process_of(sampler)
    process.send_signal(signal.SIGINT)
    state = sampler.state_dict()  # no warning
    assert process.returncode == 0
    resumed = make()
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    assert list(resumed) == expected


def test_copies_wait_for_it() -> None:
    sampler, expected = begun()
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler)), sampler):
        other.set_epoch(2)
        assert list(other) == expected


@pytest.mark.usefixtures("never_done")
def test_it_is_ended_where_it_is_of_no_use() -> None:
    sampler, _ = begun()
    process = process_of(sampler)
    sampler.set_epoch(0)
    assert process.returncode == -signal.SIGKILL
    sampler, _ = begun()
    process = process_of(sampler)
    del sampler
    assert process.returncode == -signal.SIGKILL


# --- state ----------------------------------------------------------------------------------------


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.usefixtures("inline")
def test_resumed_at_every_step(lag: int) -> None:
    sampler, whole, banks = make(lag=lag), [], []
    for epoch in range(E):
        whole.append(train([sampler], epoch))
        banks.append(bank_of(sampler))
    for epoch in range(5):
        for stop in range(len(whole[epoch]) + 1):
            sampler = make(lag=lag)
            for e in range(epoch):
                train([sampler], e)
            train([sampler], epoch, stop=stop)
            resumed = make(lag=lag)
            resumed.load_state_dict(through_a_file(sampler.state_dict()))
            assert resumed.epoch == epoch
            assert train([resumed], epoch, first=stop) == whole[epoch][stop:]
            for e in range(epoch + 1, epoch + 3):
                assert train([resumed], e) == whole[e]
            assert np.array_equal(bank_of(resumed), banks[epoch + 2])


@pytest.mark.usefixtures("inline")
def test_a_state_is_of_its_moment() -> None:
    sampler = make()
    train([sampler], 0)
    state = sampler.state_dict()
    before = copy.deepcopy(state)
    train([sampler], 1)
    assert torch.equal(state["bank"], before["bank"])
    resumed = make()
    resumed.load_state_dict(state)
    train([resumed], 1)
    assert torch.equal(state["bank"], before["bank"])
    assert state["bank"].shape == (N, D)
    assert state["bank"].dtype == torch.float32


def test_a_state_while_clusters_are_made() -> None:
    sampler, expected = begun()
    train([sampler], 1, stop=3)
    state = sampler.state_dict()
    assert state["next_clusters"]["epoch"] == 2
    assert (state["epoch"], state["next_step"], state["clusters"]) == (1, 3, None)
    resumed = make()
    resumed.load_state_dict(through_a_file(state))
    train([sampler], 1, first=3)
    train([resumed], 1, first=3)
    for one in (sampler, resumed):
        one.set_epoch(2)
        assert list(one) == expected


def test_a_state_of_something_else_is_refused() -> None:
    state = make().state_dict()
    with pytest.raises(ResumeMismatchError, match="settings = .*'seed': 7"):
        make(NGAME(batch_size=B, schedule={2: 4, 4: 8}, refresh_every=2)).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="rows = 150; expected 149"):
        NGAMESampler(N - 1, METHOD, width=D).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="width = 6; expected 7"):
        NGAMESampler(N, METHOD, width=7).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="labels_checksum"):
        make(labels=make_labels(seed=1)).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="lag = 1; expected 0"):
        make(lag=0).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="micro_per_step = 1; expected 2"):
        make(rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="version = None"):
        make().load_state_dict({})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("inline")
def test_a_dataloader_ends_and_goes_on(workers: int) -> None:
    whole = [train([sampler], e) for sampler in [make()] for e in range(3)]
    data = IndexedDataset(torch.arange(N) * 2)
    sampler = make()
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(loader) == len(whole[epoch])
        for step, (rows, x) in enumerate(loader):
            assert [rows.tolist()] == whole[epoch][step]
            assert x.tolist() == (rows * 2).tolist()
            sampler.update(rows, embedding(rows, epoch, step))
            if (epoch, step) == (2, 1):
                state = sampler.state_after(step)  # workers have drawn more than two
                break
    resumed = make()
    resumed.load_state_dict(state)
    rest = [[r.tolist()] for r, _ in DataLoader(data, batch_sampler=resumed, num_workers=workers)]
    assert rest == whole[2][2:]


@pytest.mark.usefixtures("inline")
def test_no_global_random_state() -> None:
    state = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    sampler = make()
    for epoch in range(4):
        train([sampler], epoch)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert pickle.dumps(np.random.get_state()) == state[1]  # noqa: NPY002


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make().update([1, 2], torch.ones(2)), SelectionError, r"shape \(2, 6\), got \(2,"),
        (lambda: make().update([1, 2], torch.ones(3, D)), SelectionError, r"got \(3, 6\)"),
        (lambda: make().update(1, torch.ones(1, D)), SelectionError, "one of that width for each"),
        (lambda: make().update([N], torch.ones(1, D)), RowIdError, "row 150 .* made for 150 rows"),
        (lambda: make().facts([3, -1]), RowIdError, "Facts of row -1"),
        (lambda: make().set_epoch(-1), ParameterError, "'epoch' parameter"),
        (lambda: make(lag=2), ParameterError, r"'lag' parameter must be .* \[0, 2\)"),
        (lambda: make(micro_per_step=0), ParameterError, "'micro_per_step' parameter"),
        (lambda: make(labels=LABELS[:9]), SelectionError, "labels of 150 rows, found 9"),
        (lambda: make(labels=LABELS * 0), SelectionError, "150 rows have no label"),
        (lambda: NGAMESampler(1, METHOD, width=2), SelectionError, "at least 2 rows, found 1"),
        (lambda: NGAMESampler(0, METHOD, width=2), ParameterError, "'rows' parameter"),
        (lambda: NGAMESampler(9, METHOD, width=0), ParameterError, "'width' parameter"),
        (
            lambda: make(rank=0, world_size=4, on_uneven="error"),
            WorldSizeError,
            "Step 2 of each epoch has 2 whole micro-batches, which 4 ranks",
        ),
    ],
)
def test_bad_input(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
