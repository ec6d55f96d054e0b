from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchloom.coresets.distances import pairwise_distances
from batchloom.coresets.gradients import (
    Moments,
    keep_largest,
    last_layer_gradients,
    per_sample_gradients,
    probe_direction,
    spsa_probes,
)
from batchloom.dataplane.errors import ParameterError, SelectionError
from batchloom.tests.contracts.loss_selector import numpy_state
from torch import nn


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autograd(layer: nn.Linear, loss: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    """Row by row."""
    rows = []
    for i in range(len(x)):
        layer.zero_grad()
        loss(layer(x[i : i + 1]), y[i : i + 1]).sum().backward()
        rows.append(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).flatten())
    return torch.stack(rows).numpy()


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "probabilities", "squared"])
def test_last_layer_as_autograd(kind: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3), some(7, 5)
    y: Any = torch.arange(7) % 3
    loss: Any = nn.CrossEntropyLoss(reduction="none")
    if kind == "probabilities":
        y = torch.softmax(some(7, 3, seed=1), dim=1)
    elif kind == "squared":
        y, loss = some(7, 3, seed=1), lambda a, b: 0.5 * (a - b) ** 2
    name: Any = "squared" if kind == "squared" else "cross-entropy"
    outputs = layer(x).detach()
    found = last_layer_gradients(x, outputs, y, loss=name)
    expected = autograd(layer, loss, x, y)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    without = last_layer_gradients(x, outputs, y, loss=name, bias=False)
    assert without.reshape(7, 3, 5) == pytest.approx(found.reshape(7, 3, 6)[:, :, :5])


def test_large_logits_do_not_overflow() -> None:
    found = last_layer_gradients(np.ones((1, 1)), [[1e4, 0.0]], [1])
    assert found.tolist() == [[1, 1, -1, -1]]


@pytest.mark.parametrize("names", [None, ["2.weight"], ["2.bias", "0.weight"]])
def test_per_sample_as_autograd(names: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = some(9, 4), torch.arange(9) % 3
    loss = nn.CrossEntropyLoss(reduction="none")
    found = per_sample_gradients(model, loss, x, y, parameters=names)
    known = dict(model.named_parameters())
    for i in range(9):
        model.zero_grad()
        loss(model(x[i : i + 1]), y[i : i + 1]).sum().backward()
        expected = torch.cat([known[n].grad.flatten() for n in names or known])  # type: ignore[union-attr]
        assert found[i] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-6)


# --- by forward passes ----------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_probes_of_a_quadratic_are_exact(epsilon: float) -> None:
    theta = nn.Parameter(some(12).double())
    centers = some(5, 12, seed=1).double()
    before = theta.detach().clone()
    found = spsa_probes(
        lambda: 0.5 * ((theta - centers) ** 2).sum(dim=1), theta, probes=3, seed=7, epsilon=epsilon
    )
    for j in range(3):
        z = probe_direction(before, seed=7, step=0, number=j)
        expected = ((before - centers) @ z / 3**0.5).numpy()
        assert found[:, j] == pytest.approx(expected, rel=1e-6)
    assert torch.equal(theta.detach(), before)


def test_nothing_is_left_behind() -> None:
    """Bits of the parameter, global random numbers, and the same noise on both sides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    x, y = some(6, 8), torch.arange(6) % 4
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, before_numpy = torch.get_rng_state(), numpy_state()

    def losses() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    found = spsa_probes(losses, model[2].weight, probes=4, seed=3)
    assert (found == spsa_probes(losses, model[2].weight, probes=4, seed=3)).all()
    assert not (found == spsa_probes(losses, model[2].weight, probes=4, seed=3, step=1)).all()
    assert np.abs(found).max() < 10  # two draws of dropout would differ by a loss over 2 ε
    assert torch.equal(torch.get_rng_state(), state)
    assert numpy_state() == before_numpy
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def broken() -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spsa_probes(broken, model[2].weight, seed=3)
    assert torch.equal(model[2].weight, before["2.weight"])


def test_more_probes_know_the_distances_better() -> None:
    """Near-orthogonal gradients of different lengths, as those of language models are."""
    draw = np.random.default_rng(0)
    g = draw.standard_normal((60, 2000)) * draw.lognormal(0, 0.45, (60, 1))
    gradients = torch.from_numpy(g)
    theta = nn.Parameter(torch.zeros(2000, dtype=torch.float64))
    upper = np.triu_indices(60, 1)
    exact = pairwise_distances(g.astype(np.float32), "l2")[upper]

    def rank_correlation(probes: int) -> float:
        found = spsa_probes(lambda: gradients @ theta, theta, probes=probes, seed=1)
        ranks = [np.argsort(np.argsort(d)) for d in (exact, pairwise_distances(found, "l2")[upper])]
        return float(np.corrcoef(*ranks)[0, 1])

    assert rank_correlation(1) <= 0.5
    assert rank_correlation(64) >= 0.95


# --- as Adam sees them ----------------------------------------------------------------------------


def test_first_step_of_adam_is_a_sign() -> None:
    found = Moments.zeros(3).normalise([[3.0, -1.0, 0.0]])
    assert found.tolist() == [[pytest.approx(1), pytest.approx(-1), 0]]


def test_second_step_by_hand() -> None:
    moments = Moments.zeros(1).after([[2.0]])
    assert moments.mean.tolist() == [pytest.approx(0.2)]
    assert moments.square.tolist() == [pytest.approx(0.004)]
    assert moments.normalise([[-1.0]]).tolist() == [[pytest.approx(0.2663370, abs=1e-6)]]


def test_squares_of_rows_and_of_their_mean() -> None:
    chosen = [[3.0], [-1.0]]
    assert Moments.zeros(1).after(chosen).square.tolist() == [pytest.approx(0.005)]
    as_adam = Moments.zeros(1).after(chosen, squares="of-mean")
    assert as_adam.square.tolist() == [pytest.approx(0.001)]


def test_as_torch_adam() -> None:
    """One row a step: its feature is the step that torch takes."""
    theta, gradients = nn.Parameter(torch.zeros(4, dtype=torch.float64)), some(6, 4).double()
    optimizer = torch.optim.Adam([theta], lr=1.0)
    moments = Moments.zeros(4)
    for g in gradients:
        before = theta.detach().clone()
        theta.grad = g.clone()
        optimizer.step()
        step = moments.normalise(g[None])[0]
        assert step == pytest.approx((before - theta.detach()).numpy(), rel=1e-5)
        moments = moments.after(g[None])


def test_moments_are_resumed_exactly() -> None:
    gradients = some(5, 3, 4).numpy()
    whole = resumed = Moments.zeros(4)
    for number, g in enumerate(gradients):
        whole = whole.after(g)
        resumed = resumed.after(g)
        if number == 2:
            resumed = Moments.from_state(resumed.state_dict())
    assert whole.mean.tobytes() == resumed.mean.tobytes()
    assert whole.square.tobytes() == resumed.square.tobytes()
    assert whole.step == resumed.step == 5
    nothing = whole.after(np.zeros((0, 4)))
    assert (nothing.step, nothing.mean.tolist()) == (6, whole.mean.tolist())


def test_the_largest_dimensions_of_each_source() -> None:
    features = np.array([[5, 4, 1, 0], [5, 4, 0, 1], [1, 0, 3, 9], [0, 1, -3, 9]], np.float32)
    features[2:, 2] = 3
    found = keep_largest(features, ["a", "a", "b", "b"], 2)
    assert found.tolist() == [[5, 4, 0, 0], [5, 4, 0, 0], [0, 0, 3, 9], [0, 0, 3, 9]]
    assert keep_largest(features, ["a", "a", "b", "b"], 9).tolist() == features.tolist()
    bad = np.concatenate([features, [[np.nan, 0, 0, 99]]])
    assert keep_largest(bad, ["a", "a", "b", "b", "a"], 2)[:4].tolist() == found.tolist()
    ties = keep_largest(np.ones((1, 4)), [0], 2)
    assert ties.tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: last_layer_gradients([[1.0]], [[1.0], [2.0]], [0]), SelectionError, "shape"),
        (lambda: last_layer_gradients([[1.0]], [[1.0, 2.0]], [2]), SelectionError, "class 2"),
        (lambda: last_layer_gradients([[1.0]], [[1.0, 2.0]], [0.5]), SelectionError, "'targets'"),
        (
            lambda: last_layer_gradients([[1.0]], [[1.0]], [0], loss="hinge"),  # type: ignore[arg-type]
            ParameterError,
            "'loss'",
        ),
        (
            lambda: spsa_probes(lambda: torch.tensor(1.0), torch.zeros(2), seed=0),
            SelectionError,
            "one loss a row",
        ),
        (
            lambda: spsa_probes(lambda: torch.ones(1), torch.zeros(2), seed=0, probes=0),
            ParameterError,
            "'probes'",
        ),
        (lambda: Moments.zeros(2).normalise([[1.0]]), SelectionError, r"shape \(n, 2\)"),
        (lambda: keep_largest([[1.0]], [0, 1], 1), SelectionError, "a source a row"),
        (lambda: keep_largest([[1.0]], [0], 0), ParameterError, "'h' parameter"),
        (
            lambda: per_sample_gradients(
                nn.Linear(2, 1), nn.MSELoss(), some(1, 2), some(1, 1), parameters=["w"]
            ),
            ParameterError,
            "no parameter 'w' .* It has: weight, bias",
        ),
    ],
)
def test_bad_input(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
