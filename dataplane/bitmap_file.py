"""``bitmap-<sha256>.bin``: the bits of a set of row ids, as little-endian uint64 words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from .bitmap import Bitmap
from .canonical import known_fields
from .commit import sync_path
from .errors import ManifestCorruptError
from .storage import storing

__all__ = ["BitmapFile", "BitmapRecord", "write_bitmap"]


@dataclass(frozen=True)
class BitmapRecord:
    """A bitmap as the header's provenance lists it."""

    name: str
    bytes: int

    @property
    def sha256(self) -> str:
        return self.name.removeprefix("bitmap-").removesuffix(".bin")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BitmapRecord:
        """Read a record; ValueError where its name is none."""
        record = known_fields(cls, value)
        if not re.fullmatch(r"bitmap-[0-9a-f]{64}\.bin", record.name):
            raise ValueError(f"'{record.name}' is no bitmap's name")
        return record


def write_bitmap(folder: Path, bitmap: Bitmap) -> BitmapRecord:
    """Write a bitmap into a folder, flushed to disk and named by its content."""
    words = np.ascontiguousarray(bitmap.words, dtype="<u8")
    record = BitmapRecord(f"bitmap-{hashlib.sha256(words.data).hexdigest()}.bin", words.nbytes)
    path = folder / record.name
    with storing("Writing the rows of the plan", path):
        words.tofile(path)
        sync_path(path)
    return record


class BitmapFile:
    """A bitmap beside a header: its size is checked now, its hash when it is first used.

    May be used from several threads.
    """

    def __init__(self, path: Path, record: BitmapRecord) -> None:
        self.path, self.record = path, record
        self._bitmap: Bitmap | None = None
        self._lock = Lock()
        try:
            size = path.stat().st_size
        except OSError:
            raise ManifestCorruptError(
                f"{path} is missing; the manifest names it. Copy the manifest again or plan anew."
            ) from None
        if size != record.bytes or size % 8:
            raise ManifestCorruptError(
                f"{path}: expected {record.bytes:,} bytes, found {size:,}. The file is truncated "
                "or was replaced; copy the manifest again or plan anew."
            )

    def check(self) -> None:
        """Hash the file's bytes."""
        self._words()

    def open(self) -> Bitmap:
        """Return the set, checked once."""
        with self._lock:
            if self._bitmap is None:
                self._bitmap = Bitmap(self._words())
            return self._bitmap

    def _words(self) -> Any:
        words: Any = np.zeros(0, dtype=np.uint64)
        if self.record.bytes:
            words = np.memmap(self.path, dtype="<u8", mode="r").view(np.ndarray)
        found = hashlib.sha256(words.data).hexdigest()
        if found != self.record.sha256:
            raise ManifestCorruptError(
                f"{self.path}: expected SHA-256 {self.record.sha256}, found {found}. No row of it "
                "was delivered; copy the manifest again or plan anew."
            )
        return words
