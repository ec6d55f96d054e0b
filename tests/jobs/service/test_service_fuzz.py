"""Whatever is sent, the service answers with a status of its own, a sentence, and goes on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from batchloom.dataplane import Manifest
from batchloom.dataplane.errors import BatchloomError
from batchloom.jobs import plan
from batchloom.jobs.service.app import make_app
from batchloom.jobs.service.metrics import EventLog
from batchloom.jobs.service.posting import read_body
from batchloom.jobs.service.service import Service
from batchloom.tests.jobs.service.running import body_of, write_run
from hypothesis import example, given, settings
from hypothesis import strategies as st

ALLOWED = {200, 304, 400, 404, 405, 409, 413, 416, 421, 422}


class Asked:
    """A service without sockets."""

    def __init__(self, folder: Path, data: Path) -> None:
        run = write_run(folder, "first", data)
        plan(
            "seta", data, out=run / "plan", batch_size=32, seed=7, epochs=(0, 1),
            training_epochs=3, workers=0,
        )  # fmt: skip
        self.service = Service(folder, log=EventLog(open(os.devnull, "w")))  # noqa: SIM115
        self.service.rescan()
        self.app = make_app(self.service)
        member = Manifest.open(run / "plan" / "epochs-000000-000001")
        self.id = member.manifest_id
        self.attempt = self.service.register(self.service.runs.run("first"), {})["attempt"]
        self.loop = asyncio.new_event_loop()

    def close(self) -> None:
        self.loop.close()
        self.service.close()

    def ask(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []
        parts = [body[i : i + 999] for i in range(0, len(body), 999)] or [b""]
        messages = [
            {"type": "http.request", "body": p, "more_body": i + 1 < len(parts)}
            for i, p in enumerate(parts)
        ]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await asyncio.sleep(3600)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": query, "headers": headers, "root_path": "", "scheme": "http",
            "http_version": "1.1", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
            "asgi": {"version": "3.0"}, "extensions": {},
        }  # fmt: skip
        self.loop.run_until_complete(asyncio.wait_for(self.app(scope, receive, send), 30))
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


@pytest.fixture(scope="module")
def asked(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    running = Asked(tmp_path_factory.mktemp("fuzz") / "service", small)
    yield running
    running.close()


words = st.one_of(
    st.sampled_from(
        ["first", "..", ".", "", "0", "1", "-1", "loss", "99999999999999999999", "epochs", "a" * 64,
         "0" * 64, "%2e%2e", "\x00", "NaN", "1e9", "é", "seal", "retry", "batches", "attempts"]
    ),
    st.text(max_size=12),
)  # fmt: skip
paths = st.one_of(
    st.lists(words, max_size=7).map(lambda p: "/" + "/".join(p)),
    st.tuples(words, words).map(lambda p: f"/v1/runs/{p[0]}/epochs/{p[1]}"),
    st.tuples(words, words).map(lambda p: f"/v1/runs/first/epochs/{p[0]}/{p[1]}"),
    st.tuples(words, words).map(lambda p: f"/v1/manifests/ID/epochs/{p[0]}/batches"),
    st.tuples(words, words, words, words).map(lambda p: "/v1/runs/first/signals/" + "/".join(p)),
    st.just("/v1/runs/first/epochs/0/seal"),
    st.just("/v1/runs/first/signals/loss/1/0/0"),
    st.just("/v1/manifests/ID/epochs/0/batches"),
)
numbers = st.one_of(st.integers(-3, 40).map(str), words)
queries = st.one_of(
    st.binary(max_size=20),
    st.tuples(numbers, numbers).map(lambda q: f"from={q[0]}&to={q[1]}".encode()),
    st.sampled_from([b"wait=0", b"wait=-1", b"wait=nan", b"wait=x", b"wait=", b"wait=-inf"]),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
seals = st.fixed_dictionaries(
    {"attempt": values, "rank": values, "world": values, "parts": values}
).map(lambda body: json.dumps(body).encode())
header_fields = st.lists(
    st.tuples(
        st.sampled_from(
            [b"content-length", b"if-none-match", b"authorization", b"origin", b"range", b"x"]
        ),
        st.binary(max_size=12),
    ),
    max_size=2,
)


@st.composite
def changed(draw: st.DrawFn, body: bytes) -> bytes:
    """A body with some bytes changed, cut off or repeated."""
    data = bytearray(body)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    start, stop = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
    kind = draw(st.sampled_from(["all", "all", "cut", "middle", "twice"]))
    if kind == "cut":
        return bytes(data[:stop])
    if kind == "middle":
        return bytes(data[:start] + data[stop:])
    return bytes(data * 2) if kind == "twice" else bytes(data)


def stream_of(body: bytes) -> bytes:
    table = pa.ipc.open_file(body).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


GOOD = body_of(range(40))
bodies = st.one_of(
    st.binary(max_size=50), seals, changed(GOOD), changed(stream_of(GOOD)), st.just(GOOD)
)
requests = st.tuples(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"]), paths, queries,
    header_fields, bodies,
)  # fmt: skip


def check(asked: Asked, request: Any) -> None:
    method, path, query, headers, body = request
    path = path.replace("ID", asked.id)
    fields = [(b"host", b"127.0.0.1:1"), *headers]
    if any(name == b"origin" and value for name, value in headers):
        return  # refused before it is looked at
    status, answer = asked.ask(method, path, query, fields, body)
    assert status in ALLOWED, (status, answer)
    if status >= 400:
        told = json.loads(answer)["error"]
        assert told["status"] == status
        assert told["message"]


PART = "/v1/runs/first/signals/loss/1/0/0"


@given(request=requests)
@example(request=("PUT", PART, b"", [(b"content-length", "²".encode("latin-1"))], b""))
@example(request=("PUT", PART, b"", [(b"content-length", b"9" * 5000)], b""))
@settings(max_examples=150)
def test_any_request_is_answered(asked: Asked, request: Any) -> None:
    check(asked, request)


@pytest.mark.slow
@given(request=requests)
@settings(max_examples=20_000)
def test_any_request_is_answered_for_long(asked: Asked, request: Any) -> None:
    check(asked, request)


def look(body: bytes) -> None:
    try:
        found = read_body(body)
    except BatchloomError:
        return
    for block in found.blocks:
        assert len({len(c) for c in block.columns}) == 1
    _, stored = found.part(0, 0, 1)
    assert len(stored) > 0


@given(body=changed(GOOD) | changed(stream_of(GOOD)))
@settings(max_examples=300)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    look(body)


@pytest.mark.slow
@given(body=changed(GOOD) | changed(stream_of(GOOD)))
@settings(max_examples=50_000)
def test_any_body_is_read_or_refused_for_long(body: bytes) -> None:
    look(body)
