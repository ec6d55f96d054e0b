"""A host batch to a device, and which way there this machine offers.

``'cpu'`` gathers on the CPU and copies what was gathered; ``'staged'`` gathers into pinned memory
and copies beside the training; ``'unified'`` lets GPU threads gather; ``'auto'`` takes the best
that the machine offers. (`samplers.device_source` is where loaders choose.)
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from ..dataplane.checks import require_one_of
from ..dataplane.errors import ParameterError

__all__ = ["GpuPath", "Transfer", "check_transfer", "gpu_path", "resolve_device", "to_device"]

Transfer = Literal["auto", "unified", "staged", "cpu"]

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class GpuPath:
    """How rows reach a GPU on this machine.

    Attributes
    ----------
    available : bool
        Whether there is a GPU that torch can use.
    path : {'copy', 'none'}
        ``'copy'``: gathered on the CPU, then copied; ``'none'``: batches stay on the host.
    reason : str
        Why, in one sentence.
    """

    available: bool
    path: str
    reason: str


def check_transfer(transfer: str) -> None:
    """Raise `ParameterError` unless `transfer` is one that exists."""
    require_one_of("transfer", transfer, get_args(Transfer))


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device that exists; a bare ``'cuda'`` is the caller's current one.

    The current CUDA device belongs to a thread: it must be asked for before a batch is prepared in
    another one.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ParameterError(
            "The 'device' parameter must be a torch device such as 'cpu' or 'cuda:0'. "
            f"Got {device!r} instead ({reason})."
        ) from None
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ParameterError(f"Device '{found}' cannot be used: {gpu_path().reason}")
    if str(found) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    if found.index >= torch.cuda.device_count():
        raise ParameterError(
            f"Device '{found}' does not exist: this machine has {torch.cuda.device_count()} GPUs."
        )
    return found


def to_device(
    tensor: torch.Tensor, device: str | torch.device, transfer: Transfer = "auto"
) -> torch.Tensor:
    """Return the tensor on a device; the same tensor where it is there already."""
    check_transfer(transfer)
    return tensor.to(device)


def gpu_path() -> GpuPath:
    """Say which GPU path this machine offers, and why; what ``batchloom doctor`` prints."""
    if not torch.cuda.is_available():
        return GpuPath(False, "none", _why_not())
    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    triton = "can" if importlib.util.find_spec("triton") is not None else "cannot"
    return GpuPath(
        True,
        "copy",
        f"{count} GPU{'s' * (count > 1)} ({', '.join(names)}), CUDA {torch.version.cuda}, driver "
        f"{_driver() or 'unknown'}; triton {triton} be imported. Batches are gathered on the CPU "
        "and copied.",
    )


def _why_not() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA."
    driver = _driver()
    found = f"driver {driver} offers no GPU" if driver else "no NVIDIA driver is loaded"
    return f"torch {torch.__version__} has CUDA {torch.version.cuda}, but {found}."


def _driver() -> str | None:
    """Return the NVIDIA kernel driver's version where Linux tells it."""
    try:
        words = _DRIVER.read_text().split()
    except OSError:
        return None
    return next((w for w in words if w.count(".") >= 1 and w[0].isdigit()), None)
