"""SIGKILL of a job's process group and of its workers, and disks that lose what was not flushed."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane import Manifest
from batchloom.tests.contracts.crash import problem_of, run_job, start

SHUFFLE = ["shuffle", "--where", "label < 4", "--epochs", "0:2", "--workers", "0"]
KMEANS = ["kmeans", "--set", "columns=x", "--set", "k=4", "--workers", "2"]


def arguments(method: list[str], data: Path, out: Path) -> list[Any]:
    return ["plan", *method[:1], data, "--out", out, *method[1:], "--batch-size", "32", "--quiet"]


Whole = Callable[[list[str]], tuple[str, float]]


@pytest.fixture(scope="module")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return a function from a method to its undisturbed run: the manifest's id, and seconds."""

    @functools.cache
    def run(*method: str) -> tuple[str, float]:
        folder = tmp_path_factory.mktemp("whole")
        seconds = run_job(arguments([*method], small, folder / "plan"), folder / "log")
        return Manifest.open(folder / "plan").manifest_id, seconds

    return lambda method: run(*method)


class Killed:
    """A job, killed at moments drawn from its undisturbed run."""

    def __init__(
        self, method: list[str], data: Path, folder: Path, whole: Whole, seed: int
    ) -> None:
        self.method, self.data, self.folder = method, data, folder
        self.draw = random.Random(seed)
        self.id, self.seconds = whole(method)

    def once(self, number: int, *, flushed_only: bool) -> str:
        """Kill, look, run again; return what was there after the kill: absent or whole."""
        home = self.folder / f"run-{number}"
        home.mkdir()
        command = arguments(self.method, self.data, home / "plan")
        run = start(command, self.folder / f"log-{number}")
        time.sleep(self.draw.uniform(0.3, 1.02) * self.seconds)
        run.kill()
        if flushed_only:
            run.lose_unflushed(home, self.draw)
        assert problem_of(home / "plan", self.id) is None
        state = "whole" if (home / "plan").exists() else "absent"
        assert all(p.name.startswith(".plan.") for p in home.iterdir() if p.name != "plan")
        run_job(command, self.folder / f"log-{number}-again")
        assert Manifest.open(home / "plan", verify="all").manifest_id == self.id
        return state


@pytest.mark.parametrize("method", [SHUFFLE, KMEANS], ids=["shuffle", "kmeans"])
@pytest.mark.parametrize("flushed_only", [False, True], ids=["kill", "power"])
def test_a_killed_job_leaves_nothing_or_all(
    small: Path, tmp_path: Path, whole: Whole, method: list[str], flushed_only: bool
) -> None:
    killed = Killed(method, small, tmp_path, whole, seed=4)
    for number in range(1 if method is KMEANS else 3):
        killed.once(number, flushed_only=flushed_only)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", [SHUFFLE, KMEANS], ids=["shuffle", "kmeans"])
def test_many_killed_jobs(small: Path, tmp_path: Path, whole: Whole, method: list[str]) -> None:
    killed = Killed(method, small, tmp_path, whole, seed=5)
    states = [killed.once(n, flushed_only=n % 2 == 0) for n in range(25)]
    assert "absent" in states


def test_a_finished_job_survives_a_loss_of_power(small: Path, tmp_path: Path) -> None:
    command = arguments(SHUFFLE, small, tmp_path / "home" / "plan")
    run = start(command, tmp_path / "log")
    assert run.wait()[0] == 0
    found = Manifest.open(tmp_path / "home" / "plan", verify="all").manifest_id
    for seed in range(5):
        run.lose_unflushed(tmp_path / "home", random.Random(seed))
        assert Manifest.open(tmp_path / "home" / "plan", verify="all").manifest_id == found
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["plan"]


def test_what_was_not_flushed_is_lost(small: Path, tmp_path: Path) -> None:
    """The test's own disk: a file that nobody flushed is empty after the loss."""
    (tmp_path / "home").mkdir()
    run = start(["--version"], tmp_path / "log")
    assert run.wait()[0] == 0
    (tmp_path / "home" / "file").write_text("not flushed")
    run.lose_unflushed(tmp_path / "home", random.Random(0))
    assert (tmp_path / "home" / "file").read_text() == ""


def kill_one_worker(
    small: Path, tmp_path: Path, number: int, draw: random.Random, seconds: float
) -> bool:
    """Kill a worker in the middle of a job; the job must not mind. Whether one was killed.

    `seconds` is what the job takes undisturbed; moments are a share of it, on any machine.
    """
    command = arguments(KMEANS, small, tmp_path / f"plan-{number}")
    run = start(command, tmp_path / f"log-{number}")
    moment, killed = draw.uniform(0.4, 0.95) * seconds, False
    while run.process.poll() is None and not killed:
        time.sleep(0.05)
        if time.monotonic() - run.began >= moment:
            killed = run.kill_a_worker(draw)
    code, _, err = run.wait()
    assert code == 0, err
    assert "Traceback" not in err
    return killed


def test_a_job_does_not_mind_a_killed_worker(small: Path, tmp_path: Path, whole: Whole) -> None:
    expected, seconds = whole(KMEANS)
    draw = random.Random(1)
    killed = [kill_one_worker(small, tmp_path, n, draw, seconds) for n in range(2)]
    assert any(killed)
    for number in range(2):
        assert Manifest.open(tmp_path / f"plan-{number}", verify="all").manifest_id == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_jobs_do_not_mind_twenty_killed_workers(small: Path, tmp_path: Path, whole: Whole) -> None:
    expected, seconds = whole(KMEANS)
    draw, killed = random.Random(2), 0
    for number in range(40):
        killed += kill_one_worker(small, tmp_path, number, draw, seconds)
        assert Manifest.open(tmp_path / f"plan-{number}", verify="all").manifest_id == expected
        if killed == 20:
            break
    assert killed == 20
