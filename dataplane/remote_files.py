"""Files that are not on this machine: how their filesystem is reached, and read by ranges.

fsspec reads ahead by tens of megabytes, which is right for a film and wrong for a footer. Here a
read asks for what is wanted: one ranged request, large ones cut into pieces that are fetched at the
same time. Reads that go forward in small hops (the messages of a stream) are read ahead of, more
each time. What a broken connection cuts off is asked for again; a short answer is never taken for
the end of a file.

Nothing here is kept over a fork: filesystems and their files belong to the process that made them.
"""

from __future__ import annotations

import bisect
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

from .errors import (
    BatchloomError,
    DatasetChangedError,
    DatasetError,
    MissingExtraError,
    MissingFileError,
    StorageError,
    needs_extra,
)

__all__ = ["RemoteFile", "fetch_ranges", "file_size", "filesystem", "is_s3", "remote_error"]

_S3 = ("s3", "s3a")
# In standard mode botocore tries again after throttling, 5xx answers and lost connections, with
# back-off. A store that does not answer is an error within seconds, not after minutes.
_S3_CONFIG: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "max_pool_connections": 32,
}
_BULK_TIMEOUT = 120

_PAUSES = (0.1, 0.4, 1.6)  # seconds before a cut answer is asked for again
_PIECE = 8 << 20  # bytes of a request at most
_PIECES_AT_ONCE = 8
_RANGES_AT_ONCE = 32
_MERGED = 64 << 10  # a gap this small is cheaper to read than to leave out
_TAIL = 64 << 10  # of a file: where footers stand
_AHEAD = 4 << 10, 2 << 20  # read ahead of small reads, at first and at most
_HOP = 512 << 10  # a read that goes on within so many bytes is read ahead of

# What the packages below fsspec raise when a connection ends in the middle of an answer. Their
# base classes hold also what no second try helps.
_CUT = {
    "ClientPayloadError",
    "ConnectionClosedError",
    "IncompleteRead",
    "IncompleteReadError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "ServerDisconnectedError",
}


def filesystem(uri: str, options: Mapping[str, Any], *, bulk: bool = False) -> tuple[Any, str]:
    """Return (fsspec filesystem, path in it); see nothing of what it listed before.

    `bulk` allows for large uploads: what of a body is still in this machine's buffers counts as
    waiting for its answer.

    Raises
    ------
    MissingExtraError, DatasetError
        Where the scheme's package is not installed, or there is no such scheme.
    """
    import fsspec

    s3 = is_s3(uri)
    try:
        with needs_extra(f"Reaching {uri}", "s3") if s3 else nullcontext():
            fs, path = fsspec.core.url_to_fs(uri, **(_s3_options(options, bulk) if s3 else options))
    except MissingExtraError:
        raise
    except (ImportError, ValueError, TypeError) as error:
        raise DatasetError(f"{uri}: {error}.") from error
    if s3:
        fs.retries = 1  # else s3fs repeats all of botocore's attempts, five times over
    fs.invalidate_cache()
    return fs, path


def is_s3(uri: str) -> bool:
    return uri.split(":", 1)[0] in _S3


def _s3_options(options: Mapping[str, Any], bulk: bool) -> dict[str, Any]:
    patience = {"read_timeout": _BULK_TIMEOUT} if bulk else {}
    config = {**_S3_CONFIG, **patience, **options.get("config_kwargs", {})}
    return {"use_listings_cache": False, **options, "config_kwargs": config}


def remote_error(uri: str, error: Exception, doing: str = "be read") -> BatchloomError:
    """Say in one sentence what a filesystem's package says of a remote file."""
    text = str(error).split("\n")[0].rstrip(". ")
    name = type(error).__name__
    if isinstance(error, BatchloomError):
        return error
    if isinstance(error, FileNotFoundError):
        what = "bucket" if "bucket" in text.lower() else "file or directory"
        return MissingFileError(f"{uri}: no such {what}.")
    if isinstance(error, PermissionError):
        return StorageError(
            f"{uri} cannot {doing}: permission denied ({text}). Check the credentials, and what "
            "they are allowed to do."
        )
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return StorageError(
            f"{uri} cannot {doing}: no credentials were found. Give them as storage options, or in "
            "the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    reason = getattr(error, "strerror", None) or f"{name}: {text}"
    return StorageError(
        f"{uri} cannot {doing}: {reason.rstrip('. ')}. Check the address and the credentials, then "
        "retry."
    )


def file_size(fs: Any, path: str) -> int:
    """Return the bytes of a file; FileNotFoundError where there is none, or a directory."""
    info = fs.info(path)
    if info["type"] == "directory":
        raise FileNotFoundError(path)
    if info["size"] is None:
        raise StorageError(f"{path} cannot be read by ranges: its server does not tell its size.")
    return int(info["size"])


class RemoteFile(io.RawIOBase):
    """A remote file for reading, by ranges.

    Parameters
    ----------
    uri : str
    options : mapping
        Storage options.
    size : int, optional
        Its bytes where known, which saves a request. Otherwise the file is opened as it is now, and
        on S3 a read after it was replaced is a `DatasetChangedError`.
    """

    def __init__(self, uri: str, options: Mapping[str, Any], size: int | None = None) -> None:
        super().__init__()
        self._uri, self._options, self._given_size = uri, options, size
        self._process, self._size = 0, size or 0
        self._version: Any = None
        self._get: Callable[[int, int], Any]
        try:
            self._opened()
        except Exception as error:
            raise remote_error(uri, error) from error
        self._at = self._last = 0
        self._ahead = _AHEAD[0]
        self._recent: tuple[int, bytes] = (0, b"")  # what was read ahead
        self._tail: list[tuple[int, bytes]] = []
        self._kept: list[tuple[int, bytes]] = []
        self._group: list[tuple[int, bytes]] = []
        self._groups: list[tuple[tuple[int, int], Sequence[tuple[int, int]]]] = []

    def _opened(self) -> Callable[[int, int], Any]:
        """Return what reads a range (start, stop); in a forked process the file is opened anew."""
        if self._process == os.getpid():
            return self._get
        fs, path = filesystem(self._uri, self._options)
        version = None
        self._get = partial(_cat, fs, path)
        if self._given_size is None and is_s3(self._uri):
            file = fs.open(path, "rb", cache_type="none")
            version = file.details.get("ETag")
            self._size, self._get = int(file.size), file._fetch_range  # asks for this version only
        elif self._given_size is None:
            self._size = file_size(fs, path)
        if self._process and version != self._version:
            raise self._replaced()
        self._process, self._version = os.getpid(), version
        return self._get

    def _replaced(self) -> DatasetChangedError:
        return DatasetChangedError(
            f"{self._uri} was replaced while it was read; put the old file back, or open the "
            "dataset and plan again."
        )

    # --- what Arrow asks for ----------------------------------------------------------------------

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self._size - self._at)
        wanted = rest if size is None or size < 0 else min(size, rest)
        if not wanted:
            return b""
        try:
            data = self._bytes(self._at, self._at + wanted)
        except Exception as error:
            raise remote_error(self._uri, error) from error
        self._at += wanted
        return data

    def keep(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges (start, stop) at the same time; from now on they are read from memory."""
        self._kept = self._fetched(ranges)

    def expect(self, groups: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Say which ranges are read together: the first read of one fetches its whole group.

        One group is held at a time.
        """
        pairs = [(r, group) for group in groups for r in group]
        self._groups = sorted(pairs, key=lambda pair: pair[0])

    # --- reading ----------------------------------------------------------------------------------

    def _bytes(self, start: int, stop: int) -> bytes:
        for pieces in (self._tail, self._kept, self._group, [self._recent]):
            index = bisect.bisect_right(pieces, start, key=_first) - 1
            at, held = pieces[max(0, index)] if pieces else (0, b"")
            if at <= start and stop <= at + len(held):
                return held[start - at : stop - at]
        if start >= self._size - _TAIL:
            self._tail = self._fetched([(max(0, self._size - _TAIL), self._size)])
            return self._bytes(start, stop)
        index = bisect.bisect_right(self._groups, start, key=lambda pair: pair[0][0]) - 1
        if index >= 0 and stop <= self._groups[index][0][1]:
            self._group = []  # two are never held
            self._group = self._fetched(self._groups[index][1])
            return self._bytes(start, stop)
        return self._read_on(start, stop)

    def _read_on(self, start: int, stop: int) -> bytes:
        """Read what nobody spoke of; ahead, where reads go forward in small hops."""
        at, held = self._recent
        begun = held[start - at :] if at <= start < at + len(held) else b""
        first = start + len(begun)
        near = 0 <= start - self._last <= _HOP
        self._ahead = min(2 * self._ahead, _AHEAD[1]) if near else _AHEAD[0]
        end = min(self._size, max(stop, first + self._ahead))
        [(_, data)] = self._fetched([(first, end)])
        self._recent = (first, data) if end > stop else (0, b"")
        self._last = end
        return begun + data[: stop - first]

    def _fetched(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """Return (start, bytes) of ranges; neighbours in one request, large ones in several."""
        merged = _merged(sorted(ranges))
        pieces = [
            (at, min(at + _PIECE, stop))
            for start, stop in merged
            for at in range(start, stop, _PIECE)
        ]
        get = self._opened()
        if len(pieces) == 1:
            found = [self._piece(get, *pieces[0])]
        else:
            with ThreadPoolExecutor(_PIECES_AT_ONCE) as pool:
                found = list(pool.map(lambda piece: self._piece(get, *piece), pieces))
        starts = [start for start, _ in pieces]
        return [(start, _cut_out(starts, found, start, stop)) for start, stop in sorted(ranges)]

    def _piece(self, get: Callable[[int, int], Any], start: int, stop: int) -> bytes:
        try:
            return _patiently(partial(get, start, stop), start, stop, self._uri)
        except OSError as error:
            if type(error).__name__ == "FileExpired":
                raise self._replaced() from error
            raise


def _cat(fs: Any, path: str, start: int, stop: int) -> Any:
    return fs.cat_file(path, start=start, end=stop)


def _first(piece: tuple[int, bytes]) -> int:
    return piece[0]


def _cut_out(starts: Sequence[int], pieces: Sequence[bytes], start: int, stop: int) -> bytes:
    """Return a range out of pieces that begin at `starts` and cover it."""
    index = bisect.bisect_right(starts, start) - 1
    out: list[bytes] = []
    while start < stop:
        data = pieces[index][start - starts[index] : stop - starts[index]]
        out.append(data)
        start, index = start + len(data), index + 1
    return out[0] if len(out) == 1 else b"".join(out)


def fetch_ranges(wanted: Sequence[tuple[str, int, int]], options: Mapping[str, Any]) -> list[bytes]:
    """Return the bytes of (uri, start, stop) ranges in one store, fetched at the same time.

    Neighbours in a file with a small gap between them come in one request.
    """
    by_uri: dict[str, list[tuple[int, int]]] = {}
    for uri, start, stop in wanted:
        by_uri.setdefault(uri, []).append((start, stop))
    asked = [
        (uri, *r) for uri, ranges in by_uri.items() for r in _merged(sorted(ranges)) if r[0] < r[1]
    ]
    found: dict[str, tuple[list[int], list[bytes]]] = {uri: ([], []) for uri in by_uri}
    for (uri, at, _), data in zip(asked, _fetch_all(asked, options), strict=True):
        found[uri][0].append(at)
        found[uri][1].append(data)
    return [
        _cut_out(*found[uri], start, stop) if start < stop else b"" for uri, start, stop in wanted
    ]


def _fetch_all(asked: Sequence[tuple[str, int, int]], options: Mapping[str, Any]) -> list[bytes]:
    if not asked:
        return []
    places = {uri: filesystem(uri, options) for uri in dict.fromkeys(uri for uri, _, _ in asked)}
    fs, paths = places[asked[0][0]][0], [places[uri][1] for uri, _, _ in asked]
    starts, stops = [start for _, start, _ in asked], [stop for _, _, stop in asked]
    try:
        found = fs.cat_ranges(paths, starts, stops, on_error="return", batch_size=_RANGES_AT_ONCE)
    except Exception as error:
        raise remote_error(asked[0][0], error) from error
    out = []
    for (uri, start, stop), path, data in zip(asked, paths, found, strict=True):
        try:
            get = partial(_cat, fs, path, start, stop)
            out.append(_patiently(get, start, stop, uri, tried=data))
        except Exception as error:
            raise remote_error(uri, error) from error
    return out


def _patiently(get: Callable[[], Any], start: int, stop: int, uri: str, tried: Any = None) -> bytes:
    """Call `get` until it gives the bytes of a range; again where the connection was cut.

    `tried` is what a first try gave: bytes, or an exception.
    """
    size = stop - start
    data = _attempt(get) if tried is None else tried
    for pause in _PAUSES:
        cut = _was_cut(data) if isinstance(data, Exception) else len(data) < size
        if not cut:
            break
        time.sleep(pause)
        data = _attempt(get)
    if isinstance(data, Exception):
        raise data
    if len(data) > size and len(data) >= stop:
        data = data[start:stop]  # a web server that knows no ranges sent the whole file
    if len(data) != size:
        raise StorageError(
            f"{uri} cannot be read: {size:,} bytes were asked for, and {len(data):,} came. Check "
            "the store, then retry."
        )
    return bytes(data)


def _attempt(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except Exception as error:
        return error


def _was_cut(error: Exception) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return any(base.__name__ in _CUT for base in type(error).__mro__)


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join sorted ranges that overlap or nearly touch."""
    out: list[tuple[int, int]] = []
    for start, stop in ranges:
        if out and start - out[-1][1] <= _MERGED:
            out[-1] = (out[-1][0], max(stop, out[-1][1]))
        else:
            out.append((start, stop))
    return out
