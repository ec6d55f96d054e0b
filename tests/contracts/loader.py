"""What every loader must do: the plan's rows, exactly, on any ranks, from any step on.

Subclass `LoaderContract` in a test file and give it a function that makes the loader.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.dataplane import BatchPlan
from batchloom.dataplane.errors import WorldSizeError
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, FORMATS, awkward_table
from batchloom.tests.contracts.batches import (
    assert_resumes_everywhere,
    drain,
    fingerprint,
    fingerprints,
    flat,
    json_round_trip,
    planned_by_step,
    rows_by_step,
    shuffled,
    write_plan,
)
from batchloom.tests.contracts.gather import expected_values, values_of

whole_table = cache(awkward_table)


class LoaderContract:
    """Every loader of batches with their data.

    ``make(plan, data, **options)`` takes columns, epochs, rank, world_size, window, prefetch,
    on_uneven.
    """

    def make(self, plan: Any, data: Any, **options: Any) -> Any:
        raise NotImplementedError

    def ranks(self, world: int, plan: Any, data: Any, **options: Any) -> list[Any]:
        return [self.make(plan, data, rank=r, world_size=world, **options) for r in range(world)]

    @pytest.fixture
    def data(self, awkward_data: Any) -> Path:
        return awkward_data("ipc")

    # Case 1: exactly once.

    @pytest.mark.parametrize("format", FORMATS)
    def test_values_and_order_are_the_plans(
        self, awkward_data: Any, tmp_path: Path, format: str
    ) -> None:
        data = awkward_data(format)
        manifest = write_plan(tmp_path / "plan", data, {0: shuffled()})
        epoch, table = manifest.epoch(0), whole_table()
        batches = drain(self.make(tmp_path / "plan", data))
        assert len(batches) == len(epoch)
        for index, batch in enumerate(batches):
            rows = epoch[index].rows
            assert batch.rows.tolist() == rows.tolist()
            assert (batch.epoch, batch.step, batch.micro) == (0, index, 0)
            assert batch.step_rows == len(rows) == batch.num_rows
            assert batch.pad is None
            assert batch.weights.tolist() == [1.0] * len(rows)
            assert batch["row"].tolist() == rows.tolist()
            if index % 13 == 0:
                assert list(batch) == table.schema.names
                for name, column in batch.items():
                    assert values_of(column) == expected_values(table, name, rows), name

    @pytest.mark.parametrize("format", FORMATS)
    @pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
    def test_exactly_once(self, awkward_data: Any, tmp_path: Path, format: str, world: int) -> None:
        data = awkward_data(format)
        manifest = write_plan(tmp_path / "plan", data, {0: shuffled(micro_per_step=3)})
        loaders = self.ranks(world, tmp_path / "plan", data, columns=["row"])
        per_rank = [drain(loader) for loader in loaders]
        assert [len(b) for b in per_rank] == [len(loaders[0])] * world
        seen = sorted(flat(b["row"].tolist() for b in flat(per_rank)))
        assert seen == list(range(AWKWARD_ROWS))
        assert rows_by_step(flat(per_rank)) == planned_by_step(manifest)
        # The ranks' slices of a micro-batch, side by side, are the micro-batch.
        for index, slices in enumerate(zip(*per_rank, strict=True)):
            joined = flat(b.rows.tolist() for b in slices)
            assert joined == manifest.epoch(0)[index].rows.tolist()

    def test_repeats_arrive_as_often_as_planned(self, data: Path, tmp_path: Path) -> None:
        plan = BatchPlan.of([0, 4, 8], [5, 5, 9, 5, 9, 9, 5, 1])
        write_plan(tmp_path / "plan", data, {0: plan})
        rows = [b["row"].tolist() for b in self.make(tmp_path / "plan", data)]
        assert rows == [[5, 5, 9, 5], [9, 9, 5, 1]]

    # Case 2: resuming is as if nothing had happened.

    @pytest.mark.parametrize(
        ("window", "prefetch", "columns"),
        [(1, 0, ["x"]), (5, 1, []), (16, 8, []), (16, 0, []), (5, 8, []), (None, None, ["text"])],
    )
    def test_resume_at_every_step(
        self,
        data: Path,
        tmp_path: Path,
        window: int | None,
        prefetch: int | None,
        columns: list[str],
    ) -> None:
        plan = shuffled(micro_per_step=4, weighted=True)  # 40 steps
        write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="importance")

        def make() -> Any:
            options = {"columns": columns, "window": window, "prefetch": prefetch}
            return self.make(tmp_path / "plan", data, **options)

        expected = fingerprints(self.make(tmp_path / "plan", data, columns=columns))
        ends = np.append(np.flatnonzero(plan.micro == 0)[1:], len(plan)).tolist()
        states = {}
        for index, _ in enumerate(loader := make(), start=1):
            if index in ends:
                states[index] = json_round_trip(loader.state_dict())
        assert len(states) == 40
        for step, (index, state) in enumerate(states.items(), start=1):
            assert (state["next_step"], state["samples_seen"]) == (step, int(plan.offsets[index]))
            resumed = make()
            resumed.load_state_dict(state)
            assert fingerprints(resumed) == expected[index:]

    def test_resume_after_every_batch_over_epochs(self, data: Path, tmp_path: Path) -> None:
        plans = {e: shuffled(e, rows=400, batch=50, micro_per_step=3) for e in (2, 3, 5)}
        write_plan(tmp_path / "plan", data, plans)
        assert_resumes_everywhere(
            lambda: self.make(tmp_path / "plan", data, columns=["x", "text"], prefetch=0)
        )
        assert_resumes_everywhere(
            lambda: self.make(tmp_path / "plan", data, columns=["color"], epochs=[5, 2], window=5)
        )

    @pytest.mark.parametrize(("prefetch", "window"), [(0, 1), (3, 16), (8, 5)])
    def test_resume_twice_in_one_epoch(
        self, data: Path, tmp_path: Path, prefetch: int, window: int
    ) -> None:
        write_plan(tmp_path / "plan", data, {0: shuffled(), 1: shuffled(1)})

        def make() -> Any:
            options = {"prefetch": prefetch, "window": window}
            return self.make(tmp_path / "plan", data, columns=["y"], **options)

        expected, got, state = fingerprints(make()), [], None
        for stop in (29, 61, 10_000):
            loader = make()
            if state is not None:
                loader.load_state_dict(json_round_trip(state))
            for batch in loader:
                got.append(fingerprint(batch))
                if batch.epoch == 0 and batch.step == stop:
                    break
            state = loader.state_dict()
        assert got == expected

    def test_state_is_small_and_the_same_on_every_rank(self, data: Path, tmp_path: Path) -> None:
        manifest = write_plan(tmp_path / "plan", data, {0: shuffled(micro_per_step=4)})
        loaders = self.ranks(3, tmp_path / "plan", data, columns=[], prefetch=8)
        iterators = [iter(loader) for loader in loaders]
        for index in range(1, 9):
            for iterator in iterators:
                next(iterator)
            states = [loader.state_dict() for loader in loaders]
            steps = index // 4
            assert (
                states
                == [
                    {
                        "version": 1,
                        "manifest_id": manifest.manifest_id,
                        "epoch": 0,
                        "next_step": steps,
                        "samples_seen": steps * 256,
                    }
                ]
                * 3
            )

    # Case 3: another world size goes on where the first one stopped.

    @pytest.mark.parametrize(("window", "prefetch"), [(1, 1), (16, 0), (5, 8)])
    def test_world_size_changes_within_an_epoch(
        self, data: Path, tmp_path: Path, window: int, prefetch: int
    ) -> None:
        plan = shuffled(micro_per_step=4, weighted=True)
        manifest = write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="importance")
        got, state = [], None
        for world, until in [(4, 13), (2, 27), (8, 10_000)]:
            states = []
            options = {"columns": ["row"], "window": window, "prefetch": prefetch}
            for loader in self.ranks(world, tmp_path / "plan", data, **options):
                if state is not None:
                    loader.load_state_dict(json_round_trip(state))
                for batch in loader:
                    got.append(batch)
                    if batch.step == until and batch.micro == 3:
                        break
                states.append(loader.state_dict())
            state = states[0]
            assert states == [state] * world
        assert rows_by_step(got) == planned_by_step(manifest)
        assert state["samples_seen"] == AWKWARD_ROWS

    def test_world_size_that_does_not_fit(self, data: Path, tmp_path: Path) -> None:
        write_plan(tmp_path / "plan", data, {0: shuffled()})  # the last has 23 rows
        assert len(self.make(tmp_path / "plan", data, rank=22, world_size=23)) == 157
        with pytest.raises(WorldSizeError, match=r"23 rows, which 24 ranks.*on_uneven='pad'"):
            self.make(tmp_path / "plan", data, rank=0, world_size=24)

    def test_pad_of_a_slice(self, data: Path, tmp_path: Path) -> None:
        plan = shuffled(rows=75, batch=10, weighted=True)  # the last has 5 rows
        manifest = write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="cluster")
        loaders = self.ranks(8, tmp_path / "plan", data, columns=["row"], on_uneven="pad")
        per_rank = [drain(loader) for loader in loaders]
        assert {len(b) for b in per_rank} == {8}
        assert rows_by_step(flat(per_rank)) == planned_by_step(manifest)
        pads = [b for b in flat(per_rank) if b.pad is not None]
        assert [b.step for b in pads] == [7, 7, 7]
        for batch in pads:
            assert batch.pad.tolist() == [True]
            assert batch.weights.tolist() == [0.0]
            assert batch["row"].tolist() == batch.rows.tolist()
            assert batch.rows[0] in torch.tensor(manifest.epoch(0)[7].rows.astype(np.int64))
            assert batch.step_rows == 5
        for step in range(8):
            mine = [b for b in flat(per_rank) if b.step == step]
            total = sum(float(b.weights.sum()) for b in mine)
            assert total == pytest.approx(mine[0].step_weight, rel=1e-6)
        assert [loader.state_dict()["samples_seen"] for loader in loaders] == [75] * 8

    # Case 9: micro-batches that must stay whole.

    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_whole_micro_batches(self, data: Path, tmp_path: Path, world: int) -> None:
        plan = shuffled(rows=64 * 24, micro_per_step=4)
        manifest = write_plan(tmp_path / "plan", data, {0: plan}, unit="micro")
        epoch = manifest.epoch(0)
        planned = {(epoch[i].step, epoch[i].micro): epoch[i].rows.tolist() for i in range(24)}
        got = {}
        for rank, loader in enumerate(self.ranks(world, tmp_path / "plan", data, columns=[])):
            batches = drain(loader)
            assert len(batches) == len(loader) == 24 // world
            for batch in batches:
                assert batch.micro % world == rank
                got[batch.step, batch.micro] = batch.rows.tolist()
                assert batch.step_rows == 256
        assert got == planned

    def test_whole_micro_batches_that_do_not_fit(self, data: Path, tmp_path: Path) -> None:
        plan = shuffled(rows=64 * 24, micro_per_step=4)
        write_plan(tmp_path / "plan", data, {0: plan}, unit="micro")
        for world in (3, 8):
            with pytest.raises(WorldSizeError, match=rf"multiples of 4 .*which {world} ranks.*pad"):
                self.make(tmp_path / "plan", data, rank=0, world_size=world)

    def test_pad_of_whole_micro_batches(self, data: Path, tmp_path: Path) -> None:
        plan = shuffled(rows=64 * 22, micro_per_step=4, weighted=True)  # the last step has 2
        manifest = write_plan(
            tmp_path / "plan", data, {0: plan}, unit="micro", weight_semantics="importance"
        )
        loaders = self.ranks(3, tmp_path / "plan", data, columns=["row"], on_uneven="pad")
        per_rank = [drain(loader) for loader in loaders]
        assert [len(b) for b in per_rank] == [len(loaders[0])] * 3 == [11] * 3
        assert rows_by_step(flat(per_rank)) == planned_by_step(manifest)
        pads = [b for b in flat(per_rank) if b.pad is not None]
        assert sorted(b.step for b in pads) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
        for batch in pads:
            step = manifest.epoch(0).step(batch.step)
            assert batch.rows.tolist() == step.rows[step.offsets[-2] :].tolist()
            assert batch.pad.all()
            assert not batch.weights.any()
        assert [loader.state_dict()["samples_seen"] for loader in loaders] == [64 * 22] * 3
        assert_resumes_everywhere(
            lambda: self.make(
                tmp_path / "plan", data, columns=[], on_uneven="pad", rank=1, world_size=3
            )
        )

    # Case 6: weights.

    @pytest.mark.parametrize("world", [1, 3])
    def test_weights_are_the_plans(self, data: Path, tmp_path: Path, world: int) -> None:
        plan = shuffled(rows=1000, batch=64, micro_per_step=3, weighted=True)
        manifest = write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="importance")
        per_rank = [drain(x) for x in self.ranks(world, tmp_path / "plan", data, columns=[])]
        for index, slices in enumerate(zip(*per_rank, strict=True)):
            joined = torch.cat([b.weights for b in slices])
            assert joined.dtype == torch.float32
            assert joined.tolist() == manifest.epoch(0)[index].weights.tolist()
            step = manifest.epoch(0).step(slices[0].step)
            for batch in slices:
                assert batch.step_rows == len(step.rows)
                assert batch.step_weight == pytest.approx(
                    float(step.weights.astype(np.float64).sum()), rel=1e-12
                )

    # Seeds: where a row is read changes nothing.

    @pytest.mark.parametrize("repeats", [False, True])
    def test_seeds_are_the_same_on_any_topology(
        self, data: Path, tmp_path: Path, repeats: bool
    ) -> None:
        plan = shuffled(rows=500, batch=50, micro_per_step=2)
        if repeats:
            plan = BatchPlan.of(plan.offsets, plan.rows % np.uint64(60)).folded(2)
        write_plan(tmp_path / "plan", data, {0: plan, 1: plan})
        found = []
        for world in (1, 2, 3, 8):
            seeds: dict[tuple[int, int, int], list[int]] = {}
            for loader in self.ranks(world, tmp_path / "plan", data, columns=[]):
                for batch in loader:
                    assert batch.seeds.dtype == torch.int64
                    place = (batch.epoch, batch.step, batch.micro)
                    seeds.setdefault(place, []).extend(batch.seeds.tolist())
            found.append(seeds)
        assert all(seeds == found[0] for seeds in found)
        seen = flat(found[0].values())
        assert min(seen) >= 0
        assert len(set(seen)) == 1000  # rows, epochs and occurrences all have their own
