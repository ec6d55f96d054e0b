"""What the benchmarks share: CPU seconds, interleaved repeats, child processes, one table.

Machines are shared and noisy, so what is compared is CPU seconds (user and system) of all the
processes that did the work, and a bar is a ratio to a reference or to a physical limit that runs
turn by turn with ours in the same process run. Where wall time cannot be avoided the load average
stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "Cost",
    "Finished",
    "PeakOfChildren",
    "Row",
    "best",
    "children_cpu",
    "evict",
    "interleaved",
    "load",
    "median",
    "measured",
    "missed",
    "peak_rss",
    "print_table",
    "run_benchmark",
    "run_fresh",
    "run_process",
    "run_steps",
    "say",
    "spread",
    "workspace",
]

Measured = Callable[[], Any]


# --- what something cost --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Seconds of one call.

    Attributes
    ----------
    own : float
        CPU seconds of this process, all its threads.
    children : float
        CPU seconds of the processes that this one started and that still run.
    wall : float
    value : object
        What the call returned.
    """

    own: float
    children: float
    wall: float
    value: Any = None

    @property
    def cpu(self) -> float:
        return self.own + self.children


def children_cpu() -> float:
    """Return the CPU seconds that all running descendants have used so far."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measured(function: Measured, *, children: bool = False) -> Cost:
    """Call a function and return what it cost.

    Parameters
    ----------
    function : callable
    children : bool
        Count running child processes too; none may end in between.
    """
    others = children_cpu() if children else 0.0
    own, wall = time.process_time(), time.perf_counter()
    value = function()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    others = children_cpu() - others if children else 0.0
    return Cost(own, others, wall, value)


def interleaved(
    repeats: int, *functions: Measured, children: bool = False, warm: int = 0
) -> list[list[Cost]]:
    """Measure functions turn by turn, in an order drawn anew each round.

    Parameters
    ----------
    repeats : int
        Rounds that count.
    functions : callable
    children : bool
        As in `measured`.
    warm : int
        Rounds before those, dropped; `best` needs none.

    Returns
    -------
    list of list of Cost
        Parallel to `functions`.
    """
    draw = random.Random(0)
    costs: list[list[Cost]] = [[] for _ in functions]
    for number in range(warm + repeats):
        turns = list(range(len(functions)))
        draw.shuffle(turns)
        for turn in turns:
            cost = measured(functions[turn], children=children)
            if number >= warm:
                costs[turn].append(cost)
    return costs


def best(costs: Sequence[Cost]) -> Cost:
    """Return the cheapest by CPU seconds: the least disturbed."""
    return min(costs, key=lambda c: c.cpu)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 1) -> str:
    """Return "low…high" of values in a unit."""
    return f"{min(values) / unit:.{digits}f}…{max(values) / unit:.{digits}f}"


# --- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A process that ended.

    Attributes
    ----------
    wall, cpu : float
        Seconds; CPU includes the descendants that it waited for.
    output : str
        What it printed.
    """

    wall: float
    cpu: float
    output: str


def run_process(arguments: Sequence[str | Path]) -> Finished:
    """Run a program to its end; RuntimeError with what it printed where it fails."""
    start = time.perf_counter()
    with subprocess.Popen(
        [str(a) for a in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        before = _waited_for()
        output, errors = process.communicate()
        cpu = _waited_for() - before
    wall = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode}:\n{output}\n{errors}")
    return Finished(wall, cpu, output)


def run_fresh(script: str, *arguments: object) -> Any:
    """Run a Python script in a fresh process that can import these helpers; return its JSON."""
    prelude = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
    done = run_process([sys.executable, "-c", prelude + script, *map(str, arguments)])
    return json.loads(done.output)


def _waited_for() -> float:
    """Return the CPU seconds of all child processes that ended and were waited for."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_rss() -> int:
    """Return this process's largest resident set so far, in bytes.

    The kernel's ``ru_maxrss`` of a fresh process starts at its parent's; Linux's ``VmHWM`` does
    not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


class PeakOfChildren:
    """The largest resident set of any child process while a block runs, in bytes; looked for."""

    def __enter__(self) -> PeakOfChildren:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.05):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    self.bytes = max(self.bytes, child.memory_info().rss)


def evict(folder: Path) -> bool:
    """Ask the system to drop a folder's files from its cache; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only clean pages are dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def load() -> str:
    """Return the load average of the last minute over the processors."""
    return f"load {os.getloadavg()[0]:.1f}/{os.cpu_count()}"


@contextmanager
def workspace() -> Iterator[Path]:
    """Give a temporary directory that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="batchloom-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    what : str
    ours, reference, value, bar : str
        As printed; `value` is what the bar is about, most often a ratio.
    ok : bool or None
        None: for information, no bar.
    """

    what: str
    ours: str
    reference: str
    value: str
    bar: str = ""
    ok: bool | None = None

    @property
    def result(self) -> str:
        return {None: "", True: "ok", False: "MISSED"}[self.ok]


_TITLES = ("what", "ours", "reference or limit", "value", "bar", "")


def print_table(rows: Sequence[Row]) -> None:
    """Print rows, columns aligned."""
    cells = [_TITLES] + [(r.what, r.ours, r.reference, r.value, r.bar, r.result) for r in rows]
    widths = [max(len(c[i]) for c in cells) for i in range(len(_TITLES))]
    for number, line in enumerate(cells):
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))


def missed(rows: Sequence[Row]) -> list[str]:
    """Return what missed its bar."""
    return [r.what for r in rows if r.ok is False]


def say(text: str) -> None:
    """Tell on stderr what is being measured."""
    print(text, file=sys.stderr, flush=True)


# --- the command line -----------------------------------------------------------------------------


def run_benchmark(title: str, run: Callable[..., Sequence[Row]], steps: Sequence[str] = ()) -> int:
    """Read the options, run, print the table; return the exit code.

    Parameters
    ----------
    title : str
        For ``--help``.
    run : callable
        (folder to write to, whether small sizes are wanted) → rows of the table; with `steps` also
        the names that were asked for.
    steps : sequence of str
        What ``--only`` may name; empty: there is no such option.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--quick", "--small", action="store_true", help="smaller sizes")
    if steps:
        help_ = "run this step alone; may be given again"
        parser.add_argument("--only", action="append", default=[], choices=steps, help=help_)
    options = parser.parse_args()
    with workspace() as folder:
        rows = run(folder, options.quick, *([options.only] if steps else []))
    print_table(rows)
    failed = missed(rows)
    print(f"\n{'missed: ' + ', '.join(failed) if failed else 'every bar is met'}; {load()}")
    return 1 if failed and options.check else 0


def run_steps(steps: Sequence[tuple[str, Measured]]) -> None:
    """Run named steps one after another; tell how long each took."""
    for label, step in steps:
        say(f"{label}: {measured(step).wall:.0f} s")
