"""Selections and batch plans: slices, joins, and what is no plan."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import ParameterError, SelectionError
from batchloom.dataplane.plan import BatchPlan, Ragged, Selection, SideColumn, fold_steps
from batchloom.tests.dataplane.helpers import SIDE, assert_same_plan, plan_of, sides_of
from hypothesis import given
from hypothesis import strategies as st


def lists(plan: BatchPlan) -> list[Any]:
    """Return a plan as plain Python values, one entry a micro-batch."""
    out = []
    for k in range(len(plan)):
        a, b = int(plan.offsets[k]), int(plan.offsets[k + 1])
        entry: list[Any] = [int(plan.step[k]), int(plan.micro[k]), plan.rows[a:b].tolist()]
        entry.append(None if plan.weights is None else plan.weights[a:b].tolist())
        for name in sorted(plan.side):
            value = plan.side[name]
            if isinstance(value, Ragged):
                ends = value.offsets.tolist()
                entry.append([value.values[ends[i] : ends[i + 1]].tolist() for i in range(a, b)])
            elif name == "tag":
                entry.append(value[k])
            else:
                entry.append(value[a:b].tobytes())
        out.append(entry)
    return out


@st.composite
def full_plans(draw: st.DrawFn) -> BatchPlan:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=10))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = rng.random(sum(sizes)) if draw(st.booleans()) else None
    rows = rng.integers(0, 99, sum(sizes))
    return plan_of(sizes, rows, weights=weights, side=sides_of(sizes, rng))


@given(full_plans(), st.data())
def test_slices_and_joins_are_those_of_lists(plan: BatchPlan, data: st.DataObject) -> None:
    plan.check(SIDE)
    whole = lists(plan)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(plan)), max_size=4)))
    pieces = [plan.slice(a, b) for a, b in itertools.pairwise([0, *cuts, len(plan)])]
    for piece, (a, b) in zip(pieces, itertools.pairwise([0, *cuts, len(plan)]), strict=True):
        assert lists(piece) == whole[a:b]
        piece.check(SIDE)
        assert piece.offsets[0] == 0
    assert_same_plan(BatchPlan.concat(pieces), plan)


@given(full_plans())
def test_copies_are_equal_and_apart(plan: BatchPlan) -> None:
    before = lists(plan)
    copy = plan.copied()
    assert_same_plan(copy, plan)
    copy.rows[:] = 0
    copy.offsets[:] = 0
    for value in copy.side.values():
        (value.values if isinstance(value, Ragged) else value)[:] = 0
    assert lists(plan) == before


def test_slices_of_one_row_a_micro_batch(  # then columns of both kinds have one length
) -> None:
    rng = np.random.default_rng(0)
    plan = plan_of([1] * 5, side=sides_of([1] * 5, rng))
    piece = plan.slice(2, 4)
    assert piece.side["tag"].tolist() == plan.side["tag"].tolist()[2:4]  # type: ignore[union-attr]
    assert piece.side["flag"].tolist() == plan.side["flag"].tolist()[2:4]  # type: ignore[union-attr]


def test_slices_are_views() -> None:
    plan = plan_of([3, 2, 4], weights=np.ones(9))
    piece = plan.slice(1, 3)
    assert piece.weights is not None
    assert np.shares_memory(piece.rows, plan.rows)
    assert np.shares_memory(piece.weights, plan.weights)


def test_joining_with_and_without_weights_fills_ones() -> None:
    joined = BatchPlan.concat([plan_of([2]), plan_of([1], weights=[0.5]), plan_of([1])])
    assert joined.weights is not None
    assert joined.weights.dtype == np.float32
    assert joined.weights.tolist() == [1, 1, 0.5, 1]
    assert BatchPlan.concat([plan_of([2]), plan_of([1])]).weights is None


def test_joining_of_what_does_not_fit_is_refused() -> None:
    side = {"tag": np.array([1], np.int32)}
    with pytest.raises(SelectionError, match="the same side columns"):
        BatchPlan.concat([plan_of([1]), plan_of([1], side=side)])
    with pytest.raises(SelectionError, match="can be joined"):
        BatchPlan.concat([])


@pytest.mark.parametrize(
    ("rows", "size", "offsets"),
    [
        (0, 3, [0]),
        (1, 3, [0, 1]),
        (3, 3, [0, 3]),
        (7, 3, [0, 3, 6, 7]),
        (4, 1, [0, 1, 2, 3, 4]),
        (4, 10**9, [0, 4]),
    ],
)
def test_cuts(rows: int, size: int, offsets: list[int]) -> None:
    order = np.arange(rows, dtype=np.uint64)[::-1].copy()
    plan = BatchPlan.cut(order, size)
    plan.check()
    assert plan.offsets.tolist() == offsets
    assert plan.rows.tolist() == order.tolist()
    assert plan.step.tolist() == list(range(len(offsets) - 1))
    assert plan.micro.tolist() == [0] * (len(offsets) - 1)


def test_cuts_of_nothing_are_refused() -> None:
    for size in (0, -1):
        with pytest.raises(ParameterError, match=f"at least 1 row. Got {size} instead"):
            BatchPlan.cut(np.arange(3, dtype=np.uint64), size)


def test_folding_into_steps() -> None:
    plan = plan_of([1] * 7).folded(3)
    assert plan.step.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert plan.micro.tolist() == [0, 1, 2, 0, 1, 2, 0]
    later = plan_of([1] * 4).folded(3, first=7)
    assert later.step.tolist() == [2, 2, 3, 3]
    assert later.micro.tolist() == [1, 2, 0, 1]
    joined = BatchPlan.concat([plan, later])
    assert_same_plan(joined, plan_of([1] * 11, rows=joined.rows).folded(3))
    step, micro = fold_steps(3, 1, 2**40)
    assert step.tolist() == [2**40, 2**40 + 1, 2**40 + 2]
    assert (step.dtype, micro.dtype) == (np.uint64, np.uint16)
    assert fold_steps(65_536, 65_536)[1][-1] == 65_535


@pytest.mark.parametrize("size", [0, -1, 65_537])
def test_folds_that_no_micro_number_can_count(size: int) -> None:
    with pytest.raises(ParameterError, match=f"between 1 and 65,536 .* Got {size} instead"):
        fold_steps(4, size)


def test_of_makes_the_types() -> None:
    plan = BatchPlan.of([0, 2, 3], [5, 6, 7], [1, 2, 3])
    plan.check()
    assert [a.dtype.name for a in (plan.offsets, plan.rows, plan.step, plan.micro)] == [
        "int64",
        "uint64",
        "uint64",
        "uint16",
    ]
    assert plan.weights is not None
    assert plan.weights.dtype == np.float32


def test_ragged_by_hand() -> None:
    ragged = Ragged(np.array([0, 2, 2, 5]), np.array([1, 2, 3, 4, 5]))
    piece = ragged.slice(1, 3)
    assert (piece.offsets.tolist(), piece.values.tolist()) == ([0, 0, 3], [3, 4, 5])
    joined = Ragged.concat([piece, ragged.slice(0, 1), ragged.slice(2, 2)])
    assert (joined.offsets.tolist(), joined.values.tolist()) == ([0, 0, 3, 5], [3, 4, 5, 1, 2])
    assert joined.offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("kind", "name", "type_", "message"),
    [
        ("rows", "a", "int8", "kind must be 'batch', 'row' or 'csr', found 'rows'"),
        ("row", "a", "text", "type must be one of bool, float32, .* found 'text'"),
        ("row", "a", "float16", "found 'float16'"),
        ("row", "rows", "int8", "cannot be called 'rows'"),
        ("row", "weights", "int8", "cannot be called 'weights'"),
        ("batch", "step", "int8", "cannot be called 'step'"),
        ("batch", "micro", "int8", "cannot be called 'micro'"),
    ],
)
def test_side_columns_that_are_none(kind: Any, name: str, type_: str, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        SideColumn(name, kind, type_)


def test_selections() -> None:
    rows = np.array([1, 5, 9], np.uint64)
    assert Selection(rows).weights is None
    assert Selection(rows, np.array([1, 0, 2], np.float32)).rows is rows
    assert len(Selection(np.array([], np.uint64)).rows) == 0
    for bad in ([1, 1], [2, 1], [2**64 - 1, 0]):
        with pytest.raises(SelectionError, match="ascending and distinct"):
            Selection(np.array(bad, np.uint64))
    with pytest.raises(SelectionError, match="There are 2 weights for 3 rows"):
        Selection(rows, np.ones(2, np.float32))
    for weight in (np.nan, -0.5, np.inf):
        with pytest.raises(SelectionError, match="finite and not negative; the one at position 2"):
            Selection(rows, np.array([1, 0, weight], np.float32))
