"""Files that are durable when a call returns; calls at the same time share what can be shared.

A file is flushed, renamed into its place, and then its folder is flushed. One flush of a folder
stands for all files that were renamed before it began; so of many writers few wait for one of their
own.
"""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

from ...dataplane.commit import sync_path, write_synced
from ...dataplane.storage import storing

__all__ = ["Folder"]


class Folder:
    """A folder in which files are put; made with the first of them.

    Parameters
    ----------
    path : Path
    what : str
        Begins the sentence of an error: "Writing signals".
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what
        self._changed = threading.Condition()
        self._begun = self._done = 0
        self._running = self._made = False

    def put(self, name: str, data: Any) -> None:
        """Write a file whole or not at all.

        Raises
        ------
        NoRoomError, StorageError
        """
        place = self._path / name
        staged = self._path / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
        with storing(self._what, place):
            self._make()
            try:
                write_synced(staged, data)
                staged.replace(place)
            finally:
                staged.unlink(missing_ok=True)
            self._sync()

    def _make(self) -> None:
        if not self._made:
            self._path.mkdir(parents=True, exist_ok=True)
            sync_path(self._path.parent)
            self._made = True

    def _sync(self) -> None:
        """Return when a flush of the folder is done that began after this call."""
        with self._changed:
            wanted = self._begun + 1
            while self._running and self._done < wanted:
                self._changed.wait()
            if self._done >= wanted:
                return
            self._running = True
            self._begun += 1
            mine = self._begun
        try:
            sync_path(self._path)
        except OSError:
            mine = 0  # those who wait try for themselves
            raise
        finally:
            with self._changed:
                self._done = max(self._done, mine)
                self._running = False
                self._changed.notify_all()
