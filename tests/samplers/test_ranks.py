import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch.distributed
from batchloom.dataplane.epochs import EpochRecord
from batchloom.dataplane.errors import ParameterError, WorldSizeError
from batchloom.samplers.ranks import Ranks, check_world, resolve_ranks, share_steps
from hypothesis import given
from hypothesis import strategies as st

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=9)
worlds = st.integers(1, 50)


def record(**changes):
    values = {
        "epoch": 3,
        "steps": 10,
        "micro_batches": 40,
        "samples": 2560,
        "smallest_micro_batch": 64,
        "last_step_micro_batches": 4,
        "micro_divisor": 4,
        "coverage": "subset",
        "distinct_rows": 2560,
        "dropped_rows": 0,
        "weight_sum": 0,
        "logical_digest": "",
    }
    return EpochRecord(**{**values, **changes})


class Share(NamedTuple):
    """What a rank takes of one micro-batch of a step."""

    micro: int
    start: int
    stop: int
    pad: bool = False


def share_step(unit, sizes, rank, world):
    """Return what a rank takes of one step."""
    (shares,) = share_several(unit, [sizes], rank, world)
    return shares


def share_several(unit, steps, rank, world):
    """Return what a rank takes of each of several steps, dealt together."""
    bounds = np.cumsum([0, *map(len, steps)])
    sizes = np.array(list(itertools.chain.from_iterable(steps)))
    shares = share_steps(unit, sizes, bounds, rank, world)
    dealt = [[] for _ in steps]
    columns = (shares.micro_batch, shares.start, shares.stop, shares.pad)
    for index, start, stop, pad in zip(*(c.tolist() for c in columns), strict=True):
        step = int(np.searchsorted(bounds, index, side="right")) - 1
        dealt[step].append(Share(index - int(bounds[step]), start, stop, pad))
    return dealt


def rows_of(share):
    return [(share.micro, row) for row in range(share.start, share.stop)]


@given(unit=st.sampled_from(["sliceable", "micro"]), sizes=sizes, world=worlds)
def test_every_row_goes_to_one_rank_and_every_rank_gets_as_many_batches(unit, sizes, world):
    shares = [share_step(unit, sizes, rank, world) for rank in range(world)]
    assert len({len(s) for s in shares}) == 1
    every = list(itertools.chain.from_iterable(shares))
    assert all(0 <= s.start < s.stop <= sizes[s.micro] for s in every)
    real = itertools.chain.from_iterable(rows_of(s) for s in every if not s.pad)
    planned = [(micro, row) for micro, n in enumerate(sizes) for row in range(n)]
    assert sorted(real) == planned


@given(
    unit=st.sampled_from(["sliceable", "micro"]),
    steps=st.lists(sizes, min_size=1, max_size=6),
    world=worlds,
    data=st.data(),
)
def test_steps_dealt_together_are_dealt_as_one_by_one(unit, steps, world, data):
    rank = data.draw(st.integers(0, world - 1))
    assert share_several(unit, steps, rank, world) == [
        share_step(unit, step, rank, world) for step in steps
    ]


@given(sizes=sizes, world=worlds)
def test_slices_stand_in_order_and_differ_by_one_row_at_most(sizes, world):
    for micro, n in enumerate(sizes):
        mine = [share_step("sliceable", sizes, rank, world)[micro] for rank in range(world)]
        real = [s for s in mine if not s.pad]
        assert list(itertools.chain.from_iterable(rows_of(s) for s in real)) == [
            (micro, row) for row in range(n)
        ]
        lengths = [0 if s.pad else s.stop - s.start for s in mine]
        assert max(lengths) - min(lengths) <= 1
        assert all(s.stop - s.start == 1 for s in mine if s.pad)
        assert any(s.pad for s in mine) == (world > n)


@given(sizes=sizes, world=worlds)
def test_whole_micro_batches_are_dealt_by_their_number(sizes, world):
    for rank in range(world):
        for share in share_step("micro", sizes, rank, world):
            assert (share.start, share.stop) == (0, sizes[share.micro])
            if share.pad:
                assert share.micro == len(sizes) - 1
            else:
                assert share.micro % world == rank


def test_the_rule_in_numbers():
    assert [share_step("sliceable", [10], r, 4)[0] for r in range(4)] == [
        Share(0, 0, 2),
        Share(0, 2, 5),
        Share(0, 5, 7),
        Share(0, 7, 10),
    ]
    assert share_step("micro", [8, 8, 7], 1, 2) == [Share(1, 0, 8), Share(2, 0, 7, pad=True)]
    assert share_step("sliceable", [2], 0, 3) == [Share(0, 0, 1, pad=True)]


@given(unit=st.sampled_from(["sliceable", "micro"]), sizes=sizes, world=worlds)
def test_a_world_size_is_refused_exactly_where_it_needs_pads(unit, sizes, world):
    import math

    one = record(smallest_micro_batch=min(sizes), micro_divisor=math.gcd(len(sizes)))
    shares = [share_step(unit, sizes, rank, world) for rank in range(world)]
    needs_pad = any(s.pad for s in itertools.chain.from_iterable(shares))
    check_world(one, unit, Ranks(0, world, "pad"))
    if needs_pad:
        with pytest.raises(WorldSizeError):
            check_world(one, unit, Ranks(0, world))
    else:
        check_world(one, unit, Ranks(0, world))


def test_refusals_name_both_numbers_and_the_way_out():
    with pytest.raises(WorldSizeError, match=r"Epoch 3 .* 64 rows, which 65 ranks.*'pad'"):
        check_world(record(), "sliceable", Ranks(0, 65))
    with pytest.raises(WorldSizeError, match=r"Epoch 3 .*multiples of 4 .*which 3 ranks.*'pad'"):
        check_world(record(), "micro", Ranks(0, 3))


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        (4, 4, r"'rank' parameter must be an int in the range \[0, 4\)"),
        (-1, 4, r"'rank' parameter must be an int in the range \[0, 4\)"),
        (0, 0, r"'world_size' parameter must be an int in the range \[1, inf\)"),
        (True, 2, "Got True instead"),
        (0, None, "'rank' parameter was given without 'world_size'"),
        (None, 2, "'world_size' parameter was given without 'rank'"),
    ],
)
def test_ranks_that_are_none(rank, world, message):
    with pytest.raises(ParameterError, match=message):
        resolve_ranks(rank, world)


def test_defaults(monkeypatch):
    assert resolve_ranks(None, None) == Ranks(0, 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    assert resolve_ranks(None, None, "pad") == Ranks(2, 5, "pad")
    assert resolve_ranks(0, 2) == Ranks(0, 2)


def test_unknown_policy():
    with pytest.raises(ParameterError, match=r"one of 'error', 'pad'\. Got 'padd'.*mean 'pad'"):
        Ranks(on_uneven="padd")
