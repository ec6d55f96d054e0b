"""The verbs trace, edit, rebind, materialize and gc as a user runs them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.tests.jobs.conftest import ROWS, small_table
from batchloom.tests.jobs.test_cli import batchloom, failed, result


@pytest.fixture(scope="module")
def planned(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("changes") / "plan"
    ran = batchloom("plan", "shuffle", small, "--out", out, "--batch-size", 32, "--epochs", 2,
                    "--micro-per-step", 2, "--workers", 0)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return out


def text(*arguments: object) -> str:
    ran = batchloom(*arguments)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


def test_trace_a_step(small: Path, planned: Path) -> None:
    shown = text("trace", planned, "--dataset", small, "--epoch", 1, "--step", 3)
    assert "epoch 1, step 3, micro-batch 1: 32 rows" in shown
    heading = next(line for line in shown.splitlines() if line.startswith("position"))
    assert heading.split() == ["position", "row", "fragment", "offset", "weight", "row", "x", "a",
                               "label", "key"]  # fmt: skip
    step = result("trace", planned, "--dataset", small, "--columns", "key, label", "--epoch", 1,
                  "--step", 3)  # fmt: skip
    for batch in step["micro_batches"]:
        for row in batch["rows"]:
            assert row["columns"] == {"key": f"doc-{row['row']}", "label": row["row"] ** 2 % 7}
    assert result("trace", planned, "--epoch", 0, "--step", 0)["micro_batches"][0]["rows"][0][
        "columns"
    ] is None  # fmt: skip


def test_trace_rows(small: Path, planned: Path) -> None:
    (row,) = result("trace", planned, "--row", 17)["rows"]
    assert [p["epoch"] for p in row["found"]] == [0, 1]
    by_key = result("trace", planned, "--dataset", small, "--key", "key=doc-17", "--quiet")
    assert by_key["rows"][0]["found"] == row["found"]
    shown = text("trace", planned, "--dataset", small, "--key", "key=doc-17", "--epoch", 1)
    assert shown.startswith("row 17  data:part-0.parquet, offset 17\n")
    assert "  key: doc-17\n" in shown
    assert "no row has key=nobody" in text(
        "trace", planned, "--dataset", small, "--key", "key=nobody"
    )
    many = text("trace", planned, "--dataset", small, "--key", "label=0", "--columns", "label")
    assert sum(line.startswith("row ") for line in many.splitlines()) == 20
    assert "more rows; --json lists all" in many


def test_long_values_are_shortened_on_the_terminal_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"text": ["long  and\n" * 100], "v": [np.arange(100.0)]})
    pq.write_table(table, tmp_path / "data" / "x.parquet")
    text("plan", "shuffle", tmp_path / "data", "--out", tmp_path / "p", "--batch-size", 1)
    options = ("trace", tmp_path / "p", "--dataset", tmp_path / "data", "--row", 0)
    lines = text(*options).splitlines()
    assert lines[1] == "  text: long and long and long and long and lon…"
    assert lines[2] == "  v: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0…"
    (row,) = result(*options)["rows"]
    assert row["columns"]["text"] == "long  and\n" * 100
    assert len(row["columns"]["v"]) == 100


def test_edit(small: Path, planned: Path, tmp_path: Path) -> None:
    shown = text("edit", planned, "--out", tmp_path / "calm", "--epoch", 0, "--skip-steps", "3:5")
    assert "epoch 0: 128 rows and 2 steps left out; the first change is in step 3" in shown
    (tmp_path / "gone.txt").write_text("doc-7\ndoc-8\nnobody\n")
    ran = batchloom("edit", planned, "--out", tmp_path / "clean", "--drop", tmp_path / "gone.txt",
                    "--key", "key", "--dataset", small, "--workers", 0)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == (
        f"edit: 1 of 3 keys of 'key' in {tmp_path / 'gone.txt'} are in no step of {planned}.\n"
    )
    assert "epoch 1: 2 rows and 0 steps left out" in ran.stdout
    (row,) = result("trace", tmp_path / "clean", "--row", 7)["rows"]
    assert (row["found"], row["absent"]) == ([], [0, 1])
    assert "not in epoch 0, 1 (looked in 0, 1)" in text("trace", tmp_path / "clean", "--row", 7)
    made = result("edit", planned, "--out", tmp_path / "clean2", "--drop", tmp_path / "gone.txt",
                  "--key", "key", "--dataset", small, "--workers", 0, "--quiet")  # fmt: skip
    assert made["reports"]["edit"]["keys_in_no_step"] == 1
    assert [e["samples"] for e in made["epochs"]] == [ROWS - 2] * 2
    shown = text("inspect", tmp_path / "clean")
    assert "edit: drop(file_sha256=" in shown
    assert f"made from {result('inspect', planned)['manifest_id']}" in shown


def test_rebind(small: Path, planned: Path, tmp_path: Path) -> None:
    (tmp_path / "compacted").mkdir()
    table = small_table(0, ROWS).take(np.random.default_rng(0).permutation(ROWS))
    pq.write_table(table, tmp_path / "compacted" / "all.parquet")
    pq.write_table(pa.table({"row": [3, 5, 9999], "loss": [1.0, 2.0, 3.0]}), tmp_path / "s.parquet")
    options = ("rebind", planned, "--from", small, "--to", tmp_path / "compacted", "--key", "key",
               "--workers", 0)  # fmt: skip
    signal = ("--signal", tmp_path / "s.parquet", "--signal-out", tmp_path / "t.parquet")
    shown = text(*options, "--out", tmp_path / "a", *signal)
    assert "0 planned rows are gone" in shown
    assert "t.parquet: 2 values carried over, 1 of rows that are gone" in shown
    made = result(*options, "--out", tmp_path / "b")
    assert made["dataset"]["fragments"] == 1
    ran = text("verify", tmp_path / "a", "--dataset", tmp_path / "compacted")
    assert "1 fragments of the dataset are as planned" in ran
    assert "'key' must" not in failed(2, *options, "--out", tmp_path / "c", "--missing", "no")
    pq.write_table(table.slice(1), tmp_path / "compacted" / "all.parquet")
    assert "1 planned rows are not in the new dataset" in failed(1, *options, "--out",
                                                                 tmp_path / "c")  # fmt: skip


def test_materialize_and_verify_a_recipe(small: Path, tmp_path: Path) -> None:
    text("plan", "shuffle", small, "--out", tmp_path / "r", "--form", "recipe", "--batch-size", 8)
    copy = result("materialize", tmp_path / "r", "--out", tmp_path / "copy")
    shown = text("verify", tmp_path / "r", "--deep")
    assert f"logical digest {copy['epochs'][0]['logical_digest']}" in shown
    assert "epoch 0 computed again: exactly_once" in shown
    assert "epoch 0 counted again: exactly_once" in text("verify", tmp_path / "copy", "--deep")


def test_gc(tmp_path: Path) -> None:
    staged = tmp_path / ".plan.staging-0123456789ab"
    staged.mkdir()
    (staged / "x").write_bytes(b"x" * 2048)
    then = time.time() - 30 * 3600
    for path in (staged / "x", staged):
        os.utime(path, (then, then))
    shown = text("gc", tmp_path)
    assert f"{staged}  staging  2,048  30.0 h" in shown
    assert "1 leftovers, 2.0 KiB, found; --delete removes them" in shown
    assert result("gc", tmp_path, "--older-than", "2d")["leftovers"] == []
    found = result("gc", tmp_path, "--delete")
    assert (found["deleted"], found["bytes"]) == (True, 2048)
    assert not staged.exists()
    assert "0 leftovers" in text("gc", tmp_path)


def test_exit_codes_and_one_line_errors(small: Path, planned: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "c")
    assert "Name one thing to trace" in failed(2, "trace", planned)
    assert "takes COLUMN=VALUE" in failed(2, "trace", planned, "--key", "doc-7")
    assert "holds no step 99" in failed(1, "trace", planned, "--epoch", 0, "--step", 99)
    assert "is in no fragment" in failed(1, "trace", planned, "--row", ROWS)
    assert "no column 'kye'" in failed(1, "trace", planned, "--dataset", small, "--key", "kye=1")
    assert "Say what to leave out" in failed(2, "edit", planned, *out)
    assert "which one to change" in failed(2, "edit", planned, *out, "--skip-steps", "1:2")
    assert "half-open" in failed(2, "edit", planned, *out, "--epoch", 0, "--skip-steps", "2")
    assert "changes nothing" in failed(
        2, "edit", planned, *out, "--epoch", 0, "--skip-steps", "90:91"
    )
    assert "Nothing would be left" in failed(
        1, "edit", planned, *out, "--epoch", 0, "--skip-steps", "0:91"
    )
    assert "nothing to rebind" in failed(2, "rebind", planned, "--from", small, "--to", small,
                                         "--key", "key", "--workers", 0, *out)  # fmt: skip
    assert "holds no recipe" in failed(1, "materialize", planned, *out)
    assert "no folder at" in failed(1, "gc", tmp_path / "nowhere")
    assert "length of time" in failed(2, "gc", tmp_path, "--older-than", "soon")
    assert not (tmp_path / "c").exists()


def test_added_only(small: Path, planned: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for file in small.iterdir():
        (tmp_path / "data" / file.name).symlink_to(file)
    pq.write_table(small_table(5000, 5040), tmp_path / "data" / "new.parquet")
    options = ("plan", "shuffle", tmp_path / "data", "--since", planned, "--added-only",
               "--batch-size", 8, "--out", tmp_path / "p")  # fmt: skip
    assert result(*options, "--dry-run")["rows"] == 40
    assert result(*options, "--workers", 0)["epochs"][0]["samples"] == 40
    assert "needs a 'since'" in failed(2, "plan", "shuffle", small, "--added-only", "--out",
                                       tmp_path / "q")  # fmt: skip
