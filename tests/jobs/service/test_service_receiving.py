"""Large bodies: received where they are kept, whatever the connection does around them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from batchloom.jobs.service import guard
from batchloom.jobs.service.guard import Bodies, Guard
from batchloom.jobs.service.metrics import EventLog, Metrics
from batchloom.jobs.service.receiving import LEAST_BYTES, HttpProtocol
from starlette.requests import Request
from starlette.responses import JSONResponse

MOST = 8 << 20
BODY = bytes(range(256)) * 12_289  # about 3 MiB, and no multiple of a power of two


class Running:
    """A server in a thread that answers with what it received, and how."""

    def __init__(self, loop: str, **options: Any) -> None:
        self.metrics, self.in_pieces = Metrics(), 0
        self.bodies = Bodies(self.metrics, MOST, 2 * MOST)
        pieces = self.bodies._pieces

        async def counted(*arguments: Any) -> bytearray:
            self.in_pieces += 1
            return await pieces(*arguments)

        self.bodies._pieces = counted  # type: ignore[method-assign]  # told which way a body came
        log = EventLog(open(os.devnull, "w"))  # noqa: SIM115  # it is open as long as the app
        app = Guard(self.app, token=None, local_only=True, metrics=self.metrics, log=log)
        config = uvicorn.Config(
            app, http=HttpProtocol, loop=loop, log_config=None, lifespan="off", **options
        )
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        self.thread.start()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        before = self.in_pieces
        with await self.bodies.read(Request(scope, receive)) as data:
            told = {"sha256": hashlib.sha256(data).hexdigest(), "direct": before == self.in_pieces}
        await JSONResponse(told)(scope, receive, send)

    @property
    def held(self) -> bool:
        return "batchloom_body_bytes_held 0" not in self.metrics.text()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture(params=["asyncio", "uvloop"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    found = Running(request.param)
    yield found
    found.close()


def head(length: int = len(BODY), method: str = "PUT", **fields: str) -> bytes:
    lines = [f"{method} / HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    text = b""
    while not text.endswith(b"\r\n\r\n"):  # no byte of the next answer is taken
        byte = connection.recv(1)
        assert byte, text
        text += byte
    length, told = int(text.lower().split(b"content-length:")[1].split()[0]), b""
    while len(told) < length:
        told += connection.recv(length - len(told))
    return int(text.split()[1]), json.loads(told)


def took(told: dict[str, Any], body: bytes, *, direct: bool) -> None:
    assert told == {"sha256": hashlib.sha256(body).hexdigest(), "direct": direct}


def until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_connection_takes_bodies_of_all_sizes(running: Running) -> None:
    with contextlib.closing(running.connect()) as connection:
        for size in (0, 10, LEAST_BYTES - 1, LEAST_BYTES, len(BODY), 5, len(BODY), LEAST_BYTES):
            connection.sendall(head(size) + BODY[:size])
            status, told = answer(connection)
            assert status == 200
            # What came with the header may have been all of a body.
            if size < LEAST_BYTES or size == len(BODY):
                took(told, BODY[:size], direct=size >= LEAST_BYTES)
    until(lambda: not running.held)


def test_a_body_that_comes_in_drops(running: Running) -> None:
    with contextlib.closing(running.connect()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        text, at = head() + BODY, 0
        for size in (*[7] * 40, 100_000, len(BODY) - 110_000, len(BODY)):
            connection.sendall(text[at : at + size])
            at += size
            time.sleep(0.005)
        took(answer(connection)[1], BODY, direct=True)


def test_what_is_sent_behind_a_body_is_the_next_request(running: Running) -> None:
    with contextlib.closing(running.connect()) as connection:
        requests = head() + BODY + head(3) + b"abc" + head() + BODY
        threading.Thread(target=connection.sendall, args=(requests,)).start()
        for body in (BODY, b"abc", BODY):
            status, told = answer(connection)
            assert status == 200
            assert told["sha256"] == hashlib.sha256(body).hexdigest()


def test_bodies_that_come_in_pieces_as_ever(running: Running) -> None:
    with contextlib.closing(running.connect()) as connection:
        text = b"PUT / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(text + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n")
        took(answer(connection)[1], BODY, direct=False)
        connection.sendall(head(Expect="100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        took(answer(connection)[1], BODY, direct=False)
        connection.sendall(head(Connection="close") + BODY)
        took(answer(connection)[1], BODY, direct=False)
        assert connection.recv(1) == b""


def test_a_client_that_goes_leaves_nothing(running: Running) -> None:
    for sent, half in ((0, False), (100_000, False), (1_000_000, True)):
        connection = running.connect()
        connection.sendall(head() + BODY[:sent])
        until(lambda: running.held)
        if half:
            connection.shutdown(socket.SHUT_WR)
            until(lambda: not running.held)
        connection.close()
        until(lambda: not running.held)
    with contextlib.closing(running.connect()) as connection:
        connection.sendall(head() + BODY)
        took(answer(connection)[1], BODY, direct=True)


def test_limits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(running.connect()) as connection:
        connection.sendall(head(MOST + 1))
        assert answer(connection)[0] == 413
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(contextlib.closing(running.connect())).sendall(head(MOST))
        until(lambda: f"batchloom_body_bytes_held {2 * MOST}" in running.metrics.text())
        third = stack.enter_context(contextlib.closing(running.connect()))
        third.sendall(head())
        assert answer(third)[0] == 429
    until(lambda: not running.held)
    monkeypatch.setattr(guard, "_CHUNK_SECONDS", 0.3)
    with contextlib.closing(running.connect()) as connection:
        connection.sendall(head() + BODY[:-1])
        status, told = answer(connection)
        assert status == 408
        assert "stopped coming" in told["error"]["message"]
        assert connection.recv(1) == b""
    assert not running.held


def test_a_body_on_its_way_is_taken_before_the_end(running: Running) -> None:
    with contextlib.closing(running.connect()) as connection:
        connection.sendall(head() + BODY[:1_000_000])
        until(lambda: running.held)
        running.server.should_exit = True
        time.sleep(0.3)
        connection.sendall(BODY[1_000_000:])
        took(answer(connection)[1], BODY, direct=True)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_over_tls(loop: str, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    running = Running(loop, ssl_certfile=cert, ssl_keyfile=key)
    context = ssl.create_default_context(cafile=str(cert))
    try:
        with context.wrap_socket(running.connect(), server_hostname="127.0.0.1") as connection:
            for body in (BODY, b"abc", BODY + b"!"):
                connection.sendall(head(len(body)) + body)
                took(answer(connection)[1], body, direct=len(body) > 3)
        until(lambda: not running.held)
    finally:
        running.close()
