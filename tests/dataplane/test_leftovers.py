"""What killed jobs leave: found by name, age and lock; nothing else is touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batchloom.dataplane.commit import hold, note_destination, staging
from batchloom.dataplane.deep_hashes import write_deep_hashes
from batchloom.dataplane.errors import StorageError
from batchloom.dataplane.leftovers import leftovers, leftovers_here, remove
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.targets import target_at
from batchloom.tests.dataplane.helpers import small_manifest

HEX = "0123456789ab"


def aged(path: Path, hours: float) -> Path:
    """Make a file or folder, and all in it, look as if written so long ago."""
    inside = [*path.rglob("*")] if path.is_dir() else []
    for place in (*inside, path):
        then = time.time() - hours * 3600
        os.utime(place, (then, then), follow_symlinks=False)
    return path


def write(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def names(root: Path, hours: float = 24) -> list[str]:
    return [str(Path(x.path).relative_to(root)) for x in leftovers(root, hours)]


def test_what_is_found_and_what_is_not(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "plans" / "m").path
    found = [
        write(tmp_path / "plans" / f".m.staging-{HEX}" / "part-000000.tmp", 100).parent,
        write(tmp_path / f".deep.plan.work-{HEX}ff" / "a" / "b.npy", 7).parent.parent,
        write(tmp_path / "plans" / f".snap.json.{HEX}.tmp"),
        write(manifest / f".deep-1.json.{HEX}.tmp"),
        write(manifest / f"part-{'0' * 64}.arrow"),
        write(manifest / f"bitmap-{'0' * 64}.bin"),
        write_deep_hashes(manifest, {"data:other.parquet": "f" * 64}),
    ]
    left_alone = [
        write(tmp_path / "data" / "part-0.parquet"),
        write(tmp_path / "data" / f"part-{'0' * 64}.arrow"),  # no manifest is beside it
        write(tmp_path / "data" / f"file.{HEX}.tmp"),
        write(tmp_path / "data" / ".hidden.tmp"),
        write(tmp_path / ".git" / f".x.{HEX}.tmp"),
        write(tmp_path / f"m.staging-{HEX}" / "x"),
        write(tmp_path / ".m.staging-short" / "x"),
        write(manifest / "notes.txt"),
        write(manifest / "part-mine.arrow"),
        write(manifest / f"deep-{'1' * 64}.json"),  # damaged: verify speaks of it
        write_deep_hashes(manifest, {"data:part-0.parquet": "f" * 64}),
    ]
    for path in found:
        aged(path, 30)
    assert names(tmp_path) == sorted(str(p.relative_to(tmp_path)) for p in found)
    by_path = {x.path: x for x in leftovers(tmp_path)}
    staged = by_path[str(found[0])]
    assert (staged.kind, staged.bytes) == ("staging", 100)
    assert staged.age_hours == pytest.approx(30, abs=0.1)
    assert {by_path[str(p)].kind for p in found[1:]} == {"work", "temporary", "unreferenced"}
    for leftover in by_path.values():
        assert remove(leftover)
        assert not remove(leftover)
    assert names(tmp_path, 0) == []
    assert not any(p.exists() for p in found)
    assert all(p.exists() for p in left_alone)
    Manifest.open(manifest, verify="all")


def test_only_what_is_old_enough(tmp_path: Path) -> None:
    folder = tmp_path / f".m.staging-{HEX}"
    write(folder / "deep" / "new")
    aged(folder, 100)
    assert names(tmp_path, 50) == [folder.name]
    os.utime(folder / "deep" / "new")  # something in it was written just now
    assert names(tmp_path, 1) == []
    assert names(tmp_path, 0) == [folder.name]


def test_links_are_neither_followed_nor_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    kept = write(elsewhere / f".x.staging-{HEX}" / "precious").parent
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(elsewhere)
    (root / f".y.staging-{HEX}").symlink_to(kept)
    (root / f".z.{HEX}.tmp").symlink_to(kept / "precious")
    inside = write(root / f".w.staging-{HEX}" / "mine").parent
    (inside / "link").symlink_to(elsewhere)
    assert names(root, 0) == [inside.name]
    assert remove(leftovers(root, 0)[0])
    assert (kept / "precious").exists()
    assert not inside.exists()


def test_what_this_process_holds_is_left_alone(tmp_path: Path) -> None:
    with staging(tmp_path / "m") as folder:
        write(folder / "x")
        aged(folder, 1000)
        assert names(tmp_path, 0) == []
    work = write(tmp_path / f".m.work-{HEX}" / "lock").parent
    aged(work, 1000)
    (before,) = leftovers(tmp_path, 24)
    with hold(work / "lock") as mine:
        assert mine
        assert names(tmp_path, 0) == []
        assert not remove(before)
    assert work.exists()
    assert remove(before)


JOB = """
import sys, time
from pathlib import Path
from batchloom.dataplane.commit import staging
with staging(Path(sys.argv[1])) as folder:
    (folder / "x").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_living_job_is_left_alone_and_a_killed_one_is_cleared_away(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(tmp_path / "m")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    try:
        aged(folder, 1000)
        assert names(tmp_path, 0) == []
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (leftover,) = leftovers(tmp_path, 24)
    assert (leftover.path, leftover.bytes) == (str(folder), 1000)
    assert remove(leftover)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_said_of_a_manifest_whose_header_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = small_manifest(tmp_path / "m").path
    (manifest / "manifest.json").write_text("{")
    assert names(tmp_path, 0) == []
    assert "Nothing beside it is looked at" in caplog.text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no folder at"):
        leftovers(tmp_path / "no")


def test_a_folder_of_another_user_counts_as_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / f".m.staging-{HEX}" / "x").parent
    aged(folder, 100)
    real: Callable[..., int] = os.open

    def refuse(path: object, *args: int, **options: int) -> int:
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert names(tmp_path, 0) == []


def test_what_is_here_of_targets_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def left(name: str, destination: str) -> str:
        folder = write(tmp_path / name / "part").parent
        note_destination(folder, destination)
        return str(aged(folder, 30))

    staged = left(f".p.staging-{HEX}", "s3://bucket/plans/p")
    work = left(f".p.work-{HEX}", "s3a://bucket/plans/p/")
    left(f".q.work-{HEX}", "s3://bucket/plans2/p")
    left(f".r.work-{HEX}", "")  # of a target in this folder
    left(f"p.work-{HEX}", "s3://bucket/plans/p")
    for uri in ("s3://bucket/plans/p", "s3://bucket/plans/", "s3a://bucket"):
        found = [x.path for x in leftovers_here(uri)]
        assert found[:2] == [staged, work]
        assert len(found) == 2 + (uri == "s3a://bucket")
    assert leftovers_here("s3://bucket/plan") == leftovers_here("gs://bucket/plans") == []
    assert leftovers_here("s3://bucket", older_than_hours=48) == []
    with hold(Path(work)):
        assert [x.path for x in leftovers_here("s3://bucket/plans")] == [staged]
    (found,) = leftovers_here("s3://bucket/plans2")
    assert remove(found)
    assert not Path(found.path).exists()


def test_a_staging_directory_says_where_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with target_at("memory://bucket/plans/p").scratch() as folder:
        assert folder.parent == tmp_path
        assert leftovers_here("memory://bucket", 0) == []  # this process holds it
        again = shutil.copytree(folder, folder.with_name(f".p.staging-{HEX}"))
        assert [x.path for x in leftovers_here("memory://bucket", 0)] == [str(again)]
