"""Committing a directory: whole or not at all.

Everything is written into a dot-directory beside the target, flushed to disk, and renamed once. A
process that dies leaves the target absent and one or two dot-directories, which no reader looks at:

``.<name>.staging-<12 hex>``
    What was about to become the target. Never used again.
``.<name>.work-<12 hex>`` (or ``…-<12 hex>-<12 hex>``)
    What a planning job keeps between its stages, named by the job's digest. The same job goes on
    from it when it is run again; see `jobs.work`.

`SCRATCH` matches these names. Whoever works in such a directory holds a lock on it (`lock_folder`),
which ends with the process, however that ends: `in_use` tells whether somebody does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .storage import storing

__all__ = [
    "SCRATCH",
    "in_use",
    "link_file",
    "lock_folder",
    "publish",
    "replace_file",
    "staging",
    "sync_path",
    "write_synced",
]

SCRATCH = re.compile(r"\.(?P<name>.+)\.(?P<kind>staging|work)-(?P<id>[0-9a-f]{12}(-[0-9a-f]{12})?)")
"""Names of directories that a run leaves when it is killed; use ``fullmatch``."""

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # what rename says of a target in use


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Make a staging directory beside `target`; gone when the block ends, unless published."""
    with storing("Preparing the target", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.parent / f".{target.name}.staging-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
    lock = lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def lock_folder(folder: Path) -> int | None:
    """Lock a directory until the handle that is returned is closed, or the process ends.

    None where another process holds it, where it was removed meanwhile, or where the filesystem
    knows no locks.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(folder)):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def in_use(folder: Path) -> bool:
    """Whether a running process works in a directory; also True where that cannot be known."""
    handle = lock_folder(folder)
    if handle is not None:
        os.close(handle)
    return handle is None and folder.exists()


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


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name; one that has it already stays."""
    with suppress(FileExistsError):
        os.link(source, target)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, over what is there; writers may race."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        write_synced(staged, data)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Flush a file's bytes, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
