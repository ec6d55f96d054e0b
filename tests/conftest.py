"""Fixtures that all tests share; what they make is in `contracts`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before OpenMP is loaded, and for child processes too: where processes have more threads than there
# are processors, those that wait must sleep, or the others get nowhere.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Time tells nothing on a shared machine; in continuous integration every run draws the same.
settings.register_profile(
    "batchloom",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
)
settings.load_profile("batchloom")

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be the jobs that tests
# interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before they are imported: the shared suites' asserts print what they compared.
pytest.register_assert_rewrite("batchloom.tests.contracts")

from batchloom.tests.contracts.awkward import awkward  # noqa: E402
from batchloom.tests.dataplane.store import Proxy, Store, moto_server, proxy  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the page that takes longest, so that no process is left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session", autouse=True)
def packed_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what loaders pack on first use away from the user's own cache; child processes too."""
    os.environ["BATCHLOOM_CACHE"] = str(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="session")
def awkward_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a format to the directory of the awkward dataset; read only."""
    made: dict[str, Path] = {}

    def get(format: str = "parquet") -> Path:
        if format not in made:
            made[format] = awkward(tmp_path_factory.mktemp("awkward") / format, format)
        return made[format]

    return get


@pytest.fixture(scope="session")
def moto() -> Iterator[int]:
    """The port of a moto server."""
    with moto_server() as port:
        yield port


@pytest.fixture(scope="session")
def store_proxy(moto: int) -> Iterator[Proxy]:
    """A proxy before the moto server."""
    with proxy(moto) as running:
        yield running


@pytest.fixture
def store(store_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A fresh folder of an S3 store, behind a proxy that injects faults.

    In this process what failed is tried again as often as ever, after short pauses.
    """
    from batchloom.dataplane import remote_files
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)
    monkeypatch.setattr(remote_files, "_PAUSES", (0.01,) * len(remote_files._PAUSES))
    return store_proxy.fresh()
