"""Loaders over edited and re-addressed plans: a parent's state goes on, up to the first change."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import Manifest
from batchloom.dataplane.errors import ResumeMismatchError
from batchloom.jobs import edit, plan, rebind
from batchloom.samplers import ManifestBatchSampler, ManifestLoader
from batchloom.tests.contracts.batches import (
    assert_resumes_everywhere,
    fingerprints,
    planned_by_step,
    rows_by_step,
)
from batchloom.tests.contracts.plans import awkward_manifest
from batchloom.tests.jobs.conftest import small_table, write_small


@pytest.fixture
def parent(data: Path, tmp_path: Path) -> Manifest:
    return awkward_manifest(tmp_path / "parent", data)


def loader(manifest: Any, data: Path, **options: Any) -> ManifestLoader:
    return ManifestLoader(manifest, data, columns=["row"], prefetch=0, on_uneven="pad", **options)


def states(manifest: Any, data: Path) -> list[dict[str, Any]]:
    """Return the state before the first batch and after every step."""
    running = loader(manifest, data)
    found = [running.state_dict()]
    for _ in running:
        if running.state_dict() != found[-1]:
            found.append(running.state_dict())
    return found


def position(state: dict[str, Any]) -> tuple[int, int]:
    return state["epoch"], state["next_step"]


@pytest.mark.parametrize("method", ["skip_steps", "drop"])
def test_every_state_of_the_parent(
    parent: Manifest, data: Path, tmp_path: Path, method: str
) -> None:
    (tmp_path / "ids").write_text(f"{int(parent.epoch(2).step(30).rows[0])}\n")
    options: dict[str, Any] = {
        "skip_steps": {"epoch": 2, "skip_steps": (30, 33)},
        "drop": {"epoch": 2, "drop": tmp_path / "ids"},
    }[method]
    child = edit(parent, out=tmp_path / "child", **options)
    change = tuple(child.identity["stages"][-1]["first_change"].values())
    assert change[0] == 2
    whole = list(loader(child, data))
    of_child = {position(s): s for s in states(child, data)}
    accepted = refused = 0
    for state in states(parent, data):
        resumed = loader(child, data)
        if position(state) > change:
            refused += 1
            with pytest.raises(
                ResumeMismatchError, match=r"with changes from step \d+ of epoch 2 on"
            ):
                resumed.load_state_dict(state)
            continue
        accepted += 1
        resumed.load_state_dict(state)
        if position(state) in of_child:
            assert resumed.state_dict() == of_child[position(state)]
        assert resumed.state_dict()["samples_seen"] == state["samples_seen"]
        rest = [b for b in whole if (b.epoch, b.step) >= position(state)]
        if state["next_step"] in (0, 15, 30) or accepted % 40 == 0:
            assert fingerprints(resumed) == fingerprints(rest)
    assert accepted > 10
    assert refused > 10


def test_the_states_around_the_first_change(parent: Manifest, data: Path, tmp_path: Path) -> None:
    child = edit(parent, out=tmp_path / "child", epoch=0, skip_steps=(10, 12))
    before = {position(s): s for s in states(parent, data)}
    resumed = loader(child, data)
    resumed.load_state_dict(before[0, 10])
    assert next(iter(resumed)).step == 12
    with pytest.raises(ResumeMismatchError, match="stands at step 11 of epoch 0 .* seen steps"):
        resumed.load_state_dict(before[0, 11])
    with pytest.raises(ResumeMismatchError, match="stands at step 0 of epoch 2"):
        resumed.load_state_dict({**before[0, 10], "epoch": 2, "next_step": 0, "samples_seen": 0})
    with pytest.raises(ResumeMismatchError, match="rows before step 10"):
        resumed.load_state_dict({**before[0, 10], "samples_seen": 1})


def test_the_child_is_a_plan_like_any_other(parent: Manifest, data: Path, tmp_path: Path) -> None:
    child = edit(parent, out=tmp_path / "child", epoch=0, skip_steps=(5, 9))
    assert rows_by_step(loader(child, data)) == planned_by_step(child)
    assert rows_by_step(
        itertools.chain(*(loader(child, data, rank=r, world_size=2) for r in range(2)))
    ) == planned_by_step(child)
    with pytest.warns(UserWarning, match="has weights"):
        sampler = ManifestBatchSampler(child, epochs=[0])
    assert sampler.state_after(9)["next_step"] == 10


def test_a_plan_with_a_gap_resumes_everywhere(data: Path, tmp_path: Path) -> None:
    made = plan("shuffle", data, out=tmp_path / "p", batch_size=512, micro_per_step=3, workers=0)
    child = edit(made, out=tmp_path / "child", epoch=0, skip_steps=(2, 4))
    assert_resumes_everywhere(lambda: loader(child, data))


def test_a_grandparents_states(parent: Manifest, data: Path, tmp_path: Path) -> None:
    child = edit(parent, out=tmp_path / "a", epoch=2, skip_steps=(30, 33))
    grandchild = edit(child, out=tmp_path / "b", epoch=2, skip_steps=(40, 41))
    of_parent = {position(s): s for s in states(parent, data)}
    of_child = {position(s): s for s in states(child, data)}
    resumed = loader(grandchild, data)
    resumed.load_state_dict(of_parent[2, 30])
    assert resumed.state_dict()["manifest_id"] == grandchild.manifest_id
    resumed.load_state_dict(of_child[2, 40])
    with pytest.raises(ResumeMismatchError, match="from step 30 of epoch 2"):
        resumed.load_state_dict(of_parent[2, 31])
    with pytest.raises(ResumeMismatchError, match="from step 40 of epoch 2"):
        resumed.load_state_dict(of_child[2, 42])
    with pytest.raises(ResumeMismatchError, match="belongs to another plan"):
        loader(parent, data).load_state_dict(of_child[2, 30])  # a child's is not its parent's


def test_a_recipes_states_fit_the_edited_plan(data: Path, tmp_path: Path) -> None:
    from batchloom.jobs.materializing import materialize

    recipe = plan("shuffle", data, out=tmp_path / "r", batch_size=512, epochs=2, form="recipe",
                  workers=0)  # fmt: skip
    copy = materialize(recipe.path, out=tmp_path / "copy")
    for name, made in (("of-recipe", recipe), ("of-copy", copy)):
        child = edit(made, out=tmp_path / name, epoch=1, skip_steps=(3, 5))
        for source in (recipe, copy):
            state = next(s for s in states(source, data) if position(s) == (1, 3))
            resumed = loader(child, data)
            resumed.load_state_dict(state)
            assert [b.step for b in resumed][:2] == [5, 6]


def test_a_rebound_plan_goes_on_from_any_state(tmp_path: Path) -> None:
    old = write_small(tmp_path / "old", (100, 50))
    new = tmp_path / "new"
    new.mkdir()
    pq.write_table(small_table(0, 150).take(list(range(149, -1, -1))), new / "all.parquet")
    made = plan("shuffle", old, out=tmp_path / "p", batch_size=16, epochs=2, workers=0)
    child = rebind(made, old, new, key="key", out=tmp_path / "c", workers=0)
    expected = [b["row"].tolist() for b in loader(made, old)]
    for state in states(made, old):
        resumed = loader(child, new)
        resumed.load_state_dict(state)
        done = 10 * state["epoch"] + state["next_step"]
        assert [b["row"].tolist() for b in resumed] == expected[done:]
