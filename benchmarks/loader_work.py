"""Resume, packing, waiting, token lists, images; `loader` says what is what."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batchloom.jobs import plan
from harness import load, median, run_fresh, say, spread
from loader_inputs import WIDTH, LoaderBench, count, pack, table_of, write_wide

__all__ = ["images", "packing", "resume", "token_lists", "waiting"]

BATCH = 256
BUSY = 0.005  # seconds a batch
MILLI, MIB = 1e-3, 1 << 20

# --- resume ---------------------------------------------------------------------------------------

_RESUME = """
import json, sys, time
from batchloom.dataplane import Manifest
from batchloom.samplers import ManifestLoader

plan, data, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
state = {"version": 1, "epoch": 0, "next_step": step, "samples_seen": 256 * step}
state["manifest_id"] = Manifest.open(plan).manifest_id
start = time.perf_counter()
loader = ManifestLoader(plan, data, columns=["x", "y"])
loader.load_state_dict(state)
batch = next(iter(loader))
seconds = time.perf_counter() - start
assert batch.step == step
print(json.dumps(seconds))
"""


def resume(bench: LoaderBench) -> None:
    folder, batches = bench.folder / "resume", bench.sizes.long_batches
    folder.mkdir()
    write_wide(folder / "data", batches * BATCH * 24, 4, 4)
    planned = plan("shuffle", folder / "data", out=folder / "plan", batch_size=BATCH, workers=0)
    pack(folder / "data", "x,y", folder / "packed")
    steps = planned.records[0].steps
    worst, said = 0.0, []
    for name, step in (("first", 0), ("middle", steps // 2), ("last", steps - 1)):
        seconds = [
            run_fresh(_RESUME, folder / "plan", folder / "packed", step)
            for _ in range(bench.sizes.restores)
        ]
        said.append(f"{name} {median(seconds):.3f} s")
        worst = max(worst, median(seconds))
    bench.add(
        f"state restored and first batch of {steps:,}",
        f"{', '.join(said)}, {load()}",
        "imports excluded",
        f"{worst:.3f} s",
        "< 0.3 s",
        worst < 0.3,
    )


# --- packing --------------------------------------------------------------------------------------

_PACK = """
import contextlib, json, sys, time
from harness import peak_rss
from batchloom.jobs.cli import main

sys.argv = ["batchloom", "pack", *sys.argv[1:], "--quiet", "--workers", "0"]
start = time.process_time()
with contextlib.redirect_stdout(sys.stderr):
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
print(json.dumps([time.process_time() - start, peak_rss()]))
"""

_DECODE = """
import json, sys, time
from pathlib import Path
import pyarrow.parquet as pq

start, rows = time.process_time(), 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    for batch in pq.ParquetFile(path).iter_batches(columns=["x", "y"]):
        rows += batch.num_rows
print(json.dumps([time.process_time() - start, rows]))
"""


def packing(bench: LoaderBench) -> None:
    folder, sizes = bench.folder / "pack", bench.sizes
    folder.mkdir()
    rows = _write_parquet(folder / "data", sizes.pack_bytes)
    _write_parquet(folder / "one", 4 * WIDTH + 8)
    ours, plain, starts, peaks = [], [], [], []
    for number in range(sizes.pack_rounds):
        say(f"packing, round {number + 1} of {sizes.pack_rounds}")
        cpu, peak = _pack(folder, "data", number)
        ours.append(cpu)
        peaks.append(peak)
        starts.append(_pack(folder, "one", number)[0])
        cpu, found = run_fresh(_DECODE, folder / "data")
        if found != rows:
            raise RuntimeError(f"{found:,} of {rows:,} rows were decoded")
        plain.append(cpu)
    ratio = (min(ours) - min(starts)) / min(plain)
    bench.add(
        f"pack {count(sizes.pack_bytes)}B of Parquet",
        f"{min(ours):.2f} CPU s, of which start {min(starts):.2f}",
        f"pyarrow's plain decode {min(plain):.2f} CPU s",
        f"{ratio:.2f} x",
        "<= 1.5 x",
        ratio <= 1.5,
    )
    bench.add("  peak memory", f"{max(peaks) / MIB:,.0f} MiB", "", f"{max(peaks) / 1e9:.2f} GB",
              "<= 1 GB", max(peaks) <= 1e9)  # fmt: skip


def _pack(folder: Path, data: str, number: int) -> tuple[float, int]:
    """Pack anew; return CPU seconds and peak resident bytes."""
    out = folder / f"packed-{data}-{number}"
    cpu, peak = run_fresh(_PACK, folder / data, "--columns", "x,y", "--out", out)
    return float(cpu), int(peak)


def _write_parquet(folder: Path, total: int, files: int = 8) -> int:
    """Write Parquet files of `total` bytes of vectors when decoded; return their rows."""
    folder.mkdir()
    rows = max(1, total // (4 * WIDTH + 8) // files)
    x = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
    for number in range(files):
        y = np.arange(number * rows, (number + 1) * rows)
        pq.write_table(table_of(x, y), folder / f"part-{number}.parquet", row_group_size=1 << 16)
    return rows * files


# --- waiting --------------------------------------------------------------------------------------

_BUSY = """
import json, sys, time
import torch
from batchloom.samplers import ManifestLoader

plan, data, busy, batches = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
a = torch.rand(192, 192)
waited, taken = 0.0, 0
stream = iter(ManifestLoader(plan, data, columns=["x", "y"]))
next(stream)
begin = time.perf_counter()
while taken < batches:
    start = time.perf_counter()
    batch = next(stream)
    waited += time.perf_counter() - start
    end = time.perf_counter() + busy
    while time.perf_counter() < end:
        a @ a  # as a training step does, it lets other threads run
    taken += 1
print(json.dumps(waited / (time.perf_counter() - begin)))
"""


def waiting(bench: LoaderBench) -> None:
    folder, batches = bench.folder / "waiting", bench.sizes.busy_batches
    folder.mkdir()
    write_wide(folder / "data", (batches + 2) * BATCH * (4 * WIDTH + 8), WIDTH, 4)
    plan("shuffle", folder / "data", out=folder / "plan", batch_size=BATCH, workers=0, epochs="0:2")
    pack(folder / "data", "x,y", folder / "packed")
    shares = [
        run_fresh(_BUSY, folder / "plan", folder / "packed", BUSY, batches)
        for _ in range(bench.sizes.rounds)
    ]
    bench.add(
        f"waiting of a trainer busy {BUSY / MILLI:.0f} ms a batch",
        f"{spread(shares, 0.01)} % of {batches:,} batches, {load()}",
        "",
        f"{100 * min(shares):.2f} %",
        "< 2 %",
        min(shares) < 0.02,
    )


# --- token lists ----------------------------------------------------------------------------------

_TOKENS = """
import json, os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from harness import measured

who, plan, data, seconds = *sys.argv[1:4], float(sys.argv[4])

def ours():
    from batchloom.samplers import ManifestLoader
    for batch in ManifestLoader(plan, data, columns=["tokens"], collate="jagged"):
        yield batch.num_rows, batch["tokens"].values.numel()

def padded(rows):
    tokens = [row["tokens"] for row in rows]
    lengths = torch.tensor([len(t) for t in tokens])
    return torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True), lengths

def theirs():
    import datasets
    from torch.utils.data import DataLoader
    found = datasets.Dataset.from_parquet(data, cache_dir=plan).with_format("torch")
    for tokens, lengths in DataLoader(found, 256, shuffle=True, collate_fn=padded):
        yield len(tokens), int(lengths.sum())

def drain(stream, seconds):
    rows, tokens, end = 0, 0, time.perf_counter() + seconds
    for n, m in stream:
        rows, tokens = rows + n, tokens + m
        if time.perf_counter() > end:
            break
    return rows, tokens

def forever():
    while True:
        yield from ours() if who == "ours" else theirs()

stream = forever()
drain(stream, seconds / 4)
cost = measured(lambda: drain(stream, seconds))
print(json.dumps([*cost.value, cost.cpu, cost.wall]))
"""


def token_lists(bench: LoaderBench) -> None:
    folder, rounds = bench.folder / "texts", bench.sizes.rounds
    folder.mkdir()
    data, mean = folder / "tokens.parquet", _write_tokens(folder, bench.sizes.texts)
    plan("shuffle", data, out=folder / "plan", batch_size=BATCH, epochs="0:8", workers=0)
    pack(data, "tokens", folder / "packed")
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        say(f"token lists, round {number + 1} of {rounds}")
        for who in sorted(rates, reverse=bool(number % 2)):
            given = (folder / "plan", folder / "packed") if who == "ours" else (folder, data)
            rows, tokens, cpu, _ = run_fresh(_TOKENS, who, *given, bench.sizes.seconds)
            if not 0.8 * mean < tokens / rows < 1.2 * mean:
                raise RuntimeError(f"{tokens / rows:.0f} tokens a row, {mean:.0f} were written")
            rates[who].append(rows / cpu)
    ours, theirs = max(rates["ours"]), max(rates["theirs"])
    bench.add(
        f"token lists of {mean:.0f} on average, jagged",
        f"{count(ours)} rows/CPU s",
        f"Hugging Face, padded by collate {count(theirs)} rows/CPU s",
        f"{ours / theirs:.1f} x",
        ">= 10 x",
        ours / theirs >= 10,
    )


def _write_tokens(folder: Path, rows: int) -> float:
    """Write lists of int32 of lognormal lengths, 200 on average; return their mean length."""
    draw = np.random.default_rng(0)
    lengths = np.maximum(1, draw.lognormal(np.log(200) - 0.32, 0.8, rows)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = pa.array(draw.integers(0, 50_000, offsets[-1], dtype=np.int32))
    column = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)
    pq.write_table(pa.table({"tokens": column}), folder / "tokens.parquet", row_group_size=1 << 14)
    return float(lengths.mean())


# --- images ---------------------------------------------------------------------------------------

_IMAGES = """
import io, json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch
from PIL import Image
import pyarrow.parquet as pq
from harness import measured

who, plan, data, threads = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)

def pixels(raw):
    return torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(r))) for r in raw]))

if who == "ours":
    from batchloom.samplers import ManifestLoader
    loader = ManifestLoader(
        plan, data, columns=["image", "y"], transform_threads=threads,
        transform=lambda b: b.with_columns(image=pixels(b["image"].to_pylist())),
    )
else:
    raw = pq.read_table(data)["image"].to_pylist()
    order = np.random.default_rng(0).permutation(len(raw))
    parts = [[raw[i] for i in order[k : k + 256]] for k in range(0, len(raw), 256)]

def ours():
    total = 0
    for batch in loader:
        assert batch["image"].dtype == torch.uint8
        total += len(batch["image"])
    return total

def bare():
    total = 0
    with ThreadPoolExecutor(threads) as pool:
        for made in pool.map(pixels, parts):
            total += len(made)
    return total

cost = measured(ours if who == "ours" else bare)
print(json.dumps([cost.value, cost.cpu, cost.wall]))
"""


def images(bench: LoaderBench) -> None:
    folder, rows, threads = bench.folder / "images", bench.sizes.images, 2
    folder.mkdir()
    data = folder / "images.parquet"
    size = _write_images(data, rows)
    plan("shuffle", data, out=folder / "plan", batch_size=BATCH, workers=0)
    pack(data, "image,y", folder / "packed")
    cpu: dict[str, list[float]] = {"ours": [], "bare": []}
    wall: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(bench.sizes.rounds):
        say(f"images, round {number + 1} of {bench.sizes.rounds}")
        for who in sorted(cpu, reverse=bool(number % 2)):
            table = folder / "packed" if who == "ours" else data
            found, used, seconds = run_fresh(_IMAGES, who, folder / "plan", table, threads)
            if found != rows:
                raise RuntimeError(f"{found:,} of {rows:,} images came")
            cpu[who].append(rows / used)
            wall[who].append(rows / seconds)
    ratio = max(cpu["ours"]) / max(cpu["bare"])
    bench.add(
        f"JPEG of {size:,.0f} B, decoded on {threads} threads",
        f"{count(max(cpu['ours']))} rows/CPU s, {count(max(wall['ours']))} rows/s",
        f"bare decode loop {count(max(cpu['bare']))} rows/CPU s, {count(max(wall['bare']))} rows/s",
        f"{ratio:.2f} of it",
        ">= 0.9",
        ratio >= 0.9,
    )


def _write_images(path: Path, rows: int, side: int = 64) -> float:
    """Write JPEG bytes of smooth random pictures; return their mean size."""
    from PIL import Image

    draw = np.random.default_rng(0)
    raw: list[Any] = []
    for _ in range(rows):
        small = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        raw.append(file.getvalue())
    table = pa.table({"image": pa.array(raw, pa.binary()), "y": np.arange(rows)})
    pq.write_table(table, path, row_group_size=1 << 12)
    return float(np.mean([len(r) for r in raw]))
