"""``manifest.json``: its bytes, its hashes, and which versions of it are read.

The envelope ``{manifest_id, header_sha256, identity, provenance}``, its canonical form and its two
hashes are the same in every version of the format; so a damaged header is told from a newer one.
What the fields mean stands in `manifest`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .canonical import compact_json, pretty_json
from .errors import ManifestCorruptError, ManifestError, ManifestVersionError, nearest

__all__ = ["FORMAT", "HEADER", "SCHEMA_VERSION", "header_bytes", "malformed", "read_header"]

HEADER = "manifest.json"
FORMAT = "batchloom-manifest"
SCHEMA_VERSION = "1.0"
RECIPE = "recipe"
KNOWN_FEATURES = frozenset([RECIPE])

_ENVELOPE = {"manifest_id", "header_sha256", "identity", "provenance"}

_log = logging.getLogger("batchloom")


def header_bytes(identity: Mapping[str, Any], provenance: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``manifest.json``."""
    manifest_id, header_sha256 = _hashes(identity, provenance)
    return pretty_json(
        {
            "manifest_id": manifest_id,
            "header_sha256": header_sha256,
            "identity": identity,
            "provenance": provenance,
        }
    )


def _hashes(identity: Any, provenance: Any) -> tuple[str, str]:
    """Return (SHA-256 of the identity, SHA-256 of {identity, provenance}), encoding each once."""
    what, how = compact_json(identity), compact_json(provenance)
    both = b'{"identity":%b,"provenance":%b}' % (what, how)
    return hashlib.sha256(what).hexdigest(), hashlib.sha256(both).hexdigest()


def read_header(folder: Path) -> dict[str, Any]:
    """Read and check a manifest's header; see `manifest.Manifest.open` for the errors."""
    path = folder / HEADER
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(_what_is(folder)) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}.") from error
    with malformed(path):
        header: dict[str, Any] = json.loads(data)
        if not isinstance(header, dict) or set(header) != _ENVELOPE:
            raise ManifestCorruptError(
                f"{path} is not a batch manifest: expected {', '.join(sorted(_ENVELOPE))}. "
                "Copy the manifest again or plan anew."
            )
        expected = header["manifest_id"], header["header_sha256"]
        found = _hashes(header["identity"], header["provenance"])
        for what, wanted, got in zip(("manifest id", "header hash"), expected, found, strict=True):
            if wanted != got:
                raise _edited(path, f"{what} {wanted}", got)
        if data != pretty_json(header):
            raise _edited(path, f"the canonical form of manifest {found[0]}", "other bytes")
        _check_version(path, header["identity"])
    return header


def _edited(path: Path, expected: str, found: str) -> ManifestCorruptError:
    return ManifestCorruptError(
        f"{path}: expected {expected}, found {found}. The header was edited or damaged; copy the "
        "manifest again or plan anew."
    )


@contextmanager
def malformed(path: Path) -> Iterator[None]:
    """Turn what a header of another shape raises into `ManifestCorruptError`."""
    try:
        yield
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestCorruptError(
            f"{path} is not a manifest's header: {type(error).__name__}: {error}. "
            "Copy the manifest again or plan anew."
        ) from error


def _check_version(path: Path, identity: Mapping[str, Any]) -> None:
    if identity.get("format") != FORMAT:
        raise ManifestCorruptError(
            f"{path}: expected format '{FORMAT}', found {identity.get('format')!r}."
        )
    version = str(identity["schema_version"])
    major, minor = (int(part) for part in version.split("."))
    mine, my_minor = (int(part) for part in SCHEMA_VERSION.split("."))
    if major != mine:
        raise ManifestVersionError(
            f"{path} has format version {version}; this reader knows {mine}.x. Update batchloom."
        )
    unknown = sorted(set(identity["reader_features"]) - KNOWN_FEATURES)
    if unknown:
        raise ManifestVersionError(
            f"{path} needs the reader feature '{unknown[0]}', which this version does not know. "
            "Update batchloom."
        )
    if minor > my_minor:
        _log.warning(
            "%s has format version %s, newer than %s; what it adds is ignored",
            path,
            version,
            SCHEMA_VERSION,
        )


def _what_is(folder: Path) -> str:
    if not folder.exists():
        siblings = [p.name for p in folder.parent.glob("*")] if folder.parent.is_dir() else []
        return f"There is no manifest at {folder}.{nearest(folder.name, siblings)}"
    if any(folder.glob(f"epochs-*/{HEADER}")):
        return f"{folder} is a series of manifests; name a member of it."
    return f"{folder} is not a manifest: it holds no {HEADER}."
