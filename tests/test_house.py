"""The house itself: packages, lazy imports, what the distribution holds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import batchloom
import pytest

ROOT = Path(batchloom.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("dataplane", "coresets", "clustering", "gpu_access", "samplers", "jobs")


def test_every_package_is_listed_and_nothing_else() -> None:
    found = {
        "batchloom." + str(p.parent.relative_to(ROOT)).replace("/", ".")
        for room in ROOMS
        for p in (ROOT / room).rglob("__init__.py")
    } | {"batchloom"}
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    assert {p: places[p] for p in listed} == {
        p: p.removeprefix("batchloom").lstrip(".").replace(".", "/") or "." for p in listed
    }


def test_tests_and_benchmarks_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not any("test" in p or "bench" in p for p in PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist(room: str) -> None:
    module = importlib.import_module(f"batchloom.{room}")
    stub = (ROOT / room / "__init__.pyi").read_text()
    names = re.findall(r"import (\w+) as \1", stub)
    assert names
    assert sorted(module.__all__) == sorted(names)
    for name in names:
        assert getattr(module, name) is not None


def test_the_package_names_its_rooms() -> None:
    assert sorted(batchloom.__all__) == sorted(ROOMS)
    script = "import batchloom; print(batchloom.samplers.ManifestLoader.__name__)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "ManifestLoader"


def test_importing_the_rooms_imports_nothing_heavy() -> None:
    script = "import sys\n" + "".join(f"import batchloom.{room}\n" for room in ROOMS)
    script += "print({'torch', 'pyarrow', 'numpy', 'dask', 'sklearn', 'numba'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_a_training_rank_needs_no_planning_packages() -> None:
    script = (
        "import sys\n"
        "from batchloom.samplers import ManifestLoader, ManifestBatchSampler\n"
        "from batchloom.dataplane import Manifest, ManifestWriter, open_dataset\n"
        "print({'dask', 'distributed', 'sklearn', 'scipy', 'faiss'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_one_version() -> None:
    assert batchloom.__version__ == PROJECT["project"]["version"]


def test_files_stay_short() -> None:
    long = {
        str(p.relative_to(ROOT)): lines
        for room in ROOMS
        for p in (ROOT / room).rglob("*.py")
        if (lines := len(p.read_text().splitlines())) > 420
    }
    assert not long
