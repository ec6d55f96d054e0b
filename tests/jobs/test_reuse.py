"""A job that was killed and is run again takes over what was finished, and gives the same plan."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane.commit import hold
from batchloom.dataplane.errors import BatchloomError
from batchloom.dataplane.leftovers import leftovers
from batchloom.dataplane.manifest import Manifest
from batchloom.jobs import context, plan
from batchloom.jobs.progress import JsonProgress
from batchloom.jobs.work import Entry, WorkFolder, work_folder

SHUFFLE: dict[str, Any] = {
    "where": "a > -0.5", "split": "a=0.9,b=0.1:a", "key": "key", "stratify": "label",
    "balance": "label", "batch_size": 32, "epochs": 3, "workers": 0, "task_bytes": 1,
}  # fmt: skip
KMEANS: dict[str, Any] = {
    "columns": ["x"], "k": 4, "batch_size": 32, "where": "a > -0.5", "workers": 0, "task_bytes": 1,
}  # fmt: skip
TASKS = 15  # five files with rows, read three times

# Plans, and kills its process group when a number of lines are in the journal; with `torn`, in the
# middle of the next one.
_KILLED = """
import json, os, signal, sys
from batchloom.jobs import plan, work

method, data, out, options, key, count, torn = json.loads(sys.argv[1])
record, seen = work.WorkFolder.record, []

def recorded(folder, name, files, value):
    if torn and len(seen) == count:
        folder._journal.write(work.Entry(name, files, value).line()[:40])
        os.killpg(0, signal.SIGKILL)
    record(folder, name, files, value)
    if name.startswith("epoch") if key else name.isalnum() and name != "staging":
        seen.append(name)
    if not torn and len(seen) == count:
        os.killpg(0, signal.SIGKILL)

work.WorkFolder.record = recorded
if __name__ == "__main__":
    plan(method, data, out=out, **options)
"""


def killed(
    data: Path,
    out: Path,
    *,
    count: int,
    epochs: bool = False,
    torn: bool = False,
    method: str = "shuffle",
    **options: Any,
) -> None:
    """Plan in a process group that is killed after so many tasks, or epochs."""
    options = {**(KMEANS if method == "kmeans" else SHUFFLE), **options}
    arguments = json.dumps([method, str(data), str(out), options, epochs, count, torn])
    ran = subprocess.run(
        [sys.executable, "-c", _KILLED, arguments],
        start_new_session=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()
    assert not out.exists()
    assert kinds(out.parent) == ["staging", "work"]


def kinds(folder: Path) -> list[str]:
    """Kinds of what killed runs left."""
    return [found.kind for found in leftovers(folder, 0)]


@dataclass
class Again:
    """A second run in this process: its manifest, and what it did."""

    manifest: Manifest
    tasks: int
    told: list[dict[str, Any]] = field(repr=False)

    @property
    def notes(self) -> list[str]:
        return [t["note"] for t in self.told if "going on" in t.get("note", "")]

    @property
    def written(self) -> list[str]:
        return sorted({t["step"] for t in self.told if "writing" in t.get("step", "")})


@pytest.fixture
def again(small: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Again]:
    """Return a function that plans and counts the tasks that run."""
    ran: list[int] = []
    compute = context.compute_rows

    def counted(task: Any, *arguments: Any) -> Any:
        ran.append(task.index)
        return compute(task, *arguments)

    def run(out: Path, *, ignored_staging: bool = False, **options: Any) -> Again:
        ran.clear()
        lines = io.StringIO()
        method = options.pop("method", "shuffle")
        options = {**(KMEANS if method == "kmeans" else SHUFFLE), **options}
        made = plan(method, small, out=out, progress=JsonProgress(lines), **options)
        assert kinds(out.parent) in ([], ["staging"] if ignored_staging else [])
        return Again(made, len(ran), [json.loads(s) for s in lines.getvalue().splitlines()])

    monkeypatch.setattr(context, "compute_rows", counted)
    return run


def parts_of(manifest: Manifest) -> list[tuple[str, int]]:
    return sorted((p.name, p.stat().st_size) for p in Path(manifest.path).glob("part-*"))


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The plan of an undisturbed run."""
    return plan("shuffle", small, out=tmp_path_factory.mktemp("whole") / "plan", **SHUFFLE)


def assert_same(found: Manifest, whole: Manifest) -> None:
    assert found.manifest_id == whole.manifest_id
    assert parts_of(found) == parts_of(whole)
    assert found.provenance["reports"] == whole.provenance["reports"]


def test_an_undisturbed_run(tmp_path: Path, again: Callable[..., Again], whole: Manifest) -> None:
    first = again(tmp_path / "plan")
    assert (first.tasks, first.notes) == (TASKS, [])
    assert_same(first.manifest, whole)


# --- after a kill ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, TASKS])
def test_finished_tasks_do_not_run_again(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest, count: int
) -> None:
    out = tmp_path / "home" / "plan"
    killed(small, out, count=count)
    second = again(out)
    assert second.tasks == TASKS - count
    assert second.notes == [f"going on from an earlier run: {count} finished tasks, 0 of 3 epochs"]
    assert_same(second.manifest, whole)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_finished_epochs_are_not_written_again(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest, count: int
) -> None:
    out = tmp_path / "home" / "plan"
    killed(small, out, epochs=True, count=count)
    second = again(out)
    assert second.tasks == 0
    assert second.written == [f"writing epoch {e}" for e in range(count, 3)]
    assert second.notes == [
        f"going on from an earlier run: {TASKS} finished tasks, {count} of 3 epochs"
    ]
    assert_same(second.manifest, whole)
    Manifest.open(out, verify="all").verify()


def test_what_real_workers_finished_is_taken_over(
    small: Path, tmp_path: Path, again: Callable[..., Again]
) -> None:
    whole = again(tmp_path / "whole" / "plan", method="kmeans")
    out = tmp_path / "home" / "plan"
    killed(small, out, method="kmeans", count=8, workers=2)
    second = again(out, method="kmeans")
    assert second.tasks == whole.tasks - 8 == 10 - 8  # it reads the files twice
    assert_same(second.manifest, whole.manifest)


def test_a_job_may_be_killed_again_and_again(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest
) -> None:
    out = tmp_path / "home" / "plan"
    for _ in range(3):
        killed(small, out, count=4)
    killed(small, out, epochs=True, count=1)
    second = again(out)
    assert second.tasks == 0
    assert second.written == ["writing epoch 1", "writing epoch 2"]
    assert second.manifest.manifest_id == whole.manifest_id


def test_workers_and_memory_are_not_the_job_but_all_that_decides_is(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest
) -> None:
    out = tmp_path / "home" / "plan"
    killed(small, out, count=9)
    kept = tmp_path / "kept"
    shutil.copytree(out.parent, kept)
    changes = ({"seed": 1}, {"batch_size": 31}, {"epochs": 2}, {"where": "a > 0"})
    for change in changes:
        shutil.rmtree(out.parent)
        shutil.copytree(kept, out.parent)
        name = next(p.name for p in kept.iterdir() if ".work-" in p.name)
        made = plan("shuffle", small, out=out, **{**SHUFFLE, **change})
        assert made.manifest_id != whole.manifest_id
        assert (out.parent / name).exists()  # another job's; it is left for that job, or for gc
    shutil.rmtree(out.parent)
    shutil.copytree(kept, out.parent)
    second = again(out, memory="2GiB")
    assert second.tasks == TASKS - 9
    assert second.manifest.manifest_id == whole.manifest_id


# --- damage ---------------------------------------------------------------------------------------


def journal_of(folder: Path) -> Path:
    return next(folder.glob(".plan.work-*/journal"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def results_of(folder: Path) -> list[Path]:
    """Files of finished tasks that hold something."""
    found = [p for p in journal_of(folder).parent.iterdir() if p.name[:6].isdigit()]
    return sorted(p for p in found if p.stat().st_size)


def test_a_torn_line_is_no_line(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest
) -> None:
    out = tmp_path / "home" / "plan"
    killed(small, out, count=5, torn=True)
    assert not journal_of(out.parent).read_bytes().endswith(b"\n")
    killed(small, out, count=2)  # whose first line must not go on behind the torn one
    second = again(out)
    assert second.tasks == TASKS - 7
    assert second.manifest.manifest_id == whole.manifest_id


def test_a_damaged_result_is_made_again(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest
) -> None:
    out, kept = tmp_path / "home" / "plan", tmp_path / "kept"
    killed(small, out, count=12)
    shutil.copytree(out.parent, kept)
    for damage in ("flipped", "gone", "empty", "cut"):
        shutil.rmtree(out.parent)
        shutil.copytree(kept, out.parent)
        path = results_of(out.parent)[-1]
        if damage == "flipped":
            flip(path, 3)
        elif damage == "gone":
            path.unlink()
        else:
            os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
        second = again(out)
        assert second.tasks == TASKS - 12 + 1
        assert second.manifest.manifest_id == whole.manifest_id


def test_a_damaged_part_of_a_finished_epoch_is_made_again(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest
) -> None:
    out = tmp_path / "home" / "plan"
    killed(small, out, epochs=True, count=3)
    first = whole.parts[1].name  # of epoch 1
    flip(journal_of(out.parent).parent / first, 5000)
    second = again(out)
    assert second.written == ["writing epoch 1"]
    assert second.manifest.manifest_id == whole.manifest_id
    assert parts_of(second.manifest) == parts_of(whole)
    Manifest.open(out, verify="all").verify()


def test_a_damaged_journal_costs_work_and_nothing_else(
    small: Path, tmp_path: Path, again: Callable[..., Again], whole: Manifest
) -> None:
    out = tmp_path / "home" / "plan"
    killed(small, out, epochs=True, count=1)
    kept = tmp_path / "kept"
    shutil.copytree(out.parent, kept)
    size = journal_of(kept).stat().st_size
    for damage in [*range(0, size, size // 12), "nonsense", "empty"]:
        shutil.rmtree(out.parent)
        shutil.copytree(kept, out.parent)
        journal = journal_of(out.parent)
        if isinstance(damage, int):
            flip(journal, damage)
        else:
            journal.write_bytes(os.urandom(3000) if damage == "nonsense" else b"")
        second = again(out, ignored_staging=True)
        assert second.manifest.manifest_id == whole.manifest_id
        assert second.tasks <= TASKS if isinstance(damage, int) else second.tasks == TASKS
        assert parts_of(second.manifest) == parts_of(whole)


# --- orderly ends and other runs ------------------------------------------------------------------


def test_an_error_or_an_interrupt_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BatchloomError, match="Cluster .* more than a micro-batch"):
        plan("kmeans", small, out=tmp_path / "p", **{**KMEANS, "batches": "aligned"})
    assert list(tmp_path.iterdir()) == []

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkFolder, "record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        plan("shuffle", small, out=tmp_path / "p", **SHUFFLE)
    assert list(tmp_path.iterdir()) == []


def test_the_same_job_twice_at_once(small: Path, tmp_path: Path, whole: Manifest) -> None:
    """The second works in a folder of its own; both find their plan committed."""
    out = tmp_path / "home" / "plan"
    script = (
        "import json, sys, time\n"
        "from batchloom.jobs import plan\n"
        "data, out, options = json.loads(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(plan('shuffle', data, out=out, **options).manifest_id)\n"
    )
    arguments = json.dumps([str(small), str(out), {**SHUFFLE, "epochs": 40}])
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, "-c", script, arguments], **options) for _ in "abc"]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    seen: set[str] = set()
    while any(run.poll() is None for run in runs):
        if out.parent.exists():
            seen |= {p.name for p in out.parent.iterdir() if ".work-" in p.name}
        time.sleep(0.005)
    ids = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert ids == {Manifest.open(out).manifest_id}
    assert len(seen) >= 2
    assert [p.name for p in out.parent.iterdir()] == ["plan"]


def test_a_running_job_holds_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "plan"
    with work_folder(target, {"seed": 1}) as first:
        (path,) = tmp_path.glob(".plan.work-*")
        assert leftovers(tmp_path, 0) == []
        with hold(path) as mine:
            assert not mine
        with work_folder(target, {"seed": 1}) as second:
            assert second.path != first.path
        with work_folder(target, {"seed": 2}) as other:
            assert other.path not in (first.path, second.path)
        assert first.path == path
    assert list(tmp_path.iterdir()) == []


def test_files_that_nobody_recorded_go(tmp_path: Path) -> None:
    with work_folder(tmp_path / "plan", "job") as work:
        (work.path / "kept").write_bytes(b"abc")
        (work.path / "epoch-000001").mkdir()
        (work.path / "epoch-000001" / "half").write_bytes(b"ab")
        (work.path / "half").write_bytes(b"ab")
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        work.record("one", {"kept": (3, sha256)}, {"rows": 3})
        shutil.copytree(work.path, tmp_path / "copy")
    name = work.path.name
    (tmp_path / "copy").rename(tmp_path / name)
    with work_folder(tmp_path / "plan", "job") as later:
        assert later.taken == (Entry("one", {"kept": [3, sha256]}, {"rows": 3}),)
        files = {str(p.relative_to(later.path)) for p in later.path.rglob("*") if p.is_file()}
        assert files == {"kept", "journal"}


def test_what_only_an_epoch_needed_is_forgotten(tmp_path: Path) -> None:
    with work_folder(tmp_path / "plan", "job") as work:
        with work.epoch(3):
            path = work.new_file()
            path.write_bytes(b"abc")
            work.record("one", {work.relative(path): (3, "…")}, None)
            assert work.find("one") is not None
        assert work.find("one") is None
        assert not path.exists()
