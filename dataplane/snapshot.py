"""Snapshots: the fragment table of a dataset, and the row ids that it gives.

A *row id* is a uint64: the ``first_row_id`` of a fragment plus the position in it. A first snapshot
orders fragments by (source, path), both in natural order, and numbers rows 0…N−1. A snapshot
*since* an older one keeps the ids of every fragment that is still there unchanged (source, path,
rows, bytes and footer hash are equal) and gives all others, rewritten files included, ids from
``next_row_id`` up. Ids are never used twice; gaps are normal.

The table with its ``next_row_id`` and schema digest is the dataset's **quick fingerprint**: it
holds no time stamps, no absolute paths, and no data was read for it. (`deep_hashes` are over all
bytes, and made on request.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .canonical import digest, known_fields, pretty_json
from .commit import write_file
from .deep_hashes import find_deep_hashes, write_deep_hashes
from .errors import (
    DatasetChangedError,
    DatasetError,
    MissingFileError,
    RowIdError,
    StorageError,
)
from .fragments import FOOTER_THREADS
from .schemas import schema_digest
from .storage import locate, natural_key

__all__ = [
    "Fragment",
    "Snapshot",
    "as_row_ids",
    "extend_snapshot",
    "find_deep_hashes",
    "first_snapshot",
    "match_fragments",
    "row_ids_to_int64",
    "schema_digest",
    "write_deep_hashes",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_FORMAT = "batchloom-snapshot/1"


@dataclass(frozen=True)
class Fragment:
    """One row of the fragment table."""

    source: str
    path: str
    rows: int
    bytes: int
    footer_hash: str
    first_row_id: int = -1

    @property
    def label(self) -> str:
        return f"{self.source}:{self.path}"

    @property
    def stop_row_id(self) -> int:
        return self.first_row_id + self.rows

    def same_file(self, other: Fragment) -> bool:
        """Whether rows, bytes and footer are equal, wherever the files are."""
        mine = (self.rows, self.bytes, self.footer_hash)
        return mine == (other.rows, other.bytes, other.footer_hash)


@dataclass(frozen=True)
class Snapshot:
    """A fragment table, ordered by ``first_row_id``.

    Attributes
    ----------
    fragments : tuple of Fragment
    next_row_id : int
        First id that was never given.
    schema_digest : str
    """

    fragments: tuple[Fragment, ...]
    next_row_id: int
    schema_digest: str

    @cached_property
    def rows(self) -> int:
        return sum(f.rows for f in self.fragments)

    @cached_property
    def fingerprint(self) -> str:
        """The quick fingerprint, in hex."""
        return digest(self.to_json())

    @cached_property
    def starts(self) -> U64:
        """First row id of each fragment that holds rows."""
        return np.array([f.first_row_id for f in self._filled], dtype=np.uint64)

    @cached_property
    def stops(self) -> U64:
        return np.array([f.stop_row_id for f in self._filled], dtype=np.uint64)

    @cached_property
    def _dense(self) -> bool:
        """Whether ids run from 0 to the number of rows, in order and without a gap."""
        return bool((self.starts.view(np.int64) == self._rows_before[:-1]).all())

    @cached_property
    def _filled(self) -> tuple[Fragment, ...]:
        return tuple(f for f in self.fragments if f.rows)

    @cached_property
    def _filled_index(self) -> I64:
        return np.array([i for i, f in enumerate(self.fragments) if f.rows], dtype=np.int64)

    @cached_property
    def _rows_before(self) -> I64:
        counts = np.array([f.rows for f in self._filled], dtype=np.int64)
        return np.concatenate([[0], np.cumsum(counts)])

    def locate(self, ids: U64) -> tuple[I64, I64]:
        """Return (fragment index, position in it) of row ids; `RowIdError` where there is none."""
        slot, offset = self._slot_and_offset(ids)
        return self._filled_index[slot], offset

    def positions(self, ids: U64) -> I64:
        """Return the rank of each row id among the snapshot's ids: its position 0…rows−1.

        Read only, and a view of `ids` where rank and id are the same.
        """
        if self._dense and ids.dtype == np.uint64 and (not ids.size or ids.max() < self.rows):
            ranks = ids.view(np.int64)
            ranks.flags.writeable = False
            return ranks
        slot, offset = self._slot_and_offset(ids)
        return self._rows_before[slot] + offset

    def _slot_and_offset(self, ids: U64) -> tuple[I64, I64]:
        ids = np.asarray(ids, dtype=np.uint64)
        slot = np.searchsorted(self.starts, ids, side="right") - 1
        inside = slot >= 0
        if inside.all():
            inside = ids < self.stops[slot]
        if not inside.all():
            bad = int(ids[np.argmin(inside)])
            gaps = ", with gaps" if self.rows < self.next_row_id else ""
            raise RowIdError(
                f"Row {bad} is in no fragment: the snapshot holds {self.rows:,} rows with ids "
                f"below {self.next_row_id:,}{gaps}."
            )
        return slot, (ids - self.starts[slot]).view(np.int64)

    def ids_at(self, positions: npt.ArrayLike) -> U64:
        """Return the row ids at ranks 0…rows−1; the inverse of `positions`."""
        ranks = np.asarray(positions)
        # Positions at or above 2**63 turn negative and are refused with the others.
        ranks = ranks.view(np.int64) if ranks.dtype == np.uint64 else ranks.astype(np.int64)
        if ranks.size and (ranks.min() < 0 or ranks.max() >= self.rows):
            raise RowIdError(f"Positions must lie in the range [0, {self.rows}).")
        if self._dense:
            return ranks.astype(np.uint64)
        slot = np.searchsorted(self._rows_before, ranks, side="right") - 1
        return self.starts[slot] + (ranks - self._rows_before[slot]).astype(np.uint64)

    def runs(self) -> Iterator[range]:
        """Yield the row ids, ascending, in ranges without a gap, each as long as can be."""
        starts, stops = self.starts.tolist(), self.stops.tolist()
        begin = 0
        for i in range(1, len(starts) + 1):
            if i == len(starts) or starts[i] != stops[i - 1]:
                yield range(starts[begin], stops[i - 1])
                begin = i

    # --- as a file --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return {
            "fragments": [dict(vars(f)) for f in self.fragments],
            "next_row_id": self.next_row_id,
            "schema_digest": self.schema_digest,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Snapshot:
        fragments = tuple(known_fields(Fragment, f) for f in value["fragments"])
        return cls(fragments, int(value["next_row_id"]), str(value["schema_digest"]))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the snapshot as one JSON file, whole or not at all; a path or URI."""
        body = {"format": _FORMAT, "fingerprint": self.fingerprint, "snapshot": self.to_json()}
        write_file(locate(path, storage_options), pretty_json(body), "Writing the snapshot")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read a snapshot file, or the snapshot that a manifest holds; a path or URI."""
        source = locate(path, storage_options)
        if source.is_dir():
            source = source.join("manifest.json")
        try:
            body = json.loads(source.read_bytes())
            if "identity" in body:
                snapshot = cls.from_json(body["identity"]["snapshot"])
                expected, found = body["manifest_id"], digest(body["identity"])
            else:
                if body["format"] != _FORMAT:
                    raise DatasetError(
                        f"{path} has the format '{body['format']}'; this version reads '{_FORMAT}'."
                    )
                snapshot = cls.from_json(body["snapshot"])
                expected, found = body["fingerprint"], snapshot.fingerprint
        except (MissingFileError, StorageError) as error:
            raise DatasetError(f"The snapshot cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DatasetError(
                f"{path} is not a snapshot; make one with: batchloom scan DATASET --out {path}"
            ) from error
        if expected != found:
            raise DatasetError(
                f"The snapshot {path} is damaged: expected fingerprint {expected}, found {found}. "
                "Make it again with: batchloom scan"
            )
        return snapshot


def as_row_ids(ids: npt.ArrayLike) -> U64:
    """Return integers as row ids; `RowIdError` where one is negative or none."""
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, dtype=np.uint64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise RowIdError(
            f"Row ids are a one-dimensional array of integers; found {array.ndim} dimensions of "
            f"{array.dtype}."
        )
    if array.dtype.kind == "i" and int(array.min()) < 0:
        raise RowIdError(f"Row {int(array.min())} cannot be: row ids are not negative.")
    return array.astype(np.uint64, copy=False)


def row_ids_to_int64(ids: U64) -> I64:
    """Return row ids as int64, as torch wants them; refuse those at or above 2**63."""
    if ids.size and int(ids.max()) >= 1 << 63:
        raise RowIdError(f"Row {int(ids.max())} does not fit a signed 64-bit integer.")
    return ids.view(np.int64) if ids.flags.c_contiguous else ids.astype(np.int64)


# --- making snapshots -----------------------------------------------------------------------------


def _natural(fragment: Fragment) -> tuple[Any, Any]:
    return natural_key(fragment.source), natural_key(fragment.path)


def _by_id(fragment: Fragment) -> tuple[int, int, Any]:
    return fragment.first_row_id, fragment.rows, _natural(fragment)


def _numbered(fragments: Iterable[Fragment], start: int) -> tuple[list[Fragment], int]:
    out = []
    for fragment in sorted(fragments, key=_natural):
        out.append(replace(fragment, first_row_id=start))
        start += fragment.rows
    if start >= 1 << 63:
        raise RowIdError("The dataset needs row ids at or above 2**63.")
    return out, start


def first_snapshot(listed: Sequence[Fragment], digest_: str) -> Snapshot:
    """Number the rows of listed fragments from 0."""
    fragments, next_row_id = _numbered(listed, 0)
    return Snapshot(tuple(fragments), next_row_id, digest_)


def extend_snapshot(since: Snapshot, listed: Sequence[Fragment], digest_: str) -> Snapshot:
    """Keep the ids of fragments that `since` knows, number the others from its end."""
    pairs = pair_fragments(
        since.fragments,
        [(f.source, f.path, f.bytes) for f in listed],
        lambda here, there: since.fragments[here].same_file(listed[there]),
    )
    kept, new = [], []
    known = {there: here for here, there in pairs.items()}
    for index, fragment in enumerate(listed):
        old = since.fragments[known[index]] if index in known else None
        if old is not None and old.same_file(fragment):
            kept.append(replace(fragment, first_row_id=old.first_row_id))
        else:
            new.append(fragment)
    added, next_row_id = _numbered(new, since.next_row_id)
    return Snapshot(tuple(sorted(kept + added, key=_by_id)), next_row_id, digest_)


def pair_fragments(
    planned: Sequence[Fragment],
    listed: Sequence[tuple[str, str, int]],
    same: Callable[[int, int], bool],
) -> dict[int, int]:
    """Pair planned fragments with listed (source, path, bytes) by path.

    Equal paths first; then, in a source whose root moved up or down, one path a suffix of the other
    with the same size. ``same(planned index, listed index)`` decides where several would fit; what
    stays ambiguous is left alone.
    """
    by_path = {(source, path): i for i, (source, path, _) in enumerate(listed)}
    pairs: dict[int, int] = {}
    in_place: set[str] = set()
    for here, f in enumerate(planned):
        if (f.source, f.path) in by_path:
            pairs[here] = by_path[f.source, f.path]
            in_place.add(f.source)  # the roots agree; a suffix could only be another file
    tails: dict[tuple[str, str, int], list[int]] = {}
    for i, (source, path, size) in enumerate(listed):
        tails.setdefault((source, path.rsplit("/", 1)[-1], size), []).append(i)
    moved: dict[int, list[int]] = {}  # listed index → planned fragments that could be it
    for here, f in enumerate(planned):
        if f.source in in_place:
            continue
        same_name = tails.get((f.source, f.path.rsplit("/", 1)[-1], f.bytes), [])
        fits = [i for i in same_name if _one_is_suffix(f.path, listed[i][1])]
        if len(fits) > 1:
            fits = [i for i in fits if same(here, i)]
        if len(fits) == 1:
            moved.setdefault(fits[0], []).append(here)
    for there, fits in moved.items():
        if len(fits) > 1:
            fits = [here for here in fits if same(here, there)]
        if len(fits) == 1:
            pairs[fits[0]] = there
    return pairs


def _one_is_suffix(a: str, b: str) -> bool:
    return f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}")


def match_fragments(
    planned: Sequence[Fragment],
    listed: Sequence[tuple[str, str, int]],
    footer_hash_of: Callable[[int], str],
    needed: Iterable[int],
) -> dict[int, int]:
    """Find the planned fragments that are needed among the listed files, unchanged.

    Parameters
    ----------
    planned : sequence of Fragment
    listed : sequence of (source, path, bytes)
    footer_hash_of : callable
        Index into `listed` → footer hash; called for needed fragments, from several threads.
    needed : iterable of int
        Indices into `planned`.

    Returns
    -------
    dict of planned index → listed index

    Raises
    ------
    DatasetChangedError
        Naming the first fragment that is gone or changed, and how.
    """
    needed = list(needed)
    pairs = pair_fragments(
        planned, listed, lambda here, there: footer_hash_of(there) == planned[here].footer_hash
    )
    for index in needed:
        fragment = planned[index]
        if index not in pairs:
            raise DatasetChangedError(
                f"Fragment '{fragment.path}' of source '{fragment.source}' "
                f"({fragment.rows:,} rows, {fragment.bytes:,} bytes) is gone, or several files "
                "could be it. Put it back, name the root that was planned, or plan again on the "
                "dataset as it is now."
            )
        _, path, size = listed[pairs[index]]
        if size != fragment.bytes:
            _changed(fragment, path, f"{fragment.bytes:,} bytes", f"{size:,} bytes")
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        hashes = list(pool.map(lambda index: footer_hash_of(pairs[index]), needed))
    for index, found in zip(needed, hashes, strict=True):
        fragment = planned[index]
        if found != fragment.footer_hash:
            expected = f"footer {fragment.footer_hash[:16]}…"
            _changed(fragment, listed[pairs[index]][1], expected, f"footer {found[:16]}…")
    return pairs


def _changed(fragment: Fragment, path: str, expected: str, found: str) -> None:
    raise DatasetChangedError(
        f"Fragment '{path}' of source '{fragment.source}' was rewritten since the plan was made: "
        f"expected {expected}, found {found}. Put the old file back, or plan again."
    )
