"""The work folder of a job: what it keeps between its stages, and what a killed run had finished.

The folder stands beside the target, as ``.<name>.work-<digest>``. The digest is the job's: of the
dataset, the resolved stages, the seed and the sizes, never of workers or memory; so the same job
finds the same folder. A run holds a lock on it; a second run of the same job at the same time works
in a private folder. However a run ends, it removes its folder, unless it is killed.

``journal`` in it has one line for each finished piece of work: a digest of the rest of the line,
and as JSON a key, the files that were made, with their bytes and checksums, and what else is to be
known. A run that finds a journal takes over those pieces whose files hold what was recorded, and
removes all else. Nothing is flushed to disk for it: what a crash of the machine took away, torn
lines included, is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ..dataplane.canonical import compact_json, digest
from ..dataplane.commit import hold, note_destination
from ..dataplane.storage import storing

__all__ = ["Entry", "WorkFolder", "remove_staging", "work_folder"]

_JOURNAL = "journal"
_DIGITS = 12


@dataclass(frozen=True)
class Entry:
    """A finished piece of work.

    Attributes
    ----------
    key : str
    files : mapping of str to (bytes, checksum)
        By their paths in the work folder; an XXH3-128, or the SHA-256 of what becomes the plan's.
    value : Any
        JSON.
    """

    key: str
    files: Mapping[str, Sequence[Any]]
    value: Any

    def line(self) -> bytes:
        body = compact_json(vars(self))
        return hashlib.sha256(body).hexdigest().encode() + b" " + body + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Entry | None:
        """Read a line; None where it is torn or damaged."""
        found, _, body = line.rstrip(b"\n").partition(b" ")
        if found != hashlib.sha256(body).hexdigest().encode():
            return None
        return cls(**json.loads(body))


class WorkFolder:
    """A job's folder and its journal.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    folder : Path
        Where files belong now: the folder itself, or a folder in it for one epoch's.
    taken : tuple of Entry
        What an earlier run had finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.folder = path
        self._entries = {e.key: e for e in self._read()}
        self.taken = tuple(self._entries.values())
        with storing("Preparing the work folder", path):
            self._keep_only({f for e in self.taken for f in e.files} | {_JOURNAL})
            again = path / f"{_JOURNAL}.new"  # whole lines only, for the next ones to follow
            again.write_bytes(b"".join(e.line() for e in self.taken))
            again.replace(path / _JOURNAL)
            self._journal = open(path / _JOURNAL, "ab", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        self._journal.close()

    def find(self, key: str) -> Entry | None:
        """Return a finished piece of work."""
        return self._entries.get(key)

    def record(self, key: str, files: Mapping[str, Sequence[Any]], value: Any) -> None:
        """Record a finished piece of work."""
        entry = Entry(key, files, value)
        self._entries[key] = entry
        with storing("Writing the journal", self.path):
            self._journal.write(entry.line())

    def new_file(self, name: str = "column") -> Path:
        """Return the path of a file that is to be made."""
        return self.folder / f"{name}-{uuid.uuid4().hex[:_DIGITS]}"

    def relative(self, path: Path) -> str:
        return str(path.relative_to(self.path))

    @contextmanager
    def epoch(self, number: int) -> Iterator[None]:
        """Keep files apart that only this epoch needs; they go when the block ends."""
        self.folder = self.path / f"epoch-{number:06d}"
        with storing("Preparing the work folder", self.folder):
            self.folder.mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            inside = f"{self.folder.name}/"
            for key, entry in list(self._entries.items()):
                if any(f.startswith(inside) for f in entry.files):
                    del self._entries[key]
            self.folder = self.path

    # --- an earlier run ---------------------------------------------------------------------------

    def _read(self) -> Iterator[Entry]:
        """Yield the entries whose files hold what was recorded."""
        try:
            lines = (self.path / _JOURNAL).read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            entry = Entry.parse(line)
            if entry is not None and all(self._holds(f, *e) for f, e in entry.files.items()):
                yield entry

    def _holds(self, name: str, size: int, checksum: str) -> bool:
        kind = hashlib.sha256 if len(checksum) == 64 else xxhash.xxh3_128
        try:
            with open(self.path / name, "rb") as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
                return hashlib.file_digest(file, kind).hexdigest() == checksum
        except OSError:
            return False

    def _keep_only(self, names: set[str]) -> None:
        for folder, _, files in os.walk(self.path):
            for name in files:
                path = Path(folder, name)
                if self.relative(path) not in names:
                    path.unlink()


@contextmanager
def work_folder(target: Path, job: Any, destination: str = "") -> Iterator[WorkFolder]:
    """Open the work folder of a job beside its target; gone when the block ends.

    Parameters
    ----------
    target : Path
    job : Any
        What the job is, as JSON.
    destination : str
        URI of a target that is not on this machine; `target` then stands for it here.
    """
    place = target.parent / f".{target.name}.work-{digest(job)[:_DIGITS]}"
    with storing("Preparing the target", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(exist_ok=True)
    with ExitStack() as held:
        if not (held.enter_context(hold(place)) and _is_locked(place)):
            place = place.with_name(f".{target.name}.work-{uuid.uuid4().hex[:_DIGITS]}")
            place.mkdir()
            held.enter_context(hold(place))
        try:
            work = WorkFolder(place)
            with storing("Preparing the work folder", place):
                note_destination(place, destination)
            try:
                yield work
            finally:
                work.close()
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _is_locked(folder: Path) -> bool:
    """Whether a lock keeps others out; not every file system knows them."""
    with hold(folder) as again:
        return not again


def remove_staging(target: Path, name: str) -> None:
    """Remove the staging directory of a run that was killed."""
    path = target.parent / name
    if name.startswith(f".{target.name}.staging-") and path.is_dir():
        with hold(path) as mine:
            if mine:
                shutil.rmtree(path, ignore_errors=True)
