"""Every command and program of docs/service.md runs as printed, against a service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import batchloom
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.tests.jobs.service.running import Served, wait_ready

PAGE = Path(batchloom.__file__).parent / "docs" / "service.md"
EXAMPLE = Path(batchloom.__file__).parent / "examples" / "service_training.py"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(350, 4)).astype(np.float32)
    points = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
    Path("data").mkdir()
    pq.write_table(pa.table({"x": points, "y": rng.integers(0, 5, 350)}), "data/part-0.parquet")
    blocks = re.findall(r"^```(sh|py)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "py", "sh", "py", "sh"]
    served: Served | None = None
    try:
        for language, text in blocks:
            if served is not None:
                text = text.replace("http://127.0.0.1:8765", served.url)
            if language == "sh":
                command = ["bash", "-euo", "pipefail", "-c", text]
            else:
                command = [sys.executable, "-c", text]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
            assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
            if served is None:
                served = Served(tmp_path / "service")
                wait_ready(served.url, "first", 0)
        assert '"state":"ready"' in ran.stdout  # the last request
    finally:
        if served is not None:
            served.stop()


def test_the_example_trains_on_two_processes() -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLE, "--rows", "600", "--epochs", "3", "--port", "29577"],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["epoch 0", "epoch 1", "epoch 2"]
    assert "3 epochs" in lines[3]
