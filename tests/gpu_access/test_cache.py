"""Caches: decisions against an exhaustive search, and rows that are always the table's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import ParameterError, SelectionError
from batchloom.gpu_access import HotRowCache, UnifiedTensor
from batchloom.gpu_access.cache_policies import Belady, Lru, Static, simulate
from batchloom.tests.contracts.cache import CacheContract
from hypothesis import given, settings
from hypothesis import strategies as st


def most_hits(batches, slots):
    """The most hits that any sequence of decisions can have, by trying all of them."""
    states = {frozenset(): 0}
    for batch in map(frozenset, batches):
        following = {}
        for held, hits in states.items():
            now = hits + len(held & batch)
            reach = sorted(held | batch)
            for size in range(min(slots, len(reach)) + 1):
                for kept in itertools.combinations(reach, size):
                    state = frozenset(kept)
                    following[state] = max(following.get(state, -1), now)
        states = following
    return max(states.values())


plans = st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=4), min_size=1, max_size=6)


@settings(max_examples=80)
@given(plans, st.integers(0, 4))
def test_belady_is_the_best_there_is(batches, slots):
    policy = Belady(batches, 6, slots)
    simulate(policy, batches)
    assert policy.hits == most_hits(batches, slots)


@settings(max_examples=150)
@given(
    st.lists(st.lists(st.integers(0, 29), max_size=12), min_size=1, max_size=25),
    st.integers(0, 31),
)
def test_lru_keeps_the_last_used_and_is_never_above_belady(batches, slots):
    lru, recent, hits = Lru(30, slots), [], 0
    for batch in batches:
        held = set(recent[-slots:] if slots else [])
        hits += len(held & set(batch))
        recent = [r for r in recent if r not in batch] + list(dict.fromkeys(batch[::-1]))[::-1]
        lru.visit(np.array(batch, np.int64))
        kept = set(lru.row_in[lru.row_in >= 0].tolist())
        assert kept == set(recent[-slots:] if slots else [])
    assert lru.hits == hits
    best = Belady(batches, 30, slots)
    simulate(best, batches)
    assert best.hits >= lru.hits
    counts = np.bincount(np.concatenate([np.unique(b).astype(int) for b in batches]), minlength=30)
    static = Static(counts, slots)
    simulate(static, batches)
    assert best.reads <= static.reads


def test_policies_agree_with_their_slots():
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, 200, 40) for _ in range(50)]
    for policy in (Lru(200, 30), Belady(batches, 200, 30), Static(np.arange(200), 30)):
        for batch in batches:
            policy.visit(batch)
            held = np.flatnonzero(policy.slot_of >= 0)
            used = policy.row_in[policy.row_in >= 0]
            assert sorted(used) == held.tolist()
            assert (policy.row_in[policy.slot_of[held]] == held).all()


def skewed(draw, rows=20_000, batches=120, size=500):
    """Rows by a power law, as a graph's nodes are read."""
    return [np.minimum(draw.zipf(1.3, size) - 1, rows - 1) for _ in range(batches)]


def clustered(draw, rows=20_000, batches=120, size=500):
    """Batches of neighbouring clusters, as plans by clusters have them: reads come again soon."""
    starts = (np.arange(batches) // 4 * 1000) % (rows - 2000)
    return [s + draw.integers(0, 2000, size) for s in starts]


@pytest.mark.parametrize("plan", [skewed, clustered])
def test_hit_rates_of_all_four(plan):
    rows, slots, draw = 20_000, 1000, np.random.default_rng(1)
    batches = plan(draw)
    counts = np.bincount(np.concatenate([np.unique(b) for b in batches]), minlength=rows)
    degrees = counts + draw.poisson(2, rows)  # a guess that knows the plan but dimly
    policies = {
        "belady": Belady(batches, rows, slots),
        "static": Static(counts, slots),
        "lru": Lru(rows, slots),
        "degree": Static(degrees, slots),
    }
    rates = {name: simulate(policy, batches) for name, policy in policies.items()}
    for name, policy in policies.items():
        print(f"{plan.__name__}: {name} hits {policy.hit_rate:.3f}, reads {policy.reads:,} rows")
    assert policies["belady"].reads <= min(policy.reads for policy in policies.values())
    assert rates["belady"] >= rates["lru"]
    assert rates["static"] >= rates["degree"]
    assert 0 < rates["lru"] < rates["belady"] < 1


def test_static_keeps_the_best():
    policy = Static([5, 0, 9, 5, 7], 3)
    assert policy.kept.tolist() == [0, 2, 4]  # of equal rows the first
    assert Static([0, 0, 1], 3).kept.tolist() == [2]  # rows that nobody reads are not kept
    assert Static([0.5, 0.25], 1).kept.tolist() == [0]
    with pytest.raises(ParameterError, match="'counts' parameter must be one number a row"):
        Static([[1, 2]], 1)
    with pytest.raises(ParameterError, match="'counts' parameter"):
        Static(["a"], 1)


def test_belady_wants_its_plan():
    with pytest.raises(SelectionError, match="Batch 1 of the plan names row 9; .* rows 0 to 4"):
        Belady([[1], [9]], 5, 2)
    policy = Belady([[1, 2], [3]], 5, 2)
    policy.visit(np.array([2, 1, 2]))
    with pytest.raises(SelectionError, match="Batch 1 is not the plan's"):
        policy.visit(np.array([4]))
    policy = Belady([[1]], 5, 2)
    policy.visit(np.array([1]))
    with pytest.raises(SelectionError, match="Batch 1 is not the plan's"):
        policy.visit(np.array([1]))


# --- rows -----------------------------------------------------------------------------------------


class TestOnHost(CacheContract):
    pass


class TestInTheKernel(CacheContract):
    """As on a GPU, where one launch takes rows from both."""

    def make(self, table):
        interpreted = pytest.importorskip("batchloom.tests.contracts.interpreted")
        return interpreted.interpreted(table)


def test_cache_of_another_table():
    unified = UnifiedTensor.from_tensor(torch.rand(4, 2), device="cpu")
    with pytest.raises(ParameterError, match="for 3 rows was made for a table of 4"):
        HotRowCache.from_counts(unified, [1, 2, 3], 100)
    with pytest.raises(ParameterError, match="'capacity_bytes' parameter must not be negative"):
        HotRowCache.lru(unified, -1)
    cache = HotRowCache.lru(unified, 20)
    assert cache.nbytes == 16
    assert "Lru, 2 rows on cpu" in repr(cache)
