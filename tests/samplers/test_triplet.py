from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import ParameterError
from batchloom.dataplane.plan import Ragged
from batchloom.samplers import false_negatives, triplet_loss
from hypothesis import given, settings
from hypothesis import strategies as st

S = torch.tensor([
    [0.9, 0.8, 0.1, 0.2], [0.8, 0.9, 0.1, 0.0], [0.1, 0.2, 0.9, 0.3], [0.0, 0.1, 0.2, 0.9],
])  # fmt: skip
MASK = Ragged(np.array([0, 1, 2, 2, 2]), np.array([1, 0], np.int32))


def test_a_solved_batch_has_no_loss() -> None:
    """Where fewer than k columns are left, masked ones must not count: 0.3 in rows 0 and 1."""
    mask = false_negatives(MASK)
    assert mask.tolist() == [
        [True, True, False, False], [True, True, False, False],
        [False, False, True, False], [False, False, False, True],
    ]  # fmt: skip
    assert triplet_loss(S, mask, negatives=3).tolist() == [0, 0, 0, 0]
    plain = triplet_loss(S, torch.eye(4, dtype=torch.bool), negatives=1)
    assert plain.tolist() == pytest.approx([0.2, 0.2, 0, 0])


def by_rows(s: Any, mask: Any, margin: float, k: int) -> list[float]:
    """The loss as it reads, row by row, in float64."""
    found = []
    for i in range(len(s)):
        hardest = sorted((s[i, j] for j in range(len(s)) if not mask[i, j]), reverse=True)[:k]
        losses = np.array([h - s[i, i] + margin for h in hardest])
        losses = losses[losses > 0]
        shares = np.exp(losses) / np.exp(losses).sum()
        found.append(float((shares * losses).sum()))
    return found


@settings(max_examples=50)
@given(n=st.integers(1, 12), k=st.integers(1, 15), seed=st.integers(0, 999))
def test_as_it_reads(n: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    s, mask = draw.uniform(-1, 1, (n, n)), draw.random((n, n)) < 0.3
    np.fill_diagonal(mask, True)
    similarities = torch.from_numpy(s).requires_grad_()
    loss = triplet_loss(similarities, torch.from_numpy(mask), margin=0.4, negatives=k)
    assert loss.tolist() == pytest.approx(by_rows(s, mask, 0.4, k))
    loss.sum().backward()
    assert similarities.grad is not None
    assert torch.isfinite(similarities.grad).all()
    off = torch.from_numpy(mask) & ~torch.eye(n, dtype=torch.bool)
    assert (similarities.grad[off] == 0).all()  # masked columns are never pushed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: Any) -> None:
    mask = false_negatives(MASK)
    loss = triplet_loss(S.to(dtype), mask, margin=0.9)
    assert loss.dtype == dtype
    expected = triplet_loss(S, mask, margin=0.9)
    assert loss.float().tolist() == pytest.approx(expected.tolist(), abs=0.01)


def test_gradients_as_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    s = torch.rand((6, 6), generator=draw, dtype=torch.float64, requires_grad=True)
    mask = torch.eye(6, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda t: triplet_loss(t, mask, negatives=3), (s,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: triplet_loss(S[:3], torch.eye(4, dtype=torch.bool)), r"shape \(b, b\)"),
        (lambda: triplet_loss(S, torch.eye(3, dtype=torch.bool)), r"shape \(b, b\)"),
        (lambda: triplet_loss(S, torch.zeros(4, 4, dtype=torch.bool)), "diagonal set"),
        (lambda: triplet_loss(S, torch.eye(4)), "of bools"),
        (lambda: triplet_loss(S, torch.eye(4, dtype=torch.bool), negatives=0), "'negatives'"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        call()
