"""Ragged columns as tensors, against the same made value by value."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import BatchPlan, SideColumn
from batchloom.dataplane.errors import (
    ColumnTypeError,
    InvalidValueError,
    MissingColumnError,
    ParameterError,
)
from batchloom.samplers import Jagged, ManifestLoader, Padded
from batchloom.tests.contracts.awkward import write_fragment
from batchloom.tests.contracts.batches import drain, write_plan

ROWS = 40


def tokens_of(row):
    return list(range(row * 10, row * 10 + row % 7))


@pytest.fixture
def ragged(tmp_path):
    """Token lists, pairs, bytes, text and flags, and a plan with a ``pad_to`` of each batch."""
    table = pa.table(
        {
            "tokens": pa.array([tokens_of(r) for r in range(ROWS)], pa.list_(pa.int32())),
            "wide": pa.array([tokens_of(r) for r in range(ROWS)], pa.large_list(pa.uint16())),
            "huge": pa.array([[2**63 + r] for r in range(ROWS)], pa.list_(pa.uint64())),
            "flags": pa.array([[t % 2 == 0 for t in tokens_of(r)] for r in range(ROWS)]),
            "pairs": pa.array(
                [[[t, -t] for t in tokens_of(r)] for r in range(ROWS)],
                pa.list_(pa.list_(pa.float32(), 2)),
            ),
            "bytes": pa.array([bytes(tokens_of(r % 20)) for r in range(ROWS)], pa.binary()),
            "text": pa.array(["é" * (r % 4) for r in range(ROWS)], pa.large_string()),
            "words": pa.array([["a", "b"]] * ROWS),
            "holes": pa.array([None if r == 11 else [r] for r in range(ROWS)]),
            "y": np.arange(ROWS),
        }
    )
    write_fragment(table, tmp_path / "data" / "a.arrow", "ipc", chunk=9)
    order = np.random.default_rng(0).permutation(ROWS).astype(np.uint64)
    plan = BatchPlan.of(
        np.arange(0, ROWS + 1, 8), order, side={"pad_to": np.array([6, 9, 6, 16, 7], np.int32)}
    )
    side = [SideColumn("pad_to", "batch", "int32")]
    write_plan(tmp_path / "plan", tmp_path / "data", {0: plan}, side=side)
    return tmp_path / "plan", tmp_path / "data"


def loaded(ragged, collate, **options):
    return drain(ManifestLoader(*ragged, collate=collate, **options))


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("world", [1, 3])
def test_jagged(ragged, window, world):
    columns = ["tokens", "wide", "pairs", "flags", "bytes", "text", "y"]
    options = {"columns": columns, "window": window, "rank": world - 1, "world_size": world}
    for batch in loaded(ragged, "jagged", **options):
        assert list(batch) == columns
        rows = batch.rows.tolist()
        for name, expected in {
            "tokens": [tokens_of(r) for r in rows],
            "wide": [tokens_of(r) for r in rows],
            "flags": [[t % 2 == 0 for t in tokens_of(r)] for r in rows],
            "pairs": [[[t, -t] for t in tokens_of(r)] for r in rows],
            "bytes": [tokens_of(r % 20) for r in rows],
            "text": [list(("é" * (r % 4)).encode()) for r in rows],
        }.items():
            column = batch[name]
            assert isinstance(column, Jagged)
            assert column.cu_seqlens.dtype == torch.int32
            assert column.cu_seqlens[0] == 0
            bounds = column.cu_seqlens.tolist()
            parts = [column.values[a:b].tolist() for a, b in itertools.pairwise(bounds)]
            assert parts == expected, name
            assert column.lengths.tolist() == [len(e) for e in expected]
            assert column.max_seqlen == max(map(len, expected))
            assert len(column.values) == bounds[-1]
        assert batch["wide"].values.dtype == torch.int32
        assert isinstance(batch["y"], torch.Tensor)


def test_jagged_is_what_torch_calls_so(ragged):
    for batch in loaded(ragged, "jagged", columns=["pairs"]):
        nested = batch["pairs"].nested()
        assert nested.layout == torch.jagged
        assert [t.tolist() for t in nested.unbind()] == [
            [[t, -t] for t in tokens_of(r)] for r in batch.rows.tolist()
        ]
        assert nested.values().data_ptr() == batch["pairs"].values.data_ptr()


def test_values_are_the_gathered_memory(ragged):
    first, second = loaded(ragged, "jagged", columns=["tokens"], window=5)[:2]
    values = [b["tokens"].values for b in (first, second)]
    assert len({v.untyped_storage().data_ptr() for v in values}) == 1
    values[0].zero_()
    assert values[1].any()
    again = loaded(ragged, "jagged", columns=["tokens"], window=5)[0]
    assert again["tokens"].values.any()  # neither a file's nor another window's
    copy = first["tokens"].clone()
    assert copy.values.data_ptr() != values[0].data_ptr()
    assert copy.nbytes == first["tokens"].nbytes
    assert first["tokens"].to("meta").values.device.type == "meta"


@pytest.mark.parametrize(
    ("padded", "length_of"),
    [
        ("padded", lambda longest, _: longest),
        (Padded(), lambda longest, _: longest),
        (Padded(multiple_of=4, value=-1), lambda longest, _: -(-longest // 4) * 4),
        (Padded(to=6), lambda *_: 6),
        (Padded(to=3, truncate=True), lambda *_: 3),
        (Padded(to="pad_to"), lambda _, pad_to: pad_to),
        (Padded(to="pad_to", multiple_of=8), lambda _, pad_to: -(-pad_to // 8) * 8),
    ],
)
def test_padded(ragged, padded, length_of):
    value = getattr(padded, "value", 0)
    for window in (1, 5):
        for batch in loaded(ragged, {"tokens": padded}, columns=["tokens", "y"], window=window):
            rows = [tokens_of(r) for r in batch.rows.tolist()]
            length = length_of(max(map(len, rows)), batch.side["pad_to"])
            assert batch["tokens"].tolist() == [(r + [value] * length)[:length] for r in rows]
            assert batch["tokens_lengths"].tolist() == [min(len(r), length) for r in rows]
            assert batch["tokens"].dtype == torch.int32
            assert list(batch) == ["tokens", "y", "tokens_lengths"]


def test_padded_pairs_and_flags(ragged):
    batch = loaded(ragged, "padded", columns=["pairs", "flags"])[0]
    longest = max(r % 7 for r in batch.rows.tolist())
    assert batch["pairs"].shape == (8, longest, 2)
    assert batch["flags"].dtype == torch.bool
    assert batch["flags"].shape == (8, longest)


def test_moves_with_its_batch(ragged):
    for transform in (None, lambda b: b):
        batch = loaded(ragged, "jagged", columns=["tokens"], device="meta", transform=transform)[0]
        assert batch["tokens"].values.device.type == "meta"
        assert batch["tokens"].cu_seqlens.device.type == "meta"


def test_too_long_for_its_length(ragged):
    with pytest.raises(InvalidValueError, match=r"Row \d+ holds 6 values of column 'tokens', more"):
        loaded(ragged, {"tokens": Padded(to=5)}, columns=["tokens"])


def test_nulls_are_refused_by_row(ragged):
    with pytest.raises(InvalidValueError, match=r"'holes' holds a null in row 11"):
        loaded(ragged, "jagged", columns=["holes"])
    with pytest.raises(InvalidValueError, match=r"'huge' holds 92233\d+ in row"):
        loaded(ragged, "jagged", columns=["huge"])


@pytest.mark.parametrize(
    ("collate", "error", "message"),
    [
        ("nested", ParameterError, "'collate' parameter must be 'jagged', 'padded', a Padded"),
        ({"tokens": 5}, ParameterError, "Got 5 instead"),
        ({"nope": "jagged"}, MissingColumnError, "no column 'nope' to collate"),
        ({"y": "jagged"}, ColumnTypeError, r"'y' \(int64\) cannot be collated"),
        ({"words": "padded"}, ColumnTypeError, "'words' .* cannot be collated"),
    ],
)
def test_what_cannot_be_collated(ragged, collate, error, message):
    with pytest.raises(error, match=message):
        ManifestLoader(*ragged, collate=collate)


def test_lengths_whose_name_is_taken(tmp_path):
    table = pa.table({"tokens": [[1], [2, 3]], "tokens_lengths": [1, 2]})
    write_fragment(table, tmp_path / "data" / "a.arrow", "ipc")
    write_plan(tmp_path / "plan", tmp_path / "data", {0: BatchPlan.of([0, 2], [0, 1])})
    for collate in ("padded", {"tokens": "padded"}):
        with pytest.raises(ParameterError, match="would be called 'tokens_lengths'"):
            ManifestLoader(tmp_path / "plan", tmp_path / "data", collate=collate)
    ManifestLoader(tmp_path / "plan", tmp_path / "data", collate="jagged")


def test_padding_that_cannot_be(ragged):
    for options in ({"to": 0}, {"to": True}, {"multiple_of": 0}, {"multiple_of": 1.5}):
        (name,) = options
        with pytest.raises(ParameterError, match=f"'{name}' parameter of Padded must be an int"):
            Padded(**options)
    with pytest.raises(ParameterError, match=r"needs a side column .* the plan has pad_to"):
        loaded(ragged, {"tokens": Padded(to="length")}, columns=["tokens"])


def test_other_ragged_columns_stay_as_they_are(ragged):
    batch = loaded(ragged, {"tokens": "jagged"}, columns=["tokens", "words", "text"])[0]
    assert isinstance(batch["words"], pa.Array)
    assert isinstance(batch["text"], pa.Array)
