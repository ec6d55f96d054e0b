"""Probes of a model: how each row's loss changes along random directions of one parameter.

`spsa_probes` asks for the losses twice a direction. What comes before the parameter's layer is the
same each time: with `Probes(reuse=True)` it is computed once for each micro-batch, and the layers
there then give what the last of them gave. Random numbers are put to where they stood after it, so
that the rest of the model, its dropout too, finds what a whole pass would give it, bit by bit.

Layers are the items of the outermost `ModuleList` on the way to the parameter. A model that takes
more of those before it than what the last of them gives is found out on a micro-batch, once.

Losses must not be rounded to more than they change by. In bfloat16 with ``epsilon=1e-3``, CoLM's in
float32, rounding was 1.7 times what was looked for; with 1e-2 it was 0.23, and in float32 the error
of the larger step 0.03 (a language model of 12 layers, its last value projection).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn

from ..coresets.gradients import spsa_probes
from ..dataplane.errors import ParameterError, nearest
from ..dataplane.parameters import parameters
from .colm import in_micro_batches

__all__ = ["Prober", "Probes", "kept_noise"]

F32 = npt.NDArray[np.float32]
Losses = Callable[[torch.Tensor], torch.Tensor]

# What libraries call the projection of attention's values; some have one for all.
_VALUES = ("v_proj", "value", "v_lin", "qkv", "c_attn")


@parameters
class Probes:
    """Features by `spsa_probes`.

    They take 2 · `probes` forward passes of the large batch; with `reuse` one, and as many of the
    parameter's layer and what follows it. Then one layer's output is kept for the large batch:
    rows × tokens × width numbers.
    """

    parameter: Annotated[
        str | None,
        Field(description="its name; LoRA's B of the last value projection when None, or that"),
    ] = None
    probes: Annotated[int, Field(ge=1, description="directions")] = 16
    epsilon: Annotated[float, Field(gt=0, description="how far along them")] = 1e-2
    seed: Annotated[int, Field(ge=0, description="of the directions")] = 0
    reuse: Annotated[bool, Field(description="whether earlier layers are computed once")] = True


class Prober:
    """Probes the rows of large batches.

    Parameters
    ----------
    settings : Probes
    """

    def __init__(self, settings: Probes) -> None:
        self.settings = settings
        self._exact: bool | None = None

    def features(self, model: nn.Module, losses: Losses, rows: int, *, size: int, step: int) -> F32:
        """Return the features of a large batch.

        Parameters
        ----------
        model : torch.nn.Module
            In the mode in which it trains; afterwards as it was.
        losses : callable
            From positions, int64, shape (m,), to their losses, shape (m,), by this model.
        rows : int
        size : int
            Rows of a forward pass.
        step : int
            Of the directions.

        Returns
        -------
        float32, shape (rows, probes)
        """
        own = self.settings
        name = own.parameter or last_values(model)
        parameter = _parameter(model, name)

        def probed(compute: Losses) -> F32:
            return spsa_probes(
                in_micro_batches(compute, rows, size=size),
                parameter,
                probes=own.probes,
                seed=own.seed,
                step=step,
                epsilon=own.epsilon,
            )

        layers = _layers_before(model, name, parameter) if own.reuse else []
        if not layers or not self._tried(layers, losses, torch.arange(min(size, rows)), name):
            return probed(losses)
        with _computed_once(layers, losses) as once:
            return probed(once)

    def _tried(
        self, layers: list[nn.Module], losses: Losses, part: torch.Tensor, name: str
    ) -> bool:
        if self._exact is None:
            self._exact = _is_exact(layers, losses, part)
            if not self._exact:
                warnings.warn(
                    f"The model takes more of the layers before {name} than the last one's output, "
                    "so every probe makes whole forward passes.",
                    stacklevel=2,
                )
        return self._exact


def last_values(model: nn.Module) -> str:
    """Return the name of the parameter that is probed where none is named."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1]
    values = [name for name in names if any(word in name for word in _VALUES)]
    for known in (values, names):
        if adapters := [name for name in known if "lora_B" in name]:
            return adapters[-1]
    if values:
        return values[-1]
    raise ParameterError(
        "The model has no value projection to probe: name a parameter in Probes(parameter=…). The "
        f"last ones that are trained are {', '.join(names[-5:]) or 'none'}."
    )


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    known = dict(model.named_parameters())
    if name not in known:
        raise ParameterError(f"The model has no parameter {name!r}.{nearest(name, known)}")
    return known[name]


def _layers_before(model: nn.Module, name: str, parameter: nn.Parameter) -> list[nn.Module]:
    """Return the layers that come before the one which holds a parameter."""
    module = model
    for part in name.split(".")[:-1]:
        if isinstance(module, nn.ModuleList):
            before = list(module)[: int(part)]
            shared = any(p is parameter for layer in before for p in layer.parameters())
            return [] if shared else before
        module = getattr(module, part)
    return []


@contextmanager
def _computed_once(layers: list[nn.Module], losses: Losses) -> Iterator[Losses]:
    """Yield losses for which some layers are computed once for each micro-batch."""
    kept: dict[int, tuple[Any, list[torch.Tensor]]] = {}
    place = 0

    def once(layer: nn.Module) -> Callable[..., Any]:
        whole, last = layer.forward, layer is layers[-1]

        def forward(*args: Any, **kwargs: Any) -> Any:
            if place not in kept:
                output = whole(*args, **kwargs)
                if last:
                    kept[place] = output, _noise()
                return output
            output, noise = kept[place]
            if last:
                _set_noise(noise)
            return output

        return forward

    def of_part(part: torch.Tensor) -> torch.Tensor:
        nonlocal place
        place = int(part[0])
        return losses(part)

    own = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = once(layer)
        yield of_part
    finally:
        for layer, forward in zip(layers, own, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _is_exact(layers: list[nn.Module], losses: Losses, part: torch.Tensor) -> bool:
    """Whether a model needs no more of some layers than what the last of them gives."""

    def seeded(compute: Losses) -> torch.Tensor:
        torch.manual_seed(0)
        return compute(part)

    with torch.no_grad(), kept_noise():
        expected = seeded(losses)
        with _computed_once(layers, losses) as again:
            seeded(again)
            found = seeded(again)
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@contextmanager
def kept_noise() -> Iterator[None]:
    """Put random numbers back to where they stood."""
    noise = _noise()
    try:
        yield
    finally:
        _set_noise(noise)


def _noise() -> list[torch.Tensor]:
    """Return where the random numbers of the CPU and of this CUDA device stand."""
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


def _set_noise(noise: list[torch.Tensor]) -> None:
    torch.set_rng_state(noise[0])
    if noise[1:]:
        torch.cuda.set_rng_state(noise[1])
