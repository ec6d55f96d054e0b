"""Where files are: a local path or a filesystem URI, opened the same way.

Local files go through memory maps and the operating system's calls; everything else through fsspec
(``memory://``, ``s3://``, ``gs://``, ``http://`` … each by its own package; see `remote_files`).
"""

from __future__ import annotations

import errno
import mmap
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import BatchloomError, MissingFileError, NoRoomError, StorageError
from .remote_files import RemoteFile, file_size, filesystem, remote_error

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

    def as_named(self, given: str | os.PathLike[str]) -> Path | str:
        """Return how callers see it, who named it so: a path where it is local, else the URI."""
        if not self.is_local:
            return self.path
        return Path(self.path if os.fspath(given).startswith("file://") else given)

    def filesystem(self, *, bulk: bool = False) -> tuple[Any, str]:
        """Return the fsspec filesystem of a URI, and the path in it; `bulk` for large uploads."""
        return filesystem(self.path, self.options, bulk=bulk)

    def exists(self) -> bool:
        if self.is_local:
            return os.path.exists(self.path)
        with _reading(self):
            fs, path = self.filesystem()
            return bool(fs.exists(path))

    def is_dir(self) -> bool:
        if self.is_local:
            return os.path.isdir(self.path)
        with _reading(self):
            fs, path = self.filesystem()
            return bool(fs.isdir(path))

    def size(self) -> int:
        """Bytes of the file."""
        with _reading(self):
            if self.is_local:
                return os.stat(self.path).st_size
            return file_size(*self.filesystem())

    def contains(self, other: Location) -> bool:
        """Whether another place is this one or lies in it."""
        if self.is_local != other.is_local:
            return False
        if self.is_local:
            return Path(other.path).resolve().is_relative_to(Path(self.path).resolve())
        (fs, root), (other_fs, path) = self.filesystem(), other.filesystem()
        root = root.rstrip("/")
        return type(fs) is type(other_fs) and f"{path}/".startswith(f"{root}/")

    # --- directories ------------------------------------------------------------------------------

    def entries(self) -> list[tuple[str, int | None]]:
        """Return (name, bytes) of what is directly below, hidden ones too; bytes None: a directory.

        Nothing where there is no such directory.
        """
        with _reading(self):
            if self.is_local:
                if not os.path.isdir(self.path):
                    return []
                with os.scandir(self.path) as found:
                    return [(e.name, None if e.is_dir() else _size_or_zero(e.path)) for e in found]
            fs, root = self.filesystem()
            if not fs.isdir(root):  # s3fs's `ls` of nothing lists all of the folder above
                return []
            listed = _children(fs, root.rstrip("/"))
            return [(path.rsplit("/", 1)[-1], size) for path, size in listed]

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield (path relative to here, bytes) of all files below, hidden ones left out.

        Names that start with ``.`` or ``_`` are hidden, as in Spark, Dask and Arrow.
        """
        with _reading(self):
            for relative, size in self._walk() if self.is_local else self._walk_remote(is_hidden):
                if not is_hidden(relative):
                    yield relative, size

    def objects(self) -> Iterator[tuple[str, int]]:
        """Yield (path relative to here, bytes) of all remote files below, hidden ones too."""
        with _reading(self):
            yield from self._walk_remote(lambda _: False)

    def modified(self) -> datetime:
        """When a remote file was last written."""
        with _reading(self):
            fs, path = self.filesystem()
            when: datetime = fs.modified(path)
            return when if when.tzinfo else when.replace(tzinfo=UTC)

    def _walk(self) -> Iterator[tuple[str, int]]:

        def fail(error: OSError) -> None:
            raise error

        for folder, below, names in os.walk(self.path, onerror=fail, followlinks=True):
            # Hidden folders are not entered: a staging folder may vanish while it is listed.
            below[:] = [name for name in below if not is_hidden(name)]
            for name in names:
                if not is_hidden(name):
                    full = os.path.join(folder, name)
                    yield os.path.relpath(full, self.path), _size_or_zero(full)

    def _walk_remote(self, skip: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
        fs, root = self.filesystem()
        root = root.rstrip("/")
        for path, size in _below(fs, root, lambda path: not skip(path[len(root) :])):
            yield path[len(root) :].lstrip("/"), size

    def glob(self) -> list[tuple[Location, int | None]]:
        """Return the files that this pattern names, with their bytes where listing them tells."""
        with _reading(self):
            if self.is_local:
                import glob

                found = glob.glob(self.path, recursive=True)
                return [(Location(p), None) for p in found if not os.path.isdir(p)]
            return list(self._glob_remote())

    def _glob_remote(self) -> Iterator[tuple[Location, int | None]]:
        from fsspec.utils import glob_translate

        fs, pattern = self.filesystem()
        root = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        levels = pattern.split("/")
        wanted = re.compile(glob_translate(pattern))

        def enter(folder: str) -> bool:
            """Whether files below could match: only what must be listed need be allowed to."""
            depth = folder.count("/") + 1
            if "**" in levels[:depth]:
                return True
            begun = "/".join(levels[:depth])
            return depth < len(levels) and bool(re.match(glob_translate(begun), folder))

        # The URI as it was given, its path replaced: `unstrip_protocol` may spell it otherwise.
        prefix = self.path.removesuffix(pattern.lstrip("/"))
        for path, size in _below(fs, root, enter):
            if wanted.match(path):
                yield Location(prefix + path.lstrip("/"), self.options), size

    # --- reading ----------------------------------------------------------------------------------

    def open(self, size: int | None = None) -> Any:
        """Open for reading: a memory map of a local file, else ranged reads of a remote one.

        Parameters
        ----------
        size : int, optional
            Its bytes, where a remote file was just listed; see `RemoteFile`.
        """
        with _reading(self):
            if self.is_local:
                if os.stat(self.path).st_size == 0:
                    return pa.BufferReader(b"")  # an empty file cannot be mapped
                with open(self.path, "rb") as file:
                    return _MappedFile(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            return _ArrowFile(RemoteFile(self.path, self.options, size), "r")

    def read_bytes(self) -> bytes:
        with _reading(self):
            if self.is_local:
                return Path(self.path).read_bytes()
            return RemoteFile(self.path, self.options).read()


class _MappedFile(pa.BufferReader):  # type: ignore[misc]
    """A mapped file; what was read of it stays resident until it is let go."""

    def __init__(self, mapped: mmap.mmap) -> None:  # Arrow's part is in __cinit__
        self._mapped = mapped

    def let_go(self) -> None:
        """Keep no page of the file resident; what is still used is mapped again when touched."""
        self._mapped.madvise(mmap.MADV_DONTNEED)


class _ArrowFile(pa.PythonFile):  # type: ignore[misc]
    """A remote file as Arrow reads it, and a way to say what will be read next."""

    def __init__(self, file: RemoteFile, mode: str) -> None:  # Arrow's part is in __cinit__
        self.keep, self.expect = file.keep, file.expect


def _children(fs: Any, folder: str) -> Iterator[tuple[str, int | None]]:
    """Yield (path, bytes) of what is directly below; bytes None: a directory."""
    for info in fs.ls(folder, detail=True):
        path = info["name"].rstrip("/")
        if path != folder:
            directory = info["type"] == "directory"
            yield path, None if directory else int(info.get("size") or fs.size(path) or 0)


def _below(fs: Any, root: str, enter: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    """Yield (path, bytes) of the files below a folder, in folders that `enter` allows.

    Not fsspec's `find` and `glob`: they leave out a folder that may not be listed, and its rows
    with it.
    """
    folders = [root]
    while folders:
        for path, size in _children(fs, folders.pop()):
            if size is not None:
                yield path, size
            elif enter(path):
                folders.append(path)


def locate(
    path: str | os.PathLike[str] | Location, storage_options: Mapping[str, Any] | None = None
) -> Location:
    """Return the location of a path or URI; ``file://`` becomes a plain path."""
    if isinstance(path, Location):
        return path
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
    except Exception as error:
        # A filesystem's package has errors of its own (credentials, endpoints); ours end here.
        if not location.is_local:
            raise remote_error(location.path, error) from error
        if isinstance(error, FileNotFoundError):
            raise MissingFileError(f"{location}: no such file or directory.") from error
        if isinstance(error, OSError):
            raise unreadable(location, error) from error
        raise


def unreadable(location: Location, error: Exception) -> BatchloomError:
    """Say why the operating system or a filesystem does not give a file out."""
    if not location.is_local:
        return remote_error(location.path, error)
    if isinstance(error, PermissionError):
        place = error.filename or location
        return StorageError(
            f"{location}: permission denied ({place}); make it readable for this user."
        )
    code = getattr(error, "errno", None)
    reason = os.strerror(code) if code else f"{type(error).__name__}: {error}"
    return StorageError(
        f"{location} cannot be read: {reason.rstrip('.')}. Check the storage, then retry."
    )


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
        advice, full = "choose another target", error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or error.errno == errno.EFBIG:
            advice = "free some space or choose another target, then run the same command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "choose a target that this user may write to"
        raise (NoRoomError if full else StorageError)(
            f"{what} failed: {reason} ({target}). Nothing was committed; {advice}."
        ) from error
