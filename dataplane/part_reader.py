"""Reading a manifest's parts: what is delivered was hashed first.

The frame is checked at opening, a block when it is touched. Both come from a `part_sources` source;
a block is decoded out of its own message, wherever that came from.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import pyarrow as pa

from .errors import BatchloomError, ManifestCorruptError
from .ipc_messages import Block, file_blocks, file_footer
from .manifest_part import PartRecord, decode_plan
from .part_sources import PartSource, open_sources
from .plan import BatchPlan
from .storage import Location

__all__ = ["BlockCache", "PartReader", "open_parts"]

_CACHED_BYTES = 64 << 20
_CHECKED_AT_ONCE = 4  # blocks of a store
_VIEW_BYTES = 4096  # about what the Python objects of a block take


class BlockCache:
    """Decoded blocks, least recently used out first; one cache a manifest.

    Parameters
    ----------
    limit : int
        Bytes that the blocks may take; the newest one is kept whatever it takes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._blocks: OrderedDict[Any, tuple[BatchPlan, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Any) -> BatchPlan | None:
        with self._lock:
            found = self._blocks.get(key)
            if found is None:
                return None
            self._blocks.move_to_end(key)
            return found[0]

    def put(self, key: Any, plan: BatchPlan, size: int) -> None:
        with self._lock:
            self._blocks[key] = plan, size
            self._held += size
            while self._held > self._limit and len(self._blocks) > 1:
                self._held -= self._blocks.popitem(last=False)[1][1]


class PartReader:
    """One part: its frame is checked at opening, a block's hash when it is touched.

    May be used from several threads.
    """

    def __init__(
        self, source: PartSource, record: PartRecord, schema: pa.Schema, cache: BlockCache
    ) -> None:
        self.record = record
        self._source = source
        self._schema = schema
        self._cache = cache
        self._verified: set[int] = set()
        self._places: list[Block] | None = None
        self._lock = Lock()
        self._check_frame()

    def _check_frame(self) -> None:
        hasher = hashlib.sha256()
        for number in range(len(self.record.blocks) + 1):
            hasher.update(self._source.frame(number))
        if hasher.hexdigest() != self.record.frame_sha256:
            raise self._corrupt("frame", self.record.frame_sha256, hasher.hexdigest())

    def check_all(self) -> None:
        """Check the frame and every block: each byte once."""
        self._check_frame()
        self._verified.clear()
        with ThreadPoolExecutor(1 if self._source.mapped else _CHECKED_AT_ONCE) as pool:
            for _ in pool.map(self._check_block, range(len(self.record.blocks))):
                pass

    def _check_block(self, index: int) -> None:
        self._verified_message(index, 0)

    def _verified_message(self, index: int, metadata: int) -> Any:
        """Return a block's bytes and the metadata before them; those of a map are hashed once."""
        message = memoryview(self._source.message(index, metadata))
        if index in self._verified and self._source.mapped:
            return message
        expected, found = self.record.blocks[index].sha256, hashlib.sha256(message[metadata:])
        if found.hexdigest() != expected:
            raise self._corrupt(f"block {index}", expected, found.hexdigest())
        self._verified.add(index)
        return message

    def block(self, index: int) -> BatchPlan:
        """Return a verified block: views of the map, or of what was fetched."""
        key = self.record.name, index
        plan = self._cache.get(key)
        if plan is None:
            with self._lock:
                plan = self._cache.get(key)  # another thread may have loaded it meanwhile
                if plan is not None:
                    return plan
                plan = self._load(index)
                held = 0 if self._source.mapped else self.record.blocks[index].length
                self._cache.put(key, plan, held + _VIEW_BYTES)
        return plan

    def _load(self, index: int) -> BatchPlan:
        block = self.record.blocks[index]
        try:
            place = self._listed()[index]
            message = self._verified_message(index, place.metadata)
            plan = decode_plan(
                pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(message)), self._schema)
            )
        except BatchloomError:
            raise
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self._corrupt(f"block {index}", "a record batch", error) from error
        for what, expected, found in (
            ("micro-batches", block.micro_batches, len(plan)),
            ("rows", block.rows, len(plan.rows)),
            ("first step", block.first_step, int(plan.step[0])),
        ):
            if expected != found:
                raise self._corrupt(f"block {index}", f"{what} {expected}", found)
        return plan

    def _listed(self) -> list[Block]:
        """Return the record batches that the part's own footer lists, where the header has them."""
        if self._places is None:
            blocks = self.record.blocks
            try:
                schema = pa.ipc.read_schema(pa.py_buffer(self._source.frame(0)[8:]))
                places = file_blocks(file_footer(memoryview(self._source.frame(len(blocks)))))
            except struct.error as error:
                raise ValueError(f"its footer is damaged: {error}") from error
            if not schema.equals(self._schema):
                raise self._corrupt("columns", self._schema.names, schema.names)
            expected = [(b.offset, b.length) for b in blocks]
            found = [(p.offset + p.metadata, p.body) for p in places]
            if expected != found:
                raise self._corrupt("footer", f"blocks at {expected}", f"them at {found}")
            self._places = places
        return self._places

    def _corrupt(self, where: str, expected: Any, found: Any) -> ManifestCorruptError:
        return ManifestCorruptError(
            f"{self._source.place}, {where}: expected {expected}, found {found}. No row of it was "
            "delivered; copy the manifest again or plan anew."
        )


def open_parts(
    folder: Location, records: Sequence[PartRecord], schema: pa.Schema
) -> list[PartReader]:
    """Open the parts of a manifest; their blocks share one cache."""
    cache = BlockCache(_CACHED_BYTES)
    sources = open_sources(folder, records)
    return [PartReader(s, r, schema, cache) for s, r in zip(sources, records, strict=True)]
