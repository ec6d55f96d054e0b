from __future__ import annotations

import pyarrow as pa
import pytest
from batchloom.dataplane.errors import ColumnTypeError
from batchloom.dataplane.key_hash import hash_column, hash_column_wide

GOLDEN_TEXT = ["0x41f5345f287af456", "0x2f19f3ef8bbf1acb"]
GOLDEN_INTS = ["0x0", "0x5692161d100b05e5", "0xb4d055fcf2cbbd7b"]


def test_equal_values_hash_equal_whatever_their_type() -> None:
    ints = [3, -1, 2**40 % 2**31, 3]
    wide, narrow = (hash_column(pa.array(ints, t)) for t in (pa.int64(), pa.int32()))
    assert wide.tolist() == narrow.tolist()
    assert wide[0] == wide[3] != wide[1]
    texts = ["a", "b", None, "a", ""]
    plain = hash_column(pa.array(texts, pa.string()))
    for other in (
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string()).dictionary_encode(),
        pa.array([None if t is None else t.encode() for t in texts], pa.binary()),
        pa.array(["x", *texts], pa.string()).slice(1),
    ):
        assert hash_column(other).tolist() == plain.tolist()
    assert len(set(plain.tolist())) == 4


def test_nulls_share_one_hash_over_all_types() -> None:
    nulls = [hash_column(pa.array([None], t))[0] for t in (pa.int8(), pa.string(), pa.bool_())]
    assert len(set(nulls)) == 1


def test_hashes_are_frozen() -> None:
    """They decide splits: they may never change."""
    assert [hex(h) for h in hash_column(pa.array(["doc-1", "é"])).tolist()] == GOLDEN_TEXT
    assert [hex(h) for h in hash_column(pa.array([0, 1, -1])).tolist()] == GOLDEN_INTS


@pytest.mark.parametrize("bad", [pa.array([1.5]), pa.array([[1]]), pa.array([{"a": 1}])])
def test_what_makes_no_key_is_refused(bad: pa.Array) -> None:
    with pytest.raises(ColumnTypeError, match="a key must be integers, strings or binaries"):
        hash_column(bad, "k")


def test_two_hashes_tell_apart_what_one_may_not() -> None:
    ints = pa.array([5, -1, 2**64 - 1 - 2**63, None, 5], pa.int64())
    unsigned = pa.array([5, 2**64 - 1, 2**63 - 1, None, 5], pa.uint64())
    wide, other = hash_column_wide(ints), hash_column_wide(unsigned)
    assert wide.shape == (2, 5)
    assert wide[0].tolist() == hash_column(ints).tolist()
    assert (wide == other).all(axis=0).tolist() == [True, False, True, True, True]
    assert wide[0, 1] == other[0, 1]  # -1 and 2**64 - 1 share their bits
    texts = hash_column_wide(pa.array(["a", "b", None, "a"]))
    assert len({tuple(column) for column in texts.T.tolist()}) == 3
    assert len({*texts[0].tolist(), *texts[1].tolist()}) == 5  # the null's is the same twice
    coded = hash_column_wide(pa.array(["a", "b", None, "a"]).dictionary_encode())
    assert coded.tolist() == texts.tolist()
