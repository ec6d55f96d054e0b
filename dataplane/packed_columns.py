"""A column of packed files as a gather sees it: the places in their headers as addresses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .mapped import MappedColumn, Validity
from .packed_arrays import arrays_of, dictionaries_of
from .packed_header import Place
from .packed_layout import layout_of
from .packed_mirror import MirroredFile, MirrorGuard
from .packed_pages import MappedFile, PageGuard

__all__ = ["map_files"]


def map_files(
    field: pa.Field,
    files: Sequence[MappedFile] | Sequence[MirroredFile],
    guard: PageGuard | MirrorGuard,
) -> MappedColumn:
    """Return a column of files that are mapped or mirrored, one a chunk."""
    layout = layout_of(field.type)
    places = [f.record.places for f in files]
    base = np.array([f.address for f in files], dtype=np.uint64)

    def addresses(found: Sequence[Place | None]) -> npt.NDArray[np.uint64]:
        offset = np.array([0 if p is None else p[0] for p in found], dtype=np.uint64)
        return np.where(offset > 0, base + offset, np.uint64(0))

    def levels(first: int, widths: Sequence[int]) -> tuple[Validity, ...]:
        out = []
        for level, width in enumerate(widths, first):
            found = addresses([p.validity[level] for p in places])
            out.append(Validity(found, np.zeros(len(files), np.int64), width))
        return tuple(out)

    names = [f.place for f in files]
    if layout.kind == "arrow":
        return MappedColumn(
            field.name,
            field.type,
            "arrow",
            0,
            base,
            arrays=arrays_of(names, guard),
            guard=guard,
            owner=(files, guard),
        )
    dictionary = None
    if layout.kind == "codes":
        dictionary = dictionaries_of(names, guard)
    return MappedColumn(
        field.name,
        layout.physical if layout.kind == "codes" else field.type,
        layout.kind,
        layout.item_bytes,
        addresses([p.values for p in places]),
        outer=levels(0, layout.outer),
        inner=levels(len(layout.outer), layout.inner),
        offsets=addresses([p.offsets for p in places]) if layout.has_offsets else None,
        items=np.array([p.items for p in places], np.int64) if layout.has_offsets else None,
        dictionary=dictionary,
        guard=guard,
        owner=(files, guard),
    )
