"""CoLM while training: the pure choice, resumed anywhere, the same on any ranks."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.coresets import CoLM, Moments, keep_largest, spsa_probes
from batchloom.dataplane.errors import ResumeMismatchError, SelectionError
from batchloom.samplers import CoLMSelector, in_micro_batches
from batchloom.tests.samplers.two_ranks import two_ranks
from torch import nn

COUNTS = {"wiki": 700, "code": 500, "law": 60, "poems": 20}
NAMES = np.array(list(COUNTS))


def batch(step: int, n: int = 48) -> tuple[Any, Any, Any]:
    """Features, sources and ids of a large batch."""
    draw = np.random.default_rng(step)
    sources = NAMES[draw.choice(4, n, p=[0.5, 0.3, 0.15, 0.05])]
    ids = draw.choice(1280, n, replace=False)
    return draw.standard_normal((n, 5)).astype(np.float32), sources, ids


def made(**options: Any) -> CoLMSelector:
    return CoLMSelector(20, source_counts=COUNTS, **options)


@pytest.mark.parametrize("weights", ["uniform", "cluster"])
def test_it_is_the_pure_choice(weights: Any) -> None:
    method = CoLM(weights=weights)
    selector, moments = made(method=method, largest=3), Moments.zeros(5)
    for step in range(4):
        features, sources, ids = batch(step)
        small = selector.select(features, sources, ids=ids)
        codes = np.searchsorted(NAMES, sources, sorter=np.argsort(NAMES))
        seen = keep_largest(moments.normalise(features), sources, 3)
        expected = method.select(seen, sources, 20, source_counts=COUNTS, ids=ids)
        assert small.rows.tolist() == expected.rows.tolist()
        if expected.weights is not None:
            assert small.weights.tolist() == expected.weights.tolist()
        assert small.total == (20 if weights == "uniform" else 48)
        chosen = expected.rows.astype(int)
        large = ~np.isin(sources[chosen], ["law", "poems"])
        moments = moments.after(features[chosen[large]])
        assert {s["source"] for s in small.report["sources"]} == set(sources)
        assert len(codes) == 48
    assert selector.step == 4


def test_without_moments_it_looks_at_the_features_alone() -> None:
    selector = made(adam=False)
    for step in range(2):
        features, sources, ids = batch(step)
        expected = CoLM().select(features, sources, 20, source_counts=COUNTS, ids=ids)
        assert selector.select(features, sources, ids=ids).rows.tolist() == expected.rows.tolist()


def test_resumed_at_every_step() -> None:
    whole = made()
    choices, states = [], []
    for step in range(6):
        states.append(copy.deepcopy(whole.state_dict()))
        features, sources, ids = batch(step)
        choices.append(whole.select(features, sources, ids=ids).rows.tolist())
    for begin, state in enumerate(states):
        again = made()
        again.load_state_dict(state)
        assert again.step == begin
        for step in range(begin, 6):
            features, sources, ids = batch(step)
            assert again.select(features, sources, ids=ids).rows.tolist() == choices[step]


def test_states_of_others_are_refused() -> None:
    state = made().state_dict()
    with pytest.raises(ResumeMismatchError, match="largest = None; expected 2"):
        made(largest=2).load_state_dict(state)
    with pytest.raises(ResumeMismatchError, match="version = None"):
        made().load_state_dict({})


def test_a_training_loop() -> None:
    """Probes by micro-batches, a choice, a step: nothing but the step changes the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(48, 6), torch.arange(48) % 3
    sources, largest = batch(0)[1], 0

    def losses(part: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(part))
        return nn.functional.cross_entropy(model(x[part]), y[part], reduction="none")

    selector, last = made(), model[2].weight
    before = float(losses(torch.arange(48)).mean().detach())
    largest = 0
    for _ in range(25):
        kept = last.detach().clone()
        chunks = in_micro_batches(losses, 48, size=7)
        probes = spsa_probes(chunks, last, probes=8, seed=1, step=selector.step)
        assert largest == 7
        assert torch.equal(last, kept)
        small = selector.select(probes, sources)
        optimizer.zero_grad()
        ((small.weights * losses(small.rows)).sum() / small.total).backward()
        optimizer.step()
        largest = 0
    assert float(losses(torch.arange(48)).mean().detach()) < before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.select(np.ones(4), ["wiki"] * 4), r"shape \(n, d\)"),
        (lambda s: s.select(np.ones((4, 2)), ["wiki"] * 3), r"\(4, 2\), \(3,\)"),
        (lambda s: s.select(np.ones((4, 2)), ["wiki"] * 4, ids=[1]), r"and \(1,\)"),
        (lambda s: s.select(np.ones((4, 2)), ["news"] * 4), "Source 'news' has no count"),
        (lambda s: s.select(np.ones((4, 2)), ["wiki"] * 4), "20 rows cannot be chosen of 4"),
        (lambda s: made(small=["news"]), "Source 'news' has no count"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        call(made())


_RANK = """
import sys, torch, torch.distributed as dist
from batchloom.tests.samplers.test_colm import batch, made
dist.init_process_group("gloo")
rank, selector = dist.get_rank(), made(largest=3)
cut = {0: slice(0, 31), 1: slice(31, 48)}[rank]  # parts of different sizes
found = []
for step in range(3):
    features, sources, ids = batch(step)
    small = selector.select(features[cut], sources[cut], ids=ids[cut])
    found.append(((small.rows + cut.start).tolist(), small.weights.tolist(), small.total))
one = made()  # all that is chosen stands in rank 0's part
features, sources, ids = batch(0)
mine = slice(0, 20) if rank == 0 else slice(20, 48)
features[20:] = float("nan")
small = one.select(features[mine], sources[mine], ids=ids[mine])
torch.save({"found": found, "last": (small.rows.tolist(), small.weights.tolist(), small.total),
            "state": selector.state_dict()}, sys.argv[1] + f".{rank}")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_two_ranks_choose_what_one_does(tmp_path: Path) -> None:
    two_ranks([sys.executable, "-c", _RANK, str(tmp_path / "r")])
    a, b = (torch.load(f"{tmp_path / 'r'}.{rank}", weights_only=False) for rank in range(2))
    selector = made(largest=3)
    for step, (left, right) in enumerate(zip(a["found"], b["found"], strict=True)):
        features, sources, ids = batch(step)
        small = selector.select(features, sources, ids=ids)
        real = [r for rows, ws, _ in (left, right) for r, w in zip(rows, ws, strict=True) if w]
        assert sorted(real) == small.rows.tolist()
        assert left[2] == right[2] == small.total
    for state in (a["state"], b["state"]):
        assert (
            state["moments"]["mean"].tolist() == selector.state_dict()["moments"]["mean"].tolist()
        )
    assert len(a["last"][0]) == 20
    assert b["last"] == ([0], [0.0], 20.0)  # a row that counts nothing
