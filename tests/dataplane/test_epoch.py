"""Random access to an epoch's micro-batches and steps, against brute force."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from batchloom.dataplane import epoch_writer
from batchloom.dataplane.epochs import Epoch
from batchloom.dataplane.errors import ManifestError
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.plan import BatchPlan
from batchloom.tests.dataplane.helpers import (
    SIDE,
    assert_same_plan,
    plan_of,
    sides_of,
    snapshot_of,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_number = itertools.count()


def epoch_of(folder: Path, shape: list[tuple[int, int]], seed: int) -> tuple[Epoch, BatchPlan]:
    """Write an epoch in blocks of 3 micro-batches; `shape`: gap and micro-batches of each step."""
    rng = np.random.default_rng(seed)
    numbers = np.cumsum([gap for gap, _ in shape]) - 1
    steps = [(int(s), m) for s, (_, n) in zip(numbers, shape, strict=True) for m in range(n)]
    sizes = rng.integers(1, 4, len(steps)).tolist()
    plan = plan_of(
        sizes,
        rng.integers(0, 500, sum(sizes)),
        steps=steps,
        weights=rng.random(sum(sizes)),
        side=sides_of(sizes, rng),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 3)
        patch.setattr(epoch_writer, "PART_ROWS", 15)
        target = folder / str(next(_number))
        write(target, snapshot_of(500), {4: plan}, side=SIDE, weight_semantics="cluster")
    return Manifest.open(target).epoch(4), plan


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.data(),
)
def test_access_by_brute_force(
    tmp_path: Path, shape: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    epoch, plan = epoch_of(tmp_path, shape, seed)
    steps = plan.step.tolist()
    assert len(epoch) == len(steps)
    for step in range(-2, steps[-1] + 3):
        first = next((k for k, s in enumerate(steps) if s >= step), len(steps))
        assert epoch.find_step(step) == first, step
        if step in steps:
            stop = first + steps.count(step)
            assert_same_plan(epoch.step(step), plan.slice(first, stop))
        else:
            with pytest.raises(ManifestError, match=f"holds no step {step}; .* step {steps[-1]}"):
                epoch.step(step)
    start = data.draw(st.integers(0, len(steps)))
    stop = data.draw(st.integers(start, len(steps)))
    assert_same_plan(epoch.plan(start, stop), plan.slice(start, stop))
    assert_same_plan(epoch.plan(start), plan.slice(start, len(steps)))
    k = data.draw(st.integers(0, len(steps) - 1))
    assert epoch[k].rows.tolist() == plan.slice(k, k + 1).rows.tolist()


def test_the_order_of_access_does_not_matter(tmp_path: Path) -> None:
    epoch, plan = epoch_of(tmp_path, [(1, 5)] * 20, 0)
    for k in np.random.default_rng(0).permutation(100).tolist():
        assert epoch[k].rows.tolist() == plan.slice(k, k + 1).rows.tolist()
        assert (epoch[k].step, epoch[k].micro) == (k // 5, k % 5)


def test_iteration_ends(tmp_path: Path) -> None:
    epoch, plan = epoch_of(tmp_path, [(1, 2)] * 5, 0)
    found = [batch.rows.tolist() for batch in epoch]  # type: ignore[attr-defined]
    assert found == [plan.slice(k, k + 1).rows.tolist() for k in range(10)]
    for k in (-1, 10, 11):
        with pytest.raises(IndexError):
            epoch[k]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 11), (4, 3), (11, 11)])
def test_ranges_beyond_the_epoch_are_refused(tmp_path: Path, start: int, stop: int) -> None:
    epoch, _ = epoch_of(tmp_path, [(1, 2)] * 5, 0)
    with pytest.raises(ManifestError, match=f"micro-batches 0 to 10; {start} to {stop} were"):
        epoch.plan(start, stop)


def test_an_empty_range_has_the_columns_of_the_epoch(tmp_path: Path) -> None:
    epoch, plan = epoch_of(tmp_path, [(1, 2)] * 5, 0)
    for k in (0, 5, 10):
        assert_same_plan(epoch.plan(k, k), plan.slice(0, 0))
    assert_same_plan(BatchPlan.concat([epoch.plan(3, 3), epoch.plan(0, 4)]), plan.slice(0, 4))


def test_a_far_step_reads_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jumping is in constant time: the jump index is searched, not the blocks."""
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 2)
    steps = [(s, m) for s in range(500) for m in range(3)]
    write(tmp_path / "m", snapshot_of(1500), {0: plan_of([1] * 1500, steps=steps)})
    for step in (0, 1, 250, 499):
        manifest = Manifest.open(tmp_path / "m")
        assert manifest.epoch(0).step(step).rows.tolist() == [3 * step, 3 * step + 1, 3 * step + 2]
        assert sum(len(r._verified) for r in manifest._readers) <= 4
