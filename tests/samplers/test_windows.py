"""Read-ahead windows: how many batches are gathered at once changes nothing but the speed."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import (
    BatchPlan,
    Manifest,
    ManifestWriter,
    Series,
    SideColumn,
    open_dataset,
)
from batchloom.dataplane.errors import (
    InvalidValueError,
    ManifestCorruptError,
    MissingColumnError,
    ParameterError,
)
from batchloom.gpu_access.arriving import Arriving
from batchloom.samplers import ManifestLoader, SourceStats
from batchloom.samplers.row_source import DatasetSource, row_bytes
from batchloom.tests.contracts.awkward import awkward_table, write_fragment
from batchloom.tests.contracts.batches import (
    drain,
    fingerprints,
    flat,
    shuffled,
    write_plan,
)
from hypothesis import given, settings
from hypothesis import strategies as st


class Remembering:
    """A source of rows in memory that notes what it was asked for."""

    window_bytes = 1 << 20

    def __init__(self, columns=("x",)):
        self.columns = list(columns)
        self.schema = pa.schema([(c, pa.list_(pa.float32(), 4)) for c in columns])
        self.asked, self.reused, self.closed = [], 0, 0

    def gather(self, ids, out=None):
        self.asked.append(len(ids))
        values = torch.from_numpy(ids.astype(np.float32)).reshape(-1, 1).expand(-1, 4)
        if out is None:
            return {c: values.clone() for c in self.columns}
        self.reused += 1
        return {c: out[c].copy_(values) for c in self.columns}

    def stats(self):
        return SourceStats(10 * sum(self.asked), 3, 1)

    def close(self):
        self.closed += 1


def add_member(folder, snapshot, epoch, rows):
    target, parent = Series(folder).next_member(epoch, epoch + 1)
    with ManifestWriter(target, snapshot=snapshot, seed=7, parent=parent) as writer:
        with writer.epoch(epoch):
            writer.append(shuffled(epoch, rows=rows, batch=10))
        writer.commit()


def take(loader, seen):
    for batch in loader:
        seen.append(batch.step)  # one at a time: it may end in an error


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("window", [1, 5, 16, None])
def test_one_gather_a_window(plan, window, world):
    source = Remembering()
    loader = ManifestLoader(plan, source, window=window, rank=0, world_size=world)
    batches = drain(loader)
    assert loader.columns == ["x"]
    assert [b["x"][:, 0].tolist() for b in batches] == [b.rows.tolist() for b in batches]
    rows = 20 if world == 1 else 6
    batches = {1: [1] * 20, 5: [5] * 4, 16: [16, 4], None: [20]}[window]
    assert source.asked == [rows * n for n in batches]  # over the end of an epoch, too
    loader.close()
    assert source.closed == 0  # it is the caller's


def test_default_window_is_by_bytes(plan, data, awkward_data, tmp_path):
    source = Remembering(["x", "y"])
    assert row_bytes(source.schema) == 32
    source.window_bytes = 32 * 20 * 3 + 1
    drain(ManifestLoader(plan, source))
    assert source.asked == [60] * 6 + [40]
    source.window_bytes, source.asked = 1, []
    drain(ManifestLoader(plan, source))
    assert source.asked == [20] * 20
    ragged = pa.schema([("x", pa.list_(pa.float32(), 4)), ("t", pa.string()), ("u", pa.binary())])
    assert row_bytes(ragged) == 16 + 2 * 64
    assert row_bytes(ragged, in_file=10_000.0) == 10_000  # images, say
    assert row_bytes(source.schema, in_file=10_000.0) == 32
    mapped = DatasetSource(open_dataset(data), None, cache_bytes=0)
    decoded = DatasetSource(open_dataset(awkward_data("parquet")), None, cache_bytes=0)
    assert mapped.window_bytes < decoded.window_bytes


def test_batches_are_views_of_one_memory(plan):
    first, second = drain(ManifestLoader(plan, Remembering(), window=2, epochs=1))[:2]
    for name in ("rows", "weights", "seeds"):
        one, other = getattr(first, name), getattr(second, name)
        assert one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        assert getattr(first, name) is one
    assert first["x"].untyped_storage().data_ptr() == second["x"].untyped_storage().data_ptr()
    first["x"].zero_()
    assert second["x"].all()
    kept = second.copy()
    assert fingerprints([kept]) == fingerprints([second])
    assert kept["x"].untyped_storage().nbytes() == kept["x"].nbytes


@pytest.mark.parametrize("prefetch", [0, 3])
def test_buffers_are_used_again(plan, prefetch):
    source = Remembering()
    loader = ManifestLoader(plan, source, window=2, prefetch=prefetch, reuse_buffers=True)
    places = set()
    for batch in loader:
        assert batch["x"][:, 0].tolist() == batch.rows.tolist()  # valid until the next one
        places.add(batch["x"].untyped_storage().data_ptr())
    assert source.reused >= 10 - 4
    assert len(places) <= 4  # one with the caller, two ready, one in the making
    assert source.reused + len(places) == len(source.asked) == 10


@pytest.mark.parametrize("window", [4, 16])
def test_each_window_waits_for_columns_on_their_way(plan, window):
    """Two windows wait for what was gathered together over an epoch's end."""
    waits = []

    class Counted(Arriving):
        def wait(self):
            waits.append(len(self["x"]))

    class OnTheWay(Remembering):
        def gather(self, ids, out=None):
            return Counted(super().gather(ids), None)

    for batch in ManifestLoader(plan, OnTheWay(), window=window):
        # Where a window, an epoch or, within a window, another run of steps begins.
        begins = {4: (0, 4, 8, 10, 12, 14, 16), 16: (0, 10, 16)}[window]
        assert len(waits) == sum(10 * batch.epoch + batch.step >= b for b in begins)
    assert waits == {4: [80] * 7, 16: [320, 320, 80]}[window]


def test_buffers_that_are_too_small_are_let_go(data, tmp_path):
    plan = BatchPlan.of([0, 2, 4, 5, 20, 22, 60], np.arange(60))
    write_plan(tmp_path / "plan", data, {0: plan})
    source = Remembering()
    for batch in ManifestLoader(tmp_path / "plan", source, window=1, reuse_buffers=True):
        assert batch["x"][:, 0].tolist() == batch.rows.tolist()
    assert 0 < source.reused < 6


def test_reuse_is_up_to_the_source(plan, data):
    options = {"columns": ["x", "text"], "window": 3}
    loader = ManifestLoader(plan, data, reuse_buffers=True, **options)
    expected = [b["x"].tolist() for b in ManifestLoader(plan, data, **options)]
    assert [b["x"].tolist() for b in loader] == expected


@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("prefetch", [0, 5])
def test_batches_before_one_that_cannot_be_read_are_delivered(tmp_path, window, prefetch):
    table = pa.table({"v": pa.array([k if k != 31 else None for k in range(60)])})
    write_fragment(table, tmp_path / "data" / "a.parquet", "parquet", chunk=7)
    write_plan(
        tmp_path / "plan", tmp_path / "data", {0: BatchPlan.cut(np.arange(60, dtype="u8"), 4)}
    )
    loader = ManifestLoader(tmp_path / "plan", tmp_path / "data", window=window, prefetch=prefetch)
    seen = []
    with pytest.raises(InvalidValueError, match="null in row 31"):
        take(loader, seen)
    assert seen == list(range(7))
    assert loader.state_dict()["next_step"] == 7


@pytest.mark.parametrize("prefetch", [0, 5])
def test_an_epoch_before_a_damaged_one_is_delivered(plan, data, prefetch):
    """Though the window goes over the epoch's end."""
    part = next(p for p in Manifest.open(plan).parts if p.epoch == 1)
    content = bytearray((plan / part.name).read_bytes())
    content[part.blocks[0].offset + 100] ^= 1
    (plan / part.name).unlink()
    (plan / part.name).write_bytes(content)
    loader, seen = ManifestLoader(plan, data, columns=["x"], window=16, prefetch=prefetch), []
    with pytest.raises(ManifestCorruptError, match="block 0"):
        take(loader, seen)
    assert seen == list(range(10))


@pytest.mark.parametrize("window", [3, 16, 100])
def test_windows_over_epochs_of_several_members(tmp_path, window):
    """Rows of two members that read different files are not gathered together."""
    for name, start in (("a", 0), ("b", 50)):
        write_fragment(awkward_table(start, start + 50), tmp_path / "data" / f"{name}.arrow", "ipc")
    first = open_dataset(tmp_path / "data").snapshot
    add_member(tmp_path / "series", first, 0, rows=100)
    write_fragment(awkward_table(100, 130), tmp_path / "data" / "c.arrow", "ipc")
    grown = open_dataset(tmp_path / "data", since=first).snapshot
    add_member(tmp_path / "series", grown, 1, rows=130)
    loader = ManifestLoader(tmp_path / "series", tmp_path / "data", window=window, epochs=2)
    for batch in (batches := drain(loader)):
        assert batch["row"].tolist() == batch.rows.tolist()
        assert batch["list"].to_pylist() == [[4 * k + i for i in range(k % 4)] for k in batch.rows]
    assert [b.epoch for b in batches] == [0] * 10 + [1] * 13
    jagged = ManifestLoader(
        tmp_path / "series", tmp_path / "data", window=window, columns=["list"], collate="jagged"
    )
    for batch in jagged:
        assert batch["list"].lengths.tolist() == [k % 4 for k in batch.rows.tolist()]


def test_side_columns_and_pads_over_a_window(data, tmp_path):
    side = [SideColumn("tag", "batch", "int32"), SideColumn("score", "row", "float32")]
    values = {
        "tag": np.arange(20, dtype=np.int32),
        "score": np.arange(100, dtype=np.float32),
    }
    plan = BatchPlan.of(np.arange(0, 101, 5), np.arange(100), side=values)
    write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    for world in (1, 3, 8):
        found = []
        for window in (1, 6, None):
            options = {"window": window, "columns": [], "on_uneven": "pad", "world_size": world}
            per_rank = [
                fingerprints(ManifestLoader(tmp_path / "plan", data, rank=r, **options))
                for r in range(world)
            ]
            found.append(per_rank)
        assert found[0] == found[1] == found[2]
    padded = ManifestLoader(
        tmp_path / "plan", data, columns=[], rank=0, world_size=8, on_uneven="pad"
    )
    assert [b.side["tag"] for b in padded] == list(range(20))
    assert all(b.pad.all() and not b.weights.any() for b in padded)


@pytest.mark.parametrize("window", [1, 3, 7])
def test_seeds_of_repeated_rows(data, tmp_path, window):
    rows = np.array([5, 5, 9, 5, 9, 9, 5, 1, 1, 1, 1, 5], np.uint64)
    write_plan(tmp_path / "plan", data, {0: BatchPlan.cut(rows, 3).folded(2)})
    alone = drain(ManifestLoader(tmp_path / "plan", data, columns=[], window=1))
    found = drain(ManifestLoader(tmp_path / "plan", data, columns=[], window=window))
    assert fingerprints(found) == fingerprints(alone)
    assert len(set(flat(b.seeds.tolist() for b in found))) == 12


def test_columns_that_a_source_lacks(plan, data):
    with pytest.raises(MissingColumnError):
        ManifestLoader(plan, data, columns=["nope"])
    with pytest.raises(ParameterError, match="'window' parameter must be an int in the range"):
        ManifestLoader(plan, data, window=0)


def test_a_window_over_shuffled_steps_is_the_same_for_every_size(awkward_data, tmp_path):
    plan = shuffled(rows=3000, batch=50, micro_per_step=7, weighted=True)
    write_plan(
        tmp_path / "plan", awkward_data("ipc"), {0: plan, 3: plan}, weight_semantics="cluster"
    )
    options = {"columns": ["x", "text", "list", "color", "flag"]}
    made = [
        fingerprints(ManifestLoader(tmp_path / "plan", awkward_data("ipc"), window=w, **options))
        for w in (1, 2, 16, 64, None)
    ]
    assert all(m == made[0] for m in made)


@settings(max_examples=30)
@given(st.data())
def test_any_plan_any_ranks_any_window(tmp_path_factory, data):
    """Against the rank rules, applied to one micro-batch of the plan after the other."""
    draw = data.draw
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    per_step = draw(st.integers(1, 5))
    unit = draw(st.sampled_from(["sliceable", "micro"]))
    world = draw(st.integers(1, 6))
    window = draw(st.integers(1, 40))
    epochs = draw(st.integers(1, 2))
    rows = np.arange(sum(sizes), dtype=np.uint64)[::-1].copy()
    weights = (rows % np.uint64(7)).astype(np.float32)
    plan = BatchPlan.of(np.cumsum([0, *sizes]), rows, weights).folded(per_step)
    home = tmp_path_factory.mktemp("any")
    write_fragment(pa.table({"row": rows}), home / "data" / "a.arrow", "ipc")
    manifest = write_plan(
        home / "plan",
        home / "data",
        dict.fromkeys(range(epochs), plan),
        unit=unit,
        weight_semantics="cluster",
    )
    steps = len(set(plan.step.tolist()))
    start = draw(st.integers(0, steps))
    for rank in range(world):
        expected = [
            (epoch, *of_rank)
            for epoch in range(epochs)
            for step in range(start if epoch == 0 else 0, steps)
            for of_rank in by_the_rules(plan, step, unit, rank, world)
        ]
        loader = ManifestLoader(
            manifest,
            Remembering(),
            rank=rank,
            world_size=world,
            window=window,
            on_uneven="pad",
            prefetch=draw(st.sampled_from([0, 2, None])),
        )
        seen = int(plan.offsets[np.searchsorted(plan.step, start)])
        state = {**loader.state_dict(), "next_step": start, "samples_seen": seen}
        loader.load_state_dict(state)
        found = []
        for batch in loader:
            facts = (batch.rows.tolist(), batch.weights.tolist(), batch.pad is not None)
            totals = (batch.step_rows, batch.step_weight)
            found.append((batch.epoch, batch.step, batch.micro, *facts, *totals))
            assert batch["x"][:, 0].tolist() == batch.rows.tolist()
        assert found == expected


def by_the_rules(plan, step, unit, rank, world):
    """Yield step, micro, rows, weights, whether it is a pad, and the totals of the step."""
    of_step = [k for k in range(len(plan)) if plan.step[k] == step]
    a, b = plan.offsets[of_step[0]], plan.offsets[of_step[-1] + 1]
    totals = (int(b - a), float(plan.weights[a:b].sum()))
    for turn, k in enumerate(of_step):
        first, last = int(plan.offsets[k]), int(plan.offsets[k + 1])
        pad = False
        if unit == "micro":
            if turn % world:
                continue
            mine = turn + rank
            pad = mine >= len(of_step)
            k = of_step[min(mine, len(of_step) - 1)]
            first, last = int(plan.offsets[k]), int(plan.offsets[k + 1])
        else:
            n = last - first
            start, stop = rank * n // world, (rank + 1) * n // world
            pad = start == stop
            first, last = first + start, first + max(stop, start + 1)
        weights = plan.weights[first:last].tolist()
        yield (
            step,
            int(plan.micro[k]),
            plan.rows[first:last].tolist(),
            [0.0] * len(weights) if pad else weights,
            pad,
            *totals,
        )
