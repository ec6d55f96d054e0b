import pytest
import torch
from batchloom.dataplane.errors import ParameterError
from batchloom.gpu_access import GpuPath, gpu_path, to_device, transfer


def test_to_device():
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor
    assert to_device(tensor, "meta", "cpu").device.type == "meta"


def test_unknown_transfer_names_the_allowed_ones():
    with pytest.raises(ParameterError, match=r"'staged', 'cpu'\. Got 'direct' instead"):
        to_device(torch.arange(3), "cpu", "direct")


def test_resolve_device():
    assert transfer.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ParameterError, match=r"'device' parameter.*Got 'gpu0' instead"):
        transfer.resolve_device("gpu0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_machine_without_gpu_says_why():
    found = gpu_path()
    assert (found.available, found.path) == (False, "none")
    assert torch.__version__ in found.reason
    with pytest.raises(ParameterError, match="'cuda:0' cannot be used: torch"):
        transfer.resolve_device("cuda:0")


def test_reasons(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in gpu_path().reason
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(transfer, "_DRIVER", tmp_path / "absent")
    assert "has CUDA 12.8, but no NVIDIA driver is loaded" in gpu_path().reason
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 1 00:00:00 UTC 2025\n"
    )
    monkeypatch.setattr(transfer, "_DRIVER", tmp_path / "version")
    assert "driver 570.86.15 offers no GPU" in gpu_path().reason


def test_machine_with_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    found = gpu_path()
    assert isinstance(found, GpuPath)
    assert (found.available, found.path) == (True, "copy")
    assert found.reason.startswith("2 GPUs (NVIDIA H100), CUDA 12.8")
    assert transfer.resolve_device("cuda") == torch.device("cuda:1")
    with pytest.raises(ParameterError, match="'cuda:7' does not exist: this machine has 2 GPUs"):
        transfer.resolve_device("cuda:7")
