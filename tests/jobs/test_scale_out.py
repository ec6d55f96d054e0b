"""Jobs on a cluster that somebody else runs: workers come, leave and die, or are not fit for it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane import Manifest
from batchloom.dataplane.errors import EngineError
from batchloom.jobs.engine import Engine
from batchloom.tests.contracts.clusters import DaskCluster, wait_for
from batchloom.tests.contracts.faults import COMMAND, job_file
from batchloom.tests.jobs.conftest import write_small
from batchloom.tests.jobs.test_engine import TASKS, slowly, square
from distributed import Client

FILES = 40


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """A scheduler; tests start its workers."""
    folder = tmp_path / "dask"
    folder.mkdir()
    with DaskCluster(folder) as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of many small files, a task each."""
    return write_small(tmp_path_factory.mktemp("files") / "data", (30,) * FILES)


@pytest.fixture(scope="module")
def expected(files: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of an undisturbed plan."""
    out = tmp_path_factory.mktemp("expected") / "p"
    ran = subprocess.run(
        [*COMMAND, "run", job_file(files, out, {"workers": 0}), "--quiet"], check=True
    )
    assert ran.returncode == 0
    return Manifest.open(out).manifest_id


class Job:
    """A job on a cluster, as a process; what it tells is read as it comes."""

    def __init__(self, cluster: DaskCluster, data: Path, **parameters: Any) -> None:
        self.home = cluster.folder.parent / "home"
        self.home.mkdir()
        self.signed = cluster.folder / "signed"
        self.signed.mkdir()
        self.out = self.home / "p"
        self.hurry = cluster.folder / "hurry"  # once it is there, tasks take no time
        options = {"scheduler": cluster.address, "task_bytes": 1}
        parameters |= {"sign": str(self.signed), "hurry": str(self.hurry)}
        job = job_file(data, self.out, options, **parameters)
        self.process = subprocess.Popen(
            [*COMMAND, "run", str(job), "--progress", "json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def told(self, kind: str) -> list[str]:
        lines = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line[kind] for line in lines if kind in line]

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many worker processes have run tasks."""
        wait_for(lambda: self.process.poll() is not None or self.workers >= count)
        assert self.process.poll() is None, self.lines

    @property
    def workers(self) -> int:
        return len(list(self.signed.iterdir()))

    def finish(self) -> int:
        code = self.process.wait(timeout=120)
        self._reader.join()
        assert not any("Traceback" in line for line in self.lines), self.lines
        return code

    def fail(self) -> str:
        """Return the one sentence with which the job ended."""
        assert self.finish() == 1
        plain = [line for line in self.lines if not line.startswith("{")]
        assert len(plain) == 1
        assert [p.name for p in self.home.iterdir()] == ["p.toml"]
        return plain[0].removeprefix("batchloom: ")


def test_workers_that_join_leave_and_die(cluster: DaskCluster, files: Path, expected: str) -> None:
    first = cluster.start_worker("--name", "first")
    job = Job(cluster, files, seconds=0.5)
    job.wait_for_workers(1)
    second = cluster.start_worker()
    job.wait_for_workers(2)  # who joins is given tasks
    first.terminate()
    wait_for(lambda: job.told("note"))
    cluster.start_worker()
    job.wait_for_workers(3)
    cluster.kill(second)
    wait_for(lambda: job.told("warning"))
    job.hurry.touch()
    assert job.finish() == 0, job.lines
    assert Manifest.open(job.out).manifest_id == expected
    (left,) = job.told("note")
    assert left.startswith("worker first left")
    (died,) = job.told("warning")
    assert re.fullmatch(r"worker tcp://127\.0\.0\.1:\d+ died; its tasks run again", died)


def test_a_job_waits_for_workers(cluster: DaskCluster, files: Path, expected: str) -> None:
    """None at the start, none in the middle."""
    job = Job(cluster, files, seconds=0.2)
    waiting = f"no worker is connected at {cluster.address}; waiting up to 300 s for one that works"
    wait_for(lambda: job.told("warning") == [waiting])
    worker = cluster.start_worker()
    job.wait_for_workers(1)
    cluster.kill(worker)
    wait_for(lambda: job.told("warning").count(waiting) == 2)
    job.hurry.touch()
    cluster.start_worker()
    assert job.finish() == 0, job.lines
    assert Manifest.open(job.out).manifest_id == expected


def test_a_job_without_workers_gives_up(cluster: DaskCluster) -> None:
    with (
        Engine(scheduler=cluster.address, patience=2) as engine,
        pytest.raises(
            EngineError,
            match=rf"no worker is connected at {cluster.address}; start one with: dask worker tcp",
        ),
    ):
        list(engine.map(square, TASKS, 0))


def workers_of(client: Client) -> list[dict[str, Any]]:
    return list(client.scheduler_info()["workers"].values())


def test_workers_that_take_no_tasks(cluster: DaskCluster) -> None:
    """Paused for good: their libraries alone take more than 80 % of what they may use."""
    cluster.start_worker("--no-nanny", "--memory-limit", "60MB")
    with Client(cluster.address, set_as_default=False) as client:
        wait_for(lambda: "paused" in [w["status"] for w in workers_of(client)])
    with (
        Engine(scheduler=cluster.address, patience=1) as engine,
        pytest.raises(EngineError, match=r"all workers are paused, out of memory, at .*57 MiB"),
    ):
        list(engine.map(slowly, TASKS))


def test_a_scheduler_killed_in_the_middle(cluster: DaskCluster, files: Path) -> None:
    cluster.start_worker()
    job = Job(cluster, files, seconds=0.5)
    job.wait_for_workers(1)
    cluster.scheduler.kill()
    assert job.fail() == (
        "The connection to the Dask scheduler was lost; run the same command again."
    )


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_row_that_kills_workers_elsewhere(
    cluster: DaskCluster, files: Path, threads: str
) -> None:
    """Other tasks run on the same worker each time that it dies; only one of them is to blame."""
    cluster.start_worker("--nthreads", threads)
    job = Job(cluster, files, row=95, seconds=0.1)
    line = job.fail()
    assert re.findall(r"part-\d+", line) == ["part-3"]
    assert re.match(r"Reading data:part-3\.parquet killed [45] workers one after another\. ", line)
    assert "dask worker --memory-limit" in line


# --- workers that are not fit for it --------------------------------------------------------------


def test_a_worker_that_does_not_see_the_folder(
    cluster: DaskCluster, files: Path, tmp_path: Path
) -> None:
    """It lives in a mount namespace of its own, where the target's folder is another one."""
    hidden = tmp_path / "home"
    script = f'mount -t tmpfs tmpfs {hidden} && exec "$@"'
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")
    cluster.start_worker()
    job = Job(cluster, files, seconds=0.5)
    job.wait_for_workers(1)
    cluster.start_worker(before=["unshare", "--mount", "sh", "-c", script, "sh"])
    line = job.fail()
    assert re.match(rf"Worker tcp://\S+ does not see the job's folder {hidden}/\.p\.", line)
    assert "under the same path" in line


def test_a_worker_that_does_not_see_the_dataset(
    cluster: DaskCluster, files: Path, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")
    script = f'mount -t tmpfs tmpfs {files} && exec "$@"'
    cluster.start_worker(before=["unshare", "--mount", "sh", "-c", script, "sh"])
    job = Job(cluster, files)
    line = job.fail()
    assert re.match(rf"Worker tcp://\S+ cannot read {files}/part-0\.parquet\. Put the data", line)
    assert job.workers == 0


def test_a_worker_of_another_version(cluster: DaskCluster, files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "batchloom-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: batchloom\nVersion: 0.0.1\n")
    path = os.pathsep.join(filter(None, [str(other.parent), os.environ.get("PYTHONPATH")]))
    # Safe: the folder that the tests run in, which may hold the real version, does not come first.
    cluster.start_worker(env={"PYTHONPATH": path, "PYTHONSAFEPATH": "1"})
    line = Job(cluster, files).fail()
    assert re.match(r"This job runs Batchloom \S+, but worker tcp://\S+ has 0\.0\.1: install", line)


def test_a_worker_without_batchloom(cluster: DaskCluster, files: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    without.mkdir()
    (without / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'batchloom':\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
    )
    cluster.start_worker(env={"PYTHONPATH": str(without)})
    line = Job(cluster, files).fail()
    assert re.match(r"This job runs Batchloom \S+, but worker tcp://\S+ has none: install", line)
