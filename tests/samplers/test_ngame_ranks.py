"""NGAME while training on several ranks: the steps, the bank and the clusters of one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from batchloom.clustering import NGAME
from batchloom.samplers import online_clusters
from batchloom.tests.samplers.test_ngame_sampler import Inline, make, train
from batchloom.tests.samplers.two_ranks import two_ranks


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_clusters, "Refresh", Inline)


@pytest.mark.parametrize("per_step", [3, 4])
@pytest.mark.usefixtures("inline")
def test_ranks_share_steps_and_states(per_step: int) -> None:
    """Ten micro-batches: the last step has too few of them for three ranks."""
    one = make(micro_per_step=per_step)
    whole = [train([one], epoch) for epoch in range(4)]
    assert [len(step) for step in whole[0]] == {3: [3, 3, 3, 1], 4: [4, 4, 2]}[per_step]
    three = [make(rank=r, world_size=3, micro_per_step=per_step) for r in range(3)]
    for epoch in range(2):
        assert train(three, epoch) == whole[epoch]
    found = train(three, 2, stop=1)
    states = [sampler.state_after(0) for sampler in three]
    assert all(torch.equal(state["bank"], states[0]["bank"]) for state in states)
    two = [make(rank=r, world_size=2, micro_per_step=per_step) for r in range(2)]
    for sampler in two:
        sampler.load_state_dict(states[1])
    found += train(two, 2, first=1, stop=2)
    alone = make(micro_per_step=per_step)
    alone.load_state_dict(two[0].state_dict())
    found += train([alone], 2, first=2)
    assert found == whole[2]
    assert train([alone], 3) == whole[3]


@pytest.mark.usefixtures("inline")
def test_a_state_between_the_micro_batches_of_a_step() -> None:
    sampler = make(micro_per_step=2)
    expected = list(sampler)
    batches = iter(make(micro_per_step=2))
    for taken, _ in enumerate(batches, start=1):
        one = make(micro_per_step=2)
        list(zip(range(taken), one, strict=False))
        state = one.state_dict()
        assert state["next_step"] == taken // 2
        resumed = make(micro_per_step=2)
        resumed.load_state_dict(state)
        assert list(resumed) == expected[taken // 2 * 2 :]


_RANK = """
import sys, numpy as np, torch, torch.distributed as dist
from batchloom.dataplane.errors import InvalidValueError
from batchloom.samplers import memory_bank
from batchloom.tests.samplers import test_ngame_sampler as t
dist.init_process_group("gloo")
memory_bank._EXCHANGED_BYTES = 4 * t.D * 11  # several rounds
method = t.NGAME(batch_size=10, schedule={2: 4}, refresh_every=2, seed=7)

def epoch_of(sampler, epoch, first=0, stop=None):
    sampler.set_epoch(epoch)
    for step, rows in enumerate(sampler, start=first):
        x = t.embedding(rows, epoch, step)
        x[sampler.facts(rows).weights == 0] = 1e6  # of a copy: counts nowhere
        sampler.update(rows, x)
        if step == stop:
            break

sampler = t.make(method)
assert len(sampler) == 8  # of fifteen micro-batches; rank 1 gets a copy
for epoch in range(5):
    if epoch in (1, 3):  # resumed, in epoch 1 and 3 while clusters are made
        epoch_of(sampler, epoch, stop=epoch)
        state = sampler.state_dict()
        sampler = t.make(method)
        sampler.load_state_dict(state)
        epoch_of(sampler, epoch, first=epoch + 1)
    else:
        epoch_of(sampler, epoch)
torch.save(sampler.state_dict(), sys.argv[1] + f".{dist.get_rank()}")
sampler.update([dist.get_rank()], np.full((1, t.D), np.nan if dist.get_rank() else 0.5))
sampler.set_epoch(5)
try:
    sampler.set_epoch(6)
except InvalidValueError as error:
    print(error)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_exchange_and_agree(tmp_path: Path) -> None:
    out = two_ranks([sys.executable, "-c", _RANK, str(tmp_path / "state")])
    assert out[0] == out[1]
    assert "1 rows hold NaN or infinite values: 1." in out[0]
    a, b = (torch.load(f"{tmp_path / 'state'}.{rank}") for rank in range(2))
    one = make(NGAME(batch_size=10, schedule={2: 4}, refresh_every=2, seed=7), micro_per_step=2)
    for epoch in range(5):
        train([one], epoch)
    expected = one.state_dict()
    for state in (a, b):
        assert torch.equal(state["bank"], expected["bank"])
        assert torch.equal(state["written"], expected["written"])
        assert torch.equal(state["clusters"]["labels"], expected["clusters"]["labels"])
        assert state["clusters"]["bank_of"] == 3
        assert (state["epoch"], state["next_step"]) == (4, 8)
