"""Where files are: a local path or a filesystem URI, opened the same way.

Local files go through memory maps and the operating system's calls; everything else through fsspec
(``memory://``, ``s3://``, ``gs://``, ``http://`` … each by its own package).
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import BatchloomError, DatasetError, MissingExtraError, StorageError, needs_extra

__all__ = ["Location", "is_hidden", "locate", "natural_key", "storing", "unreadable"]

_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*(::|://)")


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which ``part-2`` comes before ``part-10``."""
    parts = re.split(r"([0-9]+)", text)  # numbers stand at the odd places
    return [(1, int(p), p) if i % 2 else (0, 0, p) for i, p in enumerate(parts)]


@dataclass(frozen=True)
class Location:
    """A file or directory.

    Attributes
    ----------
    path : str
        Absolute local path, or the whole URI.
    options : mapping
        fsspec's storage options (credentials, endpoints). Never written anywhere.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_local(self) -> bool:
        return not _URI.match(self.path)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.path

    def join(self, relative: str) -> Location:
        return Location(posixpath.join(self.path, relative), self.options) if relative else self

    def parent(self) -> Location:
        return Location(self.path.rstrip("/").rsplit("/", 1)[0] or "/", self.options)

    def exists(self) -> bool:
        if self.is_local:
            return os.path.exists(self.path)
        with _reading(self):
            fs, path = self._fs()
            return bool(fs.exists(path))

    def is_dir(self) -> bool:
        if self.is_local:
            return os.path.isdir(self.path)
        with _reading(self):
            fs, path = self._fs()
            return bool(fs.isdir(path))

    def size(self) -> int:
        """Bytes of the file."""
        with _reading(self):
            if self.is_local:
                return os.stat(self.path).st_size
            fs, path = self._fs()
            return int(fs.size(path))

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield (path relative to here, bytes) of all files below, hidden ones left out.

        Names that start with ``.`` or ``_`` are hidden, as in Spark, Dask and Arrow.
        """
        with _reading(self):
            for relative, size in self._walk():
                if not is_hidden(relative):
                    yield relative, size

    def _walk(self) -> Iterator[tuple[str, int]]:
        if not self.is_local:
            yield from self._walk_remote()
            return

        def fail(error: OSError) -> None:
            raise error

        for folder, below, names in os.walk(self.path, onerror=fail, followlinks=True):
            # Hidden folders are not entered: a staging folder may vanish while it is listed.
            below[:] = [name for name in below if not is_hidden(name)]
            for name in names:
                if not is_hidden(name):
                    full = os.path.join(folder, name)
                    yield os.path.relpath(full, self.path), _size_or_zero(full)

    def _walk_remote(self) -> Iterator[tuple[str, int]]:
        # Not fsspec's `find`: it leaves out a folder that it may not list, and its rows with it.
        fs, root = self._fs()
        fs.invalidate_cache()
        root = root.rstrip("/")
        folders = [root]
        while folders:
            folder = folders.pop()
            for info in fs.ls(folder, detail=True):
                path = info["name"].rstrip("/")
                relative = path[len(root) :].lstrip("/")
                if path == folder or is_hidden(relative):
                    continue
                if info["type"] == "directory":
                    folders.append(path)
                else:
                    yield relative, int(info.get("size") or fs.size(path) or 0)

    def glob(self) -> list[Location]:
        """Return the files that this pattern names."""
        with _reading(self):
            if self.is_local:
                import glob

                return [Location(p) for p in glob.glob(self.path, recursive=True)]
            fs, path = self._fs()
            fs.invalidate_cache()
            # The URI as it was given, its path replaced: `unstrip_protocol` may spell it otherwise.
            tail = path.lstrip("/")
            if not self.path.endswith(tail):
                return [Location(fs.unstrip_protocol(p), self.options) for p in fs.glob(path)]
            prefix = self.path.removesuffix(tail)
            return [Location(prefix + p.lstrip("/"), self.options) for p in fs.glob(path)]

    def open(self) -> Any:
        """Open for reading: a memory map of a local file, else a buffered remote file."""
        with _reading(self):
            if self.is_local:
                if os.stat(self.path).st_size == 0:
                    return pa.BufferReader(b"")  # an empty file cannot be mapped
                return pa.memory_map(self.path, "rb")
            fs, path = self._fs()
            return pa.PythonFile(fs.open(path, "rb"), mode="r")

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return bytes(file.read())

    def _fs(self) -> tuple[Any, str]:
        import fsspec

        s3 = self.path.split(":", 1)[0] in ("s3", "s3a")
        try:
            with needs_extra(f"Reading {self.path}", "s3") if s3 else nullcontext():
                fs, path = fsspec.core.url_to_fs(self.path, **self.options)
        except MissingExtraError:
            raise
        except (ImportError, ValueError) as error:
            raise DatasetError(f"{self.path}: {error}.") from error
        return fs, path


def locate(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Location:
    """Return the location of a path or URI; ``file://`` becomes a plain path."""
    text = os.fspath(path)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if _URI.match(text):
        return Location(text, dict(storage_options or {}))
    return Location(str(Path(text).expanduser().absolute()))


def is_hidden(relative: str) -> bool:
    """Whether a part of a relative path starts with ``.`` or ``_``."""
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _size_or_zero(path: str) -> int:
    """Bytes of a file; 0 of a broken link, which only matters where it is opened."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _reading(location: Location) -> Iterator[None]:
    try:
        yield
    except BatchloomError:
        raise
    except FileNotFoundError as error:
        raise DatasetError(f"{location}: no such file or directory.") from error
    except OSError as error:
        raise unreadable(location, error) from error
    except Exception as error:
        # A filesystem's package has errors of its own (credentials, endpoints); ours end here.
        if location.is_local:
            raise
        raise unreadable(location, error) from error


def unreadable(location: Location, error: Exception) -> StorageError:
    """Say why the operating system or a filesystem does not give a file out."""
    if isinstance(error, PermissionError):
        place = getattr(error, "filename", None) or location
        return StorageError(
            f"{location}: permission denied ({place}); make it readable for this user."
        )
    code = getattr(error, "errno", None)
    reason = os.strerror(code) if code else f"{type(error).__name__}: {error}"
    advice = "Check the storage" if location.is_local else "Check the address and the credentials"
    return StorageError(f"{location} cannot be read: {reason.rstrip('.')}. {advice}, then retry.")


@contextmanager
def storing(what: str, target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` of writing into one sentence that says what was being written."""
    try:
        yield
    except BatchloomError:
        raise
    except OSError as error:
        target = os.fspath(target)
        reason = os.strerror(error.errno) if error.errno else str(error)
        advice = "choose another target"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "free some space or choose another target, then run the same command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "choose a target that this user may write to"
        raise StorageError(
            f"{what} failed: {reason} ({target}). Nothing was committed; {advice}."
        ) from error
