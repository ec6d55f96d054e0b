"""Gathers: rows from host memory into a batch, on the CPU and by GPU threads.

    python benchmarks/gather.py [--check] [--quick] [--part cpu|gpu|all] [--gpu-seconds 150]
                                [--json FILE]

The CPU's part runs anywhere. All its methods take turns with fresh ids each call, on one table of
512-byte rows that no cache holds; ratios are of CPU seconds on one thread, and of wall seconds on
all threads (the load average stands beside them). The GPU's part (`gather_gpu`) runs
where a GPU is.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from batchloom.dataplane.errors import UnifiedAccessUnavailable
from batchloom.gpu_access import HostTable, UnifiedTensor, register_host_memory
from batchloom.gpu_access.cache_policies import Belady, CachePolicy, Lru, Static, simulate
from batchloom.gpu_access.host_memory import huge_page_bytes
from batchloom.gpu_access.line_requests import line_requests
from batchloom.gpu_access.row_table import RowTable
from harness import Cost, Row, interleaved, load, missed, print_table, say

WIDTH = 128  # float32 a row
BATCH = 8192
CHUNKS = 31
REPEATS = 120


def cpu_part(quick: bool) -> list[Row]:
    rows = (256 << 20 if quick else 2 << 30) // (4 * WIDTH)
    say(f"CPU: a table of {rows * 4 * WIDTH >> 20} MiB, batches of {BATCH} rows")
    return [
        *against_torch(rows),
        *against_arrow(64 << 20 if quick else 1 << 30),
        *lines(),
        *caches(),
        *registering(),
    ]


def against_torch(rows: int) -> list[Row]:
    """Compare with torch by CPU seconds on one thread, and by the clock on all of them.

    Torch's second thread spins between the calls, and what it uses up is counted late, in whoever
    is measured then: CPU seconds of one call are only right while there is one thread.
    """
    host = HostTable.allocate(rows, WIDTH)
    fill(host.tensor)
    small = fill(torch.empty(rows, WIDTH))  # malloc's memory: pages of 4 KiB
    share = huge_page_bytes(host.table.address) / host.nbytes
    say(f"  {share:.0%} of the table in huge pages; {load()}")
    one = "gather_rows(out=) / {}, one thread"
    with threads(1):
        costs = turns(host, small)
    found = [
        versus(one.format("index_select(out=), huge pages"), costs, "index_select", 1.3),
        versus(
            one.format("index_select(out=), 4 KiB pages"),
            costs,
            "index_select, 4 KiB pages",
            0.95,
            ours="ours, 4 KiB pages",
        ),
        versus(one.format("tensor[idx]"), costs, "tensor[idx]", 4.0),
    ]
    costs = turns(host, small)
    for other in ("index_select", "tensor[idx]", "block"):
        what = "one block copied" if other == "block" else f"{other}, huge pages"
        found.append(by_the_clock(f"gather_rows(out=) / {what}, all threads", costs, other))
    unified = UnifiedTensor.from_tensor(host)
    batches = [torch.randint(0, rows, (BATCH,)) for _ in range(100)]
    allocated = allocations(unified, batches, torch.empty(BATCH, WIDTH))
    bar = "0 bytes"
    return [
        *found,
        Row("allocated over 100 batches", f"{allocated} bytes", "", "", bar, allocated == 0),
    ]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and our gathers use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    os.environ["BATCHLOOM_GATHER_THREADS"] = str(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        del os.environ["BATCHLOOM_GATHER_THREADS"]


def turns(host: HostTable, small: torch.Tensor) -> dict[str, list[Cost]]:
    """Measure every way to gather from the two tables, turn by turn."""
    unified, unified_small = UnifiedTensor.from_tensor(host), UnifiedTensor.from_tensor(small)
    huge, rows = host.tensor, len(small)
    load_loops(unified)
    out = torch.empty(BATCH, WIDTH)
    draw = torch.Generator().manual_seed(0)

    def block() -> torch.Tensor:
        start = BATCH * int(torch.randint(0, rows // BATCH, (1,), generator=draw))
        return huge[start : start + BATCH]

    def on(method: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        drawn = [torch.randint(0, rows, (BATCH,), generator=draw) for _ in range(REPEATS + 5)]
        fresh = iter(drawn)  # drawn outside the measurement
        return lambda: method(next(fresh))

    moved = iter([block() for _ in range(REPEATS + 5)])
    methods = {
        "ours": on(lambda i: unified.gather_rows(i, out=out)),
        "index_select": on(lambda i: torch.index_select(huge, 0, i, out=out)),
        "ours, 4 KiB pages": on(lambda i: unified_small.gather_rows(i, out=out)),
        "index_select, 4 KiB pages": on(lambda i: torch.index_select(small, 0, i, out=out)),
        "tensor[idx]": on(lambda i: huge[i]),
        "block": lambda: out.copy_(next(moved)),
    }
    return dict(zip(methods, interleaved(REPEATS, *methods.values(), warm=5), strict=True))


def load_loops(unified: UnifiedTensor) -> None:
    """Ask for so many rows that the compiled loops are waited for; small requests go without."""
    unified.gather_rows(torch.arange(min(len(unified), 1 << 18)))


def against_arrow(nbytes: int) -> list[Row]:
    """Table.take joins the chunks of a fixed-size list at each call."""
    rows = nbytes // (4 * WIDTH) // CHUNKS
    chunks = [
        pa.FixedSizeListArray.from_arrays(pa.array(fill(torch.empty(rows * WIDTH)).numpy()), WIDTH)
        for _ in range(CHUNKS)
    ]
    table = pa.table({"x": pa.chunked_array(chunks)})
    unified = UnifiedTensor.from_arrow(table.column("x"))
    out = torch.empty(BATCH, WIDTH)
    draw = np.random.default_rng(0)
    several = iter([draw.integers(0, rows * CHUNKS, BATCH) for _ in range(40)])
    ours, theirs = interleaved(
        6,
        lambda: unified.gather_rows(next(several), out=out),
        lambda: table.take(pa.array(next(several))),
        warm=1,
    )
    costs = {"ours": ours, "take": theirs}
    what = f"gather_rows(out=) / Table.take, {CHUNKS} chunks"
    return [versus(what, costs, "take", 5.0)]


def lines() -> list[Row]:
    """Lines of 128 bytes that the kernel asks for, a row."""
    found = []
    ids = np.arange(128)
    for nbytes, base, bar in ((516, 0, 5.5), (512, 64, 5.0), (512, 0, 4.0), (1200, 0, None)):
        table = RowTable(4096 + base, 128, (nbytes,), torch.uint8, nbytes, None)
        ours = line_requests(table, ids, "kernel") / 128
        least = line_requests(table, ids, "least") / 128
        plain = line_requests(table, ids, "plain") / 128
        found.append(
            Row(
                f"lines a row, {nbytes} bytes from {base}",
                f"{ours:.2f}",
                f"least {least:.2f}, plain {plain:.2f}",
                f"{ours:.2f}",
                "" if bar is None else f"≤ {bar}",
                None if bar is None else ours <= bar,
            )
        )
    return found


def caches() -> list[Row]:
    """What four policies read and hit, on a skewed and on a clustered plan."""
    rows, slots, size, count = 200_000, 10_000, 1000, 400
    draw = np.random.default_rng(0)
    starts = np.arange(count) // 4 * 2000 % (rows - 4000)
    plans = {
        "skewed": [np.minimum(draw.zipf(1.3, size) - 1, rows - 1) for _ in range(count)],
        "clustered": [start + draw.integers(0, 4000, size) for start in starts],
    }
    found = []
    for name, batches in plans.items():
        counts = np.bincount(np.concatenate(batches), minlength=rows)
        policies: dict[str, CachePolicy] = {
            "Belady": Belady(batches, rows, slots),
            "static": Static(counts, slots),
            "LRU": Lru(rows, slots),
            "degree": Static(counts + draw.poisson(2, rows), slots),
        }
        start = time.process_time()
        for policy in policies.values():
            simulate(policy, batches)
        say(f"  {name}: {(time.process_time() - start) / 4 / count * 1e3:.2f} ms a batch decided")
        hits = ", ".join(f"{k} {p.hit_rate:.3f}" for k, p in policies.items())
        reads = {k: p.reads for k, p in policies.items()}
        found.append(
            Row(
                f"cache of {slots / rows:.0%} of the rows, {name} plan: hit rates",
                hits,
                "",
                f"reads {', '.join(f'{v:,}' for v in reads.values())}",
                "Belady reads fewest",
                reads["Belady"] == min(reads.values()),
            )
        )
    return found


def registering() -> list[Row]:
    """Without a driver registering is refused at once, with a reason, and nothing leaks."""
    if torch.cuda.is_available():
        return []
    memory, process = torch.zeros(1 << 20), psutil.Process()

    def refused() -> str:
        try:
            register_host_memory(memory)
        except UnifiedAccessUnavailable as error:
            return str(error)
        raise RuntimeError("registered without a GPU")

    refused()
    gc.collect()
    before, files = process.memory_info().rss, process.num_fds()
    costs = interleaved(1000, refused)[0]
    grown = process.memory_info().rss - before
    worst = max(c.cpu for c in costs)
    return [
        Row("refusing without a driver", f"{worst * 1e3:.2f} ms", refused(), "", "< 10 ms",
            worst < 0.01),
        Row("leaked over 1,000 tries", f"{max(0, grown) >> 10} KiB", "", "", "0 files, < 1 MiB",
            grown < 1 << 20 and process.num_fds() == files),
    ]  # fmt: skip


# --- the table ------------------------------------------------------------------------------------


def versus(
    what: str, costs: dict[str, list[Cost]], other: str, bar: float, ours: str = "ours"
) -> Row:
    """Return a row of ratios: the median of CPU seconds, that of wall seconds beside it."""
    mine, theirs = costs[ours], costs[other]
    ratio = median_of(theirs, "cpu") / median_of(mine, "cpu")
    wall = median_of(theirs, "wall") / median_of(mine, "wall")
    shown = f"{ratio:.2f} (wall {wall:.2f})"
    return Row(what, rate(mine), rate(theirs), shown, f"≥ {bar}", ratio >= bar)


def by_the_clock(what: str, costs: dict[str, list[Cost]], other: str) -> Row:
    """Return a row of wall seconds alone; a copy of a block is the limit, to aim at."""
    mine, theirs = (median_of(costs[name], "wall") for name in ("ours", other))
    nbytes = BATCH * WIDTH * 4
    rates = [f"{nbytes / wall / 1e9:.1f} GB/s" for wall in (mine, theirs)]
    aim = "aim ≥ 0.8" if other == "block" else ""
    return Row(what, *rates, f"wall {theirs / mine:.2f}", aim, None)


def median_of(costs: Sequence[Cost], what: str) -> float:
    return statistics.median(getattr(c, what) for c in costs)


def rate(costs: Sequence[Cost]) -> str:
    nbytes = BATCH * WIDTH * 4
    cpu, wall = median_of(costs, "cpu"), median_of(costs, "wall")
    return f"{cpu * 1e3:.2f} ms cpu, {nbytes / wall / 1e9:.1f} GB/s"


def fill(tensor: torch.Tensor) -> torch.Tensor:
    """Write to every page."""
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), 1 << 24):
        part = flat[start : start + (1 << 24)]
        torch.arange(len(part), dtype=part.dtype, out=part)
    return tensor


def allocations(unified: UnifiedTensor, batches: Sequence[torch.Tensor], out: torch.Tensor) -> int:
    """Return the bytes that torch allocated for gathers."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        for ids in batches:
            unified.gather_rows(ids, out=out)
    return sum(max(0, event.self_cpu_memory_usage) for event in seen.events())


# --- the command line -----------------------------------------------------------------------------


def gpu_part(seconds: float, findings: list[dict[str, Any]], write: Callable[[], None]) -> None:
    from gather_gpu import GpuRun

    def record(finding: dict[str, Any]) -> None:
        findings.append(finding)
        print("  ".join(f"{k}={v}" for k, v in finding.items()), flush=True)
        write()

    GpuRun(seconds, record)()


def gpu_rows(findings: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Yield what the GPU's findings come to: 100,000 rows of each size, and larger tables."""
    wanted = {"what": "gather", "ids": 100_000, "sort": False, "base": 0}
    plain = [f for f in findings if all(f.get(k) == v for k, v in wanted.items())]
    ours: dict[tuple[int, int], dict[str, Any]] = {}
    for found in plain:
        if found["backend"] == "zero_copy" and found["stride"] % 128 in (0, 64):
            ours.setdefault((found["MiB"], found["row_bytes"]), found)
    for (size, width), found in sorted(ours.items()):
        held = size == 1024 and width >= 512  # beyond, the GPU looks pages up (see `gather_gpu`)
        yield Row(
            f"zero_copy, 100,000 rows of {width} bytes of {size} MiB / pinned copy",
            f"{found['GB/s']} GB/s",
            f"{found['GB/s'] / found['of_limit']:.1f} GB/s" if found["of_limit"] else "",
            f"{found['of_limit']:.2f}",
            "≥ 0.85" if held else "",
            found["of_limit"] >= 0.85 if held else None,
        )
        others = {
            f["backend"]: f["GB/s"]
            for f in plain
            if (f["MiB"], f["row_bytes"]) == (size, width) and f["backend"] != "zero_copy"
        }
        if others:
            ratios = ", ".join(f"{k} {found['GB/s'] / v:.2f}" for k, v in others.items() if v)
            yield Row("  times as fast as", "", "", ratios)


def main() -> int:
    parser = argparse.ArgumentParser(description="Gathers on the CPU and by GPU threads.")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--part", choices=["cpu", "gpu", "all"], default="all")
    parser.add_argument("--gpu-seconds", type=float, default=150.0)
    parser.add_argument("--json", type=Path, help="where findings are written as they come")
    options = parser.parse_args()
    findings: list[dict[str, Any]] = []
    rows: list[Row] = []

    def write() -> None:
        if options.json:
            table = [vars(r) for r in rows]
            text = json.dumps({"gpu": findings, "table": table, "load": load()}, indent=1)
            options.json.write_text(text + "\n")

    started = time.perf_counter()
    if options.part != "cpu":
        if torch.cuda.is_available():
            gpu_part(options.gpu_seconds, findings, write)
            rows += gpu_rows(findings)
        else:
            say("GPU: none here")
    if options.part != "gpu":
        rows += cpu_part(options.quick)
    write()
    print_table(rows)
    failed = missed(rows)
    took = time.perf_counter() - started
    verdict = f"missed: {', '.join(failed)}" if failed else "every bar is met"
    print(f"\n{verdict}; {load()}, {took:.0f} s")
    return 1 if failed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
