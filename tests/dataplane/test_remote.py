"""Plans that come from a service: the same as from files, in ranges, after a fork, without one."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import Manifest, open_plan
from batchloom.dataplane import remote_ranges as ranges_module
from batchloom.dataplane.errors import (
    ManifestCorruptError,
    ManifestError,
    ParameterError,
    ServiceError,
)
from batchloom.dataplane.manifest_part import part_schema
from batchloom.dataplane.remote import RemoteEpoch, RemoteManifest
from batchloom.dataplane.remote_client import ServiceClient
from batchloom.dataplane.remote_wire import (
    decode_range,
    is_run_address,
    message_stops,
    run_address,
)
from batchloom.jobs.service.ranges import range_chunks
from batchloom.samplers import ManifestLoader
from batchloom.tests.contracts.batches import fingerprints, shuffled, write_plan
from batchloom.tests.contracts.loader import LoaderContract
from batchloom.tests.contracts.plans import awkward_manifest, lists_of
from batchloom.tests.jobs.service.running import Shelf, shelf


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with shelf(tmp_path_factory.mktemp("shelf")) as running:
        yield running


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of some micro-batches, so that small plans have many of them."""
    monkeypatch.setattr(ranges_module, "RANGE_BYTES", 5000)


def fetched(served: Shelf, path: Any) -> RemoteManifest:
    manifest_id = served.put(path if isinstance(path, Manifest) else Manifest.open(path))
    return RemoteManifest.fetch(ServiceClient(served.url), manifest_id)


@pytest.mark.usefixtures("small_ranges")
class TestRemoteLoader(LoaderContract):
    """All that is promised of a loader over files."""

    @pytest.fixture(autouse=True)
    def _served(self, served: Shelf) -> None:
        self.served = served

    def make(self, plan: Any, data: Any, **options: Any) -> Any:
        return ManifestLoader(fetched(self.served, plan), data, pack=False, **options)


@pytest.mark.usefixtures("small_ranges")
def test_all_of_a_plan_with_side_columns_is_the_same(
    served: Shelf, awkward_data: Any, tmp_path: Path
) -> None:
    manifest = awkward_manifest(tmp_path / "plan", awkward_data())
    remote = fetched(served, manifest)
    assert lists_of(remote) == lists_of(manifest)
    assert remote.identity == manifest.identity
    remote.verify(deep=True)
    for number, record in manifest.records.items():
        mine, theirs = remote.epoch(number), manifest.epoch(number)
        assert mine.record == record
        steps = sorted({theirs[i].step for i in range(len(theirs))})
        for step in [*steps, steps[-1] + 1, steps[-1] + 9, 0]:
            assert mine.find_step(step) == theirs.find_step(step)
        for index in (0, len(theirs) - 1, len(theirs) // 2, len(theirs)):
            assert mine.rows_before(index) == theirs.rows_before(index)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("small_ranges")
def test_steps_of_any_size_and_with_gaps_are_found(
    served: Shelf, awkward_data: Any, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 120)
    steps = np.cumsum(rng.integers(1, 4, 120)) - 1
    plan = shuffled(rows=int(sizes.sum()) * 3, batch=3)
    step = np.repeat(steps, sizes).astype(np.uint64)
    micro = np.concatenate([np.arange(n) for n in sizes]).astype(np.uint16)
    plan = type(plan)(plan.offsets, plan.rows, None, step, micro)
    manifest = write_plan(tmp_path / "plan", awkward_data("ipc"), {0: plan})
    mine, theirs = fetched(served, manifest).epoch(0), manifest.epoch(0)
    for wanted in rng.permutation(int(steps[-1]) + 3).tolist():
        assert mine.find_step(wanted) == theirs.find_step(wanted), wanted


def test_a_recipe_is_the_same(served: Shelf, tmp_path: Path, awkward_data: Any) -> None:
    from batchloom.jobs import plan

    data = awkward_data()
    manifest = plan(
        "shuffle", data, out=tmp_path / "plan", batch_size=10, micro_per_step=3, epochs=(0, 2),
        form="recipe", workers=0,
    )  # fmt: skip
    remote = fetched(served, manifest)
    assert fingerprints(ManifestLoader(remote, data, columns=["row"])) == fingerprints(
        ManifestLoader(manifest, data, columns=["row"])
    )
    mine, theirs = remote.epoch(1), manifest.epoch(1)
    for step in (0, 1, theirs.record.steps - 1, theirs.record.steps, 10**6):
        assert mine.find_step(step) == theirs.find_step(step)
    remote.verify(deep=True)


@pytest.mark.usefixtures("small_ranges")
def test_a_reader_has_a_few_ranges_under_way_and_no_more(
    served: Shelf, awkward_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_plan(tmp_path / "plan", awkward_data("ipc"), {0: shuffled(batch=2)})
    remote, asked = fetched(served, manifest), []
    get = ServiceClient.get

    def noted(self: ServiceClient, path: str, **options: Any) -> Any:
        asked.append(path)
        return get(self, path, **options)

    monkeypatch.setattr(ServiceClient, "get", noted)
    epoch = remote.epoch(0)
    assert isinstance(epoch, RemoteEpoch)
    size = epoch._ranges.size
    assert len(epoch) > 10 * size
    epoch.run(0, 1)
    assert len(asked) <= 1 + ranges_module.AHEAD
    for index in range(0, 2 * size, 7):
        epoch.run(index, 1)
    assert len(asked) == len(set(asked)) <= 2 + ranges_module.AHEAD
    jump = 8 * size
    assert epoch[jump].rows.tolist() == manifest.epoch(0)[jump].rows.tolist()
    assert len(asked) <= 3 + ranges_module.AHEAD


def test_what_was_changed_on_the_way_is_refused(awkward_data: Any, tmp_path: Path) -> None:
    plan = shuffled(weighted=True)
    manifest = write_plan(
        tmp_path / "plan", awkward_data("ipc"), {0: plan}, weight_semantics="importance"
    )
    schema = part_schema(True, ())
    data = b"".join(range_chunks(manifest, manifest.epoch(0), 3, 90))
    whole = decode_range(data, schema, start=3, stop=90, where="here")
    assert whole.rows_before == 3 * 64
    assert whole.plan.rows.tolist() == plan.rows[3 * 64 : 90 * 64].tolist()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, len(data), 200):
        bad = bytearray(data)
        bad[at] ^= 1 << rng.integers(8)
        try:
            found = decode_range(bytes(bad), schema, start=3, stop=90, where="here")
        except ManifestCorruptError:
            refused += 1
            continue
        assert found.plan.rows.tolist() == whole.plan.rows.tolist()  # a bit that nobody reads
        assert found.plan.weights.tolist() == whole.plan.weights.tolist()
    assert refused > 150
    for cut in (0, 100, len(data) // 2, len(data) - 9):
        with pytest.raises(ManifestCorruptError, match="here: expected"):
            decode_range(data[:cut], schema, start=3, stop=90, where="here")
    with pytest.raises(ManifestCorruptError, match="micro-batches 3 to 91"):
        decode_range(data, schema, start=3, stop=91, where="here")


def test_messages_hold_64_batches_or_a_mebibyte() -> None:
    plan = shuffled(rows=3000, batch=10)
    assert message_stops(plan)[:3] == [64, 128, 192]
    sizes = np.array([200_000, 5, 100_000, 20_000, 20_000, 300_000])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    big = type(plan).of(offsets, np.zeros(offsets[-1], np.uint64))
    assert message_stops(big) == [1, 4, 5, 6]


@pytest.mark.usefixtures("small_ranges")
def test_a_forked_child_reads_by_itself(served: Shelf, awkward_data: Any, tmp_path: Path) -> None:
    manifest = write_plan(tmp_path / "plan", awkward_data("ipc"), {0: shuffled(batch=8)})
    remote = fetched(served, manifest)
    epoch = remote.epoch(0)
    assert epoch[3].rows.tolist() == manifest.epoch(0)[3].rows.tolist()
    epoch.run(0, 4)  # ranges are under way in threads that the child does not have
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            found = [epoch[i].rows.tolist() for i in range(0, len(epoch), 37)]
            os.write(writing, b"ok" if found == [
                manifest.epoch(0)[i].rows.tolist() for i in range(0, len(epoch), 37)
            ] else b"no")  # fmt: skip
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    assert os.read(reading, 10) == b"ok"
    os.close(reading)
    assert os.waitpid(child, 0)[1] == 0
    assert epoch[200].rows.tolist() == manifest.epoch(0)[200].rows.tolist()


def test_threads_share_an_epoch(served: Shelf, awkward_data: Any, tmp_path: Path) -> None:
    manifest = write_plan(tmp_path / "plan", awkward_data("ipc"), {0: shuffled(batch=4)})
    mine, theirs, wrong = fetched(served, manifest).epoch(0), manifest.epoch(0), []

    def read(start: int) -> None:
        places = range(start, len(theirs), 11)
        wrong.extend(i for i in places if mine[i].rows.tolist() != theirs[i].rows.tolist())

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_client_can_be_sent_and_shows_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHLOOM_TOKEN", "a-secret-token-of-the-tests")
    client = ServiceClient("http://127.0.0.1:1", {"patience": 0.1})
    assert client._authorization()["Authorization"] == "Bearer a-secret-token-of-the-tests"
    assert "secret" not in repr(client) + repr(vars(client))
    again = pickle.loads(pickle.dumps(client))
    assert again.service == client.service
    assert b"secret" not in pickle.dumps(client)
    file = tmp_path / "token"
    file.write_text("another-token\n")
    named = ServiceClient("http://127.0.0.1:1", {"token_file": str(file)})
    assert named._authorization()["Authorization"] == "Bearer another-token"
    file.write_text("two\nlines")
    with pytest.raises(ParameterError, match="printable ASCII"):
        named._authorization()
    with pytest.raises(ParameterError, match="cannot be read"):
        ServiceClient("http://x", {"token_file": str(tmp_path / "none")})._authorization()


def test_a_service_that_is_not_there_is_said() -> None:
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:1 does not answer.*refused.*check that"):
        open_plan("http://127.0.0.1:1/runs/first", storage_options={"patience": 0.3})


def test_an_address_of_something_else_is_said(served: Shelf) -> None:
    with pytest.raises(ServiceError, match="There is no run 'other'"):
        open_plan(f"{served.url}/runs/other")
    with pytest.raises((ManifestError, ServiceError)):
        RemoteManifest.fetch(ServiceClient(served.url), "0" * 63)


def test_addresses_of_runs() -> None:
    assert run_address("http://a:1/runs/first/") == ("http://a:1", "first")
    assert run_address("HTTPS://a.b/runs/x_1-y") == ("https://a.b", "x_1-y")
    for text in (
        "http://a/runs/", "http://a/runs/../x", "http://a/data/runs/x", "http://u@a/runs/x",
        "s3://a/runs/x", "runs/x", "http://a/runs/x?y", "http://a/runs/" + "x" * 65,
    ):  # fmt: skip
        assert not is_run_address(text)
        with pytest.raises(ParameterError, match="has an address such as"):
            run_address(text)
