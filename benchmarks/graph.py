"""Neighbour sampling: edges a CPU second, against numpy, against a fused loop, with two threads.

    OMP_NUM_THREADS=1 python benchmarks/graph.py [--check] [--quick]

The graph has a million nodes and 20 million edges; sources and targets follow a power law. A round
samples the same batches of 1,024 nodes with every implementation, turn by turn, each with new
draws; what counts is the round that was least disturbed. The references are honest ones: the numpy
one returns the same arrays in the same order, with replacement as numpy can; the fused loop has the
same draws, the same words of the same table, and takes an edge from its draw to its number before
the next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from batchloom.samplers.graph import CSCGraph
from batchloom.samplers.graph.draws import Labor, Weighted
from batchloom.samplers.graph.relations import Relation
from batchloom.samplers.graph.sampling import Sampling
from harness import Cost, Row, best, interleaved, load, run_benchmark, say
from numba import njit

_G = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_LOW = np.uint64(0xFFFF_FFFF)


def power_law(nodes: int, edges: int, seed: int = 0) -> CSCGraph:
    """Make a graph whose in- and out-degrees follow the same power law."""
    rng = np.random.default_rng(seed)
    first, share = 5.0, 0.15
    low, high = first**share, (nodes + first) ** share
    names = rng.permutation(nodes)

    def ends() -> Any:
        ranks = (low + rng.random(edges) * (high - low)) ** (1 / share) - first
        return names[np.minimum(ranks, nodes - 1).astype(np.int64)]

    made = CSCGraph.from_edge_index(np.stack([ends(), ends()]), nodes)
    return CSCGraph(made.colptr, made.row, check=False)


def numpy_reference(graph: CSCGraph, seeds: Any, fanouts: Any, rng: Any) -> Any:
    """Sample with replacement by whole arrays; the same outputs."""
    colptr, row = graph.colptr, graph.row
    nodes, begin = seeds, 0
    parts: list[list[Any]] = [[], [], []]
    for fanout in fanouts:
        frontier = nodes[begin:]
        start = colptr[frontier]
        degree = colptr[frontier + 1] - start
        some = np.flatnonzero(degree > 0)
        drawn = (rng.random((some.size, fanout)) * degree[some, None]).astype(np.int64)
        edge = (start[some, None] + drawn).ravel()
        both = np.concatenate([nodes, row[edge]])
        _, first, place = np.unique(both, return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty(order.size, np.int64)
        number[order] = np.arange(order.size)
        target = np.repeat(some + begin, fanout)
        begin = nodes.size
        for part, values in zip(parts, (number[place][begin:], target, edge), strict=True):
            part.append(values)
        nodes = both[first[order]]
    return nodes, *(np.concatenate(p) for p in parts)


@njit(nogil=True, inline="always")
def _mix(x):
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(nogil=True, inline="always")
def _high(x, y):
    a, b, c, d = x >> _S32, x & _LOW, y >> _S32, y & _LOW
    middle = a * d + ((b * d) >> _S32)
    return a * c + (middle >> _S32) + ((b * c + (middle & _LOW)) >> _S32)


@njit(nogil=True)
def fused_loop(colptr, row, seeds, fanouts, key, table, call):
    """Sample as ours does, edge by edge; arrays grow as they must."""
    stamp = np.uint64(call) << _S32
    nodes = np.empty(4 * seeds.size, np.int64)
    out = np.empty((3, 16 * seeds.size), np.int64)
    for i in range(seeds.size):
        nodes[i] = seeds[i]
        table[seeds[i]] = stamp | np.uint64(i)
    begin, end, count, n = 0, seeds.size, seeds.size, 0
    for fanout in fanouts:
        for i in range(begin, end):
            v = nodes[i]
            start = colptr[v]
            degree = colptr[v + 1] - start
            take = min(fanout, degree)
            own = _mix(key ^ (np.uint64(v) * _G))
            if n + take > out.shape[1]:
                grown = np.empty((3, 2 * out.shape[1] + take), np.int64)
                grown[:, :n] = out[:, :n]
                out = grown
            if count + take > nodes.size:
                more = np.empty(2 * nodes.size + take, np.int64)
                more[:count] = nodes[:count]
                nodes = more
            first = n
            for j in range(take):
                x = np.int64(j)
                if take < degree:
                    bound = degree - take + j
                    bits = _mix(own + np.uint64(j + 1) * _G)
                    x = np.int64(_high(bits, np.uint64(bound + 1)))
                    for z in range(first, n):
                        if out[2, z] == start + x:
                            x = bound
                            break
                u = np.int64(row[start + x])
                word = table[u]
                if word & ~_LOW == stamp:
                    number = np.int64(word & _LOW)
                else:
                    number = count
                    table[u] = stamp | np.uint64(count)
                    nodes[count] = u
                    count += 1
                out[0, n], out[1, n], out[2, n] = number, i, start + x
                n += 1
        begin, end = end, count
    return nodes[:count].copy(), out[0, :n].copy(), out[1, :n].copy(), out[2, :n].copy()


class Bench:
    def __init__(self, quick: bool) -> None:
        nodes, edges = (100_000, 2_000_000) if quick else (1_000_000, 20_000_000)
        say("making the graph")
        self.graph = power_law(nodes, edges)
        self.rounds, self.nodes = 5 if quick else 9, nodes
        rng = np.random.default_rng(1)
        self.batches = [rng.choice(nodes, 1024, replace=False) for _ in range(8)]
        self.draws = 0
        self.rows: list[Row] = []

    def sampling(self, fanouts: Any, **options: Any) -> Sampling:
        draws = {"draws": options.pop("draws")} if "draws" in options else {}
        return Sampling([Relation(self.graph, fanouts, **draws)], [self.nodes], **options)

    def ours(self, sampling: Sampling) -> int:
        edges = 0
        for batch in self.batches:
            self.draws += 1
            edges += sampling.sample([batch], self.draws).edge[0].size
        return edges

    def numpy(self, fanouts: Any) -> int:
        self.draws += 1
        rng = np.random.default_rng(self.draws)
        return sum(numpy_reference(self.graph, b, fanouts, rng)[3].size for b in self.batches)

    def fused(self, fanouts: Any, table: Any) -> int:
        edges = 0
        for batch in self.batches:
            self.draws += 1
            made = fused_loop(
                self.graph.colptr, self.graph.row, batch, np.array(fanouts), np.uint64(self.draws),
                table, self.draws,
            )  # fmt: skip
            edges += made[3].size
        return edges

    def check_that_they_agree(self, fanouts: Any) -> None:
        table = np.zeros(self.nodes, np.uint64)
        made = self.sampling(fanouts).sample([self.batches[0]], 77)
        nodes, source, target, edge = fused_loop(
            self.graph.colptr, self.graph.row, self.batches[0], np.array(fanouts), np.uint64(77),
            table, 1,
        )  # fmt: skip
        same = [(made.nodes[0], nodes), (made.row[0], source), (made.col[0], target),
                (made.edge[0], edge)]  # fmt: skip
        if not all(np.array_equal(a, b) for a, b in same):
            raise RuntimeError("the fused loop samples something else")

    def compare(self, fanouts: Any) -> None:
        table = np.zeros(self.nodes, np.uint64)
        self.check_that_they_agree(fanouts)
        kinds = {
            "two-phase, table": partial(self.ours, self.sampling(fanouts)),
            "numpy, with replacement": partial(self.numpy, fanouts),
            "fused loop, table": partial(self.fused, fanouts, table),
            "with replacement": partial(self.ours, self.sampling(fanouts, replace=True)),
            "hash": partial(self.ours, self.sampling(fanouts, table_bytes=0)),
            "disjoint": partial(self.ours, self.sampling(fanouts, disjoint=True)),
        }
        for function in kinds.values():
            function()
        costs = [best(c) for c in interleaved(self.rounds, *kinds.values())]
        rate = {k: c.value / c.cpu / 1e6 for k, c in zip(kinds, costs, strict=True)}
        shown = {k: f"{r:.1f} M edges/CPU s" for k, r in rate.items()}
        reference = f"numpy {shown['numpy, with replacement']}"
        for kind, bar in (("two-phase, table", 5.0), ("with replacement", 5.0), ("hash", 0.0),
                          ("disjoint", 2.0)):  # fmt: skip
            ratio = rate[kind] / rate["numpy, with replacement"]
            self.rows.append(
                Row(f"{list(fanouts)} {kind}", shown[kind], reference, f"{ratio:.1f} x",
                    f"≥ {bar:.0f}" if bar else "", ratio >= bar if bar else None)
            )  # fmt: skip
        ratio = rate["two-phase, table"] / rate["fused loop, table"]
        self.rows.append(
            Row(f"{list(fanouts)} two-phase against fused", shown["two-phase, table"],
                f"fused {shown['fused loop, table']}", f"{ratio:.2f} x", "≥ 1.8", ratio >= 1.8)
        )  # fmt: skip

    def threads(self, fanouts: Any) -> None:
        """Two threads that live as long as a loader's, and two that only read at random."""
        sampling = self.sampling(fanouts)
        row, places = (
            self.graph.row,
            np.random.default_rng(3).integers(0, self.graph.num_edges, 1 << 20),
        )
        for name, work, bar in (
            ("two threads against one, CPU", lambda: self.ours(sampling), 1.15),
            ("  the same of bare reads at random", lambda: len(np.take(row, places)), None),
        ):
            alone, together = self.beside_itself(work)
            ratio = together.cpu / together.value * alone.value / alone.cpu
            self.rows.append(
                Row(f"{list(fanouts)} {name}" if bar else name, f"{together.cpu * 1e3:.1f} ms",
                    f"{alone.cpu * 1e3:.1f} ms", f"{ratio:.2f} x", "≤ 1.15" if bar else "",
                    ratio <= bar if bar else None)
            )  # fmt: skip
            self.rows.append(
                Row("  wall", load(), "", f"{alone.wall / together.wall:.2f} x faster",
                    "aim 1.6" if bar else "")
            )  # fmt: skip

    def beside_itself(self, work: Callable[[], int], times: int = 8) -> tuple[Cost, Cost]:
        """Return what work costs done by one thread, and as much by two."""

        def some(count: int) -> int:
            return sum(work() for _ in range(count))

        def two() -> int:
            with ThreadPoolExecutor(2) as pool:
                return sum(pool.map(some, [times // 2] * 2))

        some(2), two()
        alone, together = interleaved(3 * self.rounds, partial(some, times), two)
        least = min(c.wall for c in alone), min(c.wall for c in together)
        return replace(best(alone), wall=least[0]), replace(best(together), wall=least[1])

    def other_draws(self, fanouts: Any) -> None:
        weights = np.random.default_rng(2).random(self.graph.num_edges) + 0.1
        plain = self.sampling(fanouts)
        kinds = {
            "weighted": self.sampling(fanouts, draws=Weighted(self.graph, weights)),
            "LABOR": self.sampling(fanouts, draws=Labor()),
        }
        uniform = best(interleaved(3, partial(self.ours, plain))[0])
        for name, sampling in kinds.items():
            self.ours(sampling)
            cost = best(interleaved(3, partial(self.ours, sampling))[0])
            rate = [c.value / c.cpu / 1e6 for c in (cost, uniform)]
            nodes = [s.sample([self.batches[0]], 5).nodes[0].size for s in (sampling, plain)]
            self.rows.append(
                Row(f"{list(fanouts)} {name}", f"{rate[0]:.1f} M edges/CPU s",
                    f"uniform {rate[1]:.1f}", f"{nodes[0] / nodes[1]:.2f} x nodes")
            )  # fmt: skip


def run(folder: Path, quick: bool) -> list[Row]:
    start = time.perf_counter()
    bench = Bench(quick)
    for fanouts in ((15, 10), (25, 10)):
        bench.compare(fanouts)
    bench.threads((15, 10))
    bench.other_draws((15, 10))
    say(f"{time.perf_counter() - start:.0f} s")
    return bench.rows


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__ or "", run))
