"""The index that a part of given blocks has: what `signal_parts.part_bytes` would write.

A body that has this index is a part as it is, and need not be written anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...dataplane.canonical import compact_json
from ...dataplane.observations import Observations
from ...dataplane.signal_parts import _FORMAT, _KEY_BYTES, BLOCK_BYTES, _checksum

__all__ = ["index_text"]


def index_text(blocks: Sequence[Observations]) -> bytes | None:
    """Return the text of the index of some blocks; None where a part is not cut so."""
    width = blocks[0].width
    step = max(1, BLOCK_BYTES // (_KEY_BYTES + 4 * max(1, width)))
    sizes = [len(block) for block in blocks]
    if any(size != step for size in sizes[:-1]) or not 0 < sizes[-1] <= step:
        return None
    index = {
        "format": _FORMAT,
        "width": width,
        "epochs": [
            min(int(block.epoch.min()) for block in blocks),
            max(int(block.epoch.max()) for block in blocks),
        ],
        "blocks": [[int(b.rows[0]), int(b.rows[-1]), len(b), _checksum(b)] for b in blocks],
    }
    return compact_json(index)
