"""Weighted losses: exact over ranks and micro-batches, checked against sums made by hand."""

import numpy as np
import pytest
import torch
from batchloom.dataplane import BatchPlan
from batchloom.dataplane.errors import InvalidValueError, ParameterError
from batchloom.samplers import ManifestLoader, weighted_loss
from batchloom.tests.contracts.awkward import awkward_table
from batchloom.tests.contracts.batches import drain, shuffled, write_plan


def make_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return model.double()


def row_losses(model, batch):
    predicted = model(batch["x"].double())[:, 0]
    return (predicted - batch["y"].double()) ** 2


def step_gradient(model, batches, world):
    """Return what DDP gives: micro-batches summed, then averaged over ranks."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for batch in batches:
        model.zero_grad()
        weighted_loss(row_losses(model, batch), batch, world).backward()
        for sum_, parameter in zip(total, model.parameters(), strict=True):
            sum_ += parameter.grad / world
    return torch.cat([t.flatten() for t in total])


@pytest.mark.parametrize("unit", ["sliceable", "micro"])
def test_gradient_is_that_of_the_whole_step(data, tmp_path, unit):
    # 230 rows: slices of 64 rows and a last one of 38 are uneven for 3, 5 and 7 ranks.
    plan = shuffled(rows=230, micro_per_step=4, weighted=True)
    options = {"unit": unit, "weight_semantics": "importance"}
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, **options)
    model, table = make_model(), awkward_table(0, 230)

    rows = manifest.epoch(0).plan().rows.astype(np.int64)
    x = torch.tensor(np.array(table["x"].to_pylist())[rows])
    y = torch.tensor(np.array(table["y"])[rows]).double()
    w = torch.tensor(manifest.epoch(0).plan().weights).double()
    by_hand = (w * (model(x)[:, 0] - y) ** 2).sum() / w.sum()
    by_hand.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])

    for world in (1, 2, 3, 5, 7):
        batches, value = [], 0.0
        for rank in range(world):
            loader = ManifestLoader(
                manifest, data, columns=["x", "y"], rank=rank, world_size=world, on_uneven="pad"
            )
            mine = drain(loader)
            batches += mine
            with torch.no_grad():
                value += sum(float(weighted_loss(row_losses(model, b), b, world)) for b in mine)
        assert value / world == pytest.approx(by_hand.item(), rel=1e-6)
        got = step_gradient(model, batches, world)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_without_weights_it_is_the_mean_over_the_step(data, tmp_path):
    manifest = write_plan(tmp_path / "plan", data, {0: shuffled(rows=100, micro_per_step=2)})
    losses = [
        float(weighted_loss(batch["y"].double(), batch))
        for batch in ManifestLoader(manifest, data, columns=["y"])
    ]
    assert sum(losses) == pytest.approx(np.mean(np.arange(100) % 10), rel=1e-12)


def test_all_weights_zero(data, tmp_path):
    plan = BatchPlan.of([0, 2], [1, 2], [0, 0])
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="cluster")
    (batch,) = ManifestLoader(manifest, data, columns=["y"])
    assert batch.step_weight == 0
    with pytest.raises(InvalidValueError, match="All weights of epoch 0, step 0 are 0"):
        weighted_loss(batch["y"].double(), batch)


def test_half_precision_loss_is_summed_in_float32(data, tmp_path):
    plan = BatchPlan.of([0, 3000], np.arange(3000), np.full(3000, 1.001))
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="cluster")
    (batch,) = ManifestLoader(manifest, data, columns=[])
    loss = weighted_loss(torch.ones(3000, dtype=torch.bfloat16), batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1)])
def test_loss_that_is_not_one_a_row(data, tmp_path, shape):
    manifest = write_plan(tmp_path / "plan", data, {0: BatchPlan.of([0, 2], [1, 2])})
    (batch,) = ManifestLoader(manifest, data, columns=["y"])
    with pytest.raises(ParameterError, match=r"expected shape \(2,\).*reduction='none'"):
        weighted_loss(torch.zeros(shape), batch)
