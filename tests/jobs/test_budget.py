"""How a job's memory is shared out, and what is refused before anything is read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.dataset import Dataset, open_dataset
from batchloom.dataplane.errors import ParameterError, StorageError
from batchloom.dataplane.snapshot import Fragment, Snapshot
from batchloom.jobs import bill, plan
from batchloom.jobs.bill import make_budget, work_bytes
from batchloom.jobs.budget import Budget, machine_memory
from batchloom.jobs.engine import Engine
from batchloom.jobs.job_file import resolve_stages
from batchloom.jobs.planning import make_spec

MIB = 1 << 20
BILLION = 10**9


def large(rows: int = BILLION) -> Dataset:
    """A dataset of many rows, of which only the table is there."""
    table = Snapshot((Fragment("data", "a.parquet", rows, 8 * rows, "hash", 0),), rows, "schema")
    return Dataset(table, (None,), (None,))


def budget_of(dataset: Dataset, method: str = "shuffle", **options: Any) -> Budget:
    """Return the budget of a job; `selects` are its where, keep, drop, split."""
    selects = options.pop("selects", {})
    spec = make_spec(method, dataset=dataset, out="out", selects=selects, options=options)
    return make_budget(spec, dataset, resolve_stages(spec))


def least_of(message: str) -> int:
    found = re.search(r"--memory (\d+)MiB or more", message)
    assert found
    return int(found[1]) * MIB


# --- the least that works -------------------------------------------------------------------------


def test_the_bill_of_a_billion_rows() -> None:
    """Coverage takes a bit a row; a selection one more and its index."""
    with pytest.raises(ParameterError) as plain:
        budget_of(large(), memory="1MiB")
    text = str(plain.value)
    assert text.startswith("This job needs at least ")
    assert "320 MiB for the program, 120 MiB for bits for the rows" in text
    assert "Got 1 MiB; give it --memory" in text
    with pytest.raises(ParameterError, match="256 MiB for bits for the rows"):
        budget_of(large(), memory="1MiB", selects={"split": "a=0.5,b=0.5:a"})
    assert 500 * MIB < least_of(text) < 600 * MIB


@pytest.mark.parametrize("rows", [1000, BILLION])
def test_the_least_that_is_named_works_and_one_less_does_not(rows: int) -> None:
    with pytest.raises(ParameterError) as refused:
        budget_of(large(rows), memory=1)
    least = least_of(str(refused.value))
    assert budget_of(large(rows), memory=least).working >= 96 * MIB
    with pytest.raises(ParameterError, match="This job needs at least"):
        budget_of(large(rows), memory=least - MIB)


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"batch_size": 5 * MIB}, 64 * 4 * MIB),
        ({"mode": "block", "group_rows": 1}, 40 * 10**7),
        ({"homes": 2, "micro_per_step": 2, "batch_size": MIB}, 48 * MIB),
    ],
)
def test_what_must_be_in_memory_is_on_the_bill(options: dict[str, Any], extra: int) -> None:
    rows = 10**7
    plain = budget_of(large(rows), memory="8GiB").working
    less = budget_of(large(rows), memory="8GiB", **options).working
    assert plain - less == pytest.approx(extra, rel=0.02)


def test_a_header_of_many_blocks_is_on_the_bill() -> None:
    plain = budget_of(large(), memory="8GiB").working
    of_single_rows = budget_of(large(), memory="8GiB", batch_size=1).working
    assert plain - of_single_rows > 100 * MIB


def test_the_sample_of_k_means_is_on_the_bill(small: Path) -> None:
    options = {"columns": ["x"], "workers": 0, "memory": "8GiB"}
    few = budget_of(open_dataset(small), "kmeans", k=1, rows_per_center=1, **options)
    many = budget_of(open_dataset(small), "kmeans", k=500, **options)
    sample, centers = 999 * (3 * 8 + 96), 499 * 3 * 32
    assert few.working - many.working == pytest.approx(sample + centers, rel=0.01)


# --- processes ------------------------------------------------------------------------------------


def shares(small: Path, **options: Any) -> tuple[int | None, int | None]:
    budget = budget_of(open_dataset(small), "kmeans", columns=["x"], k=2, **options)
    return budget.workers, None if budget.for_workers is None else budget.for_workers // MIB


def test_every_process_has_an_equal_share(small: Path) -> None:
    assert shares(small, memory="6000MiB", workers=3) == (3, 4500)
    assert shares(small, memory="6000MiB", workers=0) == (0, None)


def test_the_bill_comes_first(small: Path) -> None:
    workers, rest = shares(small, memory="2100MiB", workers=2)
    assert workers == 2
    assert rest is not None
    assert 2 * (384 + 256) <= rest < 2100 * 2 // 3


def test_fewer_workers_where_memory_is_short(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert shares(small, memory="64GiB")[0] is None  # the engine's own choice: as many as cores
    assert shares(small, memory="2000MiB")[0] == 1
    assert shares(small, memory="3200MiB")[0] == 3
    assert shares(small, memory="900MiB") == (0, None)
    with pytest.raises(ParameterError, match=r"641 MiB for each of 8 workers.* or use fewer"):
        shares(small, memory="2000MiB", workers=8)
    with pytest.raises(ParameterError, match="96 MiB for a task"):
        shares(small, memory="500MiB")


def test_a_plan_that_reads_nothing_needs_no_workers(small: Path) -> None:
    budget = budget_of(open_dataset(small), memory="1GiB", workers=7)
    assert budget.for_workers is None
    assert budget.working > 600 * MIB


def test_workers_elsewhere_have_limits_of_their_own(small: Path) -> None:
    assert shares(small, memory="900MiB", scheduler="tcp://127.0.0.1:1") == (None, None)


def test_without_memory_it_is_half_of_the_machine(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bill, "machine_memory", lambda: 8 << 30)
    assert budget_of(open_dataset(small)).total == 4 << 30
    # More where the bill is more, and a refusal where the machine has not so much.
    assert 4 << 30 < budget_of(large(40 * BILLION)).total < 8 << 30
    with pytest.raises(ParameterError, match=r"the machine has 8,192 MiB. Use a larger machine"):
        budget_of(large(80 * BILLION))


def test_the_machine_has_what_its_container_has() -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 64 * MIB < machine_memory() <= physical


# --- what turns up later --------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_arithmetic() -> None:
    budget = Budget(total=1000 * MIB, workers=0, for_workers=None, working=100 * MIB)
    budget.require(100 * MIB, "The list")
    with pytest.raises(ParameterError) as refused:
        budget.require(100 * MIB + 1, "The list")
    assert str(refused.value) == (
        "The list takes 101 MiB, and of the job's memory of 1,000 MiB there are 100 MiB left for "
        "it; give it --memory 1001MiB or more."
    )


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stratify": "key"}, "The list of the values of 'key' takes"),
        ({"balance": "key"}, "The list of the values of 'key' takes"),
        ({"keep": "ids.npy"}, "Reading the keys in .*ids.npy takes"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], what: str
) -> None:
    np.save(tmp_path / "ids.npy", np.arange(1000))
    if "keep" in options:
        options = {"keep": tmp_path / "ids.npy"}
    monkeypatch.setattr("batchloom.jobs.planning.make_budget", lambda *_: Budget(1, 0, None, 5000))
    with pytest.raises(ParameterError, match=what):
        plan("shuffle", small, out=tmp_path / "plan", batch_size=10, workers=0, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["ids.npy"]


# --- the disk -------------------------------------------------------------------------------------


def work_of(method: str, dataset: Dataset, working: int, **options: Any) -> int:
    selects = options.pop("selects", {})
    spec = make_spec(method, dataset=dataset, out="o", selects=selects, options=options)
    return work_bytes(dataset, resolve_stages(spec), Budget(1 << 40, 0, None, working))


def test_the_work_folder_is_counted_before_the_start(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 10**6
    plain = work_of("shuffle", large(rows), 0)
    assert plain < rows
    assert work_of("shuffle", large(rows), 0, selects={"where": "a > 0"}) - plain < 1.2 * rows
    on_disk = work_of("shuffle", large(rows), 0, stratify="a") - plain
    in_memory = work_of("shuffle", large(rows), 1 << 40, stratify="a") - plain
    assert (in_memory, on_disk) == (12 * rows, (12 + 2 * 24 + 8) * rows)
    found = os.statvfs(tmp_path)

    class Full:
        f_blocks, f_frsize, f_bavail = found.f_blocks, 1, 20_000

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    plan("shuffle", small, out=tmp_path / "p", batch_size=100, workers=0)
    with pytest.raises(
        StorageError, match=r"The plan needs about [0-9,]+ bytes in .*20,000 are fr"
    ):
        plan("shuffle", small, out=tmp_path / "q", batch_size=100, workers=0, stratify="label")
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_the_engine_is_given_the_workers_share(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "batchloom.jobs.planning.Engine",
        lambda **options: given.append(options) or Engine(workers=0),
    )
    plan("kmeans", small, out=tmp_path / "p", batch_size=100, columns=["x"], k=3, workers=2,
         memory="3000MiB")  # fmt: skip
    assert (given[0]["workers"], given[0]["memory"]) == (2, 2000 * MIB)
