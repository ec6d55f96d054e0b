"""Which files a source names: a file, a directory, a glob or a list, local or remote.

A directory that names splits the way Hugging Face does is one source a split (`hub_folders`).

Files are chosen by suffix and come in natural order, each with its path relative to the source's
root: the directory given, a glob's fixed prefix, a file's parent, a list's common folder. Nothing
is opened here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .canonical import has_utf8
from .errors import DatasetError, MissingFileError
from .fragments import FOOTER_THREADS, SUFFIXES
from .hub_folders import is_cache, splits_of
from .storage import Location, is_hidden, locate, natural_key

__all__ = ["Listed", "list_sources"]

_UNNAMED = "data"  # the source of a dataset that is no mapping
_Files = list[tuple[str, Location, int | None]]  # relative path, place, bytes where known


@dataclass(frozen=True)
class Listed:
    """A file of a source before its footer is read."""

    source: str
    path: str  # relative to the source's root
    location: Location
    bytes: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.source, self.path, self.bytes

    @property
    def label(self) -> str:
        return f"{self.source}:{self.path}"


def list_sources(
    data: Any, options: Mapping[str, Any] | None, *, by_split: bool = True
) -> list[Listed]:
    """List a dataset's files.

    A dataset that is no mapping is one source called ``data``; with `by_split`, a directory that
    names splits is one source a split.
    """
    sources = data if isinstance(data, Mapping) else {_UNNAMED: data}
    if not sources:
        raise DatasetError("A dataset needs at least one source.")
    listed: list[Listed] = []
    for name, where in sources.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name)):
            raise DatasetError(
                f"Source name '{name}' must be made of letters, digits, '_', '-' and '.'."
            )
        listed += _list_source(str(name), where, options, by_split and sources is not data)
    return listed


def _list_source(
    name: str, where: Any, options: Mapping[str, Any] | None, by_split: bool
) -> list[Listed]:
    if isinstance(where, str | os.PathLike):
        location = locate(where, options)
        files, what = _list_place(location), str(location)
        # A file or a pattern that was named is no folder that could name splits.
        by_split = by_split and all(f[1].path == location.join(f[0]).path for f in files)
    else:
        by_split = False
        locations = [locate(w, options) for w in where]
        files, what = _list_files(locations), f"the list of {len(locations)} files"
    chosen = [f for f in files if f[0].lower().endswith(SUFFIXES)]
    others = {f[0] for f in files} - {f[0] for f in chosen}
    chosen = [f for f in chosen if not is_cache(f[0], others)]
    splits = splits_of([f[0] for f in chosen], others) if by_split else {}
    if not chosen:
        found = f"{len(files)} other files" if files else "nothing"
        raise DatasetError(
            f"There is no Parquet or Arrow file in {what} (found {found}). "
            f"Data files end with {', '.join(SUFFIXES)}."
        )
    for relative, place, _ in chosen:
        if not has_utf8(relative):
            raise DatasetError(f"{str(place)!r}: the file's name is not UTF-8; rename it.")
    chosen.sort(key=lambda f: natural_key(f[0]))
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        sizes = pool.map(lambda f: f[1].size() if f[2] is None else f[2], chosen)
        return [
            Listed(splits.get(f[0], name), f[0], f[1], size)
            for f, size in zip(chosen, sizes, strict=True)
        ]


def _list_place(location: Location) -> _Files:
    if re.search(r"[*?\[]", location.path) and not location.exists():
        return _list_glob(location)
    if location.is_local:
        if location.is_dir():
            return [(rel, location.join(rel), size) for rel, size in location.files()]
        return [(location.name, location, location.size())]  # or says why it cannot be reached
    return _list_remote(location)


def _list_remote(location: Location) -> _Files:
    """Ask for a file first where it is named like one: on the web a listing would download it."""
    named_like_data = location.name.lower().endswith(SUFFIXES)
    if named_like_data:
        with contextlib.suppress(MissingFileError):
            return [(location.name, location, location.size())]
    with contextlib.suppress(MissingFileError):
        found: _Files = [(rel, location.join(rel), size) for rel, size in location.files()]
        if found or location.is_dir():
            return found
    return [(location.name, location, location.size())]


def _list_glob(pattern: Location) -> _Files:
    """Paths are relative to the pattern's fixed prefix; hidden files must be asked for."""
    fixed = re.split(r"[*?\[]", pattern.path, maxsplit=1)[0]
    root = fixed[: fixed.rfind("/") + 1]
    hidden_too = is_hidden(pattern.path[len(root) :])
    found = [(place.path.removeprefix(root), place, size) for place, size in pattern.glob()]
    return [f for f in found if hidden_too or not is_hidden(f[0])]


def _list_files(places: list[Location]) -> _Files:
    """Paths are relative to the files' common folder."""
    if len({place.path for place in places}) < len(places):
        raise DatasetError("A list of files names the same file twice.")
    for place in places:
        if place.is_local and place.is_dir():
            raise DatasetError(
                f"{place} is a directory; a list names files. Open the directory by itself, or "
                "give it a source name of its own."
            )
    root = _common_folder([place.path for place in places])
    return [(place.path.removeprefix(root), place, None) for place in places]


def _common_folder(paths: list[str]) -> str:
    """Return the longest folder that all paths or URIs start with, its slash included."""
    folders = [path.rpartition("/")[0].split("/") for path in paths]
    levels = zip(*folders, strict=False)  # as deep as the shortest
    common = list(itertools.takewhile(lambda names: len(set(names)) == 1, levels))
    if paths and not common:
        raise DatasetError(
            "The files of a list must be in one place, local or remote; give each place a source "
            "name of its own."
        )
    return "".join(f"{names[0]}/" for names in common)
