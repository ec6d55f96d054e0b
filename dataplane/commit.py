"""Committing a local directory: whole or not at all. (`targets` has stores, too.)

Everything is written into a dot-directory beside the target, flushed to disk, and renamed once. A
process that dies leaves the target absent and a ``.<name>.staging-<random>`` directory, which no
reader looks at.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .objects import put
from .storage import Location, storing

__all__ = ["publish", "replace_file", "staging", "sync_path", "write_file", "write_synced"]

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)  # what rename says of a target in use


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Make a staging directory beside `target`; gone when the block ends, unless published."""
    with storing("Preparing the target", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = target.parent / f".{target.name}.staging-{uuid.uuid4().hex[:12]}"
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def sync_path(path: Path) -> None:
    """Flush a file's bytes, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
