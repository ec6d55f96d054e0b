"""Recipe or parts: when which is written, what is refused, and that both are the same plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import JobSpecError, ManifestError
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.plan import Selection
from batchloom.jobs import JobSpec, forms, plan, run
from batchloom.jobs.diffing import diff
from batchloom.jobs.estimate import estimate
from batchloom.jobs.job_file import resolve_stages
from batchloom.jobs.materializing import materialize
from batchloom.jobs.methods import METHODS, register
from batchloom.jobs.planning import make_spec, run_job
from batchloom.jobs.stages import SelectStage
from batchloom.tests.dataplane.helpers import assert_same_plan, litter
from batchloom.tests.jobs.conftest import ROWS


def planned(small: Path, out: Path, **options: Any) -> Manifest:
    settings = {"batch_size": 32, "seed": 5, "epochs": (0, 2), "workers": 0}
    return plan("shuffle", small, out=out, **{**settings, **options})


def same_plan(a: Manifest, b: Manifest) -> None:
    assert a.epochs == b.epochs
    for e in a.epochs:
        assert_same_plan(a.epoch(e).plan(), b.epoch(e).plan())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "label in [1, 2, 4]"},
        {"drop_last": True},
        {"micro_per_step": 3},
        {"split": "train=0.7,val=0.3:train", "key": "key"},
        {"where": "label == 2", "batch_size": 100},
    ],
)
def test_both_forms_are_the_same_plan(small: Path, tmp_path: Path, options: Any) -> None:
    recipe = planned(small, tmp_path / "recipe", form="recipe", **options)
    parts = planned(small, tmp_path / "parts", form="explicit", **options)
    assert recipe.parts == []
    assert recipe.bytes < parts.bytes
    same_plan(recipe, parts)
    copy = materialize(recipe.path, out=tmp_path / "copy")
    same_plan(copy, parts)
    assert [copy.records[e] for e in (0, 1)] == [parts.records[e] for e in (0, 1)]
    assert copy.identity["materialized_from"] == recipe.manifest_id
    assert len({m.manifest_id for m in (recipe, parts, copy)}) == 3
    for manifest in (recipe, copy):
        manifest.verify(deep=True)


def test_auto_is_a_recipe_above_a_gigabyte(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forms.RECIPE_ABOVE == 10**9
    assert planned(small, tmp_path / "a").parts
    written_out = forms.explicit_bytes(ROWS, make(small, tmp_path / "x"))
    monkeypatch.setattr(forms, "RECIPE_ABOVE", written_out)
    assert planned(small, tmp_path / "b").parts
    monkeypatch.setattr(forms, "RECIPE_ABOVE", written_out - 1)
    assert not planned(small, tmp_path / "c").parts
    # A billion rows, no file of which is there: the bytes that a plan of them takes.
    monkeypatch.undo()
    spec = make(small, tmp_path / "x", epochs=(0, 10))
    stages = resolve_stages(spec)
    assert forms.manifest_bytes(10**7, spec, stages) > 8e8
    assert forms.manifest_bytes(10**9, spec, stages) < 1.3e9  # the bound: new rows every epoch
    assert forms.explicit_bytes(10**9, spec) > 8e10


def make(small: Path, out: Path, method: str = "shuffle", **options: Any) -> Any:
    settings = {"batch_size": 32, "seed": 5, "epochs": (0, 2), "workers": 0}
    return make_spec(
        method, dataset=str(small), out=str(out), selects={}, options={**settings, **options}
    )


def test_diff_looks_into_recipes(small: Path, tmp_path: Path) -> None:
    options = {"form": "recipe", "where": "label < 4"}
    recipe = planned(small, tmp_path / "a", **options)
    copy = materialize(recipe.path, out=tmp_path / "copy")
    found = diff(recipe, copy)
    assert not found.same
    assert found.epochs == ()
    assert found.identity["materialized_from"] == (None, recipe.manifest_id)
    other = diff(recipe, planned(small, tmp_path / "b", seed=6, **options))
    assert [(e.epoch, e.first_step, e.rows_only_in_a) for e in other.epochs] == [
        (0, 0, 0),
        (1, 0, 0),
    ]
    wider = diff(recipe, planned(small, tmp_path / "c", form="recipe"))
    assert [e.rows_only_in_b for e in wider.epochs] == [ROWS - recipe.records[0].samples] * 2


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("shuffle", {"stratify": "label"}, "'stratify'"),
        ("shuffle", {"mode": "block"}, "mode is not full"),
        ("kmeans", {"columns": "x", "k": 3}, "'within' is no plain shuffle"),
    ],
)
def test_what_no_recipe_stands_for(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: Any,
    reason: str,
) -> None:
    options = {"batch_size": 32, "workers": 0, **options}
    with pytest.raises(JobSpecError, match=f"No recipe stands for this plan: .*{reason}"):
        plan(method, small, out=tmp_path / "plan", form="recipe", **options)
    assert litter(tmp_path) == []
    monkeypatch.setattr(forms, "RECIPE_ABOVE", 0)
    assert plan(method, small, out=tmp_path / "plan", **options).parts


def test_balance_is_measured_though_nothing_is_written(small: Path, tmp_path: Path) -> None:
    recipe = planned(small, tmp_path / "a", form="recipe", balance="label")
    parts = planned(small, tmp_path / "b", form="explicit", balance="label")
    told = [m.provenance["reports"]["balance"] for m in (recipe, parts)]
    assert told[0] == told[1] != {}


def test_the_estimate_knows_the_form(small: Path, tmp_path: Path) -> None:
    recipe = estimate(make(small, tmp_path / "x", form="recipe"))
    parts = estimate(make(small, tmp_path / "x"))
    assert recipe.bytes < parts.bytes


def test_only_recipes_are_materialized(small: Path, tmp_path: Path) -> None:
    planned(small, tmp_path / "parts")
    planned(small, tmp_path / "series", form="recipe", series=True)
    with pytest.raises(ManifestError, match="no recipe"):
        materialize(tmp_path / "parts", out=tmp_path / "copy")
    with pytest.raises(ManifestError, match="is a series"):
        materialize(tmp_path / "series", out=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_form_enters_a_job_file(small: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f"dataset = {json.dumps(str(small))}\nout = {json.dumps(str(tmp_path / 'plan'))}\n"
        'form = "recipe"\nbatch_size = 32\nworkers = 0\n'
    )
    assert run(job).records[0].recipe is not None


def test_weighted_selections_are_classes(small: Path, tmp_path: Path) -> None:
    """Up to four weights make a recipe; a fifth does not."""

    class Weigh(SelectStage):
        method = "weigh-for-test"
        summary = "weights by rank"
        weight_semantics = "importance"
        kinds = 4

        def parameters(self) -> dict[str, Any]:
            return {}

        def select(self, job: Any, state: Any, epoch: int) -> Selection:
            ranks = np.arange(len(state.rows), dtype=np.uint64)
            return Selection(ranks, (ranks % np.uint64(self.kinds)).astype(np.float32) + 0.5)

    register(Weigh)
    try:

        def made(out: str, form: str) -> Manifest:
            return run_job(
                JobSpec(
                    dataset=str(small),
                    out=str(tmp_path / out),
                    stages=[{"method": "weigh-for-test"}],
                    batch_size=32,
                    form=form,
                    workers=0,
                )
            )

        recipe = made("recipe", "recipe")
        assert recipe.records[0].recipe is not None
        assert len(recipe.records[0].recipe.classes) == 4
        same_plan(recipe, made("parts", "explicit"))
        Weigh.kinds = 5
        with pytest.raises(JobSpecError, match="more than 4 different weights"):
            made("other", "recipe")
    finally:
        del METHODS["weigh-for-test"]
