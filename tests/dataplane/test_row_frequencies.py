"""How often each row is planned, counted again from plain lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batchloom.dataplane.errors import ManifestCorruptError, ManifestError
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.recipe import WeightClass
from batchloom.tests.contracts.awkward import AWKWARD_ROWS
from batchloom.tests.contracts.plans import EPOCHS, awkward_manifest, awkward_plan
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of

GAPPED = snapshot_of(30, 0, 1, 100, 69, first_ids=[5, 40, 40, 64, 200])


def test_every_epoch_and_repeats(tmp_path: Path, awkward_data) -> None:
    manifest = awkward_manifest(tmp_path / "plan", awkward_data())
    each = {e: np.bincount(awkward_plan(e).rows, minlength=AWKWARD_ROWS) for e in EPOCHS}
    assert each[2].max() > 1
    counts = manifest.row_frequencies()
    assert counts.dtype == np.uint32
    assert counts.tolist() == sum(each.values()).tolist()
    for epochs in ([2], [0, 3], [2, 2], []):
        expected = sum((each[e] for e in epochs), np.zeros(AWKWARD_ROWS, int))
        assert manifest.row_frequencies(epochs).tolist() == expected.tolist()
    with pytest.raises(ManifestError, match="holds no epoch 1; it holds 0, 2, 3"):
        manifest.row_frequencies([1])


def test_rows_are_counted_by_position(tmp_path: Path) -> None:
    """Ids have gaps; a table of the dataset has none."""
    ids = np.array([5, 40, 268, 40, 34, 64], np.uint64)
    with ManifestWriter(tmp_path / "plan", snapshot=GAPPED) as writer:
        with writer.epoch(0):
            writer.append(plan_of([4, 2], ids))
        writer.write_recipe(1, [WeightClass(None)], batch_size=64)
        writer.write_recipe(2, [WeightClass(None)], batch_size=64, drop_last=True)
        manifest = writer.commit()
    expected = np.zeros(200, int)
    np.add.at(expected, [0, 30, 199, 30, 29, 31], 1)
    assert manifest.row_frequencies([0]).tolist() == expected.tolist()
    assert manifest.row_frequencies([1]).tolist() == [1] * 200
    dropped = manifest.row_frequencies([2])
    assert dropped.sum() == 192
    planned = GAPPED.positions(manifest.epoch(2).plan().rows)
    assert np.flatnonzero(dropped).tolist() == sorted(planned.tolist())


def test_damaged_block_is_not_counted(tmp_path: Path) -> None:
    with ManifestWriter(tmp_path / "plan", snapshot=snapshot_of(100)) as writer:
        with writer.epoch(0):
            writer.append(plan_of([50, 50], np.arange(100)))
        manifest = writer.commit()
    part = next((tmp_path / "plan").glob("part-*"))
    block = manifest.parts[0].blocks[0]
    data = bytearray(part.read_bytes())
    data[block.offset + block.length // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(ManifestCorruptError, match="block 0"):
        type(manifest).open(tmp_path / "plan").row_frequencies()
