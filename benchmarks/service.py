"""The selection service: ranges against calls, the loader, signals, a stalled client, load, kills.

python benchmarks/service.py --check          # about three minutes
python benchmarks/service.py --quick

The service is a process of its own on the loopback; it and its clients share the machine. Rates are
of the clock, the best of some rounds, and what is compared runs turn by turn.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from batchloom.dataplane import Manifest, SignalStore, open_plan
from batchloom.dataplane.errors import BatchloomError
from batchloom.dataplane.manifest_part import part_schema
from batchloom.dataplane.observations import Observations
from batchloom.dataplane.remote_client import ServiceClient
from batchloom.dataplane.remote_wire import RANGE_BATCHES, decode_range
from batchloom.dataplane.signal_parts import part_bytes
from batchloom.samplers import ManifestLoader
from harness import Row, run_benchmark, say
from service_processes import Server, bare_server

WIDTH = 32
BATCH = 1000
MIB = 1 << 20


def make_run(folder: Path, rows: int) -> Path:
    """Write a dataset, and prepare a run of it; return the dataset."""
    data = folder / "data"
    data.mkdir()
    x = np.random.default_rng(0).random((rows, WIDTH), dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)
    table = pa.table({"x": column})
    with pa.ipc.new_file(str(data / "part-0.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    for name, batch in (("large", BATCH), ("small", 256)):
        run = folder / "service" / "runs" / name
        run.mkdir(parents=True)
        (run / "job.toml").write_text(
            f'dataset = "{data}"\nbatch_size = {batch}\nepochs = "0:3"\nform = "explicit"\n'
            '[[stages]]\nmethod = "shuffle"\n'
        )
    return data


def clock(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def turns(rounds: int, *functions: Callable[[], Any], of: Any = min) -> list[float]:
    """Return the best seconds of each function, or their median, run turn by turn."""
    found: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(found, functions, strict=True):
            times.append(clock(function))
    return [of(times) for times in found]


def in_threads(count: int, function: Callable[[int], Any]) -> None:
    """Run a function of a number in so many threads; raise what one of them raised."""
    errors: list[Exception] = []

    def run(number: int) -> None:
        try:
            function(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# --- reading --------------------------------------------------------------------------------------


def ranges_and_calls(server: Server, quick: bool) -> Row:
    manifest = open_plan(f"{server.url}/runs/large").manifest_for(0)
    batches = len(manifest.epoch(0))
    client, schema = ServiceClient(server.url), part_schema(False, ())
    route = f"/v1/manifests/{manifest.manifest_id}/epochs/0/batches"
    calls = 100 if quick else 400

    def get(start: int, stop: int) -> None:
        data = client.get(f"{route}?from={start}&to={stop}").data
        decode_range(data, schema, start=start, stop=stop, where="here")

    def stream() -> None:
        for start in range(0, batches, RANGE_BATCHES):
            get(start, min(start + RANGE_BATCHES, batches))

    def single() -> None:
        for number in range(calls):
            get(number, number + 1)

    ranged, called = turns(3 if quick else 5, stream, single)
    rate, per_call = batches / ranged, calls / called
    return Row(
        f"ranges, {BATCH} rows a batch, 64 a message",
        f"{rate:,.0f} batches/s",
        f"one a call: {per_call:,.0f} batches/s",
        f"{rate / per_call:.0f} x",
        ">= 20 x",
        rate / per_call >= 20,
    )


def loaders(server: Server, data: Path, quick: bool) -> list[Row]:
    place = server.folder / "runs" / "small" / "plan" / "epochs-000000-000003"
    rows = Manifest.open(place).records[0].samples

    def drain(plan: Any) -> Callable[[], None]:
        def run() -> None:  # opened anew, so that nothing is at hand yet
            for batch in ManifestLoader(plan, data, columns=["x"]):
                batch["x"], batch.rows

        return run

    remote, local = drain(f"{server.url}/runs/small"), drain(place)
    cpu = []
    for function in (remote, local):
        function()
        before = time.process_time()
        function()
        cpu.append(time.process_time() - before)
    through, files = turns(5 if quick else 9, remote, local)
    ratio = files / through
    return [
        Row(
            f"loader, batches of 256 rows of {4 * WIDTH} B",
            f"{3 * rows / through:,.0f} rows/s through the service",
            f"on files: {3 * rows / files:,.0f} rows/s",
            f"{ratio:.2f}",
            ">= 0.7",
            ratio >= 0.7,
        ),
        Row(
            "  the rank's own CPU seconds",
            f"{cpu[0]:.2f} s",
            f"on files: {cpu[1]:.2f} s",
            f"{cpu[1] / cpu[0]:.2f}",
        ),
    ]


def stalled(server: Server) -> Row:
    manifest = open_plan(f"{server.url}/runs/large").manifest_for(0)
    batches = min(len(manifest.epoch(0)), RANGE_BATCHES)
    route = f"/v1/manifests/{manifest.manifest_id}/epochs/0/batches?from=0&to={batches}"
    before = server.metric("batchloom_stream_bytes_total")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {route} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        connection.recv(100)
        time.sleep(2)
        ahead = server.metric("batchloom_stream_bytes_total") - before
    return Row(
        "a client that takes nothing",
        f"{ahead / MIB:.1f} MiB handed on ahead of it",
        f"asked for {batches * BATCH * 8 / MIB:.0f} MiB",
        f"{ahead / MIB:.1f} MiB",
        "<= 16 MiB",
        ahead <= 16 * MIB,
    )


# --- signals --------------------------------------------------------------------------------------


def part_of(rows: int, known: int, attempt: int, step: int) -> bytes:
    """Return the body of a part of losses."""
    ids = np.sort(np.random.default_rng(step).choice(known, rows, replace=False)).astype(np.uint64)
    observed = Observations(
        ids,
        np.zeros(rows, np.uint32),
        np.full(rows, step, np.uint64),
        np.zeros(rows, np.uint16),
        np.full(rows, attempt, np.uint16),
        np.random.default_rng(step).random(rows, dtype=np.float32),
    )
    return part_bytes(observed, writer=0, sequence=0, attempt=attempt)[1].to_pybytes()


def attempt_of(server: Server, run: str) -> int:
    answer = ServiceClient(server.url).request("POST", f"/v1/runs/{run}/attempts", body=b"{}")
    return int(answer.json()["attempt"])


def posting(server: Server, known: int, quick: bool) -> list[Row]:
    clients, parts, rows = 4, 3 if quick else 8, min(1 << 17, known)
    attempt = attempt_of(server, "large")
    body = part_of(rows, known, attempt, 0)
    numbers = [iter(range(10**6)) for _ in range(clients)]
    folder = server.folder.parent / "plain"
    folder.mkdir(exist_ok=True)
    names = iter(range(10**6))

    def post(writer: int) -> None:
        client = ServiceClient(server.url)
        for _ in range(parts):
            place = f"{attempt}/{writer}/{next(numbers[writer])}"
            client.request("PUT", f"/v1/runs/large/signals/loss/{place}", body=body)

    def write(number: int) -> None:
        for _ in range(parts):
            with open(folder / f"part-{next(names)}", "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())

    def post_bare(writer: int) -> None:
        client = ServiceClient(bare)
        for number in range(parts):
            client.request("PUT", f"/{writer}/{number}", body=body)

    process, bare = bare_server(folder)
    through, http, plain = turns(  # medians: a disk's rate doubles from one second to the next
        3 if quick else 11,
        lambda: in_threads(clients, post),
        lambda: in_threads(clients, post_bare),
        lambda: in_threads(clients, write),
        of=statistics.median,
    )
    process.terminate()
    process.wait()
    size = clients * parts * len(body) / MIB
    ours = f"{size / through:,.0f} MiB/s, {clients * parts * rows / through / 1e6:.1f} M rows/s"
    return [
        Row(
            f"signals, {clients} clients, parts of {len(body) / MIB:.1f} MiB, durable",
            ours,
            f"plain fsynced files: {size / plain:,.0f} MiB/s",
            f"{plain / through:.2f}",
            ">= 0.5",
            plain / through >= 0.5,
        ),
        Row(
            "  beside uvicorn that flushes bodies and looks at nothing",
            "",
            f"{size / http:,.0f} MiB/s",
            f"{http / through:.2f}",
        ),
    ]


def under_load(server: Server, known: int, quick: bool) -> list[Row]:
    seconds, readers, posters = 8 if quick else 60, 64, 8
    manifest = open_plan(f"{server.url}/runs/large").manifest_for(0)
    batches, schema = len(manifest.epoch(0)), part_schema(False, ())
    route = f"/v1/manifests/{manifest.manifest_id}/epochs/0/batches"
    attempt = attempt_of(server, "large")
    stop, waits = threading.Event(), [[] for _ in range(readers + posters)]
    sizes, began = [], time.monotonic()

    def read(number: int) -> None:
        client, draw = ServiceClient(server.url), random.Random(number)
        while not stop.is_set():
            start = draw.randrange(batches - 32)
            asked = time.perf_counter()
            data = client.get(f"{route}?from={start}&to={start + 32}").data
            waits[number].append(time.perf_counter() - asked)
            decode_range(data, schema, start=start, stop=start + 32, where="here")

    def post(number: int) -> None:
        client, sequence = ServiceClient(server.url), 0
        body = part_of(2000, known, attempt, 0)
        while not stop.is_set():
            asked = time.perf_counter()
            place = f"{attempt}/{100 + number}/{sequence}"
            client.request("PUT", f"/v1/runs/large/signals/loss/{place}", body=body)
            waits[number].append(time.perf_counter() - asked)
            sequence += 1

    def look(number: int) -> None:
        while not stop.wait(0.25):
            sizes.append((time.monotonic() - began, server.rss))
            if time.monotonic() - began > seconds:
                stop.set()

    failed = ""
    try:
        in_threads(
            readers + posters + 1,
            lambda n: (read if n < readers else post if n < readers + posters else look)(n),
        )
    except BatchloomError as error:
        failed = str(error)
    middle = max(size for at, size in sizes if at < seconds / 2)
    end = max(size for at, size in sizes if at >= seconds / 2)
    read_waits = sorted(w for waited in waits[:readers] for w in waited)
    post_waits = sorted(w for waited in waits[readers:] for w in waited)
    p99 = [1e3 * values[int(0.99 * len(values))] for values in (read_waits, post_waits)]
    p50 = [1e3 * statistics.median(values) for values in (read_waits, post_waits)]
    return [
        Row(
            f"{readers} clients reading, {posters} posting, {seconds} s",
            f"{len(read_waits) / seconds:,.0f} ranges/s, {len(post_waits) / seconds:,.0f} posts/s",
            failed or "no error",
            (failed and "failed") or "0 errors",
            "0 errors",
            not failed,
        ),
        Row(
            "  how long an answer takes, clients' own waits for the CPU included",
            f"range: p50 {p50[0]:.0f} ms, p99 {p99[0]:.0f} ms",
            f"post: p50 {p50[1]:.0f} ms, p99 {p99[1]:.0f} ms",
            f"{p99[0]:.0f} ms",
        ),
        Row(
            "  the service's memory, second half over first",
            f"{end / MIB:.0f} MiB",
            f"{middle / MIB:.0f} MiB",
            f"{end / middle:.2f}",
            "<= 1.15",
            end / middle <= 1.15,
        ),
    ]


def kills(server: Server, known: int, quick: bool) -> Row:
    wanted, draw = (5 if quick else 50), random.Random(0)
    attempt = attempt_of(server, "small")
    stop, acknowledged = threading.Event(), [0, 0]

    def post(writer: int) -> None:
        client = ServiceClient(server.url)
        while not stop.is_set():
            number = acknowledged[writer]
            body = part_of(500, known, attempt, 2 * number + writer)
            place = f"{attempt}/{writer}/{number}"
            client.request("PUT", f"/v1/runs/small/signals/loss/{place}", body=body)
            acknowledged[writer] += 1

    def kill(_: int) -> None:
        try:
            for _ in range(wanted):
                time.sleep(draw.uniform(0.05, 0.6))
                server.end(signal.SIGKILL)
                server.start()
            time.sleep(0.5)
        finally:
            stop.set()

    in_threads(3, lambda n: (post if n < 2 else kill)(n))
    store = SignalStore.open(server.folder / "runs" / "small" / "signals")
    held = {(p.name.writer, p.name.sequence) for p in store.parts() if p.rows == 500}
    said = {(w, n) for w in range(2) for n in range(acknowledged[w])}
    found = sum(len(values.rows) for values in store.latest())
    lost = len(said - held)
    return Row(
        f"{wanted} SIGKILLs while two clients post",
        f"{len(said):,} parts acknowledged, {found:,} rows",
        f"{len(held):,} parts there",
        f"{lost} lost",
        "0 lost",
        lost == 0 and len(held - said) <= 2,
    )


def run(folder: Path, quick: bool) -> Sequence[Row]:
    rows = 1_600_000 if quick else 4_000_000
    say("making a dataset and two runs")
    data = make_run(folder, rows)
    server = Server(folder / "service")
    table: list[Row] = []
    try:
        for name in ("large", "small"):
            open_plan(f"{server.url}/runs/{name}")
        for what, step in (
            ("ranges", lambda: [ranges_and_calls(server, quick)]),
            ("loaders", lambda: loaders(server, data, quick)),
            ("signals", lambda: posting(server, rows, quick)),
            ("a stalled client", lambda: [stalled(server)]),
            ("load", lambda: under_load(server, rows, quick)),
            ("kills", lambda: [kills(server, rows, quick)]),
        ):
            say(what)
            table += step()
        return table
    finally:
        server.end()


if __name__ == "__main__":
    title = (__doc__ or "").splitlines()[0]
    sys.exit(run_benchmark(title, run))
