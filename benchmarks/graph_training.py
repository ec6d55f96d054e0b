"""What a graph's batch costs with its features, what caches of them hit, and what training gains.

    OMP_NUM_THREADS=1 python benchmarks/graph_training.py [--check] [--quick] [--only STEP]

The graph is that of `graph.py`: a million nodes, 20 million edges, both ends by a power law.
**loader**: `graph_loader` over 128 float32 columns, seeds that it has not seen, against
``index_select`` of rows that were not read before either; both in memory, one thread. **cache**:
what a tenth of the rows hits, a tenth of the nodes being trained on for two epochs. Sampling is
deterministic, so the plan tells exactly which rows are read (`planned_accesses`); a pilot samples
every tenth batch. **gpu**, where there is one: its threads read the rows where they lie, against
``index_select`` and a copy. **debian**: see `debian_graph.py`.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import debian_graph
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from batchloom.gpu_access import HotRowCache, UnifiedTensor
from batchloom.gpu_access.cache_policies import Belady, Lru, Static, simulate
from batchloom.jobs import pack, plan
from batchloom.samplers.graph import (
    CSCGraph,
    GraphFeatures,
    NeighborSampler,
    graph_loader,
    packed_features,
    planned_accesses,
)
from graph import power_law
from harness import Row, best, interleaved, load, measured, run_benchmark, run_steps, say
from torch.nn.functional import cross_entropy
from torch_geometric.nn import SAGEConv

FANOUTS = [15, 10]
BATCH, WIDTH, AT_ONCE = 1024, 128, 8


class Bench:
    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.nodes, edges = (100_000, 2_000_000) if quick else (1_000_000, 20_000_000)
        self.rounds = 4 if quick else 9
        self.rows: list[Row] = []
        self.graph: CSCGraph = power_law(self.nodes, edges)

    def planned(self, name: str, **options: Any) -> Path:
        """Plan a table that has a row a node."""
        table = self.folder / "nodes.parquet"
        if not table.exists():
            part = np.random.default_rng(4).random(self.nodes).astype(np.float32)
            pq.write_table(pa.table({"part": part}), table)
        plan("shuffle", table, out=self.folder / name, batch_size=BATCH, seed=0, workers=0,
             **options)  # fmt: skip
        return self.folder / name

    # --- sampling and gathering -------------------------------------------------------------------

    def loader(self) -> None:
        made = self.planned("all", epochs=(0, 2))
        x, y = torch.randn(self.nodes, WIDTH), torch.randint(10, (self.nodes,))
        sampler = NeighborSampler.from_graph(self.graph, FANOUTS, seed=0)
        turns = self.rounds + 1
        every = planned_accesses(made, sampler, epochs=[1])
        others = list(itertools.islice(every, AT_ONCE * turns))  # of the reference alone
        ids = itertools.cycle([torch.from_numpy(nodes) for nodes in others])
        batches = iter(graph_loader(made, sampler, {"x": x, "y": y}, epochs=[0]))
        bare = iter(graph_loader(made, sampler, epochs=[0]))

        def whole() -> int:
            return sum(next(batches).x.shape[0] for _ in range(AT_ONCE))

        def sampled() -> int:
            return sum(next(bare).num_nodes for _ in range(AT_ONCE))

        def selected() -> int:
            return sum(len(torch.index_select(x, 0, next(ids))) for _ in range(AT_ONCE))

        costs = interleaved(turns - 1, whole, selected, sampled, warm=1)
        each = [best(c) for c in costs]
        shown = [f"{1e3 * c.cpu / AT_ONCE:.1f} ms" for c in each]
        ratio = each[0].cpu / each[1].cpu
        ok = None if self.quick else ratio <= 1.6  # a small table lies in the processor's caches
        rows = each[0].value / AT_ONCE
        self.rows += [
            Row(f"a batch of {BATCH}, {FANOUTS}, {rows / 1e3:.0f} k rows of {WIDTH} float32",
                shown[0], f"index_select {shown[1]}", f"{ratio:.2f} x", "≤ 1.6", ok),
            Row("  of it the sampling", shown[2], "", f"{each[2].cpu / each[0].cpu:.0%}"),
        ]  # fmt: skip
        self.mapped(made, sampler, x)

    def mapped(self, made: Path, sampler: Any, x: torch.Tensor) -> None:
        """The same features as a memory map, and as a packed table, their pages in memory."""
        path = self.folder / "x.bin"
        x.numpy().tofile(path)
        table = self.folder / "x.arrow"
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.numpy().ravel()), WIDTH)
        columns = pa.table({"x": lists})
        with pa.ipc.new_file(str(table), columns.schema) as writer:
            writer.write_table(columns)
        pack(table, out=self.folder / "packed")
        for name, features in (
            ("a memory map", np.memmap(path, np.float32, "r", shape=(self.nodes, WIDTH))),
            ("a packed table", packed_features(self.folder / "packed")["x"]),
        ):
            batches = iter(graph_loader(made, sampler, {"x": features}, epochs=[0]))

            def some(batches: Any = batches) -> None:
                for _ in range(AT_ONCE):
                    next(batches)

            cost = best([measured(some) for _ in range(4)])
            self.rows.append(
                Row(f"  from {name}", f"{1e3 * cost.cpu / AT_ONCE:.1f} ms", load(), "")
            )

    # --- caches -----------------------------------------------------------------------------------

    def cache(self) -> None:
        made = self.planned("tenth", epochs=(0, 2), where="part < 0.1")
        sampler = NeighborSampler.from_graph(self.graph, FANOUTS, seed=0)
        accesses = planned_accesses(made, sampler)
        told = measured(lambda: list(accesses))
        batches, slots, n = told.value, self.nodes // 10, self.nodes
        counts = np.zeros(n, np.int64)
        for nodes in batches:
            counts[nodes] += 1
        pilot = planned_accesses(made, sampler, every=10).counts()
        degree = np.bincount(self.graph.row, minlength=n)
        rate = {
            "planned, Belady": simulate(Belady(batches, n, slots), batches),
            "planned, counts": simulate(Static(counts, slots), batches),
            "pilot of a tenth": simulate(Static(pilot, slots), batches),
            "degree order": simulate(Static(degree, slots), batches),
            "LRU": simulate(Lru(n, slots), batches),
        }
        read = sum(map(len, batches))
        title = f"hits of 10 % of the rows, {len(batches)} batches, {read / 1e6:.1f} M reads: "
        for name in ("degree order", "LRU"):
            gain = rate["planned, Belady"] - rate[name]
            self.rows.append(
                Row(f"{title}Belady", f"{rate['planned, Belady']:.1%}", f"{name} {rate[name]:.1%}",
                    f"{gain:+.1%}", "≥ 0", gain >= 0)
            )  # fmt: skip
            title = "  "
        for name in ("planned, counts", "pilot of a tenth"):
            self.rows.append(Row(f"  {name}, read before", f"{rate[name]:.1%}", "", ""))
        self.rows.append(
            Row("  telling what is read", f"{1e3 * told.cpu / len(batches):.1f} ms a batch", "", "")
        )

    # --- a GPU ------------------------------------------------------------------------------------

    def gpu(self) -> None:
        """Rows that the GPU reads where they lie, against a gather here and a copy."""
        if not torch.cuda.is_available():
            say("there is no GPU")
            return
        torch.set_num_threads(min(16, os.cpu_count() or 1))
        made = self.planned("all", epochs=(0, 2))
        x, y = torch.randn(self.nodes, WIDTH), torch.randint(10, (self.nodes,))
        sampler = NeighborSampler.from_graph(self.graph, FANOUTS, seed=0)
        accesses = planned_accesses(made, sampler, epochs=[1])
        ids = [torch.from_numpy(nodes) for nodes in itertools.islice(accesses, 30)]
        features = GraphFeatures({"x": x}, device="cuda")

        def read() -> None:
            for nodes in ids:
                features.start({None: nodes.pin_memory()}).wait()
            torch.cuda.synchronize()

        def copied() -> None:
            for nodes in ids:
                torch.index_select(x, 0, nodes).to("cuda")
            torch.cuda.synchronize()

        walls = [1e3 * min(c.wall for c in costs) / len(ids)
                 for costs in interleaved(7, read, copied, warm=2)]  # fmt: skip
        name, ratio = torch.cuda.get_device_name(), walls[0] / walls[1]
        self.rows.append(
            Row(f"{name}: rows of a batch, ms", f"{walls[0]:.2f}", f"gather, copy {walls[1]:.2f}",
                f"{ratio:.2f} x", "≤ 0.6", ratio <= 0.6)
        )  # fmt: skip
        self.cached_rows(made, sampler, x)
        for workers in (0, 4):
            seconds = [
                self.trained(graph_loader(made, sampler, {"x": x, "y": y}, epochs=[0],
                                          num_workers=workers, device=device))
                for device in ("cuda", "cpu")
            ]  # fmt: skip
            self.rows.append(
                Row(f"  GraphSAGE 2 x 256, {workers} workers, ms a batch", f"{seconds[0]:.1f}",
                    f"batch.to(…) {seconds[1]:.1f}", f"{seconds[1] / seconds[0]:.2f} x faster")
            )  # fmt: skip

    def cached_rows(self, made: Path, sampler: Any, x: torch.Tensor, warm: int = 40) -> None:
        """The same rows with a tenth of the table in the GPU's memory."""
        accesses = planned_accesses(made, sampler, epochs=[1])
        batches = list(itertools.islice(accesses, 3 * warm))
        counts = np.zeros(self.nodes, np.int64)
        for nodes in batches:
            counts[nodes] += 1
        table = UnifiedTensor.from_tensor(x, device="cuda")
        size = x.nbytes // 10
        plain = 0.0
        for name, rows in (
            ("no cache", table),
            ("counts by the plan", HotRowCache.from_counts(table, counts, size)),
            ("Belady by the plan", HotRowCache.from_plan(table, batches, size)),
        ):
            begun, hits = 0.0, table.stats.cache_hits
            for number, nodes in enumerate(batches):
                if number == warm:
                    torch.cuda.synchronize()
                    begun = time.perf_counter()
                rows.gather_rows(torch.from_numpy(nodes).to("cuda"))
            torch.cuda.synchronize()
            spent = 1e3 * (time.perf_counter() - begun) / (len(batches) - warm)
            plain = plain or spent
            share = (table.stats.cache_hits - hits) / sum(map(len, batches))
            self.rows.append(
                Row(f"  ids on the GPU, {name}: ms a batch", f"{spent:.2f}, {share:.0%} hits",
                    f"none {plain:.2f}", f"{spent / plain:.2f} x")
            )  # fmt: skip

    def trained(self, loader: Any, batches: int = 100) -> float:
        """Return the milliseconds of a training step, the first batches left out."""
        torch.manual_seed(0)
        first, second = SAGEConv(WIDTH, 256).cuda(), SAGEConv(256, 10).cuda()
        optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()])
        start = 0.0
        for number, batch in enumerate(itertools.islice(loader, batches + 20)):
            if number == 20:
                torch.cuda.synchronize()
                start = time.perf_counter()
            batch = batch.to("cuda")
            x = second(first(batch.x, batch.edge_index).relu(), batch.edge_index)
            optimizer.zero_grad()
            cross_entropy(x[: batch.batch_size], batch.y).backward()
            optimizer.step()
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / batches

    def debian(self) -> None:
        self.rows += debian_graph.run(self.folder, self.quick)


STEPS = ("loader", "cache", "gpu", "debian")


def run(folder: Path, quick: bool, only: Sequence[str]) -> list[Row]:
    torch.set_num_threads(1)
    bench = Bench(folder, quick)
    run_steps([(name, getattr(bench, name)) for name in STEPS if not only or name in only])
    return bench.rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run, STEPS))
