"""A loader cannot tell a recipe from parts: the same batches, states and ranks."""

import numpy as np
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.errors import ManifestCorruptError
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.recipe import WeightClass
from batchloom.jobs.materializing import materialize
from batchloom.samplers import ManifestBatchSampler, ManifestLoader
from batchloom.tests.contracts.batches import (
    drain,
    fingerprints,
    flat,
    json_round_trip,
    rows_by_step,
)


@pytest.fixture
def recipe(data, tmp_path):
    """Two epochs of two thirds of the rows, with two weights, four micro-batches a step."""
    snapshot = open_dataset(data).snapshot
    ids = snapshot.ids_at(np.flatnonzero(np.arange(snapshot.rows) % 3 != 1))
    classes = [
        WeightClass(Bitmap.of(snapshot.next_row_id, [ids[k::2]]), w)
        for k, w in enumerate((1.0, 2.5))
    ]
    with ManifestWriter(
        tmp_path / "recipe", snapshot=snapshot, seed=3, weight_semantics="importance"
    ) as writer:
        for epoch in (0, 1):
            writer.write_recipe(epoch, classes, batch_size=100, micro_per_step=4)
        writer.commit()
    return tmp_path / "recipe"


@pytest.fixture
def copy(recipe, tmp_path):
    materialize(recipe, out=tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("prefetch", [0, 2])
def test_same_batches(recipe, copy, data, prefetch):
    def made(plan):
        return fingerprints(ManifestLoader(plan, data, columns=["row", "x"], prefetch=prefetch))

    assert made(recipe) == made(copy)
    assert len(set(made(recipe))) == len(made(recipe)) == 134


@pytest.mark.parametrize("world", [2, 3, 4])
def test_same_shares(recipe, copy, data, world):
    def made(plan):
        loaders = [
            ManifestLoader(plan, data, columns=["row"], rank=r, world_size=world)
            for r in range(world)
        ]
        return [drain(loader) for loader in loaders]

    one, other = made(recipe), made(copy)
    assert [fingerprints(b) for b in one] == [fingerprints(b) for b in other]
    alone = ManifestLoader(recipe, data, columns=["row"])
    assert rows_by_step(flat(one)) == rows_by_step(alone)


def test_a_run_changes_from_one_form_to_the_other_at_any_step(recipe, copy, data):
    def make(plan):
        return ManifestLoader(plan, data, columns=["row"], prefetch=1)

    expected = fingerprints(make(recipe))
    for index in range(0, 134, 9):
        first, second = (recipe, copy) if index % 2 else (copy, recipe)
        loader, seen = make(first), []
        for batch in loader:
            seen.append(batch)
            if len(seen) > index:
                break
        state = json_round_trip(loader.state_dict())
        resumed = make(second)
        resumed.load_state_dict(state)
        rest = fingerprints(resumed)
        assert fingerprints(seen)[: len(expected) - len(rest)] + rest == expected
        assert state["samples_seen"] == 400 * state["next_step"]


def test_the_batch_sampler_reads_recipes(recipe, copy, data):
    with pytest.warns(UserWarning, match="has weights"):
        one, other = ([list(b) for b in ManifestBatchSampler(plan)] for plan in (recipe, copy))
    assert one == other
    assert len(one) == 134


def test_a_damaged_bitmap_delivers_no_row(recipe, data):
    path = sorted(recipe.glob("bitmap-*"))[1]
    raw = bytearray(path.read_bytes())
    raw[17] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ManifestCorruptError, match=path.name):
        next(iter(ManifestLoader(recipe, data)))
