"""A report's figures: tiny plans worked by hand, and what is counted against what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import Manifest, ManifestWriter, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    ColumnTypeError,
    DatasetChangedError,
    JobSpecError,
    MissingColumnError,
    SelectionError,
    SignalError,
)
from batchloom.dataplane.plan import BatchPlan, Ragged, SideColumn
from batchloom.jobs import plan
from batchloom.jobs.report import difference_figures, plan_figures
from batchloom.jobs.report.chi_square import batch_chi_square, chi_square_figures
from batchloom.jobs.report.counts import BatchCounts, FloatCounts, RowTimes, bins_of, whole_bins
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

ROWS = 12
KINDS = ["a", "a", "a", "a", "b", "b", "b", "b", "b", "b", None, None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two sources of eight and four rows."""
    root = tmp_path_factory.mktemp("report")
    table = pa.table(
        {
            "kind": pa.array(KINDS),
            "x": np.arange(ROWS) / 2,
            "many": [f"text {i}" for i in range(ROWS)],
            "list": [[i] for i in range(ROWS)],
            "number": pa.array([*range(ROWS - 1), None], pa.int32()),
        }
    )
    for name, rows in (("left", table[:8]), ("right", table[8:])):
        (root / name).mkdir()
        pq.write_table(rows, root / name / "0.parquet")
    return {name: str(root / name) for name in ("left", "right")}


def written(
    data: Any,
    out: Path,
    epochs: dict[int, Sequence[Sequence[int]]],
    *,
    weights: Sequence[float] | None = None,
    side: Sequence[SideColumn] = (),
    values: dict[str, Any] | None = None,
    reports: dict[str, Any] | None = None,
) -> Manifest:
    """Write micro-batches by hand, one a step; the same weights and values in each epoch."""
    writer = ManifestWriter(
        out,
        snapshot=open_dataset(data).snapshot,
        stages=[{"stage": "batch", "method": "by-hand", "parameters": {"batch_size": 4}}],
        weight_semantics=None if weights is None else "importance",
        side=side,
    )
    with writer:
        for epoch, batches in epochs.items():
            offsets = np.cumsum([0, *map(len, batches)])
            rows = np.concatenate([np.asarray(b, np.uint64) for b in batches])
            with writer.epoch(epoch):
                writer.append(BatchPlan.of(offsets, rows, weights, values))
        return writer.commit(reports=reports)


EPOCHS = {0: [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], 1: [[0, 4], [1, 5], [2, 6], [3]]}


@pytest.fixture(scope="module")
def small_plan(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return written(data, tmp_path_factory.mktemp("plans") / "p", EPOCHS)


# --- worked by hand -------------------------------------------------------------------------------


def test_a_small_plan_by_hand(data: dict[str, str], small_plan: Manifest) -> None:
    found = plan_figures(small_plan, data, column="kind")
    cost = found["cost"]
    assert (cost["rows"], cost["plain_rows"], cost["steps"]) == (17, 24, 7)
    assert cost["saved"] == pytest.approx(7 / 24)
    assert [e["share"] for e in cost["epochs"]] == pytest.approx([10 / 12, 7 / 12])
    kept = [(r["name"], r["rows"], r["kept"], r["ever"]) for r in found["rows"]["sources"]]
    assert kept == [("left", 8, 7, 8), ("right", 4, 0, 2)]
    by_kind = [(r["name"], r["rows"], r["kept"], r["dropped"]) for r in found["classes"]["rows"]]
    assert by_kind == [("a", 4, 4, 0), ("b", 6, 3, 3), ("no value", 2, 0, 2)]
    batches = found["batches"]
    assert batches["sizes"]["values"] == [1, 2]
    assert batches["sizes"]["counts"] == [1, 3]
    assert (batches["padding"], batches["ragged"], batches["last"]) == (1 / 8, 1, 1)
    assert batches["padding_planned"] is None
    coverage = found["coverage"]
    assert [e["seen"] for e in coverage["epochs"]] == [10, 10]
    assert coverage["times"] == [2, 3, 7]
    assert coverage["mean_times"] == pytest.approx(17 / 12)
    chi = found["chi_square"]  # 1/24 of a pair, 3/4 of the single row
    assert chi["mean"] == pytest.approx((3 / 24 + 3 / 4) / 4)
    assert (chi["largest"], chi["step_of_largest"]) == (pytest.approx(0.75), 3)
    assert (chi["classes"], chi["warning"]) == (2, False)
    assert not {"weights", "clusters", "hardness", "windows", "losses", "facts"} & set(found)


def test_side_columns_by_hand(data: dict[str, str], tmp_path: Path) -> None:
    side = (
        SideColumn("cluster", "row", "int32"),
        SideColumn("pad_to", "batch", "int32"),
        SideColumn("negatives", "csr", "int32"),
        SideColumn("mask", "csr", "int32"),
        SideColumn("scores", "csr", "float32"),
    )
    offsets = np.array([0, 2, 3, 3])
    values = {
        "cluster": np.array([0, 0, 2], np.int32),
        "pad_to": np.array([3, 2], np.int32),
        "negatives": Ragged(offsets, np.array([1, 0, 0], np.int32)),
        "mask": Ragged(np.array([0, 1, 2, 4]), np.zeros(4, np.int32)),
        "scores": Ragged(offsets, np.array([0.5, 0.25, -0.25], np.float32)),
    }
    made = written(
        data, tmp_path / "p", {0: [[0, 1], [5]]}, weights=[0.5, 0.5, 2.0], side=side, values=values
    )
    found = plan_figures(made)
    assert found["clusters"]["sizes"] == [2, 0, 1]
    assert (found["clusters"]["empty"], found["clusters"]["mean"]) == (1, 1.5)
    assert found["batches"]["padding"] == 1 - 3 / 4
    assert found["batches"]["padding_planned"] == 1 - 3 / 5
    assert found["weights"] == {"values": [0.5, 2], "counts": [2, 1], "count": 3, "mean": 1.0}
    hard = found["hardness"]
    assert hard["negatives"] == {"values": [0, 1, 2], "counts": [1, 1, 1], "mean": 1}
    assert hard["masked"] == {"values": [1, 2], "counts": [2, 1], "mean": 4 / 3}
    assert hard["hardest"] == {"values": [-0.25, 0.5], "counts": [1, 1], "count": 2, "mean": 0.125}


def test_rows_that_come_twice(data: dict[str, str], tmp_path: Path) -> None:
    made = written(data, tmp_path / "p", {0: [[0, 0, 1], [0, 11]]})
    found = plan_figures(made)
    assert found["coverage"]["times"] == [9, 2, 0, 1]
    left, right = found["rows"]["sources"]
    assert (left["kept"], left["reads"], right["reads"]) == (2, 4, 1)


def test_losses_by_hand(data: dict[str, str], small_plan: Manifest, tmp_path: Path) -> None:
    with SignalStore.for_writing(tmp_path / "s", small_plan) as store:
        loss = np.arange(10, dtype=np.float32)
        store.append(np.arange(10), epoch=0, step=0, loss=loss)
        store.append(np.arange(10), epoch=1, step=0, loss=loss + 100)
    found = plan_figures(small_plan, signal=tmp_path / "s")["losses"]
    assert (found["before_epoch"], found["scored"]) == (1, 10)
    assert (found["kept_rows"], found["kept_mean"]) == (7, 3.0)
    assert (found["dropped_rows"], found["dropped_mean"]) == (3, 8.0)
    assert (found["unscored_kept"], found["unscored_dropped"]) == (0, 2)
    assert sum(found["kept"]) == 7
    assert sum(found["dropped"]) == 3
    table = pa.table({"row": [1, 7], "loss": pa.array([1.0, 3.0], pa.float32())})
    pq.write_table(table, tmp_path / "loss.parquet")
    found = plan_figures(small_plan, signal=tmp_path / "loss.parquet")["losses"]
    assert (found["before_epoch"], found["kept_mean"], found["dropped_mean"]) == (None, 1.0, 3.0)


def test_losses_known_only_later_are_shown(
    data: dict[str, str], tmp_path: Path, small_plan: Manifest
) -> None:
    with SignalStore.for_writing(tmp_path / "s", small_plan) as store:
        store.append([3], epoch=1, step=0, loss=np.array([2.0], np.float32))
    found = plan_figures(small_plan, signal=tmp_path / "s")["losses"]
    assert (found["before_epoch"], found["scored"], found["kept_mean"]) == (None, 1, 2.0)


def test_a_difference_by_hand(data: dict[str, str], small_plan: Manifest, tmp_path: Path) -> None:
    other = written(data, tmp_path / "b", {0: [[0, 1, 2, 3], [4, 5, 11], [8, 9]]})
    found = difference_figures(small_plan, other)
    assert not found["same"]
    assert found["epochs_only_in_a"] == [1]
    (epoch,) = found["epochs"]
    assert (epoch["both"], epoch["only_a"], epoch["only_b"]) == (8, 2, 1)
    assert (epoch["batches_changed"], epoch["equal_until_step"]) == (1, 1)
    left, right = found["sources"]["rows"]
    assert (left["kept_a"], left["kept_b"], right["kept_a"], right["kept_b"]) == (8, 6, 2, 3)
    assert difference_figures(small_plan, small_plan)["epochs"][0]["both"] == 10
    later = written(data, tmp_path / "c", {**EPOCHS, 2: [[0]], 1: [[0, 4], [1, 5], [2, 6], [11]]})
    assert difference_figures(small_plan, later)["sources"]["epoch"] == 1


def test_weights_that_changed(data: dict[str, str], tmp_path: Path) -> None:
    batches = {0: [[0, 1], [2]]}
    one = written(data, tmp_path / "a", batches, weights=[1, 2, 3])
    two = written(data, tmp_path / "b", batches, weights=[1, 2, 4])
    plain = written(data, tmp_path / "c", batches)
    assert difference_figures(one, two)["epochs"][0]["weights_changed"] == 1
    assert difference_figures(one, plain)["epochs"][0]["weights_changed"] == 2


# --- counting -------------------------------------------------------------------------------------


@given(st.data())
def test_chi_square_is_scipys(draw: st.DataObject) -> None:
    classes = draw.draw(st.integers(2, 5))
    sizes = draw.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    rows = sum(sizes)
    codes = np.array(
        draw.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)), np.int16
    )
    counts = np.bincount(codes, minlength=classes)
    if np.count_nonzero(counts) < 2:
        return
    offsets = np.cumsum([0, *sizes])
    found = batch_chi_square(codes, offsets, counts)
    held = counts > 0
    for k, size in enumerate(sizes):
        seen = np.bincount(codes[offsets[k] : offsets[k + 1]], minlength=classes)[held]
        expected = chisquare(seen, size * counts[held] / rows).statistic / (held.sum() - 1)
        assert found[k] == pytest.approx(expected, abs=1e-9)


def test_chi_square_tells_clusters_from_a_shuffle() -> None:
    draw = np.random.default_rng(0)
    labels = np.sort(draw.integers(0, 8, 20_000)).astype(np.int16)
    offsets = np.arange(0, 20_001, 100)
    counts = np.bincount(labels)
    steps = np.arange(200, dtype=np.uint64)
    shuffled = chi_square_figures(
        batch_chi_square(draw.permutation(labels), offsets, counts), steps
    )
    in_order = chi_square_figures(batch_chi_square(labels, offsets, counts), steps)
    assert shuffled is not None
    assert shuffled["mean"] == pytest.approx(1, abs=0.15)
    assert not shuffled["warning"]
    assert in_order is not None
    assert in_order["mean"] > 50
    assert in_order["warning"]
    assert sum(in_order["counts"]) == 200


def test_rows_of_no_class_are_left_out() -> None:
    codes = np.array([-1, -1, 0, -1, 1], np.int16)
    found = batch_chi_square(codes, np.array([0, 2, 5]), np.array([1, 1]))
    assert np.isnan(found[0])
    assert found[1] == 0
    assert chi_square_figures(found[:1], np.zeros(1, np.uint64)) is None


def test_numbers_in_parts_are_counted_as_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).lognormal(0, 0.5, 5000).astype(np.float32)
    whole, parts = FloatCounts(), FloatCounts()
    whole.add(values)
    for part in np.array_split(values, 7):
        parts.add(part)
    found, same = whole.figures(), parts.figures()
    assert found is not None
    assert same is not None
    assert found["counts"] == same["counts"]
    exact, _ = np.histogram(values, found["edges"])
    assert np.abs(exact - found["counts"]).sum() < 0.02 * len(values)
    assert found["mean"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert FloatCounts().figures() is None


def test_bins_by_ratio_and_of_whole_numbers() -> None:
    found = bins_of(np.geomspace(1, 1e4, 100))
    assert found["scale"] == "log"
    assert sum(found["counts"]) == 100
    whole = whole_bins(np.arange(3, 103), np.ones(100, np.int64))
    assert set(whole["counts"][:-1]) == {3}
    assert sum(whole["counts"]) == 100
    assert whole["mean"] == 52.5


def test_times_are_counted_in_the_least_bytes() -> None:
    few, many = RowTimes(4, 3), RowTimes(4, 300)
    few.add(np.array([1, 3], np.uint64), repeated=False)
    for _ in range(300):
        many.add(np.array([2, 2], np.uint64)[:1], repeated=True)
    assert few.times.dtype == np.uint8
    assert few.times.tolist() == [0, 1, 0, 1]
    assert many.times.tolist() == [0, 0, 300, 0]


def test_blocks_of_a_plan_add_up() -> None:
    side = (SideColumn("cluster", "batch", "int64"),)
    whole = BatchPlan.of([0, 3, 5, 9], np.arange(9), None, {"cluster": np.array([1, 0, 1])})
    one, parts = BatchCounts(side), BatchCounts(side)
    one.add(whole)
    for k in range(3):
        parts.add(whole.slice(k, k + 1))
    assert one.batches() == parts.batches()
    assert one.cluster_sizes().tolist() == parts.cluster_sizes().tolist() == [2, 7]


# --- classes --------------------------------------------------------------------------------------


def test_classes_of_a_number_are_ranges(data: dict[str, str], small_plan: Manifest) -> None:
    found = plan_figures(small_plan, data, column="number")["classes"]
    assert found["kind"] == "values"  # eleven whole numbers are few
    assert found["rows"][-1]["name"] == "no value"


def test_many_numbers_are_cut_into_ten_ranges(small: Path, tmp_path: Path) -> None:
    made = plan("shuffle", small, out=tmp_path / "p", batch_size=50, workers=0)
    found = plan_figures(made, small, column="a")
    lines = found["classes"]["rows"]
    assert found["classes"]["kind"] == "ranges"
    assert [line["rows"] for line in lines] == [100] * 10
    assert found["chi_square"]["mean"] == pytest.approx(1, abs=0.4)
    by_text = plan_figures(made, small, column="key")["classes"]
    assert len(by_text["rows"]) == 20
    assert by_text["rows"][-1]["name"] == "981 others"
    assert sum(line["rows"] for line in by_text["rows"]) == 1000


def test_files_without_planned_rows_may_be_gone(
    data: dict[str, str], small_plan: Manifest, tmp_path: Path
) -> None:
    only_left = written(data, tmp_path / "p", {0: [[0, 4], [1, 5]]})
    there = {"left": data["left"], "right": str(tmp_path / "gone")}
    (tmp_path / "gone").mkdir()
    pq.write_table(pa.table({"kind": ["z"]}), tmp_path / "gone" / "0.parquet")
    found = plan_figures(only_left, there, column="kind")["classes"]
    assert found["rows_not_read"] == 4
    assert [line["rows"] for line in found["rows"]] == [4, 4]
    with pytest.raises(DatasetChangedError):
        plan_figures(written(data, tmp_path / "q", {0: [[0, 9]]}), there, column="kind")


def test_a_series_over_a_dataset_that_grows(data: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "grows"
    folder.mkdir()
    for number in range(3):
        table = pa.table({"kind": ["a", "b"] * 4})
        pq.write_table(table, folder / f"{number}.parquet")
        plan("shuffle", folder, out=tmp_path / "s", series=True, added_only=number > 0,
             epochs=(number, number + 1), batch_size=4, workers=0)  # fmt: skip
    found = plan_figures(tmp_path / "s", folder, column="kind")
    assert [e["plain_rows"] for e in found["cost"]["epochs"]] == [8, 16, 24]
    assert [e["rows"] for e in found["cost"]["epochs"]] == [8, 8, 8]
    assert [e["seen"] for e in found["coverage"]["epochs"]] == [8, 16, 24]
    (line,) = found["rows"]["sources"]
    assert (line["rows"], line["kept"], line["ever"]) == (24, 8, 24)


# --- what is said of what is missing --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"column": "kind"}, JobSpecError, "read from the dataset"),
        ({"data": True}, JobSpecError, "--column"),
        ({"data": True, "column": "kid"}, MissingColumnError, "Did you mean 'kind'"),
        ({"data": True, "column": "list"}, ColumnTypeError, "one value a row"),
        ({"signal": "nowhere"}, BatchloomError, "no signal store"),
        ({"signal": "nowhere.parquet"}, BatchloomError, "no signal at"),
    ],
)
def test_what_is_missing_is_said(
    data: dict[str, str],
    small_plan: Manifest,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    given = {**options, "data": data} if options.get("data") else options
    with pytest.raises(error, match=words):
        plan_figures(small_plan, **given)


def test_too_many_texts(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    table = pa.table({"text": [f"t{i}" for i in range(1200)]})
    pq.write_table(table, tmp_path / "d" / "0.parquet")
    made = plan("shuffle", tmp_path / "d", out=tmp_path / "p", batch_size=100, workers=0)
    with pytest.raises(SelectionError, match="more than 1,000 different values"):
        plan_figures(made, tmp_path / "d", column="text")


def test_signals_that_are_no_losses(
    data: dict[str, str], small_plan: Manifest, small: Path, tmp_path: Path
) -> None:
    with SignalStore.for_writing(tmp_path / "s", small_plan) as store:
        store.append([1], epoch=0, step=0, wide=np.zeros((1, 3), np.float32))
    with pytest.raises(SelectionError, match="3 numbers a row"):
        plan_figures(small_plan, signal=tmp_path / "s", loss="wide")
    with pytest.raises(SignalError, match="holds no signal 'loss'"):
        plan_figures(small_plan, signal=tmp_path / "s")
    with SignalStore.for_writing(tmp_path / "u", small_plan) as store:
        store.append([1], epoch=0, step=0, loss=np.full(1, np.nan, np.float32))
    with pytest.raises(SelectionError, match="no finite loss"):
        plan_figures(small_plan, signal=tmp_path / "u")
    with SignalStore.for_writing(tmp_path / "t", open_dataset(small)) as store:
        store.append([1], epoch=0, step=0, loss=np.zeros(1, np.float32))
    with pytest.raises(DatasetChangedError):
        plan_figures(small_plan, signal=tmp_path / "t")


def test_figures_are_plain(small_plan: Manifest) -> None:
    found = plan_figures(small_plan)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
