"""Clusters made by another process: the same labels, whatever becomes of it, and nothing left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import psutil
import pytest
from batchloom.clustering import BalancedKMeans
from batchloom.dataplane.errors import BatchloomError, SelectionError
from batchloom.samplers import refresh
from batchloom.samplers.refresh import Refresh

MODEL = BalancedKMeans(k=7, seed=3, metric="cosine")


def some(n: int = 300, d: int = 5) -> Any:
    return np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)


def test_it_copies_the_rows_and_leaves_no_file_open() -> None:
    values = some()
    expected = MODEL.labels(values).tolist()
    before = psutil.Process().num_fds()
    work = Refresh(MODEL, values, "clusters")
    values[:] = 0
    assert work.labels().tolist() == work.labels().tolist() == expected
    assert pickle.loads(pickle.dumps(work)).labels().tolist() == expected
    assert psutil.Process().num_fds() == before


def test_files_where_there_is_no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    work = Refresh(MODEL, some(), "clusters")
    assert work.labels().tolist() == MODEL.labels(some()).tolist()


def test_what_it_raises_is_raised_each_time() -> None:
    work = Refresh(BalancedKMeans(k=301), some(), "clusters")
    for one in (work, work, pickle.loads(pickle.dumps(work))):
        with pytest.raises(SelectionError, match="k = 301 clusters of 300 rows") as caught:
            one.labels()
    assert "It was to make clusters." in caught.value.__notes__


def test_what_is_raised_here_in_its_stead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/there/is/no/python")
    work = Refresh(BalancedKMeans(k=301), some(), "clusters")
    with (
        pytest.warns(UserWarning, match="was to make clusters could not be started"),
        pytest.raises(SelectionError, match="k = 301"),
    ):
        work.labels()


class _UnsendableError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def test_an_error_that_cannot_be_sent() -> None:
    found = refresh._portable(_UnsendableError("a", "b"))
    assert type(found) is BatchloomError
    assert str(found) == "_UnsendableError: ab"
    assert "In the process that makes clusters:" in found.__notes__[0]


def test_it_sees_one_thread_and_no_torch() -> None:
    env = refresh._environment()
    assert {env[name] for name in refresh._ONE_THREAD} == {"1"}
    script = "import sys, batchloom.samplers.refresh; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


# --- its end --------------------------------------------------------------------------------------

SLOW = """
import json, sys, time
from batchloom.samplers import refresh
refresh.end_with(json.loads(sys.argv[1])["parent"])
time.sleep(200)
"""
PARENT = """
import sys, numpy as np
from batchloom.clustering import BalancedKMeans
from batchloom.samplers import refresh
refresh._PROGRAM = ["-c", sys.argv[1]]
work = refresh.Refresh(BalancedKMeans(k=2), np.zeros((9, 2), np.float32), "clusters")
print(work._process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_no_process_is_left_behind(end: str) -> None:
    command = [sys.executable, "-c", PARENT, SLOW]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    if end == "kill":
        parent.kill()
    parent.communicate("\n")
    assert parent.returncode == (0 if end == "exit" else -signal.SIGKILL)
    assert gone(child)


def gone(process: psutil.Process) -> bool:
    for _ in range(600):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_a_forked_child_leaves_it_alone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    refresh._end(process, os.getpid() + 1)
    assert process.poll() is None
    refresh._end(process, os.getpid())
    assert process.returncode == -signal.SIGKILL
    process.stdin.close()  # type: ignore[union-attr]
