"""What every registered stage must do, whatever it plans."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import JobSpecError
from batchloom.dataplane.parameters import describe_parameters
from batchloom.dataplane.plan import BatchPlan
from batchloom.jobs import planning
from batchloom.jobs.budget import Budget
from batchloom.jobs.context import JobContext
from batchloom.jobs.methods import METHODS, make_stage
from batchloom.jobs.spec import JobSpec
from batchloom.jobs.stages import BatchStage, GroupStage, PlanState, ReduceStage, SelectStage


class StageContract:
    """Subclass, and say `name`, `parameters` and which `state` the stage is given."""

    name: str
    parameters: dict[str, Any]

    def stage(self, **changes: Any) -> Any:
        return make_stage(self.name, {**self.parameters, **changes})

    def test_is_registered_under_its_name_and_kind(self) -> None:
        method, stage = METHODS[self.name], self.stage()
        assert stage.method == self.name
        assert stage.kind == method.kind
        kinds = {
            "select": SelectStage,
            "group": GroupStage,
            "batch": BatchStage,
            "reduce": ReduceStage,
        }
        assert isinstance(stage, kinds[stage.kind])

    def test_every_parameter_is_described(self) -> None:
        for p in describe_parameters(type(self.stage())):
            assert p.description, p.name
            assert p.allowed, p.name

    def test_is_frozen(self) -> None:
        stage = self.stage()
        field = dataclasses.fields(stage)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field, None)

    def test_identity_is_json_without_paths(self, tmp_path: Path) -> None:
        identity = self.stage().identity()
        assert identity["method"] == self.name
        text = json.dumps(identity, allow_nan=False)
        assert str(tmp_path) not in text
        assert "/" not in text

    def test_unknown_parameter_is_refused_by_name(self) -> None:
        with pytest.raises(JobSpecError, match="no parameter 'nonsense'"):
            self.stage(nonsense=1)

    def test_keeps_the_contract_of_its_kind(self, job: JobContext, state: PlanState) -> None:
        stage = self.stage()
        stage.prepare(job)
        if isinstance(stage, SelectStage):
            check_select(stage, job, state)
        elif isinstance(stage, GroupStage):
            check_group(stage, job, state)
        elif isinstance(stage, BatchStage):
            check_batch(stage, job, state)
        else:
            check_reduce(stage, job, state)

    def test_a_tiny_memory_gives_the_same_plan(
        self, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With room for some hundred rows everything goes over the disk."""
        ids = {
            working: self._planned(small, tmp_path / str(working), working, monkeypatch)
            for working in (1 << 28, 20_000)
        }
        assert len(set(ids.values())) == 1, ids

    def _planned(self, data: Path, out: Path, working: int, monkeypatch: pytest.MonkeyPatch) -> str:
        """Plan with the stage, and with what it needs before it; return the manifest's id."""
        budget = Budget(1 << 30, 0, None, working)
        monkeypatch.setattr(planning, "make_budget", lambda *_: budget)
        stage = {"method": self.name, **self.parameters}
        needs_groups = getattr(METHODS[self.name].load(), "needs_groups", False)
        groups = {"method": "kmeans", "columns": ["x"], "k": 4}
        spec = JobSpec(
            dataset=data,
            out=str(out),
            stages=[groups, stage] if needs_groups else [stage],
            batch_size=1000 if needs_groups else 2,
            epochs=2,
            on_invalid="drop",
            workers=0,
            task_bytes=4000,
        )
        return planning.run_job(spec).manifest_id


def check_select(stage: SelectStage, job: JobContext, state: PlanState) -> None:
    """Rows of the state, with their weights, whatever how often they are asked for."""
    for epoch in (0, 2) if stage.per_epoch else (0,):
        check_selected(stage, job, state, epoch)


def check_selected(stage: SelectStage, job: JobContext, state: PlanState, epoch: int) -> None:
    first = state.selected(job, stage.select(job, state, epoch))
    again = state.selected(job, stage.select(job, state, epoch))
    ids, before = first.rows.ids(), state.rows.ids()
    assert ids.tolist() == again.rows.ids().tolist()
    assert set(ids.tolist()) <= set(before.tolist())
    if state.groups is not None:
        assert first.groups is not None
        expected = state.groups.load()[np.isin(before, ids)]
        assert first.groups.load().tolist() == expected.tolist()
    if first.weights is not None:
        assert first.weights.dtype == np.float32
        assert len(first.weights) == len(ids)


def check_group(stage: GroupStage, job: JobContext, state: PlanState) -> None:
    """Every row that stays has a label; rows and labels stay parallel."""
    grouped = stage.group(job, state)
    assert grouped.groups is not None
    assert grouped.groups.dtype == np.int32
    assert len(grouped.groups) == len(grouped.rows) <= len(state.rows)
    assert grouped.groups.load().min() >= 0
    assert set(grouped.rows.ids().tolist()) <= set(state.rows.ids().tolist())
    assert isinstance(stage.default_batch(), BatchStage)


def check_batch(stage: BatchStage, job: JobContext, state: PlanState) -> None:
    """Each row at most once, no larger batch than asked for, weights follow their rows."""
    ids = state.rows.ids()
    weights = (ids % np.uint64(7) + np.uint64(1)).astype(np.float32)
    weighted = dataclasses.replace(state, weights=job.column([weights]))
    plan = BatchPlan.concat(list(stage.batches(job, weighted, 0)))
    plan.check(stage.side)
    rows = plan.rows.tolist()
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(ids.tolist())
    assert np.diff(plan.offsets).max() <= job.batch_size
    assert plan.weights is not None
    assert plan.weights.tolist() == [float(r % 7 + 1) for r in rows]
    assert rows != BatchPlan.concat(list(stage.batches(job, weighted, 1))).rows.tolist()


def check_reduce(stage: ReduceStage, job: JobContext, state: PlanState) -> None:
    """No row that was not in the same micro-batch, whatever the chunks that come."""
    plan = BatchPlan.cut(state.rows.ids(), job.batch_size)
    chunks = [plan.slice(k, min(k + 3, len(plan))) for k in range(0, len(plan), 3)]
    stage.read(job, state.rows)
    for epoch in (0, 1):
        reduced = stage.begin(job, lambda: iter([plan]), epoch)(plan)
        reduced.check(stage.side)
        in_chunks = stage.begin(job, lambda: iter(chunks), epoch)
        parts = BatchPlan.concat([in_chunks(chunk) for chunk in chunks])
        assert parts.rows.tolist() == reduced.rows.tolist()
        before = {int(s): set(plan.slice(k, k + 1).rows.tolist()) for k, s in enumerate(plan.step)}
        for k, step in enumerate(reduced.step):
            assert set(reduced.slice(k, k + 1).rows.tolist()) <= before[int(step)]
