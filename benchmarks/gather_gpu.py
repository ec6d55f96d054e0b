"""The GPU's part of ``gather.py``: what zero-copy gathers reach, against the bus and the others.

The limit is a copy of pinned memory to the GPU in one piece. *Single* figures are wall time of a
call that a caller waits for; *streamed* ones are of calls that were started one after another and
waited for at the end, as a loader prefetches. Every call has ids of its own; rows are drawn from
all of a table of a gigabyte, so no cache holds them. What larger tables cost is measured beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from batchloom.gpu_access import HostTable, HotRowCache, UnifiedTensor, select_backend
from batchloom.gpu_access.backends import ZeroCopy
from batchloom.gpu_access.kernels import launch
from batchloom.gpu_access.line_requests import line_requests
from batchloom.gpu_access.request import Request, new_status
from batchloom.gpu_access.row_table import RowTable
from batchloom.gpu_access.tiling import tile

__all__ = ["GpuRun"]

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
GIB = 1 << 30

Record = Callable[[dict[str, Any]], None]


class OutOfTimeError(Exception):
    """The seconds given are used up."""


@dataclass
class GpuRun:
    """All measurements, the most wanted first.

    Attributes
    ----------
    seconds : float
        No new measurement starts later.
    record : callable
        Is given each finding at once.
    table_bytes : int
    """

    seconds: float
    record: Record
    table_bytes: int = 8 * GIB

    def __call__(self) -> None:
        """Measure until done or out of time."""
        self._stop = time.perf_counter() + self.seconds
        self._draw = torch.Generator(device="cuda").manual_seed(0)
        start = time.perf_counter()
        self._host = HostTable.allocate(self.table_bytes // 4096, 4096, torch.uint8)
        self._host.tensor.view(torch.int64)[:] = torch.arange(512)  # every page is touched
        filled = time.perf_counter()
        self._kept = UnifiedTensor.from_tensor(self._host, backend="zero_copy")  # stays mapped
        self.record(
            {
                "what": "table",
                "GiB": self.table_bytes / GIB,
                "fill_s": round(filled - start, 2),
                "register_s": round(time.perf_counter() - filled, 2),
                "gpu": torch.cuda.get_device_name(),
                "backend": select_backend().name,
            }
        )
        warm = self._ids(self._kept, 10_000, 200)  # clocks and the bus rise under load
        for ids in warm:
            self._kept.gather_rows(ids)
        self._limit = self._copy_rate()
        try:
            for step in (
                self._against_others,
                self._sizes,
                self._alignment,
                self._counts,
                self._cached,
                self._grid,
                self._tiles,
                self._beside_training,
                self._sorting,
                self._all_counts,
            ):
                step()
        except OutOfTimeError:
            self.record({"what": "out of time", "seconds": self.seconds})

    # --- the limit --------------------------------------------------------------------------------

    def _copy_rate(self) -> float:
        """Return GB/s of pinned copies to the GPU in one piece."""
        best = 0.0
        for nbytes in (4 << 20, 64 << 20, 512 << 20):
            pinned = torch.ones(nbytes, dtype=torch.uint8).pin_memory()
            there = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
            copy = partial(there.copy_, pinned, non_blocking=True)
            rate = nbytes / self._streamed(copy, 8) / 1e9
            best = max(best, rate)
            self.record({"what": "pinned copy", "bytes": nbytes, "GB/s": round(rate, 2)})
        return best

    # --- comparisons ------------------------------------------------------------------------------

    def _against_others(self) -> None:
        for width in (512, 1024, 256, 2048, 4096, 128, 64):
            self._compare(width, 100_000, ("zero_copy", "alias", "staged", "cpu"))

    def _sizes(self) -> None:
        """A GPU has the pages of so much memory at hand; beyond, each row costs a look-up."""
        for nbytes in (GIB // 4, GIB, 2 * GIB, 4 * GIB, self.table_bytes):
            for sort in (False, True):
                self._gather(self._table(512, nbytes=nbytes), 100_000, "zero_copy", sort=sort)

    def _counts(self) -> None:
        for count in (1_000, 10_000, 1_000_000):
            others = ("alias", "staged", "cpu") if count <= 100_000 else ("alias",)
            self._compare(512, count, ("zero_copy", *others))

    def _all_counts(self) -> None:
        for width in WIDTHS:
            for count in COUNTS:
                if count != 100_000 and width != 512:
                    self._compare(width, count, ("zero_copy", "alias"))

    def _sorting(self) -> None:
        for nbytes in (GIB, self.table_bytes):
            for width in (64, 128, 512):
                for count in (20_000, 100_000, 1_000_000):
                    for sort in (False, True):
                        table = self._table(width, nbytes=nbytes)
                        self._gather(table, count, "zero_copy", sort=sort)

    def _alignment(self) -> None:
        cases = [(512, 0), (512, 64), (516, 0), (1028, 0), (1200, 0), (2408, 0), (132, 0), (516, 4)]
        for width, base in cases:
            table = self._table(width, base)
            for lead_in in (True, False):
                self._direct(table, 100_000, lead_in=lead_in, base=base)
            self._gather(table, 100_000, "alias", base=base)

    def _grid(self) -> None:
        for width in (512, 64):
            for programs in (16, 33, 66, 132, 264, 528, 1056, 4224):
                self._direct(self._table(width), 100_000, programs=programs)

    def _tiles(self) -> None:
        for width in (64, 256, 512, 4096):
            table = self._table(width)
            for rows in (1, 4, 16, 64):
                if rows * tile(table).block <= 8192:
                    self._direct(table, 100_000, rows=rows)
            self._direct(table, 100_000, word=4)

    def _beside_training(self) -> None:
        """How much a gather slows a matrix product, and the other way round, by the grid's cap."""
        self._check_time()
        left = torch.rand(4096, 4096, device="cuda", dtype=torch.bfloat16)
        out = torch.empty(100_000, 512, dtype=torch.uint8, device="cuda")
        alone = self._streamed(lambda: left @ left, 50)
        for programs in (33, 132, 528):
            unified = self._unified(self._table(512), "zero_copy")
            unified._backend = ZeroCopy(unified.device, programs)
            ids = self._ids(unified, 100_000, 8)
            torch.cuda.synchronize()
            start = time.perf_counter()
            futures = [unified.gather_rows_async(i, out=out) for i in ids]
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            products = 0
            while not futures[-1].done() and products < 400:
                for _ in range(2):
                    left @ left
                products += 2
                if products % 16 == 0:
                    torch.cuda.current_stream().synchronize()
            end.record()
            for future in futures:
                future.wait()
            gathered = time.perf_counter() - start
            torch.cuda.synchronize()
            each = begin.elapsed_time(end) / 1e3 / max(1, products)
            self.record(
                {
                    "what": "beside a matrix product",
                    "programs": programs,
                    "product_slower": round(each / alone, 3),
                    "gather_GB/s": round(len(ids) * 51.2e6 / gathered / 1e9, 2),
                }
            )

    def _cached(self) -> None:
        """Reads by a power law, a share of the table in the GPU's memory."""
        self._check_time()
        table, count = self._table(2048), 100_000
        unified = self._unified(table, "zero_copy")
        out = torch.empty(count, table.row_bytes, dtype=torch.uint8, device="cuda")

        def skewed() -> torch.Tensor:
            drawn = torch.rand(count, device="cuda", generator=self._draw)
            return (drawn**4 * len(unified)).long()

        scores = np.arange(len(unified), 0, -1, dtype=np.float32)  # the first are read most
        for share in (0.0, 0.05, 0.2):
            self._check_time()
            capacity = int(share * self.table_bytes)
            cache = HotRowCache.from_counts(unified, scores, capacity)
            fresh = iter([skewed() for _ in range(9)])
            unified.stats.reset()
            seconds = self._streamed(partial(_next_batch, cache, fresh, out), 8, warm=1)
            self._found(
                "cached",
                table,
                count * table.row_bytes,
                seconds,
                ids=count,
                share=share,
                hit_rate=round(unified.stats.hit_rate, 3),
            )
            del cache  # its memory, before the next one's

    # --- one measurement --------------------------------------------------------------------------

    def _compare(self, width: int, count: int, backends: tuple[str, ...]) -> None:
        for backend in backends:
            self._gather(self._table(width), count, backend)

    def _gather(
        self, table: RowTable, count: int, backend: str, sort: bool = False, base: int = 0
    ) -> None:
        """Record a whole call of `gather_rows`, ids on the GPU, into an output that is reused."""
        self._check_time()
        unified = self._unified(table, backend)
        nbytes = count * table.row_bytes
        calls = max(3, min(20, int(4e9 / nbytes))) if backend in ("zero_copy", "alias") else 4
        ids = self._ids(unified, count, 2 * calls + 1)
        out = torch.empty(count, table.row_bytes, dtype=torch.uint8, device="cuda")
        unified.gather_rows(ids.pop(), out=out, sort=sort)  # compiles, makes buffers
        single, cpu = [], time.process_time()
        for _ in range(calls):
            torch.cuda.synchronize()
            start = time.perf_counter()
            unified.gather_rows(ids.pop(), out=out, sort=sort)
            torch.cuda.synchronize()
            single.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / calls
        start = time.perf_counter()
        futures = [unified.gather_rows_async(some, out=out, sort=sort) for some in ids]
        for future in futures:
            future.wait()
        torch.cuda.synchronize()
        streamed = (time.perf_counter() - start) / len(ids)
        self._found(
            "gather",
            table,
            nbytes,
            streamed,
            backend=backend,
            ids=count,
            sort=sort,
            base=base,
            single_ms=round(statistics.median(single) * 1e3, 3),
            cpu_ms=round(cpu * 1e3, 3),
        )

    def _direct(
        self,
        table: RowTable,
        count: int,
        *,
        lead_in: bool | None = None,
        programs: int = 0,
        rows: int = 0,
        word: int = 0,
        base: int = 0,
    ) -> None:
        """Record the kernel alone, by the GPU's clock."""
        self._check_time()
        unified = self._unified(table, "zero_copy")
        tiling = tile(table, word, lead_in)  # as if the output were aligned to a word only
        if rows:
            tiling = replace(tiling, rows=rows)
        backend = unified._backend
        assert isinstance(backend, ZeroCopy)
        cap = programs or backend.programs
        out = torch.empty(count, table.row_bytes, dtype=torch.uint8, device="cuda")
        status = new_status(count, out.device)
        ids = self._ids(unified, count, 9)

        def once() -> None:
            launch(Request(table, ids.pop(), out, status), tiling, cap)

        seconds = self._streamed(once, 8, warm=1)
        mode: Literal["kernel", "plain"] = "kernel" if tiling.lead_in else "plain"
        self._found(
            "kernel",
            table,
            count * table.row_bytes,
            seconds,
            ids=count,
            base=base,
            lead_in=tiling.lead_in,
            programs=cap,
            tile=f"{tiling.rows}x{tiling.block}x{tiling.word}",
            lines=round(line_requests(table, np.arange(128), mode) / 128, 2),
        )

    def _found(
        self, what: str, table: RowTable, nbytes: int, seconds: float, **more: object
    ) -> None:
        rate = nbytes / seconds / 1e9
        finding = {
            "what": what,
            "row_bytes": table.row_bytes,
            "stride": table.stride,
            "MiB": table.nbytes >> 20,
            **more,
        }
        finding |= {"GB/s": round(rate, 2), "of_limit": round(rate / self._limit, 3)}
        self.record(finding)

    # --- helpers ----------------------------------------------------------------------------------

    def _table(self, width: int, base: int = 0, nbytes: int = GIB) -> RowTable:
        """Return the region's first bytes as rows of `width` bytes, the first of them at `base`."""
        whole = self._host.table
        place, rows = whole.address + base, (nbytes - base) // width
        return RowTable(place, rows, (width,), torch.uint8, width, whole.owner, whole.region)

    def _unified(self, table: RowTable, backend: str) -> UnifiedTensor:
        return UnifiedTensor(table, select_backend(backend), forced=True)

    def _ids(self, unified: UnifiedTensor, count: int, times: int) -> list[torch.Tensor]:
        def draw() -> torch.Tensor:
            return torch.randint(0, len(unified), (count,), device="cuda", generator=self._draw)

        return [draw() for _ in range(times)]

    def _streamed(self, function: Callable[[], Any], times: int, warm: int = 2) -> float:
        """Return seconds a call of calls started one after another, by the GPU's clock."""
        for _ in range(warm):
            function()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            function()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / times

    def _check_time(self) -> None:
        if time.perf_counter() > self._stop:
            raise OutOfTimeError


def _next_batch(cache: HotRowCache, ids: Iterator[torch.Tensor], out: torch.Tensor) -> None:
    cache.gather_rows(next(ids), out=out)
