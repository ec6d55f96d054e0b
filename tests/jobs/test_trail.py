"""What a worker notes of its task, and what is read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane.dataset import open_dataset
from batchloom.jobs.scanning import count_columns
from batchloom.jobs.tasks import group_tasks, scan_task
from batchloom.jobs.trail import Trail, note_fragment, note_row, read_trail, run_noting


def look(task: Any, path: Path) -> Trail | None:
    """Return what the trail says in the middle of a task."""
    note_fragment(2, ["a", "b c"])
    note_row(65_536)
    return read_trail(path)


def test_a_trail_says_where_a_task_is_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    assert run_noting(str(path), look, None, path) == Trail(1, 2, 65_536, ("a", "b c"))
    assert not path.exists()
    assert read_trail(path) is None
    assert run_noting(None, look, None, path) is None
    assert run_noting(str(tmp_path / "no" / "folder"), look, None, path) is None


def test_a_task_that_fails_leaves_no_trail(tmp_path: Path) -> None:
    def fail(task: Any) -> None:
        note_fragment(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_noting(str(tmp_path / "trail"), fail, None)
    assert list(tmp_path.iterdir()) == []


def test_each_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    path.write_text('run\nread 1 ["a"]\n4\nrun\n')
    assert read_trail(path) == Trail(2)
    path.write_text('run\nread 1 ["a"]\n4\nrun\nread 0 []\n')
    assert read_trail(path) == Trail(2, 0)
    path.write_text('run\nread 3 ["a"]\n70\nrea')  # cut off, or written over
    assert read_trail(path) == Trail(1, 3, 70, ("a",))
    path.write_text("")
    assert read_trail(path) == Trail(0)


def test_scans_note_each_fragment_and_batch(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(small)
    (task,) = group_tasks(dataset.present())
    path = tmp_path / "trail"
    seen = []

    def step(task: Any) -> None:
        for part in scan_task(task, ["a", "x"], dataset.schema):
            trail = read_trail(path)
            assert trail is not None
            seen.append((trail.position, trail.row, part.fragment.label))
            assert trail.columns == ("a", "x")

    run_noting(str(path), step, task)
    assert seen == [(i, 0, r.label) for i, r in enumerate(task.refs)]
    assert len(count_columns(task, ["a"], dataset.schema)) == 1  # nothing is noted outside
