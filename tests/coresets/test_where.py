from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from batchloom.coresets.where import parse_where
from batchloom.dataplane.errors import BatchloomError, ColumnTypeError, JobSpecError

BATCH = pa.record_batch(
    {
        "a": pa.array([1, 2, None, 4]),
        "f": pa.array([0.5, float("nan"), 1.5, -2.0]),
        "s": pa.array(["x", "it's", "z", None]),
        "d": pa.array(["u", "v", "u", None]).dictionary_encode(),
        "ok": pa.array([True, False, None, True]),
        "m": pa.array([{"l": 1}, {"l": 2}, {"l": 1}, None]),
        "odd name": pa.array([10, 20, 30, 40]),
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a > 1", [1, 3]),
        ("a >= 1 and a != 2", [0, 3]),
        ("not a == 1", [1, 3]),
        ("a is null", [2]),
        ("a is not null", [0, 1, 3]),
        ("a  is   not null or a is null", [0, 1, 2, 3]),
        ("1 < a <= 4", [1, 3]),
        ("a in [1, 4]", [0, 3]),
        ("a not in [1, 4]", [1]),
        ("a in []", []),
        ("s == 'x'", [0]),
        ('s == "it\'s"', [1]),
        ("s in ['x', 'z']", [0, 2]),
        ("d == 'u'", [0, 2]),
        ("d in ['v']", [1]),
        ("ok", [0, 3]),
        ("not ok", [1]),
        ("m.l == 1", [0, 2]),
        ("col('odd name') > 15 and a > 1", [1, 3]),
        ("a * 2 + 1 == 5", [1]),
        ("a / 2 == 0.5", [0]),
        ("a % 2 == 0", [1, 3]),
        ("f > -a", [0, 3]),
        ("f == f", [0, 2, 3]),
        ("True", [0, 1, 2, 3]),
    ],
)
def test_rows_for_which_it_is_true(text: str, expected: list[int]) -> None:
    mask = parse_where(text).mask(BATCH)
    assert [i for i, inside in enumerate(mask) if inside] == expected


def test_columns_are_the_top_level_ones() -> None:
    assert parse_where("m.l == 1 and col('odd name') in [1] and s > s").columns == (
        "m",
        "odd name",
        "s",
    )


@pytest.mark.parametrize(
    "text",
    [
        "a >",
        "",
        "a = 1",
        "f(a)",
        "a[0] == 1",
        "lambda: 1",
        "a if a else f",
        "__import__('os')",
        "a := 1",
        "[x for x in a]",
        "a | f",
        "f'{a}'",
    ],
)
def test_what_does_not_parse_is_a_job_error(text: str) -> None:
    with pytest.raises(JobSpecError, match="expression"):
        parse_where(text)


@pytest.mark.parametrize("text", ["a + 1", "s > 1", "a.b == 1", "a in ['x']", "a is 3", "s"])
def test_what_makes_no_truth_value_is_a_type_error(text: str) -> None:
    with pytest.raises(ColumnTypeError, match="expression"):
        parse_where(text).mask(BATCH)


def test_no_raw_error_for_any_mixture_of_types() -> None:
    for left in ("a", "s", "d", "ok", "m", "f", "1", "'x'", "None"):
        for op in ("==", "<", "+", "and", "in"):
            for right in ("a", "s", "d", "ok", "m", "f", "1", "'x'", "None", "[1]", "['x']"):
                with contextlib.suppress(BatchloomError):  # anything else fails the test
                    parse_where(f"{left} {op} {right}").mask(BATCH)
