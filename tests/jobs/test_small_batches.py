"""Small batches as a job: what the methods choose in memory, from columns, signals and sources."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.coresets import CRAIG, CoLM, GradMatch, KCenter, KeepSmall, RandomRows
from batchloom.dataplane import Manifest, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    InvalidValueError,
    JobSpecError,
    MissingColumnError,
    ParameterError,
    SelectionError,
)
from batchloom.jobs import batch_tasks, plan, run
from batchloom.jobs.cli.app import build
from batchloom.jobs.inspecting import describe_step
from batchloom.samplers import ManifestLoader

SIZES = {"web": 600, "books": 300, "code": 60, "law": 30, "math": 10}
ROWS = sum(SIZES.values())
BATCH, K = 64, 32


def mixture(bad: dict[int, float] | None = None) -> pa.Table:
    """Rows of five sources, in random order, with a feature of five numbers each."""
    draw = np.random.default_rng(0)
    names = np.repeat(list(SIZES), list(SIZES.values()))[draw.permutation(ROWS)]
    x = draw.standard_normal((ROWS, 5)).astype(np.float32)
    for row, value in (bad or {}).items():
        x[row, 2] = value
    return pa.table(
        {
            "g": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 5),
            "from": pa.array(names.tolist()),
            "label": (np.arange(ROWS) % 4).astype(np.int64),
        }
    )


def write(folder: Path, table: pa.Table, parts: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(len(table)), parts)):
        pq.write_table(table.take(rows), folder / f"{number}.parquet", row_group_size=100)
    return folder


TABLE = mixture()
FEATURES = np.array(TABLE.column("g").to_pylist(), np.float32)
NAMES = np.array(TABLE.column("from").to_pylist())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mixture") / "data", TABLE)


def planned(method: str, data: Any, out: Path, **options: Any) -> Manifest:
    given = {"batch_size": BATCH, "k": K, "workers": 0, "seed": 7, **options}
    return plan(method, data, out=out, **given)


def colm(data: Any, out: Path, **options: Any) -> Manifest:
    return planned("colm", data, out, **{"columns": "g", "sources": "from", **options})


def report_of(manifest: Manifest, method: str = "colm", epoch: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = manifest.provenance["reports"][method]["epochs"][str(epoch)]
    return found


# --- the same rows as in memory -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "options", "by"),
    [
        ("colm", CoLM(), {"columns": "g", "sources": "from"}, "from"),
        (
            "colm",
            CoLM(weights="cluster", metric="l2", refine=True),
            {
                "columns": "g", "sources": "from", "weights": "cluster", "metric": "l2",
                "refine": True,
            },
            "from",
        ),
        ("craig", CRAIG(), {"columns": "g", "classes": "label"}, "label"),
        ("craig", CRAIG(), {"columns": "g"}, None),
        ("gradmatch", GradMatch(ridge=0.1), {"columns": "g", "ridge": 0.1}, None),
        ("k-center", KCenter(weights="cluster"), {"columns": "g", "weights": "cluster"}, None),
        ("keep-small", KeepSmall(seed=7), {"sources": "from"}, "from"),
        ("random-rows", RandomRows(seed=7), {}, None),
    ],
)  # fmt: skip
def test_as_in_memory(
    data: Path, tmp_path: Path, name: str, method: Any, options: Any, by: str | None
) -> None:
    made = planned(name, data, tmp_path / "p", epochs=(1, 2), **options)
    whole = plan("shuffle", data, out=tmp_path / "w", batch_size=BATCH, seed=7, epochs=(1, 2))
    large, small = whole.epoch(1).plan(), made.epoch(1).plan()
    assert len(small) == len(large) == -(-ROWS // BATCH)
    groups = None if by is None else np.array(TABLE.column(by).to_pylist())
    for batch in range(len(large)):
        before, after = large.slice(batch, batch + 1), small.slice(batch, batch + 1)
        rows = before.rows.astype(int)
        expected = method.select(
            FEATURES[rows],
            None if groups is None else groups[rows],
            min(K, len(rows)),
            source_counts=SIZES if by == "from" else None,
            ids=rows,
            epoch=1,
        )
        assert after.rows.tolist() == rows[expected.rows.astype(int)].tolist()
        assert method.weighted == (after.weights is not None)
        if after.weights is not None:
            assert after.weights.tolist() == expected.weights.tolist()
    assert made.weight_semantics == ("cluster" if method.weighted else None)


def test_side_columns_say_why(data: Path, tmp_path: Path) -> None:
    made = colm(data, tmp_path / "p")
    assert [c.name for c in made.side_columns] == ["source", "reason", "budget", "of"]
    names = sorted(SIZES)
    whole = made.epoch(0).plan()
    for batch in range(len(whole)):
        one = whole.slice(batch, batch + 1)
        rows = one.rows.astype(int)
        assert [names[c] for c in one.side["source"]] == NAMES[rows].tolist()
        assert one.side["reason"].tolist() == [
            int(n in ("code", "law", "math")) for n in NAMES[rows]
        ]
        kept = {n: (NAMES[rows] == n).sum() for n in names}
        assert one.side["budget"].tolist() == [kept[n] for n in NAMES[rows]]
        of = np.asarray(one.side["of"])
        assert (of[NAMES[rows] == "code"] == kept["code"]).all()  # kept whole
    told = {s["source"]: s for s in report_of(made)["sources"]}
    for name, rows in SIZES.items():
        assert told[name]["in_dataset"] == told[name]["rows"] == rows
        assert told[name]["selected"] == (NAMES[whole.rows.astype(int)] == name).sum()
        assert told[name]["kept_whole"] == (name in ("code", "law", "math"))
    assert report_of(made)["selected"] == 15 * K + K
    assert report_of(made)["saved"] == pytest.approx(1 - 16 * K / ROWS)
    made.verify(deep=True)


def test_what_is_told_of_the_choice(data: Path, tmp_path: Path) -> None:
    quality = report_of(colm(data, tmp_path / "p", weights="cluster"))["quality"]
    assert quality["measured"] == 1  # the first of every 32
    assert 0 < quality["cost"] < quality["random_cost"]
    assert 0.3 < quality["nearest_cosine"] < 1
    assert "times as far" in quality["said"]
    assert report_of(planned("random-rows", data, tmp_path / "r"), "random-rows")["quality"] == {}


def test_the_loader_serves_it(data: Path, tmp_path: Path) -> None:
    colm(data, tmp_path / "p", weights="cluster", batch_size=128, k=64)
    batches = list(ManifestLoader(tmp_path / "p", data, columns=["g", "label"]))
    assert [len(b.rows) for b in batches] == [64] * 8
    for batch in batches:
        assert batch.weights is not None
        assert float(batch.weights.sum()) == pytest.approx(128 if batch.step < 7 else 104)
        assert batch["g"].numpy().tolist() == FEATURES[batch.rows.numpy()].tolist()
        assert len(batch.side["reason"]) == 64
    one = describe_step(Manifest.open(tmp_path / "p"), 0, 0)
    assert json.dumps(one)


def test_what_inspect_prints(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colm(data, tmp_path / "p")
    arguments = ["inspect", str(tmp_path / "p")]
    build(arguments)(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "colm, epoch 0: 512 of 1,000 rows, 48.8% saved" in printed
    assert re.search(r"\n  law +30 rows, +30 kept +whole #{40}\n", printed)
    assert "times as far from the others as random ones" in printed


# --- whatever the parts, workers and sources ------------------------------------------------------


def test_parts_and_workers_change_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = colm(data, tmp_path / "a").manifest_id
    other = write(tmp_path / "one", TABLE, parts=1)
    assert colm(other, tmp_path / "b").epoch(0).plan().rows.tolist() == (
        Manifest.open(tmp_path / "a").epoch(0).plan().rows.tolist()
    )
    monkeypatch.setattr(batch_tasks, "_PAIRS", 3e5)  # three micro-batches a task
    monkeypatch.setattr(batch_tasks, "_FEATURE_BYTES", 2000)
    assert colm(data, tmp_path / "c", task_bytes=1000).manifest_id == first
    assert colm(data, tmp_path / "d", workers=2).manifest_id == first


def test_named_sources_of_the_dataset(tmp_path: Path) -> None:
    named, joined = {}, []
    for name in SIZES:
        part = TABLE.filter(pa.compute.equal(TABLE.column("from"), name))
        named[name] = write(tmp_path / name, part, parts=1)
        joined.append((name, len(part)))
    made = planned("colm", named, tmp_path / "p", columns="g")
    by_column = colm(named, tmp_path / "q")
    assert made.epoch(0).plan().rows.tolist() == by_column.epoch(0).plan().rows.tolist()
    assert [s["source"] for s in report_of(made)["sources"]] == sorted(SIZES)


def test_features_of_a_signal(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(data)
    with SignalStore.for_writing(tmp_path / "s", dataset) as store:
        for step, rows in enumerate(np.array_split(np.random.default_rng(1).permutation(ROWS), 6)):
            store.append(rows, epoch=0, step=step, gradient=FEATURES[rows])
    options: dict[str, Any] = {"columns": None, "signal": tmp_path / "s", "epochs": (1, 2)}
    made = colm(data, tmp_path / "p", **options)
    same = colm(data, tmp_path / "q", epochs=(1, 2))
    assert made.epoch(1).plan().rows.tolist() == same.epoch(1).plan().rows.tolist()
    assert made.identity["signals"] == store.digest("gradient", before=1)
    assert same.identity["signals"] is None
    with pytest.raises(SelectionError, match="no feature of any row yet: the signal 'gradient'"):
        colm(data, tmp_path / "r", **{**options, "epochs": (0, 1)})
    with pytest.raises(BatchloomError, match="embedding"):
        colm(data, tmp_path / "r", **options, feature="embedding")


def test_rows_without_a_feature_in_the_signal(data: Path, tmp_path: Path) -> None:
    with SignalStore.for_writing(tmp_path / "s", open_dataset(data)) as store:
        rows = np.delete(np.arange(ROWS), [5, 77])
        store.append(rows, epoch=0, step=0, gradient=FEATURES[rows])
    options: dict[str, Any] = {"columns": None, "signal": tmp_path / "s", "epochs": (1, 2)}
    with pytest.raises(InvalidValueError, match="2 rows .* the signal 'gradient': 5, 77"):
        colm(data, tmp_path / "p", **options)
    made = colm(data, tmp_path / "p", **options, on_invalid="drop")
    assert not np.isin([5, 77], made.epoch(1).plan().rows).any()
    assert report_of(made, epoch=1)["invalid_rows"] == 2


def test_after_a_selection_by_loss_features_are_read_once(data: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f"""dataset = "{data}"
out = "{tmp_path / "p"}"
batch_size = 64
epochs = "0:2"
workers = 0
[[stages]]
method = "random"
prune_ratio = 0.5
[[stages]]
method = "colm"
columns = ["g"]
sources = "from"
k = 20
"""
    )
    run(job)
    made = Manifest.open(tmp_path / "p")
    for epoch in range(2):
        assert np.diff(made.epoch(epoch).plan().offsets).tolist() == [20] * 8
    # What is small is said of the rows that take part in some epoch, not of one epoch's.
    assert {s["in_dataset"] for s in report_of(made, epoch=1)["sources"]} == set(SIZES.values())


def test_counts_are_those_of_the_rows_that_take_part(data: Path, tmp_path: Path) -> None:
    made = colm(data, tmp_path / "p", where="'from' != 'web'".replace("'from'", "col('from')"))
    told = {s["source"]: s for s in report_of(made)["sources"]}
    assert set(told) == set(SIZES) - {"web"}
    assert told["books"]["kept_whole"] is False
    assert told["code"]["kept_whole"] is True  # 60 of 400 rows, of four sources


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(tmp_path: Path, value: float) -> None:
    data = write(tmp_path / "data", mixture({3: value, 500: value}))
    with pytest.raises(InvalidValueError, match=r"2 rows .* g: 3, 500\. .*--on-invalid drop"):
        colm(data, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    made = colm(data, tmp_path / "p", on_invalid="drop")
    rows = made.epoch(0).plan().rows
    assert not np.isin([3, 500], rows).any()
    assert len(rows) == 16 * K
    assert report_of(made)["invalid_rows"] == 2


def test_a_batch_of_bad_rows_only(tmp_path: Path) -> None:
    data = write(tmp_path / "data", mixture(dict.fromkeys(range(ROWS), np.nan)))
    with pytest.raises(SelectionError, match="None of the 64 rows of a micro-batch"):
        colm(data, tmp_path / "p", on_invalid="drop")


def test_a_row_without_a_source(tmp_path: Path) -> None:
    names = pa.array([None if i == 41 else n for i, n in enumerate(NAMES.tolist())])
    data = write(tmp_path / "data", TABLE.set_column(1, "from", names))
    with pytest.raises(SelectionError, match="Row 41 has no source: its 'from' is null"):
        colm(data, tmp_path / "p")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": None}, JobSpecError, "colm needs features: name columns"),
        ({"k": 65}, JobSpecError, "k = 65 rows of micro-batches of 64"),
        ({"k": 0}, JobSpecError, "'k' parameter of colm must be an int or None in the"),
        ({"columns": "h"}, MissingColumnError, "'h'"),
        ({"sources": "origin"}, MissingColumnError, "'origin'"),
        ({"sources": None}, SelectionError, "The dataset has one source, 'data': name the column"),
        ({"small": ["lore"]}, SelectionError, "'small' names the source 'lore', .* Did you mean"),
        ({"columns": "from"}, BatchloomError, "'from' is string: expected numbers"),
    ],
)
def test_bad_jobs(
    data: Path, tmp_path: Path, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises((error, ParameterError), match=message):
        colm(data, tmp_path / "p", **options)
    assert not list(tmp_path.iterdir())


def test_sources_that_are_named_as_small(data: Path, tmp_path: Path) -> None:
    made = colm(data, tmp_path / "p", small=["law"])
    told = {s["source"]: s["kept_whole"] for s in report_of(made)["sources"]}
    assert told == {n: n == "law" for n in SIZES}
    assert "law" in json.dumps(made.identity["stages"])
