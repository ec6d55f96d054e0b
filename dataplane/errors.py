"""Every error that Batchloom raises on purpose.

One tree under `BatchloomError`. A message says what is wrong, where, what was expected and found,
and what to do next; it is one sentence where one is enough. ``exit_code`` is what the command line
ends with.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

__all__ = [
    "BatchTooLargeError",
    "BatchloomError",
    "ColumnTypeError",
    "DatasetChangedError",
    "DatasetError",
    "EngineError",
    "FragmentCorruptError",
    "HostMemoryError",
    "HostRegistrationError",
    "InvalidValueError",
    "JobSpecError",
    "ManifestConflictError",
    "ManifestCorruptError",
    "ManifestError",
    "ManifestVersionError",
    "MissingColumnError",
    "MissingExtraError",
    "MissingFileError",
    "NoRoomError",
    "OnInvalid",
    "PackedConflictError",
    "PackedCorruptError",
    "PackedError",
    "PackedVersionError",
    "ParameterError",
    "ReleasedTableError",
    "ResumeMismatchError",
    "RowIdError",
    "RowIndexError",
    "SchemaDriftError",
    "SelectionError",
    "ServiceError",
    "SignalConflictError",
    "SignalCorruptError",
    "SignalError",
    "StorageError",
    "UnifiedAccessUnavailable",
    "WorldSizeError",
    "examples",
    "nearest",
    "needs_extra",
]


class BatchloomError(Exception):
    """Base of all errors below."""

    exit_code = 1


class ParameterError(BatchloomError, ValueError):
    """A parameter is out of its range or of the wrong type."""

    exit_code = 2


class JobSpecError(BatchloomError, ValueError):
    """A job file or a combination of options does not make a job."""

    exit_code = 2


class MissingExtraError(BatchloomError, ImportError):
    """A verb needs packages of an extra that is not installed."""

    exit_code = 2


class StorageError(BatchloomError, OSError):
    """A file cannot be read or written: permission, full disk, read-only target."""


class NoRoomError(StorageError):
    """A disk, or the part of it that may be used, has no room for what is to be written."""


class DatasetError(BatchloomError):
    """A dataset cannot be opened as it was named."""


class MissingFileError(DatasetError):
    """There is no file or directory of that name."""


class FragmentCorruptError(DatasetError):
    """A data file is truncated, damaged or not of its format."""


class SchemaDriftError(DatasetError):
    """Fragments disagree about a column."""


class MissingColumnError(DatasetError, KeyError):
    """A column that does not exist was asked for."""

    __str__ = Exception.__str__  # KeyError would print the repr of the message


class ColumnTypeError(DatasetError, TypeError):
    """A column is of a type that cannot be used for this."""


class InvalidValueError(DatasetError, ValueError):
    """Values that cannot be used, such as NaN in an embedding."""


OnInvalid = Literal["fail", "drop"]
"""Rows whose values cannot be used: raise `InvalidValueError`, or leave them out."""


class DatasetChangedError(DatasetError):
    """A dataset is not the one that a plan or a snapshot was made from."""


class RowIdError(BatchloomError, ValueError):
    """A row id that no fragment holds, or that no signed 64-bit integer can carry."""


class SelectionError(BatchloomError, ValueError):
    """A selection, grouping or batching that cannot be made from these rows."""


class BatchTooLargeError(SelectionError):
    """A batch of a graph that would have more edges than it may have."""


class SignalError(BatchloomError):
    """A signal cannot be read or written as it was asked for."""


class SignalCorruptError(SignalError):
    """The bytes of a part of a signal are not what its hashes say."""


class SignalConflictError(SignalError, SelectionError):
    """One attempt of a training has two values of a row in one step."""


class ManifestError(BatchloomError):
    """Base of the manifest's errors."""


class ManifestCorruptError(ManifestError):
    """A manifest's bytes are not what its hashes say."""


class ManifestVersionError(ManifestError):
    """A manifest was written by a newer format than this reader knows."""


class ManifestConflictError(ManifestError, FileExistsError):
    """The target holds another manifest already."""


class PackedError(BatchloomError):
    """Base of the packed tables' errors: a table is not there, or cannot serve what was asked."""


class PackedCorruptError(PackedError):
    """A packed table's bytes are not what its hashes say."""


class PackedVersionError(PackedError):
    """A packed table was written by a newer format than this reader knows."""


class PackedConflictError(PackedError, FileExistsError):
    """The target holds something else already."""


class ResumeMismatchError(BatchloomError, ValueError):
    """A loader state does not belong to this plan."""


class WorldSizeError(BatchloomError, ValueError):
    """A plan cannot be dealt to that many ranks."""

    exit_code = 2


class EngineError(BatchloomError):
    """A Dask job failed: a worker was lost, a scheduler is out of reach."""


class ServiceError(BatchloomError):
    """The selection service cannot be reached, or cannot do what it was asked.

    Attributes
    ----------
    status : int or None
        Of its answer; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RowIndexError(BatchloomError, IndexError):
    """A row outside a host table was asked for."""


class HostMemoryError(MemoryError, BatchloomError):  # in this order Dask can unpickle it
    """A host table is larger than the memory there is."""


class ReleasedTableError(BatchloomError, RuntimeError):
    """A host table was used after its memory was released."""


class UnifiedAccessUnavailable(BatchloomError, RuntimeError):  # noqa: N818
    """A GPU cannot read host memory in the way that was asked for; the message says why."""


class HostRegistrationError(BatchloomError, RuntimeError):
    """The CUDA driver refused to map host memory.

    Attributes
    ----------
    code : int
        CUDA's error code.
    name : str
        Its name, such as ``'cudaErrorHostMemoryAlreadyRegistered'``.
    """

    def __init__(self, message: str, code: int = 0, name: str = "") -> None:
        super().__init__(message, code, name)
        self.code, self.name = code, name

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Say which extra to install where an import inside the block fails."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the packages of the extra '{extra}': pip install 'batchloom[{extra}]'"
        ) from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known word, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def examples(ids: Iterable[Any]) -> str:
    """Return the first five of some row ids as text, with "…" where there are more."""
    shown = list(itertools.islice(ids, 6))
    return ", ".join(map(str, shown[:5])) + (", …" if len(shown) > 5 else "")
