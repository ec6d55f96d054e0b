"""Requests: what is answered to good ones and to bad ones; who may ask; how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import urllib3
from batchloom.dataplane import BatchPlan, ManifestWriter, Snapshot, open_plan
from batchloom.dataplane.errors import MissingExtraError, NoRoomError, ParameterError, StorageError
from batchloom.dataplane.manifest_part import part_schema
from batchloom.dataplane.remote_client import ServiceClient
from batchloom.dataplane.remote_wire import decode_range
from batchloom.dataplane.snapshot import Fragment
from batchloom.jobs.service import app as app_module
from batchloom.jobs.service.refusals import RefusedError, status_of
from batchloom.tests.jobs.service.running import (
    Served,
    ask,
    body_of,
    raw,
    refused,
    shelf,
    wait_ready,
    write_run,
)


@pytest.fixture(scope="module")
def served(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("http") / "service"
    write_run(folder, "first", small)
    with Served(folder) as running:
        wait_ready(running.url, "first", 0)
        yield running


@pytest.fixture(scope="module")
def manifest_id(served: Served) -> str:
    return wait_ready(served.url, "first", 0)


@pytest.fixture(scope="module")
def attempt(served: Served) -> int:
    return int(ask(f"{served.url}/v1/runs/first/attempts", "POST", {})[1]["attempt"])


# --- reading --------------------------------------------------------------------------------------


def test_a_header_is_the_file_and_is_not_sent_twice(served: Served, manifest_id: str) -> None:
    url = f"{served.url}/v1/manifests/{manifest_id}"
    status, told, headers = ask(url)
    assert (status, headers["etag"]) == (200, f'"{manifest_id}"')
    file = served.folder / "runs/first/plan/epochs-000000-000001/manifest.json"
    assert told == json.loads(file.read_bytes())
    assert urllib3.request("GET", url).data == file.read_bytes()
    for tag in (f'"{manifest_id}"', f'W/"{manifest_id}"'):
        assert ask(url, **{"If-None-Match": tag})[0] == 304
    assert ask(url, **{"If-None-Match": '"other"'})[0] == 200


def test_a_range_is_an_arrow_stream(served: Served, manifest_id: str) -> None:
    opened = open_plan(f"{served.url}/runs/first")
    route = f"{served.url}/v1/manifests/{manifest_id}/epochs/0/batches"
    status, data, headers = ask(f"{route}?from=2&to=9")
    assert (status, headers["content-type"]) == (200, "application/vnd.apache.arrow.stream")
    found = decode_range(data, part_schema(False, ()), start=2, stop=9, where="here")
    assert found.plan.rows.tolist() == opened.epoch(0).plan(2, 9).rows.tolist()
    assert found.rows_before == 64
    assert pa.ipc.open_stream(data).read_all().num_rows == 7


def test_ranges_and_names_that_are_not_there(served: Served, manifest_id: str) -> None:
    url, route = served.url, f"{served.url}/v1/manifests/{manifest_id}"
    refused(ask(f"{route}/epochs/0/batches?from=0&to=33"), 416, "0 to 29", "0 to 33")
    refused(ask(f"{route}/epochs/0/batches?from=5&to=5"), 416)
    refused(ask(f"{route}/epochs/0/batches?from=9&to=5"), 416)
    refused(ask(f"{route}/epochs/0/batches?from=0"), 400, "'to' must be an int")
    for bad in ("-1", "x", "1e3", "٣", "1" * 30, "1.0", "+1", ""):
        refused(ask(f"{route}/epochs/0/batches?from={bad}&to=5"), 400, "'from' must be")
    refused(ask(f"{route}/epochs/1/batches?from=0&to=1"), 404, "holds no epoch 1")
    refused(ask(f"{url}/v1/manifests/{'0' * 64}"), 404, "There is no manifest 0000")
    for bad in ("x", "0" * 63, "0" * 65, "G" * 64, "..%2f..%2fjob.toml"):
        refused(ask(f"{url}/v1/manifests/{bad}"), 404 if "2f" in bad else 400)
    refused(ask(f"{url}/v1/runs/other"), 404, "There is no run 'other'")
    for bad in ("..", "../first", "%2e%2e", "first%00", ".first", "a" * 65, "..%5c"):
        status = raw(served, f"GET /v1/runs/{bad} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert status in (400, 404), bad
    refused(ask(f"{url}/v1/runs/first/epochs/3"), 404, "has no epoch 3: it is of epochs 0 to 2")
    refused(ask(f"{url}/v1/runs/first/epochs/x"), 400)
    refused(ask(f"{url}/v1/runs/first/epochs/1?wait=soon"), 400, "'wait' must be")
    refused(ask(f"{url}/nothing/here"), 404, "/openapi.json")
    refused(ask(f"{url}/v1/runs", "DELETE"), 405, "does not take DELETE")


def test_long_polls_end_when_they_should(served: Served) -> None:
    began = time.monotonic()
    status, told, _ = ask(f"{served.url}/v1/runs/first/epochs/1?wait=0.4")
    assert (status, told["state"]) == (200, "pending")
    assert 0.3 < time.monotonic() - began < 10
    assert set(told) == {"state", "step", "done", "total", "eta"}
    assert ask(f"{served.url}/v1/runs/first/epochs/1?wait=nan")[1]["state"] == "pending"


# --- signals --------------------------------------------------------------------------------------


def test_the_same_part_again_is_fine_and_another_is_a_conflict(
    served: Served, attempt: int
) -> None:
    place = f"{served.url}/v1/runs/first/signals/again/{attempt}/3/0"
    first = ask(place, "PUT", body_of([5, 9], attempt=attempt))
    assert (first[0], first[1]["rows"], first[1]["again"]) == (200, 2, False)
    again = ask(place, "PUT", body_of([5, 9], attempt=attempt))
    assert (again[0], again[1]["again"]) == (200, True)
    assert again[1]["sha256"] == first[1]["sha256"]
    refused(ask(place, "PUT", body_of([5, 8], attempt=attempt)), 409, "other content")
    folder = served.folder / "runs/first/signals/again"
    assert len(list(folder.iterdir())) == 1


def test_a_stream_in_any_order_is_the_same_part(served: Served, attempt: int) -> None:
    place = f"{served.url}/v1/runs/first/signals/stream/{attempt}/0/0"
    table = pa.ipc.open_file(body_of([2, 5, 9], attempt=attempt)).read_all()
    sink = pa.BufferOutputStream()
    mixed = table.take([2, 0, 1])
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(mixed.replace_schema_metadata(None), max_chunksize=2)
    assert ask(place, "PUT", sink.getvalue().to_pybytes())[0] == 200
    again = ask(place, "PUT", body_of([2, 5, 9], attempt=attempt))
    assert (again[0], again[1]["again"]) == (200, True)


def bad_bodies(attempt: int) -> dict[str, tuple[bytes, int, str]]:
    """Return bodies that are refused, with status and a word of why."""
    good = body_of([1, 2, 3], attempt=attempt)
    table = pa.ipc.open_file(good).read_all()

    def as_stream(given: pa.Table, compression: str | None = None) -> bytes:
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(sink, given.schema, options=options) as writer:
            writer.write_table(given)
        return sink.getvalue().to_pybytes()

    nulls = table.set_column(5, "value", pa.array([1.0, None, 2.0], pa.float32()))
    double = table.set_column(5, "value", table["value"].cast(pa.float64()))
    far = body_of([1, 1000], attempt=attempt)
    late = body_of([1], epoch=2, attempt=attempt)
    nan = body_of([7, 8], attempt=attempt, value=[np.nan, 1.0])
    inf = body_of([7, 8], attempt=attempt, value=[1.0, np.inf])
    return {
        "empty": (b"", 400, "no whole Arrow"),
        "text": (b"row,loss\n1,2\n", 400, "no whole Arrow"),
        "truncated file": (good[: len(good) // 2], 400, "no whole Arrow"),
        "truncated stream": (as_stream(table)[:-20], 400, "no whole Arrow"),
        "no rows": (as_stream(table.slice(0, 0)), 400, "no observation"),
        "column missing": (as_stream(table.drop_columns(["step"])), 400, "must have the columns"),
        "wrong type": (as_stream(double), 400, "'value' must be float"),
        "nulls": (as_stream(nulls), 400, "nulls"),
        "rows beyond": (far, 422, "1000"),
        "epoch to come": (late, 422, "no plan of epoch 2"),
        "compressed": (as_stream(table, "zstd"), 400, "compressed"),
        "NaN": (nan, 422, "NaN or infinite: 7"),
        "infinite": (inf, 422, "NaN or infinite: 8"),
        "other attempt": (body_of([1], attempt=attempt + 1), 422, "column 'attempt'"),
    }


BAD = [name for name in bad_bodies(1) if name not in ("NaN", "infinite")]  # below


@pytest.mark.parametrize("name", BAD)
def test_bodies_that_are_refused(served: Served, attempt: int, name: str) -> None:
    body, status, word = bad_bodies(attempt)[name]
    place = f"{served.url}/v1/runs/first/signals/bad/{attempt}/0/0"
    refused(ask(place, "PUT", body), status, word)
    assert not (served.folder / "runs/first/signals/bad").exists()


def test_losses_that_are_not_finite(small: Path, tmp_path: Path) -> None:
    job = 'dataset = "{data}"\nbatch_size = 50\nseries = true\nepochs = "0:2"\n'
    stage = '[[stages]]\nmethod = "seta"\ntraining_epochs = 2\nnonfinite = '
    folder = tmp_path / "service"
    write_run(folder, "strict", small, job=job + stage + '"fail"\n')
    write_run(folder, "soft", small, job=job + stage + '"keep"\n')
    with Served(folder) as served:
        for name in ("strict", "soft"):
            wait_ready(served.url, name, 0)
            attempt = ask(f"{served.url}/v1/runs/{name}/attempts", "POST", {})[1]["attempt"]
            place = f"{served.url}/v1/runs/{name}/signals/loss/{attempt}/0/0"
            for kind in ("NaN", "infinite"):
                body, status, word = bad_bodies(attempt)[kind]
                answer = ask(place, "PUT", body)
                if name == "strict":
                    refused(answer, status, word)
                    continue
                assert answer[0] == 200
                break


def test_numbers_and_names_of_parts(served: Served, attempt: int) -> None:
    run, body = f"{served.url}/v1/runs/first", body_of([1], attempt=attempt)
    refused(ask(f"{run}/signals/loss/999/0/0", "PUT", body), 409, "no attempt 999: draw one")
    refused(ask(f"{run}/signals/loss/x/0/0", "PUT", body), 400, "'attempt' must be")
    refused(ask(f"{run}/signals/loss/{attempt}/100000/0", "PUT", body), 400, "'writer'")
    refused(ask(f"{run}/signals/loss/{attempt}/0/100000000", "PUT", body), 400, "'sequence'")
    for bad in ("..", "a%2fb", "%2e%2e", ".hidden", "a b", "x" * 65):
        status = ask(f"{run}/signals/{bad}/{attempt}/0/0", "PUT", body)[0]
        assert status in (400, 404), bad
    wide = body_of([1], attempt=attempt, value=np.ones((1, 3)))
    assert ask(f"{run}/signals/wide/{attempt}/0/0", "PUT", wide)[0] == 200
    refused(ask(f"{run}/signals/wide/{attempt}/0/1", "PUT", body), 422, "width 3", "width 0")
    refused(ask(f"{run}/attempts", "POST", b"{"), 400, "not JSON")
    refused(ask(f"{run}/attempts", "POST", b"[1]"), 400, "JSON object")
    refused(ask(f"{run}/attempts", "POST", {"fingerprint": 7}), 400, "'fingerprint'")
    refused(ask(f"{run}/attempts", "POST", {"fingerprint": "0"}), 409, "another dataset")
    for key, value in (
        ("attempt", 0), ("world", 0), ("rank", 1), ("rank", True), ("parts", [1]),
        ("parts", {"loss": -1}), ("world", 1 << 40),
    ):  # fmt: skip
        body_ = {"attempt": attempt, "rank": 0, "world": 1, "parts": {}, key: value}
        refused(ask(f"{run}/epochs/0/seal", "POST", body_), 400, f"'{key}' must")
    whole = {"attempt": attempt, "rank": 0, "world": 1, "parts": {}}
    refused(ask(f"{run}/epochs/1/seal", "POST", whole), 409, "not planned yet")
    refused(ask(f"{run}/epochs/9/seal", "POST", whole), 404, "no epoch 9")


def test_bodies_that_are_too_large_or_stop(served: Served, attempt: int) -> None:
    place = f"/v1/runs/first/signals/loss/{attempt}/0/0"
    head = f"PUT {place} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert raw(served, f"{head}Content-Length: {(64 << 20) + 1}\r\n\r\n") == 413
    # A parser may not read such a number at all.
    assert raw(served, f"{head}Content-Length: 99999999999999999999\r\n\r\n") in (400, 413)
    assert raw(served, f"{head}Content-Length: 100\r\n\r\n", b"short", hang_up=True) == 0
    chunk = f"{1 << 20:x}\r\n".encode() + bytes(1 << 20) + b"\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        with contextlib.suppress(OSError):  # it hangs up
            for sent in range(200):  # noqa: B007
                connection.sendall(chunk)
        assert 60 < sent < 199
    seal = "POST /v1/runs/first/epochs/0/seal HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert raw(served, f"{seal}Content-Length: 2000000\r\n\r\n") == 413
    assert ask(f"{served.url}/healthz")[0] == 200
    text = ask(f"{served.url}/metrics")[1].decode()
    assert "batchloom_body_bytes_held 0\n" in text


def test_streams_are_limited(
    served: Served, manifest_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "OPEN_STREAMS", 3)
    monkeypatch.setattr(app_module, "_SLOT_SECONDS", 0.2)
    rows = np.arange(4_000_000, dtype=np.uint64)
    fragment = Fragment("data", "x.parquet", len(rows), 1, "0" * 64, 0)
    snapshot = Snapshot((fragment,), len(rows), "0" * 64)
    with ManifestWriter(tmp_path / "plan", snapshot=snapshot, seed=0) as writer:
        with writer.epoch(0):
            writer.append(BatchPlan.cut(rows, 10_000))
        manifest = writer.commit()
    with shelf(tmp_path / "shelf") as running:
        url = f"{running.url}/v1/manifests/{running.put(manifest)}/epochs/0/batches?from=0&to=400"
        sockets = []
        for _ in range(3):  # each asks for 32 MB, and takes none of it
            connection = socket.create_connection(("127.0.0.1", int(running.url[17:])))
            place = url.removeprefix(running.url)
            connection.sendall(f"GET {place} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            sockets.append(connection)
        metrics = running.service.metrics
        until = time.monotonic() + 20
        while metrics.get("batchloom_streams_open") < 3 and time.monotonic() < until:
            time.sleep(0.02)
        answer = ask(url)
        refused(answer, 429, "3 ranges are being sent")
        assert answer[2]["retry-after"] == "1"
        time.sleep(0.5)
        assert metrics.get("batchloom_stream_bytes_total") < 3 * (16 << 20)
        for connection in sockets:
            connection.close()
        assert ServiceClient(running.url).get(url.removeprefix(running.url)).status == 200
        until = time.monotonic() + 20
        while metrics.get("batchloom_streams_open") and time.monotonic() < until:
            time.sleep(0.02)
        assert metrics.get("batchloom_streams_open") == 0


# --- how it ends, what it tells -------------------------------------------------------------------


def test_it_ends_when_it_is_told_and_answers_what_waits(small: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "service", "first", small)
    with Served(tmp_path / "service") as served:
        wait_ready(served.url, "first", 0)
        answers: list[Any] = []
        url = f"{served.url}/v1/runs/first/epochs/1?wait=30"
        waiting = threading.Thread(target=lambda: answers.append(ask(url)))
        waiting.start()
        time.sleep(0.5)
        began = time.monotonic()
        assert served.stop() == 0
        waiting.join()
        assert time.monotonic() - began < 15
        assert answers[0][0] == 200
    events = [e["event"] for e in served.events()]
    assert events[-1] == "stopped"
    assert all("time" in e for e in served.events())


def test_what_it_tells_of_itself(served: Served) -> None:
    assert ask(f"{served.url}/readyz")[1] == {"state": "ready"}
    assert ask(f"{served.url}/v1/runs/first")[1]["run"] == "first"
    for page in ("/", "/runs/first"):
        assert ask(f"{served.url}{page}")[0] == 200
    told = ask(f"{served.url}/openapi.json")[1]
    assert told["openapi"].startswith("3.")
    from batchloom.jobs.service.app import _Routes
    from batchloom.jobs.service.metrics import Metrics

    class Core:
        metrics = Metrics()

    routes = {r.path for r in _Routes(Core()).routes()}  # type: ignore[arg-type]
    assert set(told["paths"]) == routes
    text = ask(f"{served.url}/metrics")[1].decode()
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.split(" ")) == 2
    assert "# TYPE batchloom_streams_open gauge" in text
    assert 'batchloom_requests_total{status="200"}' in text


def test_errors_have_their_status() -> None:
    assert status_of(NoRoomError("x")) == 507
    full = StorageError("x")
    full.__cause__ = OSError(28, "No space left on device")
    assert status_of(full) == 507
    assert status_of(StorageError("x")) == 500
    assert status_of(RefusedError(418, "x")) == 418
    assert status_of(ParameterError("x")) == 400
    assert status_of(MissingExtraError("x")) == 501


def test_the_client_knows_a_full_disk_and_busy_times(tmp_path: Path) -> None:
    statuses = [429, 503, 200, 507]
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for status in statuses:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    body = json.dumps({"error": {"type": "StorageError", "message": "full"}})
                    connection.sendall(
                        f"HTTP/1.1 {status} x\r\nConnection: close\r\nRetry-After: 0\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                    )

        thread = threading.Thread(target=answer)
        thread.start()
        client = ServiceClient(f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert client.get("/").status == 200
        with pytest.raises(NoRoomError, match="full"):
            client.get("/")
        thread.join()


def test_only_the_verb_imports_the_server() -> None:
    script = (
        "import sys, batchloom.dataplane.remote, batchloom.samplers.loader;"
        "import batchloom.jobs.cli.app;"
        "print({'starlette', 'uvicorn', 'urllib3'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [os.environ.get("PYTHON", "") or __import__("sys").executable, "-c", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.strip() == "set()"
