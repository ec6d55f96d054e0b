"""What killed jobs leave behind on an object store.

Parts that no header names, scratch keys of the probe, and multipart uploads that were begun and
never completed. A store knows no locks, so age alone decides: take more than the longest job runs.
The parts of a plan that was not committed are of use until then: the same command sends only what
is not there yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from .errors import MissingFileError
from .leftovers import Leftover
from .manifest_header import HEADER
from .objects import SCRATCH, remove
from .remote_files import is_s3, remote_error
from .storage import Location, locate

__all__ = ["remove_from_store", "store_leftovers"]

_PART = re.compile(r"(?:part|bitmap)-([0-9a-f]{64})\.[a-z]+")


def store_leftovers(location: Location, older_than_hours: float = 24) -> list[Leftover]:
    """List what is left at a place and below it, by path.

    Parameters
    ----------
    location : Location
        A manifest, a series, or a folder of these.
    older_than_hours : float
        What was written to since is left out: its job may still run.

    Returns
    -------
    list of Leftover
        Of the kinds ``probe``: a scratch key; ``uncommitted``: a part in a place without a header;
        ``unreferenced``: a part that the header beside it does not name; ``upload``: a multipart
        upload, of which a store does not tell the bytes.

    Raises
    ------
    MissingFileError, StorageError
        Where there is nothing at all, or it cannot be listed.
    """
    begun = list(_uploads(location)) if is_s3(location.path) else []
    try:
        found = [*begun, *_objects(location)]
    except MissingFileError:
        if not begun:
            raise
        found = begun
    return sorted((f for f in found if f.age_hours >= older_than_hours), key=lambda f: f.path)


def remove_from_store(leftover: Leftover, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Remove a leftover; False where it is none any more.

    A part is looked at once more: a header may have come that names it.
    """
    location = locate(leftover.path, storage_options)
    if leftover.kind == "upload":
        return _abort(location, leftover.upload_id)
    if leftover.kind in ("uncommitted", "unreferenced"):
        header = _header(location.parent())
        if header is not None and _hash_of(location.name) in header:
            return False
    remove(location)
    return True


def _header(folder: Location) -> bytes | None:
    try:
        return folder.join(HEADER).read_bytes()
    except MissingFileError:
        return None


def _hash_of(name: str) -> bytes:
    match = _PART.fullmatch(name)
    return match[1].encode() if match else b""


def _objects(location: Location) -> Iterator[Leftover]:
    folders: dict[str, dict[str, int]] = {}
    for relative, size in location.objects():
        folder, _, name = relative.rpartition("/")
        folders.setdefault(folder, {})[name] = size
    for folder, sizes in folders.items():
        place = location.join(folder)
        kinds = [(name, "probe") for name in sizes if name.startswith(SCRATCH)]
        for name, kind in [*kinds, *_parts(place, sizes)]:
            with suppress(MissingFileError):  # its job lives and has removed it
                age = _age(place.join(name).modified())
                yield Leftover(place.join(name).path, kind, sizes[name], age)


def _parts(folder: Location, names: Iterable[str]) -> Iterator[tuple[str, str]]:
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


def _age(when: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - when).total_seconds() / 3600)


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
                yield Leftover(f"{prefix}/{name}", "upload", 0, _age(begun), upload["UploadId"])
        if not page.get("IsTruncated"):
            return
        marker = {
            "KeyMarker": page["NextKeyMarker"],
            "UploadIdMarker": page["NextUploadIdMarker"],
        }


def _abort(location: Location, upload_id: str) -> bool:
    fs, path = location.filesystem()
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)
    except FileNotFoundError:
        return False
    except Exception as error:
        raise remote_error(location.path, error, "be removed") from error
    return True
