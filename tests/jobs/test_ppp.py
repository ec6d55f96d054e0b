"""PPP as a job: the clusters that it finds in memory, whatever the workers and the parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.clustering import PPP
from batchloom.clustering.ppp import PPPModel, evidence_series
from batchloom.dataplane import Manifest, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    InvalidValueError,
    JobSpecError,
    SelectionError,
)
from batchloom.jobs import plan, planning, rank_tasks
from batchloom.jobs.budget import Budget
from batchloom.jobs.cli.app import build
from batchloom.jobs.cli.ppp import print_ppp

ROWS = 1200
SETTINGS: dict[str, Any] = {"k_max": 5, "rows": 400, "restarts": 2}
CORNERS = np.array([[0.0, 0, 0], [5, 0, 0], [0, 9, 0]])


def table(bad: dict[int, float] | None = None, corners: Any = CORNERS) -> pa.Table:
    """Return rows of round groups, two of which touch."""
    draw = np.random.default_rng(0)
    which = draw.choice(3, ROWS, p=[0.5, 0.3, 0.2])
    x = (corners[which] + draw.standard_normal((ROWS, 3))).astype(np.float32)
    for row, value in (bad or {}).items():
        x[row, 1] = value
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)})


def write(folder: Path, rows: pa.Table, parts: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), parts)):
        pq.write_table(rows.take(part), folder / f"{number}.parquet", row_group_size=100)
    return folder


X = np.array(table().column("x").to_pylist(), np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ppp") / "data", table())


def planned(data: Path, out: Path, **options: Any) -> Manifest:
    given = {"columns": "x", "batch_size": 16, "workers": 0, "seed": 7, **SETTINGS, **options}
    return plan("ppp", data, out=out, **given)


def labels_of(manifest: Manifest) -> Any:
    """The cluster of each row, from micro-batches of one cluster each; -1 where it is left out."""
    whole = manifest.epoch(0).plan()
    labels = np.full(ROWS, -1)
    labels[whole.rows.astype(int)] = np.repeat(whole.side["cluster"], np.diff(whole.offsets))
    return labels


def test_as_in_memory(data: Path, tmp_path: Path) -> None:
    made = planned(data, tmp_path / "p")
    found = PPP(**SETTINGS, seed=7).fit(X)
    assert found.k == 3
    assert labels_of(made).tolist() == found.labels.tolist()
    report = made.provenance["reports"]["ppp"]
    assert report["k"] == 3
    assert report["sizes"] == np.bincount(found.labels).tolist()
    assert report["separable_sizes"] == np.bincount(found.labels[found.separable]).tolist()
    assert report["separable_share"] == pytest.approx(found.separable.mean())
    assert 0.9 < report["separable_share"] < 1
    assert report["evidence"] == list(found.evidence)
    assert report["sample_rows"] == 400
    assert report["invalid_rows"] == 0


def test_only_the_separable_rows(data: Path, tmp_path: Path) -> None:
    found = PPP(**SETTINGS, seed=7).fit(X)
    kept = np.flatnonzero(found.separable)
    made = planned(data, tmp_path / "p", separable=True)
    assert labels_of(made).tolist() == np.where(found.separable, found.labels, -1).tolist()
    whole = planned(data, tmp_path / "q")
    assert made.provenance["reports"]["ppp"] == whole.provenance["reports"]["ppp"]
    across = planned(data, tmp_path / "r", separable=True, batches="across").epoch(0).plan()
    assert sorted(across.rows.tolist()) == kept.tolist()
    counts = [np.bincount(found.labels[across.rows[a:b].astype(int)], minlength=3)
              for a, b in zip(across.offsets[:-1], across.offsets[1:], strict=True)]  # fmt: skip
    shares = np.bincount(found.labels[kept]) / len(kept)
    assert np.abs(counts[:-1] - 16 * shares).max() < 2


def test_whatever_the_parts_the_workers_and_the_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(data, tmp_path / "a", separable=True)
    monkeypatch.setattr(rank_tasks, "TASK_BYTES", 12 * 170)
    monkeypatch.setattr(rank_tasks, "READ_BYTES", 12 * 33)
    for name, workers in (("b", 0), ("c", 2)):
        again = planned(data, tmp_path / name, separable=True, task_bytes=3000, workers=workers)
        assert again.manifest_id == first.manifest_id
        assert again.provenance["reports"] == first.provenance["reports"]
    monkeypatch.setattr(planning, "make_budget", lambda *_: Budget(1 << 30, 0, None, 10_000))
    again = planned(data, tmp_path / "d", separable=True)
    assert again.manifest_id == first.manifest_id


def test_rows_without_structure_are_one_cluster(tmp_path: Path) -> None:
    data = write(tmp_path / "data", table(corners=np.zeros((3, 3))))
    for batches in ("within", "across"):
        made = planned(data, tmp_path / batches, batches=batches)
        report = made.provenance["reports"]["ppp"]
        assert report["k"] == 1
        assert report["sizes"] == report["separable_sizes"] == [ROWS]
        assert sorted(made.epoch(0).plan().rows.tolist()) == list(range(ROWS))


def test_another_seed_is_another_plan_of_the_same_groups(data: Path, tmp_path: Path) -> None:
    a, b = planned(data, tmp_path / "a"), planned(data, tmp_path / "b", seed=8)
    assert a.manifest_id != b.manifest_id
    assert (labels_of(a) == labels_of(b)).mean() > 0.99


def test_the_evidence_can_be_drawn_from_the_manifest(data: Path, tmp_path: Path) -> None:
    planned(data, tmp_path / "p")
    report = Manifest.open(tmp_path / "p").provenance["reports"]["ppp"]
    assert report["limits"] == PPP(**SETTINGS).limits(400)
    series = evidence_series(report["evidence"], report["limits"])
    assert series["k"] == [1, 2, 3, 4, 5]
    assert series["chosen"] == 3


def test_what_inspect_says(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = planned(data, tmp_path / "p")
    capsys.readouterr()
    arguments = ["inspect", str(tmp_path / "p"), "--json"]
    build(arguments)(arguments, standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["reports"]["ppp"] == made.provenance["reports"]["ppp"]
    print_ppp(told["reports"]["ppp"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ppp: 3 clusters, found in 400 rows; 97.9% of all rows are sep")
    assert sum(line.startswith("  cluster ") for line in lines) == 3
    assert [line.split()[0] for line in lines[5:]] == ["1", "2", "3", "4", "5", "limit"]
    assert [line.endswith("nothing, chosen") for line in lines[5:]] == [False] * 2 + [True] + [
        False
    ] * 3
    stage = next(s for s in told["stages"] if s["method"] == "ppp")
    assert stage["parameters"]["k_max"] == 5
    assert stage["parameters"]["separable"] is False


def test_rows_that_are_not_finite(tmp_path: Path) -> None:
    data = write(tmp_path / "data", table({5: np.nan, 700: np.inf}))
    with pytest.raises(InvalidValueError, match="2 rows .* x: 5, 700"):
        planned(data, tmp_path / "p")
    made = planned(data, tmp_path / "p", on_invalid="drop")
    kept = np.delete(np.arange(ROWS), [5, 700])
    expected = PPP(**SETTINGS, seed=7).fit(X[kept], kept.astype(np.uint64))
    assert labels_of(made)[kept].tolist() == expected.labels.tolist()
    assert made.provenance["reports"]["ppp"]["invalid_rows"] == 2


def test_embeddings_of_a_signal(data: Path, tmp_path: Path) -> None:
    with SignalStore.for_writing(tmp_path / "s", open_dataset(data)) as store:
        store.append(np.arange(ROWS), epoch=0, step=0, embedding=X)
    options: dict[str, Any] = {"signal": tmp_path / "s", "epochs": (1, 2)}
    made = planned(data, tmp_path / "p", columns=None, feature="embedding", **options)
    same = planned(data, tmp_path / "q", epochs=(1, 2))
    assert made.epoch(1).plan().rows.tolist() == same.epoch(1).plan().rows.tolist()
    assert made.identity["signals"] == store.digest("embedding", before=1)


def test_no_row_is_certain_enough(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(model: PPPModel, x: Any, ids: Any = None) -> Any:
        return np.zeros(len(x), np.int32), np.zeros(len(x), np.float32), np.zeros(len(x), bool)

    monkeypatch.setattr(PPPModel, "assign", unsure)
    with pytest.raises(SelectionError, match="No row is left after the group stage 'ppp'"):
        planned(data, tmp_path / "p", separable=True)
    planned(data, tmp_path / "q")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": None}, JobSpecError, "ppp .*name columns"),
        ({"columns": "y"}, BatchloomError, "'y'"),
        ({"k_max": 0}, JobSpecError, r"'k_max' parameter of ppp .*\[1, inf\)"),
        ({"certain": 1.5}, JobSpecError, r"'certain' parameter of ppp .*\[0, 1\]"),
        ({"batches": "aligned"}, JobSpecError, "'batches' parameter of ppp"),
    ],
)
def test_bad_jobs(
    data: Path, tmp_path: Path, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(data, tmp_path / "p", **options)
    assert not list(tmp_path.iterdir())
