"""How much memory a job takes, and who of its processes takes how much.

``--memory`` is for the whole job: this process and its workers. It is kept whatever the number of
rows, since what a plan knows of each row is on disk (`work`) and is sorted there where it does not
fit. In memory stay

- the program itself, in each process, and a few batches of about 4 MiB of what it scans;
- what is known of each file;
- one bit a row id for the rows that take part, with an index of 14 % more, and one bit a row for
  those that were planned;
- what the manifest's header says of each block;
- a micro-batch, where one has more than a million rows;
- what a method says that it needs (`Stage.memory`), such as k-means' training sample.

That is the bill. It is known before anything is read, and a job whose memory is less than its bill
is refused with the arithmetic. What is left of this process's share is for sorting and for columns
that are worth keeping in memory: rows that fit are sorted there.

Each process has an equal share. Where this process's bill is more than that it gets its bill, and
the workers share the rest; where that is too little for a worker, there are fewer workers than
cores, down to none. A job without ``--memory`` takes half of the machine's, more only where its
bill is more. On a scheduler elsewhere the workers have limits of their own: the memory given is
this process's.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..dataplane.errors import ParameterError

__all__ = ["Budget", "machine_memory", "mebibytes", "size_text"]

_SORTED_BYTES = 96  # a row, while an order of all rows is made in memory


@dataclass(frozen=True)
class Budget:
    """What a job may take.

    Attributes
    ----------
    total : int
    workers : int or None
        Processes of the embedded cluster; None: as many as the engine likes.
    for_workers : int or None
        Bytes of all workers together; None where they are none of ours.
    working : int
        Bytes of this process that are left for sorting and for columns kept in memory.
    """

    total: int
    workers: int | None
    for_workers: int | None
    working: int

    @property
    def resident(self) -> int:
        """Bytes up to which a column is kept in memory."""
        return self.working // 4

    @property
    def sorting(self) -> int:
        """Bytes that a bucket of an external sort may take; the rest is for what comes and goes."""
        return self.working // 2

    def holds(self, rows: int) -> bool:
        """Whether an order of so many rows is made in memory."""
        return rows * _SORTED_BYTES <= self.working

    def require(self, bytes_needed: int, what: str) -> None:
        """Refuse what was not on the bill and does not fit what is left."""
        if bytes_needed > self.working:
            more = self.total + bytes_needed - self.working
            raise ParameterError(
                f"{what} takes {size_text(bytes_needed)}, and of the job's memory of "
                f"{size_text(self.total)} there are {size_text(self.working)} left for it; "
                f"give it --memory {mebibytes(more)}MiB or more."
            )


def machine_memory() -> int:
    """Return the bytes of memory that this machine, or this container, has."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found)


def size_text(size: int) -> str:
    """Return bytes as people read them, never less than they are."""
    return f"{mebibytes(size):,} MiB"


def mebibytes(size: int) -> int:
    """Return bytes in MiB, rounded up."""
    return math.ceil(size / (1 << 20))
