"""The same bytes of a plan of 1,000,003 rows, however it is computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane import Manifest
from batchloom.jobs import plan

ROWS, FILES = 1_000_003, 14


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("million") / "data"
    folder.mkdir()
    cuts = np.linspace(0, ROWS, FILES + 1).astype(int).tolist()
    for number, (a, b) in enumerate(pairwise(cuts)):
        k = np.arange(a, b)
        table = pa.table({"a": (k * 2654435761 % 1000).astype(np.int16), "g": (k % 5).astype("i1")})
        with pa.ipc.new_file(folder / f"part-{number}.arrow", table.schema) as writer:
            writer.write_table(table, max_chunksize=30_000)
    return folder


SETTINGS: dict[str, Any] = {
    "where": "a < 700",
    "split": "train=0.9,val=0.1:train",
    "stratify": "g",
    "batch_size": 1000,
    "micro_per_step": 3,
    "epochs": (0, 2),
    "seed": 11,
}


def parts_of(manifest: Manifest) -> list[str]:
    return [manifest.manifest_id, *(p.name for p in manifest.parts)]


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("expected") / "plan"
    return parts_of(plan("shuffle", data, out=out, workers=0, **SETTINGS))


def task_bytes(data: Path, fragments: int) -> int:
    """Return the task size that groups so many fragments."""
    sizes = sorted(p.stat().st_size for p in data.iterdir())
    return sizes[0] * (fragments - 1) + 1


@pytest.mark.parametrize(("workers", "fragments"), [(0, 1), (0, 7), (1, FILES), (2, 1), (4, 7)])
def test_workers_and_tasks_do_not_change_a_byte(
    data: Path, expected: list[str], tmp_path: Path, workers: int, fragments: int
) -> None:
    size = task_bytes(data, fragments)
    made = plan(
        "shuffle", data, out=tmp_path / "plan", workers=workers, task_bytes=size, **SETTINGS
    )
    assert parts_of(made) == expected


def test_numpy_and_compiled_forms_do_not_change_a_byte(
    data: Path, expected: list[str], tmp_path: Path
) -> None:
    script = (
        "import json, sys\n"
        "from batchloom.jobs import plan\n"
        "settings = json.loads(sys.argv[3])\n"
        "plan('shuffle', sys.argv[1], out=sys.argv[2], workers=0, **settings)\n"
        "assert 'batchloom.dataplane.kernels' not in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, data, tmp_path / "plan", json.dumps(SETTINGS)],
        env={**os.environ, "BATCHLOOM_NUMBA": "0"},
        check=True,
    )
    assert parts_of(Manifest.open(tmp_path / "plan")) == expected


def test_threads_do_not_change_a_byte(data: Path, expected: list[str], tmp_path: Path) -> None:
    """Workers that are threads of one process, as a scheduler elsewhere may have them."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=3,
        processes=False,
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        made = plan(
            "shuffle", data, out=tmp_path / "plan", scheduler=cluster.scheduler_address, **SETTINGS
        )
    assert parts_of(made) == expected
