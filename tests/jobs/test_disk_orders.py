"""Orders made on disk are those that are made in memory, however little memory there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import ParameterError, SelectionError
from batchloom.dataplane.external_sort import SORTED_BYTES
from batchloom.dataplane.orders import stratified
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.rowset import RowSet
from batchloom.jobs.budget import Budget
from batchloom.jobs.cluster_batches import Across, Aligned, Within
from batchloom.jobs.context import JobContext
from batchloom.jobs.disk_orders import LabelledRows, stratify
from batchloom.jobs.stages import BatchStage, PlanState
from batchloom.tests.jobs.conftest import ROWS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SKEWS: dict[str, Callable[[Any, int], Any]] = {
    "one giant": lambda rng, n: np.where(rng.random(n) < 0.95, 3, rng.integers(0, 9, n)),
    "one only": lambda rng, n: np.zeros(n),
    "all different": lambda rng, n: rng.permutation(n),
    "gaps": lambda rng, n: rng.choice([0, 7, 8, 5000], n),
    "even": lambda rng, n: rng.integers(0, 40, n),
}


class SmallSorts(Budget):
    """Memory for sorting only; lists are not counted."""

    def require(self, bytes_needed: int, what: str) -> None:
        pass


def with_room(job: JobContext, records: int) -> JobContext:
    """Return the job with memory to sort so many records at a time."""
    return dataclasses.replace(job, budget=SmallSorts(0, 0, None, 2 * records * SORTED_BYTES))


def some_rows(job: JobContext, seed: int, share: float) -> RowSet:
    mask = np.random.default_rng(seed).random(ROWS) < share
    mask[3] = True
    return RowSet(job.dataset.snapshot).keep(mask)


def labels_of(skew: str, seed: int, n: int) -> Any:
    return SKEWS[skew](np.random.default_rng(seed), n).astype(np.int32)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    skew=st.sampled_from(list(SKEWS)),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.02, 0.6, 1.1]),
    records=st.sampled_from([60, 150, 5000]),
)
def test_stratified(job: JobContext, skew: str, seed: int, share: float, records: int) -> None:
    rows = some_rows(job, seed, share)
    labels = labels_of(skew, seed, len(rows))
    expected = stratified(labels, rows.ids(), seed=job.seed, epoch=seed)
    column = job.column([labels])
    roomy = dataclasses.replace(job.budget, working=1 << 30)
    in_memory = stratify(dataclasses.replace(job, budget=roomy), rows, column, seed)
    assert isinstance(in_memory, np.ndarray)
    assert np.array_equal(in_memory, expected)
    made = LabelledRows(with_room(job, records), rows, column, seed).stratified()
    assert np.array_equal(made.load(), expected)
    made.remove()
    column.remove()


def planned(
    job: JobContext, stage: BatchStage, rows: RowSet, labels: Any, epoch: int
) -> BatchPlan | str:
    """Return the whole plan, or what is said where there is none."""
    weights = job.column([(rows.ids() % np.uint64(9)).astype(np.float32)])
    state = PlanState(rows, weights, job.column([labels]))
    try:
        made = list(stage.batches(job, state, epoch))
    except SelectionError as error:
        return str(error)
    return BatchPlan.concat(made) if made else BatchPlan.of([0], [])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stage=st.sampled_from([Within, Across, Aligned]),
    drop_last=st.booleans(),
    skew=st.sampled_from(list(SKEWS)),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.05, 1.1]),
    batch_size=st.sampled_from([1, 7, 64, 2000]),
    records=st.sampled_from([60, 150]),
)
def test_batches_of_groups(
    job: JobContext,
    stage: type[BatchStage],
    drop_last: bool,
    skew: str,
    seed: int,
    share: float,
    batch_size: int,
    records: int,
) -> None:
    rows = some_rows(job, seed, share)
    labels = labels_of("even" if skew == "gaps" else skew, seed, len(rows)) % 150
    roomy = dataclasses.replace(
        job, batch_size=batch_size, budget=dataclasses.replace(job.budget, working=1 << 30)
    )
    small = with_room(roomy, records)
    assert not small.budget.holds(len(rows)) or share < 1
    maker = stage(drop_last)
    expected = planned(roomy, maker, rows, labels, seed)
    found = planned(small, maker, rows, labels, seed)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.rows.tolist() == expected.rows.tolist()
    if len(found):
        assert found.weights is not None
        assert found.weights.tolist() == (found.rows % np.uint64(9)).tolist()
    assert set(found.side) == set(expected.side)
    for name, value in found.side.items():
        assert value.tolist() == expected.side[name].tolist()


def test_nothing_of_a_sort_stays(job: JobContext, tmp_path: Path) -> None:
    rows = RowSet(job.dataset.snapshot)
    labels = job.column([labels_of("one giant", 1, ROWS)])
    before = sorted(p.name for p in job.work.path.iterdir())
    for stage in (Within(), Across()):
        for _ in stage.batches(with_room(job, 60), PlanState(rows, None, labels), 0):
            pass
    assert sorted(p.name for p in job.work.path.iterdir()) == before


def test_counts_of_more_groups_than_the_memory_holds_are_refused(job: JobContext) -> None:
    labels = job.column([np.arange(ROWS, dtype=np.int32)])
    tiny = dataclasses.replace(job, budget=Budget(10_000, 0, None, 5000))
    with pytest.raises(ParameterError, match="Counting the rows of each group takes 1 MiB"):
        LabelledRows(tiny, RowSet(job.dataset.snapshot), labels, 0)
