"""An S3 store on the loopback for tests: a moto server process, and a proxy that injects faults.

The proxy stands in for what moto does not do: it makes a conditional PUT atomic, checks the
checksums of uploads and the access key, and keeps a log of all requests.
"""

from __future__ import annotations

import base64
import http.client
import struct
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "tests"
KEY = "AKIDTESTS"

_SIGNED = (
    f"AWS4-HMAC-SHA256 Credential={KEY}/20200101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=none"
)

MOTO = """
import sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def moto_server() -> Iterator[int]:
    """Run a moto server in a process of its own; yield its port."""
    child = subprocess.Popen(
        [sys.executable, "-c", MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{BUCKET}", headers={"Host": f"127.0.0.1:{port}"})
        assert connection.getresponse().status == 200
        connection.close()
        yield port
    finally:
        child.kill()
        child.communicate()


@dataclass
class Fault:
    """What goes wrong with `times` requests that match, after `skip` others.

    Kinds: ``delay`` (`seconds` before the answer), ``slow-upload`` (the request's body takes
    `seconds`), ``status`` (answered with `status` and `code`,
    not applied), ``cut-before`` (the connection is cut, not applied), ``cut-after`` (applied, then
    cut), ``fail-after`` (applied, then answered with `status`), ``cut-body`` (cut in the middle of
    the answer's body), ``short`` (a body of half the bytes, with a length that fits it), ``flip``
    (one bit of the answer's body changed), ``corrupt-upload`` (one bit of the request's body
    changed on the way).
    """

    kind: str
    method: str = ""
    match: str = ""
    times: int = 1
    skip: int = 0
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    seen: int = 0


@dataclass
class Request:
    """One line of the log."""

    method: str
    path: str
    range: str | None
    status: int = 0
    sent: int = 0  # bytes of the answer's body
    received: int = 0  # bytes of the request's body


@dataclass
class Store:
    """A folder of a bucket, reached through the proxy.

    Attributes
    ----------
    url : str
        ``s3://tests/<random>``
    options : dict
        Storage options that reach it.
    """

    url: str
    moto: int
    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    log: list[Request] = field(default_factory=list)
    ignores_conditions: bool = False
    access_key: str = KEY
    lock: Any = field(default_factory=threading.Lock)

    @property
    def options(self) -> dict[str, Any]:
        return {"key": KEY, "secret": "none", "endpoint_url": self.endpoint}

    def options_with(self, **config: Any) -> dict[str, Any]:
        """Return options with values of botocore's configuration."""
        return {**self.options, "config_kwargs": config}

    def at(self, name: str) -> str:
        return f"{self.url}/{name}"

    def fail(self, kind: str, **what: Any) -> Fault:
        fault = Fault(kind, **what)
        self.faults.append(fault)
        return fault

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                fits = fault.method in ("", method) and fault.match in path
                if fits and fault.skip:
                    fault.skip -= 1
                elif fits and fault.seen < fault.times:
                    fault.seen += 1
                    return fault
        return None

    # --- behind the proxy's back ------------------------------------------------------------------

    def raw(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask moto directly."""
        connection = http.client.HTTPConnection("127.0.0.1", self.moto)
        connection.request(method, path, body, {"Authorization": _SIGNED})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def put(self, name: str, data: bytes) -> None:
        assert self.raw("PUT", self._key(name), data)[0] == 200

    def get(self, name: str) -> bytes:
        status, data = self.raw("GET", self._key(name))
        assert status == 200, (name, status)
        return data

    def delete(self, name: str) -> None:
        assert self.raw("DELETE", self._key(name))[0] == 204

    def names(self, below: str = "") -> list[str]:
        """Return the names of all keys below one, sorted, hidden ones too."""
        import re

        prefix = self.url.removeprefix(f"s3://{BUCKET}/") + "/"
        listing = self.raw("GET", f"/{BUCKET}?list-type=2&max-keys=100000&prefix={prefix}{below}")
        found = re.findall("<Key>(.*?)</Key>", listing[1].decode())
        return sorted(key.removeprefix(prefix) for key in found)

    def _key(self, name: str) -> str:
        return f"{self.url.removeprefix('s3:/')}/{name}"

    # --- counting ---------------------------------------------------------------------------------

    @contextmanager
    def counting(self) -> Iterator[list[Request]]:
        """Yield the requests that are made inside the block."""
        counted: list[Request] = []
        start = len(self.log)
        yield counted
        counted += self.log[start:]


class Proxy(ThreadingHTTPServer):
    """A proxy before moto, for one store after the other: clients of its endpoint are dear to make.

    A request belongs to the store whose folder its path names, else to the newest one.
    """

    daemon_threads = True

    def __init__(self, moto: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.moto, self.stores = moto, [Store("", moto)]

    def fresh(self) -> Store:
        """Return a store with a fresh folder."""
        url = f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"
        self.stores.append(Store(url, self.moto, f"http://127.0.0.1:{self.server_address[1]}"))
        return self.stores[-1]

    def store_of(self, path: str) -> Store:
        named = (s for s in self.stores[1:] if s.url.rpartition("/")[2] in path)
        return next(named, self.stores[-1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away: some are made to."""


@contextmanager
def proxy(moto: int) -> Iterator[Proxy]:
    """Run a proxy before moto."""
    with Proxy(moto) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy
    store: Store
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        store = self.store = self.server.store_of(self.path)
        fault = store.fault_of(self.command, self.path)
        kind = fault.kind if fault else ""
        line = Request(self.command, self.path, self.headers.get("Range"))
        store.log.append(line)
        body = self._body(fault.seconds if fault and kind == "slow-upload" else 0.0)
        line.received = len(body)
        if fault and kind == "delay":
            time.sleep(fault.seconds)
        if kind == "cut-before":
            self._cut()
            return
        if fault and kind == "status":
            self._refuse(line, fault.status, fault.code)
            return
        if f"Credential={store.access_key}/" not in self.headers.get("Authorization", ""):
            self._refuse(line, 403, "InvalidAccessKeyId")
            return
        if kind == "corrupt-upload":
            body = _flipped(body)
        if not self._sum_is_right(body):
            self._refuse(line, 400, "BadDigest")
            return
        status, headers, data = self._forward(body)
        if kind == "cut-after":
            self._cut()
            return
        if fault and kind == "fail-after":
            self._refuse(line, fault.status, fault.code)
            return
        if kind == "flip":
            data = _flipped(data)
        if kind == "short":
            data = data[: len(data) // 2]
        self._answer(line, status, headers, data, cut=kind == "cut-body")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _body(self, seconds: float) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        pieces = []
        for start in range(0, length, 1 << 18):
            piece = min(1 << 18, length - start)
            pieces.append(self.rfile.read(piece))
            time.sleep(seconds * piece / length)
        return b"".join(pieces)

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        if self.store.ignores_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        if self.command == "PUT":  # moto looks and writes in two steps; a store does it in one
            with self.store.lock:
                return self._ask_moto(body, headers)
        return self._ask_moto(body, headers)

    def _ask_moto(
        self, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.store.moto, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, answer.getheaders(), data
        finally:
            connection.close()

    def _answer(
        self,
        line: Request,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        cut: bool = False,
    ) -> None:
        line.status, line.sent = status, len(data)
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if cut:
            self.wfile.write(data[: len(data) // 2])
            self._cut()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, line: Request, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>"
        data = b"" if self.command == "HEAD" else text.encode()
        self._answer(line, status, [("Content-Type", "application/xml")], data)

    def _cut(self) -> None:
        """Close the connection with a reset, as a broken network does."""
        import socket

        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _sum_is_right(self, body: bytes) -> bool:
        expected = self.headers.get("x-amz-checksum-crc32")
        if expected is None:
            return True
        return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode() == expected


_HOP = {"host", "connection", "keep-alive", "transfer-encoding", "expect", "server", "date"}


def _flipped(data: bytes) -> bytes:
    if not data:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
