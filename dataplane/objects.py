"""Objects of a store: each is put whole, and where it must be, only if there is none yet.

"Put if absent" is one request that the store decides by itself, so of all writers of a key exactly
one wins. A request whose answer got lost may have been done all the same: its key is read back
before anything is said of it.
"""

from __future__ import annotations

import errno
import logging
import uuid
from pathlib import Path
from typing import Any

from .errors import BatchloomError, StorageError
from .remote_files import remote_error
from .storage import Location

__all__ = ["SCRATCH", "probe", "put", "put_file", "put_if_absent", "refuse_no_store", "remove"]

SCRATCH = ".probe-"  # begins the names of the keys that `probe` makes

# Filesystems whose "create" is decided by the store. fsspec's default looks first and writes then.
_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory")
_TRIES = 2
_SMALL = 1 << 20  # bytes that are sent in no time
_AT_ONCE = 64 << 20  # bytes of one request; more goes in parts

_log = logging.getLogger("batchloom")


def refuse_no_store(location: Location) -> None:
    """Raise `StorageError` where a URI names nothing that a plan can be committed to."""
    scheme = location.path.split(":", 1)[0]
    if scheme not in _STORES or "::" in location.path:
        raise StorageError(
            f"{location}: nothing can be committed to '{scheme}'. Targets are local directories "
            "and object stores that write a key only if there is none: s3://, gs://, abfs://, and "
            "memory:// for tests."
        )


def put(location: Location, data: bytes) -> None:
    """Put an object, over what is there."""
    refuse_no_store(location)
    try:
        fs, path = location.filesystem()
        fs.pipe_file(path, data)
    except Exception as error:
        raise remote_error(location.path, error, "be written") from error


def put_file(location: Location, file: Path) -> None:
    """Put a local file of any size, over what is there; its name should be its content's."""
    refuse_no_store(location)
    size = file.stat().st_size
    if size <= _AT_ONCE:
        put_if_absent(location, file.read_bytes())
    else:
        try:
            fs, path = location.filesystem(bulk=True)
            fs.put_file(str(file), path)
        except Exception as error:
            raise remote_error(location.path, error, "be written") from error
    if (found := location.size()) != size:
        raise StorageError(
            f"{location}: expected {size:,} bytes, found {found:,}. Nothing was committed; run the "
            "same command again."
        )


def put_if_absent(location: Location, data: bytes) -> bool:
    """Put an object where there is none; return False where there is one.

    False does not say whose it is: where an answer got lost, it may be this call's own.

    Raises
    ------
    StorageError
        Where it could not be put; or where it cannot be known whether it was.
    """
    for attempt in range(_TRIES):
        try:
            return _create(location, data)
        except Exception as error:
            sentence = remote_error(location.path, error, "be written")
            if _is_refusal(error):
                raise StorageError(f"{sentence} Nothing was committed.") from error
            try:
                if location.exists():
                    return False
            except BatchloomError:
                raise StorageError(
                    f"{sentence} Whether it was written all the same is not known; run the same "
                    "command again: the same plan already there is success."
                ) from error
            if attempt == _TRIES - 1:
                raise StorageError(
                    f"{sentence} Nothing was committed; what was sent before is used again by the "
                    "same command."
                ) from error
    raise AssertionError("the last try returns or raises")


def _create(location: Location, data: bytes) -> bool:
    fs, path = location.filesystem(bulk=len(data) > _SMALL)
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception as error:
        if _is_taken(error):
            return False
        raise
    return True


def _is_taken(error: Exception) -> bool:
    if isinstance(error, FileExistsError):
        return True
    return _status(error) == 412  # of a store that does not say which condition failed


def _is_refusal(error: Exception) -> bool:
    """Whether the store understood the request, and declined it."""
    if isinstance(error, FileNotFoundError | PermissionError | BatchloomError):
        return True
    return "Credentials" in type(error).__name__ or 400 <= _status(error) < 409


def _status(error: Exception) -> int:
    response: Any = getattr(error.__cause__ or error, "response", None)
    if not isinstance(response, dict):
        return 0
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def remove(location: Location) -> None:
    """Remove an object; one that is not there is fine."""
    try:
        fs, path = location.filesystem()
        fs.rm_file(path)
    except FileNotFoundError:
        return
    except Exception as error:
        raise remote_error(location.path, error, "be removed") from error


def probe(folder: Location) -> None:
    """Put a scratch key twice; the second time the store must refuse.

    Raises
    ------
    StorageError
        Where it does not, or the folder cannot be written to.
    """
    key = folder.join(f"{SCRATCH}{uuid.uuid4().hex[:12]}")
    try:
        _create(key, b"first")
        honoured = not _create(key, b"second")
    except Exception as error:
        if getattr(error, "errno", None) != errno.ENOSYS:
            raise remote_error(folder.path, error, "be written") from error
        honoured = False
    try:
        remove(key)
    except BatchloomError as error:
        _log.warning("%s; batchloom gc removes it", str(error).rstrip("."))
    if not honoured:
        raise StorageError(
            f"{folder}: this store lets a second writer overwrite the first (it ignores "
            "'If-None-Match: *'), so no plan can be committed to it safely. Write to a local "
            "directory and copy that, or use a store with conditional writes, such as Amazon S3."
        )
