from __future__ import annotations

import numpy as np
from batchloom.dataplane.remap import GONE, RowMapping, remap_rows
from batchloom.tests.dataplane.helpers import snapshot_of


def test_old_ids_become_new_ones_and_what_is_gone_is_told() -> None:
    old = snapshot_of(3, 0, 2, first_ids=[10, 13, 40])
    new_ids = np.array([7, GONE, 5, 1 << 62, 0], dtype=np.uint64)
    rows = np.array([41, 10, 10, 11, 12, 40, 13, 0, 1 << 63], dtype=np.uint64)
    new, found = remap_rows(rows, RowMapping(old, new_ids))
    assert new.dtype == np.uint64
    assert new[found].tolist() == [0, 7, 7, 5, 1 << 62]
    assert found.tolist() == [True, True, True, False, True, True, False, False, False]


def test_no_rows() -> None:
    mapping = RowMapping(snapshot_of(2), np.array([1, 0], np.uint64))
    new, found = remap_rows(np.zeros(0, np.uint64), mapping)
    assert len(new) == len(found) == 0
