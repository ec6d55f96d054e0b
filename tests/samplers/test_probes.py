"""Probes of a model: those of whole forward passes, whatever is computed once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.coresets import spsa_probes
from batchloom.dataplane.errors import ParameterError
from batchloom.samplers.hugging_face import causal_row_losses
from batchloom.samplers.probes import Prober, Probes, last_values
from batchloom.tests.samplers.test_hugging_face import ROWS, gpt2, llama, values
from torch import nn

pytest.importorskip("transformers")


def losses_of(model: nn.Module) -> Any:
    inputs = {
        name: torch.stack([row[name] for row in ROWS[:20]])
        for name in ("input_ids", "labels", "attention_mask")
    }
    return lambda part: causal_row_losses(model, {n: v[part] for n, v in inputs.items()})


@pytest.mark.parametrize("model", [lambda: llama(dropout=0.3), gpt2])
def test_layers_that_are_computed_once_change_no_bit(model: Any) -> None:
    model = model().train()
    before, noise = values(model), torch.get_rng_state()
    found = [
        Prober(Probes(probes=3, reuse=reuse)).features(model, losses_of(model), 20, size=8, step=2)
        for reuse in (True, False)
    ]
    assert np.array_equal(*found)
    parameter = model.get_parameter(last_values(model))
    direct = spsa_probes(
        lambda: torch.cat([losses_of(model)(p) for p in torch.arange(20).split(8)]),
        parameter, probes=3, seed=0, step=2, epsilon=1e-2,
    )  # fmt: skip
    assert np.array_equal(found[0], direct)
    assert torch.equal(torch.get_rng_state(), noise)
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


class Skipping(nn.Module):
    """A model whose head sees what the first layer gives, too; or whose layers are one."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        if tied:
            self.layers[2].weight = self.layers[0].weight
        self.tied = tied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layers[0](x).tanh()
        last = self.layers[2](self.layers[1](first).tanh())
        return last if self.tied else last + 3 * first


@pytest.mark.parametrize("tied", [False, True])
def test_layers_are_computed_whenever_they_are_needed(tied: bool) -> None:
    model, x = Skipping(tied=tied), torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    name = "layers.0.weight" if tied else "layers.2.weight"
    found = []
    for reuse in (True, False):
        prober = Prober(Probes(parameter=name, probes=2, reuse=reuse))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(2):
                features = prober.features(
                    model, lambda part: (model(x[part]) ** 2).sum(1), 9, size=4, step=0
                )
        assert len(told) == (reuse and not tied)
        found.append(features)
    assert np.array_equal(*found)


def test_which_parameter_is_probed() -> None:
    assert last_values(llama()) == "model.layers.2.self_attn.v_proj.weight"
    assert last_values(gpt2()) == "transformer.h.2.attn.c_attn.weight"

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v_proj, self.q_proj = (nn.Linear(2, 2).requires_grad_(False) for _ in range(2))
            self.v_proj.lora_A, self.v_proj.lora_B = nn.Linear(2, 1), nn.Linear(1, 2)
            self.q_proj.lora_B = nn.Linear(1, 2)

    assert last_values(Adapted()) == "v_proj.lora_B.weight"
    with pytest.raises(ParameterError, match=r"name a parameter .* trained are weight\."):
        last_values(nn.Linear(2, 2))
    prober = Prober(Probes(parameter="model.layers.2.self_attn.v_proj.weigth"))
    with pytest.raises(ParameterError, match="Did you mean 'model.layers.2.self_attn.v_proj.wei"):
        prober.features(llama(), losses_of(llama()), 20, size=8, step=0)
