"""What this machine offers: packages, the GPU path and its reason, memory, Dask."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from ..dataplane.cores import usable_cores

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    what : str
    here : bool
        Whether it can be used.
    detail : str
    needed_for : str
        Empty where everything needs it.
    """

    what: str
    here: bool
    detail: str
    needed_for: str = ""


_PACKAGES = (
    ("torch", "torch", ""),
    ("pyarrow", "pyarrow", ""),
    ("numpy", "numpy", ""),
    ("numba", "numba", ""),
    ("dask", "dask", "planning: pip install 'batchloom[plan]'"),
    ("distributed", "distributed", "planning: pip install 'batchloom[plan]'"),
    ("scikit-learn", "sklearn", "k-means: pip install 'batchloom[plan]'"),
    ("faiss", "faiss", "clustering: pip install 'batchloom[plan]'"),
    ("torch-geometric", "torch_geometric", "graphs: pip install 'batchloom[graph]'"),
    ("pyg-lib", "pyg_lib", "graphs, where installed"),
    ("s3fs", "s3fs", "s3:// datasets: pip install 'batchloom[s3]'"),
    ("triton", "triton", "GPU kernels: pip install 'batchloom[gpu]'"),
)
_WAYS = {  # what each way of a row to a GPU is good for
    "zero_copy": "gathers by GPU threads from host memory",
    "alias": "the same by torch's own kernel",
    "staged": "gathers on the CPU, copied beside training",
    "cpu": "gathers on the CPU",
}
_DISTRIBUTIONS = {"faiss": ("faiss-gpu", "faiss-cpu", "faiss-gpu-cu12")}


def examine() -> list[Finding]:
    """Look at the machine; nothing stays started, and nothing of yours is written."""
    supported = sys.platform.startswith("linux") or sys.platform == "darwin"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    findings = [
        Finding("batchloom", True, f"{version('batchloom')}, Python {platform.python_version()}"),
        Finding("system", supported, system + ("" if supported else " (not supported)")),
        Finding("cores", True, f"{os.cpu_count()} of the machine, {usable_cores()} usable"),
        Finding("memory", True, _memory()),
        *_gpu(),
        _huge_pages(),
    ]
    return findings + [_package(*p) for p in _PACKAGES]


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / 2**30:.1f} GiB"


def _gpu() -> list[Finding]:
    """Say whether there is a GPU, and each way of rows to it: what was tried, and what came of it.

    Trying compiles a kernel and reads a few pages of host memory through the GPU.
    """
    from ..gpu_access.backends import select_backend
    from ..gpu_access.transfer import gpu_path

    gpu = gpu_path()
    findings = [Finding("GPU path", gpu.available, gpu.reason, "device='cuda'")]
    ladder = select_backend().ladder
    findings += [
        Finding(f"rows by {tried.backend}", tried.works, tried.reason, _WAYS[tried.backend])
        for tried in ladder
    ]
    return findings


def _huge_pages() -> Finding:
    file = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    try:
        mode = file.read_text().strip()
    except OSError:
        return Finding("huge pages", False, "not reported by this system", "large host tables")
    chosen = mode[mode.find("[") + 1 : mode.find("]")]
    return Finding("huge pages", chosen != "never", chosen, "large host tables")


def _package(name: str, module: str, needed_for: str) -> Finding:
    if find_spec(module) is None:
        return Finding(name, False, "not installed", needed_for)
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        return Finding(name, True, found if distribution == name else f"{distribution} {found}")
    return Finding(name, True, "installed")
