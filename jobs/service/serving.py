"""Starting the service: its address, its token, TLS, and how it ends.

It serves this machine alone, unless it has a token and TLS, or is told ``insecure``. Sent SIGTERM
or Ctrl-C it takes no new connections, answers what waits, finishes what it is sending, and ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...dataplane.errors import ParameterError, StorageError, needs_extra
from .metrics import EventLog, LogLines
from .service import Service

__all__ = ["Address", "read_token", "serve"]

_DRAIN_SECONDS = 30
_CONNECTIONS = 1024
_SHORTEST_TOKEN = 16
_SEND_BUFFER = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where the service listens, and what protects it.

    Attributes
    ----------
    host : str
    port : int
        0: one that is free.
    token_file, tls_cert, tls_key : str, optional
    insecure : bool
        Listen beyond this machine without a token and TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: bool = False

    @property
    def is_local(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Raise `ParameterError` where the address is not protected."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ParameterError("TLS needs a certificate and its key: --tls-cert and --tls-key.")
        for name in ("tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not os.access(path, os.R_OK):
                raise ParameterError(f"--{name.replace('_', '-')}: {path} cannot be read.")
        if self.is_local or self.insecure:
            return
        lacking = [
            text
            for text, value in (
                ("a token (--token-file)", self.token_file),
                ("TLS (--tls-cert, --tls-key)", self.tls_cert),
            )
            if value is None
        ]
        if lacking:
            raise ParameterError(
                f"Serving {self.host}, beyond this machine, needs {' and '.join(lacking)}; or say "
                "--insecure where the network is trusted."
            )


def read_token(path: str | None) -> str | None:
    """Read a token; `ParameterError` where others could, or it is no token."""
    if path is None:
        return None
    try:
        mode = os.stat(path).st_mode
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"The token file {path} cannot be read: {error}.") from error
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise ParameterError(
            f"The token file {path} can be read by others (mode {stat.S_IMODE(mode):04o}); "
            f"chmod 600 {path}"
        )
    token = text.strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ParameterError(
            f"The token in {path} must be of at least {_SHORTEST_TOKEN} printable ASCII "
            "characters; for example: openssl rand -hex 32"
        )
    if " " in token:
        raise ParameterError(f"The token in {path} must hold no spaces.")
    return token


def serve(
    folder: str | os.PathLike[str],
    address: Address,
    *,
    engine: Mapping[str, Any] | None = None,
    plans_at_once: int = 2,
) -> None:
    """Serve the runs of a folder until told to stop.

    A line ``{"serving": address}`` on stdout says when connections are taken.

    Raises
    ------
    ParameterError, StorageError, MissingExtraError
    """
    address.check()
    token = read_token(address.token_file)
    with needs_extra("The selection service", "serve"):
        import starlette  # noqa: F401
        import uvicorn
    log = EventLog()
    logging.getLogger().addHandler(LogLines(log))
    listening = _listen(address)
    service = Service(Path(folder), engine=engine, plans_at_once=plans_at_once, log=log)
    try:
        _run(uvicorn, service, address, token, listening)
    finally:
        listening.close()
        service.close()
        log("stopped")


def _listen(address: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, place = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What connections inherit: how far a range is sent ahead of a client that takes nothing.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        listening.bind(place)
        listening.listen(_CONNECTIONS)
    except OSError as error:
        raise StorageError(
            f"{address.host}:{address.port} cannot be served: {error.strerror or error}. Choose "
            "another --port, or stop what listens there."
        ) from error
    return listening


def _run(
    uvicorn: Any, service: Service, address: Address, token: str | None, listening: socket.socket
) -> None:
    from .app import make_app
    from .receiving import HttpProtocol

    app = make_app(service, token=token, local_only=address.is_local and token is None)
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        ssl_certfile=address.tls_cert,
        ssl_keyfile=address.tls_key,
    )

    class Server(uvicorn.Server):  # type: ignore[misc]
        """Tells when it serves, and stops once where it is told to."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(number: int, frame: Any) -> None:
                service.stopping.set()  # long polls are answered
                self.handle_exit(number, frame)

            before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            _tell(service, address, listening)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if address.tls_cert is not None:
                # A client that is idle would not answer TLS's goodbye for half a minute.
                for connection in list(self.server_state.connections):
                    cycle = getattr(connection, "cycle", None)
                    if cycle is None or cycle.response_complete:
                        connection.transport.abort()
            await super().shutdown(sockets=sockets)

    try:
        server = Server(config)
        config.load()
        if config.ssl is not None:  # whatever the system's OpenSSL would still take
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    except OSError as error:  # ssl.SSLError is one
        raise ParameterError(f"The certificate or its key cannot be used: {error}.") from error
    server.run(sockets=[listening])


def _tell(service: Service, address: Address, listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    host = f"[{address.host}]" if ":" in address.host else address.host
    where = f"http{'' if address.tls_cert is None else 's'}://{host}:{port}"
    if address.insecure and not address.is_local:
        service.log("insecure", text="serving beyond this machine without a token and TLS")
    service.log("serving", address=where, folder=str(service.folder))
    print(json.dumps({"serving": where}), flush=True)
