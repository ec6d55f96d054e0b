"""Counting an epoch again: what is whole passes, and every lie of a header is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import Manifest
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.epoch_count import EpochCounter, recount, recount_epoch
from batchloom.dataplane.errors import ManifestCorruptError
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.recipe import WeightClass
from batchloom.tests.contracts.plans import awkward_manifest
from batchloom.tests.dataplane.helpers import plan_of, rewrite_header, snapshot_of, write


@pytest.fixture(scope="module")
def whole(awkward_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return awkward_manifest(tmp_path_factory.mktemp("count") / "m", awkward_data("ipc")).path


def test_what_is_counted_is_what_was_written(whole: Path) -> None:
    manifest, told = Manifest.open(whole), []
    assert recount(manifest, told.append) == [manifest.records[e] for e in manifest.epochs]
    assert sum(told) == sum(r.samples for r in manifest.records.values())
    assert [r.coverage for r in manifest.records.values()] == [
        "subset",
        "with_replacement",
        "exactly_once",
    ]
    manifest.verify(deep=True)


def test_a_recipe_is_counted_from_what_it_computes(tmp_path: Path) -> None:
    snapshot = snapshot_of(900, 0, 600, 30)
    classes = [
        WeightClass(Bitmap.of(1530, [np.arange(0, 700, dtype=np.uint64)]), 0.5),
        WeightClass(Bitmap.of(1530, [np.arange(700, 1000, dtype=np.uint64)]), 2.0),
    ]
    with ManifestWriter(
        tmp_path / "m", snapshot=snapshot, weight_semantics="importance", seed=3
    ) as writer:
        for epoch in (0, 1):
            writer.write_recipe(epoch, classes, batch_size=64, micro_per_step=3, drop_last=True)
        manifest = writer.commit()
    for found in recount(manifest):
        digest = manifest.epoch(found.epoch).digest()
        assert found == replace(manifest.records[found.epoch], logical_digest=digest)
    record, fragments = recount_epoch(manifest, 1)
    assert (record.samples, fragments) == (960, [0, 2])


@pytest.mark.parametrize(
    "field",
    [
        "steps",
        "samples",
        "smallest_micro_batch",
        "last_step_micro_batches",
        "micro_divisor",
        "distinct_rows",
        "weight_sum",
    ],
)
def test_every_count_is_compared(whole: Path, tmp_path: Path, field: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "m"))

    def change(header: Any) -> None:
        header["identity"]["epochs"][1][field] += 1

    rewrite_header(folder, change)
    manifest = Manifest.open(folder, verify="all")
    expected, found = manifest.records[2], Manifest.open(whole).records[2]
    with pytest.raises(ManifestCorruptError) as caught:
        manifest.verify(deep=True)
    assert (
        f"epoch 2: expected {field.replace('_', ' ')} {getattr(expected, field)}, as the identity "
        f"says; found {getattr(found, field)} in its blocks"
    ) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coverage": "exactly_once"}, "expected coverage exactly_once, .* found subset"),
        ({"logical_digest": "0" * 64}, "expected logical digest 0000"),
        ({"dropped_rows": 7008}, "expected dropped rows 7008, .* found 7007 rows beside"),
        ({"dropped_rows": -1}, "expected dropped rows -1"),
    ],
)
def test_what_is_no_count_is_compared_too(
    whole: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    rewrite_header(folder, lambda header: header["identity"]["epochs"][0].update(change))
    with pytest.raises(ManifestCorruptError, match=f"epoch 0: {message}"):
        recount(Manifest.open(folder))


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        ([0, 2], "no row of fragment data:part-1.parquet, .* found some in its blocks"),
        ([0, 1, 2], "expected rows of fragment data:part-2.parquet, .* found none"),
        ("all", "expected rows of fragment data:part-2.parquet"),
    ],
)
def test_planned_fragments_are_compared(tmp_path: Path, planned: Any, message: str) -> None:
    plan = plan_of([2, 2], [0, 3, 4, 9])
    folder = write(tmp_path / "m", snapshot_of(3, 7, 5), {0: plan}).path
    rewrite_header(folder, lambda header: header["identity"].update(planned_fragments=planned))
    with pytest.raises(ManifestCorruptError, match=message):
        recount(Manifest.open(folder))


def forged(target: Path, plan: BatchPlan, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """Write a plan that no writer would take."""
    with monkeypatch.context() as patch:
        patch.setattr(BatchPlan, "check", lambda self, columns=(): None)
        patch.setattr(EpochCounter, "_check_steps", lambda self, p: p.micro == 0)
        return write(target, snapshot_of(10), {0: plan}, **options).path


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (plan_of([2], weights=[1, -1]), "Weights must be finite and not negative"),
        (plan_of([1, 1], steps=[(1, 0), (0, 0)], weights=[1, 1]), r"\(0, 0\) cannot follow"),
        (plan_of([1, 1], steps=[(0, 0), (0, 2)], weights=[1, 1]), r"\(0, 2\) cannot follow"),
    ],
)
def test_blocks_that_hold_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: BatchPlan, message: str
) -> None:
    folder = forged(tmp_path / "m", plan, monkeypatch, weight_semantics="importance")
    manifest = Manifest.open(folder, verify="all")
    with pytest.raises(
        ManifestCorruptError, match=f"epoch 0: its block 0 holds no plan: .*{message}"
    ):
        recount(manifest)


def test_rows_of_no_fragment(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", snapshot_of(10), {0: plan_of([10])}).path

    def change(header: Any) -> None:
        header["identity"]["snapshot"]["fragments"][0]["rows"] = 9

    rewrite_header(folder, change)
    with pytest.raises(ManifestCorruptError, match="holds no plan: Row 9 is in no fragment"):
        recount(Manifest.open(folder))
