from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane.errors import ParameterError, StorageError
from batchloom.jobs import gc


def staged(folder: Path, name: str, hours: float) -> Path:
    place = folder / f".{name}.staging-0123456789ab"
    place.mkdir(parents=True)
    (place / "x").write_bytes(b"x" * 100)
    then = time.time() - hours * 3600
    for path in (place / "x", place):
        os.utime(path, (then, then))
    return place


def test_it_lists_by_default_and_removes_when_asked(tmp_path: Path) -> None:
    old, new = staged(tmp_path, "old", 30), staged(tmp_path / "deep", "new", 2)
    found = gc(tmp_path)
    assert [x.path for x in found.leftovers] == [str(old)]
    assert (found.bytes, found.deleted) == (100, False)
    assert old.exists()
    json.dumps(found.to_json())
    found = gc(tmp_path, delete=True, older_than="90m")
    assert {x.path for x in found.leftovers} == {str(old), str(new)}
    assert (found.bytes, found.deleted) == (200, True)
    assert not old.exists()
    assert not new.exists()
    assert gc(tmp_path, older_than=0).leftovers == ()


@pytest.mark.parametrize(
    ("older_than", "hours"),
    [("0", 0), ("90m", 1.5), ("24h", 24), ("7d", 168), ("3600s", 1), (2, 2), (0.5, 0.5)],
)
def test_lengths_of_time(tmp_path: Path, older_than: Any, hours: float) -> None:
    staged(tmp_path, "older", hours + 0.2)
    if hours > 0.2:
        staged(tmp_path, "newer", hours - 0.2)
    found = [Path(x.path).name[:6] for x in gc(tmp_path, older_than=older_than).leftovers]
    assert found == [".older"]


@pytest.mark.parametrize("older_than", ["", "x", "-1h", "1w", "1h30m", "nan"])
def test_lengths_that_are_none(tmp_path: Path, older_than: str) -> None:
    with pytest.raises(ParameterError, match=r"length of time, such as 30m, 24h or 7d\. Got"):
        gc(tmp_path, older_than=older_than)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no folder at"):
        gc(tmp_path / "no")
