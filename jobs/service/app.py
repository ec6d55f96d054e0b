"""What the service answers to: HTTP over the core.

Every request may be sent twice. Reads name all that they depend on, so any of them may be cached or
answered by another service over the same folder's copy; writes carry numbers. `openapi` describes
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from ...dataplane.manifest_header import header_bytes
from . import pages
from .guard import Bodies, Guard
from .openapi import openapi
from .ranges import check_range, range_chunks
from .refusals import RefusedError
from .runs import epoch_of
from .service import Service

__all__ = ["OPEN_STREAMS", "make_app"]

OPEN_STREAMS = 64
LONGEST_POLL = 30.0

_SMALL_BODY = 1 << 20
_SLOT_SECONDS = 2.0  # that a range waits for others to be sent
_STALLED_SECONDS = 300.0  # that a client may not take the next piece of a range
_POLL_SECONDS = 0.05
_ARROW = "application/vnd.apache.arrow.stream"


def make_app(service: Service, *, token: str | None = None, local_only: bool = True) -> Any:
    """Return the ASGI application of a service."""
    routes = _Routes(service).routes()
    app = Router(routes=routes, redirect_slashes=False)  # the guard answers for what it raises
    return Guard(app, token=token, local_only=local_only, metrics=service.metrics, log=service.log)


class _Routes:
    """The handlers of requests."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bodies = Bodies(service.metrics)
        self._streams = asyncio.Semaphore(OPEN_STREAMS)

    def routes(self) -> list[Route]:
        run, epoch = "/v1/runs/{run}", "/v1/runs/{run}/epochs/{epoch}"
        manifest = "/v1/manifests/{id}"
        return [
            Route("/", self.front),
            Route("/runs/{run}", self.page),
            Route("/runs/{run}/epochs/{epoch}/report", self.report),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/v1/runs", self.runs),
            Route(run, self.run),
            Route(f"{run}/attempts", self.attempts, methods=["POST"]),
            Route(
                f"{run}/signals/{{signal}}/{{attempt}}/{{writer}}/{{sequence}}",
                self.signals,
                methods=["PUT"],
            ),
            Route(f"{run}/ranks/{{rank}}", self.rank, methods=["PUT"]),
            Route(epoch, self.epoch),
            Route(f"{epoch}/seal", self.seal, methods=["POST"]),
            Route(f"{epoch}/retry", self.retry, methods=["POST"]),
            Route(manifest, self.manifest),
            Route(f"{manifest}/epochs/{{epoch}}/batches", self.batches),
        ]

    # --- the service itself -----------------------------------------------------------------------

    async def front(self, request: Request) -> Any:
        return await run_in_threadpool(pages.front_page, self._service)

    async def page(self, request: Request) -> Any:
        return await run_in_threadpool(pages.run_page, self._service, request.path_params["run"])

    async def report(self, request: Request) -> Any:
        run, epoch = await self._run(request), self._epoch(request)
        return await run_in_threadpool(pages.report_page, run, epoch)

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"state": "alive"})

    async def readyz(self, request: Request) -> Response:
        if self._service.stopping.is_set() or not self._service.ready:
            raise RefusedError(503, "Not ready: the service starts or stops.", 1)
        return JSONResponse({"state": "ready"})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._service.metrics.text())

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())

    # --- reading ----------------------------------------------------------------------------------

    async def runs(self, request: Request) -> Response:
        await run_in_threadpool(self._service.rescan)
        return JSONResponse({"runs": self._service.runs.names()})

    async def run(self, request: Request) -> Response:
        name = request.path_params["run"]
        return JSONResponse(await run_in_threadpool(self._service.describe, name))

    async def manifest(self, request: Request) -> Response:
        found = await run_in_threadpool(self._service.runs.manifest, request.path_params["id"])
        tag = {"ETag": f'"{found.manifest_id}"', "Cache-Control": "private, max-age=31536000"}
        if request.headers.get("if-none-match", "").strip('W/ "') == found.manifest_id:
            return Response(status_code=304, headers=tag)
        data = await run_in_threadpool(header_bytes, found.identity, found.provenance)
        return Response(data, media_type="application/json", headers=tag)

    async def batches(self, request: Request) -> Response:
        number = _int("epoch", request.path_params["epoch"], 1 << 32)
        start = _int("from", request.query_params.get("from"), 1 << 62)
        stop = _int("to", request.query_params.get("to"), 1 << 62)
        manifest = await run_in_threadpool(self._service.runs.manifest, request.path_params["id"])
        epoch = epoch_of(manifest, number)
        check_range(epoch, start, stop)
        try:
            await asyncio.wait_for(self._streams.acquire(), _SLOT_SECONDS)
        except TimeoutError:
            raise RefusedError(
                429, f"{OPEN_STREAMS} ranges are being sent; ask again soon.", 1
            ) from None
        stream = _Stream(self._service, self._streams, stop - start)
        try:
            chunks = range_chunks(manifest, epoch, start, stop)
            first = await run_in_threadpool(next, chunks)  # what is damaged is told as an error
        except BaseException:
            stream.close()
            raise
        return _RangeResponse(stream, first, chunks)

    # --- signals ----------------------------------------------------------------------------------

    async def attempts(self, request: Request) -> Response:
        run = await self._run(request)
        body = await self._json(request)
        return JSONResponse(await run_in_threadpool(self._service.register, run, body))

    async def signals(self, request: Request) -> Response:
        given = request.path_params
        run = await self._run(request)
        attempt = _int("attempt", given["attempt"], 65_535)
        writer = _int("writer", given["writer"], 99_999)
        sequence = _int("sequence", given["sequence"], 99_999_999)
        with await self._bodies.read(request) as data:
            told = await run_in_threadpool(
                self._service.post, run, given["signal"], attempt, writer, sequence, data
            )
        return JSONResponse(told)

    async def rank(self, request: Request) -> Response:
        run = await self._run(request)
        rank = _int("rank", request.path_params["rank"], 99_999)
        self._service.ranks.take(run.name, rank, await self._json(request))
        return JSONResponse({"rank": rank})

    async def seal(self, request: Request) -> Response:
        run, epoch = await self._run(request), self._epoch(request)
        body = await self._json(request)
        return JSONResponse(await run_in_threadpool(self._service.seal, run, epoch, body))

    async def retry(self, request: Request) -> Response:
        run, epoch = await self._run(request), self._epoch(request)
        return JSONResponse(await run_in_threadpool(self._service.retry, run, epoch))

    async def epoch(self, request: Request) -> Response:
        run, epoch = await self._run(request), self._epoch(request)
        wait = request.query_params.get("wait", "0")
        try:
            seconds = min(max(float(wait), 0.0), LONGEST_POLL)
        except ValueError:
            raise RefusedError(400, "'wait' must be a number of seconds.") from None
        until = time.monotonic() + (seconds if seconds == seconds else 0.0)
        while True:
            told = self._service.epoch(run, epoch)
            over = time.monotonic() >= until or self._service.stopping.is_set()
            if told["state"] != "pending" or over or await request.is_disconnected():
                return JSONResponse(told)
            await asyncio.sleep(_POLL_SECONDS)

    # --- what requests hold -----------------------------------------------------------------------

    async def _run(self, request: Request) -> Any:
        name = request.path_params["run"]
        known = self._service.runs.known(name)
        return known or await run_in_threadpool(self._service.runs.run, name)

    def _epoch(self, request: Request) -> int:
        return _int("epoch", request.path_params["epoch"], 1 << 32)

    async def _json(self, request: Request) -> Mapping[str, Any]:
        with await self._bodies.read(request, _SMALL_BODY) as data:
            text = bytes(data)
            if not text.strip():
                return {}
            try:
                body = json.loads(text)
            except (ValueError, RecursionError):
                raise RefusedError(400, "The body is not JSON.") from None
        if not isinstance(body, dict):
            raise RefusedError(400, "The body must be a JSON object.")
        return body


def _int(name: str, text: str | None, most: int) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 20:
        raise RefusedError(400, f"'{name}' must be an int from 0 to {most}.")
    if int(text) > most:
        raise RefusedError(400, f"'{name}' must be an int from 0 to {most}.")
    return int(text)


class _Stream:
    """A range that is being sent; it takes one of the slots until it is closed."""

    def __init__(self, service: Service, slots: asyncio.Semaphore, batches: int) -> None:
        self._slots, self._open = slots, True
        self.metrics, self.log, self.batches = service.metrics, service.log, batches
        self.metrics.add("batchloom_streams_open")

    def close(self) -> None:
        if self._open:
            self._open = False
            self._slots.release()
            self.metrics.add("batchloom_streams_open", -1)


class _RangeResponse(StreamingResponse):
    """Sends a range as fast as the client takes it, and gives up where it takes nothing."""

    def __init__(self, stream: _Stream, first: bytes, chunks: Iterator[bytes]) -> None:
        super().__init__(self._all(stream, first, chunks), media_type=_ARROW)
        self._stream = stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def timed(message: Any) -> None:
            await asyncio.wait_for(send(message), _STALLED_SECONDS)

        try:
            await super().__call__(scope, receive, timed)
        finally:
            self._stream.close()

    async def _all(
        self, stream: _Stream, first: bytes, chunks: Iterator[bytes]
    ) -> AsyncIterator[bytes]:
        chunk: bytes | None = first
        with contextlib.closing(chunks):  # type: ignore[type-var]  # it is a generator
            while chunk is not None:
                stream.metrics.add("batchloom_stream_bytes_total", len(chunk))
                yield chunk
                chunk = await run_in_threadpool(next, chunks, None)
        stream.metrics.add("batchloom_batches_sent_total", stream.batches)
