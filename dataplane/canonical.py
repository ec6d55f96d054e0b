"""Canonical JSON and digests: equal values, equal bytes, on any machine.

Files are sorted by key, UTF-8, indented by two spaces, floats in shortest form that reads back the
same, one newline at the end. Hashes are over the compact form of the same. What has no canonical
form (NaN, sets, objects) is an error, never a guess.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["compact_json", "digest", "file_sha256", "pretty_json"]


def compact_json(value: Any) -> bytes:
    """Return the form that hashes are over."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode()


def pretty_json(value: Any) -> bytes:
    """Return the form that files hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=2)
    return text.encode() + b"\n"


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value's compact form, in hex."""
    return hashlib.sha256(compact_json(value)).hexdigest()


def file_sha256(file: Any) -> str:
    """Return the SHA-256 of what is left to read of a binary file, in hex."""
    return hashlib.file_digest(file, "sha256").hexdigest()
