"""Deep hashes: the SHA-256 of every file of a dataset, made on request.

Stored as ``deep-<sha256>.json`` beside what holds the snapshot, ``{format, sha256: {label: hash}}``
in canonical JSON, named by the digest of its table. They find changed bytes under an unchanged
footer, which the quick fingerprint cannot.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .canonical import digest, pretty_json
from .commit import write_file
from .errors import DatasetError, MissingFileError
from .fragments import reading
from .storage import Location, locate

__all__ = ["content_sha256", "find_deep_hashes", "write_deep_hashes"]

_FORMAT = "batchloom-deep/1"
_HASHED_BYTES = 32 << 20  # of a remote file, read at a time: several requests at once


def content_sha256(location: Location) -> str:
    """Return the SHA-256 of all bytes of a fragment."""
    if location.is_local:  # by plain reads: all pages of a map would stay
        with reading(location), open(location.path, "rb") as local:
            return hashlib.file_digest(local, "sha256").hexdigest()
    hasher = hashlib.sha256()
    with reading(location), location.open() as file:
        while len(data := file.read_buffer(_HASHED_BYTES)):
            hasher.update(data)
    return hasher.hexdigest()


def write_deep_hashes(
    folder: str | os.PathLike[str] | Location,
    hashes: Mapping[str, str],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Path | str:
    """Write content hashes by fragment label as ``deep-<sha256>.json``; return its path."""
    body = pretty_json({"format": _FORMAT, "sha256": dict(hashes)})
    target = locate(folder, storage_options).join(f"deep-{digest(dict(hashes))}.json")
    write_file(target, body, "Writing the content hashes")
    return target.as_named(target.path)


def find_deep_hashes(
    folder: str | os.PathLike[str] | Location,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, str] | None:
    """Return the content hashes stored in a folder, by fragment label; None if there are none."""
    found: dict[str, str] = {}
    place = locate(folder, storage_options)
    for name in sorted(name for name, _ in place.entries()):
        if not (name.startswith("deep-") and name.endswith(".json")):
            continue
        try:
            body = json.loads(place.join(name).read_bytes())
            hashes = body["sha256"]
            whole = body["format"] == _FORMAT and name == f"deep-{digest(hashes)}.json"
        except (MissingFileError, ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise DatasetError(
                f"The content hashes in {place.join(name)} are damaged; make them again with "
                "--deep."
            )
        found.update(hashes)
    return found or None
