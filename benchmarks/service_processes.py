"""The processes of the service's benchmark: the service, and a server that does next to nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from batchloom.dataplane.remote_client import ServiceClient

__all__ = ["Server", "bare_server"]

BARE = """
import itertools, os, sys
import uvicorn

folder, names = sys.argv[1], itertools.count()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    with open(f"{folder}/bare-{next(names)}", "wb") as file:
        file.write(b"".join(parts))
        file.flush()
        os.fsync(file.fileno())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})

uvicorn.run(app, port=int(sys.argv[2]), log_level="critical")
"""


class Server:
    """``batchloom serve`` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.log = open(folder.with_name("service.log"), "a")  # noqa: SIM115
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-c", "from batchloom.jobs.cli import main; main()", "serve"]
        command += [str(self.folder), "--port", str(self.port), "--workers", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline() if self.process.stdout else ""
        self.url = json.loads(line)["serving"]
        self.port = int(self.url.rpartition(":")[2])

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait()

    @property
    def rss(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def metric(self, name: str) -> float:
        text = ServiceClient(self.url).get("/metrics").data.decode()
        lines = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(lines[0].split()[1])


def bare_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server that flushes each body to a file and does nothing else."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", BARE, str(folder), str(port)])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return process, f"http://127.0.0.1:{port}"
