"""Talking to the selection service: requests that are sent again, errors with the service's words.

A client may be made before a process forks and be used after it: the connections are made by the
process that uses them, when it first does, and never shared with another one.

The token is read from ``token_file=`` of the storage options, else from the file that
``BATCHLOOM_TOKEN_FILE`` names, else from ``BATCHLOOM_TOKEN``. For ``https``, ``ca_file=`` or
``BATCHLOOM_CA_FILE`` names the certificates to trust, where they are not the system's.

An answer that does not come (a service that is restarted, a broken connection) and the answers 429,
502, 503 and 504 are waited out: the request is sent again after longer and longer pauses, for
``patience`` seconds at most. Every request of the service may be sent twice.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import errors as known_errors
from .errors import (
    BatchloomError,
    NoRoomError,
    ParameterError,
    ServiceError,
    StorageError,
    needs_extra,
)
from .remote_wire import RunAddress

__all__ = ["Answer", "ServiceClient"]

PATIENCE_SECONDS = 300.0

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_AGAIN = (429, 502, 503, 504)
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 60.0
_CONNECTIONS = 8

_log = logging.getLogger("batchloom")


class Answer(NamedTuple):
    """What the service answered: the bytes of its body, and the header fields."""

    status: int
    data: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.data)


class ServiceClient:
    """Sends requests to one service; may be used from several threads, and after a fork.

    Parameters
    ----------
    service : str
        Its address, ``http(s)://host:port``.
    options : mapping, optional
        ``token_file``, ``ca_file``, ``patience``.
    """

    def __init__(self, service: str, options: Mapping[str, Any] | None = None) -> None:
        options = options or {}
        self.service = service
        self._token_file = options.get("token_file") or os.environ.get("BATCHLOOM_TOKEN_FILE")
        self._ca_file = options.get("ca_file") or os.environ.get("BATCHLOOM_CA_FILE")
        self.patience = float(options.get("patience", PATIENCE_SECONDS))
        self._forget()

    def __repr__(self) -> str:
        return f"<ServiceClient {self.service}>"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "service": self.service,
            "_token_file": self._token_file,
            "_ca_file": self._ca_file,
            "patience": self.patience,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @classmethod
    def of(cls, address: RunAddress, options: Mapping[str, Any] | None = None) -> ServiceClient:
        return cls(address.service, options)

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._pool: Any = None

    def _connections(self) -> Any:
        """Return this process's connections."""
        if self._process != os.getpid():  # forked: the parent's sockets are not ours to use
            self._forget()
        with self._lock:
            if self._pool is None:
                with needs_extra("Reading from the selection service", "serve"):
                    import urllib3
                trusted: dict[str, Any] = (
                    {} if self._ca_file is None else {"ca_certs": self._trusted()}
                )
                self._pool = urllib3.PoolManager(
                    headers=self._authorization(),
                    maxsize=_CONNECTIONS,
                    retries=False,
                    timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
                    **trusted,
                )
            return self._pool

    def _trusted(self) -> str:
        path = str(self._ca_file)
        if not os.path.exists(path):
            raise ParameterError(f"There is no file of certificates at {path} (ca_file).")
        return path

    def _authorization(self) -> dict[str, str]:
        token = os.environ.get("BATCHLOOM_TOKEN", "").strip()
        if self._token_file is not None:
            try:
                token = Path(self._token_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ParameterError(
                    f"The token file {self._token_file} cannot be read: {error}."
                ) from error
        if not token:
            return {}
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ParameterError("A token is of printable ASCII characters without spaces.")
        return {"Authorization": f"Bearer {token}"}

    # --- requests ---------------------------------------------------------------------------------

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = _READ_SECONDS,
        stopped: threading.Event | None = None,
    ) -> Answer:
        """Send a request until it is answered, and return the answer.

        Parameters
        ----------
        method, path : str
        body : bytes, optional
        headers : mapping, optional
        seconds : float
            How long the answer may take.
        stopped : threading.Event, optional
            Set where nobody waits for the answer any more.

        Raises
        ------
        ServiceError
            Where no answer came in time, or the service refused; the errors of a plan or a signal
            have their own types, as if they had been raised here.
        """
        began, tried = time.monotonic(), 0
        while True:
            answer, problem, pause = self._once(method, path, body, headers, seconds)
            if answer is not None and answer.status not in _AGAIN:
                if answer.status >= 400:
                    raise self._refused(answer)
                if tried:
                    _log.info("%s answers again", self.service)
                return answer
            pause = max(pause, _PAUSES[min(tried, len(_PAUSES) - 1)])
            over = time.monotonic() - began + pause > self.patience
            if over or (stopped is not None and stopped.is_set()):
                if answer is not None:
                    raise self._refused(answer)
                raise ServiceError(
                    f"The selection service {self.service} does not answer: {problem}. Tried "
                    f"{tried + 1} times over {time.monotonic() - began:.0f} s; check that it runs "
                    "and the address, then go on from the last state."
                )
            if tried == 2:
                _log.warning("%s does not answer (%s); trying again", self.service, problem)
            tried += 1
            time.sleep(pause)

    def send_once(self, method: str, path: str, body: bytes) -> None:
        """Send what may be lost: whatever the answer is, and whether there is one."""
        try:
            self._once(method, path, body, None, _CONNECT_SECONDS)
        except BatchloomError as error:
            _log.debug("%s", error)

    def _once(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        seconds: float,
    ) -> tuple[Answer | None, str, float]:
        """Send a request once; return (answer or None, what went wrong, seconds to wait)."""
        import urllib3

        pool = self._connections()
        merged = {**pool.headers, **(headers or {})}
        timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=seconds)
        try:
            found = pool.request(
                method, self.service + path, body=body, headers=merged, timeout=timeout
            )
            answer = Answer(found.status, found.data, found.headers)
        except urllib3.exceptions.SSLError as error:
            raise ServiceError(
                f"The selection service {self.service} cannot be trusted: {_reason(error)}. Name "
                "its certificate authority (ca_file, or BATCHLOOM_CA_FILE), or use http:// where "
                "it serves no TLS."
            ) from error
        except urllib3.exceptions.HTTPError as error:
            return None, self._why(error), 0.0
        try:
            wait = float(answer.headers.get("Retry-After", 0))
        except ValueError:
            wait = 0.0
        return answer, f"status {answer.status}", min(wait, _PAUSES[-1])

    def _why(self, error: Exception) -> str:
        said = _reason(error)
        if self.service.startswith("http://") and "closed connection without" in said:
            said += "; where it serves TLS, its address begins with https://"
        return said

    def _refused(self, answer: Answer) -> BatchloomError:
        """Return the error that an answer tells of."""
        kind, message = "", answer.data[:500].decode(errors="replace").strip()
        try:
            told = answer.json()["error"]
            kind, message = str(told["type"]), str(told["message"])
        except (ValueError, KeyError, TypeError):
            pass  # not of our service
        text = f"{message or 'no reason given'} (status {answer.status} of {self.service})"
        if answer.status == 507:
            return NoRoomError(text)
        found = getattr(known_errors, kind, None)
        if isinstance(found, type) and issubclass(found, BatchloomError):
            return StorageError(text) if issubclass(found, OSError) else found(text)
        return ServiceError(text, answer.status)


def _reason(error: Exception) -> str:
    """Say in few words what the library says in many."""
    text = str(getattr(error, "reason", None) or error)
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return (str(error) or text or type(error).__name__).rstrip(".")
