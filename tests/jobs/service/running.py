"""Services for tests: processes that can be killed, and one in a thread that serves manifests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import urllib3
from batchloom.dataplane import Manifest
from batchloom.dataplane.observations import Observations
from batchloom.dataplane.signal_parts import part_bytes

TOKEN = "a-token-for-the-tests-only"

JOB = """
dataset = "{data}"
batch_size = 32
epochs = "0:{epochs}"
seed = 7

[[stages]]
method = "seta"
training_epochs = {epochs}
"""


def write_run(folder: Path, name: str, data: Path, *, epochs: int = 3, job: str = JOB) -> Path:
    """Prepare a run, as an operator does."""
    run = folder / "runs" / name
    run.mkdir(parents=True)
    (run / "job.toml").write_text(job.format(data=data, epochs=epochs))
    return run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Served:
    """``batchloom serve`` in a process of its own."""

    def __init__(self, folder: Path, *arguments: object, port: int = 0, **environment: str) -> None:
        self.folder, self.arguments, self.port = folder, arguments, port
        self.environment = environment
        self.log = folder.with_name(f"{folder.name}.log")
        self.process: subprocess.Popen[str] | None = None
        self.script = "from batchloom.jobs.cli import main; main()"
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it, at the port that it had before; return when it takes connections."""
        command: list[object] = [sys.executable, "-P", "-c", self.script]
        command += ["serve", self.folder, "--port", self.port, "--workers", 0, *self.arguments]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [str(c) for c in command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )
        line = self.process.stdout.readline() if self.process.stdout else ""
        assert line, self.log.read_text()
        self.url = json.loads(line)["serving"]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self._end()

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        assert self.process is not None
        code = self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"time"')]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def ask(
    url: str, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Ask once; return (status, JSON or bytes, header fields)."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    found = urllib3.request(method, url, body=body, headers=headers, retries=False, timeout=40)
    told: Any = found.data
    if found.headers.get("content-type", "").startswith("application/json"):
        told = found.json()
    return found.status, told, dict(found.headers)


def refused(answer: tuple[int, Any, dict[str, str]], status: int, *words: str) -> None:
    """Assert that a request was refused, with a sentence as JSON that holds some words."""
    found, told, headers = answer
    assert found == status, told
    assert headers["content-type"] == "application/json"
    assert told["error"]["status"] == status
    for word in words:
        assert word in told["error"]["message"]
    assert "Traceback" not in told["error"]["message"]


def raw(served: Served, text: str, body: bytes = b"", *, hang_up: bool = False) -> int:
    """Send bytes; return the status that is answered, 0 where none is."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(text.encode("latin-1") + body)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(4096)
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def wait_ready(url: str, run: str, epoch: int) -> str:
    """Wait for the plan of an epoch; return its id."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        status, told, _ = ask(f"{url}/v1/runs/{run}/epochs/{epoch}?wait=20")
        assert status == 200, told
        if told["state"] == "ready":
            return str(told["id"])
        assert told["state"] == "pending", told
    raise AssertionError(f"epoch {epoch} of {run} was not planned in time")


def loss_of(rows: Any, epoch: int) -> np.ndarray:
    """Return losses that are a function of row and epoch."""
    return np.abs(np.sin(np.asarray(rows, dtype=np.float64) * 0.37 + epoch)).astype(np.float32)


def body_of(
    rows: Any, *, epoch: int = 0, step: int = 0, attempt: int = 1, value: Any = None
) -> bytes:
    """Return the body of a part of a signal."""
    rows = np.asarray(rows, np.uint64)
    n = len(rows)
    observed = Observations(
        rows,
        np.full(n, epoch, np.uint32),
        np.full(n, step, np.uint64),
        np.zeros(n, np.uint16),
        np.full(n, attempt, np.uint16),
        loss_of(rows, epoch) if value is None else np.asarray(value, np.float32),
    )
    return part_bytes(observed, writer=0, sequence=0, attempt=attempt)[1].to_pybytes()


class Shelf:
    """A service in a thread that serves the manifests that it is given."""

    def __init__(self, folder: Path) -> None:
        import uvicorn
        from batchloom.jobs.service.app import make_app
        from batchloom.jobs.service.metrics import EventLog
        from batchloom.jobs.service.service import Service
        from batchloom.jobs.service.serving import Address, _listen

        self._held: dict[str, Manifest] = {}
        self.service = Service(folder, log=EventLog(open(os.devnull, "w")))  # noqa: SIM115
        self.service.runs.manifest = self._held.__getitem__  # type: ignore[method-assign]
        listening = _listen(Address(port=0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(make_app(self.service), log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()

    def put(self, manifest: Manifest) -> str:
        self._held[manifest.manifest_id] = manifest
        return manifest.manifest_id

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self.service.close()


@contextlib.contextmanager
def shelf(folder: Path) -> Iterator[Shelf]:
    """Serve manifests from a thread."""
    running = Shelf(folder)
    try:
        yield running
    finally:
        running.close()
