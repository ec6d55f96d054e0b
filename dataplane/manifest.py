"""The batch manifest: a committed batch plan of one or more epochs, with its provenance.

This docstring is the format's specification, version 1.0.

**Directory.** ``manifest.json``, written last, and ``part-<sha256>.arrow`` files; optionally
``deep-<sha256>.json`` (content hashes of the dataset's files). Names that start with a dot are not
part of it.

**Parts** are uncompressed Arrow IPC *files*, one row a micro-batch:

==========  ===================  =================================================
``step``    uint64               step within the epoch
``micro``   uint16               index within the step
``rows``    large_list<uint64>   row ids, in order
``weights`` large_list<float32>  absent: all 1
…           declared columns     ``batch``: T; ``row``: large_list<T>;
                                 ``csr``: large_list<large_list<T>>, one list a row
==========  ===================  =================================================

A *block* is a record batch. It closes after the micro-batch with which it reaches 4,096
micro-batches or 1 Mi row ids; a part closes after the block with which it reaches 4 Mi row ids, and
at an epoch's end. A part is named by the SHA-256 of its bytes.

**Recipes.** An epoch that is a pure function of a permutation and of bitmaps takes no parts, but
``bitmap-<sha256>.bin`` files; see `recipe`. The header lists the reader feature ``recipe``.

**Header.** ``manifest.json`` is ``{manifest_id, header_sha256, identity, provenance}`` in canonical
JSON (see `canonical`). ``manifest_id`` is the SHA-256 of ``identity``, ``header_sha256`` that of
``{identity, provenance}``. This envelope is the same in every version.

*identity* is what was decided, and nothing else: ``format``, ``schema_version``,
``reader_features``; ``snapshot`` (the fragment table); ``stages`` with resolved parameters and
``seed`` (files enter as content digests, never as paths); ``unit``, ``weight_semantics``,
``side_columns``; ``planned_fragments`` (indices of the fragments that hold planned rows, or
``"all"``); ``epochs``; ``parent``, ``materialized_from``, ``signals`` (ids and digests, or null).
Each epoch has ``epoch, steps, micro_batches, samples, smallest_micro_batch,
last_step_micro_batches, micro_divisor`` (the greatest number that divides every step's count of
micro-batches), ``coverage`` (``exactly_once``, ``subset`` or ``with_replacement``),
``distinct_rows``, ``dropped_rows`` (selected but in no micro-batch), ``weight_sum`` (the integer
Σ round(w · 2²⁴), halves to even) and ``logical_digest``: SHA-256 over the blocks' logical digests
in order; a block's is SHA-256 over its columns in the order above, little-endian, a list as int64
offsets from 0 followed by its values. A recipe epoch has no digest (null), but ``recipe``:
``permutation, stream, rows, batch_size, micro_per_step, classes``, each class with ``bitmap``
(SHA-256; null: all rows) and ``weight``. The copy of a recipe in parts names it in
``materialized_from``.

A manifest that was edited or re-addressed names the one that it was made from in ``parent``, and
has that one's stages and one more of the kind ``edit`` or ``rebind``; see `lineage`.

*provenance* is how it was written: versions, reports of the stages, and for each part ``name,
epoch, bytes, sha256, frame_sha256`` (of all bytes outside block bodies) and for each block
``offset, length, sha256, first_step, first_micro, micro_batches, rows``: the jump index. Bitmaps
are listed as ``name, bytes``.

The same decision has the same id on any machine and version. Random order is counter-based
(`random`), so workers, partitions and paths do not enter.

**Reading.** Opening checks the header and every part's size and frame; a block's hash is checked
when it is first touched, so no row of a damaged block is ever delivered. A newer minor version
opens; a newer major version and an unknown reader feature are refused by name.

**Commit.** See `commit`, and `targets` for object stores. The same id already there is success,
another id a conflict.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .bitmap_file import BitmapFile, BitmapRecord
from .canonical import known_fields
from .dataset import Dataset, DatasetLike, open_dataset
from .epoch_count import recount
from .epochs import Epoch, EpochRecord, RecipeRecord, StoredEpoch
from .errors import ManifestCorruptError, ManifestError
from .manifest_header import HEADER, SCHEMA_VERSION, malformed, read_header
from .manifest_part import PartRecord, part_schema
from .part_reader import open_parts
from .plan import SideColumn, Unit, WeightSemantics
from .recipe import RecipeEpoch, RecipeRows, WeightClass
from .snapshot import Snapshot
from .storage import Location, locate

__all__ = ["HEADER", "SCHEMA_VERSION", "Manifest"]

_log = logging.getLogger("batchloom")


class Manifest:
    """A manifest opened for reading. Use `Manifest.open`.

    Attributes
    ----------
    path : Path or str
        As it was opened; the text of a URI.
    location : Location
        Where its files are.
    manifest_id : str
    identity, provenance : dict
    snapshot : Snapshot
    seed : int
    unit : {'sliceable', 'micro'}
    weight_semantics : {'importance', 'cluster'} or None
    """

    def __init__(self, path: Path | str, location: Location, header: Mapping[str, Any]) -> None:
        self.path = path
        self.location = location
        self.manifest_id: str = header["manifest_id"]
        self.identity: dict[str, Any] = header["identity"]
        self.provenance: dict[str, Any] = header["provenance"]
        self.seed: int = self.identity["seed"]
        self.unit: Unit = self.identity["unit"]
        self.weight_semantics: WeightSemantics | None = self.identity["weight_semantics"]
        self.side_columns = tuple(
            known_fields(SideColumn, c) for c in self.identity["side_columns"]
        )
        records = [EpochRecord.from_json(e) for e in self.identity["epochs"]]
        self.records = {record.epoch: record for record in records}
        self.parts = [PartRecord.from_json(p) for p in self.provenance["parts"]]
        schema = part_schema(self.weight_semantics is not None, self.side_columns)
        self._readers = open_parts(location, self.parts, schema)
        listed: Counter[int] = Counter()
        for part in self.parts:
            listed[part.epoch] += part.micro_batches
        bitmaps = [BitmapRecord.from_json(b) for b in self.provenance.get("bitmaps", [])]
        self._bitmaps = {b.sha256: BitmapFile(location.join(b.name), b) for b in bitmaps}
        self._recipe_rows: tuple[RecipeRecord, RecipeRows] | None = None
        for record in records:
            if record.recipe is not None:
                self._check_recipe(record.recipe)
            elif listed[record.epoch] != record.micro_batches:
                raise ManifestCorruptError(
                    f"{location.join(HEADER)}, epoch {record.epoch}: expected "
                    f"{record.micro_batches} micro-batches, the parts list "
                    f"{listed[record.epoch]}. Plan anew."
                )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: Literal["header", "all"] = "header",
        storage_options: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Open a manifest directory.

        Parameters
        ----------
        path : path or URI
        verify : {'header', 'all'}
            ``'header'`` checks the header and the parts' frames, blocks when they are touched;
            ``'all'`` checks every byte now.
        storage_options : mapping, optional
            Options of the filesystem (credentials, endpoints), for a URI.

        Raises
        ------
        ManifestCorruptError, ManifestVersionError, ManifestError, StorageError
        """
        location = locate(path, storage_options)
        header = read_header(location)
        with malformed(location):
            manifest = cls(location.as_named(path), location, header)
        if verify == "all":
            manifest.verify()
        return manifest

    def __repr__(self) -> str:
        return f"<Manifest {self.manifest_id[:12]} {self.path} epochs={list(self.epochs)}>"

    @cached_property
    def snapshot(self) -> Snapshot:
        return Snapshot.from_json(self.identity["snapshot"])

    @property
    def bytes(self) -> int:
        """Bytes of the parts and bitmaps."""
        bitmaps = sum(b.record.bytes for b in self._bitmaps.values())
        return sum(p.bytes for p in self.parts) + bitmaps

    @property
    def bitmaps(self) -> list[BitmapRecord]:
        """The files that hold the rows of recipe epochs."""
        return [b.record for b in self._bitmaps.values()]

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs that the manifest holds, ascending."""
        return tuple(sorted(self.records))

    @property
    def with_replacement(self) -> bool:
        return any(r.coverage == "with_replacement" for r in self.records.values())

    @property
    def parent(self) -> str | None:
        """Id of the manifest that this one continues or was made from."""
        value: str | None = self.identity["parent"]
        return value

    def epoch(self, number: int) -> Epoch:
        """Return one epoch's micro-batches."""
        if number not in self.records:
            held = ", ".join(map(str, self.epochs))
            raise ManifestError(f"{self.path} holds no epoch {number}; it holds {held}.")
        record = self.records[number]
        if record.recipe is not None:
            return RecipeEpoch(record, self._rows_of(record.recipe), self.seed)
        readers = [r for r, p in zip(self._readers, self.parts, strict=True) if p.epoch == number]
        return StoredEpoch(record, readers, self.side_columns)

    def row_frequencies(self, epochs: Iterable[int] | None = None) -> npt.NDArray[np.uint32]:
        """Count how often each row is planned: what a cache of hot rows keeps by.

        Takes four bytes a row of the dataset and one block at a time.

        Parameters
        ----------
        epochs : iterable of int, optional
            Default: all that the manifest holds.

        Returns
        -------
        uint32, shape (snapshot.rows,)
            By a row's position: the rank of its id among the snapshot's, which is its row in a
            table of the whole dataset.

        Raises
        ------
        ManifestError
            For an epoch that it does not hold.
        ManifestCorruptError
            At a damaged block.
        """
        counts = np.zeros(self.snapshot.rows, dtype=np.uint32)
        for number in self.epochs if epochs is None else epochs:
            for rows in self.epoch(number).row_chunks():
                np.add.at(counts, self.snapshot.positions(rows), 1)
        return counts

    def _check_recipe(self, recipe: RecipeRecord) -> None:
        """Raise where the header lists no bitmap of the right size for a class of rows."""
        words = -(-self.snapshot.next_row_id // 64)
        for c in recipe.classes:
            if c.bitmap is None:
                continue
            held = self._bitmaps.get(c.bitmap)
            if held is None or held.record.bytes != 8 * words:
                raise ManifestCorruptError(
                    f"{self.location.join(HEADER)}: expected a bitmap {c.bitmap} of "
                    f"{8 * words:,} bytes, which the header does not list. Plan anew."
                )

    def _rows_of(self, recipe: RecipeRecord) -> RecipeRows:
        """Return the rows of a recipe; epochs of the same rows share them."""
        kept = self._recipe_rows
        if kept is not None and kept[0].classes == recipe.classes:
            return kept[1]
        classes = tuple(
            WeightClass(None if c.bitmap is None else self._bitmaps[c.bitmap].open(), c.weight)
            for c in recipe.classes
        )
        rows = RecipeRows(self.snapshot, classes, self.weight_semantics is not None)
        if len(rows.union) != recipe.rows:
            raise ManifestCorruptError(
                f"{self.path}: expected {recipe.rows:,} rows in the bitmaps of a recipe, found "
                f"{len(rows.union):,}. Plan anew."
            )
        self._recipe_rows = recipe, rows
        return rows

    def manifest_for(self, epoch: int) -> Manifest:
        """Return the manifest that holds an epoch: this one; a series has several."""
        self.epoch(epoch)
        return self

    def planned_fragments(self) -> list[int]:
        """Indices into the snapshot's fragments of those that hold planned rows."""
        planned = self.identity["planned_fragments"]
        if planned == "all":
            return [i for i, f in enumerate(self.snapshot.fragments) if f.rows]
        return [int(i) for i in planned]

    def open_dataset(
        self, data: DatasetLike, *, storage_options: Mapping[str, Any] | None = None
    ) -> Dataset:
        """Open the dataset that was planned; more files than planned are fine.

        Raises
        ------
        DatasetChangedError
            Where a fragment that holds planned rows is gone or changed.
        """
        dataset = open_dataset(
            data,
            snapshot=self.snapshot,
            needed=self.planned_fragments(),
            storage_options=storage_options,
        )
        if dataset.unplanned > 0:
            _log.info(
                "%d files of the dataset are not in plan %s and are left out",
                dataset.unplanned,
                self.path,
            )
        return dataset

    def verify(self, *, deep: bool = False) -> None:
        """Hash every byte once; with `deep` count again what the identity says, too.

        Raises
        ------
        ManifestCorruptError
            Naming file, block, expected and found.
        """
        for reader in self._readers:
            reader.check_all()
        for bitmap in self._bitmaps.values():
            bitmap.check()
        if deep:
            recount(self)


def records_to_json(parts: list[PartRecord]) -> list[dict[str, Any]]:
    """Return part records as the provenance holds them."""
    return [asdict(p) for p in parts]
