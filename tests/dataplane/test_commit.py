"""Committing: whole or not at all, whoever else writes, whenever the process dies."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from batchloom.dataplane.commit import publish, replace_file, staging
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.deep_hashes import find_deep_hashes
from batchloom.dataplane.errors import (
    BatchloomError,
    ManifestConflictError,
    ManifestError,
    StorageError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.series import Series
from batchloom.dataplane.targets import check_space
from batchloom.tests.dataplane.helpers import litter, plan_of, snapshot_of, write


def make(target: Path, rows: int = 6, **options: Any) -> Manifest:
    return write(target, snapshot_of(10), {0: plan_of([rows])}, **options)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- targets --------------------------------------------------------------------------------------


def test_the_same_id_again_is_success(tmp_path: Path) -> None:
    first = make(tmp_path / "m")
    before, inode = bytes_of(tmp_path / "m"), (tmp_path / "m").stat().st_ino
    second = make(tmp_path / "m")
    assert first.manifest_id == second.manifest_id
    assert (bytes_of(tmp_path / "m"), (tmp_path / "m").stat().st_ino) == (before, inode)
    assert litter(tmp_path) == []


def test_another_id_is_a_conflict_and_the_old_one_stays(tmp_path: Path) -> None:
    first = make(tmp_path / "m")
    before = bytes_of(tmp_path / "m")
    with pytest.raises(ManifestConflictError) as caught:
        make(tmp_path / "m", seed=1)
    other = make(tmp_path / "other", seed=1)
    assert f"expected id {other.manifest_id}, found {first.manifest_id}" in str(caught.value)
    assert bytes_of(tmp_path / "m") == before
    assert litter(tmp_path) == []


def test_a_damaged_manifest_in_the_way_is_reported(tmp_path: Path) -> None:
    make(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        make(tmp_path / "m")
    assert (tmp_path / "m" / "manifest.json").read_bytes() == b"{}"
    assert litter(tmp_path) == []


def test_foreign_targets_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ManifestConflictError, match="is a file; choose another target"):
        ManifestWriter(tmp_path / "file", snapshot=snapshot_of(1))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    with pytest.raises(ManifestConflictError, match="holds other files and no manifest"):
        ManifestWriter(tmp_path / "folder", snapshot=snapshot_of(1))
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    assert litter(tmp_path) == []


@pytest.mark.parametrize("taken_by", ["file", "folder"])
def test_a_target_that_is_taken_meanwhile(tmp_path: Path, taken_by: str) -> None:
    target = tmp_path / "m"
    with ManifestWriter(target, snapshot=snapshot_of(5)) as writer:
        with writer.epoch(0):
            writer.append(plan_of([5]))
        if taken_by == "file":
            target.write_text("mine")
        else:
            target.mkdir()
            (target / "thesis.tex").write_text("mine")
        with pytest.raises(ManifestConflictError):
            writer.commit()
    mine = target if taken_by == "file" else target / "thesis.tex"
    assert mine.read_text() == "mine"
    assert litter(tmp_path) == []


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty").verify()
    make(tmp_path / "a" / "b" / "c").verify()
    assert litter(tmp_path) == litter(tmp_path / "a" / "b") == []


def test_a_link_is_followed(tmp_path: Path) -> None:
    """What it points to may be empty, or not there yet; the link stays a link."""
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    for name, place in (("one", "empty"), ("two", "fresh")):
        (tmp_path / name).symlink_to(tmp_path / "disk" / place)
        made = make(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert Manifest.open(tmp_path / "disk" / place).manifest_id == made.manifest_id
        assert make(tmp_path / name).manifest_id == made.manifest_id
    assert litter(tmp_path) == litter(tmp_path / "disk") == []


def test_a_relative_target_and_one_with_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ManifestWriter("plan/", snapshot=snapshot_of(5)) as writer:
        with writer.epoch(0):
            writer.append(plan_of([5]))
        assert writer.commit().path == Path("plan")
    assert Manifest.open("plan").epochs == (0,)


def test_targets_that_cannot_be_made_say_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Preparing the target failed: .*Nothing was committed"):
        ManifestWriter(tmp_path / "file" / "m", snapshot=snapshot_of(1))
    with pytest.raises(StorageError, match="failed: File name too long"):
        ManifestWriter(tmp_path / ("x" * 300), snapshot=snapshot_of(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied.*may write to"):
            ManifestWriter(tmp_path / "m", snapshot=snapshot_of(1))
    finally:
        tmp_path.chmod(0o700)


def test_check_space(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(StorageError, match=r"needs about 1,152,921,504,606,846,976 bytes"):
        check_space(tmp_path / "not" / "there", 1 << 60)


# --- what fails leaves nothing --------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["epoch", "between", "after"])
def test_an_exception_leaves_nothing(
    tmp_path: Path, error: type[BaseException], where: str
) -> None:
    def write_half() -> None:
        with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(9000)) as writer:
            with writer.epoch(0):
                writer.append(plan_of([1] * 5000))
                if where == "epoch":
                    raise error
            if where == "between":
                raise error
            with writer.epoch(1):
                writer.append(plan_of([5]))
            raise error

    with pytest.raises(error):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with (
        ManifestWriter(tmp_path / "m", snapshot=snapshot_of(5)) as writer,
        writer.epoch(0),
    ):
        writer.append(plan_of([5]))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_at_any_byte(tmp_path: Path) -> None:
    """A child under a limit on the size of files; each failure is one sentence, and no litter."""
    script = """
import json, resource, sys
from pathlib import Path
import numpy as np
from batchloom.dataplane.errors import StorageError
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write

folder = Path(sys.argv[1])
plan, snapshot = plan_of([10] * 30000), snapshot_of(300000)
size = max(p.bytes for p in write(folder / "whole", snapshot, {0: plan}).parts)
out = []
for limit in [0, 1, 8, 1000, 8192, 8193, 100_000, size // 2, size - 300, size - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write(folder / "m", snapshot, {0: plan})
        out.append("written")
    except StorageError as error:
        out.append(str(error))
    out.append(sorted(p.name for p in folder.iterdir()))
print(json.dumps(out))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    out = json.loads(done.stdout)
    assert len(out) == 20
    for message, names in zip(out[::2], out[1::2], strict=True):
        assert message.startswith("Writing part 0 of the manifest failed: File too large")
        assert "Nothing was committed; free some space" in message
        assert names == ["whole"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "may write to"), (errno.EIO, "another")],
)
def test_a_flush_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=f"failed: {os.strerror(code)}.*{advice}"):
        make(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_cannot_go_on_after_a_write_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchloom.dataplane.manifest_part import PartWriter

    def fail(self: Any, plan: Any) -> None:
        raise StorageError("the disk is full")

    with ManifestWriter(tmp_path / "m", snapshot=snapshot_of(9000)) as writer:
        epoch = writer.epoch(0)
        epoch.__enter__()
        with monkeypatch.context() as patch:
            patch.setattr(PartWriter, "write", fail)
            with pytest.raises(StorageError, match="the disk is full"):
                writer.append(plan_of([1] * 5000))
        with pytest.raises(StorageError, match="an earlier write of it failed"):
            writer.append(plan_of([1], steps=[(5000, 0)]))
        with pytest.raises(StorageError, match="an earlier write of it failed"):
            epoch.__exit__(None, None, None)
        with pytest.raises(BatchloomError):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


# --- who else writes ------------------------------------------------------------------------------


def race(writers: int, write_one: Callable[[int], Manifest]) -> list[Manifest | BaseException]:
    """Let writers commit at the same moment."""
    barrier = Barrier(writers)

    def run(number: int) -> Manifest | BaseException:
        barrier.wait()
        try:
            return write_one(number)
        except ManifestConflictError as error:
            return error

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(run, range(writers)))


def test_threads_of_one_content_all_succeed(tmp_path: Path) -> None:
    for round_ in range(5):
        target = tmp_path / f"m{round_}"
        results = race(8, lambda _, target=target: make(target))  # type: ignore[misc]
        assert len({r.manifest_id for r in results if isinstance(r, Manifest)}) == 1
        assert all(isinstance(r, Manifest) for r in results)
        Manifest.open(target, verify="all")
    assert litter(tmp_path) == []


def test_threads_of_several_contents_have_one_winner(tmp_path: Path) -> None:
    for round_ in range(5):
        target = tmp_path / f"m{round_}"
        results = race(8, lambda n, target=target: make(target, seed=n % 4))  # type: ignore[misc]
        winner = Manifest.open(target, verify="all")
        for number, result in enumerate(results):
            if number % 4 == winner.seed:
                assert isinstance(result, Manifest)
                assert result.manifest_id == winner.manifest_id
            else:
                assert isinstance(result, ManifestConflictError)
    assert litter(tmp_path) == []


def test_processes_race(tmp_path: Path) -> None:
    """Four processes, two of each content: one content wins, its twin succeeds too."""
    script = """
import sys, time
from pathlib import Path
from batchloom.dataplane.errors import ManifestConflictError
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for round_ in range(10):
    try:
        write(folder / f"m{round_}", snapshot_of(10), {0: plan_of([10])}, seed=seed)
        print("ok")
    except ManifestConflictError:
        print("conflict")
"""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in (0, 0, 1, 1)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    results = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        results.append(child.communicate(timeout=60)[0].split())
        assert child.returncode == 0
    for round_ in range(10):
        winner = Manifest.open(tmp_path / f"m{round_}", verify="all").seed
        expected = ["ok" if seed == winner else "conflict" for seed in (0, 0, 1, 1)]
        assert [r[round_] for r in results] == expected
    assert litter(tmp_path) == []


# --- kill -9 --------------------------------------------------------------------------------------

KILLED = """
import json, os, signal, sys
from pathlib import Path
from batchloom.dataplane import epoch_writer, manifest_part
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write

epoch_writer.BLOCK_MICRO_BATCHES, epoch_writer.PART_ROWS = 50, 1500
folder = Path(sys.argv[1])
moments, last = 0, None

def counted(function):
    '''Count a moment before and after a call; die at the one that was drawn.'''
    def call(*args, **kwargs):
        moment()
        try:
            return function(*args, **kwargs)
        finally:
            moment()
    return call

def moment():
    global moments
    moments += 1
    if moments == last:
        os.kill(os.getpid(), signal.SIGKILL)

manifest_part.PartWriter.write = counted(manifest_part.PartWriter.write)
os.fsync, Path.rename, Path.mkdir = map(counted, (os.fsync, Path.rename, Path.mkdir))

def run(target, die_at):
    '''Write in a child that dies at a moment; return whether it was killed.'''
    global moments, last
    child = os.fork()
    if child == 0:
        moments, last = 0, die_at
        plans = {e: [plan_of([7] * 300), plan_of([7] * 40, steps=[(300 + k, 0) for k in range(40)])]
                 for e in (0, 2)}
        write(target, snapshot_of(2100), plans, seed=1)
        (folder / "moments").write_text(str(moments))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

run(folder / "undisturbed", None)
total = int((folder / "moments").read_text())
(folder / "moments").unlink()
import random
drawn = sorted({*random.Random(0).sample(range(1, total - 8), 10), *range(total - 8, total + 1)})
out = {}
for die_at in drawn:
    (folder / f"run{die_at}").mkdir()
    out[die_at] = run(folder / f"run{die_at}" / "m", die_at)
print(json.dumps({"total": total, "killed": out}))
"""


def test_a_killed_writer_leaves_the_target_absent_or_whole(tmp_path: Path) -> None:
    """SIGKILL at random moments of a write, and at each of the last ones around the rename."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=True
    )
    out = json.loads(done.stdout)
    assert len(out["killed"]) == 19
    assert all(out["killed"].values()), "every child died"
    undisturbed = Manifest.open(tmp_path / "undisturbed", verify="all")
    absent = whole = 0
    for moment in out["killed"]:
        folder = tmp_path / f"run{moment}"
        if (folder / "m").exists():
            found = Manifest.open(folder / "m", verify="all")
            assert found.manifest_id == undisturbed.manifest_id
            whole += 1
        else:
            with pytest.raises(ManifestError, match="There is no manifest at"):
                Manifest.open(folder / "m")
            absent += 1
        assert [n for n in litter(folder) if not n.startswith(".m.staging-")] == []
    # The rename is one moment: before it there is nothing, after it everything.
    assert absent >= 10
    assert whole > 0


def test_a_rerun_after_a_kill_gives_the_same_id(tmp_path: Path) -> None:
    """Litter of a dead writer is in nobody's way: not in a rerun's, a series', a dataset's."""
    series = tmp_path / "series"
    make(series / "epochs-000000-000001")
    dead = series / ".epochs-000001-000002.staging-0123456789ab"
    dead.mkdir()
    (dead / "part-000000.tmp").write_bytes(b"half")
    (dead / "manifest.json").write_bytes(b"{")
    assert Series.open(series).ranges == [(0, 1)]
    path, parent = Series(series).next_member(1, 2)
    snapshot, plan = snapshot_of(10), plan_of([3])
    first = write(path, snapshot, {1: plan}, parent=parent)
    assert (
        first.manifest_id == write(tmp_path / "m", snapshot, {1: plan}, parent=parent).manifest_id
    )
    assert Series.open(series, verify="all").ranges == [(0, 1), (1, 2)]
    with pytest.raises(BatchloomError, match=r"no Parquet or Arrow file in .*epochs-000001-000002"):
        open_dataset(dead.parent / "epochs-000001-000002" / "*.parquet")
    assert dead.exists()


# --- the pieces -----------------------------------------------------------------------------------


def test_staging_is_hidden_beside_the_target_and_goes(tmp_path: Path) -> None:
    with staging(tmp_path / "deep" / "m") as folder:
        assert folder.parent == tmp_path / "deep"
        assert folder.name.startswith(".m.staging-")
        with staging(tmp_path / "deep" / "m") as other:
            assert other != folder
    assert list((tmp_path / "deep").iterdir()) == []


def test_publish_takes_only_what_is_free(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    assert publish(tmp_path / "a", tmp_path / "new")
    assert publish(tmp_path / "b", tmp_path / "empty")
    assert not publish(tmp_path / "c", tmp_path / "new")
    assert not publish(tmp_path / "c", tmp_path / "file")
    assert [(tmp_path / n / "x").read_text() for n in ("new", "empty", "c")] == ["a", "b", "c"]
    with pytest.raises(StorageError, match="Committing failed: No such file"):
        publish(tmp_path / "c", tmp_path / "not" / "there")


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshot.json"
    replace_file(path, b"one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        replace_file(path, b"three")
    assert bytes_of(tmp_path) == {"snapshot.json": b"two"}


def test_deep_hashes_come_with_the_manifest_or_later(tmp_path: Path) -> None:
    hashes = {"data:part-0.parquet": "a" * 64}
    make(tmp_path / "one", deep_hashes=hashes)
    assert find_deep_hashes(tmp_path / "one") == hashes
    make(tmp_path / "two")
    assert find_deep_hashes(tmp_path / "two") is None
    make(tmp_path / "two", deep_hashes=hashes)
    assert find_deep_hashes(tmp_path / "two") == hashes
    Manifest.open(tmp_path / "two", verify="all")
