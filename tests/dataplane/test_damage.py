"""Every file of a manifest and of a dataset, damaged: refused by name, no wrong row delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane import Manifest, epoch_writer, open_dataset
from batchloom.jobs import plan, verify
from batchloom.tests.contracts.awkward import AWKWARD_ROWS
from batchloom.tests.contracts.damage import (
    KINDS,
    damages,
    manifest_of_all_files,
    read_all,
    refusal,
)

TRIES = 72


@pytest.fixture
def manifest(awkward_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 40)
    monkeypatch.setattr(epoch_writer, "PART_ROWS", 3000)
    made = manifest_of_all_files(tmp_path / "plan", awkward_data("ipc"), AWKWARD_ROWS)
    names = sorted(p.name.split("-")[0] for p in (tmp_path / "plan").iterdir())
    assert names == ["bitmap"] * 3 + ["manifest.json"] + ["part"] * 3
    return made


@pytest.mark.parametrize("check", ["read", "verify"])
def test_a_damaged_manifest_is_refused(manifest: Manifest, tmp_path: Path, check: str) -> None:
    seen, wrong = set(), []
    for damage, copy in damages(manifest.path, tmp_path / "copies", TRIES, seed=1):

        def read(copy: Path = copy) -> None:
            if check == "read":
                read_all(copy, manifest)
            else:
                verify(copy)

        seen.add(damage.kind)
        wrong.append(refusal(damage, read))
    assert [w for w in wrong if w] == []
    assert seen == set(KINDS)
    read_all(manifest.path, manifest)  # the original is whole


@pytest.mark.parametrize("format", ["parquet", "ipc"])
def test_damaged_data_is_found_by_a_deep_check(
    awkward_data: Any, tmp_path: Path, format: str
) -> None:
    data = awkward_data(format)
    plan("shuffle", data, out=tmp_path / "plan", batch_size=64, deep=True, workers=0)
    wrong = []
    empty = [f.path for f in open_dataset(data).snapshot.fragments if not f.rows]
    for damage, copy in damages(data, tmp_path / "copies", TRIES, seed=2, spare=empty):

        def read(copy: Path = copy) -> None:
            verify(tmp_path / "plan", copy, deep=True)

        wrong.append(refusal(damage, read))
    assert [w for w in wrong if w] == []
    assert verify(tmp_path / "plan", data, deep=True).contents == len(
        [f for f in open_dataset(data).snapshot.fragments if f.rows]
    )
