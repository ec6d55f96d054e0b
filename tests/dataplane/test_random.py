"""Random numbers: frozen values, an independent restatement, and properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from batchloom.dataplane import compiled
from batchloom.dataplane import random as subject
from batchloom.dataplane.errors import ParameterError
from batchloom.dataplane.random import (
    Permutation,
    Stream,
    array_of,
    base_key,
    choose,
    count_keys,
    hash_values,
    keys,
    keys_up_to,
    mix64,
    some_of,
    uniform,
)
from batchloom.dataplane.sketch import RankSearch
from batchloom.tests.dataplane.helpers import use_form
from hypothesis import given, settings
from hypothesis import strategies as st

M64 = (1 << 64) - 1


# --- the module's docstring, restated without numpy -----------------------------------------------


def plain_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & M64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & M64
    return x ^ (x >> 31)


def plain_base(seed: int, stream: int, epoch: int) -> int:
    g = 0x9E3779B97F4A7C15
    first = plain_mix((seed + g) & M64)
    second = plain_mix(first ^ ((stream * g + g) & M64))
    return plain_mix(second ^ ((epoch * g + g) & M64))


def plain_key(base: int, counter: int) -> int:
    return plain_mix(plain_mix((base + counter * 0x9E3779B97F4A7C15) & M64))


def plain_feistel(n: int, base: int, position: int, rounds: int = 8) -> int:
    a = math.isqrt(n)
    a += a * a < n
    b = -(-n // a)
    round_keys = [plain_key(plain_mix(base ^ 0xF8157E110B100003), i) for i in range(8)]
    x = position
    while True:
        left, right = x // b, x % b
        for i in range(rounds):
            if i % 2 == 0:
                left = (left + ((plain_mix(right ^ round_keys[i]) >> 32) * a >> 32)) % a
            else:
                right = (right + ((plain_mix(left ^ round_keys[i]) >> 32) * b >> 32)) % b
        x = left * b + right
        if x < n:
            return x


def plain_sort(n: int, base: int) -> list[int]:
    return sorted(range(n), key=lambda i: (plain_key(base, i), i))


# --- keys -----------------------------------------------------------------------------------------


def test_keys_are_frozen(form: str) -> None:
    assert [f"{k:016x}" for k in keys(7, 1, 3, np.arange(5, dtype=np.uint64)).tolist()] == [
        "9dcb3708a143157f",
        "e48bf27dd230f56d",
        "aa0e680ee024eade",
        "d4f09070bd1ebe7e",
        "c337f3ca38fabd40",
    ]


@given(
    st.integers(0, M64),
    st.integers(0, 1000),
    st.integers(0, 2**40),
    st.lists(st.integers(0, M64), max_size=20),
)
def test_keys_equal_the_docstring(seed: int, stream: int, epoch: int, ids: list[int]) -> None:
    base = plain_base(seed, stream, epoch)
    assert base_key(seed, stream, epoch) == base
    found = keys(seed, stream, epoch, np.array(ids, dtype=np.uint64))
    assert found.dtype == np.uint64
    assert found.tolist() == [plain_key(base, i) for i in ids]


@pytest.mark.parametrize("size", [0, 1, 2, 199_999, 200_000, 200_001, 300_003])
def test_numba_and_numpy_give_the_same_bits(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(size, dtype=np.uint64) * np.uint64(0x1_0000_0001)
    order = Permutation(10**9 + 7, seed=5, epoch=2)
    places = ids % np.uint64(order.n)
    monkeypatch.delenv("BATCHLOOM_NUMBA", raising=False)
    for state in ("_COMPILED_ONCE_LOADED", "_COMPILED_WITH_NUMBA"):  # whatever ran before
        monkeypatch.setattr(compiled, state, 200_000)
    assert (compiled.compiled_kernels(size) is not None) == (size >= 200_000)
    with_numba = keys(3, 4, 5, ids), order.at(places), uniform(3, 4, 5, ids)
    monkeypatch.setenv("BATCHLOOM_NUMBA", "0")
    assert compiled.compiled_kernels(size) is None
    for one, other in zip(
        with_numba, (keys(3, 4, 5, ids), order.at(places), uniform(3, 4, 5, ids)), strict=True
    ):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("form", ["numpy", "numba"])
@pytest.mark.parametrize("first", [0, 5, (1 << 40) - 7, (1 << 63) - 900])
@pytest.mark.parametrize("n", [0, 1, 511, 1025, 3000])
def test_a_range_is_the_ids_in_it(
    n: int, first: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_form(monkeypatch, form)
    some = min(n, 800) if first > 1 << 62 else n
    run, ids = range(first, first + some), np.arange(first, first + some, dtype=np.uint64)
    assert array_of(run).tolist() == ids.tolist() == list(run)
    assert array_of(ids) is ids
    mask = np.arange(some) % 3 > 0
    for which in (mask, np.flatnonzero(mask)[::-1]):
        assert some_of(run, which).tolist() == some_of(ids, which).tolist() == ids[which].tolist()
        assert some_of(run, which).dtype == np.uint64
    drawn, bound = keys(7, 1, 3, ids), 1 << 63
    for given_ids in (ids, run):
        inside = mask.copy()
        keys_up_to(bound, 7, 1, 3, given_ids, inside=inside)
        assert inside.tolist() == ((drawn <= bound) & mask).tolist()
        low, shift, bins = 1 << 62, 55, 70
        counts = np.ones(bins + 2, np.int64)
        count_keys(low, shift, bins, 7, 1, 3, given_ids, into=counts)
        slots = [(int(k) - low) // (1 << shift) for k in drawn]
        expected = [1 + sum(s < 0 for s in slots)]
        expected += [1 + sum(s == slot for s in slots) for slot in range(bins)]
        assert counts.tolist() == [*expected, 1 + sum(s >= bins for s in slots)]


def test_every_part_of_a_key_matters() -> None:
    ids = np.arange(4, dtype=np.uint64)
    found = [keys(*k, ids).tobytes() for k in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert len(set(found)) == 4


def test_keys_of_strided_and_read_only_ids(form: str) -> None:
    ids = np.arange(20, dtype=np.uint64)
    ids.flags.writeable = False
    assert keys(1, 2, 3, ids[::3]).tolist() == keys(1, 2, 3, ids).tolist()[::3]
    assert ids.tolist() == list(range(20))


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, None])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ParameterError, match=r"A seed must be an int in the range \[0, 2\*\*64\)"):
        keys(seed, 1, 0, [0])


def test_numpy_integers_are_seeds_and_epochs_too() -> None:
    assert base_key(np.int64(7), np.int8(1), np.uint32(3)) == base_key(7, 1, 3)


def test_stream_numbers_are_never_reused() -> None:
    frozen = {
        "SETA_KEEP": 1,
        "INFOBATCH_KEEP": 2,
        "ANNEAL_KEEP": 3,
        "ORDER": 4,
        "SPLIT": 5,
        "KMEANS_SAMPLE": 6,
        "KMEANS_INIT": 7,
        "STRATUM_OFFSET": 8,
        "CLUSTER_ORDER": 9,
        "BATCH_ORDER": 10,
        "AUGMENT": 11,
    }
    assert {name: Stream[name].value for name in frozen} == frozen
    # An alias would be two uses of one number: members and names must be as many.
    assert len(Stream.__members__) == len(list(Stream))


def test_mix64_is_splitmix64s_finaliser_and_leaves_its_input_alone() -> None:
    x = np.array([0, 1, 2, M64, 0x9E3779B97F4A7C15], dtype=np.uint64)
    before = x.copy()
    assert mix64(x).tolist() == [plain_mix(int(v)) for v in before]
    assert (x == before).all()
    # splitmix64 from state 0 gives this first output (the published reference sequence).
    assert plain_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_hash_values_are_keys_of_mixed_values() -> None:
    values = np.array([3, 1 << 63, 0], dtype=np.uint64)
    expected = [plain_key(plain_base(9, 5, 0), plain_mix(int(v))) for v in values]
    assert hash_values(9, 5, values).tolist() == expected
    assert values.tolist() == [3, 1 << 63, 0]


def test_uniform_draws_lie_in_the_unit_interval_and_are_even() -> None:
    ids = np.arange(1_000_000, dtype=np.uint64)
    draws = uniform(7, 1, 0, ids)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    # The standard error of the mean is 0.00029, of the variance 0.000075.
    assert abs(draws.mean() - 0.5) < 0.0015
    assert abs(draws.var() - 1 / 12) < 0.0004
    first = plain_key(plain_base(7, 1, 0), 0)
    assert draws[0] == (first >> 11) / 2**53


# --- choice ---------------------------------------------------------------------------------------


def test_choices_are_frozen(form: str) -> None:
    kept = choose(12, np.arange(20), seed=7, stream=1, epoch=3)
    assert set(np.flatnonzero(kept).tolist()) == {0, 2, 5, 6, 9, 10, 11, 12, 13, 15, 17, 19}
    dropped = [
        set(np.flatnonzero(~choose(14, np.arange(16), seed=7, stream=1, epoch=e)).tolist())
        for e in range(4)
    ]
    assert dropped == [{2, 6}, {2, 9}, {2, 8}, {1, 14}]


@given(
    st.lists(st.integers(0, 2**63), unique=True, max_size=60), st.integers(0, 5), st.integers(0, 60)
)
def test_a_choice_is_the_smallest_keys(ids: list[int], seed: int, n: int) -> None:
    n = min(n, len(ids))
    base = plain_base(seed, 2, 1)
    smallest = sorted(ids, key=lambda i: (plain_key(base, i), i))[:n]
    kept = choose(n, np.array(ids, dtype=np.uint64), seed=seed, stream=2, epoch=1)
    assert {i for i, k in zip(ids, kept, strict=True) if k} == set(smallest)


def test_choices_are_nested_and_exact() -> None:
    ids = np.arange(500, dtype=np.uint64) * np.uint64(977)
    before = np.zeros(500, dtype=bool)
    for n in range(501):
        kept = choose(n, ids, seed=1, stream=1)
        assert kept.sum() == n
        assert kept[before].all()
        before = kept


@given(st.randoms(use_true_random=False), st.integers(0, 300))
def test_a_choice_does_not_depend_on_the_order_of_the_ids(rng: object, n: int) -> None:
    ids = list(range(0, 3000, 10))
    shuffled = ids.copy()
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one = choose(n, np.array(ids, dtype=np.uint64), seed=3, stream=1)
    other = choose(n, np.array(shuffled, dtype=np.uint64), seed=3, stream=1)
    picked = {i for i, k in zip(shuffled, other, strict=True) if k}
    assert picked == {i for i, k in zip(ids, one, strict=True) if k}


@given(
    st.lists(st.integers(0, 400), max_size=6).map(sorted), st.integers(1, 400), st.integers(0, 9)
)
def test_parts_find_the_same_choice(cuts: list[int], n: int, seed: int) -> None:
    parts = np.split(np.arange(400, dtype=np.uint64), cuts)
    search = RankSearch(np.uint64, lambda _: [n])
    while search.bound is None:
        assert search.next is not None
        search.narrow(sum(search.next.count(keys(seed, 1, 0, p)) for p in parts))
    kept = np.concatenate([keys(seed, 1, 0, p) <= np.uint64(search.bound) for p in parts])
    assert kept.tolist() == choose(n, np.concatenate(parts), seed=seed, stream=1).tolist()


@pytest.mark.parametrize("n", [-1, 11])
def test_a_choice_beyond_the_rows_is_refused(n: int) -> None:
    with pytest.raises(ParameterError, match=f"Cannot choose {n} of 10 rows"):
        choose(n, np.arange(10), seed=0, stream=1)


def test_a_choice_among_equal_row_ids_is_refused() -> None:
    ids = np.array([4, 9, 4], dtype=np.uint64)
    kept = [choose(n, ids, seed=0, stream=1).tolist() for n in (0, 3)]
    assert kept == [[False] * 3, [True] * 3]
    alone = 1 if keys(0, 1, 0, ids)[1] < keys(0, 1, 0, ids)[0] else 2
    assert choose(alone, ids, seed=0, stream=1).sum() == alone
    with pytest.raises(ParameterError, match="Some row ids are the same"):
        choose(3 - alone, ids, seed=0, stream=1)


def test_choosing_of_nothing() -> None:
    assert choose(0, np.empty(0, np.uint64), seed=0, stream=1).tolist() == []


# --- permutation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["sort", "feistel"])
def test_every_small_permutation_is_one(branch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SMALL_PERMUTATION", 10**9 if branch == "sort" else 0)
    for n in range(1, 2001):
        order = Permutation(n, seed=n % 7, epoch=n % 3)
        assert (order._sorted is not None) == (branch == "sort")
        found = order[:]
        assert found.dtype == np.uint64
        seen = np.zeros(n, dtype=bool)
        seen[found] = True
        assert seen.all(), n


def test_every_small_compiled_permutation_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SMALL_PERMUTATION", 0)
    use_form(monkeypatch, "numba")
    for n in range(1, 2001):
        seen = np.zeros(n, dtype=bool)
        seen[Permutation(n, seed=n % 7, epoch=n % 3)[:]] = True
        assert seen.all(), n


@pytest.mark.parametrize("bits", [64, 20, 8, 1])
def test_places_are_sorted_as_a_stable_argsort_sorts_them(bits: int) -> None:
    drawn = np.random.default_rng(bits).integers(0, 1 << 64, 3_000, np.uint64)
    some = drawn >> np.uint64(64 - bits) << np.uint64(64 - bits)  # many are equal
    for found in (some, some[:1], some[:0], np.tile(drawn, 30)):
        expected = np.argsort(found, kind="stable")
        assert subject._sorted_places(found).tolist() == expected.tolist()


@pytest.mark.parametrize("n", [65_535, 65_536, 65_537])
def test_permutations_around_the_change_of_branch(n: int) -> None:
    order = Permutation(n, seed=1)
    assert (order._sorted is not None) == (n < 65_536)
    assert np.array_equal(np.sort(order[:]), np.arange(n, dtype=np.uint64))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 97, 100, 101, 640])
@pytest.mark.parametrize("branch", ["sort", "feistel"])
def test_permutations_equal_the_docstring(
    n: int, branch: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "SMALL_PERMUTATION", 10**9 if branch == "sort" else 0)
    for seed in range(3):
        base = plain_base(seed, 4, 5)
        if branch == "sort":
            expected = plain_sort(n, base)
        else:
            expected = [plain_feistel(n, base, p) for p in range(n)]
        assert Permutation(n, seed=seed, epoch=5)[:].tolist() == expected


# First and last eight outputs of π for (seed 7, stream ORDER, epoch 3). They must never change: a
# plan that was made is known by them.
GOLDEN = {
    65_536: [
        30085,
        4074,
        33053,
        1087,
        41951,
        54077,
        26499,
        52596,
        49896,
        27207,
        50333,
        10211,
        15529,
        48087,
        24617,
        30233,
    ],
    65_537: [
        797,
        27889,
        33053,
        962,
        9716,
        30965,
        18648,
        19631,
        18053,
        5675,
        35949,
        46422,
        19582,
        21847,
        58159,
        53509,
    ],
    1_000_003: [
        610174,
        697665,
        363368,
        859434,
        239063,
        101519,
        156418,
        496576,
        365650,
        956635,
        463024,
        856562,
        51244,
        651136,
        790296,
        100886,
    ],
    10**9: [
        422620168,
        447691214,
        737446727,
        902770688,
        832711472,
        454515279,
        857583664,
        231236547,
        325444326,
        856322249,
        758622844,
        925606301,
        992150060,
        225253677,
        589537895,
        163084779,
    ],
    2**32 + 1: [
        1666359458,
        2301734921,
        2467998398,
        2183521729,
        1118347712,
        1074488752,
        2194171332,
        3039063362,
        2072093501,
        3846196299,
        3948162842,
        410086178,
        2662241915,
        3708972893,
        2592601701,
        2059516774,
    ],
}


@pytest.mark.parametrize("n", GOLDEN)
def test_large_permutations_are_frozen(n: int, form: str) -> None:
    order = Permutation(n, seed=7, stream=Stream.ORDER, epoch=3)
    places = [*range(8), *range(n - 8, n)]
    base = plain_base(7, 4, 3)
    assert [plain_feistel(n, base, p) for p in places] == GOLDEN[n]
    assert order.at(places).tolist() == GOLDEN[n]
    assert order[:8].tolist() + order[n - 8 :].tolist() == GOLDEN[n]


def test_slices_are_the_permutation_at_their_positions() -> None:
    for n in (1000, 70_001):
        order = Permutation(n, seed=2)
        whole = order[:]
        assert len(order) == n
        assert np.array_equal(order[10:20], whole[10:20])
        assert np.array_equal(order[-5:], whole[-5:])
        assert np.array_equal(order[0:n:97], whole[::97])
        assert order[n:].size == 0
        assert np.array_equal(order.at([3, 3, 0]), whole[[3, 3, 0]])


@settings(max_examples=30)
@given(st.integers(65_536, 10**12), st.integers(0, 10), st.data())
def test_large_permutations_stay_in_range_and_are_one_to_one(
    n: int, seed: int, data: st.DataObject
) -> None:
    places = data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=2, max_size=50))
    found = Permutation(n, seed=seed).at(np.array(places, dtype=np.uint64)).tolist()
    assert all(0 <= x < n for x in found)
    assert len(set(found)) == len(places)


@pytest.mark.parametrize("n", [-1, 10**12 + 1])
def test_a_permutation_too_large_is_refused(n: int) -> None:
    with pytest.raises(ParameterError, match=f"Got {n} instead"):
        Permutation(n, seed=0)


@pytest.mark.parametrize("n", [0, 10, 70_000])
def test_positions_beyond_a_permutation_are_refused(n: int) -> None:
    with pytest.raises(ParameterError, match=f"A permutation of {n} has no position {n}"):
        Permutation(n, seed=0).at([n])


def test_the_empty_permutation() -> None:
    assert Permutation(0, seed=0)[:].size == 0


# --- quality --------------------------------------------------------------------------------------


def z_score(x: np.ndarray, y: np.ndarray) -> float:
    """Chi-square of a 64 × 64 table against independence with even margins, as a z-score."""
    table = np.bincount(x.astype(np.int64) * 64 + y.astype(np.int64), minlength=4096)
    expected = len(x) / 4096
    freedom = 63 * 63
    return float((((table - expected) ** 2).sum() / expected - freedom) / np.sqrt(2 * freedom))


def coarse(order: np.ndarray) -> np.ndarray:
    return order.astype(np.int64) * 64 // len(order)


def tables(order: np.ndarray, following: np.ndarray) -> dict[str, float]:
    place = np.arange(len(order))
    return {
        "lag 1": z_score(coarse(order)[:-1], coarse(order)[1:]),
        "lag 1024": z_score(coarse(order)[:-1024], coarse(order)[1024:]),
        "next epoch": z_score(coarse(order), coarse(following)),
        "position and row": z_score(coarse(place), coarse(order)),
        "low bits": z_score(place & 63, order.astype(np.int64) & 63),
    }


def test_permutations_of_a_million_look_random() -> None:
    orders = [Permutation(1_000_000, seed=7, epoch=e)[:] for e in range(4)]
    for order, following in itertools.pairwise(orders):
        for name, z in tables(order, following).items():
            assert abs(z) <= 5, (name, z)


def test_the_quality_tables_see_three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables above can fail: three rounds of the same network are told from random."""
    order = Permutation(1_000_000, seed=7)
    a, b = np.uint64(order._a), np.uint64(order._b)
    x = np.arange(1_000_000, dtype=np.uint64)
    while True:
        left, right = x // b, x % b
        for i, key in enumerate(order._round_keys[:3]):
            if i % 2 == 0:
                left = (left + ((mix64(right ^ key) >> np.uint64(32)) * a >> np.uint64(32))) % a
            else:
                right = (right + ((mix64(left ^ key) >> np.uint64(32)) * b >> np.uint64(32))) % b
        x = left * b + right
        if (x < 1_000_000).all():
            break
    assert max(abs(z) for z in tables(x, order[:]).values()) > 20
