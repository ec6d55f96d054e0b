"""Leaving rows out of a plan, against plain lists, however the plan is cut into chunks."""

from __future__ import annotations

import itertools

import numpy as np
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.plan_changes import MicroNumbers, keep_rows, rows_in_steps
from batchloom.tests.contracts.plans import as_lists, lists_without
from batchloom.tests.dataplane.helpers import SIDE, assert_same_plan, plan_of, sides_of
from hypothesis import given
from hypothesis import strategies as st


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=14))
    steps: list[tuple[int, int]] = []
    step = draw(st.integers(0, 3))
    for _ in sizes:
        if steps and draw(st.booleans()):
            steps.append((step, steps[-1][1] + 1))
        else:
            step += draw(st.integers(1, 3)) if steps else 0
            steps.append((step, 0))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = rng.integers(0, 12, sum(sizes))
    weights = rng.random(sum(sizes)) if draw(st.booleans()) else None
    return plan_of(sizes, rows, steps=steps, weights=weights, side=sides_of(sizes, rng))


@given(plans(), st.sets(st.integers(0, 11)), st.integers(0, 9), st.integers(0, 9),
       st.lists(st.integers(0, 14), max_size=4))  # fmt: skip
def test_rows_and_steps_left_out(
    plan: BatchPlan, dropped: set[int], first: int, stop: int, cuts: list[int]
) -> None:
    numbers, found = MicroNumbers(), []
    bounds = [0, *sorted(min(c, len(plan)) for c in cuts), len(plan)]
    for a, b in itertools.pairwise(bounds):
        chunk = plan.slice(a, b)
        goes = np.isin(chunk.rows, np.array(sorted(dropped), np.uint64))
        goes |= rows_in_steps(chunk, first, stop)
        changed = numbers.number(keep_rows(chunk, ~goes))
        changed.check(SIDE)
        found += as_lists(changed)
    expected = lists_without(
        as_lists(plan), lambda step, row: row in dropped or first <= step < stop
    )
    assert found == expected


def test_nothing_left_out_is_the_same_plan() -> None:
    plan = plan_of([2, 1], steps=[(0, 0), (0, 1)])
    assert keep_rows(plan, np.ones(3, bool)) is plan
    assert_same_plan(MicroNumbers().number(plan), plan)


def test_everything_left_out_is_an_empty_plan() -> None:
    plan = plan_of([2, 1], weights=[1, 2, 3], side=sides_of([2, 1], np.random.default_rng(0)))
    empty = keep_rows(plan, np.zeros(3, bool))
    empty.check(SIDE)
    assert len(empty) == 0
    assert len(MicroNumbers().number(empty)) == 0
