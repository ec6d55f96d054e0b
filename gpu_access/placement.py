"""Where an operation on unified tensors computes, and where its result goes.

The rules are those that PyTorch-Direct released (arXiv 2101.07956 and its public fork); the first
that fits decides:

==========================================================  ========  =========
operands                                                    computes  result on
==========================================================  ========  =========
no unified tensor                                           stock rules
unified, and a CUDA tensor                                  CUDA      CUDA
unified, and a CPU tensor of one dimension or more          CPU       CPU
unified only, or with as many CPU scalars as are allowed    CUDA      CUDA
unified, and more CPU scalars                               CPU       CPU
==========================================================  ========  =========

Stock rules: CUDA where an operand is a CUDA tensor, CPU elsewhere. A CPU scalar is a tensor without
dimensions, or a Python number; one is allowed. ``propagated=False`` leaves the place of computing
and sends a result that unified operands had on CUDA back to host memory.

Gathers are such operations, of a unified table, its ids, and the output where one is given: rows
for CPU ids are CPU rows, rows for CUDA ids are CUDA rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["Placement", "resolve_placement"]

Place = Literal["cpu", "cuda"]
_SCALARS = 1


@dataclass(frozen=True)
class Placement:
    """Where to compute and where the result goes: ``'cpu'`` or ``'cuda'``."""

    compute: Place
    output: Place


def resolve_placement(
    operands: Iterable[Any], propagated: bool = True, *, scalars: int = _SCALARS
) -> Placement:
    """Return where an operation computes and where its result goes.

    Parameters
    ----------
    operands : iterable
        Unified tensors (anything whose ``is_unified`` is true), tensors, numbers.
    propagated : bool
        Whether results of unified operands stay on the GPU.
    scalars : int
        CPU scalars that may stand beside unified tensors alone.
    """
    unified = cuda = host = numbers = 0
    for operand in operands:
        if getattr(operand, "is_unified", False):
            unified += 1
        elif isinstance(operand, torch.Tensor) and operand.device.type == "cuda":
            cuda += 1
        elif isinstance(operand, torch.Tensor) and operand.ndim:
            host += 1
        else:
            numbers += 1
    if not unified:
        place: Place = "cuda" if cuda else "cpu"
        return Placement(place, place)
    if not cuda and (host or numbers > scalars):
        return Placement("cpu", "cpu")
    return Placement("cuda", "cuda" if propagated else "cpu")
