"""Signals appended by the ranks of a training, each a process, beside plain writes by as many."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from batchloom.dataplane import SignalStore, Snapshot
from batchloom.dataplane.snapshot import Fragment

__all__ = ["Writers"]

_SIZE = 1024  # losses a step


class Writers:
    """Processes that write at the same time; a context manager.

    Parameters
    ----------
    count : int
    steps : int
        Of a training epoch; each has 1,024 losses a writer.
    """

    def __init__(self, count: int, steps: int) -> None:
        self.count, self.losses = count, count * steps * _SIZE
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        for writer in range(count):
            mine, theirs = context.Pipe()
            args = (theirs, writer, count, steps)
            context.Process(target=_work, args=args, daemon=True).start()
            self._pipes.append(mine)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()

    def append(self, folder: Path) -> list[tuple[float, float]]:
        """Append an epoch to a new store; return each one's CPU seconds a step, and altogether."""
        return self._all([("append", folder)] * self.count)

    def plain(self, folder: Path, sizes: list[int]) -> None:
        """Write files of these sizes, each flushed to the disk."""
        folder.mkdir()
        self._all([("plain", (folder, sizes[w :: self.count])) for w in range(self.count)])

    def _all(self, orders: list[Any]) -> list[Any]:
        for pipe, order in zip(self._pipes, orders, strict=True):
            pipe.send(order)
        return [pipe.recv() for pipe in self._pipes]


def _work(orders: Connection, writer: int, writers: int, steps: int) -> None:
    """Do what is asked for until nobody asks any more."""
    rows = writers * steps * _SIZE
    snapshot = Snapshot((Fragment("data", "part-0.parquet", rows, 1, "0" * 64, 0),), rows, "0" * 64)
    ids = np.random.default_rng(0).permutation(rows).astype(np.uint64)
    ids = ids.reshape(writers, steps, _SIZE)[writer].copy()
    losses = np.random.default_rng(1).random((steps, _SIZE), np.float32)
    noise = memoryview(os.urandom(8 << 20))
    while True:
        try:
            what, given = orders.recv()
        except EOFError:
            return
        if what == "append":
            orders.send(_append(given, writer, snapshot, ids, losses))
        else:
            orders.send(_plain(given[0], writer, given[1], noise))


def _append(
    folder: Path, writer: int, snapshot: Snapshot, ids: Any, losses: Any
) -> tuple[float, float]:
    began, whole = time.thread_time(), time.process_time()
    with SignalStore.for_writing(folder, snapshot, writer=writer, attempt=1) as store:
        for step in range(len(ids)):
            store.append(ids[step], epoch=0, step=step, loss=losses[step])
        mine = time.thread_time() - began
    return mine / len(ids), time.process_time() - whole


def _plain(folder: Path, writer: int, sizes: list[int], noise: memoryview) -> None:
    for number, size in enumerate(sizes):
        with open(folder / f"{writer}-{number}", "wb", buffering=0) as file:
            file.write(noise[:size])
            os.fsync(file.fileno())
