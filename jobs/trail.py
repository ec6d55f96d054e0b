"""Where a worker is in its task, noted in a small file, in case the worker dies.

A task's trail is a file in a folder that workers and driver share. It is there while the task runs
and holds lines of text: ``run`` for each time that the task was begun, ``read POSITION COLUMNS``
for each fragment that is opened, and a number for each batch: the row, counted from the fragment's
start, at which it begins. A worker that dies leaves it, and its last lines say what was being read.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Trail", "note_fragment", "note_row", "read_trail", "run_noting"]

R = TypeVar("R")

_here = threading.local()  # each thread of a worker runs a task of its own


@dataclass(frozen=True)
class Trail:
    """What a trail says.

    Attributes
    ----------
    runs : int
        How often the task was begun.
    position : int or None
        Which of the task's fragments the last run was reading; None before the first.
    row : int
        First row of the batch that was read or worked on, counted from the fragment's start.
    columns : tuple of str
        Columns that were read.
    """

    runs: int
    position: int | None = None
    row: int = 0
    columns: tuple[str, ...] = ()


def run_noting(path: str | None, function: Callable[..., R], task: Any, *args: Any) -> R:
    """Run a task, its trail kept at `path`; runs on workers."""
    with _noting(path):
        return function(task, *args)


@contextmanager
def _noting(path: str | None) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        _here.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:  # a folder that is full or gone is the task's to complain about
        yield
        return
    try:
        _note("run")
        yield
    finally:
        os.close(_here.file)
        _here.file = None
        with suppress(OSError):
            os.unlink(path)


def _note(text: str) -> None:
    file = getattr(_here, "file", None)
    if file is not None:
        with suppress(OSError):
            os.write(file, f"{text}\n".encode())


def note_fragment(position: int, columns: Sequence[str] = ()) -> None:
    """Say which of the task's fragments is opened now; nothing outside of a noted task."""
    _note(f"read {position} {json.dumps(list(columns))}")


def note_row(row: int) -> None:
    """Say at which row of the fragment the next batch begins."""
    _note(str(row))


def read_trail(path: Path) -> Trail | None:
    """Return what a trail says; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    last = max((i for i, line in enumerate(lines) if line == "run"), default=0)
    trail = Trail(lines.count("run"))
    with suppress(ValueError):  # a line that two runs wrote at once
        for line in lines[last + 1 :]:
            if line.startswith("read "):
                _, position, columns = line.split(" ", 2)
                trail = Trail(trail.runs, int(position), 0, tuple(json.loads(columns)))
            else:
                trail = replace(trail, row=int(line))
    return trail
