"""The command line as a user runs it: exit codes, what goes to which stream.

Real processes where that matters; answers in JSON and refusals also come without one (`here`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from batchloom.jobs.cli.app import build
from batchloom.tests.jobs.conftest import ROWS

PLAN = ("--batch-size", "32", "--workers", "0")


def batchloom(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    return subprocess.run(
        [Path(sys.executable).with_name("batchloom"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        **options,
    )


def here(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the time that Python takes to start."""
    words = [str(a) for a in arguments]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            build(words)(words, prog_name="batchloom")
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def result(*arguments: Any) -> Any:
    """Run with --json and return what was printed."""
    ran = here(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def failed(code: int, *arguments: Any) -> str:
    """Run what must fail; return its one line."""
    ran = here(*arguments)
    assert ran.returncode == code, (ran.stdout, ran.stderr)
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""
    line: str = ran.stderr.strip()
    return line


@pytest.fixture(scope="module")
def planned(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan made by the command line; read only."""
    out = tmp_path_factory.mktemp("cli") / "plan"
    ran = batchloom("plan", "shuffle", small, "--out", out, *PLAN, "--epochs", "2", "--deep")
    assert ran.returncode == 0, ran.stderr
    assert str(out) in ran.stdout
    assert ran.stderr == ""
    return out


def test_help_names_every_verb_and_gives_examples() -> None:
    text = batchloom("--help").stdout
    for verb in ("demo", "doctor", "scan", "plan", "run", "inspect", "trace", "verify", "diff",
                 "edit", "rebind", "materialize", "gc"):  # fmt: skip
        assert verb in text
        shown = here(verb, "--help")
        assert shown.returncode == 0
        # Each example keeps a line of its own.
        assert verb == "plan" or f"\n  batchloom {verb}" in shown.stdout, verb
        assert "\\b" not in shown.stdout
        assert "\b" not in shown.stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['batchloom', '--help']\n"
        "from batchloom.jobs.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'numba', 'dask', 'sklearn', 'pydantic', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"


def test_help_of_a_method_shows_its_parameters() -> None:
    text = batchloom("plan", "kmeans", "--help").stdout
    for expected in (
        "k: an int in the range [1, inf); required",
        "rows_per_center",
        "default 256",
        "one of 'within', 'across', 'aligned'",
        "Source:",
        "batchloom plan kmeans",
    ):
        assert expected in text  # fmt: skip
    listed = batchloom("plan", "--help").stdout
    assert "shuffle" in listed
    assert "kmeans" in listed


def test_json_of_every_verb(small: Path, planned: Path, tmp_path: Path) -> None:
    made = result("plan", "shuffle", small, "--out", tmp_path / "p", *PLAN, "--epochs", "0:2")
    assert made["epochs"][1]["samples"] == ROWS
    shown = result("inspect", planned)
    assert shown["dataset"]["rows"] == ROWS
    step = result("inspect", planned, "--epoch", 1, "--step", 3)
    assert len(step["micro_batches"][0]["rows"]) == 32
    assert result("verify", planned, "--dataset", small, "--deep")["contents"] == 5
    assert result("verify", planned, "--deep")["recounted"][1]["distinct_rows"] == ROWS
    assert result("diff", planned, tmp_path / "p")["same"] is True
    assert any(f["what"] == "GPU path" for f in result("doctor"))
    scanned = result("scan", small, "--workers", "0")
    assert scanned["rows"] == ROWS
    assert scanned["columns"][0]["name"] == "row"
    dry = result("plan", "kmeans", small, "--out", tmp_path / "no", "--set", "columns=x", "--set",
                 "k=3", "--dry-run")  # fmt: skip
    assert dry["rows"] == ROWS
    assert not (tmp_path / "no").exists()


def test_text_of_every_verb(small: Path, planned: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (("inspect", planned), "shuffle("),
        (("inspect", planned, "--step", "0"), "epoch 0, step 0, micro-batch 0: 32 rows"),
        (("verify", planned), "whole:"),
        (("verify", planned, "--dataset", small), "5 fragments of the dataset are as planned"),
        (("diff", planned, planned), "the same decision"),
        (("doctor",), "GPU path"),
        (("scan", small, "--workers", "0"), "part-3.parquet"),
        (("--version",), "0."),
        (("plan", "shuffle", small, "--out", tmp_path / "p", "--dry-run"), "nothing was written"),
    ):
        ran = here(*arguments)
        assert ran.returncode == 0, ran.stderr
        assert expected in ran.stdout
        assert ran.stderr == ""


def test_snapshots_go_from_scan_to_plan(small: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snap" / "data.json"
    ran = batchloom("scan", small, "--out", snapshot, "--deep", "--no-statistics", "--workers", "0")
    assert ran.returncode == 0, ran.stderr
    assert list(snapshot.parent.glob("deep-*.json"))
    made = result("plan", "shuffle", small, "--out", tmp_path / "p", *PLAN, "--snapshot", snapshot)
    assert made["epochs"][0]["samples"] == ROWS


def test_a_job_file_runs(small: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(f'dataset = "{small}"\nout = "{tmp_path}/p"\nbatch_size = 50\n')
    assert result("run", job)["epochs"][0]["micro_batches"] == ROWS // 50


def test_named_sources(small: Path, tmp_path: Path) -> None:
    data = f"web={small},books={small}/part-0.parquet"
    made = result("plan", "shuffle", data, "--out", tmp_path / "p", *PLAN)
    assert made["dataset"]["sources"] == ["books", "web"]


def test_exit_codes_and_one_line_errors(small: Path, planned: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "p")
    assert "no such file" in failed(1, "scan", tmp_path / "nowhere")
    assert "There is no manifest at" in failed(1, "inspect", tmp_path / "nowhere")
    assert "no column 'xx'" in failed(1, "plan", "shuffle", small, *out, "--where", "xx > 1")
    assert "does not parse" in failed(2, "plan", "shuffle", small, *out, "--where", "a >")
    assert "'batch_size'" in failed(2, "plan", "shuffle", small, *out, "--batch-size", "0")
    assert "key=value" in failed(2, "plan", "shuffle", small, *out, "--set", "k")
    assert "use --seed" in failed(2, "plan", "shuffle", small, *out, "--set", "seed=3")
    assert "not JSON" in failed(2, "plan", "shuffle", small, *out, "--storage-options", "{")
    assert "No such command 'plann'" in failed(2, "plann")
    assert "holds no epoch 7" in failed(1, "inspect", planned, "--epoch", 7, "--step", 0)
    assert "holds no step 99" in failed(1, "inspect", planned, "--step", 99)
    assert "--deep" in failed(2, "scan", small, "--deep")


def test_a_process_ends_as_the_command_does_here(small: Path, planned: Path) -> None:
    """So that most can be tested without one."""
    for arguments in (
        ("inspect", planned, "--json"),
        ("inspect", planned, "--step", 99),
        ("plan", "shuffle", small, "--out", "x", "--set", "k"),
        ("plann",),
    ):
        there = batchloom(*arguments)
        found = here(*arguments)
        assert (there.returncode, there.stdout, there.stderr) == (
            found.returncode, found.stdout, found.stderr,
        )  # fmt: skip


def test_errors_as_json(tmp_path: Path) -> None:
    ran = batchloom("inspect", tmp_path / "nowhere", "--json")
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert json.loads(ran.stderr)["error"]["type"] == "ManifestError"


def test_diff_exits_1_and_says_what_changed(small: Path, planned: Path, tmp_path: Path) -> None:
    batchloom("plan", "shuffle", small, "--out", tmp_path / "b", *PLAN, "--seed", "9")
    ran = batchloom("diff", planned, tmp_path / "b")
    assert ran.returncode == 1
    assert "seed: 0 → 9" in ran.stdout
    assert "epoch 0: 32 micro-batches differ, the first in step 0" in ran.stdout
    assert "epochs only in A: 1" in ran.stdout


def test_verify_exits_1_on_a_flipped_byte(small: Path, tmp_path: Path) -> None:
    batchloom("plan", "shuffle", small, "--out", tmp_path / "p", *PLAN)
    part = next((tmp_path / "p").glob("part-*"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    message = failed(1, "verify", tmp_path / "p")
    assert part.name in message
    assert "expected" in message
    assert "found" in message


def test_verify_deep_without_hashes_says_so(small: Path, tmp_path: Path) -> None:
    batchloom("plan", "shuffle", small, "--out", tmp_path / "p", *PLAN)
    message = failed(1, "verify", tmp_path / "p", "--deep", "--dataset", small)
    assert "holds no content hashes" in message
    assert "--deep" in message


def test_progress_as_json_lines(small: Path, tmp_path: Path) -> None:
    ran = batchloom("plan", "kmeans", small, "--out", tmp_path / "p", *PLAN, "--set", "columns=x",
                    "--set", "k=3", "--progress", "json")  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    steps = [line for line in lines if "step" in line]
    assert {"reading features", "assigning", "writing epoch 0"} <= {s["step"] for s in steps}
    assert all(s["done"] == s["rows"] for s in steps if s["step"] == "assigning" and s is steps[-1])
    assert steps[-1]["done"] == ROWS


def test_warnings_are_told_in_every_form_but_the_quiet_one(small: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("doc-1\ndoc-none\n")
    options = ("plan", "shuffle", small, *PLAN, "--drop", keys, "--key", "key", "--out")
    said = "drop: 1 of 2 keys of 'key'"
    plain = batchloom(*options, tmp_path / "a")
    assert plain.stderr.startswith(said)
    assert len(plain.stderr.splitlines()) == 1
    lines = batchloom(*options, tmp_path / "b", "--progress", "json").stderr.splitlines()
    assert next(v for line in lines if (v := json.loads(line).get("warning"))).startswith(said)
    assert batchloom(*options, tmp_path / "c", "--quiet").stderr == ""


WITHOUT_PLAN_EXTRA = """
import sys
for name in ("dask", "distributed", "sklearn", "threadpoolctl", "scipy", "faiss"):
    sys.modules[name] = None  # as if it were not installed
from batchloom.jobs.cli import main
main()
"""


def test_a_verb_whose_extra_is_missing_says_which(small: Path, tmp_path: Path) -> None:
    def ran(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_PLAN_EXTRA, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert ran("plan", "shuffle", small, "--out", tmp_path / "a", "--batch-size", 8).returncode == 0
    kmeans = ("plan", "kmeans", small, "--set", "columns=x", "--set", "k=3", "--batch-size", 8)
    for number, arguments in enumerate(
        [(*kmeans, "--workers", "0"), (*kmeans, "--workers", "1"), ("demo",)]
    ):
        shown = ran(*arguments, "--out", tmp_path / str(number))
        assert shown.returncode == 2
        assert shown.stderr.count("\n") == 1
        assert "pip install 'batchloom[plan]'" in shown.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_leaves_nothing(
    small: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Interrupted while its cluster runs, a job says one line, exits 130 and cleans up."""
    process = subprocess.Popen(
        [Path(sys.executable).with_name("batchloom"), "plan", "kmeans", str(small), "--out",
         str(tmp_path / "p"), "--set", "columns=x", "--set", "k=300", "--set", "max_iter=100000",
         "--batch-size", "8", "--epochs", "0:2000", "--workers", "2", "--progress", "json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    seen = ""
    while "writing epoch" not in seen:  # its workers are up, its staging directory is there
        seen = process.stderr.readline()
        assert seen, "the job ended before it was interrupted"
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    assert any(p.name.startswith(".p.staging-") for p in tmp_path.iterdir())
    os.killpg(process.pid, number)  # as a terminal or a batch system does
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [line for line in rest.splitlines() if not line.startswith("{")] == [
        "interrupted; nothing was committed"
    ]
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 20
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("words", "expected"), [("batchloom ver", ["verify"]), ("batchloom plan km", ["kmeans"])]
)
def test_the_shell_completes_verbs_and_methods(words: str, expected: list[str]) -> None:
    asked = {
        "_BATCHLOOM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    assert batchloom(env={**os.environ, **asked}).stdout.split() == expected
    # Else it looks for the shell that it was started from, and there may be none.
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert "complete_bash" in batchloom("--show-completion", "bash", env=named).stdout


def test_a_terminal_gets_a_bar_with_rows_rate_and_time_left(small: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("batchloom"), "plan", "shuffle", str(small), "--out",
         str(tmp_path / "p"), "--batch-size", "8", "--epochs", "0:40"],
        stdout=subprocess.PIPE, stderr=follower, text=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is gone when the process has ended
        while chunk := os.read(leader, 65_536):
            shown += chunk
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "writing epoch 39" in text
    assert f"/{ROWS:,} rows" in text
    assert re.search(r"[\d,]+ rows/s", text)
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "rows/s" not in out
