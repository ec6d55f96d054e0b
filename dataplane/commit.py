"""Committing a local directory: whole or not at all. (`targets` has stores, too.)

Everything is written into a dot-directory beside the target, flushed to disk, and renamed once. A
process that dies leaves the target absent and one or two dot-directories, which no reader looks at:

``.<name>.staging-<12 hex digits>``
    What was about to become the target. Never used again.
``.<name>.work-<12 hex digits>``
    What a planning job keeps between its stages, named by a digest of the job: the same job goes on
    from it when it is run again (`jobs.work`).

A process that works in one of them holds a lock on it (`hold`), which ends with the process. For a
target on a store both stand in the folder for temporary files, and a file in them says for which.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .direct_write import write_all
from .errors import StorageError
from .objects import put, put_if_absent
from .storage import Location, storing

__all__ = [
    "DESTINATION",
    "bring",
    "create_file",
    "hold",
    "note_destination",
    "publish",
    "replace_file",
    "staging",
    "sync_path",
    "write_file",
    "write_synced",
]

DESTINATION = ".destination"
"""The file in a dot-directory that holds the URI of a target elsewhere."""

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # what rename says of a target in use


@contextmanager
def staging(target: Path, destination: str = "") -> Iterator[Path]:
    """Make a staging directory beside `target`; gone when the block ends, unless published.

    `destination` is the URI of a target that is not on this machine; it is noted in the folder.
    """
    with storing("Preparing the target", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.parent / f".{target.name}.staging-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
        note_destination(folder, destination)
    try:
        with hold(folder):  # so that nobody clears it away while this process lives
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def note_destination(folder: Path, destination: str) -> None:
    """Note in a folder on this machine for which target elsewhere it is, if any."""
    if destination:
        (folder / DESTINATION).write_text(destination)


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Lock a file or folder (flock); False where another holder has it, or another user.

    The lock goes with the process. Where the file system knows no locks, all have it. False also
    where it was removed before it could be locked.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, FileNotFoundError):
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = True
        except OSError as error:
            mine = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield mine and _is_still(path, handle)
    finally:
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether an open file has not been removed or replaced since."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def publish(folder: Path, target: Path) -> bool:
    """Rename `folder` to `target`, over nothing or an empty directory; False where it is taken."""
    with storing("Committing", target):
        sync_path(folder)
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        sync_path(target.parent)
    return True


def write_synced(path: Path, data: Any) -> None:
    """Write a file of bytes, or of what shares its memory as such, and flush it to disk."""
    with open(path, "wb", buffering=0) as file:
        write_all(file.fileno(), data)
        os.fsync(file.fileno())


def bring(source: Location, target: Path, sha256: str) -> None:
    """Give a file of known content a second name, or copy it where no link can be made.

    A copy is hashed; `StorageError` where it is not what it should be. A target that is there
    already is left as it is: names of such files are their contents.
    """
    try:
        if source.is_local:
            os.link(os.path.realpath(source.path), target)
            return
    except FileExistsError:
        return
    except OSError:  # another device, or a file system without links
        pass
    _copy_checked(source, target, sha256)


def _copy_checked(source: Location, target: Path, sha256: str) -> None:
    if source.is_local:
        shutil.copyfile(source.path, target)
    else:
        target.write_bytes(source.read_bytes())
    with open(target, "rb+") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    if found != sha256:
        target.unlink()
        raise StorageError(
            f"Copying {source} went wrong: expected SHA-256 {sha256}, found {found}. Nothing was "
            "committed; check the storage, then run the same command again."
        )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, over what is there; writers may race."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        write_synced(staged, data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_path(path.parent)


def write_file(location: Location, data: bytes, what: str) -> None:
    """Write a file or object whole or not at all, over what is there; its folder is made.

    `what` begins the sentence of an error: "Writing the snapshot".
    """
    if not location.is_local:
        put(location, data)
        return
    path = Path(location.path)
    with storing(what, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)


def create_file(location: Location, data: bytes, what: str) -> bool:
    """Write a file or object where there is none, whole or not at all; False where there is one."""
    if not location.is_local:
        return put_if_absent(location, data)
    path = Path(location.path)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with storing(what, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(staged, data)
            os.link(staged, path)
        except FileExistsError:
            return False
        finally:
            staged.unlink(missing_ok=True)
        sync_path(path.parent)
    return True


def sync_path(path: Path) -> None:
    """Flush a file's bytes, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
