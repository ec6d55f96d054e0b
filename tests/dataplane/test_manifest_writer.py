"""What the writer decides (blocks, parts, counts) against brute force, and what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import epoch_writer
from batchloom.dataplane.epoch_count import weight_sum
from batchloom.dataplane.errors import (
    BatchloomError,
    ManifestError,
    ParameterError,
    RowIdError,
    SelectionError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.plan import BatchPlan, Ragged, SideColumn
from batchloom.tests.dataplane.helpers import (
    SIDE,
    assert_same_plan,
    litter,
    plan_of,
    sides_of,
    small_manifest,
    snapshot_of,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fresh_folder = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
_number = itertools.count()


def pieces_of(plan: BatchPlan, cuts: Sequence[int]) -> list[BatchPlan]:
    bounds = [0, *sorted(min(c, len(plan)) for c in cuts), len(plan)]
    return [plan.slice(a, b) for a, b in itertools.pairwise(bounds)]


# --- blocks and parts -----------------------------------------------------------------------------


def parts_by_the_rules(
    sizes: Sequence[int], micro_batches: int, rows: int, part_rows: int
) -> list[list[tuple[int, int]]]:
    """Return each part's blocks as (micro-batches, rows), counting one micro-batch at a time."""
    parts: list[list[tuple[int, int]]] = []
    blocks: list[tuple[int, int]] = []
    count = held = in_part = 0
    for size in sizes:
        count, held = count + 1, held + size
        if count == micro_batches or held >= rows:
            blocks.append((count, held))
            in_part += held
            count = held = 0
            if in_part >= part_rows:
                parts.append(blocks)
                blocks, in_part = [], 0
    if count:
        blocks.append((count, held))
    if blocks:
        parts.append(blocks)
    return parts


def listed(manifest: Manifest, epoch: int) -> list[list[tuple[int, int]]]:
    return [
        [(b.micro_batches, b.rows) for b in p.blocks] for p in manifest.parts if p.epoch == epoch
    ]


def test_the_rules_are_those_of_the_specification() -> None:
    assert epoch_writer.BLOCK_MICRO_BATCHES == 4096
    assert epoch_writer.BLOCK_ROWS == 2**20
    assert epoch_writer.PART_ROWS == 4 * 2**20


@pytest.mark.parametrize(
    "sizes",
    [
        [1] * 4096,
        [1] * 4097,
        [1] * 10_000,
        [2**20],
        [2**20 - 1, 1, 1],
        [2**20 - 1, 2**20, 5],
        [300_000] * 20,
        [2**19] * 17,
        [5 * 2**20, 3],
        [256] * 20_000,
    ],
    ids=lambda sizes: f"{len(sizes)}x{sizes[0]}",
)
def test_blocks_and_parts_close_by_the_rules(tmp_path: Path, sizes: list[int]) -> None:
    rows = np.zeros(sum(sizes), dtype=np.uint64)
    manifest = write(tmp_path / "m", snapshot_of(1), {0: plan_of(sizes, rows)})
    assert listed(manifest, 0) == parts_by_the_rules(sizes, 4096, 2**20, 4 * 2**20)


@fresh_folder
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.lists(st.integers(1, 30), min_size=1, max_size=30),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_small_blocks_close_by_the_rules_however_the_plan_comes(
    tmp_path: Path, first: list[int], second: list[int], cuts: list[int]
) -> None:
    """With limits of 5 micro-batches, 40 and 100 rows every rule is met in a few micro-batches."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BLOCK_MICRO_BATCHES", 5), ("BLOCK_ROWS", 40), ("PART_ROWS", 100)):
            patch.setattr(epoch_writer, name, value)
        folder = tmp_path / str(next(_number))
        snapshot, rng = snapshot_of(2000), np.random.default_rng(len(cuts))
        plans = [plan_of(s, rng.permutation(2000)[: sum(s)]) for s in (first, second)]
        whole = write(folder / "whole", snapshot, {0: plans[0], 3: plans[1]})
        cut = {0: pieces_of(plans[0], cuts), 3: pieces_of(plans[1], cuts)}
        write(folder / "cut", snapshot, cut)
    for epoch, sizes in ((0, first), (3, second)):
        assert listed(whole, epoch) == parts_by_the_rules(sizes, 5, 40, 100)
    assert folder_bytes(folder / "whole") == folder_bytes(folder / "cut")


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_chunks_do_not_change_a_byte_at_full_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 1200, 9000).tolist()
    rows, weights = rng.permutation(6_000_000)[: sum(sizes)], rng.random(sum(sizes))
    plan = plan_of(sizes, rows, weights=weights)
    snapshot = snapshot_of(6_000_000)
    made = write(tmp_path / "whole", snapshot, {0: plan}, weight_semantics="importance")
    assert listed(made, 0) == parts_by_the_rules(sizes, 4096, 2**20, 4 * 2**20)
    cuts = rng.integers(0, 9000, 40).tolist()
    write(tmp_path / "cut", snapshot, {0: pieces_of(plan, cuts)}, weight_semantics="importance")
    assert folder_bytes(tmp_path / "whole") == folder_bytes(tmp_path / "cut")


def test_the_jump_index_names_the_first_step_and_micro_of_each_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 2)
    steps = [(0, 0), (2, 0), (2, 1), (2, 2), (7, 0)]
    manifest = write(tmp_path / "m", snapshot_of(5), {0: plan_of([1] * 5, steps=steps)})
    blocks = [b for p in manifest.parts for b in p.blocks]
    assert [(b.first_step, b.first_micro) for b in blocks] == [(0, 0), (2, 1), (7, 0)]


def test_two_epochs_alike_share_a_part(tmp_path: Path) -> None:
    plan = plan_of([2, 2])
    manifest = write(tmp_path / "m", snapshot_of(4), {0: plan, 1: plan})
    assert manifest.parts[0].name == manifest.parts[1].name
    assert_same_plan(manifest.epoch(0).plan(), plan)
    assert_same_plan(manifest.epoch(1).plan(), plan)
    manifest.verify(deep=True)


def test_the_callers_arrays_are_its_own_again_after_append(tmp_path: Path) -> None:
    """A producer may fill the same buffers for the next chunk."""
    rng = np.random.default_rng(1)
    sizes = [3, 2, 4]
    expected = [
        plan_of(
            sizes,
            rng.integers(0, 50, 9),
            steps=[(3 * chunk + k, 0) for k in range(3)],
            weights=rng.random(9),
            side=sides_of(sizes, rng),
        )
        for chunk in range(3)
    ]
    target = tmp_path / "m"
    options: dict[str, Any] = {"side": SIDE, "weight_semantics": "cluster"}
    with ManifestWriter(target, snapshot=snapshot_of(50), **options) as writer:
        with writer.epoch(0):
            for plan in expected:
                given = plan.copied()
                writer.append(given)
                for array in arrays_of(given):
                    array[:] = 0
        manifest = writer.commit()
    assert_same_plan(manifest.epoch(0).plan(), BatchPlan.concat(expected))


def arrays_of(plan: BatchPlan) -> list[np.ndarray]:
    arrays: list[Any] = [plan.offsets, plan.rows, plan.weights, plan.step, plan.micro]
    for value in plan.side.values():
        arrays += [value.offsets, value.values] if isinstance(value, Ragged) else [value]
    return arrays


# --- counts ---------------------------------------------------------------------------------------


@fresh_folder
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=12),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_counts_by_brute_force(
    tmp_path: Path,
    shape: list[tuple[int, int]],
    cuts: list[int],
    seed: int,
    repeats: bool,
) -> None:
    """`shape` is (gap to the next step, micro-batches of it) of each step."""
    rng = np.random.default_rng(seed)
    numbers = np.cumsum([gap for gap, _ in shape]) - 1
    steps = [(int(s), m) for s, (_, n) in zip(numbers, shape, strict=True) for m in range(n)]
    sizes = rng.integers(1, 5, len(steps)).tolist()
    rows = rng.integers(0, 400, sum(sizes)) if repeats else rng.permutation(400)[: sum(sizes)]
    plan = plan_of(sizes, rows, steps=steps)
    target = tmp_path / str(next(_number))
    snapshot = snapshot_of(100, 0, 50, 250)
    record = write(target, snapshot, {0: pieces_of(plan, cuts)}).records[0]
    counts = [n for _, n in shape]
    assert record.steps == len(shape)
    assert record.micro_batches == len(steps)
    assert record.samples == len(rows)
    assert record.smallest_micro_batch == min(sizes)
    assert record.last_step_micro_batches == counts[-1]
    assert record.micro_divisor == max(
        d for d in range(1, max(counts) + 1) if all(n % d == 0 for n in counts)
    )
    distinct = set(rows.tolist())
    assert record.distinct_rows == len(distinct)
    assert record.coverage == ("with_replacement" if len(distinct) < len(rows) else "subset")
    assert record.weight_sum == len(rows) << 24
    touched = {0 if r < 100 else 2 if r < 150 else 3 for r in distinct}
    assert Manifest.open(target).planned_fragments() == sorted(touched)


def test_micro_divisor_of_one_long_step_in_pieces(tmp_path: Path) -> None:
    plan = plan_of([1] * 12, steps=[(0, m) for m in range(12)])
    record = write(tmp_path / "m", snapshot_of(12), {0: pieces_of(plan, [1, 2, 5, 11])}).records[0]
    assert (record.steps, record.micro_divisor, record.last_step_micro_batches) == (1, 12, 12)


@pytest.mark.parametrize(
    ("rows", "eligible", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], None, ("exactly_once", 6, 0)),
        ([5, 3, 1, 0, 2, 4], 6, ("exactly_once", 6, 0)),
        ([5, 3, 1, 0], 6, ("subset", 4, 2)),
        ([5, 3, 1, 3], 4, ("with_replacement", 3, 1)),
        ([0, 1, 2, 3, 4, 5, 5, 0], None, ("with_replacement", 6, 0)),
    ],
)
def test_coverage(tmp_path: Path, rows: list[int], eligible: int | None, expected: Any) -> None:
    with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(2, 0, 4)) as writer:
        with writer.epoch(0, eligible_rows=eligible):
            writer.append(plan_of([len(rows)], rows))
        manifest = writer.commit()
    record = manifest.records[0]
    assert (record.coverage, record.distinct_rows, record.dropped_rows) == expected
    assert manifest.with_replacement == (expected[0] == "with_replacement")


def test_coverage_over_gaps_of_row_ids(tmp_path: Path) -> None:
    snapshot = snapshot_of(3, 2, first_ids=[10, 1000])
    manifest = write(tmp_path / "m", snapshot, {0: plan_of([5], [10, 11, 12, 1000, 1001])})
    assert manifest.records[0].coverage == "exactly_once"
    assert manifest.planned_fragments() == [0, 1]
    assert manifest.identity["planned_fragments"] == "all"


@pytest.mark.parametrize("numba", ["0", "1"])
def test_coverage_of_many_rows(tmp_path: Path, numba: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of marking, over words of 64 rows and fragments that end inside one."""
    monkeypatch.setenv("BATCHLOOM_NUMBA", numba)
    snapshot = snapshot_of(63, 1, 64, 65, 250_000, 7)
    rows = np.concatenate([np.arange(63), np.arange(128, 250_193)])
    rng = np.random.default_rng(0)
    plan = BatchPlan.cut(rng.permutation(np.tile(rows, 2)).astype(np.uint64), 1000)
    manifest = write(tmp_path / "m", snapshot, {0: pieces_of(plan, [3, 250])})
    record = manifest.records[0]
    assert (record.samples, record.distinct_rows) == (2 * len(rows), len(rows))
    assert manifest.planned_fragments() == [0, 3, 4]


def test_weight_sums_are_integers_by_the_rules(tmp_path: Path) -> None:
    # 2**-25 rounds to 0 and 3 * 2**-25 to 2: halves go to the even neighbour.
    weights = np.array([1, 0.5, 0, 2**-24, 2**-25, 3 * 2**-25, 0.1, 1000], np.float32)
    manifest = write(
        tmp_path / "m",
        snapshot_of(8),
        {0: plan_of([3, 5], weights=weights)},
        weight_semantics="importance",
    )
    expected = sum(round(float(w) * 2**24) for w in weights)
    assert manifest.records[0].weight_sum == expected
    assert manifest.records[0].total_weight == expected / 2**24


def test_weight_sums_do_not_overflow(tmp_path: Path) -> None:
    weights = np.array([3e38, 3e38, 1], np.float32)
    manifest = write(
        tmp_path / "m",
        snapshot_of(3),
        {0: plan_of([3], weights=weights)},
        weight_semantics="importance",
    )
    assert manifest.records[0].weight_sum == sum(int(float(w)) << 24 for w in weights)
    assert Manifest.open(tmp_path / "m").records[0] == manifest.records[0]


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=50))
def test_weight_sums_do_not_depend_on_order(weights: list[float]) -> None:
    values = np.array(weights, np.float32)
    total = weight_sum(values)
    assert total == weight_sum(values[::-1].copy())
    assert total == sum(round(float(w) * 2**24) for w in values)
    assert math.isclose(total / 2**24, math.fsum(weights), abs_tol=len(weights) * 2**-25)


# --- refusals -------------------------------------------------------------------------------------


def refused(plan: BatchPlan, **options: Any) -> str:
    """Return what a writer says of a plan; the same writer still takes a good one afterwards."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "m"
        with ManifestWriter(target, snapshot=snapshot_of(10, 5), **options) as writer:
            with writer.epoch(0):
                with pytest.raises(SelectionError) as caught:
                    writer.append(plan)
                good: Any = {}
                if options.get("weight_semantics"):
                    good["weights"] = np.ones(15)
                if "side" in options:
                    good["side"] = {"tag": np.array([1], np.int8)}
                writer.append(plan_of([15], **good))
            record = writer.commit().records[0]
        assert (record.samples, record.distinct_rows, record.steps) == (15, 15, 1)
        return str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf, -np.inf, -1e-30])
def test_weights_that_are_none_are_refused(bad: float) -> None:
    message = refused(plan_of([3], weights=[1, 1, bad]), weight_semantics="importance")
    assert "must be finite and not negative; the one at position 2 is" in message


def test_weights_against_the_declaration_are_refused() -> None:
    assert "declared without" in refused(plan_of([3], weights=[1, 1, 1]))
    assert "the plan has none" in refused(plan_of([3]), weight_semantics="cluster")


def test_too_few_weights_are_refused() -> None:
    plan = BatchPlan.of([0, 3], [0, 1, 2], np.ones(2))
    assert "2 weights for 3 rows" in refused(plan, weight_semantics="cluster")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of([2, 0, 1]), "Micro-batch 1 of the plan holds no rows"),
        (BatchPlan.of([0, 2], [0, 1, 2]), "offsets must run from 0"),
        (BatchPlan.of([1, 3], [0, 1, 2]), "offsets must run from 0"),
        (BatchPlan.of([0, 3, 2, 3], [0, 1, 2]), "Micro-batch 1 of the plan holds no rows"),
        (BatchPlan.of([], []), "offsets must run from 0"),
        (plan_of([1, 1], steps=[(0, 0), (0, 2)]), r"(0, 2) cannot follow (0, 0)"),
        (plan_of([1, 1], steps=[(0, 0), (0, 0)]), r"(0, 0) cannot follow (0, 0)"),
        (plan_of([1, 1], steps=[(0, 0), (1, 1)]), r"(1, 1) cannot follow (0, 0)"),
        (plan_of([1, 1], steps=[(4, 0), (3, 0)]), r"(3, 0) cannot follow (4, 0)"),
        (plan_of([1], steps=[(0, 1)]), r"(0, 1) cannot follow none"),
        (plan_of([1, 1, 1], steps=[(0, 0), (1, 0)]), "one step and one micro number"),
    ],
    ids=range(11),
)
def test_what_is_no_plan_is_refused(plan: BatchPlan, message: str) -> None:
    assert message in refused(plan)


def test_steps_are_checked_across_pieces(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(9)) as writer:
        with writer.epoch(0):
            writer.append(plan_of([1, 1], [0, 1], steps=[(0, 0), (0, 1)]))
            for wrong in [(0, 1), (0, 3), (0, 0), (1, 1)]:
                with pytest.raises(SelectionError, match=r"cannot follow \(0, 1\)"):
                    writer.append(plan_of([1], [2], steps=[wrong]))
            writer.append(plan_of([1, 1], [3, 4], steps=[(0, 2), (5, 0)]))
        manifest = writer.commit()
    assert manifest.epoch(0).plan().rows.tolist() == [0, 1, 3, 4]
    assert (manifest.records[0].steps, manifest.records[0].samples) == (2, 4)


@pytest.mark.parametrize(
    ("field", "dtype"),
    [
        ("rows", np.int64),
        ("step", np.int64),
        ("micro", np.uint32),
        ("offsets", np.int32),
        ("weights", np.float64),
    ],
)
def test_arrays_of_another_type_are_refused(field: str, dtype: Any) -> None:
    from dataclasses import replace

    plan = plan_of([2, 1], weights=np.ones(3))
    wrong = replace(plan, **{field: getattr(plan, field).astype(dtype)})
    message = refused(wrong, weight_semantics="cluster")
    assert message.startswith(f"A plan's {field} must be a one-dimensional array of")
    assert np.dtype(dtype).name in message


SIDE_REFUSALS: list[tuple[Any, str]] = [
    ({}, "declared are ['tag']"),
    ({"tag": np.array([1], np.int8), "more": np.array([1])}, "declared are ['tag']"),
    ({"tag": np.array([1, 2], np.int8)}, "expected 1 values of int8, found 2"),
    ({"tag": np.array([1], np.int16)}, "expected 1 values of int8, found 1 of int16"),
    (
        {"tag": Ragged(np.array([0, 1, 1, 1]), np.array([1], np.int8))},
        "Side column 'tag' is declared as 'batch'",
    ),
]


@pytest.mark.parametrize(("side", "message"), SIDE_REFUSALS, ids=range(5))
def test_side_columns_against_the_declaration_are_refused(side: Any, message: str) -> None:
    column = SideColumn("tag", "batch", "int8")
    assert message in refused(plan_of([3], side=side), side=[column])


@pytest.mark.parametrize("offsets", [[0, 1, 3, 2], [1, 1, 1, 3], [0, 1, 2, 2], [0, 1, 3]])
def test_ragged_offsets_that_are_none_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    value = Ragged(np.array(offsets, np.int64), np.zeros(3, np.uint8))
    side = [SideColumn("near", "csr", "uint8")]
    with (
        ManifestWriter(tmp_path / "m", snapshot=snapshot_of(3), side=side) as writer,
        pytest.raises(SelectionError, match="'near'"),
        writer.epoch(0),
    ):
        writer.append(plan_of([3], side={"near": value}))


@pytest.mark.parametrize("row", [5, 7, 99, 105, 2**40, 2**64 - 1])
def test_rows_outside_the_snapshot_are_refused(tmp_path: Path, row: int) -> None:
    """Ids 0–4 and 100–104 exist: 5 to 99 are a gap."""
    snapshot = snapshot_of(5, 5, first_ids=[0, 100])
    with ManifestWriter(tmp_path / "m", snapshot=snapshot) as writer:
        with writer.epoch(0):
            with pytest.raises(RowIdError, match=f"Row {row} is in no fragment.*with gaps"):
                writer.append(plan_of([3], np.array([1, row, 2], np.uint64)))
            writer.append(plan_of([2], [1, 100]))
        record = writer.commit().records[0]
    assert (record.samples, record.distinct_rows, record.micro_batches) == (2, 2, 1)


def test_the_order_of_calls_is_checked(tmp_path: Path) -> None:
    writer = ManifestWriter(tmp_path / "m", snapshot=snapshot_of(3))
    with pytest.raises(SelectionError, match="Open an epoch before appending"):
        writer.append(plan_of([1]))
    with pytest.raises(SelectionError, match="at least one epoch"):
        writer.commit()
    with pytest.raises(SelectionError, match="Epochs count from 0"), writer.epoch(-1):
        pass
    with writer.epoch(1):
        writer.append(plan_of([1]))
        with pytest.raises(SelectionError, match="Epoch 1 is still open"), writer.epoch(2):
            pass
        with pytest.raises(SelectionError, match="Epoch 1 is still open"):
            writer.commit()
    for number in (0, 1):
        with pytest.raises(SelectionError, match="ascending order"), writer.epoch(number):
            pass
    writer.commit()
    with pytest.raises(ManifestError, match="is closed"), writer.epoch(2):
        pass
    with pytest.raises(ManifestError, match="is closed"):
        writer.commit()
    assert litter(tmp_path) == []


def test_an_epoch_without_micro_batches_is_refused(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(3)) as writer:
        with pytest.raises(SelectionError, match="Epoch 0 holds no micro-batch"), writer.epoch(0):
            writer.append(plan_of([]))
        with writer.epoch(0):
            writer.append(plan_of([1]))
        assert writer.commit().records[0].samples == 1


def test_fewer_eligible_than_planned_rows_are_refused(tmp_path: Path) -> None:
    with (
        ManifestWriter(tmp_path / "m", snapshot=snapshot_of(3)) as writer,
        pytest.raises(SelectionError, match="holds 3 rows, more than the 2 that were selected"),
        writer.epoch(0, eligible_rows=2),
    ):
        writer.append(plan_of([3]))


def test_an_epoch_that_failed_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its finished parts do not end up in the manifest, and those of other epochs stay."""
    for name, value in (("BLOCK_MICRO_BATCHES", 1), ("PART_ROWS", 2)):
        monkeypatch.setattr(epoch_writer, name, value)
    with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(9)) as writer:
        with writer.epoch(0):
            writer.append(plan_of([2], [0, 1]))
        plan = plan_of([2, 2, 1], [0, 1, 2, 3, 4])  # its first part is epoch 0's too
        with pytest.raises(SelectionError, match="holds 5 rows"), writer.epoch(1, eligible_rows=1):
            writer.append(plan)
        with writer.epoch(1):
            writer.append(plan_of([2], [7, 8]))
        manifest = writer.commit()
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"manifest.json", *(p.name for p in manifest.parts)}
    assert len(manifest.parts) == 2
    assert manifest.epoch(1).plan().rows.tolist() == [7, 8]
    manifest.verify(deep=True)


DECLARATIONS: list[tuple[dict[str, Any], type[BatchloomError], str]] = [
    ({"unit": "slice"}, ParameterError, "'unit' must be one of 'sliceable', 'micro'"),
    ({"weight_semantics": "mean"}, ParameterError, "must be one of None, 'importance', 'cluster'"),
    ({"seed": -1}, ParameterError, "A seed must be an int"),
    ({"seed": 2**64}, ParameterError, "A seed must be an int"),
    ({"side": [SIDE[0], SIDE[0]]}, SelectionError, "Two side columns have the same name"),
    ({"stages": [{"x": float("nan")}]}, ParameterError, r"stages[0].x: nan"),
    ({"stages": [{"x": {1, 2}}]}, ParameterError, r"stages[0].x: {1, 2} (set)"),
    ({"stages": [{"a": {3: 4}}]}, ParameterError, r"stages[0].a: the key 3 is no string"),
]


@pytest.mark.parametrize(("options", "error", "message"), DECLARATIONS, ids=range(8))
def test_declarations_that_are_none_are_refused(
    tmp_path: Path, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        ManifestWriter(tmp_path / "m", snapshot=snapshot_of(3), **options)
    assert message in str(caught.value)
    assert litter(tmp_path) == []


def test_numbers_of_numpy_may_stand_in_stages_and_reports(tmp_path: Path) -> None:
    stages = [{"k": np.int64(3), "share": np.float64(0.25), "on": np.bool_(True), "t": (1, 2)}]
    with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(3), stages=stages) as writer:
        stages[0]["k"] = 99  # what was given is what is written
        with writer.epoch(np.int64(0)):
            writer.append(plan_of([1]))
        manifest = writer.commit(reports={"mean": float("nan"), "sizes": {"10": np.uint8(1)}})
    assert manifest.identity["stages"] == [{"k": 3, "share": 0.25, "on": True, "t": [1, 2]}]
    assert manifest.provenance["reports"] == {"mean": "nan", "sizes": {"10": 1}}
    assert Manifest.open(tmp_path / "m").manifest_id == manifest.manifest_id


def test_a_csr_column_makes_micro_batches_whole(tmp_path: Path) -> None:
    assert small_manifest(tmp_path / "m", unit="sliceable").unit == "micro"
