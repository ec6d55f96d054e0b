"""Where peers that cannot share our environment run: a virtual environment each, made once.

``peers/NAME.txt`` is a requirements file with pinned versions; its environment is
``.bench/NAME`` beside the Makefile, made again when the file changes. A peer without such a file
runs in our own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from harness import say

__all__ = ["UnavailableError", "run_peer"]

ROOT = Path(__file__).parent
PEERS = ROOT / "peers"
CACHE = ROOT.parent / ".bench"


class UnavailableError(RuntimeError):
    """A peer that cannot be installed or run here; the reason in one line."""


def python_of(name: str) -> Path:
    """Return the interpreter that runs a peer; `UnavailableError` where it does not install."""
    wanted = PEERS / f"{name}.txt"
    if not wanted.exists():
        return Path(sys.executable)
    folder, stamp = CACHE / name, CACHE / name / "installed.txt"
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return python
    say(f"installing {name} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", folder])
    quiet = ("-q", "--disable-pip-version-check")
    _run([python, "-m", "pip", "install", *quiet, "-r", wanted])
    stamp.write_text(wanted.read_text())
    return python


def run_peer(name: str, *arguments: object, **variables: str) -> str:
    """Run a peer's file in its environment and return the last line that it printed.

    `variables` are added to the environment of the process.

    ``-P``: a peer's file is called like the package that it imports.
    """
    command = [python_of(name), "-P", PEERS / f"{name}.py", *map(str, arguments)]
    lines = _run(command, PYTHONPATH=str(ROOT), **variables).strip().splitlines()
    if not lines:
        raise UnavailableError(f"{name} printed nothing")
    return lines[-1]


def _run(command: list[object], **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)]
        reason = (errors or said or [f"exit code {done.returncode}"])[-1]
        raise UnavailableError(reason.strip()[:160])
    return done.stdout
