"""Canonical JSON and digests: equal values, equal bytes, on any machine.

Files are sorted by key, UTF-8, indented by two spaces, floats in shortest form that reads back the
same, one newline at the end. Hashes are over the compact form of the same. What has no canonical
form (NaN, sets, objects, keys that are no strings) is an error, never a guess: `plain_json` finds
it before anything is written.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from .errors import ParameterError

__all__ = [
    "compact_json",
    "digest",
    "envelope",
    "envelope_hashes",
    "file_sha256",
    "has_utf8",
    "known_fields",
    "plain_json",
    "pretty_json",
]


T = TypeVar("T")


def compact_json(value: Any) -> bytes:
    """Return the form that hashes are over."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode()


def pretty_json(value: Any) -> bytes:
    """Return the form that files hold."""
    return _indented(value, 0).encode() + b"\n"


def _indented(value: Any, depth: int) -> str:
    """Return what ``json.dumps(indent=2)`` does, which would leave the compiled encoder.

    A header lists thousands of flat records, and is compared whenever a manifest is opened. Line
    breaks go into the encoder's separator; a string holds none, so they can be replaced after.
    """
    if not _is_filled(value):
        return _encoder(depth).encode(value)
    outer, inner, innermost = ("\n" + "  " * (depth + more) for more in range(3))
    inside = value.values() if isinstance(value, dict) else value
    if not any(map(_is_filled, inside)):
        text = _encoder(depth).encode(value)
        return f"{text[0]}{inner}{text[1:-1]}{outer}{text[-1]}"
    if isinstance(value, dict):
        name = _encoder(depth).encode
        items = [f"{name(k)}: {_indented(v, depth + 1)}" for k, v in sorted(value.items())]
        return f"{{{inner}{f',{inner}'.join(items)}{outer}}}"
    if all(isinstance(v, dict) and v and not any(map(_is_filled, v.values())) for v in value):
        text = _encoder(depth + 1).encode(value)[2:-2]
        records = text.replace(f"}},{innermost}{{", f"{inner}}},{inner}{{{innermost}")
        return f"[{inner}{{{innermost}{records}{inner}}}{outer}]"
    return f"[{inner}{f',{inner}'.join(_indented(v, depth + 1) for v in value)}{outer}]"


def _is_filled(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) and len(value) > 0


@functools.lru_cache
def _encoder(depth: int) -> json.JSONEncoder:
    return json.JSONEncoder(
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",\n" + "  " * (depth + 1), ": "),
    )


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value's compact form, in hex."""
    return hashlib.sha256(compact_json(value)).hexdigest()


def envelope(id_name: str, identity: Any, provenance: Any) -> bytes:
    """Return the bytes of a header file: ``{<id_name>, header_sha256, identity, provenance}``."""
    own_id, header_sha256 = envelope_hashes(identity, provenance)
    return pretty_json(
        {
            id_name: own_id,
            "header_sha256": header_sha256,
            "identity": identity,
            "provenance": provenance,
        }
    )


def envelope_hashes(identity: Any, provenance: Any) -> tuple[str, str]:
    """Return (SHA-256 of the identity, SHA-256 of {identity, provenance}), encoding each once."""
    what, how = compact_json(identity), compact_json(provenance)
    both = b'{"identity":%b,"provenance":%b}' % (what, how)
    return hashlib.sha256(what).hexdigest(), hashlib.sha256(both).hexdigest()


def file_sha256(file: Any) -> str:
    """Return the SHA-256 of what is left to read of a binary file, in hex."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def plain_json(value: Any, where: str, *, non_finite: bool = False) -> Any:
    """Return a copy of `value` made of what JSON reads back as it was written.

    Tuples become lists, numpy scalars Python numbers; all else is as it is, or refused.

    Parameters
    ----------
    value : Any
    where : str
        What the value is called in messages.
    non_finite : bool
        Write NaN and infinities as strings instead of refusing them.

    Raises
    ------
    ParameterError
        Naming the place of what has no canonical form.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value) and non_finite:
        return repr(float(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ParameterError(f"{where}: the key {key!r} is no string; write it as one.")
        return {
            str(k): plain_json(v, f"{where}.{k}", non_finite=non_finite) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain_json(v, f"{where}[{i}]", non_finite=non_finite) for i, v in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str) and has_utf8(value):
        return str.__str__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ParameterError(
        f"{where}: {value!r} ({type(value).__name__}) has no canonical form in JSON; "
        "use strings, finite numbers, booleans, lists and mappings."
    )


def known_fields(cls: type[T], value: Mapping[str, Any]) -> T:
    """Read a dataclass from JSON; fields that a newer version added are left out."""
    return cls(**{name: value[name] for name in _field_names(cls)})  # type: ignore[arg-type]


@functools.lru_cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def has_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; a file name of other bytes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
