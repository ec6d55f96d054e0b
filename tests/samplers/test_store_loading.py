"""Loading from an object store: the same batches as from disk, in forked workers too."""

import threading

import pytest
from batchloom.dataplane import ManifestWriter, Series, open_dataset, remote_files
from batchloom.dataplane.errors import ManifestCorruptError, StorageError
from batchloom.dataplane.rows import RowReader
from batchloom.samplers import ManifestBatchSampler, ManifestLoader
from batchloom.tests.contracts.awkward import AWKWARD_ROWS, FORMATS
from batchloom.tests.contracts.batches import (
    assert_resumes_everywhere,
    drain,
    fingerprints,
    shuffled,
    write_plan,
)
from torch.utils.data import DataLoader, Dataset


def upload(store, folder, name):
    for path in folder.iterdir():
        store.put(f"{name}/{path.name}", path.read_bytes())
    return store.at(name)


@pytest.fixture
def here(awkward_data, tmp_path):
    """A plan of all rows in two epochs, and its dataset, on disk."""
    plans = {e: shuffled(e, micro_per_step=2, weighted=True) for e in (0, 1)}
    data = awkward_data("parquet")
    write_plan(tmp_path / "plan", data, plans, weight_semantics="importance")
    return tmp_path / "plan", data


@pytest.fixture
def there(store, here):
    """The same on a store."""
    plan, data = here
    return upload(store, plan, "plan"), upload(store, data, "data")


def loader(store, there, **options):
    return ManifestLoader(*there, storage_options=store.options, **options)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_the_same_batches(store, here, there, world, prefetch):
    for rank in range(world):
        options = {
            "rank": rank,
            "world_size": world,
            "prefetch": prefetch,
            "columns": ["x", "text"],
        }
        assert fingerprints(loader(store, there, **options)) == fingerprints(
            ManifestLoader(*here, **options)
        )


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format(store, awkward_data, tmp_path, format_):
    data = awkward_data(format_)
    write_plan(tmp_path / "plan", data, {0: shuffled()})
    there = upload(store, tmp_path / "plan", "plan"), upload(store, data, "data")
    assert fingerprints(loader(store, there)) == fingerprints(
        ManifestLoader(tmp_path / "plan", data)
    )


def test_a_plan_and_a_dataset_in_different_places(store, here, there):
    plan, data = here
    expected = fingerprints(ManifestLoader(plan, data, columns=["x"]))
    # The plan there and the data here, and the other way round.
    mixed = ManifestLoader(there[0], data, columns=["x"], storage_options=store.options)
    assert fingerprints(mixed) == expected
    mixed = ManifestLoader(plan, there[1], columns=["x"], storage_options=store.options)
    assert fingerprints(mixed) == expected


def test_resume_at_every_step(store, awkward_data, tmp_path):
    write_plan(tmp_path / "plan", awkward_data("ipc"), {0: shuffled(rows=200, batch=20)})
    there = upload(store, tmp_path / "plan", "plan"), upload(store, awkward_data("ipc"), "data")
    assert_resumes_everywhere(lambda: loader(store, there, columns=["x", "text"]))


def test_a_series_that_grows_on_a_store(store, there):
    options = {"storage_options": store.options}
    snapshot = open_dataset(there[1], **options).snapshot

    def add(epoch):
        series = Series(store.at("series"), **options)
        place, parent = series.next_member(epoch, epoch + 1)
        with ManifestWriter(place, snapshot=snapshot, seed=7, parent=parent, **options) as writer:
            with writer.epoch(epoch):
                writer.append(shuffled(epoch, rows=100, batch=20))
            writer.commit()

    add(0)
    follower = ManifestLoader(
        store.at("series"),
        there[1],
        columns=["row"],
        follow=True,
        epochs=3,
        poll_seconds=0.05,
        **options,
    )
    seen = []
    grown = threading.Event()

    def grow():
        grown.wait(30)
        add(1)
        add(2)

    thread = threading.Thread(target=grow)
    thread.start()
    for batch in follower:
        seen.append((batch.epoch, batch["row"].tolist()))
        if len(seen) == 5:
            grown.set()
    thread.join()
    assert [e for e, _ in seen] == [0] * 5 + [1] * 5 + [2] * 5
    for epoch in range(3):
        rows = [r for e, batch in seen for r in batch if e == epoch]
        assert rows == shuffled(epoch, rows=100, batch=20).rows.tolist()


class Rows(Dataset):
    """A map-style dataset over a store, opened before the workers are forked."""

    def __init__(self, url, options):
        self.reader = RowReader(open_dataset(url, storage_options=options), ["row", "text"])
        self.reader.take([0])  # the parent's connections are open

    def __len__(self):
        return AWKWARD_ROWS

    def __getitem__(self, index):
        found = self.reader.take([index])
        return found["row"][0].as_py(), found["text"][0].as_py()


def test_worker_processes(store, here, there):
    """fsspec's thread is not in a forked child; a worker that waited for it would hang."""
    sampler = ManifestBatchSampler(*there, storage_options=store.options, epochs=1)
    rows = Rows(there[1], store.options)
    workers = DataLoader(
        rows, batch_sampler=sampler, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    expected = [b.rows.tolist() for b in ManifestLoader(*here, columns=["row"], epochs=1)]
    seen = []
    for numbers, texts in workers:
        seen.append(numbers.tolist())
        assert list(texts) == [f"row {n}" if n % 11 else "" for n in seen[-1]]
        if len(seen) == 20:
            break
    assert seen == expected[:20]
    assert rows[5] == (5, "row 5")  # and the parent goes on


# --- what goes wrong ------------------------------------------------------------------------------


def test_connections_that_are_cut_while_loading(store, here, there):
    expected = fingerprints(ManifestLoader(*here, columns=["x", "text"]))
    for kind in ("cut-body", "short", "cut-before"):
        fault = store.fail(kind, method="GET", match="data/", skip=30, times=3)
        found = fingerprints(loader(store, there, columns=["x", "text"], pack=False))
        assert found == expected
        assert fault.seen == 3
    live = iter(loader(store, there, columns=["x", "text"], pack=False, cache_bytes=0))
    next(live)
    store.fail("cut-body", method="GET", match="data/", times=10_000)
    with pytest.raises(StorageError, match=r"s3://.*data/.* cannot be read"):
        drain(live)


def test_packing_on_first_use(store, here, there, tmp_path):
    cache = {"packed_dir": tmp_path / "cache", "columns": ["x", "text"]}
    expected = fingerprints(ManifestLoader(*here, columns=["x", "text"]))
    fault = store.fail("cut-body", method="GET", match="data/", skip=5, times=3)
    first = loader(store, there, **cache)
    assert fault.seen == 3
    assert fingerprints(first) == expected
    with store.counting() as asked:
        assert fingerprints(loader(store, there, **cache)) == expected
    # Only footers are read again, to see that the files are those that were planned.
    held = sum(path.stat().st_size for path in here[1].iterdir())
    assert sum(r.sent for r in asked if r.method == "GET" and "data/" in r.path) < held / 2
    store.fail("cut-body", method="GET", match="data/", times=10_000)
    with pytest.raises(StorageError, match=r"s3://.*data/"):
        loader(store, there, packed_dir=tmp_path / "other", columns=["x", "text"])


def test_no_row_of_a_damaged_block_is_delivered(store, there, monkeypatch):
    monkeypatch.setattr(remote_files, "_MERGED", 0)
    broken = loader(store, there, columns=["row"], epochs=1)
    store.fail("flip", method="GET", match="part-", times=10_000)
    with pytest.raises(ManifestCorruptError, match="No row of it was delivered"):
        next(iter(broken))
