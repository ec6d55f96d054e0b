"""Random batches from a warm page cache: ours, the ceiling and the peers.

Each case is a fresh process (`peers.protocol`), all cases in an order drawn anew each round. What
is compared is rows a second of the clock, the best round of each, so that threads and worker
processes count for what they are worth; rows a CPU second, workers included, stand beside it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from batchloom.jobs import plan
from environments import UnavailableError
from harness import say
from loader_inputs import LoaderBench, count, last_line, pack, table_of, write_ipc

__all__ = ["random_batches"]

BATCH, CHUNKS = 256, 62


@dataclass(frozen=True)
class Case:
    """One loader: its file in ``peers/``, and the variant of it.

    Attributes
    ----------
    what : str
    peer, variant : str
    bar : float
        How many times as fast the packed table must be; 0: no bar.
    """

    what: str
    peer: str
    variant: str
    bar: float = 0.0


CEILING = Case("numpy fancy index (g)", "ceiling", "index")
COPY = Case("one memcpy of the same bytes", "ceiling", "memcpy")
PACKED = Case("ManifestLoader, packed table", "ours", "packed")
EVEN = Case("ManifestLoader, even IPC", "ours", "even")
UNEVEN = Case(f"ManifestLoader, {CHUNKS} uneven chunks", "ours", "uneven")
REUSED = Case("  the same, reuse_buffers=True", "ours", "packed+reuse_buffers")
PEERS = (
    Case("torch DataLoader, default collate", "pytorch", "default", 20),
    Case("torch DataLoader, __getitems__", "pytorch", "getitems", 3),
    Case("Hugging Face with_format('torch')", "huggingface", "torch", 40),
    Case("Lance take", "lance", "take", 40),
    Case("mosaicml-streaming", "mosaicml", "0", 200),
    Case("mosaicml-streaming, 2 workers", "mosaicml", "2", 200),
    Case("litdata", "litdata", "0", 200),
    Case("litdata, 2 workers", "litdata", "2", 200),
)


@dataclass
class Measured:
    """What the rounds of one case gave: rows a CPU second, and a second of the clock."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    version: str = ""
    failed: str = ""

    @property
    def rate(self) -> float:
        return max(self.cpu, default=0.0)

    @property
    def clock(self) -> float:
        return max(self.wall, default=0.0)

    def __str__(self) -> str:
        return f"{count(self.clock)} rows/s, {count(self.rate)} rows/CPU s"

    def over(self, other: Measured) -> tuple[float, str]:
        """Return how many times as fast as another; and as text, with the ratio a CPU second."""
        if not other.clock:
            return 0.0, ""
        ratio = self.clock / other.clock
        return ratio, f"{ratio:.3g} x, CPU {self.rate / other.rate:.3g} x"


def random_batches(bench: LoaderBench) -> None:
    """Measure all cases and add their rows."""
    ours = write_ours(bench.folder / "ours", bench.source)
    failed = _prepare(bench)
    cases = [CEILING, COPY, PACKED, REUSED, EVEN, UNEVEN, *PEERS]
    results = {case: Measured(failed=failed.get(case.peer, "")) for case in cases}
    try:
        pack(ours / "data.parquet", "x,y", ours / "packed")
    except RuntimeError as error:
        results[PACKED].failed = results[REUSED].failed = last_line(error)
    draw = random.Random(0)
    for number in range(bench.sizes.rounds):
        say(f"random batches, round {number + 1} of {bench.sizes.rounds}")
        turns = [case for case in cases if not results[case].failed]
        draw.shuffle(turns)
        for case in turns:
            target = ours if case.peer == "ours" else bench.folder / case.peer
            arguments = (target, case.variant, bench.sizes.seconds)
            try:
                found = bench.run_peer(case.peer, "measure", *arguments)
            except UnavailableError as error:
                results[case].failed = str(error)
                continue
            results[case].cpu.append(found["rows"] / found["cpu"])
            results[case].wall.append(found["rows"] / found["wall"])
            results[case].version = found["version"]
    _add_rows(bench, results)


def _add_rows(bench: LoaderBench, results: dict[Case, Measured]) -> None:
    ceiling, copy, best = results[CEILING], results[COPY], results[PACKED]
    for case, bar in ((PACKED, 1.5), (REUSED, None), (EVEN, 1.5), (UNEVEN, 0.7)):
        mine = results[case]
        ratio, text = mine.over(ceiling)
        bench.add(
            case.what,
            mine.failed or str(mine),
            f"{CEILING.what} {ceiling}",
            text,
            "" if bar is None else f">= {bar} x",
            None if bar is None else ratio >= bar,
        )
    bench.add("share of one memcpy", best.failed or str(best), str(copy), best.over(copy)[1])
    for case in PEERS:
        peer = results[case]
        if peer.failed:
            bench.add(f"{case.what}: did not run", "", peer.failed, "", f">= {case.bar:g} x")
            continue
        ratio, text = best.over(peer)
        bench.add(
            f"packed against {case.what}",
            best.failed or str(best),
            f"{peer.version} {peer}",
            text,
            f">= {case.bar:g} x",
            ratio >= case.bar,
        )


def _prepare(bench: LoaderBench) -> dict[str, str]:
    """Let each peer write its own form; return why not, by peer."""
    failed = {}
    for peer in dict.fromkeys(case.peer for case in PEERS):
        try:
            bench.form(peer)
        except UnavailableError as error:
            failed[peer] = str(error)
    return failed


# --- data -----------------------------------------------------------------------------------------


def write_ours(folder: Path, source: Path) -> Path:
    """Write the forms that ManifestLoader reads, and a plan of each."""
    folder.mkdir()
    x, y = (np.load(source / f"{name}.npy", mmap_mode="r") for name in "xy")
    rows = len(y)
    even = np.arange(0, rows, -(-rows // CHUNKS))
    uneven = np.sort(np.random.default_rng(1).choice(np.arange(1, rows), CHUNKS - 1, replace=False))
    write_ipc(folder / "even.arrow", x, y, [*even.tolist(), rows])
    write_ipc(folder / "uneven.arrow", x, y, [0, *uneven.tolist(), rows])
    pq.write_table(table_of(x, y), folder / "data.parquet", row_group_size=1 << 16)
    for form, data in (
        ("even", "even.arrow"),
        ("uneven", "uneven.arrow"),
        ("packed", "data.parquet"),
    ):
        plan("shuffle", folder / data, out=folder / f"plan-{form}", batch_size=BATCH, epochs="0:16",
             workers=0)  # fmt: skip
    return folder
