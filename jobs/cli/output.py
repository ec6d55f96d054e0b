"""What the verbs print: results on stdout, one-line errors on stderr, exit codes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

from ...dataplane.errors import BatchloomError

__all__ = [
    "fail",
    "human_bytes",
    "print_epochs",
    "print_json",
    "print_table",
    "progress_of",
    "reporting",
]

F = TypeVar("F", bound=Callable[..., Any])

_PIPE_WIDTH = 10_000


def reporting(verb: F) -> F:
    """End a verb with one line and the right exit code where it fails.

    Its docstring, which is its help, marks by a line with backslash and b what keeps its lines.
    """

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return verb(*args, **kwargs)
        except BatchloomError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            print("interrupted; nothing was committed", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output went away; say nothing more
            sys.exit(1)

    run.__doc__ = (verb.__doc__ or "").replace("\\b\n", "\b\n")
    return cast(F, run)


def fail(error: BatchloomError, *, as_json: bool) -> None:
    """Print an error and exit."""
    kind = type(error).__name__
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": str(error)}}), file=sys.stderr)
    else:
        print(f"batchloom: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def print_json(value: Any) -> None:
    """Print a result for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a small table; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    data = [[_cell(v) for v in row] for row in rows]
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(data) and all(_is_number(row[index]) for row in data)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in data:
        table.add_row(*row)
    # A pipe has no width: a line there is as long as its row, for the programs that read it.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _is_number(text: str) -> bool:
    return not text or text.replace(",", "").replace(".", "").lstrip("-").isdigit()


def human_bytes(count: float) -> str:
    """Return bytes in a unit that reads well."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def progress_of(mode: str, quiet: bool) -> Any:
    from ..progress import make_progress

    return make_progress("quiet" if quiet else "json" if mode == "json" else "auto")


def print_epochs(manifest: Any) -> None:
    print_table(
        ("epoch", "steps", "micro-batches", "rows", "coverage", "dropped"),
        [
            (r.epoch, r.steps, r.micro_batches, r.samples, r.coverage, r.dropped_rows)
            for r in manifest.records.values()
        ],
    )
