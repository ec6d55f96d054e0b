from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from batchloom.coresets.keys import match_keys
from batchloom.coresets.split import in_split, parse_split
from batchloom.dataplane.errors import JobSpecError
from hypothesis import given
from hypothesis import strategies as st

U64 = st.integers(0, 2**64 - 1)


@given(st.lists(U64, max_size=50), st.lists(U64, max_size=50))
def test_match_keys_is_dictionary_lookup(rows: list[int], wanted: list[int]) -> None:
    ordered = sorted(set(wanted))
    table = {key: i for i, key in enumerate(ordered)}
    found = match_keys(np.array(rows + wanted, np.uint64), np.array(ordered, np.uint64))
    assert found.tolist() == [table.get(key, -1) for key in rows + wanted]


IDS = np.arange(100_000, dtype=np.uint64)


def _shares(text: str) -> dict[str, np.ndarray]:
    shares, _ = parse_split(text)
    return {name: in_split(IDS, shares, name) for name in shares}


def test_shares_are_disjoint_and_about_their_size() -> None:
    found = _shares("train=0.8,val=0.15,test=0.05:train")
    total = np.sum([mask.astype(int) for mask in found.values()], axis=0)
    assert (total == 1).all()
    assert found["train"].mean() == pytest.approx(0.8, abs=0.005)
    assert found["test"].mean() == pytest.approx(0.05, abs=0.003)


def test_a_row_keeps_its_share_when_rows_are_added() -> None:
    shares, _ = parse_split("a=1/3,b=2/3:a")
    few, many = in_split(IDS[:500], shares, "a"), in_split(IDS, shares, "a")
    assert few.tolist() == many[:500].tolist()


def test_shares_need_not_fill_the_dataset() -> None:
    found = _shares("a=0.1,b=0.2:a")
    assert not (found["a"] & found["b"]).any()
    assert (found["a"] | found["b"]).mean() == pytest.approx(0.3, abs=0.01)


def test_a_whole_share_is_everything() -> None:
    assert _shares("all=1:all")["all"].all()


def test_seed_and_hashing_change_the_draw() -> None:
    shares, _ = parse_split("a=0.5,b=0.5:a")
    plain = in_split(IDS, shares, "a")
    for other in (in_split(IDS, shares, "a", seed=1), in_split(IDS, shares, "a", hashed=True)):
        assert 0.4 < (plain == other).mean() < 0.6


def test_parsing_keeps_decimal_shares_exact() -> None:
    shares, chosen = parse_split("train=0.9, val=0.1 : val")
    assert shares == {"train": Fraction(9, 10), "val": Fraction(1, 10)}
    assert chosen == "val"


@pytest.mark.parametrize(
    "text",
    [
        "train=0.9",
        "train:train",
        "train=x:train",
        "train=0.9,val=0.2:train",
        "train=0:train",
        "train=0.9:vel",
        "=0.5:",
        "train=-1,b=1:b",
        "a=1/0:a",
        "",
    ],
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(JobSpecError, match="split|share"):
        parse_split(text)
