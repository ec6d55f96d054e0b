"""The engine on real processes: embedded clusters, a separate scheduler, workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from batchloom.dataplane.errors import EngineError, InvalidValueError, ParameterError
from batchloom.jobs import plan
from batchloom.jobs.engine import Engine, parse_bytes
from batchloom.jobs.watch import Watch
from batchloom.tests.contracts.clusters import DaskCluster, wait_for
from distributed import Client


@dataclass(frozen=True)
class Job:
    """A task for the engine."""

    index: int
    label: str = "fragments a, b"
    example: None = None


def square(task: Job, base: int) -> int:
    return base + task.index**2


def fail(task: Job) -> int:
    if task.index == 3:
        raise InvalidValueError("3 rows hold NaN")
    return 0


def die_once(task: Job, folder: str) -> int:
    marker = Path(folder) / str(task.index)
    if task.index == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return task.index


def die(task: Job) -> int:
    if task.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.index


TASKS = [Job(i) for i in range(6)]


def test_results_are_the_same_in_process_and_on_a_cluster() -> None:
    for workers in (0, 2):
        with Engine(workers=workers) as engine:
            assert dict(engine.map(square, TASKS, 10)) == {i: 10 + i * i for i in range(6)}
            assert dict(engine.map(square, [], 10)) == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_our_errors_come_through_as_they_are(workers: int) -> None:
    with (
        Engine(workers=workers) as engine,
        pytest.raises(InvalidValueError, match="^3 rows hold NaN$"),
    ):
        list(engine.map(fail, TASKS))


def test_a_worker_that_dies_once_is_made_good(tmp_path: Path) -> None:
    with Engine(workers=2) as engine:
        found = dict(engine.map(die_once, TASKS, str(tmp_path)))
    assert found == {i: i for i in range(6)}
    assert (tmp_path / "1").exists()


def test_a_task_that_always_kills_its_worker_is_named() -> None:
    with (
        Engine(workers=2, memory=2 << 30) as engine,
        pytest.raises(
            EngineError,
            match=r"Reading fragments a, b killed 4 workers one after another \(signal 9\)",
        ),
    ):
        list(engine.map(die, TASKS))


def test_everything_listens_on_the_loopback_only() -> None:
    notes: list[str] = []
    with Engine(workers=2, note=notes.append) as engine:
        list(engine.map(square, TASKS, 0))
        me = psutil.Process()
        listening = [
            c.laddr.ip
            for process in (me, *me.children(recursive=True))
            for c in process.net_connections(kind="inet")
            if c.status == psutil.CONN_LISTEN
        ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}
    assert notes
    assert "http://127.0.0.1:" in notes[0]


def test_nothing_is_left_running() -> None:
    before = set(psutil.Process().children(recursive=True))  # such as a server of other tests
    with Engine(workers=2) as engine:
        list(engine.map(square, TASKS, 0))
        # The helper of multiprocessing that tracks shared resources outlives any one cluster.
        children = set(psutil.Process().children(recursive=True)) - before
        workers = [p for p in children if "resource_tracker" not in " ".join(p.cmdline())]
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert len(gone) >= 2


def test_a_script_needs_no_main_guard(tmp_path: Path, small: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from batchloom.jobs import plan\n"
        f"made = plan('kmeans', {str(small)!r}, out={str(tmp_path / 'plan')!r}, columns=['x'], "
        "k=3, batch_size=32, workers=2, task_bytes=4000)\n"
        "print(made.manifest_id)\n"
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.split()) == 1
    assert ran.stderr == ""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """A scheduler and two workers, started as an operator starts them."""
    with DaskCluster(tmp_path) as started:
        for _ in range(2):
            started.start_worker()
        yield started


def test_a_separate_scheduler_makes_the_same_plan(
    cluster: DaskCluster, small: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "columns": ["x"], "k": 4, "batch_size": 32, "task_bytes": 4000, "where": "a > 0",
    }  # fmt: skip
    there = plan("kmeans", small, out=tmp_path / "there", scheduler=cluster.address, **options)
    here = plan("kmeans", small, out=tmp_path / "here", workers=0, **options)
    assert there.manifest_id == here.manifest_id


def test_a_watch_begins_when_it_is_heard(
    cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the scheduler knows what the watch subscribes to, a worker could join unseen."""
    deliver = Client._send_to_scheduler
    held: list[dict[str, Any]] = []

    def release() -> None:
        while held:
            deliver(client, held.pop(0))

    def late(self: Client, message: dict[str, Any]) -> None:
        if message["op"] != "subscribe-topic":
            deliver(self, message)
            return
        if not held:
            threading.Timer(0.5, release).start()
        held.append(message)

    with Client(cluster.address, set_as_default=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "_send_to_scheduler", late)
            watch = Watch(client, exits=None, warn=print, note=print)
            assert held == []
        wait_for(lambda: watch.update() or len(watch.workers) >= 2)
        cluster.start_worker()
        wait_for(lambda: watch.update() or len(watch.workers) == 3)
        watch.close()


SCHEDULER_LOST = """
import sys, time
from batchloom.jobs.engine import Engine
from batchloom.dataplane.errors import EngineError
from batchloom.tests.jobs.test_engine import TASKS, slowly

with Engine(scheduler=sys.argv[1]) as engine:
    try:
        for done in engine.map(slowly, TASKS):
            print("done", flush=True)
    except EngineError as error:
        print(error)
"""


def slowly(task: Job) -> int:
    time.sleep(1)
    return task.index


def test_a_scheduler_that_is_lost_is_one_sentence(cluster: DaskCluster) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER_LOST, cluster.address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    cluster.scheduler.kill()
    out, errors = process.communicate(timeout=60)
    assert out.splitlines()[-1].startswith("The connection to the Dask scheduler was lost")
    assert errors == ""


def test_no_scheduler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchloom.jobs.engine._CONNECT_SECONDS", 1)
    with (
        Engine(scheduler="tcp://127.0.0.1:9") as engine,
        pytest.raises(EngineError, match="No Dask scheduler answers at tcp://127.0.0.1:9"),
    ):
        list(engine.map(square, TASKS, 0))


def test_scheduler_and_workers_exclude_each_other() -> None:
    with pytest.raises(ParameterError, match="either a scheduler or a number of workers"):
        Engine(scheduler="tcp://127.0.0.1:9", workers=1)
    with pytest.raises(ParameterError, match="range"):
        Engine(workers=-1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 << 30), ("512MB", 512_000_000), ("1.5 k", 1500), ("7", 7), ("2 MiB", 2 << 20)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "4 apples", "-"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="size"):
        parse_bytes(text)
