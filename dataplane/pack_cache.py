"""Packing on first use: a folder of packed tables, limited in bytes, least recently used out first.

A table's id is known before it is packed, so a table is looked for under ``<folder>/<table id>``.
What is missing is packed by one process; others that want the same wait for it. Files of fragments
and columns that other tables of the folder hold are linked, not packed again.

``<table id>/``
    A packed table. Its header's time of access is when it was last opened.
``.<table id>.lock``
    Held by the process that packs it.
``.<table id>.staging-…``
    What is being packed; of a process that died, the next one removes it (`leftovers`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .commit import hold
from .dataset import Dataset
from .errors import NoRoomError, PackedError, ParameterError, StorageError
from .packed import PackedTable
from .packed_header import HEADER, TableParts, table_id_of
from .packed_layout import layout_of
from .packing import Runner, pack_dataset, packed_parts
from .storage import storing

__all__ = ["CACHE_BYTES", "default_cache_dir", "packed_for"]

CACHE_BYTES = 64 << 30
"""Bytes that the packed tables of a cache folder may take, unless said otherwise."""


def default_cache_dir() -> Path:
    """Return ``BATCHLOOM_CACHE``, else ``batchloom/packed`` in the user's cache folder."""
    named = os.environ.get("BATCHLOOM_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "batchloom" / "packed"


def packed_for(
    dataset: Dataset,
    columns: Sequence[str] | None = None,
    *,
    fragments: Iterable[int] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int = CACHE_BYTES,
    run: Runner | None = None,
    done: Callable[[int], None] = lambda _: None,
) -> PackedTable:
    """Return a packed table of some columns; packed now, unless the cache has it.

    Parameters
    ----------
    dataset : Dataset
    columns : sequence of str, optional
        All when None.
    fragments : iterable of int, optional
        Indices into the snapshot's fragments; all that are there when None.
    cache_dir : path, optional
        See `default_cache_dir`.
    cache_bytes : int
        What the tables of the folder may take together. Older ones make room.
    run : Runner, optional
        What packs the fragments; threads of this process when None.
    done : callable
        Told how many rows were packed since it was last called.

    Raises
    ------
    NoRoomError
        Where the table alone is larger than the cache, or does not fit the disk.
    StorageError
    DatasetError
    """
    if cache_bytes < 0:
        raise ParameterError(
            f"The 'cache_bytes' parameter must be an int in the range [0, inf). Got {cache_bytes} "
            "instead."
        )
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    parts = packed_parts(dataset, columns, fragments)
    place = folder / table_id_of(parts)
    with storing("Making the cache of packed tables", folder):
        folder.mkdir(parents=True, exist_ok=True)
    found = _opened(place)
    if found is not None:
        return found
    with _alone(folder / f".{place.name}.lock"):
        found = _opened(place)  # another process may have packed it meanwhile
        if found is not None:
            return found
        needed = _least_bytes(parts)
        _refuse_larger(needed, cache_bytes, folder)
        _remove_litter(folder)
        others = _tables(folder)
        _make_room(folder, cache_bytes - needed)
        table = pack_dataset(
            dataset,
            place,
            parts.schema.names,
            fragments=parts.fragments,
            run=run,
            reuse=[t for t in others if t.location.join(HEADER).exists()],
            done=done,
        )
        if table.bytes > cache_bytes:
            shutil.rmtree(place)
            _refuse_larger(table.bytes, cache_bytes, folder)
        _make_room(folder, cache_bytes, keep=place)
    return table


def _opened(place: Path) -> PackedTable | None:
    """Open a table of the cache and note that it was used; None where it is not there."""
    if not (place / HEADER).exists():
        return None
    try:
        table = PackedTable.open(place)
    except PackedError:  # damaged: packed again
        with storing("Removing a damaged packed table", place):
            shutil.rmtree(place, ignore_errors=True)
        return None
    with suppress(OSError):
        os.utime(place / HEADER)
    return table


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait for a lock file; it goes with the process, and is removed by its last holder."""
    while True:
        with storing("Locking the cache of packed tables", lock):
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: packed twice, committed once
                fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(handle), lock.stat())
            except FileNotFoundError:
                same = False
            if not same:
                continue  # its last holder removed it before we had it
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
        finally:
            os.close(handle)


def _least_bytes(parts: TableParts) -> int:
    """Return the bytes of what has a known width."""
    width = sum(layout_of(field.type).item_bytes for field in parts.schema)
    return width * sum(rows for _, rows in parts.chunks())


def _refuse_larger(needed: int, limit: int, folder: Path) -> None:
    if needed > limit:
        raise NoRoomError(
            f"The packed table needs {needed:,} bytes or more, and the cache {folder} may hold "
            f"{limit:,}. Give it more with cache_bytes, choose fewer columns, or pack the dataset "
            "to a place of its own with: batchloom pack"
        )


def _tables(folder: Path) -> list[PackedTable]:
    """Return the tables of the folder that can be opened."""
    found = []
    for place in sorted(folder.iterdir()):
        if not place.name.startswith(".") and (place / HEADER).exists():
            with suppress(PackedError, StorageError):
                found.append(PackedTable.open(place))
    return found


def _make_room(folder: Path, limit: int, keep: Path | None = None) -> None:
    """Remove tables, least recently used first, until those left take `limit` bytes.

    A file that several tables link counts once, as on the disk. A process that has a table mapped
    keeps what it has; the disk gets the space back when it ends.
    """
    with suppress(FileNotFoundError):
        tables = [p for p in folder.iterdir() if (p / HEADER).exists()]
        tables.sort(key=lambda p: (p / HEADER).stat().st_mtime)
        while tables and _disk_bytes(tables) > max(0, limit):
            oldest = next((p for p in tables if p != keep), None)
            if oldest is None:
                return
            tables.remove(oldest)
            # The header goes first: without it nobody opens what is left.
            (oldest / HEADER).unlink(missing_ok=True)
            shutil.rmtree(oldest, ignore_errors=True)


def _disk_bytes(tables: Iterable[Path]) -> int:
    sizes: dict[int, int] = {}
    for table in tables:
        with suppress(FileNotFoundError), os.scandir(table) as entries:
            for entry in entries:
                status = entry.stat()
                sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def _remove_litter(folder: Path) -> None:
    """Remove what processes that died have left: staging folders, locks, tables without header."""
    for place in folder.iterdir():
        if place.name.startswith(".") and place.suffix == ".lock":
            with hold(place) as mine:
                if mine:
                    place.unlink(missing_ok=True)
        staged = place.name.startswith(".") and ".staging-" in place.name
        headless = not place.name.startswith(".") and not (place / HEADER).exists()
        if place.is_dir() and (staged or headless):
            with hold(place) as mine:
                if mine:
                    shutil.rmtree(place, ignore_errors=True)
