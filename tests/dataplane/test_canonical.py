"""Canonical JSON: equal values, equal bytes; what has no form is refused with its place."""

from __future__ import annotations

import enum
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.canonical import (
    compact_json,
    digest,
    file_sha256,
    known_fields,
    plain_json,
    pretty_json,
)
from batchloom.dataplane.errors import ParameterError
from hypothesis import given
from hypothesis import strategies as st

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_json_survives_to_the_byte(value: Any) -> None:
    """What is read back is written as the same bytes, so hashes can be made of what was read."""
    plain = plain_json(value, "value")
    assert plain == value
    for form in (compact_json, pretty_json):
        data = form(plain)
        assert form(json.loads(data)) == data
        assert json.loads(data) == value
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2)
    assert pretty_json(value) == text.encode() + b"\n"
    assert digest(plain) == hashlib.sha256(compact_json(value)).hexdigest()


tricky = st.sampled_from(["}", "},\n  {", "},{", '"', "\\", "\n", "[{", "}]", ": ", ""])


@given(st.lists(st.dictionaries(tricky, tricky | st.integers() | st.lists(tricky, max_size=1))))
def test_indented_records_are_those_of_the_standard_library(records: list[dict[str, Any]]) -> None:
    """Lists of flat records are written by a short cut; their texts may look like its marks."""
    for value in (records, {"a": {"parts": records, "b": [records]}}, [[records]]):
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2)
        assert pretty_json(value) == text.encode() + b"\n"


def test_forms_by_hand() -> None:
    value = {"b": [1, 2.0, 1e-7, 1e22, -0.0], "a": {"é": None, "x": True}, "A": "\u2028"}
    assert compact_json(value) == (
        '{"A":"\u2028","a":{"x":true,"é":null},"b":[1,2.0,1e-07,1e+22,-0.0]}'.encode()
    )
    assert pretty_json({"b": [1], "a": {}}) == b'{\n  "a": {},\n  "b": [\n    1\n  ]\n}\n'


@given(st.dictionaries(text, st.integers(), max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: dict[str, int], rng: Any) -> None:
    items = list(value.items())
    rng.shuffle(items)
    assert digest(dict(items)) == digest(value)


class Color(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.1), 0.10000000149011612),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        ((1, (2, 3)), [1, [2, 3]]),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (True, True),
        ({"a": (np.int8(1),)}, {"a": [1]}),
    ],
    ids=str,
)
def test_what_has_one_plain_form(value: Any, plain: Any) -> None:
    found = plain_json(value, "value")
    assert found == plain
    assert compact_json(found) == compact_json(plain)
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"stages.a[1]: {2} (set) has no canonical form"),
        ({"a": {3: 4}}, r"stages.a: the key 3 is no string"),
        ({None: 4}, r"stages: the key None is no string"),
        ({"a": float("nan")}, r"stages.a: nan (float)"),
        ([float("-inf")], r"stages[0]: -inf (float)"),
        ({"p": Path("x")}, r"stages.p: "),
        ({"p": b"x"}, r"stages.p: b'x' (bytes)"),
        ({"p": 1j}, r"stages.p: 1j (complex)"),
        ({"p": np.arange(2)}, r"stages.p: array([0, 1]) (ndarray)"),
        ({"p": "\udcff"}, r"stages.p: "),
        ({"p": object}, r"stages.p: "),
        ({"p": np.datetime64(0, "s")}, r"stages.p: "),
    ],
    ids=range(12),
)
def test_what_has_no_form_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        plain_json(value, "stages")
    assert message in str(caught.value)


def test_reports_may_hold_numbers_that_are_none() -> None:
    value = {"a": [float("nan"), np.float32("inf"), -np.inf, 1.5]}
    assert plain_json(value, "r", non_finite=True) == {"a": ["nan", "inf", "-inf", 1.5]}


def test_the_copy_is_apart() -> None:
    value = {"a": [1]}
    plain = plain_json(value, "v")
    value["a"].append(2)
    assert plain == {"a": [1]}


def test_hash_of_a_file() -> None:
    data = bytes(range(256)) * 5000
    assert file_sha256(io.BytesIO(data)) == hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Record:
    a: int
    b: str


def test_fields_of_newer_records_are_left_out() -> None:
    assert known_fields(Record, {"a": 1, "b": "x", "c": 3}) == Record(1, "x")
    with pytest.raises(KeyError, match="b"):
        known_fields(Record, {"a": 1})
