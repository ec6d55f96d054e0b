"""What killed jobs leave behind on a local disk: found by name, age and lock, and removed.

Nothing else is ever looked at: a name must be one that this package gives, links are not followed,
and what a living process holds is left alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .commit import DESTINATION, hold
from .errors import ManifestError, StorageError
from .manifest_header import HEADER, read_header
from .storage import locate, storing

__all__ = ["Leftover", "leftovers", "leftovers_here", "remove"]

_FOLDERS = (
    ("staging", re.compile(r"\..+\.staging-[0-9a-f]{12}")),
    ("work", re.compile(r"\..+\.work-[0-9a-f]+")),
)
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_PARTS = re.compile(r"(part|bitmap|deep)-[0-9a-f]{64}\.(arrow|bin|json)")

_log = logging.getLogger("batchloom")


@dataclass(frozen=True)
class Leftover:
    """Something that a job left.

    Attributes
    ----------
    path : str
    kind : {'staging', 'work', 'temporary', 'unreferenced'}
        A folder of a job that was killed; intermediate results of one; a file that did not get its
        name; a file beside a manifest that does not name it.
    bytes : int
    age_hours : float
        Since it was last written to.
    upload_id : str
        On a store, of an upload that was not completed; see `store_leftovers`.
    """

    path: str
    kind: str
    bytes: int
    age_hours: float
    upload_id: str = ""


def leftovers(root: str | os.PathLike[str], older_than_hours: float = 24) -> list[Leftover]:
    """List what is left in a folder and below.

    Parameters
    ----------
    root : path
        Hidden folders below it are not entered, links not followed.
    older_than_hours : float
        What was written to since is left out: its job may still run.

    Raises
    ------
    StorageError
        Where there is no such folder.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise StorageError(f"There is no folder at {folder}.")
    with storing("Looking for what was left", folder):
        return _left(_candidates(folder), older_than_hours)


def leftovers_here(uri: str, older_than_hours: float = 24) -> list[Leftover]:
    """List what jobs with a target on a store left in this machine's folder for temporary files.

    Parameters
    ----------
    uri : str
        Their target, or a folder above it.
    older_than_hours : float
        See `leftovers`.
    """
    folder = Path(tempfile.gettempdir())
    with storing("Looking for what was left", folder):
        inside = [(_kind_of(path.name), path) for path in folder.iterdir()]
        ours = [(kind, path) for kind, path in inside if kind and not path.is_symlink()]
        wanted = ((kind, path) for kind, path in ours if _is_for(path, uri))
        return _left(wanted, older_than_hours)


def _left(candidates: Iterable[tuple[str, Path]], older_than_hours: float) -> list[Leftover]:
    """Return those that are old enough and that nobody holds, by path."""
    found: list[Leftover] = []
    for kind, path in candidates:
        with contextlib.suppress(FileNotFoundError):  # its job lives and has removed it
            written, size = _measure(path)
            age = max(0.0, (time.time() - written) / 3600)
            if age >= older_than_hours and not _is_held(path):
                found.append(Leftover(str(path), kind, size, age))
    return sorted(found, key=lambda item: item.path)


def _kind_of(name: str) -> str:
    """Return what a folder of this name is; empty of one that is none of ours."""
    return next((kind for kind, shape in _FOLDERS if shape.fullmatch(name)), "")


def _is_for(folder: Path, uri: str) -> bool:
    """Whether a folder says that its target is this one, or below it."""
    try:
        noted = (folder / DESTINATION).read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return f"{_spelt(noted)}/".startswith(f"{_spelt(uri)}/")


def _spelt(uri: str) -> str:
    scheme, _, path = uri.rstrip("/").partition("://")
    return f"{'s3' if scheme == 's3a' else scheme}://{path}"


def remove(leftover: Leftover) -> bool:
    """Remove a leftover; False where a process has taken it since, or it is gone."""
    path = Path(leftover.path)
    with storing("Removing what was left", path), ExitStack() as held:
        if path.is_symlink() or not path.exists():
            return False
        if not all(held.enter_context(hold(lock)) for lock in _locks(path)):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return True


def _candidates(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, below, names in os.walk(root):
        here, enter = Path(folder), []
        for name in below:
            path = here / name
            kind = _kind_of(name)
            if kind and not path.is_symlink():
                yield kind, path
            elif not name.startswith("."):
                enter.append(name)
        below[:] = enter
        files = [name for name in names if not (here / name).is_symlink()]
        for name in files:
            if _TEMPORARY.fullmatch(name):
                yield "temporary", here / name
        if HEADER in files:
            for name in _unreferenced(here, files):
                yield "unreferenced", here / name


def _unreferenced(folder: Path, names: list[str]) -> Iterator[str]:
    """Yield the files of a manifest's folder that are named like its own and that it does not name.

    Content hashes are the manifest's where they are of one of its fragments.
    """
    candidates = [name for name in names if _PARTS.fullmatch(name)]
    try:
        header = read_header(locate(folder)) if candidates else {}
    except ManifestError as error:
        _log.warning("%s Nothing beside it is looked at.", error)
        return
    for name in candidates:
        provenance, snapshot = header["provenance"], header["identity"]["snapshot"]
        named = {p["name"] for p in (*provenance["parts"], *provenance.get("bitmaps", ()))}
        labels = {f"{f['source']}:{f['path']}" for f in snapshot["fragments"]}
        if name.startswith("deep-"):
            hashed = _labels(folder / name)
            if hashed is not None and labels.isdisjoint(hashed):
                yield name
        elif name not in named:
            yield name


def _labels(path: Path) -> set[str] | None:
    """Return the fragments of which a file holds content hashes; None where it is damaged."""
    try:
        return set(json.loads(path.read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure(path: Path) -> tuple[float, int]:
    """Return (when anything in it was last written, bytes)."""
    status = path.lstat()
    if not path.is_dir():
        return status.st_mtime, status.st_size
    newest, size = status.st_mtime, 0
    for folder, below, names in os.walk(path):
        for name in (*below, *names):
            inner = os.lstat(os.path.join(folder, name))
            newest = max(newest, inner.st_mtime)
            size += inner.st_size if name in names else 0
    return newest, size


def _locks(path: Path) -> list[Path]:
    """Return what a living job locks of a leftover: itself, or a file of that name in a folder."""
    inner = [path / "lock"] if path.is_dir() else []
    return [path, *(lock for lock in inner if lock.is_file())]


def _is_held(path: Path) -> bool:
    with ExitStack() as stack:
        return not all(stack.enter_context(hold(lock)) for lock in _locks(path))
