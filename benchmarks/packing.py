"""Bars of packed tables: what packing costs, and the CPU gather against numpy, torch and memcpy.

    .venv/bin/python benchmarks/packing.py [--check] [--quick]

One table, a line a bar, as in `foundation`: ratios of CPU seconds, taken turn by turn in one run.
Every call of a gather gets fresh random ids; else the rows would be in the processor's cache.

pack Parquet
    500,000 rows of 128 float32 and a label, snappy, to a packed table, hashed and flushed; against
    pyarrow's plain decode of the same columns to memory, which writes nothing.
memory
    Peak resident set of a fresh process that packs a larger dataset, and of one that packs half.
gather, one chunk / 62 uneven chunks
    Windows of 16 batches of 256 random rows out of a packed table, against the ceiling: numpy's
    fancy index of a memory map and ``torch.from_numpy``, batch by batch; and for whole windows.
against torch.index_select(out=)
    `gather_rows` into the same buffer, from one table on huge pages and on small ones, with one
    thread each.
first touch
    The same windows while no page was checked yet, until all are: what checking adds over one pass.
text
    Windows of strings (mean 200 bytes), against pyarrow's take of one chunk.
"""

from __future__ import annotations

import itertools
import mmap
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.dataplane import PackedTable, open_dataset
from batchloom.dataplane.columns import as_arrow
from batchloom.dataplane.mapped import ColumnChunks
from batchloom.dataplane.packing import pack_dataset, run_on_threads
from batchloom.gpu_access import PackedGather
from batchloom.gpu_access.row_gather import gather_rows
from harness import (
    Row,
    best,
    interleaved,
    load,
    measured,
    median,
    run_benchmark,
    run_fresh,
    say,
)

WIDTH = 128
BATCH, BATCHES = 256, 16
WINDOW = BATCH * BATCHES
CALLS = 20  # of a gather, timed together
MICRO = 1e-6

PACK = """
import json, shutil
from harness import peak_rss
from batchloom.dataplane import open_dataset
from batchloom.dataplane.packing import pack_dataset
dataset = open_dataset(sys.argv[1])
before = peak_rss()
pack_dataset(dataset, sys.argv[2], ["x", "y", "text"])
print(json.dumps([before, peak_rss()]))
shutil.rmtree(sys.argv[2])
"""


def write(folder: Path, rows: list[int], *, text: bool = False, group: int = 65_536) -> Path:
    """Write Parquet files of so many rows each."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number, count in enumerate(rows):
        x = draw.standard_normal((count, WIDTH), dtype=np.float32)
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH),
            "y": draw.integers(0, 1000, count),
        }
        if text:
            sizes = draw.integers(0, 400, count)
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            letters = draw.integers(97, 123, offsets[-1]).astype(np.uint8)
            columns["text"] = pa.StringArray.from_buffers(
                count, pa.py_buffer(offsets), pa.py_buffer(letters)
            )
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet", row_group_size=group)
    return folder


def uneven(rows: int, files: int) -> list[int]:
    """Return sizes of files that differ by up to three times."""
    share = np.random.default_rng(1).uniform(1, 3, files)
    cuts = np.floor(np.cumsum(share) / share.sum() * rows).astype(int)
    return np.diff([0, *cuts]).tolist()


def packing(folder: Path, quick: bool) -> list[Row]:
    data = folder / "one"
    dataset = open_dataset(data)
    out = folder / "packed-once"

    def pack() -> PackedTable:
        return pack_dataset(dataset, out, ["x", "y"], run=run_on_threads(1))

    def decode() -> int:
        file = pq.ParquetFile(data / "part-0.parquet", memory_map=True)
        return sum(
            file.read_row_group(i, columns=["x", "y"], use_threads=False).num_rows
            for i in range(file.num_row_groups)
        )

    ours, plain = [], []
    for _ in range(3 if quick else 8):  # writing is what other work on the machine disturbs most
        ours.append(measured(pack))
        plain.append(measured(decode))
        shutil.rmtree(out)
    ratio = best(ours).cpu / best(plain).cpu
    size = ours[0].value.bytes / 1e6
    rows = [
        Row(
            f"pack {dataset.rows:,} rows, {size:.0f} MB, Parquet to packed",
            f"{best(ours).cpu:.2f} CPU s",
            f"pyarrow decode {best(plain).cpu:.2f} CPU s",
            f"{ratio:.2f} x",
            "≤ 1.5",
            ratio <= 1.5,
        )
    ]
    counts = [1, 2] if quick else [2, 4]
    peaks = []
    for number, count in enumerate(counts):
        big = write(folder / f"big-{number}", [250_000] * count, text=True)
        before, peak = run_fresh(PACK, big, folder / f"big-packed-{number}")
        peaks.append((peak - before, peak))
    ok = peaks[1][1] <= 1 << 30
    rows.append(
        Row(
            f"memory to pack {counts[1] * 250_000:,} rows with text",
            f"peak {peaks[1][1] / 1e6:.0f} MB, {peaks[1][0] / 1e6:.0f} above the imports",
            f"half the rows {peaks[0][0] / 1e6:.0f} above",
            f"{peaks[1][1] / 1e6:.0f} MB",
            "≤ 1 GiB",
            ok,
        )
    )
    return rows


def windows(rows: int) -> itertools.starmap[npt.NDArray[np.uint64]]:
    draw = np.random.default_rng(2)
    return itertools.starmap(
        lambda: draw.integers(0, rows, WINDOW).astype(np.uint64), itertools.repeat(())
    )


def gathering(folder: Path, quick: bool) -> list[Row]:
    one = pack_dataset(open_dataset(folder / "one"), folder / "packed-one", ["x", "y"])
    many = pack_dataset(open_dataset(folder / "many"), folder / "packed-many", ["x", "y"])
    plain = np.concatenate(
        [
            b.column(0).flatten().to_numpy().reshape(-1, WIDTH)
            for b in pq.ParquetFile(folder / "one/part-0.parquet").iter_batches(columns=["x"])
        ]
    )
    plain.tofile(folder / "x.bin")
    table = np.memmap(folder / "x.bin", np.float32, "r", shape=plain.shape)
    del plain
    ids = windows(len(table))
    gathers = [PackedGather(t, ["x"], threads=1) for t in (one, many)]
    for source in (one, many):
        source.mapped(["x"]).columns["x"].guard.check_all()  # type: ignore[attr-defined]

    def ours(gather: PackedGather) -> None:
        for _ in range(CALLS):
            window = gather.gather(next(ids))["x"]
            window.split(BATCH)

    def by_batch() -> None:
        for _ in range(CALLS):
            for batch in next(ids).reshape(BATCHES, BATCH):
                torch.from_numpy(table[batch])

    def by_window() -> None:
        for _ in range(CALLS):
            torch.from_numpy(table[next(ids)]).split(BATCH)

    def idle() -> None:
        for _ in range(CALLS):
            next(ids)

    rounds = 10 if quick else 25
    both = [partial(ours, gather) for gather in gathers]
    costs = interleaved(rounds, *both, by_batch, by_window, idle, warm=2)
    spent = [median([c.cpu for c in cost]) / CALLS for cost in costs]
    first, second, batch, whole = (s - spent[4] for s in spent[:4])
    rows = []
    for what, cost, bar in (("one chunk", first, 1.5), ("62 uneven chunks", second, 0.7)):
        ratio = batch / cost
        rows.append(
            Row(
                f"gather {BATCHES} x {BATCH} rows of 512 B, {what}",
                f"{cost / MICRO:.0f} µs, {WINDOW * 512 / cost / 1e9:.1f} GB/s, {load()}",
                f"numpy, by batch {batch / MICRO:.0f} µs",
                f"{ratio:.2f} x",
                f"≥ {bar}",
                ratio >= bar,
            )
        )
        rows.append(
            Row("", "", f"numpy, by window {whole / MICRO:.0f} µs", f"{whole / cost:.2f} x")
        )
    return rows


def huge(rows: int, advice: int) -> npt.NDArray[np.float32]:
    """Return a table on pages of a size; filled, so that it is in memory."""
    block = mmap.mmap(-1, rows * WIDTH * 4 + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(advice)
    whole = np.frombuffer(block, np.uint8)
    start = -whole.ctypes.data % (2 << 20)
    table = whole[start : start + rows * WIDTH * 4].view(np.float32).reshape(rows, WIDTH)
    np.copyto(table, np.arange(rows, dtype=np.float32)[:, None])
    return table


def against_torch(quick: bool) -> list[Row]:
    count = 500_000 if quick else 2_000_000
    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for what, advice, bar in (
            ("huge pages", mmap.MADV_HUGEPAGE, 1.3),
            ("4 KiB pages", mmap.MADV_NOHUGEPAGE, 0.95),
        ):
            table = huge(count, advice)
            chunks, tensor = ColumnChunks.of_array(table), torch.from_numpy(table)
            out = huge(WINDOW, mmap.MADV_HUGEPAGE)
            target, ids = torch.from_numpy(out), windows(count)

            def ours(chunks=chunks, ids=ids, out=out) -> None:  # type: ignore[no-untyped-def]
                for _ in range(CALLS):
                    gather_rows(chunks, next(ids), out, threads=1)

            def select(tensor=tensor, ids=ids, target=target) -> None:  # type: ignore[no-untyped-def]
                for _ in range(CALLS):
                    index = torch.from_numpy(next(ids).view(np.int64))
                    torch.index_select(tensor, 0, index, out=target)

            def fancy(tensor=tensor, ids=ids) -> None:  # type: ignore[no-untyped-def]
                for _ in range(CALLS):
                    tensor[torch.from_numpy(next(ids).view(np.int64))]

            def block(table=table, ids=ids, out=out) -> None:  # type: ignore[no-untyped-def]
                for _ in range(CALLS):
                    start = int(next(ids)[0]) % (count - WINDOW)
                    np.copyto(out, table[start : start + WINDOW])

            def idle(ids=ids) -> None:  # type: ignore[no-untyped-def]
                for _ in range(CALLS):
                    next(ids)

            costs = interleaved(10 if quick else 30, ours, select, fancy, block, idle, warm=2)
            spent = [median([c.cpu for c in cost]) / CALLS for cost in costs]
            mine, theirs, indexed, copied = (s - spent[4] for s in spent[:4])
            ratio = theirs / mine
            rows.append(
                Row(
                    f"gather_rows(out=), {what}",
                    f"{mine / MICRO:.0f} µs a window, {load()}",
                    f"torch.index_select(out=) {theirs / MICRO:.0f} µs",
                    f"{ratio:.2f} x",
                    f"≥ {bar}",
                    ratio >= bar,
                )
            )
            rows.append(
                Row("", "", f"tensor[ids] {indexed / MICRO:.0f} µs", f"{indexed / mine:.2f} x")
            )
            rows.append(
                Row(
                    "",
                    "",
                    f"one memcpy of as many bytes {copied / MICRO:.0f} µs",
                    f"{copied / mine:.2f} x",
                )
            )
    finally:
        torch.set_num_threads(threads)
    return rows


def first_touch(folder: Path) -> list[Row]:
    """Measure windows of a table that was just opened, until each page was seen."""

    def opened(seen: bool) -> float:
        table = PackedTable.open(folder / "packed-one")
        gather = PackedGather(table, ["x"], threads=1)
        guard = table.mapped(["x"]).columns["x"].guard
        if seen:
            guard.check_all()  # type: ignore[attr-defined]
        order = np.random.default_rng(3).permutation(table.rows).astype(np.uint64)
        for start in range(0, table.rows, WINDOW):
            gather.gather(order[start : start + WINDOW])
        return 0.0

    fresh, checked = interleaved(5, partial(opened, False), partial(opened, True))
    cost, plain = best(fresh).cpu, best(checked).cpu
    return [
        Row(
            "a pass in random order, pages checked as they are touched",
            f"{cost:.3f} CPU s",
            f"checked one after another before {plain:.3f} CPU s",
            f"{cost / plain:.2f} x",
        )
    ]


def text(folder: Path, quick: bool) -> list[Row]:
    dataset = open_dataset(folder / "big-0")
    table = pack_dataset(dataset, folder / "packed-text", ["text"])
    gather = PackedGather(table, ["text"], threads=1)
    table.mapped(["text"]).columns["text"].guard.check_all()  # type: ignore[attr-defined]
    whole = pa.concat_arrays(
        [b.cast(pa.large_string()) for b in pq.read_table(folder / "big-0")["text"].chunks]
    )
    ids = windows(table.rows)

    def ours() -> None:
        for _ in range(CALLS):
            gather.gather(next(ids))

    def take() -> None:
        for _ in range(CALLS):
            whole.take(as_arrow(next(ids)))

    costs = interleaved(10 if quick else 20, ours, take, warm=2)
    mine, theirs = (median([c.cpu for c in cost]) / CALLS for cost in costs)
    return [
        Row(
            f"gather {WINDOW:,} strings of 200 bytes",
            f"{mine / MICRO:.0f} µs",
            f"pyarrow take of one chunk {theirs / MICRO:.0f} µs",
            f"{theirs / mine:.2f} x",
        )
    ]


def run_all(folder: Path, quick: bool) -> list[Row]:
    """Run everything and return the rows of the table."""
    say("writing data")
    rows = 100_000 if quick else 500_000
    write(folder / "one", [rows])
    write(folder / "many", uneven(rows, 62))
    say("packing")
    table = packing(folder, quick)
    say("gathering")
    table += gathering(folder, quick)
    table += against_torch(quick)
    table += first_touch(folder)
    table += text(folder, quick)
    return table


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run_all))
