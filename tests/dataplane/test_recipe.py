"""Recipes against the same plan written out, and against a plain reading of their definition."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import epoch_writer
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.errors import (
    BatchloomError,
    ManifestCorruptError,
    ManifestError,
    ManifestVersionError,
    SelectionError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.random import Permutation, Stream
from batchloom.dataplane.recipe import WeightClass, weight_classes
from batchloom.dataplane.snapshot import Snapshot
from batchloom.tests.dataplane.helpers import (
    assert_same_plan,
    litter,
    read_json,
    rewrite_header,
    snapshot_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_number = itertools.count()

GAPPED = snapshot_of(30, 0, 1, 100, 69, first_ids=[5, 40, 40, 64, 200])


def classes_of(snapshot: Snapshot, ids: np.ndarray, weights: list[float]) -> list[WeightClass]:
    """Deal rows to classes in turn."""
    parts = [ids[k :: len(weights)] for k in range(len(weights))]
    return [
        WeightClass(Bitmap.of(snapshot.next_row_id, [part]), w)
        for part, w in zip(parts, weights, strict=True)
    ]


def write_recipe(
    folder: Path, snapshot: Snapshot, classes: Any, epochs: int = 1, seed: int = 7, **options: Any
) -> Manifest:
    weighted = any(c.weight != 1 for c in classes)
    semantics: Any = "importance" if weighted else None
    with ManifestWriter(folder, snapshot=snapshot, seed=seed, weight_semantics=semantics) as writer:
        for epoch in range(epochs):
            writer.write_recipe(epoch, classes, **options)
        return writer.commit()


def written_out(folder: Path, recipe: Manifest) -> Manifest:
    with ManifestWriter(
        folder,
        snapshot=recipe.snapshot,
        seed=recipe.seed,
        weight_semantics=recipe.weight_semantics,
    ) as writer:
        for e in recipe.epochs:
            record = recipe.records[e]
            with writer.epoch(e, eligible_rows=record.distinct_rows + record.dropped_rows):
                for k in range(len(recipe.epoch(e))):
                    m = recipe.epoch(e)[k]
                    writer.append(
                        BatchPlan(
                            np.array([0, len(m.rows)]),
                            m.rows,
                            m.weights,
                            np.array([m.step], np.uint64),
                            np.array([m.micro], np.uint16),
                        )
                    )
        return writer.commit()


def expected_plan(
    snapshot: Snapshot, classes: list[WeightClass], seed: int, epoch: int, size: int, per_step: int
) -> list[tuple[int, int, list[int], list[float]]]:
    """Read the definition as it stands: sort the union, permute its ranks, cut."""
    weight_of: dict[int, float] = {}
    for c in classes:
        ids = (
            np.concatenate([np.arange(f.first_row_id, f.stop_row_id) for f in snapshot.fragments])
            if c.rows is None
            else c.rows.ids()
        )
        weight_of |= dict.fromkeys(ids.tolist(), c.weight)
    union = sorted(weight_of)
    pi = Permutation(len(union), seed=seed, stream=Stream.ORDER, epoch=epoch)
    order = [union[int(r)] for r in pi[:]]
    cut = [order[k : k + size] for k in range(0, len(order), size)]
    return [
        (k // per_step, k % per_step, rows, [weight_of[r] for r in rows])
        for k, rows in enumerate(cut)
    ]


@pytest.mark.parametrize("weights", [[1.0], [0.5], [1.0, 2.5], [0.0, 1.0, 1.5, 3.25]])
@pytest.mark.parametrize("per_step", [1, 3])
def test_a_recipe_is_its_definition(tmp_path: Path, weights: list[float], per_step: int) -> None:
    ids = GAPPED.ids_at(np.flatnonzero(np.arange(200) % 3 != 1))
    classes = classes_of(GAPPED, ids, weights)
    manifest = write_recipe(
        tmp_path / "plan", GAPPED, classes, 2, batch_size=16, micro_per_step=per_step
    )
    for e in (0, 1):
        epoch = manifest.epoch(e)
        found = [
            (m.step, m.micro, m.rows.tolist(), [1.0] * 16 if m.weights is None else m.weights)
            for m in (epoch[k] for k in range(len(epoch)))
        ]
        wanted = expected_plan(GAPPED, classes, 7, e, 16, per_step)
        assert [f[:3] for f in found] == [w[:3] for w in wanted]
        if manifest.weight_semantics is not None:
            assert [list(f[3]) for f in found] == [w[3] for w in wanted]


def test_all_rows_need_no_bitmap(tmp_path: Path) -> None:
    manifest = write_recipe(tmp_path / "plan", GAPPED, [WeightClass(None)], batch_size=64)
    assert [p.name for p in (tmp_path / "plan").iterdir()] == ["manifest.json"]
    assert manifest.bitmaps == []
    assert manifest.bytes == 0
    assert manifest.records[0].coverage == "exactly_once"
    assert sorted(manifest.epoch(0).plan().rows.tolist()) == GAPPED.ids_at(np.arange(200)).tolist()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, 300),
    share=st.floats(0.05, 1.0),
    kinds=st.integers(1, 4),
    size=st.integers(1, 80),
    per_step=st.integers(1, 5),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_recipe_equals_its_copy(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    share: float,
    kinds: int,
    size: int,
    per_step: int,
    drop_last: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("recipe")
    snapshot = snapshot_of(rows // 3, rows - rows // 3)
    ids = np.arange(max(1, int(share * rows)), dtype=np.uint64)
    classes = classes_of(snapshot, ids, [0.25, 1.0, 1.5, 7.0][:kinds])
    if drop_last and len(ids) < size:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 4)
        patch.setattr(epoch_writer, "BLOCK_ROWS", 50)
        patch.setattr("batchloom.dataplane.recipe.BLOCK_MICRO_BATCHES", 4)
        patch.setattr("batchloom.dataplane.recipe.BLOCK_ROWS", 50)
        recipe = write_recipe(
            folder / "recipe",
            snapshot,
            classes,
            2,
            seed,
            batch_size=size,
            micro_per_step=per_step,
            drop_last=drop_last,
        )
        copy = written_out(folder / "copy", recipe)
        for e in (0, 1):
            mine, theirs = recipe.records[e].to_json(), copy.records[e].to_json()
            mine.pop("recipe")
            assert mine.pop("logical_digest") is None
            assert theirs.pop("logical_digest") == recipe.epoch(e).digest()
            assert mine == theirs
            blocks = zip(recipe.epoch(e).blocks(), copy.epoch(e).blocks(), strict=True)
            for one, other in blocks:
                assert_same_plan(one, other)
    assert recipe.identity["planned_fragments"] == copy.identity["planned_fragments"]
    assert recipe.row_frequencies().tolist() == copy.row_frequencies().tolist()
    same_access(recipe, copy, np.random.default_rng(seed % 2**32))


def same_access(recipe: Manifest, copy: Manifest, rng: np.random.Generator) -> None:
    """Compare every way to ask for a batch, in an order drawn at random."""
    for e in recipe.epochs:
        one, other = recipe.epoch(e), copy.epoch(e)
        for k in rng.integers(0, len(one), 20).tolist():
            end = int(rng.integers(k, len(one) + 1))
            assert_same_plan(one.plan(k, end), other.plan(k, end))
            assert one[k].rows.tolist() == other[k].rows.tolist()
            assert one.rows_before(end) == other.rows_before(end)
        for step in range(recipe.records[e].steps):
            assert one.find_step(step) == other.find_step(step)
            assert_same_plan(one.step(step), other.step(step))
        ids = rng.permutation(recipe.snapshot.next_row_id + 3)[:30].astype(np.uint64)
        for a, b in zip(one.find_rows(ids), other.find_rows(ids), strict=True):
            assert a.tolist() == b.tolist()
            assert a.dtype == b.dtype


def test_batches_are_read_only_like_those_of_a_file(tmp_path: Path) -> None:
    classes = classes_of(GAPPED, GAPPED.ids_at(np.arange(200)), [1.0, 2.0])
    batch = write_recipe(tmp_path / "plan", GAPPED, classes, batch_size=16).epoch(0)[2]
    with pytest.raises(ValueError, match="read-only"):
        batch.rows[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        batch.weights[0] = 1  # type: ignore[index]


def test_epochs_of_the_same_rows_share_one_file(tmp_path: Path) -> None:
    rows = Bitmap.of(GAPPED.next_row_id, [GAPPED.ids_at(np.arange(100))])
    again = Bitmap(rows.words.copy())
    with ManifestWriter(tmp_path / "plan", snapshot=GAPPED) as writer:
        for epoch, bitmap in enumerate((rows, rows, again)):
            writer.write_recipe(epoch, [WeightClass(bitmap)], batch_size=10)
        manifest = writer.commit()
    assert len(manifest.bitmaps) == 1
    assert len(list((tmp_path / "plan").iterdir())) == 2
    assert manifest.epoch(0).plan().rows.tolist() != manifest.epoch(1).plan().rows.tolist()


def test_recipes_and_parts_stand_in_one_manifest(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "plan", snapshot=GAPPED) as writer:
        writer.write_recipe(0, [WeightClass(None)], batch_size=50)
        with writer.epoch(1):
            writer.append(BatchPlan.cut(GAPPED.ids_at(np.arange(200)), 50))
        manifest = writer.commit()
    manifest.verify(deep=True)
    assert [len(manifest.epoch(e)) for e in (0, 1)] == [4, 4]
    assert [manifest.records[e].logical_digest is None for e in (0, 1)] == [True, False]


def test_same_recipe_same_id_and_the_same_target_twice(tmp_path: Path) -> None:
    classes = classes_of(GAPPED, GAPPED.ids_at(np.arange(150)), [1.0, 2.0])
    first = write_recipe(tmp_path / "a", GAPPED, classes, batch_size=10)
    again = write_recipe(tmp_path / "a", GAPPED, classes, batch_size=10)
    other = write_recipe(tmp_path / "b", GAPPED, classes, batch_size=10)
    assert first.manifest_id == again.manifest_id == other.manifest_id
    changed = write_recipe(tmp_path / "c", GAPPED, classes[:1], batch_size=10)
    assert changed.manifest_id != first.manifest_id
    assert litter(tmp_path) == []


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove", "swap"])
@pytest.mark.parametrize("verify", ["header", "all"])
def test_a_damaged_bitmap_is_never_read(tmp_path: Path, damage: str, verify: Any) -> None:
    ids = GAPPED.ids_at(np.arange(200))
    write_recipe(
        tmp_path / "other", GAPPED, [WeightClass(Bitmap.of(269, [ids[:50]]))], batch_size=9
    )
    rows = Bitmap.of(GAPPED.next_row_id, [ids[::2]])
    write_recipe(tmp_path / "plan", GAPPED, [WeightClass(rows)], batch_size=10)
    path = next((tmp_path / "plan").glob("bitmap-*"))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[9] ^= 4
        path.write_bytes(data)
    elif damage == "remove":
        path.unlink()
    elif damage == "swap":
        path.write_bytes(next((tmp_path / "other").glob("bitmap-*")).read_bytes())
    else:
        path.write_bytes(data[: 0 if damage == "empty" else len(data) // 2])
    with pytest.raises(ManifestCorruptError, match=path.name):
        Manifest.open(tmp_path / "plan", verify=verify).epoch(0)


def change_recipe(header: Any, **changes: Any) -> None:
    header["identity"]["epochs"][0]["recipe"] |= changes


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 99},
        {"classes": [{"bitmap": "0" * 64, "weight": 1.0}]},
        {"classes": [{"bitmap": "x", "weight": 1.0}]},
        {"classes": []},
        {"classes": None},
        {"batch_size": 0},
        {"permutation": "feistel9"},
        {"micro_per_step": "two"},
    ],
)
def test_a_header_that_makes_no_recipe_is_refused(tmp_path: Path, changes: Any) -> None:
    rows = Bitmap.of(GAPPED.next_row_id, [GAPPED.ids_at(np.arange(100))])
    write_recipe(tmp_path / "plan", GAPPED, [WeightClass(rows)], batch_size=10)
    rewrite_header(tmp_path / "plan", lambda h: change_recipe(h, **changes))
    with pytest.raises(ManifestError):
        Manifest.open(tmp_path / "plan").epoch(0)


def test_a_reader_that_knows_no_recipes_refuses_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path / "plan", GAPPED, [WeightClass(None)], batch_size=10)
    assert read_json(tmp_path / "plan" / "manifest.json")["identity"]["reader_features"] == [
        "recipe"
    ]
    monkeypatch.setattr("batchloom.dataplane.manifest_header.KNOWN_FEATURES", frozenset())
    with pytest.raises(ManifestVersionError, match="'recipe'"):
        Manifest.open(tmp_path / "plan")


def test_what_is_no_recipe_is_refused_when_it_is_written(tmp_path: Path) -> None:
    ids = GAPPED.ids_at(np.arange(40))
    rows = Bitmap.of(GAPPED.next_row_id, [ids])
    empty = Bitmap.of(GAPPED.next_row_id, [])

    def refused(classes: list[WeightClass], match: str, **options: Any) -> None:
        size = options.pop("batch_size", 10)
        with ManifestWriter(tmp_path / "plan", snapshot=GAPPED, **options) as writer:
            with pytest.raises(BatchloomError, match=match):
                writer.write_recipe(0, classes, batch_size=size)
            with pytest.raises(SelectionError, match="at least one epoch"):
                writer.commit()

    weighted = {"weight_semantics": "importance"}
    refused([WeightClass(rows), WeightClass(rows, 2.0)], "different rows", **weighted)
    refused([WeightClass(None), WeightClass(rows, 2.0)], "different rows", **weighted)
    refused([WeightClass(empty)], "no row was selected")
    refused([WeightClass(rows, 2.0)], "declared without")
    refused([WeightClass(rows, float("nan"))], "finite", **weighted)
    refused([WeightClass(rows, -1.0)], "finite", **weighted)
    refused([], "classes")
    refused([WeightClass(rows)], "sliced", unit="micro")
    refused([WeightClass(rows)], "at least 1 row", batch_size=0)
    foreign = Bitmap.of(GAPPED.next_row_id, [np.array([3], np.uint64)])
    refused([WeightClass(foreign)], "1 rows of the recipe are in no fragment")
    assert not (tmp_path / "plan").exists()
    assert litter(tmp_path) == []


# --- classes of weights ---------------------------------------------------------------------------


def test_rows_are_sorted_into_classes_of_equal_weight() -> None:
    ids = GAPPED.ids_at(np.arange(200))
    weights = np.array([1.0, 2.5, 0.1, 1.0])[np.arange(200) % 4].astype(np.float32)
    chunks = [(ids[a : a + 70], weights[a : a + 70]) for a in range(0, 200, 70)]
    found = weight_classes(GAPPED, chunks)
    assert found is not None
    assert [c.weight for c in found] == [float(np.float32(0.1)), 1.0, 2.5]
    for c in found:
        assert c.rows is not None
        assert c.rows.ids().tolist() == ids[weights == np.float32(c.weight)].tolist()


def test_more_than_four_weights_make_no_recipe() -> None:
    ids = np.arange(10, dtype=np.uint64)
    assert weight_classes(snapshot_of(10), [(ids, np.arange(10, dtype=np.float32) / 2)]) is None
    four = np.arange(10, dtype=np.float32) % 4
    assert weight_classes(snapshot_of(10), [(ids, four)]) is not None


# --- the inverse permutation and the bitmap's ranks -----------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 65_535, 65_536, 65_537, 10**6 + 3, 10**9, 2**32 + 1])
def test_the_inverse_of_a_permutation(n: int) -> None:
    order = Permutation(n, seed=3, epoch=5)
    places = np.unique(np.random.default_rng(n).integers(0, n, 2000)).astype(np.uint64)
    assert np.array_equal(order.inverse(order.at(places)), places)
    with pytest.raises(BatchloomError, match="no value"):
        order.inverse([n])


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 2000), max_size=400), st.integers(0, 2100), st.integers(0, 300))
def test_ranks_counts_and_membership_of_a_bitmap(
    members: set[int], start: int, length: int
) -> None:
    ids = np.array(sorted(members), dtype=np.uint64)
    bitmap = Bitmap.of(2001, [ids])
    assert bitmap.ranks(ids).tolist() == list(range(len(ids)))
    asked = np.arange(start, start + length, dtype=np.uint64)
    assert bitmap.contains(asked).tolist() == [int(i) in members for i in asked]
    stop = min(start + length, 2001)
    expected = sum(start <= m < stop for m in members)
    assert bitmap.count(min(start, stop), stop) == expected
