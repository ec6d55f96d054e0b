"""Deep hashes: the SHA-256 of every file of a dataset, made on request.

Stored as ``deep-<sha256>.json`` beside what holds the snapshot, ``{format, sha256: {label: hash}}``
in canonical JSON, named by the digest of its table. They find changed bytes under an unchanged
footer, which the quick fingerprint cannot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .canonical import digest, pretty_json
from .commit import replace_file
from .errors import DatasetError
from .storage import storing

__all__ = ["find_deep_hashes", "write_deep_hashes"]

_FORMAT = "batchloom-deep/1"


def write_deep_hashes(folder: str | Path, hashes: Mapping[str, str]) -> Path:
    """Write content hashes by fragment label as ``deep-<sha256>.json``; return its path."""
    body = pretty_json({"format": _FORMAT, "sha256": dict(hashes)})
    target = Path(folder) / f"deep-{digest(dict(hashes))}.json"
    with storing("Writing the content hashes", target):
        replace_file(target, body)
    return target


def find_deep_hashes(folder: str | Path) -> dict[str, str] | None:
    """Return the content hashes stored in a folder, by fragment label; None if there are none."""
    found: dict[str, str] = {}
    for path in sorted(Path(folder).glob("deep-*.json")):
        try:
            body = json.loads(path.read_bytes())
            hashes = body["sha256"]
            whole = body["format"] == _FORMAT and path.name == f"deep-{digest(hashes)}.json"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise DatasetError(
                f"The content hashes in {path} are damaged; make them again with --deep."
            )
        found.update(hashes)
    return found or None
