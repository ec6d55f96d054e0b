"""Samples in the form that PyG takes them."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...dataplane.errors import ParameterError, needs_extra
from .links import Links

with needs_extra("Graph sampling", "graph"):
    from torch_geometric.sampler import HeteroSamplerOutput, SamplerOutput

if TYPE_CHECKING:
    from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling

__all__ = ["HeteroSample", "HomogeneousSample", "as_tensor", "link_metadata", "pinned"]

I64 = npt.NDArray[np.int64]
T = TypeVar("T")


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor of the same memory, even where that may not be written to, as a map's."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def pinned(value: T) -> T:
    """Return a value with all of its tensors, at any depth, in pinned memory."""
    made: Any = value
    if isinstance(value, torch.Tensor):
        made = value.pin_memory()
    elif isinstance(value, dict):
        made = {key: pinned(v) for key, v in value.items()}
    elif isinstance(value, tuple):
        made = tuple(pinned(v) for v in value)
    return made  # type: ignore[no-any-return]


class _Pins:
    def pin_memory(self: T, device: Any = None) -> T:
        """Return a copy in pinned memory, from which copies to a device run beside the training."""
        made = copy.copy(self)
        for field in fields(self):  # type: ignore[arg-type]
            setattr(made, field.name, pinned(getattr(self, field.name)))
        return made


@dataclass
class HomogeneousSample(_Pins, SamplerOutput):  # type: ignore[misc]
    """A ``SamplerOutput`` that a DataLoader with ``pin_memory=True`` can pin."""


@dataclass
class HeteroSample(_Pins, HeteroSamplerOutput):  # type: ignore[misc]
    """A ``HeteroSamplerOutput`` that a DataLoader with ``pin_memory=True`` can pin."""


def link_metadata(
    index: EdgeSamplerInput,
    links: Links,
    sources: I64,
    targets: I64,
    neg_sampling: NegativeSampling | None,
    disjoint: bool,
) -> tuple[Any, ...]:
    """Return what PyG's loader looks for beside a sample of links.

    Parameters
    ----------
    sources, targets : int64
        Local numbers of the links' ends.
    """
    time = None if links.source_time is None else as_tensor(links.source_time)
    positives = links.num_pos
    if neg_sampling is not None and neg_sampling.is_triplet():
        if index.label is not None:
            raise ParameterError("Triplets have no labels: leave out edge_label.")
        negatives = targets[positives:]
        amount = links.num_neg // max(positives, 1)
        shape = (amount, positives) if disjoint else (positives, amount)
        table = negatives.reshape(shape).T if disjoint else negatives.reshape(shape)
        wrong = as_tensor(np.ascontiguousarray(table))
        return (
            index.input_id,
            as_tensor(sources),
            as_tensor(targets[:positives]),
            wrong.squeeze(-1) if amount == 1 else wrong,
            time,
        )
    label = index.label
    if neg_sampling is not None:
        label = torch.ones(positives) if label is None else label
        label = torch.cat([label, label.new_zeros((links.num_neg, *label.shape[1:]))])
    return index.input_id, as_tensor(np.stack([sources, targets])), label, time
