"""What breaks: jobs and workers killed, files damaged, writers that race for one target.

The cases are those of the tests (`batchloom.tests.contracts`), in greater number; each line prints
how many came out as they must.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from batchloom.dataplane import Manifest, PackedTable, epoch_writer, open_dataset
from batchloom.dataplane.errors import ManifestConflictError
from batchloom.dataplane.packing import pack_dataset
from batchloom.gpu_access import PackedGather
from batchloom.jobs import gc, plan, verify
from batchloom.tests.contracts.crash import problem_of, run_job, start
from batchloom.tests.contracts.damage import damages, manifest_of_all_files, read_all, refusal
from batchloom.tests.contracts.gather import values_of
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write
from batchloom.tests.dataplane.store import Store, moto_server, proxy
from harness import say
from inputs import Bench

__all__ = ["damage", "kills", "races", "worker_kills"]


def write_numbers(folder: Path, files: int, rows: int, suffix: str = ".parquet") -> Path:
    """Write a few files of a row number and three numbers."""
    folder.mkdir(parents=True)
    for number in range(files):
        k = np.arange(number * rows, (number + 1) * rows)
        x = np.stack([np.sin(k * 0.7), np.cos(k * 1.3), (k % 5) * 4.0], axis=1).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)
        table = pa.table({"row": k, "x": column, "label": (k % 7).astype(np.int32)})
        if suffix == ".parquet":
            pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=rows // 2)
            continue
        with pa.ipc.new_file(folder / f"part-{number}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=rows // 2)
    return folder


def _arguments(method: str, data: Path, out: Path) -> list[Any]:
    """Return a command that selects, scans in two workers or none, and writes two epochs."""
    options: dict[str, list[str]] = {
        "shuffle": ["--where", "label < 5", "--workers", "0"],
        "kmeans": ["--set", "columns=x", "--set", "k=8", "--workers", "2"],
    }
    shared = ["--batch-size", "32", "--epochs", "0:2", "--quiet"]
    return ["plan", method, data, "--out", out, *shared, *options[method]]


def kills(bench: Bench, tries: int) -> None:
    """SIGKILL of the job's process group at random moments; half of them with a loss of power."""
    data = write_numbers(bench.folder / "kill-data", 6, 4_000)
    draw, right, absent = random.Random(7), 0, 0
    expected: dict[str, tuple[str, float]] = {}
    for method in ("shuffle", "kmeans"):
        out = bench.folder / f"kill-{method}"
        seconds = run_job(_arguments(method, data, out), bench.folder / "log")
        expected[method] = Manifest.open(out).manifest_id, seconds
    for number in range(tries):
        method = ("shuffle", "kmeans")[number % 2]
        wanted, seconds = expected[method]
        home = bench.folder / "kills" / str(number)
        home.mkdir(parents=True)
        command, log = _arguments(method, data, home / "plan"), home.parent / f"log-{number}"
        run = start(command, log)
        time.sleep(draw.uniform(0.2, 1.05) * seconds)
        run.kill()
        if number % 4 >= 2:
            run.lose_unflushed(home, draw)
        problem = problem_of(home / "plan", wanted)
        absent += not (home / "plan").exists()
        run_job(command, log)
        again = problem_of(home / "plan", wanted)
        gc(home, delete=True, older_than="0h")
        left = sorted(p.name for p in home.iterdir())
        if problem or again or left != ["plan"]:
            say(f"kill {number}, {method}: {problem}; {again}; left {left}")
        else:
            right += 1
    bench.add(
        f"SIGKILL of a job's process group at {tries} random moments",
        f"{right} right: {absent} absent, {tries - absent} whole, same id again, gc cleans",
        "half of them lose what was not flushed",
        f"{right}/{tries}",
        f"{tries}/{tries}",
        right == tries,
    )


def worker_kills(bench: Bench, tries: int) -> None:
    """SIGKILL of one of two workers in the middle of a job."""
    data = write_numbers(bench.folder / "worker-data", 6, 4_000)
    out = bench.folder / "worker-whole"
    seconds = run_job(_arguments("kmeans", data, out), bench.folder / "log")
    wanted = Manifest.open(out).manifest_id
    draw, killed, right = random.Random(8), 0, 0
    for number in range(3 * tries):
        target = bench.folder / "workers" / f"plan-{number}"
        run = start(_arguments("kmeans", data, target), bench.folder / f"log-worker-{number}")
        moment, hit = draw.uniform(0.3, 0.9) * seconds, False
        while run.process.poll() is None and not hit:
            time.sleep(0.02)
            hit = time.monotonic() - run.began >= moment and run.kill_a_worker(draw)
        code, _, error = run.wait()
        if not hit:
            continue
        killed += 1
        if code == 0 and problem_of(target, wanted) is None and "Traceback" not in error:
            right += 1
        else:
            say(f"worker kill {number}: exit {code}: {error}")
        if killed == tries:
            break
    bench.add(
        f"SIGKILL of one of two workers, {tries} times",
        f"{right} jobs ended with the undisturbed id",
        "",
        f"{right}/{killed}",
        f"{tries}/{tries}",
        right == killed == tries,
    )


def damage(bench: Bench, tries: int) -> None:
    """Damage files of a manifest, of data with content hashes, and of a packed table."""
    data = write_numbers(bench.folder / "damage-data", 4, 5_000)
    blocks = epoch_writer.BLOCK_MICRO_BATCHES, epoch_writer.PART_ROWS
    epoch_writer.BLOCK_MICRO_BATCHES, epoch_writer.PART_ROWS = 100, 6_000
    try:
        manifest = manifest_of_all_files(bench.folder / "damage-plan", data, 20_000)
    finally:
        epoch_writer.BLOCK_MICRO_BATCHES, epoch_writer.PART_ROWS = blocks
    found = [
        refusal(what, partial(read_all, copy, manifest))
        for what, copy in damages(manifest.path, bench.folder / "damaged", tries)
    ]
    _add_damage(bench, "every file of a manifest", found)
    for suffix in (".parquet", ".arrow"):
        data = write_numbers(bench.folder / f"deep{suffix}", 4, 5_000, suffix)
        out = bench.folder / f"deep-plan{suffix}"
        plan("shuffle", data, out=out, deep=True, workers=0)
        found = [
            refusal(what, partial(verify, out, copy, deep=True))
            for what, copy in damages(data, bench.folder / "damaged", tries)
        ]
        _add_damage(bench, f"{suffix} data, verify --deep", found)
    table = pack_dataset(open_dataset(data), bench.folder / "damage-packed")
    truth = _rows_of(PackedTable.open(table.path))
    found = [
        refusal(what, partial(_read_packed, copy, truth))
        for what, copy in damages(table.path, bench.folder / "damaged", tries)
    ]
    _add_damage(bench, "every file of a packed table", found)


def _rows_of(table: PackedTable) -> dict[str, list[object]]:
    rows = PackedGather(table).gather(np.arange(table.rows))
    return {name: values_of(column) for name, column in rows.items()}


def _read_packed(path: Path, truth: dict[str, list[object]]) -> None:
    """Read a packed table's rows, then all of its bytes: those of no row are checked on demand."""
    assert _rows_of(PackedTable.open(path)) == truth
    PackedTable.open(path, verify="all")


def _add_damage(bench: Bench, what: str, problems: list[str | None]) -> None:
    for problem in problems:
        if problem is not None:
            say(problem)
    refused = problems.count(None)
    bench.add(
        f"{what}: flipped, cut, removed, swapped, {len(problems)} times",
        f"{refused} refused by name, no wrong row",
        "",
        f"{refused}/{len(problems)}",
        f"{len(problems)}/{len(problems)}",
        refused == len(problems),
    )


# --- an object store ------------------------------------------------------------------------------

_WRITERS = 8


def races(bench: Bench, rounds: int) -> None:
    """Eight writers commit to one place of an S3 store at the same moment."""
    same = different = 0
    with moto_server() as moto, proxy(moto) as server:
        store = server.fresh()
        for number in range(rounds):
            results = _race(partial(_commit, store, f"same-{number}", 0))
            same += len({r.manifest_id for r in results if r is not None}) == 1 and all(results)
            results = _race(lambda n, place=f"other-{number}": _commit(store, place, n, n))
            winner = Manifest.open(
                store.at(f"other-{number}"), verify="all", storage_options=store.options
            )
            won = [n for n, r in enumerate(results) if r is not None]
            different += won == [winner.seed]
    for what, right, outcome in (
        ("the same content", same, "1 write, 7 found their own id there"),
        ("different content", different, "1 winner, 7 conflicts by name"),
    ):
        bench.add(
            f"8 writers race for one place of an object store, {what}, {rounds} rounds",
            outcome,
            "moto behind a proxy that makes conditions atomic",
            f"{right}/{rounds}",
            f"{rounds}/{rounds}",
            right == rounds,
        )


def _commit(store: Store, place: str, seed: int, number: int) -> Manifest | None:
    """Write a small manifest; None where another one was first."""
    del number
    try:
        return write(
            store.at(place),  # type: ignore[arg-type]
            snapshot_of(200),
            {0: plan_of([50, 50, 50 + seed])},
            seed=seed,
            storage_options=store.options,
        )
    except ManifestConflictError:
        return None


def _race(write_one: Callable[[int], Manifest | None]) -> list[Manifest | None]:
    barrier = Barrier(_WRITERS)

    def run(number: int) -> Manifest | None:
        barrier.wait()
        return write_one(number)

    with ThreadPoolExecutor(_WRITERS) as pool:
        return list(pool.map(run, range(_WRITERS)))
