"""What a cache must do: deliver the table's rows. Subclass and give `make` and `device`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import RowIndexError
from batchloom.gpu_access import HotRowCache, UnifiedTensor
from batchloom.gpu_access.cache_policies import Static
from batchloom.tests.contracts.unified import ROWS, random_rows, same_bits


class CacheContract:
    """Every kind of cache, over any backend; rows that move are the table's, bit by bit."""

    device = "cpu"

    def make(self, table: torch.Tensor) -> UnifiedTensor:
        return UnifiedTensor.from_tensor(table, device="cpu")

    def kinds(
        self, unified: UnifiedTensor, batches: list[Any], capacity: int
    ) -> Iterator[HotRowCache]:
        counts = np.bincount(np.concatenate(batches), minlength=len(unified))
        yield HotRowCache.from_plan(unified, batches, capacity)
        yield HotRowCache.lru(unified, capacity)
        yield HotRowCache.from_counts(unified, counts, capacity)
        yield HotRowCache.from_degrees(unified, counts, capacity)

    @pytest.mark.parametrize(
        ("dtype", "width"),
        [(torch.float32, 33), (torch.uint8, 5), (torch.bfloat16, 64), (torch.complex128, 3),
         (torch.bool, 7), (torch.float8_e4m3fn, 129)],
        ids=str,
    )  # fmt: skip
    def test_rows(self, dtype: torch.dtype, width: int) -> None:
        table = random_rows(dtype, width)
        draw = np.random.default_rng(0)
        batches = [draw.zipf(1.5, 20) % ROWS for _ in range(6)]
        for capacity in (0, 10 * width * dtype.itemsize, 1 << 30):
            unified = self.make(table)
            for cache in self.kinds(unified, batches, capacity):
                unified.stats.reset()
                for number, batch in enumerate(batches):
                    ids = torch.from_numpy(batch)
                    if number % 2:
                        ids = ids.to(self.device)
                    out = torch.zeros(20, width, dtype=dtype, device=self.device)
                    assert cache.gather_rows(ids, out=out) is out
                    assert same_bits(out, table, batch)
                stats = unified.stats
                assert stats.cache_hits + stats.cache_misses == 120
                assert (stats.cache_hits > 0) == (capacity > 0)
                if capacity == 1 << 30 and isinstance(cache.policy, Static):
                    assert stats.cache_misses == 0

    def test_bad_rows_and_empty_batches(self) -> None:
        unified = self.make(random_rows(torch.float32, 4))
        for cache in self.kinds(unified, [np.array([1, 2])], 1 << 20):
            assert cache.gather_rows([]).shape == (0, 4)
            for bad in (ROWS, -1):
                ids = torch.tensor([1, bad]).to(self.device)
                with pytest.raises(RowIndexError, match=f"Row {bad}, the id at position 1"):
                    cache.gather_rows(ids)
