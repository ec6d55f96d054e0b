from __future__ import annotations

import pyarrow as pa
import pytest
from batchloom.dataplane.errors import ColumnTypeError
from batchloom.dataplane.key_hash import hash_column

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
