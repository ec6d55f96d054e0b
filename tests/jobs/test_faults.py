"""Faults as an operator meets them: the real command, real processes, real damage.

Each ends in one sentence that names the file, exit code 1, no target and no litter; or the job goes
on and its plan is that of an undisturbed run.

==================================================  ============================================
fault                                               test
==================================================  ============================================
worker killed from outside                          test_a_worker_killed_from_outside_is_told
a row that kills whoever reads it                   test_a_row_that_kills_its_reader_is_found
a value larger than a worker's memory               test_advice_on_memory_works
interrupted while workers run a task                test_interrupted_while_workers_are_busy
driver killed in a write                            test_a_driver_killed_in_a_write
disk full in the middle                             test_a_disk_that_fills_up
disk known to be too small                          test_a_disk_that_is_too_small
Parquet file cut                                    test_a_file_that_was_cut
byte flipped, no page checksum                      test_a_flipped_byte_is_found_by_a_deep_check
byte flipped, page checksum                         test_a_flipped_byte_under_a_page_checksum
footer's bits flipped                               test_flipped_footers_are_found_by_their_hash
column of another type in a later file              test_a_column_of_another_type
column missing in a later file                      test_a_column_that_is_missing
nulls and NaN in a column that is used              test_values_that_cannot_be_used
column that does not exist                          test_an_unknown_column
strange files beside the data                       test_strange_files_beside_the_data
==================================================  ============================================
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import Manifest, open_dataset
from batchloom.tests.contracts.clusters import wait_for
from batchloom.tests.contracts.crash import Run
from batchloom.tests.contracts.faults import COMMAND, job_file
from batchloom.tests.jobs.conftest import ROWS, small_table, write_small

PLAN = ("--batch-size", "32", "--workers", "0")
KMEANS = ("--set", "columns=x", "--set", "k=3")


def batchloom(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        **options,
    )


def started(*arguments: Any, log: Path) -> Run:
    """Start the command as a process group of its own."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    return Run(process, log)


def failed(out: Path, *arguments: Any, warnings: int = 0, **options: Any) -> str:
    """Run what must fail; return its one line, after so many warnings at most."""
    ran = batchloom(*arguments, **options)
    assert ran.returncode == 1, (ran.stdout, ran.stderr)
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert lines[-1].startswith("batchloom: ")
    assert len(lines) <= 1 + warnings, ran.stderr
    assert "Traceback" not in ran.stderr
    left = [
        p.name for p in out.parent.iterdir() if re.match(rf"\.?{out.name}($|\.(?!toml))", p.name)
    ]
    assert left == []
    return lines[-1].removeprefix("batchloom: ")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder for targets, in which nothing must be left."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The small dataset, to be damaged."""
    return write_small(tmp_path / "data")


def plan_id(*arguments: Any) -> str:
    ran = batchloom(*arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    found: str = json.loads(ran.stdout)["manifest_id"]
    return found


# --- processes that die ---------------------------------------------------------------------------


def test_a_worker_killed_from_outside_is_told(small: Path, tmp_path: Path, home: Path) -> None:
    """One warning, and the plan is that of an undisturbed run."""
    sign = tmp_path / "begun"
    sign.mkdir()
    job = job_file(
        small, home / "p", {"workers": 2, "task_bytes": 4000}, seconds=0.5, sign=str(sign)
    )
    run = started("run", job, "--progress", "json", log=tmp_path / "log")
    wait_for(lambda: any(sign.iterdir()))
    assert run.kill_a_worker(random.Random(0))
    code, _, err = run.wait()
    assert code == 0, err
    told = [json.loads(line) for line in err.splitlines()]
    warnings = [line["warning"] for line in told if "warning" in line]
    assert len(warnings) == 1
    assert re.fullmatch(r"worker [01] died \(signal 9\); its tasks run again", warnings[0])
    again = job_file(small, home / "q", {"workers": 0})
    assert Manifest.open(home / "p").manifest_id == plan_id("run", again)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_row_that_kills_its_reader_is_found(
    small: Path, home: Path, number: signal.Signals
) -> None:
    """One task reads all five files; the error names the one that holds the row, and nothing else.

    Row 500 lies in part-3.parquet.
    """
    job = job_file(small, home / "p", {"workers": 2}, row=500, signal=int(number))
    began = time.monotonic()
    line = failed(home / "p", "run", job, "--quiet")
    assert line.startswith(
        f"Reading data:part-3.parquet killed 4 workers one after another (signal {int(number)})."
    )
    assert re.findall(r"part-\d", line) == ["part-3"]
    assert "copy it again from its source" in line
    # Far below the limit of 180 s under which a hang would show; the machine may be busy.
    assert time.monotonic() - began < 90


def test_innocent_tasks_are_not_blamed(small: Path, home: Path) -> None:
    """A task a file, three workers: the others die of nothing and are done meanwhile."""
    job = job_file(small, home / "p", {"workers": 3, "task_bytes": 1}, row=790)
    line = failed(home / "p", "run", job, "--quiet")
    assert re.findall(r"part-\d", line) == ["part-4"]


@pytest.fixture(scope="module")
def hog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a few MB with a value of 328 MB: what cannot be read in smaller pieces."""
    folder = tmp_path_factory.mktemp("hog")
    table = pa.table({"x": pa.array([b"1", bytes(328 << 20)], pa.large_binary())})
    pq.write_table(table, folder / "wide.parquet", compression="zstd", use_dictionary=False)
    return folder


def test_advice_on_memory_works(hog: Path, home: Path) -> None:
    """What the error says to add makes the same command succeed."""
    line = failed(home / "p", "scan", hog, "--workers", "2", "--memory", "512MiB", "--quiet")
    assert "Reading data:wide.parquet killed 4 workers one after another (out of memory" in line
    assert "limit 256 MiB" in line
    assert "row group (number 0, 2 rows) takes about 328 MiB decoded" in line
    advice = re.search(r"Run again with (--memory \d+GiB --workers 1)", line)
    assert advice is not None
    ran = batchloom("scan", hog, *advice[1].split())
    assert ran.returncode == 0, ran.stderr
    assert "2 rows in 1 fragments" in ran.stdout
    assert ran.stderr == ""


def test_interrupted_while_workers_are_busy(small: Path, tmp_path: Path, home: Path) -> None:
    """Ctrl-C in the middle of a task: one line, exit 130, no process and no file left."""
    sign = tmp_path / "begun"
    sign.mkdir()
    job = job_file(small, home / "p", {"workers": 2}, seconds=30.0, sign=str(sign))
    run = started("run", job, log=tmp_path / "log")
    wait_for(lambda: any(sign.iterdir()))
    children = psutil.Process(run.process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(run.process.pid, signal.SIGINT)
    code, out, err = run.wait(60)
    assert (code, out, err) == (130, "", "interrupted; nothing was committed\n")
    assert [p.name for p in home.iterdir()] == [job.name]
    wait_for(lambda: not any(alive(p) for p in children))


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_driver_killed_in_a_write(small: Path, tmp_path: Path, home: Path) -> None:
    """The target is absent, what is left is hidden, and the same command gives the same plan."""
    command = ("plan", "shuffle", small, "--out", home / "p", *PLAN, "--epochs", "0:300")
    run = started(*command, "--progress", "json", log=tmp_path / "log")
    assert run.process.stderr is not None
    while "writing epoch 20" not in run.process.stderr.readline():
        assert run.process.poll() is None
    run.kill()
    assert not (home / "p").exists()
    assert all(p.name.startswith(".p.") for p in home.iterdir())
    assert len(list(home.iterdir())) > 0
    undisturbed = plan_id(*command[:3], "--out", tmp_path / "q", *command[5:])
    assert plan_id(*command) == undisturbed


# --- disks ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with room for 2 MB, and options of the process: a disk, or a limit on its files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)],
        capture_output=True, check=False,
    ).returncode  # fmt: skip
    if not mounted:
        limit = (2 << 20, 2 << 20)
        yield folder, {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)}
        return
    try:
        yield folder, {}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(small: Path, small_disk: tuple[Path, dict[str, Any]]) -> None:
    """There was room for the plan when the job began; what the disk holds is not ours to know."""
    folder, options = small_disk
    out = folder / "p"
    command = ("plan", "shuffle", small, "--out", out, *PLAN, "--form", "explicit")
    if not options:
        (folder / "other").write_bytes(bytes(1_900_000))
        start = folder / "sitecustomize.py"  # what was free at the start is gone later
        start.write_text(
            "import collections, os\n"
            "real = os.statvfs\n"
            "class More:\n"
            "    f_blocks, f_bavail, f_frsize = 1 << 30, 1 << 30, 4096\n"
            "def statvfs(path, seen=[]):\n"
            "    seen.append(path)\n"
            "    return More if len(seen) == 1 else real(path)\n"
            "os.statvfs = statvfs\n"
        )
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        options = {"env": {**os.environ, "PYTHONPATH": path}}
    line = failed(out, *command, "--epochs", "0:400", **options)
    assert re.match(r"Writing part \d+ of the manifest failed: ", line)
    assert "Nothing was committed; free some space" in line
    if "No space left on device" in line:
        found = re.search(r"needs about ([\d,]+) bytes in .*; ([\d,]+) are free\.", line)
        assert found is not None
        needed, free = (int(n.replace(",", "")) for n in found.groups())
        assert needed > 400 * 8 * ROWS > free
    else:
        assert "File too large" in line


def test_a_disk_that_is_too_small(small: Path, home: Path) -> None:
    """Found before anything is read or written."""
    line = failed(home / "p", "plan", "shuffle", small, "--out", home / "p", *PLAN,
                  "--form", "explicit", "--epochs", "0:1000000000",
                  "--memory", "100TiB")  # fmt: skip
    found = re.search(r"needs about ([\d,]+) bytes in .*, and ([\d,]+) are free", line)
    assert found is not None
    assert int(found[1].replace(",", "")) > 8e12 > int(found[2].replace(",", ""))
    assert "nothing was written" in line


# --- damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["half", "one byte", "all"])
def test_a_file_that_was_cut(data: Path, home: Path, cut: str) -> None:
    snapshot = home.parent / "data.json"
    assert batchloom("scan", data, "--out", snapshot, "--no-statistics").returncode == 0
    path = data / "part-3.parquet"
    whole = path.read_bytes()
    rest = whole[: {"half": len(whole) // 2, "one byte": len(whole) - 1, "all": 0}[cut]]
    path.write_bytes(rest)
    plan = ("plan", "shuffle", data, "--out", home / "p", *PLAN)
    line = failed(home / "p", *plan)
    assert line.startswith(f"{path} ({len(rest):,} bytes) cannot be read: ")
    assert "copy it again from its source" in line
    # A snapshot knows how large it was.
    line = failed(home / "p", *plan, "--snapshot", snapshot)
    assert "part-3.parquet" in line
    assert f"{len(whole):,} bytes" in line
    assert f"{len(rest):,}" in line


@pytest.fixture
def flipped(tmp_path: Path) -> Callable[[bool], tuple[Path, Path]]:
    """Return a function from whether pages have checksums to (data, its file with a flipped byte).

    The byte lies in row group 1, column 'a'.
    """

    def make(checksums: bool) -> tuple[Path, Path]:
        folder = tmp_path / f"flipped-{checksums}"
        folder.mkdir()
        for number in range(3):
            table = small_table(400 * number, 400 * number + 400)
            pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=200,
                           use_dictionary=False, compression=None,
                           write_page_checksum=checksums)  # fmt: skip
        return folder, folder / "part-1.parquet"

    return make


def flip(path: Path) -> None:
    """Flip a bit of the value in row 300 of a file's column 'a'."""
    value = pq.read_table(path, columns=["a"])["a"][300].as_py()
    whole = bytearray(path.read_bytes())
    place = whole.index(np.float64(value).tobytes())
    whole[place] ^= 1
    path.write_bytes(whole)


def test_a_flipped_byte_is_found_by_a_deep_check(
    flipped: Callable[[bool], tuple[Path, Path]], home: Path
) -> None:
    """Nothing but a hash of the bytes can see it: plans go through, a deep check does not."""
    data, path = flipped(False)
    made = ("plan", "shuffle", data, "--out", home / "p", *PLAN, "--deep")
    before = plan_id(*made)
    flip(path)
    ran = batchloom("verify", home / "p", "--dataset", data)
    assert ran.returncode == 0
    assert batchloom("scan", data, "--workers", "0").returncode == 0
    ran = batchloom("verify", home / "p", "--dataset", data, "--deep")
    assert ran.returncode == 1
    assert "fragment 'part-1.parquet'" in ran.stderr
    assert "changed under an unchanged footer: expected SHA-256" in ran.stderr
    assert before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_flipped_byte_under_a_page_checksum(
    flipped: Callable[[bool], tuple[Path, Path]], home: Path, workers: int
) -> None:
    data, path = flipped(True)
    flip(path)
    line = failed(home / "p", "plan", "kmeans", data, "--out", home / "p", "--batch-size", 32,
                  "--workers", workers, "--set", "columns=a,label", "--set", "k=3")  # fmt: skip
    assert line.startswith(f"{path} (")
    assert "row group 1, column 'a', cannot be read: " in line
    assert "CRC checksum verification failed" in line
    assert "copy it again from its source" in line


def test_flipped_footers_are_found_by_their_hash(data: Path, home: Path) -> None:
    """Some of them Arrow reads without complaint, as other data."""
    plan = ("plan", "shuffle", data, "--out", home / "p", *PLAN)
    plan_id(*plan)
    planned = Manifest.open(home / "p")
    path = data / "part-3.parquet"
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    draw, readable = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[len(whole) - 8 - draw.randrange(1, length)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(Exception):
            open_dataset(path)
            readable += 1
        with pytest.raises(Exception, match=r"part-3\.parquet") as error:
            planned.open_dataset(data)
        assert type(error.value).__name__ in ("DatasetChangedError", "FragmentCorruptError")
    assert readable > 0
    ran = batchloom("verify", home / "p", "--dataset", data)
    assert ran.returncode == 1
    assert "part-3.parquet" in ran.stderr
    assert "Traceback" not in ran.stderr


# --- data that does not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("type_", [pa.float32(), pa.string(), pa.int64()])
def test_a_column_of_another_type(data: Path, home: Path, type_: pa.DataType) -> None:
    table = small_table(0, 50)
    values = pa.array(np.arange(50.0)).cast(type_)
    pq.write_table(table.set_column(2, "a", values), data / "part-9.parquet")
    line = failed(home / "p", "plan", "shuffle", data, "--out", home / "p", *PLAN,
                  "--where", "a > 0")  # fmt: skip
    assert re.search(rf"'a' is {type_}\b.* in data:part-9.parquet but double", line)
    assert "Rewrite that file with the same type" in line


def test_a_column_that_is_missing(data: Path, home: Path) -> None:
    pq.write_table(small_table(0, 50).drop_columns(["x"]), data / "part-9.parquet")
    line = failed(home / "p", "plan", "kmeans", data, "--out", home / "p", *PLAN, *KMEANS)
    assert "data:part-9.parquet has no column 'x'" in line
    assert "fixed_size_list" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_values_that_cannot_be_used(data: Path, home: Path, workers: int) -> None:
    x = small_table(0, 60)["x"].to_pylist()
    x[7], x[9] = [0.0, float("nan"), 0.0], None
    column = pa.array(x, pa.list_(pa.float32(), 3))
    pq.write_table(small_table(0, 60).set_column(1, "x", column), data / "part-9.parquet")
    plan = ("plan", "kmeans", data, "--out", home / "p", "--batch-size", 32, "--workers", workers)
    line = failed(home / "p", *plan, *KMEANS)
    # Those of the training sample are met first.
    assert re.match(r"[12] rows hold NaN, infinite or null values in x: 100[79]", line)
    assert "--on-invalid drop" in line
    ran = batchloom(*plan, *KMEANS, "--on-invalid", "drop")
    assert ran.returncode == 0, ran.stderr
    assert "2 rows hold NaN" in ran.stderr
    rows = Manifest.open(home / "p").epoch(0).plan().rows.tolist()
    assert sorted(rows) == [i for i in range(ROWS + 60) if i not in (1007, 1009)]


def test_an_unknown_column(data: Path, home: Path) -> None:
    out = ("--out", home / "p")
    line = failed(home / "p", "plan", "kmeans", data, *out, *PLAN, "--set", "columns=lable",
                  "--set", "k=3")  # fmt: skip
    assert "no column 'lable' in the dataset. Did you mean 'label'? It has: row, x, a" in line
    line = failed(home / "p", "plan", "shuffle", data, *out, *PLAN, "--where", "lable == 3")
    assert "Did you mean 'label'?" in line


def test_strange_files_beside_the_data(data: Path, home: Path) -> None:
    """They are no fragments; a broken fragment is never left out like one of them."""
    plan = ("plan", "shuffle", data, *PLAN)
    before = plan_id(*plan, "--out", home / "p")
    (data / "notes.txt").write_text("x")
    (data / "_SUCCESS").touch()
    (data / ".part-3.parquet.crc").write_bytes(b"crc")
    (data / "_temporary").mkdir()
    shutil.copy(data / "part-3.parquet", data / "_temporary" / "part-3.parquet")
    assert plan_id(*plan, "--out", home / "q") == before
    (data / "part-7.parquet").write_bytes(b"x")
    assert f"{data}/part-7.parquet (1 bytes)" in failed(home / "r", *plan, "--out", home / "r")
