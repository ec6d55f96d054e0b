"""Progress on stderr: a bar on a terminal, JSON lines, or nothing; and warnings.

Standard output carries only the result. A warning says that a plan is not quite what one may think:
rows were left out, keys were not found. It is told in all forms but the quiet one.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

__all__ = ["JsonProgress", "LogProgress", "Progress", "QuietProgress", "Step", "make_progress"]

ProgressMode = Literal["auto", "json", "quiet"]

_JSON_EVERY = 0.5  # seconds between lines of one step


class Step(Protocol):
    """One stretch of work with a known number of rows."""

    def advance(self, rows: int) -> None:
        """Say that so many more rows are done."""


class Progress(Protocol):
    """What a job tells while it runs."""

    def step(self, label: str, rows: int) -> Any:
        """Return a context manager of a `Step`."""

    def note(self, text: str) -> None:
        """Say one sentence that can be missed."""

    def warn(self, text: str) -> None:
        """Say one sentence that should not be missed."""


class QuietProgress:
    """Says nothing."""

    @contextmanager
    def step(self, label: str, rows: int) -> Iterator[QuietProgress]:
        yield self

    def advance(self, rows: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


class LogProgress(QuietProgress):
    """Says nothing but warnings, by the ``batchloom`` logger; where no bar can be drawn."""

    def warn(self, text: str) -> None:
        logging.getLogger("batchloom").warning("%s", text)


class JsonProgress:
    """Writes ``{"step", "rows", "done", "rows_per_second"}`` lines."""

    def __init__(self, file: Any = None) -> None:
        self._file = file or sys.stderr

    @contextmanager
    def step(self, label: str, rows: int) -> Iterator[_JsonStep]:
        step = _JsonStep(self, label, rows)
        yield step
        step.tell(force=True)

    def note(self, text: str) -> None:
        self.write({"note": text})

    def warn(self, text: str) -> None:
        self.write({"warning": text})

    def write(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")  # one write: a line is never torn
        self._file.flush()


class _JsonStep:
    def __init__(self, progress: JsonProgress, label: str, rows: int) -> None:
        self._progress, self._label, self._rows = progress, label, rows
        self._done, self._start, self._told = 0, time.monotonic(), 0.0

    def advance(self, rows: int) -> None:
        self._done += rows
        self.tell(force=False)

    def tell(self, *, force: bool) -> None:
        now = time.monotonic()
        if force or now - self._told > _JSON_EVERY:
            self._told = now
            rate = self._done / max(now - self._start, 1e-9)
            self._progress.write(
                {
                    "step": self._label,
                    "rows": self._rows,
                    "done": self._done,
                    "rows_per_second": round(rate),
                }
            )


class RichProgress:
    """A bar with rows, rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def step(self, label: str, rows: int) -> Iterator[_RichStep]:
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self._console, transient=True) as bar:
            yield _RichStep(bar, bar.add_task(label, total=rows, rate=""))

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, style="dim")

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", highlight=False, markup=False, style="yellow")


class _RichStep:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._done, self._start = 0, time.monotonic()

    def advance(self, rows: int) -> None:
        self._done += rows
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._task, advance=rows, rate=f"{rate:,.0f} rows/s")


def make_progress(mode: ProgressMode = "auto") -> Progress:
    """Return the progress of a mode; 'auto' is a bar where stderr is a terminal."""
    if mode == "json":
        return JsonProgress()
    if mode == "quiet":
        return QuietProgress()
    return RichProgress() if sys.stderr.isatty() else LogProgress()
