"""Selecting by loss while training: the offline plan's steps, resumed anywhere, on any ranks."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batchloom
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batchloom.coresets import InfoBatch, SeTa
from batchloom.dataplane import SignalStore, open_dataset
from batchloom.dataplane.errors import (
    ParameterError,
    ResumeMismatchError,
    RowIdError,
    SelectionError,
    WorldSizeError,
)
from batchloom.jobs.planning import run_job
from batchloom.jobs.spec import JobSpec
from batchloom.samplers import (
    HardBatchSampler,
    ImportanceSampler,
    IndexedDataset,
    InfoBatchSampler,
    RandomShareSampler,
    SeTaSampler,
    loss_sampler,
    open_signal_store,
)
from batchloom.tests.dataplane.helpers import snapshot_of
from batchloom.tests.samplers.two_ranks import two_ranks
from torch.utils.data import DataLoader

N, B, E = 150, 16, 5
MAKERS: dict[str, Callable[..., Any]] = {
    "seta": lambda **o: SeTaSampler(N, B, epochs=E, delta=0.8, seed=7, groups=4, **o),
    "seta-unbiased": lambda **o: SeTaSampler(
        N, B, epochs=E, delta=0.8, seed=7, groups=4, weights="unbiased", **o
    ),
    "infobatch": lambda **o: InfoBatchSampler(N, B, epochs=E, delta=0.8, seed=7, **o),
    "importance": lambda **o: ImportanceSampler(N, B, seed=7, weights="unbiased", **o),
    "random": lambda **o: RandomShareSampler(N, B, seed=7, prune_ratio=0.3, **o),
    "hard-batches": lambda **o: HardBatchSampler(N, B, seed=7, delta=0.4, refresh_every=3, **o),
    "hard-rows": lambda **o: HardBatchSampler(N, B, seed=7, delta=0.4, level="rows", **o),
}
every_kind = pytest.mark.parametrize("kind", MAKERS)


def loss_of(rows: Any, epoch: int, step: int) -> torch.Tensor:
    """Losses that depend on when they were taken."""
    at = torch.as_tensor(rows)
    return (at * 7919 % 151).float() / 50 + epoch * 0.01 + step * 0.001


def train(
    samplers: list[Any], epoch: int, *, stop: int | None = None, first: int = 0
) -> list[tuple[list[int], list[float]]]:
    """Train an epoch as so many ranks, in step; return what each step held: rows and weights.

    Without a process group each rank is told all ranks' losses.
    """
    for sampler in samplers:
        sampler.set_epoch(epoch)
    if stop == 0:
        return []
    steps = []
    for step, parts in enumerate(zip(*samplers, strict=True), start=first):
        weights = [s.weights(p).tolist() for s, p in zip(samplers, parts, strict=True)]
        flat = [w for part in weights for w in part]
        rows = [r for part in parts for r in part]
        real = [r for r, w in zip(rows, flat, strict=True) if w]  # no copies that fill up a share
        steps.append((real, [w for w in flat if w]))
        for sampler in samplers:
            sampler.update(rows, loss_of(rows, epoch, step))
        if stop is not None and step + 1 == stop:
            break
    return steps


def all_epochs(kind: str) -> list[list[Any]]:
    sampler = MAKERS[kind]()
    return [train([sampler], epoch) for epoch in range(E)]


# --- the same as offline --------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
@every_kind
def test_its_steps_are_those_of_the_offline_plan(
    tmp_path: Path, kind: str, drop_last: bool
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, (a, b) in enumerate([(0, 70), (70, N)]):
        pq.write_table(pa.table({"x": np.arange(a, b)}), data / f"part-{number}.parquet")
    sampler = MAKERS[kind](drop_last=drop_last)
    settings = dict(sampler._identity()["settings"])
    method = "hard-batches" if kind.startswith("hard") else kind.split("-")[0]
    settings.pop("seed", None)
    if (epochs := settings.pop("epochs", None)) is not None:
        settings["training_epochs"] = epochs
    store = SignalStore.for_writing(tmp_path / "s", open_dataset(data))
    for epoch in range(E):
        sampler.set_epoch(epoch)
        job: dict[str, Any] = {"signal": tmp_path / "s", "epochs": (epoch, epoch + 1), "seed": 7}
        stages = [{"method": method, **settings}]
        out = f"p{epoch}" if method == "random" else "series"
        shuffle = {"method": "shuffle", "drop_last": drop_last}
        stages.insert(0 if method == "hard-batches" else 1, shuffle)
        spec = JobSpec(
            dataset=data, out=str(tmp_path / out), stages=stages, batch_size=B, workers=0, **job
        )
        made = run_job(spec).epoch(epoch)
        expected = [made[k] for k in range(len(made))]
        assert sampler.steps_in_epoch() == len(sampler) == len(expected)
        for step, (rows, batch) in enumerate(zip(sampler, expected, strict=True)):
            assert rows == batch.rows.tolist()
            weights = [1.0] * len(rows) if batch.weights is None else batch.weights.tolist()
            assert sampler.weights(torch.tensor(rows)).tolist() == weights
            losses = loss_of(rows, epoch, step)
            sampler.update(torch.tensor(rows), losses)
            store.append(rows, epoch=epoch, step=step, loss=losses)
        store.flush()
    store.close()


def test_settings_are_those_of_the_method() -> None:
    assert SeTaSampler(10, 2, groups=7).method == SeTa(groups=7)
    assert InfoBatchSampler(10, 2, prune_ratio=0.3).method == InfoBatch(prune_ratio=0.3)
    with pytest.raises(ParameterError, match="'prune_ratio' parameter of SeTa must be a float"):
        SeTaSampler(10, 2, prune_ratio=1)
    with pytest.raises(ParameterError, match=r"'epoch' must be an int in the range \[0, 3\)"):
        SeTaSampler(10, 2, epochs=3).set_epoch(3)
    with pytest.raises(ParameterError, match="'rows' parameter"):
        InfoBatchSampler(0, 2)


# --- state ----------------------------------------------------------------------------------------


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


@every_kind
def test_resumed_at_every_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_sampler, "_CHUNK_ROWS", 3 * B)
    whole = all_epochs(kind)
    for epoch in range(4):
        for stop in range(len(whole[epoch]) + 1):
            sampler = MAKERS[kind]()
            for e in range(epoch):
                train([sampler], e)
            train([sampler], epoch, stop=stop)
            resumed = MAKERS[kind]()
            resumed.load_state_dict(through_a_file(sampler.state_dict()))
            assert resumed.epoch == epoch
            assert train([resumed], epoch, first=stop) == whole[epoch][stop:]
            for e in range(epoch + 1, min(epoch + 2, E)):
                assert train([resumed], e) == whole[e]


@every_kind
def test_resumed_twice_and_on_other_ranks(kind: str) -> None:
    whole = all_epochs(kind)
    samplers = [MAKERS[kind](rank=r, world_size=3) for r in range(3)]
    for epoch in range(2):
        assert [r for r, _ in train(samplers, epoch)] == [r for r, _ in whole[epoch]]
    stop = max(1, len(whole[2]) // 3)
    found = train(samplers, 2, stop=stop)
    states = [s.state_after(stop - 1) for s in samplers]
    for key, value in states[0].items():
        assert all(torch.equal(s[key], value) if torch.is_tensor(value) else s[key] == value
                   for s in states)  # fmt: skip
    two = [MAKERS[kind](rank=r, world_size=2) for r in range(2)]
    for sampler in two:
        sampler.load_state_dict(states[1])
    later = min(stop + 1, len(whole[2]))
    found += train(two, 2, first=stop, stop=later)
    one = MAKERS[kind]()
    one.load_state_dict(two[0].state_after(later - 1))
    found += train([one], 2, first=later)
    assert [r for r, _ in found] == [r for r, _ in whole[2]]
    assert [r for r, _ in train([one], 3)] == [r for r, _ in whole[3]]


def test_the_same_epoch_again_is_the_same() -> None:
    sampler = MAKERS["seta"]()
    first = train([sampler], 0)
    assert [r for r, _ in train([sampler], 0)] == [r for r, _ in first]
    assert next(iter(sampler)) == next(iter(sampler)) == first[0][0]


def test_a_state_of_something_else_is_refused() -> None:
    state = MAKERS["seta"]().state_dict()
    with pytest.raises(ResumeMismatchError, match="method = 'SeTa'; expected 'InfoBatch'"):
        MAKERS["infobatch"]().load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="rows = 150; expected 151"):
        SeTaSampler(151, B, epochs=E, delta=0.8, seed=7, groups=4).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="settings = .*'groups': 4"):
        SeTaSampler(N, B, epochs=E, delta=0.8, seed=7).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="version = None"):
        MAKERS["seta"]().load_state_dict({})


# --- in a DataLoader ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@every_kind
def test_a_dataloader_ends_and_goes_on(kind: str, workers: int) -> None:
    if workers and kind not in ("seta", "hard-rows"):
        pytest.skip("the sampler does not run in the workers")
    whole = all_epochs(kind)
    data = IndexedDataset(torch.arange(N) * 2)
    sampler = MAKERS[kind]()
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    state = None
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert len(loader) == len(whole[epoch])
        for step, (rows, x) in enumerate(loader):
            assert rows.tolist() == whole[epoch][step][0]
            assert x.tolist() == (rows * 2).tolist()
            sampler.update(rows, loss_of(rows, epoch, step))
            if (epoch, step) == (1, 1):
                state = sampler.state_after(step)  # workers have drawn more than two
                break
    assert state is not None
    resumed = MAKERS[kind]()
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    rest = [r.tolist() for r, _ in DataLoader(data, batch_sampler=resumed, num_workers=workers)]
    assert rest == [r for r, _ in whole[1][2:]]


@every_kind
def test_no_global_random_state_and_copies(kind: str) -> None:
    state = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    whole = all_epochs(kind)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert pickle.dumps(np.random.get_state()) == state[1]  # noqa: NPY002
    sampler = MAKERS[kind]()
    train([sampler], 0)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert train([other], 1) == whole[1]


# --- losses ---------------------------------------------------------------------------------------


def test_losses_are_taken_as_they_are_now() -> None:
    sampler = MAKERS["seta"]()
    rows, losses = torch.arange(4), torch.ones(4, requires_grad=True)
    sampler.update(rows, losses)
    with torch.no_grad():
        losses *= 5
    rows += 9
    state = sampler.state_dict()
    assert state["losses"][:5].tolist() == [1, 1, 1, 1, 0]
    assert np.unpackbits(state["scored"].numpy())[:5].tolist() == [1, 1, 1, 1, 0]


def test_half_precision_reaches_the_right_rows() -> None:
    sampler = SeTaSampler((1 << 24) + 9, 4, prune_ratio=0.999)
    sampler.update([16_777_217, 2049], torch.tensor([0.5, 0.25], dtype=torch.float16))
    sampler.update([257], torch.tensor([2.0], dtype=torch.bfloat16))
    found = sampler.state_dict()["losses"]
    assert found.nonzero().flatten().tolist() == [257, 2049, 16_777_217]


def test_a_store_of_one_process(tmp_path: Path) -> None:
    with open_signal_store(tmp_path / "s", snapshot_of(10)) as store:
        store.append([3], epoch=0, step=0, loss=[0.5])
    assert next(SignalStore.open(tmp_path / "s").latest()).rows.tolist() == [3]


def test_bad_losses() -> None:
    sampler = MAKERS["seta"]()
    with pytest.raises(SelectionError, match=r"expected shape \(32,\), got \(\); .*='none'"):
        sampler.update(torch.arange(32), torch.tensor(0.5))
    with pytest.raises(SelectionError, match=r"expected shape \(3,\), got \(2,\)"):
        sampler.update([1, 2, 3], [0.5, 0.5])
    sampler.update([5], [np.nan])
    with pytest.raises(SelectionError, match="1 row has a loss that is NaN or infinite: 5"):
        sampler.set_epoch(1)
    sampler = MAKERS["seta"]()
    sampler.set_epoch(0)
    sampler.update([3], [0.5])
    sampler.state_dict()
    sampler.update([4], [0.5])
    sampler.update([5, N], [0.5, 0.5])
    with pytest.raises(RowIdError, match="row 150 was given in update 2 of epoch 0; .* 150 rows"):
        sampler.set_epoch(1)
    sampler.load_state_dict(MAKERS["seta"]().state_after(6))
    with pytest.raises(RowIdError, match="row -1 was given in update 7 of epoch 0;"):
        sampler.update([-1], [0.5])


def test_losses_of_several_types() -> None:
    sampler = MAKERS["seta"]()
    sampler.update(np.array([2, 1], np.int32), np.array([0.25, 0.5]))
    sampler.update([1], torch.tensor([0.75], dtype=torch.float16))
    sampler.update([], [])
    sampler.update(torch.tensor([3]), torch.ones(1))
    assert sampler.state_dict()["losses"][:5].tolist() == [0, 0.75, 0.25, 1, 0]


def test_weights_are_of_the_rows_of_the_epoch() -> None:
    sampler = MAKERS["infobatch"]()
    train([sampler], 0)
    sampler.set_epoch(1)
    weights = sampler.weights(np.arange(N))
    trained = sorted(row for rows in sampler for row in rows)
    assert weights.isnan().logical_not().nonzero().flatten().tolist() == trained
    assert weights.nansum() == pytest.approx(N)
    weights[:] = 0  # a copy
    assert sampler.weights(trained).min() >= 1


class _Squares:
    """A dataset that reads whole batches."""

    def __len__(self) -> int:
        return N

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [i * i for i in indices]


def test_a_batch_is_read_at_once_where_the_dataset_can() -> None:
    for data in (_Squares(), torch.arange(N) ** 2):
        rows, x = next(iter(DataLoader(IndexedDataset(data), batch_sampler=MAKERS["seta"]())))
        assert x.tolist() == (rows**2).tolist()


# --- ranks ----------------------------------------------------------------------------------------


def test_a_step_smaller_than_the_ranks() -> None:
    def made(rank: int, **options: Any) -> Any:
        return SeTaSampler(10, 4, prune_ratio=0, rank=rank, world_size=4, **options)

    ranks = [made(r) for r in range(4)]
    steps = list(zip(*ranks, strict=True))
    assert sorted(r for step in steps[:2] for part in step for r in part) == sorted(
        set(range(10)) - {r for part in steps[2] for r in part}
    )
    last = [s.weights(part).tolist() for s, part in zip(ranks, steps[2], strict=True)]
    assert sorted(w for part in last for w in part) == [0, 0, 1, 1]  # two rows, two copies
    with pytest.raises(WorldSizeError, match="Step 2 of epoch 0 has 2 rows, which 4 ranks"):
        list(made(0, on_uneven="error"))
    assert len(list(made(0, drop_last=True))) == 2


_RANK = """
import sys, torch, torch.distributed as dist
from batchloom.samplers import SeTaSampler, open_signal_store
from batchloom.tests.dataplane.helpers import snapshot_of
dist.init_process_group("gloo")
N = (1 << 24) + 100_000
sampler = SeTaSampler(N, 4_219, epochs=5, prune_ratio=0.999, seed=3)
for rows in sampler:
    at = torch.tensor(rows)
    losses = (at % 1000).half()
    losses[sampler.weights(at) == 0] = 2000.0  # a copy, whose loss counts nowhere
    sampler.update(at, losses)
sampler.set_epoch(1)
state = sampler.state_dict()
at = torch.arange(N)
known = state["losses"] != 0
assert known.sum() > 16_000 and known[1 << 24 :].any()
assert torch.equal(state["losses"][known], (at % 1000)[known].half().float())
torch.save({k: state[k] for k in ("selected", "scored")}, sys.argv[1] + f".{dist.get_rank()}")
print(int(known.sum()))
with open_signal_store(sys.argv[1] + ".s", snapshot_of(10)) as store:
    store.append([dist.get_rank() + 3], epoch=0, step=0, loss=[0.5])
    assert store.attempt == 1
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_processes_exchange_once(tmp_path: Path) -> None:
    """Row ids above 2**24, losses in half precision; each rank trains on half of every step."""
    out = two_ranks([sys.executable, "-c", _RANK, str(tmp_path / "state")])
    assert out[0] == out[1]
    a, b = (torch.load(f"{tmp_path / 'state'}.{rank}") for rank in range(2))
    assert torch.equal(a["selected"], b["selected"])
    assert torch.equal(a["scored"], b["scored"])
    assert next(SignalStore.open(tmp_path / "state.s").latest()).rows.tolist() == [3, 4]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_the_example_on_two_processes() -> None:
    script = Path(batchloom.__file__).parent / "examples" / "seta_training.py"
    out = two_ranks([sys.executable, str(script), "--rows", "1000", "--epochs", "4"])
    assert out[1] == ""
    lines = out[0].splitlines()
    assert lines[0] == "epoch 0: 9 steps, 900 of 1000 rows, groups none yet"
    assert lines[-1].endswith("% of all passes")
    assert float(lines[-1].split("%")[0]) < 90
