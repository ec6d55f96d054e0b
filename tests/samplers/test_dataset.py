"""The loader under torch's own DataLoader and torchdata's stateful one."""

import pytest
from batchloom.dataplane.errors import ParameterError
from batchloom.samplers import Batch, ManifestDataset, ManifestLoader, as_is
from batchloom.tests.contracts.batches import fingerprint, fingerprints, json_round_trip
from torch.utils.data import DataLoader


@pytest.fixture
def expected(plan, data):
    return fingerprints(ManifestLoader(plan, data, columns=["x"]))


def test_under_a_data_loader(plan, data, expected):
    dataset = ManifestDataset(plan, data, columns=["x"])
    loader = DataLoader(dataset, batch_size=None, collate_fn=as_is)
    assert len(loader) == len(dataset) == 20
    assert fingerprints(loader) == expected
    dataset.set_epoch(1)
    assert fingerprints(loader) == expected[10:]
    assert all(isinstance(b, Batch) for b in loader)


def test_stateful_at_every_step(plan, data, expected):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        dataset = ManifestDataset(plan, data, columns=["x"], window=4, prefetch=3)
        return stateful(dataset, batch_size=None, collate_fn=as_is)

    running = make()
    for index, _ in enumerate(running, start=1):
        resumed = make()
        resumed.load_state_dict(json_round_trip(running.state_dict()))
        assert fingerprints(resumed) == expected[index:]


def test_stateful_twice_in_one_epoch_and_over_epochs(plan, data, expected):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    got, state = [], None
    for stop in (3, 7, 14, 20):
        loader = stateful(
            ManifestDataset(plan, data, columns=["x"]), batch_size=None, collate_fn=as_is
        )
        if state is not None:
            loader.load_state_dict(state)
        for batch in loader:
            got.append(fingerprint(batch))
            if len(got) == stop:
                break
        state = json_round_trip(loader.state_dict())
    assert got == expected


def test_worker_processes_are_refused(plan, data):
    loader = DataLoader(
        ManifestDataset(plan, data, columns=["x"]),
        batch_size=None,
        collate_fn=as_is,
        num_workers=1,
        multiprocessing_context="fork",
    )
    with pytest.raises(ParameterError, match=r"each of them would deliver the whole plan.*=0"):
        next(iter(loader))
