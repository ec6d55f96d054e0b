"""The honest choice of a backend."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from batchloom.dataplane.errors import ParameterError, UnifiedAccessUnavailable
from batchloom.gpu_access import UnifiedTensor, backends, select_backend
from batchloom.gpu_access.backends import Attempt, probe_liveness
from batchloom.tests.contracts.fake_cuda import FakeRuntime
from batchloom.tests.contracts.unified import UnifiedContract

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")


@NO_GPU
def test_without_a_gpu_the_cpu_is_chosen_and_says_why():
    choice = select_backend()
    assert (choice.name, choice.device) == ("cpu", torch.device("cpu"))
    assert "Not zero_copy or alias or staged: torch" in choice.reason
    assert [(a.backend, a.works) for a in choice.ladder] == [
        ("zero_copy", False),
        ("alias", False),
        ("staged", False),
        ("cpu", True),
    ]


@NO_GPU
@pytest.mark.parametrize("name", ["zero_copy", "alias", "staged"])
def test_backend_that_is_asked_for_and_not_there(name):
    with pytest.raises(UnifiedAccessUnavailable, match=f"'{name}' cannot be used for cpu: torch"):
        select_backend(name)


def test_unknown_backend():
    with pytest.raises(ParameterError, match=r"'backend' parameter must be one of 'auto', 'zero_"):
        select_backend("dma")


def reading(runtime):
    """A GPU that reads rows by what the runtime says is mapped."""

    def read(table, ids):
        rows = [
            torch.frombuffer(
                bytearray(runtime.read(table.address + i * table.stride, table.row_bytes)),
                dtype=table.dtype,
            )
            for i in ids.tolist()
        ]
        return torch.stack(rows).view(len(ids), *table.row_shape)

    return read


def test_liveness_probe():
    runtime = FakeRuntime()
    assert probe_liveness(reading(runtime), runtime) is None
    assert runtime.mapped == {}
    stale = FakeRuntime(stale=True)
    assert "stale copy" in probe_liveness(reading(stale), stale)
    assert stale.mapped == {}


@pytest.mark.parametrize("code", [1, 2, 712, 801])
def test_probe_says_what_the_driver_said(code):
    runtime = FakeRuntime(fail={1: code})
    found = probe_liveness(reading(runtime), runtime)
    assert found.startswith("the probe failed: HostRegistrationError: Registering")
    assert f"({code})" in found


def test_probe_takes_any_failure_for_a_reason():
    def read(table, ids):
        raise ZeroDivisionError("no compiler\nmore lines")

    assert probe_liveness(read, FakeRuntime()) == (
        "the probe failed: ZeroDivisionError: no compiler."
    )


def test_probe_writes_after_mapping():
    """Memory that is read when it is mapped, and then written, must not pass."""
    runtime, first = FakeRuntime(), {}

    def read(table, ids):
        if not first:
            first["bytes"] = ctypes.string_at(table.address, table.nbytes)
        rows = torch.frombuffer(bytearray(first["bytes"]), dtype=torch.int32)
        return rows.view(table.shape)[ids]

    assert "stale copy" in probe_liveness(read, runtime)


def test_no_managed_memory():
    """More of it than a card has free can hang the GPU."""
    sources = list(Path(backends.__file__).parent.glob("*.py"))
    assert len(sources) > 10
    for path in sources:
        text = path.read_text().lower()
        assert not re.search(r"malloc_?managed|mem_?advise|mem_?prefetch", text), path


def ladder(monkeypatch, works):
    """Choose for a GPU on which these backends work."""

    def attempt(name, device):
        return Attempt(name, name in works, f"{name} was tried.")

    monkeypatch.setattr(backends, "_attempt", attempt)
    monkeypatch.setattr(backends, "resolve_device", lambda device: torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("works", "chosen"),
    [
        (("zero_copy", "alias", "staged", "cpu"), "zero_copy"),
        (("alias", "staged", "cpu"), "alias"),
        (("staged", "cpu"), "staged"),
    ],
)
def test_first_that_works(monkeypatch, works, chosen):
    ladder(monkeypatch, works)
    choice = select_backend()
    assert choice.name == chosen
    assert [a.backend for a in choice.ladder][-1] == chosen
    assert choice.reason.startswith(f"{chosen} was tried.")
    for failed in choice.ladder[:-1]:
        assert f"Not {failed.backend}: {failed.backend} was tried." in choice.reason
    ladder(monkeypatch, ("zero_copy",))
    with pytest.raises(UnifiedAccessUnavailable, match="cannot be used for cuda:0: alias was tri"):
        select_backend("alias")


class InPieces(backends.Staged):
    """Staging with buffers that are not pinned, and events that tell when they are asked."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.log = []

    def _next(self, nbytes):
        self._turn = (self._turn + 1) % self._count
        while len(self._buffers) <= self._turn:
            self._buffers.append((torch.empty(nbytes, dtype=torch.uint8), Recorded(self.log)))
        return self._buffers[self._turn]


class Recorded:
    def __init__(self, log):
        self.log = log

    def record(self):
        self.log.append(self)


class TestStagedInPieces(UnifiedContract):
    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch):
        monkeypatch.setattr(backends, "_PIECE_BYTES", 1000)

    def make(self, table):
        made = UnifiedTensor.from_tensor(table, device="cpu")
        made._backend = InPieces()
        return made

    def test_buffers_take_turns(self):
        unified = self.make(torch.rand(50, 100))  # 400 bytes a row, two rows a piece
        unified[list(range(9))]
        log = unified._backend.log
        assert len(log) == 5
        assert log[0] is log[2] is log[4] is not log[1] is log[3]
