"""Every line of the rule table."""

import pytest
import torch
from batchloom.gpu_access import Placement, UnifiedTensor, is_unified, resolve_placement


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)


UNIFIED = UnifiedTensor.from_tensor(torch.rand(3, 2), device="cpu")
CUDA = torch.rand(3).as_subclass(OnCuda)
SCALAR = torch.tensor(2.0)
VECTOR = torch.rand(3)
CPU, GPU = Placement("cpu", "cpu"), Placement("cuda", "cuda")


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ([VECTOR, SCALAR, 3.0], CPU),
        ([CUDA, VECTOR], GPU),
        ([], CPU),
        ([UNIFIED], GPU),
        ([UNIFIED, UNIFIED], GPU),
        ([UNIFIED, CUDA], GPU),
        ([UNIFIED, CUDA, VECTOR, SCALAR, SCALAR], GPU),
        ([UNIFIED, SCALAR], GPU),
        ([UNIFIED, 2.0], GPU),
        ([UNIFIED, SCALAR, 2.0], CPU),
        ([UNIFIED, VECTOR], CPU),
        ([VECTOR, UNIFIED, SCALAR], CPU),
    ],
    ids=lambda v: None if isinstance(v, Placement) else "-".join(type(x).__name__ for x in v),
)
def test_rules(operands, expected):
    assert resolve_placement(operands) == expected
    found = resolve_placement(operands, propagated=False)
    assert found.compute == expected.compute
    has_unified = any(is_unified(o) for o in operands)
    assert found.output == ("cpu" if has_unified else expected.output)


def test_number_of_scalars_allowed():
    assert resolve_placement([UNIFIED, SCALAR, SCALAR], scalars=2) == GPU
    assert resolve_placement([UNIFIED, SCALAR], scalars=0) == CPU


def test_a_unified_tensor_is_one():
    assert is_unified(UNIFIED)
    assert not is_unified(VECTOR)
    assert not is_unified(None)
