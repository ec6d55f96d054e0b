"""What writers left behind: found, and removed once it is old.

A writer that dies leaves things that no reader looks at: a staging folder beside a local target;
parts on an object store that no header names; scratch keys; uploads that were begun and never
completed. Nothing of it can become part of a plan, but for the parts of an uncommitted plan, which
the same command would use again; so age decides.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .errors import MissingFileError, StorageError
from .manifest_header import HEADER
from .objects import SCRATCH
from .objects import remove as remove_object
from .remote_files import is_s3, remote_error
from .storage import Location, storing

__all__ = ["Leftover", "leftovers", "remove"]

Kind = Literal["staging", "temporary", "probe", "uncommitted", "unreferenced", "upload"]

_STAGING = re.compile(r"\..+\.staging-[0-9a-f]{12}")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_PART = re.compile(r"(?:part|bitmap)-([0-9a-f]{64})\.[a-z]+")


@dataclass(frozen=True)
class Leftover:
    """One thing that a writer left.

    Attributes
    ----------
    location : Location
        A folder for ``staging``, else a file; of an ``upload``, the key it was to become.
    kind : str
        ``staging``: a folder beside a target; ``temporary``: a file that was to replace another;
        ``probe``: a scratch key; ``uncommitted``: a part in a place without a header;
        ``unreferenced``: a part that the header beside it does not name; ``upload``: a multipart
        upload that was not completed.
    bytes : int
        0 where a store does not tell.
    age : float
        Hours since it was last written to.
    upload_id : str
        Of an upload.
    """

    location: Location
    kind: Kind
    bytes: int
    age: float
    upload_id: str = ""

    @property
    def path(self) -> str:
        return self.location.path


def leftovers(location: Location, older_than_hours: float = 24.0) -> list[Leftover]:
    """Return what writers left at and below a place, by path.

    Parameters
    ----------
    location : Location
        A manifest, a series, or a folder of these.
    older_than_hours : float
        What was written to since is left out: it may belong to a writer that still lives. Take more
        than the longest job runs.

    Raises
    ------
    StorageError
        Where the place cannot be listed.
    """
    found = _local(location) if location.is_local else _remote(location)
    return sorted((f for f in found if f.age >= older_than_hours), key=lambda f: f.path)


def remove(leftover: Leftover) -> bool:
    """Remove a leftover; False where it is none any more.

    A part is looked at once more: a header may have come that names it.
    """
    location = leftover.location
    if leftover.kind in ("uncommitted", "unreferenced") and _is_named(location):
        return False
    if leftover.kind == "upload":
        return _abort(leftover)
    if not location.is_local:
        remove_object(location)
        return True
    with storing("Removing what was left", location.path):
        if not os.path.lexists(location.path):
            return False
        if leftover.kind == "staging":
            shutil.rmtree(location.path)
        else:
            os.unlink(location.path)
    return True


def _is_named(part: Location) -> bool:
    """Whether the header beside a part names it."""
    header = _header(part.parent())
    return header is not None and _hash_of(part.name) in header


def _header(folder: Location) -> bytes | None:
    try:
        return folder.join(HEADER).read_bytes()
    except MissingFileError:
        return None


def _hash_of(name: str) -> bytes:
    match = _PART.fullmatch(name)
    return match[1].encode() if match else b""


def _parts(folder: Location, names: Iterable[str]) -> Iterator[tuple[str, Kind]]:
    """Yield (name, kind) of the parts in a folder that are of no manifest."""
    parts = [name for name in names if _PART.fullmatch(name)]
    if not parts:
        return
    header = _header(folder)
    for name in parts:
        if header is None:
            yield name, "uncommitted"
        elif _hash_of(name) not in header:
            yield name, "unreferenced"


# --- a directory ----------------------------------------------------------------------------------


def _local(location: Location) -> Iterator[Leftover]:
    def fail(error: OSError) -> None:
        raise StorageError(f"{location} cannot be listed: {error.strerror}.") from error

    for folder, below, names in os.walk(location.path, onerror=fail):
        place = Location(folder)
        for name in below:
            if _STAGING.fullmatch(name):
                yield _local_leftover(place.join(name), "staging")
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in names:
            if _TEMPORARY.fullmatch(name):
                yield _local_leftover(place.join(name), "temporary")
        for name, kind in _parts(place, names):
            yield _local_leftover(place.join(name), kind)


def _local_leftover(place: Location, kind: Kind) -> Leftover:
    """Measure a file, or a folder with all that is in it; its newest change is what counts."""
    path = Path(place.path)
    size, newest = 0, 0.0
    for inside in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # a live writer's files come and go
            status = inside.lstat()
            size += 0 if inside.is_dir() else status.st_size
            newest = max(newest, status.st_mtime)
    return Leftover(place, kind, size, (time.time() - newest) / 3600)


# --- an object store ------------------------------------------------------------------------------


def _remote(location: Location) -> list[Leftover]:
    begun = list(_uploads(location)) if is_s3(location.path) else []
    try:
        return [*begun, *_objects(location)]
    except MissingFileError:
        if not begun:  # a place of which nothing but uploads is there, or none at all
            raise
        return begun


def _objects(location: Location) -> Iterator[Leftover]:
    folders: dict[str, dict[str, int]] = {}
    for relative, size in location.objects():
        folder, _, name = relative.rpartition("/")
        folders.setdefault(folder, {})[name] = size
    for folder, sizes in folders.items():
        place = location.join(folder)
        kinds: list[tuple[str, Kind]] = [(n, "probe") for n in sizes if n.startswith(SCRATCH)]
        for name, kind in [*kinds, *_parts(place, sizes)]:
            with suppress(MissingFileError):
                found = place.join(name)
                yield Leftover(found, kind, sizes[name], _age(found.modified()))


def _age(when: datetime) -> float:
    return (datetime.now(UTC) - when).total_seconds() / 3600


def _uploads(location: Location) -> Iterator[Leftover]:
    """List the multipart uploads below a place; a store that has none of it has none."""
    fs, path = location.filesystem()
    bucket, key, _ = fs.split_path(path)
    marker: dict[str, Any] = {}
    prefix = location.path.removesuffix(key).rstrip("/")
    while True:
        try:
            page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key, **marker)
        except NotImplementedError:
            return
        except Exception as error:
            raise remote_error(location.path, error, "be listed") from error
        for upload in page.get("Uploads") or ():
            name, begun = upload["Key"], upload["Initiated"]
            if f"{name}/".startswith(f"{key.rstrip('/')}/" if key else ""):
                place = Location(f"{prefix}/{name}", location.options)
                yield Leftover(place, "upload", 0, _age(begun), upload["UploadId"])
        if not page.get("IsTruncated"):
            return
        marker = {
            "KeyMarker": page["NextKeyMarker"],
            "UploadIdMarker": page["NextUploadIdMarker"],
        }


def _abort(leftover: Leftover) -> bool:
    fs, path = leftover.location.filesystem()
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=leftover.upload_id)
    except FileNotFoundError:
        return False
    except Exception as error:
        raise remote_error(leftover.path, error, "be removed") from error
    return True
