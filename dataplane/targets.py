"""Where a manifest is committed: a directory of this machine, or a prefix of an object store.

A local target is built beside its place and renamed once (see `commit`). On a store there is no
rename: parts are sent as they are finished, each under the hash of its bytes, so that a second run
finds what a first one left; the header comes last and is what makes them a manifest. It is put only
if there is none, so of several writers one wins, and a reader sees nothing or all.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from .commit import publish, staging, write_synced
from .errors import (
    BatchloomError,
    ManifestConflictError,
    MissingFileError,
    NoRoomError,
    StorageError,
)
from .manifest_header import HEADER
from .objects import probe, put_if_absent, refuse_no_store, remove
from .storage import Location, locate, storing

__all__ = ["Target", "target_at"]

_OURS = re.compile(r"\..*|[a-z]+-[0-9a-f]{64}\.[a-z]+")  # hidden, or named by its content
_UPLOADS = 4  # at a time; as many parts wait on the local disk at most
_SCRATCH_BYTES = 1 << 30


class Target(ABC):
    """A place for one manifest, and the writer's way to it.

    Attributes
    ----------
    location : Location
    given : Path or str
        As it was named.
    """

    def __init__(self, location: Location, given: Path | str) -> None:
        self.location = location
        self.given = given

    @abstractmethod
    def prepare(self) -> None:
        """Refuse what cannot be committed to, before any work is done.

        Raises
        ------
        ManifestConflictError, StorageError
        """

    @abstractmethod
    def refuse_foreign(self) -> None:
        """Raise `ManifestConflictError` where the place holds something that is no manifest."""

    @property
    @abstractmethod
    def beside(self) -> Path:
        """The local place beside which scratch and work folders stand."""

    @property
    def disk(self) -> Path:
        """The folder of the scratch and work folders."""
        return self.beside.parent

    @abstractmethod
    def check_space(self, bytes_needed: int) -> None:
        """Raise `StorageError` where a disk has no room for what is about to be written."""

    @abstractmethod
    def scratch(self) -> AbstractContextManager[Path]:
        """Make a local folder to write in; gone when the block ends."""

    @abstractmethod
    def take(self, file: Path) -> None:
        """Take over a finished file of the scratch folder, which may vanish from there."""

    @abstractmethod
    def publish(self, folder: Path, header: bytes) -> bool:
        """Commit the files of a scratch folder, taken ones too, under a header; False: taken."""

    @abstractmethod
    def close(self) -> None:
        """Stop what is still going on; nothing more is committed."""


def target_at(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Target:
    """Return the target at a path or URI."""
    location = locate(path, storage_options)
    kind = LocalTarget if location.is_local else ObjectTarget
    return kind(location, location.as_named(path))


# --- a directory ----------------------------------------------------------------------------------


class LocalTarget(Target):
    """A directory, renamed into its place as a whole."""

    def __init__(self, location: Location, given: Path | str) -> None:
        super().__init__(location, given)
        # A link may name it; a rename must not hit the link.
        self._place = Path(os.path.realpath(location.path))

    def prepare(self) -> None:
        self.refuse_foreign()

    def refuse_foreign(self) -> None:
        place = self._place
        with storing("Looking at the target", place):
            if place.exists() and not place.is_dir():
                raise ManifestConflictError(f"{place} is a file; choose another target.")
            if not place.is_dir() or (place / HEADER).exists():
                return
            if any(place.iterdir()):
                raise ManifestConflictError(
                    f"{place} holds other files and no manifest; choose another target."
                )
            if os.path.ismount(place):
                raise ManifestConflictError(
                    f"{place} is a mount point, which no rename can replace; choose a folder in it."
                )

    @property
    def beside(self) -> Path:
        return self._place

    def check_space(self, bytes_needed: int) -> None:
        check_space(self.disk, bytes_needed)

    def scratch(self) -> AbstractContextManager[Path]:
        return staging(self.beside)

    def take(self, file: Path) -> None:
        """Leave it where it is: the folder becomes the manifest."""

    def publish(self, folder: Path, header: bytes) -> bool:
        with storing("Writing the manifest's header", folder):
            write_synced(folder / HEADER, header)
        return publish(folder, self._place)

    def close(self) -> None:
        pass


def check_space(folder: Path, bytes_needed: int, what: str = "The plan") -> None:
    """Raise `NoRoomError` where the disk has no room for what is about to be written."""
    there = folder
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    if status.f_blocks and bytes_needed > free:
        raise NoRoomError(
            f"{what} needs about {bytes_needed:,} bytes in {folder}, and {free:,} are free. "
            "Free some space or choose another target; nothing was written."
        )


# --- an object store ------------------------------------------------------------------------------


class ObjectTarget(Target):
    """A prefix of an object store; parts are built in the folder for temporary files."""

    def __init__(self, location: Location, given: Path | str) -> None:
        super().__init__(location, given)
        self._prepared = False
        self._sent: dict[str, int] = {}
        self._created: set[str] = set()  # by us; others were there
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def prepare(self) -> None:
        if not self._prepared:
            refuse_no_store(self.location)
            self.refuse_foreign()
            probe(self.location)
            self._prepared = True

    def refuse_foreign(self) -> None:
        names = [name for name, _ in self.location.entries()]
        if HEADER in names:
            return
        if not all(_OURS.fullmatch(name) for name in names):
            raise ManifestConflictError(
                f"{self.location} holds other files and no manifest; choose another target."
            )
        with suppress(MissingFileError):
            self.location.size()
            raise ManifestConflictError(f"{self.location} is a file; choose another target.")

    @property
    def beside(self) -> Path:
        return Path(tempfile.gettempdir()) / self.location.name

    def check_space(self, bytes_needed: int) -> None:
        check_space(self.disk, min(bytes_needed, _SCRATCH_BYTES))

    def scratch(self) -> AbstractContextManager[Path]:
        return staging(self.beside)

    def take(self, file: Path) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="batchloom-upload")
        while len(self._pending) >= _UPLOADS:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._send, file))

    def _send(self, file: Path) -> None:
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return  # of an epoch that was abandoned, or a second one with the same bytes
        place = self.location.join(file.name)
        if put_if_absent(place, data):
            self._created.add(file.name)
        elif (found := place.size()) != len(data):
            raise StorageError(
                f"{place} is there with {found:,} bytes; {len(data):,} were expected by its name. "
                "Remove it, then run the same command again."
            )
        self._sent[file.name] = len(data)
        file.unlink(missing_ok=True)

    def publish(self, folder: Path, header: bytes) -> bool:
        self._wait()
        for file in sorted(folder.iterdir()):
            self.take(file)
        self._wait()
        self._check_sizes()
        if put_if_absent(self.location.join(HEADER), header):
            return True
        self._remove_unused(header)
        return False

    def _wait(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def _check_sizes(self) -> None:
        """See that all that was sent is there: the header makes a promise of it."""
        places = [self.location.join(name) for name in self._sent]
        with ThreadPoolExecutor(_UPLOADS) as pool:
            sizes = list(pool.map(_size_or_none, places))
        for place, expected, found in zip(places, self._sent.values(), sizes, strict=True):
            if found != expected:
                there = "nothing" if found is None else f"{found:,} bytes"
                raise StorageError(
                    f"{place}: expected {expected:,} bytes, found {there}. Nothing was committed; "
                    "run the same command again."
                )

    def _remove_unused(self, header: bytes) -> None:
        """Remove what this writer put beside a manifest that does not name it.

        Whoever else wrote the same has lost to that manifest too, or is the same.
        """
        with suppress(BatchloomError, ValueError, LookupError, TypeError):
            there = self.location.join(HEADER).read_bytes()
            same = json.loads(there)["manifest_id"] == json.loads(header)["manifest_id"]
            for name in self._created:
                content_hashes = same and name.startswith("deep-")
                if name.split("-")[1].split(".")[0].encode() not in there and not content_hashes:
                    remove(self.location.join(name))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._pending.clear()


def _size_or_none(place: Location) -> int | None:
    try:
        return place.size()
    except MissingFileError:
        return None
