"""Plans by loss: the rows that the methods choose in memory, from stores, files and columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.coresets import HardBatches, Importance, InfoBatch, RandomShare, SeTa
from batchloom.dataplane import Manifest, Series, SignalStore, open_dataset, open_plan
from batchloom.dataplane.errors import (
    DatasetChangedError,
    DatasetError,
    JobSpecError,
    ParameterError,
    SelectionError,
    SignalConflictError,
    SignalError,
)
from batchloom.jobs import loss_passes, plan, run, signal_reading
from batchloom.jobs.cli.app import build
from batchloom.jobs.estimate import estimate
from batchloom.jobs.losses import open_signal
from batchloom.jobs.planning import make_spec
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.spec import JobSpec
from batchloom.tests.dataplane.store import Store
from batchloom.tests.jobs.conftest import ROWS, small_table, write_small

METHODS = ("seta", "infobatch", "importance", "hard-batches")
LOSSES = np.random.default_rng(5).lognormal(-1, 1.5, ROWS).astype(np.float32)
SCORED = np.arange(ROWS) % 9 != 4


def write_signal(folder: Path, data: Path, values: Any = LOSSES, scored: Any = SCORED) -> Path:
    """Write losses of two epochs; the later one counts."""
    rows = np.flatnonzero(scored)
    with SignalStore.for_writing(folder, open_dataset(data), part_rows=300) as store:
        for step, part in enumerate(np.array_split(np.random.default_rng(0).permutation(rows), 5)):
            store.append(part, epoch=0, step=step, loss=values[part] + 1)
        for step, part in enumerate(np.array_split(np.random.default_rng(1).permutation(rows), 7)):
            store.append(part, epoch=1, step=step, loss=values[part])
    return folder


@pytest.fixture(scope="module")
def signal(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The losses of the small dataset, after epoch 1; read only."""
    return write_signal(tmp_path_factory.mktemp("signal") / "s", small)


def planned(method: str, data: Any, out: Path, signal: Any, **options: Any) -> Manifest:
    given = {"epochs": (2, 3), "batch_size": 16, "workers": 0, "seed": 7, **options}
    return plan(method, data, out=out, signal=signal, **given)


def selected(manifest: Manifest, epoch: int = 2) -> tuple[list[int], Any]:
    """Return (rows, ascending; their weights)."""
    whole = manifest.epoch(epoch).plan()
    order = np.argsort(whole.rows)
    weights = None if whole.weights is None else whole.weights[order].tolist()
    return whole.rows[order].tolist(), weights


def report_of(manifest: Manifest, method: str, epoch: int = 2) -> dict[str, Any]:
    found: dict[str, Any] = manifest.provenance["reports"][method]["epochs"][str(epoch)]
    return found


# --- the same rows as in memory -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"weights": "unbiased", "groups": 8, "prune_ratio": 0}])
def test_seta_selects_what_it_does_in_memory(
    small: Path, signal: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    method = SeTa(**options, epochs=4, seed=7)
    for epoch in range(4):  # the last one anneals; epoch 0 and 1 know less
        made = planned(
            "seta", small, tmp_path / "p", signal, epochs=(epoch, epoch + 1), training_epochs=4,
            **options,
        )  # fmt: skip
        known = np.zeros(ROWS, bool) if epoch == 0 else SCORED
        now = LOSSES + 1 if epoch == 1 else LOSSES
        expected = method.plan(now, epoch=epoch, scored=known)
        rows, weights = selected(made, epoch)
        assert rows == expected.rows.tolist()
        assert weights == (None if expected.weights is None else expected.weights.tolist())
        told = report_of(made, "seta", epoch)
        assert {k: told[k] for k in expected.report} == dict(expected.report)
    assert Series.open(tmp_path / "p").epochs == (0, 1, 2, 3)


def test_infobatch_selects_what_it_does_in_memory(
    small: Path, signal: Path, tmp_path: Path
) -> None:
    made = planned("infobatch", small, tmp_path / "p", signal)
    expected = InfoBatch(seed=7).plan(LOSSES, epoch=2, scored=SCORED)
    assert expected.weights is not None
    assert selected(made) == (expected.rows.tolist(), expected.weights.tolist())
    told = report_of(made, "infobatch")
    assert told["weight_sum"] == pytest.approx(ROWS)
    assert told["selected_never_scored"] == (~SCORED).sum()
    inside = np.isin(np.arange(ROWS), expected.rows) & SCORED
    assert told["selected_mean_loss"] == pytest.approx(LOSSES[inside].mean(dtype="f8"))
    assert made.records[2].weight_sum == pytest.approx(ROWS * 2**24, rel=1e-6)
    assert made.weight_semantics == "importance"


@pytest.mark.parametrize("weights", ["none", "unbiased"])
def test_importance_selects_what_it_does_in_memory(
    small: Path, signal: Path, tmp_path: Path, weights: Any
) -> None:
    made = planned("importance", small, tmp_path / "p", signal, weights=weights)
    expected = Importance(seed=7, weights=weights).plan(LOSSES, epoch=2, scored=SCORED)
    wanted = None if expected.weights is None else expected.weights.tolist()
    assert selected(made) == (expected.rows.tolist(), wanted)
    assert report_of(made, "importance")["selected_never_scored"] == (~SCORED).sum()
    assert made.weight_semantics == (None if weights == "none" else "importance")


@pytest.mark.parametrize("fresh", [True, False])
def test_a_random_share_needs_no_losses(small: Path, tmp_path: Path, fresh: bool) -> None:
    made = planned("random", small, tmp_path / "p", None, epochs=(0, 3), fresh=fresh)
    chosen = [selected(made, e)[0] for e in range(3)]
    method = RandomShare(fresh=fresh, seed=7)
    assert chosen == [method.plan(LOSSES, epoch=e).rows.tolist() for e in range(3)]
    assert made.identity["signals"] is None
    assert not isinstance(open_plan(tmp_path / "p"), Series)


@pytest.mark.parametrize("level", ["rows", "batches"])
@pytest.mark.parametrize("epoch", [2, 5])
def test_hard_batches_reduce_the_shuffle(
    small: Path, signal: Path, tmp_path: Path, level: str, epoch: int
) -> None:
    few = write_signal(tmp_path / "s", small, scored=np.ones(ROWS, bool))
    options: dict[str, Any] = {"level": level, "loss_cap_quantile": 0.9, "delta": 0.3}
    made = planned(
        "hard-batches", small, tmp_path / "p", few, epochs=(epoch, epoch + 1), micro_per_step=2,
        **options,
    )  # fmt: skip
    whole = planned("shuffle", small, tmp_path / "w", None, epochs=(epoch, epoch + 1))
    before = whole.epoch(epoch).plan()
    expected = HardBatches(**options).reduce(before, LOSSES[before.rows.astype(int)], epoch)
    found = made.epoch(epoch).plan()
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.step.tolist() == [k // 2 for k in range(len(expected))]
    told = report_of(made, "hard-batches", epoch)
    assert told["selected"] == len(expected.rows)
    assert told["saved"] == pytest.approx(1 - len(expected.rows) / ROWS)
    assert (told["saved"] == 0) == (epoch == 5)


# --- whatever the parts, workers and sources ------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "random"])
def test_partitions_do_not_change_a_byte(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for parts in (1, 2, 7, 64):
        sizes = tuple(len(p) for p in np.array_split(np.arange(ROWS), parts))
        data = write_small(tmp_path / f"data-{parts}", sizes)
        signal = write_signal(tmp_path / f"s-{parts}", data)
        monkeypatch.setattr(signal_reading, "RANGE_ROWS", 1 + 2000 // parts)
        monkeypatch.setattr(loss_passes, "TASK_ROWS", 1 + 1500 // parts)
        used = None if method == "random" else signal
        made = planned(method, data, tmp_path / f"p-{parts}", used)
        found.add((str(selected(made)), str(made.records[2].to_json())))
    assert len(found) == 1


@pytest.mark.parametrize("method", METHODS)
def test_tasks_and_workers_do_not_change_the_id(
    small: Path, signal: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {planned(method, small, tmp_path / "0", signal).manifest_id}
    monkeypatch.setattr(signal_reading, "RANGE_ROWS", 130)
    monkeypatch.setattr(loss_passes, "TASK_ROWS", 200)
    ids.add(planned(method, small, tmp_path / "1", signal).manifest_id)
    if method == "seta":
        ids.add(planned(method, small, tmp_path / "2", signal, workers=1).manifest_id)
    assert len(ids) == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow", "column"])
def test_files_and_columns_select_what_a_store_does(
    small: Path, signal: Path, tmp_path: Path, kind: str
) -> None:
    expected = selected(planned("seta", small, tmp_path / "a", signal))
    rows = np.random.default_rng(2).permutation(np.flatnonzero(SCORED))
    table = pa.table({"row": rows, "loss": LOSSES[rows]})
    source: Any = tmp_path / f"losses.{kind}"
    options: dict[str, Any] = {}
    data = small
    if kind == "parquet":
        pq.write_table(table, source, row_group_size=100)
    elif kind == "arrow":
        with pa.ipc.new_file(source, table.schema) as file:
            file.write_table(table, max_chunksize=77)
    else:
        source, options = None, {"column": "loss"}
        data = tmp_path / "data"
        data.mkdir()
        column = pa.array(LOSSES, mask=~SCORED)
        pq.write_table(small_table(0, ROWS).append_column("loss", column), data / "a.parquet")
    made = planned("seta", data, tmp_path / "b", source, **options)
    assert selected(made) == expected
    store = SignalStore.open(signal)
    digest = None if kind == "column" else store.digest(before=2)
    assert made.identity["signals"] == digest


def test_a_store_on_s3(small: Path, signal: Path, tmp_path: Path, store: Store) -> None:
    remote = store.at("signals")
    with SignalStore.for_writing(
        remote, open_dataset(small), storage_options=store.options
    ) as made:
        rows = np.flatnonzero(SCORED)
        made.append(rows, epoch=1, step=0, loss=LOSSES[rows])
    there = planned("seta", small, tmp_path / "a", remote, storage_options=store.options)
    here = planned("seta", small, tmp_path / "b", signal)
    assert there.manifest_id == here.manifest_id


def test_rows_that_other_stages_left_over(small: Path, signal: Path, tmp_path: Path) -> None:
    made = planned("infobatch", small, tmp_path / "p", signal, where="label in [1, 2]")
    k = np.arange(ROWS)
    left = np.isin((k * k % 7).astype(np.int32), [1, 2])
    expected = InfoBatch(seed=7).plan(LOSSES[left], epoch=2, scored=SCORED[left], ids=k[left])
    assert expected.weights is not None
    rows, weights = selected(made)
    assert rows == k[left][expected.rows.astype(int)].tolist()
    assert weights == expected.weights.tolist()


def test_chained_in_a_job_file(small: Path, signal: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'dataset = "{small}"\nout = "{tmp_path / "p"}"\nsignal = "{signal}"\nepochs = "2:4"\n'
        "batch_size = 16\nseed = 7\nworkers = 0\n"
        '[[stages]]\nmethod = "seta"\ntraining_epochs = 10\n'
        '[[stages]]\nmethod = "kmeans"\ncolumns = ["x"]\nk = 3\nbatches = "within"\n'
    )
    made = run(job)
    for epoch in (2, 3):
        expected = SeTa(epochs=10, seed=7).plan(LOSSES, epoch=epoch, scored=SCORED)
        assert selected(made, epoch)[0] == expected.rows.tolist()
    assert Series.open(tmp_path / "p").epochs == (2, 3)


@pytest.mark.parametrize(
    ("method", "options"),
    [("seta", {}), ("seta", {"weights": "unbiased", "groups": 3}), ("infobatch", {})],
)
def test_as_a_recipe(
    small: Path, signal: Path, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    explicit = planned(method, small, tmp_path / "e", signal, **options)
    recipe = planned(method, small, tmp_path / "r", signal, form="recipe", **options)
    assert not list((tmp_path / "r").rglob("part-*"))
    a, b = explicit.epoch(2).plan(), recipe.epoch(2).plan()
    assert a.rows.tolist() == b.rows.tolist()
    assert (a.weights is None) == (b.weights is None)
    if a.weights is not None and b.weights is not None:
        assert a.weights.tolist() == b.weights.tolist()


# --- series, and datasets that grow ---------------------------------------------------------------


def test_members_name_parent_and_losses(small: Path, tmp_path: Path) -> None:
    data, folder = small, tmp_path / "s"
    first = planned("seta", data, tmp_path / "p", folder, epochs=(0, 1))  # no store yet
    write_signal(folder, data)
    members = [planned("seta", data, tmp_path / "p", folder, epochs=(e, e + 1)) for e in (1, 2)]
    store = SignalStore.open(folder)
    assert [m.parent for m in members] == [first.manifest_id, members[0].manifest_id]
    assert [m.identity["signals"] for m in members] == [
        store.digest(before=1),
        store.digest(before=2),
    ]
    with SignalStore.for_writing(folder, open_dataset(data)) as more:  # epoch 2 was trained
        more.append(np.arange(ROWS), epoch=2, step=0, loss=np.ones(ROWS))
    again = planned("seta", data, tmp_path / "p", folder, epochs=(2, 3))
    assert again.manifest_id == members[1].manifest_id
    other = planned("seta", data, tmp_path / "p", folder, epochs=(3, 4))
    assert other.identity["signals"] == SignalStore.open(folder).digest()
    Series.open(tmp_path / "p", verify="all")


def test_rows_that_were_added_take_part(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    signal = write_signal(tmp_path / "s", data)
    first = planned("seta", data, tmp_path / "p", signal)
    pq.write_table(small_table(0, 50), data / "a-new.parquet")  # sorts before the others
    grown = planned("seta", data, tmp_path / "p", signal, epochs=(3, 4), prune_ratio=0)
    assert grown.parent == first.manifest_id
    rows = selected(grown, 3)[0]
    assert set(range(ROWS, ROWS + 50)) <= set(rows)  # new ids, never scored
    told = grown.provenance["reports"]["seta"]["losses"]
    assert told["never_scored"] == (~SCORED).sum() + 50
    with SignalStore.for_writing(signal, grown) as store:
        store.append([ROWS + 1], epoch=3, step=0, loss=[0.5])
    assert SignalStore.open(signal).snapshot == grown.snapshot


def test_losses_of_another_dataset(small: Path, signal: Path, tmp_path: Path) -> None:
    other = write_small(tmp_path / "other", (100, 33))
    with pytest.raises(DatasetChangedError, match="The signal store .* belongs to another"):
        planned("seta", other, tmp_path / "p", signal)
    renumbered = write_small(tmp_path / "more", (10, 300, 0, 1, 420, 79, 200))
    base = planned("shuffle", renumbered, tmp_path / "base", None)
    with pytest.raises(DatasetChangedError, match="number the rows of the dataset differently"):
        planned("seta", renumbered, tmp_path / "p", signal, snapshot=base.path)
    assert not (tmp_path / "p").exists()


def test_a_killed_run_is_not_gone_on_with_from_other_losses(
    small: Path, signal: Path, tmp_path: Path
) -> None:
    def fingerprint(path: Path) -> str:
        found = open_signal(JobSpec(dataset=small, out="p", signal=path, epochs=(1, 2)))
        assert found is not None
        return found.fingerprint()

    folder = write_signal(tmp_path / "s", small)
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    with SignalStore.for_writing(folder, open_dataset(small)) as store:
        store.append([0], epoch=0, step=9, loss=[1.0])
    assert fingerprint(folder) != before
    file = tmp_path / "l.parquet"
    pq.write_table(pa.table({"row": [1], "loss": [0.5]}), file)
    one = fingerprint(file)
    pq.write_table(pa.table({"row": [1], "loss": [0.25]}), file)
    assert fingerprint(file) != one


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite(small: Path, tmp_path: Path, method: str, bad: float) -> None:
    values = LOSSES.copy()
    values[[3, 8]] = bad
    signal = write_signal(tmp_path / "s", small, values)
    with pytest.raises(
        SelectionError, match=r"loss that is NaN or infinite.*\b3\b.*nonfinite=keep"
    ):
        planned(method, small, tmp_path / "p", signal)
    kept = planned(method, small, tmp_path / "p", signal, nonfinite="keep")
    known = SCORED & np.isfinite(values)
    if method == "seta":
        expected = SeTa(seed=7).plan(values, epoch=2, scored=known)
        assert selected(kept)[0] == expected.rows.tolist()
    assert kept.provenance["reports"][method]["losses"]["nonfinite"] == 2


def test_only_rows_that_take_part_must_be_finite(small: Path, tmp_path: Path) -> None:
    values = LOSSES.copy()
    values[0] = np.nan  # label 0
    signal = write_signal(tmp_path / "s", small, values)
    planned("seta", small, tmp_path / "p", signal, where="label in [1, 2]")


def test_no_row_was_scored(small: Path, tmp_path: Path) -> None:
    with SignalStore.for_writing(tmp_path / "s", open_dataset(small)) as store:
        store.append([0], epoch=5, step=0, loss=[1.0])
    assert len(selected(planned("seta", small, tmp_path / "a", tmp_path / "s"))[0]) == 900
    made = planned("infobatch", small, tmp_path / "b", tmp_path / "s")
    assert len(selected(made)[0]) == ROWS


def test_rows_that_the_dataset_does_not_hold(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "l.parquet"
    pq.write_table(pa.table({"row": [5, ROWS], "loss": [0.5, 0.25]}), file)
    with pytest.raises(SelectionError, match=f"values of rows that the dataset .* hold: {ROWS};"):
        planned("seta", small, tmp_path / "p", file)


def test_duplicates_that_disagree(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "l.parquet"
    same = {"row": [5, 6, 5], "loss": [0.5, 0.25, 0.5]}
    pq.write_table(pa.table(same), file)
    planned("seta", small, tmp_path / "a", file)
    pq.write_table(pa.table({**same, "loss": [0.5, 0.25, 0.75]}), file)
    with pytest.raises(SignalConflictError, match="two values of row 5"):
        planned("seta", small, tmp_path / "b", file)
    later = {**same, "loss": [0.5, 0.25, 0.75], "epoch": [0, 0, 1]}
    pq.write_table(pa.table(later), file)
    planned("seta", small, tmp_path / "b", file)


@pytest.mark.parametrize(
    ("values", "groups"), [(np.full(ROWS, 0.5), 1), (np.arange(ROWS) % 3 / 2, 3)]
)
def test_fewer_different_losses_than_groups(
    small: Path, tmp_path: Path, values: Any, groups: int
) -> None:
    signal = write_signal(tmp_path / "s", small, values.astype(np.float32))
    made = planned("seta", small, tmp_path / "p", signal)
    assert len(report_of(made, "seta")["group_rows"]) == groups
    if groups == 1:
        assert len(selected(made)[0]) == 900


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"prune_ratio": 1}, r"'prune_ratio' parameter of seta must be a float in .*\[0, 1\)"),
        ({"groups": 1}, r"'groups' parameter of seta must be an int in .*\[2, 256\]. Got 1"),
        ({"groups": 2, "window_scale": 0.1}, r"round\(groups · window_scale\) must be at least 1"),
        ({"delta": 2}, "'delta' parameter of seta"),
        ({"training_epochs": 2}, "Epochs 2:3 go beyond the training's 2"),
    ],
)
def test_parameters_out_of_range(
    small: Path, signal: Path, tmp_path: Path, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises((JobSpecError, ParameterError), match=said):
        planned("seta", small, tmp_path / "p", signal, **parameters)
    assert not (tmp_path / "p").exists()


def test_where_the_losses_are_must_be_said(small: Path, signal: Path, tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match="seta selects by loss: give --signal DIR"):
        planned("seta", small, tmp_path / "p", None)
    with pytest.raises(DatasetError, match="no signal store at"):
        planned("seta", small, tmp_path / "p", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no signal at"):
        planned("seta", small, tmp_path / "p", tmp_path / "nowhere.parquet")
    with pytest.raises(SignalError, match=r"no signal 'lss'. Did you mean 'loss'\?"):
        planned("seta", small, tmp_path / "p", signal, loss="lss")
    with pytest.raises(SelectionError, match="losses are floats"):
        planned("seta", small, tmp_path / "p", None, column="label")


def test_vectors_are_no_losses(small: Path, tmp_path: Path) -> None:
    with SignalStore.for_writing(tmp_path / "s", open_dataset(small)) as store:
        store.append([0], epoch=0, step=0, loss=[[1.0, 2.0]])
    with pytest.raises(SelectionError, match="2 numbers a row"):
        planned("seta", small, tmp_path / "p", tmp_path / "s")


class Listening(QuietProgress):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def test_what_is_warned_of(small: Path, tmp_path: Path) -> None:
    signal = write_signal(tmp_path / "s", small)
    torn = sorted((signal / "loss").glob("*.arrow"))[-1]
    torn.write_bytes(torn.read_bytes()[:-100])
    heard = Listening()
    planned("seta", small, tmp_path / "p", signal, epochs=(2, 8), progress=heard)
    assert any("1 parts of 'loss' are not whole and left out" in s for s in heard.said)
    assert any("6 epochs are planned from the losses as they are now" in s for s in heard.said)


def test_the_estimate_knows_them(small: Path, signal: Path, tmp_path: Path) -> None:
    options = {"signal": signal, "epochs": (2, 3), "batch_size": 16}
    spec = make_spec("seta", dataset=small, out=str(tmp_path), selects={}, options=options)
    assert estimate(spec).rows == ROWS


def test_inspect_shows_groups_window_and_saving(
    small: Path, signal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = planned("seta", small, tmp_path / "p", signal, weights="unbiased")
    planned("infobatch", small, tmp_path / "i", signal)
    build(["inspect"])(["inspect", str(tmp_path / "p")], standalone_mode=False)
    shown = capsys.readouterr().out
    told = report_of(made, "seta")
    assert f"losses {made.identity['signals']}" in shown
    assert f"seta, epoch 2 (pruned): {told['selected']} of 1,000 rows" in shown
    assert f"{told['saved']:.1%} saved, {told['selected_never_scored']} of them never" in shown
    lines = [line for line in shown.splitlines() if line.startswith("  group ")]
    assert len(lines) == 5
    inside = ["in" if told["window"][0] <= g < told["window"][1] else "out" for g in range(5)]
    assert [line.split()[2] for line in lines] == inside
    assert f"{told['group_rows'][0]} rows" in lines[0]
    build(["inspect"])(["inspect", str(tmp_path / "i")], standalone_mode=False)
    assert "weight sum 1,000" in capsys.readouterr().out
