"""Jobs that are killed, and disks that lose what was not flushed.

A job runs as a process group of its own, and is killed at a moment drawn at random. With
`Run.lose_unflushed` the disk then forgets, as after a loss of power: of every file the bytes that
no fsync followed, and (drawn at random) the renames that no fsync of the directory followed.
Whatever is left must be nothing, or whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from batchloom.dataplane import Manifest

__all__ = ["Run", "problem_of", "run_job", "start"]

# Logs every fsync (file and state at that time) and rename of a process and its children.
_RECORDER = """
import json, os
log = os.open(os.environ["BATCHLOOM_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
fsync, rename = os.fsync, os.rename

def note(*what):
    os.write(log, (json.dumps(what) + "\\n").encode())

def recorded_fsync(handle):
    fsync(handle)
    state = os.fstat(handle)
    note("fsync", state.st_ino, state.st_size, state.st_mtime_ns)

def recorded_rename(a, b, **options):
    rename(a, b, **options)
    note("rename", os.fspath(a), os.fspath(b), os.stat(os.path.dirname(os.path.abspath(b))).st_ino)

os.fsync, os.rename = recorded_fsync, recorded_rename
from batchloom.jobs.cli import main
main()
"""


@dataclass
class Run:
    """A job that runs, or ran.

    Attributes
    ----------
    process : subprocess.Popen
        Leader of a process group of its own.
    log : Path
        What was flushed and renamed.
    """

    process: subprocess.Popen[str]
    log: Path
    began: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """SIGKILL the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def kill_a_worker(self, draw: random.Random) -> bool:
        """SIGKILL one Dask worker; False where there is none."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        workers = []
        for process in below:
            try:
                if "spawn_main" in " ".join(process.cmdline()):
                    workers.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        if not workers:
            return False
        try:
            os.kill(draw.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float = 120) -> tuple[int, str, str]:
        """Return (exit code, stdout, stderr)."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def lose_unflushed(self, folder: Path, draw: random.Random) -> None:
        """Take from a folder what a loss of power might take."""
        flushed: dict[int, tuple[int, int]] = {}
        loose: list[tuple[str, str]] = []  # renames that may be undone, newest last
        moved: dict[tuple[str, str], int] = {}
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            kind, *what = json.loads(line)
            if kind == "fsync":
                inode, size, modified = what
                flushed[inode] = size, modified
                loose = [r for r in loose if moved[r] != inode]
            else:
                source, target, parent = what
                loose.append((source, target))
                moved[source, target] = parent
        for source, target in reversed(loose):
            possible = os.path.lexists(target) and os.path.isdir(os.path.dirname(source))
            if draw.random() < 0.5 and possible and not os.path.lexists(source):
                os.rename(target, source)
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                state = path.stat()
                if flushed.get(state.st_ino) != (state.st_size, state.st_mtime_ns):
                    os.truncate(path, 0)


def start(arguments: Sequence[str | Path], log: Path) -> Run:
    """Start ``batchloom`` with these arguments."""
    process = subprocess.Popen(
        [sys.executable, "-c", _RECORDER, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "BATCHLOOM_TEST_LOG": str(log)},
    )
    return Run(process, log)


def run_job(arguments: Sequence[str | Path], log: Path) -> float:
    """Run to the end; return the seconds that it took."""
    run = start(arguments, log)
    code, _, err = run.wait()
    if code:
        raise RuntimeError(f"{arguments} ended with {code}: {err}")
    return time.monotonic() - run.began


def problem_of(target: Path, expected_id: str) -> str | None:
    """Say what is wrong with a target after a crash; None where it is absent or whole."""
    if not target.exists():
        return None
    try:
        found = Manifest.open(target, verify="all")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if found.manifest_id == expected_id else f"another id: {found.manifest_id}"
