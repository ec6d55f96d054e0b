"""``manifest.json``: its bytes, its hashes, and which versions of it are read.

The envelope ``{manifest_id, header_sha256, identity, provenance}``, its canonical form and its two
hashes are the same in every version of the format; so a damaged header is told from a newer one.
What the fields mean stands in `manifest`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from .canonical import envelope, envelope_hashes, pretty_json
from .errors import (
    BatchloomError,
    ManifestCorruptError,
    ManifestError,
    ManifestVersionError,
    MissingFileError,
    StorageError,
    nearest,
)
from .storage import Location

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
    return envelope("manifest_id", identity, provenance)


def read_header(folder: Location) -> dict[str, Any]:
    """Read and check a manifest's header; see `manifest.Manifest.open` for the errors."""
    path = folder.join(HEADER)
    try:
        data = path.read_bytes()
    except MissingFileError as error:
        raise ManifestError(_what_is(folder, error)) from None
    except StorageError as error:
        if not folder.is_local:
            raise
        raise ManifestError(str(error)) from error
    with malformed(folder):
        header: dict[str, Any] = json.loads(data)
        if not isinstance(header, dict) or set(header) != _ENVELOPE:
            raise ManifestCorruptError(
                f"{path} is not a batch manifest: expected {', '.join(sorted(_ENVELOPE))}. "
                "Copy the manifest again or plan anew."
            )
        expected = header["manifest_id"], header["header_sha256"]
        found = envelope_hashes(header["identity"], header["provenance"])
        for what, wanted, got in zip(("manifest id", "header hash"), expected, found, strict=True):
            if wanted != got:
                raise _edited(path, f"{what} {wanted}", got)
        if data != pretty_json(header):
            raise _edited(path, f"the canonical form of manifest {found[0]}", "other bytes")
        _check_version(path, header["identity"])
    return header


def _edited(path: Location, expected: str, found: str) -> ManifestCorruptError:
    return ManifestCorruptError(
        f"{path}: expected {expected}, found {found}. The header was edited or damaged; copy the "
        "manifest again or plan anew."
    )


@contextmanager
def malformed(folder: Location) -> Iterator[None]:
    """Turn what a header of another shape raises into `ManifestCorruptError`."""
    try:
        yield
    except BatchloomError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestCorruptError(
            f"{folder.join(HEADER)} is not a manifest's header: {type(error).__name__}: {error}. "
            "Copy the manifest again or plan anew."
        ) from error


def _check_version(path: Location, identity: Mapping[str, Any]) -> None:
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


def _what_is(folder: Location, error: MissingFileError) -> str:
    """Say what is in the place of a manifest that is not there."""
    if "bucket" in str(error):
        return f"There is no manifest at {folder}: there is no such bucket."
    names = [name for name, _ in folder.entries()]
    if any(folder.join(name).join(HEADER).exists() for name in names if name[:7] == "epochs-"):
        return f"{folder} is a series of manifests; name a member of it."
    if names or (folder.is_local and folder.exists()):
        return f"{folder} is not a manifest: it holds no {HEADER}."
    siblings: list[str] = []
    with suppress(BatchloomError):  # a store may not let us look around
        siblings = [name for name, _ in folder.parent().entries()]
    return f"There is no manifest at {folder}.{nearest(folder.name, siblings)}"
