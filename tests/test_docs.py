"""Every command and every program in the README and the docs runs as printed."""

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

ROOT = Path(batchloom.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty directory with a user's ``data/``."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for number, rows in enumerate([150, 1, 200]):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        columns = {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4),
            "y": rng.integers(0, 5, rows),
            "text": [f"row {i}" for i in range(rows)],
        }
        pq.write_table(pa.table(columns), data / f"part-{number}.parquet")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_printed_runs(page: Path, home: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for number, (language, text) in enumerate(blocks(page)):
        if language == "toml":
            (home / "job.toml").write_text(text)
            command = ["batchloom", "run", "job.toml"]
        elif language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", text]
        elif language == "python":
            (home / f"block{number}.py").write_text(text)
            command = [sys.executable, f"block{number}.py"]
        else:
            continue
        ran = subprocess.run(
            command,
            cwd=home,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert ran.returncode == 0, (page.name, text, ran.stderr)
        assert "Traceback" not in ran.stderr


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_files_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:tests|benchmarks|dataplane)/[\w/]+\.py)`", page.read_text()):
            assert (ROOT / name).exists(), (page.name, name)
