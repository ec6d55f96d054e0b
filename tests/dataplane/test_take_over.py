"""Epochs taken over from another manifest: the same bytes, or refused."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import Manifest, SideColumn
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.errors import ManifestCorruptError, SelectionError, StorageError
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.recipe import WeightClass
from batchloom.tests.contracts.plans import EPOCHS, awkward_manifest, lists_of
from batchloom.tests.dataplane.helpers import SIDE, litter, plan_of, snapshot_of, write


@pytest.fixture
def parent(awkward_data: Callable[[str], Path], tmp_path: Path) -> Manifest:
    return awkward_manifest(tmp_path / "parent", awkward_data("ipc"))


def taken(target: Path, parent: Manifest, epochs: Any = EPOCHS, **options: Any) -> Manifest:
    given = {
        "snapshot": parent.snapshot,
        "weight_semantics": "importance",
        "side": SIDE,
        "seed": 3,
        **options,
    }
    with ManifestWriter(target, **given) as writer:
        for epoch in epochs:
            writer.take_over(parent, epoch)
        return writer.commit()


def test_taking_all_epochs_over_gives_the_same_id_and_the_same_files(
    parent: Manifest, tmp_path: Path
) -> None:
    child = taken(tmp_path / "child", parent)
    assert child.manifest_id == parent.manifest_id
    assert child.parts == parent.parts
    for part in parent.parts:
        one, other = parent.path / part.name, child.path / part.name
        assert one.stat().st_ino == other.stat().st_ino
    child.verify(deep=True)
    shutil.rmtree(parent.path)
    assert lists_of(Manifest.open(child.path))[2]


def test_some_epochs_and_their_fragments(parent: Manifest, tmp_path: Path) -> None:
    rows = plan_of([2], [4000, 4001], weights=[1, 1], side={})
    with ManifestWriter(
        tmp_path / "two", snapshot=parent.snapshot, weight_semantics="importance"
    ) as writer:
        with writer.epoch(1):
            writer.append(rows)
        with writer.epoch(4):
            writer.append(plan_of([1], [0], weights=[1]))
        two = writer.commit()
    with ManifestWriter(
        tmp_path / "one", snapshot=parent.snapshot, weight_semantics="importance"
    ) as writer:
        writer.take_over(two, 1)
        one = writer.commit()
    assert one.epochs == (1,)
    assert (one.planned_fragments(), two.planned_fragments()) == ([3], [0, 3])


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_without_links_the_parts_are_copied(
    parent: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    child = taken(tmp_path / "child", parent)
    assert child.manifest_id == parent.manifest_id
    part = parent.parts[0].name
    assert (child.path / part).stat().st_ino != (parent.path / part).stat().st_ino
    Manifest.open(child.path).verify(deep=True)


def test_a_copy_that_goes_wrong_is_found(
    parent: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "")

    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:-8])

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(StorageError, match="went wrong: expected SHA-256 .*, found"):
        taken(tmp_path / "child", parent)
    assert not (tmp_path / "child").exists()
    assert litter(tmp_path) == []


def test_a_damaged_epoch_is_not_taken_over(parent: Manifest, tmp_path: Path) -> None:
    part = next(p for p in parent.parts if p.epoch == 2)
    file, block = parent.path / part.name, part.blocks[-1]
    data = bytearray(file.read_bytes())
    data[block.offset + block.length // 2] ^= 1
    file.write_bytes(data)
    damaged = Manifest.open(parent.path)
    with pytest.raises(ManifestCorruptError, match=part.name):
        taken(tmp_path / "child", damaged)
    assert not (tmp_path / "child").exists()
    assert taken(tmp_path / "rest", damaged, [0]).epochs == (0,)


@pytest.mark.parametrize(
    "options",
    [
        {"snapshot": snapshot_of(10_007)},
        {"side": [*SIDE, SideColumn("more", "batch", "int8")]},
        {"weight_semantics": "cluster"},
    ],
)
def test_epochs_that_cannot_stand_there_are_refused(
    parent: Manifest, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(SelectionError, match="Epoch 0 of .* cannot be taken over"):
        taken(tmp_path / "child", parent, [0], **options)


def test_epochs_come_in_order(parent: Manifest, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="0 came after 3"):
        taken(tmp_path / "child", parent, [3, 0])


def test_recipes_are_written_again(tmp_path: Path) -> None:
    snapshot = snapshot_of(900, 600)
    chosen = WeightClass(Bitmap.of(1500, [np.arange(0, 1500, 2, dtype=np.uint64)]))
    with ManifestWriter(tmp_path / "parent", snapshot=snapshot, seed=3) as writer:
        for epoch in (0, 1):
            writer.write_recipe(epoch, [chosen], batch_size=64, drop_last=epoch == 1)
        parent = writer.commit()
    plain = {"weight_semantics": None, "side": ()}
    child = taken(tmp_path / "child", parent, (0, 1), **plain)
    assert child.manifest_id == parent.manifest_id
    assert child.bitmaps == parent.bitmaps
    assert sorted(p.name for p in child.path.iterdir()) == sorted(
        p.name for p in parent.path.iterdir()
    )
    with pytest.raises(SelectionError, match="another seed"):
        taken(tmp_path / "other", parent, (0,), seed=4, **plain)


def test_epochs_alike_share_a_part(tmp_path: Path) -> None:
    parent = write(tmp_path / "m", snapshot_of(10), {0: plan_of([10]), 1: plan_of([10])}, seed=3)
    child = taken(tmp_path / "n", parent, (0, 1), weight_semantics=None, side=())
    assert child.manifest_id == parent.manifest_id
