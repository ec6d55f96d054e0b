"""What stands before the service: the token, limits, errors as JSON, a line of log a request.

Without a token the service is for this machine alone, so requests must name it by an address of
this machine: else a web page whose name was pointed here could ask it. Requests that a web page of
another origin sends are refused in any case.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ...dataplane.direct_write import aligned_bytes
from ...dataplane.errors import BatchloomError
from .metrics import EventLog, Metrics
from .receiving import Reception, receive_into
from .refusals import RefusedError, error_body, status_of

__all__ = ["BODY_BYTES", "Bodies", "Guard"]

BODY_BYTES = 64 << 20
BODIES_BYTES = 256 << 20
"""Of all the bodies that are taken in at a time."""

_CHUNK_SECONDS = 60.0  # that a client may take for the next piece of a body
_OPEN = ("/healthz", "/readyz")
_LOCAL = ("127.0.0.1", "localhost", "[::1]")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Guard:
    """An ASGI application around another one.

    Parameters
    ----------
    app : ASGI application
    token : str, optional
    local_only : bool
        Take only requests to an address of this machine.
    metrics : Metrics
    log : EventLog
    """

    def __init__(
        self, app: Any, *, token: str | None, local_only: bool, metrics: Metrics, log: EventLog
    ) -> None:
        self._app, self._metrics, self._log = app, metrics, log
        self._token = None if token is None else token.encode()
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, told = time.perf_counter(), {"status": 0}

        async def noted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
            await send(message)

        problem: str | None = None
        scope["app"] = self._app  # so that routes raise what they do not find
        try:
            self._admit(scope)
            await self._app(scope, receive, noted)
        except HTTPException as error:
            await self._refuse(_no_route(scope, error.status_code), told, noted)
        except BatchloomError as error:
            problem = str(error)
            await self._refuse(error, told, noted)
        except Exception as error:  # whoever asks learns that much; the log has the rest
            problem = f"{type(error).__name__}: {error}"
            await self._refuse(
                RefusedError(500, "Something went wrong in the service; its log says what."),
                told,
                noted,
            )
        finally:
            self._note(scope, told["status"], time.perf_counter() - began, problem)

    async def _refuse(self, error: BatchloomError, told: dict[str, int], send: Send) -> None:
        if told["status"]:  # the answer has begun: all that is left is to break it off
            raise ConnectionAbortedError(str(error))
        status = status_of(error)
        body = json.dumps(error_body(error)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if isinstance(error, RefusedError) and error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
            headers.append((b"www-authenticate", b'Basic realm="Batchloom", charset="UTF-8"'))
        if status in (408, 413):  # the rest of the body is not read
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _admit(self, scope: Scope) -> None:
        """Raise `RefusedError` where a request may not come in."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if self._local_only and host.rpartition(":")[0 if ":" in host else 2] not in _LOCAL:
            raise RefusedError(421, "Ask this service by an address of this machine, 127.0.0.1.")
        if origin and origin.partition("://")[2] != host:
            raise RefusedError(403, "Requests of web pages of another origin are refused.")
        if self._token is None or scope["path"] in _OPEN:
            return
        given = _token_of(headers.get(b"authorization", b""))
        if not hmac.compare_digest(given, self._token):
            self._metrics.add("batchloom_unauthorized_total")
            raise RefusedError(
                401, "A token is needed, and the one that was sent is not it (Authorization)."
            )

    def _note(self, scope: Scope, status: int, seconds: float, problem: str | None) -> None:
        self._metrics.add("batchloom_requests_total", labels=f'status="{status}"')
        self._metrics.add("batchloom_request_seconds_total", seconds)
        if status < 400 and scope["method"] in ("GET", "HEAD") and problem is None:
            return  # too many to be of use
        line = {"method": scope["method"], "path": scope["path"], "status": status}
        if problem is not None:
            line["problem"] = problem
        self._log("request", **line, seconds=round(seconds, 4))


def _token_of(authorization: bytes) -> bytes:
    """Return the token that was sent: as such, or, as browsers do, as anybody's password."""
    kind, _, given = authorization.partition(b" ")
    if kind.lower() == b"bearer":
        return given.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def _no_route(scope: Scope, status: int) -> RefusedError:
    if status == 405:
        return RefusedError(405, f"{scope['path']} does not take {scope['method']}.")
    return RefusedError(status, f"There is no {scope['path']}; see /openapi.json.")


class Bodies:
    """Reads bodies, within limits of one and of all together."""

    def __init__(self, metrics: Metrics, limit: int = BODY_BYTES, all_: int = BODIES_BYTES) -> None:
        self._metrics, self._limit, self._all, self._held = metrics, limit, all_, 0

    async def read(self, request: Any, limit: int | None = None) -> BodyHeld:
        """Read a request's body; use what is returned as a context manager.

        Raises
        ------
        RefusedError
            413 where it is too large, 429 where others fill the memory, 408 where it stops coming.
        """
        limit = self._limit if limit is None else limit
        length = request.headers.get("content-length")
        if length is not None and not _is_count(length, limit):
            raise RefusedError(413, f"A body may have {limit:,} bytes at most.")
        room = limit if length is None else int(length)
        if self._held + room > self._all:
            raise RefusedError(429, "Too many bodies at a time; send it again soon.", 1)
        held = BodyHeld(self, room)
        try:
            held.data = await self._read(request, limit, None if length is None else room)
        except BaseException:
            held.release()
            raise
        return held

    async def _read(self, request: Any, limit: int, length: int | None) -> memoryview:
        data = aligned_bytes(length or 0).data
        reception = receive_into(request.scope, data)
        if reception is not None:
            await _until_ended(reception)
            return data
        return memoryview(await self._pieces(request, limit, length or 0))

    async def _pieces(self, request: Any, limit: int, length: int) -> bytearray:
        data = bytearray(length)
        size, clock = 0, asyncio.get_running_loop().time
        try:
            # One timer that is put off, rather than one for each of many small pieces.
            async with asyncio.timeout(_CHUNK_SECONDS) as patience:
                async for part in request.stream():
                    patience.reschedule(clock() + _CHUNK_SECONDS)
                    if size + len(part) > limit:
                        raise RefusedError(413, f"A body may have {limit:,} bytes at most.")
                    data[size : size + len(part)] = part
                    size += len(part)
        except TimeoutError:
            raise RefusedError(408, "The body stopped coming.") from None
        return data[:size] if size < len(data) else data

    def hold(self, size: int) -> None:
        self._held += size
        self._metrics.set("batchloom_body_bytes_held", self._held)


async def _until_ended(reception: Reception) -> None:
    """Wait until a body was received."""
    clock = asyncio.get_running_loop().time
    while not reception.ended.done():
        patience = reception.since + _CHUNK_SECONDS - clock()
        if patience <= 0:
            raise RefusedError(408, "The body stopped coming.")
        await asyncio.wait([reception.ended], timeout=patience)
    if not reception.ended.result():
        raise ClientDisconnect


def _is_count(text: str, most: int) -> bool:
    """Whether a text is a number up to `most`; others have digits that `int` does not take."""
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= most


class BodyHeld:
    """A body in memory, until the block ends."""

    def __init__(self, bodies: Bodies, size: int) -> None:
        self.data = memoryview(b"")
        self._bodies, self._size = bodies, size
        bodies.hold(size)

    def __enter__(self) -> memoryview:
        return self.data

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._bodies.hold(-self._size)
        self._size, self.data = 0, memoryview(b"")
