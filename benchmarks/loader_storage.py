"""Rows from a cold disk and from an object store on the loopback; `loader` says what is what."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchloom.jobs import plan
from batchloom.tests.dataplane.store import BUCKET, KEY, Request, Store, moto_server, proxy
from environments import UnavailableError
from harness import evict, load, measured, median, run_fresh, say
from loader_inputs import LoaderBench, count, last_line, pack, write_wide

__all__ = ["cold_disk", "object_store"]

WIDTH = 128
ROW_BYTES = 4 * WIDTH + 8
BATCH = 256
FILES = 16
BLOCKS = {"mode": "block", "groups_open": 64, "group_rows": 4096}
RANDOM_SECONDS = 20  # a fully random plan has no end on a slow disk
MIB = 1 << 20

_READ = """
import json, sys, time
from pathlib import Path
from harness import measured
from batchloom.samplers import ManifestLoader

plan, data, seconds, options = sys.argv[1], sys.argv[2], float(sys.argv[3]), json.loads(sys.argv[4])

def fetched():
    status = Path("/proc/self/io").read_text().split()
    return int(status[status.index("read_bytes:") + 1])

def read():
    rows, end = 0, time.perf_counter() + seconds
    loader = ManifestLoader(plan, data, columns=["x", "y"], storage_options=options)
    for batch in loader:
        rows += len(batch["y"])
        if time.perf_counter() > end:
            break
    return rows

before = fetched()
cost = measured(read)
print(json.dumps([cost.value, cost.wall, cost.cpu, fetched() - before]))
"""


def _read(plan_path: Path, data: object, seconds: float, options: Any = None) -> Any:
    """Read a plan in a fresh process; return (rows, wall, CPU seconds, bytes from the disk)."""
    return run_fresh(_READ, plan_path, data, seconds, json.dumps(options))


# --- cold page cache ------------------------------------------------------------------------------


def cold_disk(bench: LoaderBench) -> None:
    folder = bench.folder / "cold"
    folder.mkdir()
    rows = write_wide(folder / "data", bench.sizes.cold_bytes, WIDTH, FILES)
    blocks = plan("shuffle", folder / "data", out=folder / "blocks", batch_size=BATCH, workers=0,
                  **BLOCKS)  # fmt: skip
    plan("shuffle", folder / "data", out=folder / "random", batch_size=BATCH, workers=0)
    pack(folder / "data", "x,y", folder / "packed")
    size = rows * ROW_BYTES
    sequential, ours, read = [], [], 0
    for number in range(2 * bench.sizes.rounds):
        say(f"cold page cache, turn {number + 1} of {2 * bench.sizes.rounds}")
        evict(folder / "packed")
        if number % 2:
            sequential.append(_sequential_rate(folder / "packed"))
            continue
        found, wall, _, read = _read(folder / "blocks", folder / "packed", 1e9)
        if found != rows:
            raise RuntimeError(f"{found:,} of {rows:,} planned rows were delivered")
        ours.append(size / wall)
    share = median(ours) / median(sequential)
    bench.add(
        f"cold cache, {count(size)}B, block shuffle",
        f"{count(median(ours))}B/s, {load()}",
        f"reading the files in order {count(median(sequential))}B/s",
        f"{share:.2f} of it",
        ">= 0.7",
        share >= 0.7,
    )
    used = read / size
    bench.add("  bytes read / bytes used", f"{count(read)}B", f"{count(size)}B", f"{used:.2f}",
              "<= 1.3", used <= 1.3)  # fmt: skip
    evict(folder / "packed")
    found, wall, _, read = _read(folder / "random", folder / "packed", RANDOM_SECONDS)
    bench.add(
        "cold cache, fully random plan",
        f"{count(found * ROW_BYTES / wall)}B/s of {blocks.records[0].samples:,} rows",
        f"{count(read)}B read for {count(found * ROW_BYTES)}B",
        f"{read / (found * ROW_BYTES):.2f} read / used",
    )


def _sequential_rate(folder: Path) -> float:
    """Return the bytes a second of reading a folder's files front to back."""
    buffer = bytearray(8 << 20)

    def read() -> int:
        total = 0
        for path in sorted(folder.iterdir()):
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    total += got
        return total

    cost = measured(read)
    return float(cost.value / cost.wall)


# --- an object store ------------------------------------------------------------------------------


def object_store(bench: LoaderBench) -> None:
    folder = bench.folder / "store"
    folder.mkdir()
    # Small files: for each range that is asked for, moto reads the whole object.
    files = max(FILES, bench.sizes.store_bytes // (16 << 20))
    write_wide(folder / "data", bench.sizes.store_bytes, WIDTH, files)
    plan("shuffle", folder / "data", out=folder / "blocks", batch_size=BATCH, workers=0, **BLOCKS)
    plan("shuffle", folder / "data", out=folder / "random", batch_size=BATCH, workers=0)
    pack(folder / "data", "x,y", folder / "packed")
    pack(folder / "data", "x,y", folder / "ordered", "--order", folder / "random")
    with moto_server() as port, proxy(port) as running:
        store = running.fresh()
        for name in ("packed", "ordered"):
            _upload(store, folder / name, name)
        bars = (
            ("block shuffle", "blocks", "packed"),
            ("full shuffle, pack --order", "random", "ordered"),
        )
        for what, plan_name, table in bars:
            say(f"object store: {what}")
            try:
                with store.counting() as log:
                    found = _read(folder / plan_name, store.at(table), 1e9, store.options)
            except RuntimeError as error:
                bench.add(f"object store, {what}", last_line(error), "", "", "runs", False)
                continue
            _add_store_rows(bench, what, log, found[0], found[1])
        for peer, variant in (("lance", "take"), ("mosaicml", "0"), ("litdata", "0")):
            say(f"object store: {peer}")
            _peer_row(bench, store, peer, variant)


def _add_store_rows(
    bench: LoaderBench, what: str, log: Sequence[Request], rows: int, wall: float
) -> None:
    gets = [r for r in log if r.method == "GET" and r.sent]
    data = [r for r in gets if ".arrow" in r.path]
    sent, used = sum(r.sent for r in gets), rows * ROW_BYTES
    ratio, average = sent / used, sum(r.sent for r in data) / max(1, len(data))
    bench.add(
        f"object store, {count(used)}B, {what}",
        f"{count(sent)}B fetched for {count(used)}B, {count(used / wall)}B/s, {load()}",
        "bytes used",
        f"{ratio:.2f}",
        "<= 1.3",
        ratio <= 1.3,
    )
    bench.add("  bytes a request", f"{len(data):,} requests", "", f"{average / MIB:.1f} MiB",
              ">= 1 MiB", average >= MIB)  # fmt: skip


def _peer_row(bench: LoaderBench, store: Store, peer: str, variant: str) -> None:
    what = f"object store, {peer}"
    try:
        _upload(store, bench.form(peer), peer)
        with store.counting() as log:
            seconds = 4 * bench.sizes.seconds  # some fetch whole files before their first row
            found = bench.run_peer(
                peer, "measure", store.at(peer), variant, seconds, **_credentials(store)
            )
    except (UnavailableError, OSError) as error:
        bench.add(f"{what}: did not run", "", last_line(error), "")
        return
    sent, used = sum(r.sent for r in log), found["all_rows"] * ROW_BYTES
    gets = [r for r in log if r.method == "GET" and r.sent]
    bench.add(
        what,
        f"{found['version']}: {count(found['rows'] * ROW_BYTES / found['wall'])}B/s",
        f"{count(sent)}B fetched for {count(used)}B, {len(gets):,} requests of "
        f"{sent / max(1, len(gets)) / MIB:.2f} MiB",
        f"{sent / used:.2f}",
    )


def _credentials(store: Store) -> dict[str, str]:
    """Return the environment by which the peers reach the store."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": store.endpoint,
        "S3_ENDPOINT_URL": store.endpoint,
        "AWS_ALLOW_HTTP": "true",
        "NO_PROXY": "127.0.0.1",
    }


def _upload(store: Store, folder: Path, name: str) -> None:
    """Put a folder's files into the store, past the proxy, which would count them."""
    import s3fs

    endpoint = f"http://127.0.0.1:{store.moto}"
    fs = s3fs.S3FileSystem(key=KEY, secret="none", endpoint_url=endpoint)
    root = store.url.removeprefix(f"s3://{BUCKET}/")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            fs.put_file(os.fspath(path), f"{BUCKET}/{root}/{name}/{relative}")
