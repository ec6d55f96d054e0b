"""Large bodies are received where they are kept: the socket is read into the body's own memory.

uvicorn hands a body on in pieces, and each is copied some four times on its way. Of a large body
only the beginning comes so. When the application says where the rest shall be, an
`asyncio.BufferedProtocol` takes the connection's events until the body ends; it never reads beyond
it. The HTTP parser has missed that body then, so a new one parses the next request.

The application finds the function in ``scope["extensions"]`` and may do without it. Requests that
are pipelined, chunked, not kept alive, or wait for "100 Continue" come in pieces as ever; so do all
where uvicorn's own state is not as it is known here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import MutableMapping
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["LEAST_BYTES", "HttpProtocol", "Reception", "receive_into"]

LEAST_BYTES = 1 << 18
_EXTENSION = "batchloom.receive_into"


def receive_into(scope: MutableMapping[str, Any], body: memoryview) -> Reception | None:
    """Begin to receive a request's body, as long as its Content-Length; None where it cannot be."""
    begin = scope.get("extensions", {}).get(_EXTENSION)
    return None if begin is None else begin(body)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, whose large bodies can be received into given memory."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        length = next((int(v) for n, v in self.headers if n == b"content-length"), 0)
        plain = self.parser.should_keep_alive() and not self.parser.should_upgrade()
        if length >= LEAST_BYTES and plain:
            begin = functools.partial(self._begin, self.cycle)
            # Typed as the extensions that ASGI names; a server may have others.
            self.scope["extensions"] = {_EXTENSION: begin}  # type: ignore[dict-item]

    def _begin(self, cycle: Any, body: memoryview) -> Reception | None:
        try:
            fits = cycle is self.cycle and cycle.more_body and not cycle.disconnected
            fits = fits and not cycle.waiting_for_100_continue and not self.transport.is_closing()
            came, wanted = bytes(cycle.body), (cycle.message_event, self.flow, self.loop)
        except AttributeError:  # another uvicorn, which keeps its state otherwise
            return None
        if not fits or not all(wanted):
            return None
        body[: len(came)] = came
        cycle.body = bytearray()
        cycle.message_event.clear()
        return Reception(self, body, len(came))

    def hand_over(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol have what is read from now on."""
        self.flow.pause_reading()  # a loop may choose how it reads when it begins to
        self.transport.set_protocol(protocol)
        self.flow.resume_reading()

    def take_back(self) -> None:
        """Go on with the next request, when the body was received."""
        self.parser = httptools.HttpRequestParser(self)
        self.cycle.more_body = False
        self.hand_over(self)


class Reception(asyncio.BufferedProtocol):
    """Receives the rest of a body.

    Attributes
    ----------
    ended : Future of bool
        Whether all of it came; else the client is gone.
    since : float
        When the last piece came, of the loop's clock.
    """

    def __init__(self, http: HttpProtocol, body: memoryview, came: int) -> None:
        self._http, self._rest = http, body[came:]
        self._clock = http.loop.time
        self.ended: asyncio.Future[bool] = http.loop.create_future()
        self.since = self._clock()
        http.hand_over(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        self._rest = self._rest[nbytes:]
        self.since = self._clock()
        if not self._rest:
            self._http.take_back()
            self._end(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(False)
        self._http.connection_lost(exc)

    def eof_received(self) -> None:
        self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def _end(self, whole: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(whole)
