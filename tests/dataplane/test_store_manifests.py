"""Manifests on an object store, as they are read: the same rows as on disk, or an error by name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import epoch_writer, part_reader, remote_files
from batchloom.dataplane.deep_hashes import find_deep_hashes, write_deep_hashes
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetError,
    ManifestCorruptError,
    ManifestError,
    ManifestVersionError,
    StorageError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.series import Series, open_plan
from batchloom.dataplane.snapshot import Snapshot
from batchloom.tests.dataplane.helpers import (
    SIDE,
    assert_same_plan,
    plan_of,
    rewrite_header,
    sides_of,
    snapshot_of,
    write,
)
from batchloom.tests.dataplane.store import Store

SIZES = [4, 5, 6, 5, 3, 4]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A manifest of two epochs, each of two parts: two blocks and one."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 2)
        patch.setattr(epoch_writer, "PART_ROWS", 15)
        plans = {
            epoch: plan_of(
                SIZES,
                rng.permutation(40)[: sum(SIZES)],
                weights=rng.random(sum(SIZES)),
                side=sides_of(SIZES, rng),
            )
            for epoch in (0, 1)
        }
        options: dict[str, Any] = {"side": SIDE, "weight_semantics": "importance"}
        folder = tmp_path_factory.mktemp("whole") / "m"
        return write(folder, snapshot_of(40), plans, **options)


def upload(store: Store, manifest: Manifest | Path, name: str = "m") -> str:
    folder = manifest if isinstance(manifest, Path) else Path(manifest.path)
    for path in folder.iterdir():
        store.put(f"{name}/{path.name}", path.read_bytes())
    return store.at(name)


def opened(store: Store, url: str, **options: Any) -> Manifest:
    return Manifest.open(url, storage_options=store.options, **options)


@pytest.fixture
def no_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks as if they were large: their bodies are not read with the frame."""
    monkeypatch.setattr(remote_files, "_MERGED", 0)


# --- the same plan --------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_merging")
def test_a_manifest_is_the_same_plan(store: Store, whole: Manifest) -> None:
    url = upload(store, whole)
    found = opened(store, url, verify="all")
    assert (found.path, str(found.location)) == (url, url)
    assert found.manifest_id == whole.manifest_id
    assert repr(found) == f"<Manifest {whole.manifest_id[:12]} {url} epochs=[0, 1]>"
    for number in whole.epochs:
        assert_same_plan(found.epoch(number).plan(), whole.epoch(number).plan())
        for k in (5, 0, 3, 2, 4, 1):
            mine, theirs = found.epoch(number)[k], whole.epoch(number)[k]
            assert (mine.step, mine.micro) == (theirs.step, theirs.micro)
            assert mine.rows.tolist() == theirs.rows.tolist()
    found.verify(deep=True)


@pytest.mark.usefixtures("no_merging")
def test_opening_reads_frames_and_a_block_is_one_request(store: Store, whole: Manifest) -> None:
    url = upload(store, whole)
    with store.counting() as made:
        found = opened(store, url)
    assert len([r for r in made if r.method == "HEAD"]) == 1 + len(whole.parts)
    gets = [r for r in made if r.method == "GET"]
    assert len(gets) == 1 + sum(len(p.blocks) + 1 for p in whole.parts)
    header = len(store.get("m/manifest.json"))
    frames = sum(p.bytes - sum(b.length for b in p.blocks) for p in whole.parts)
    assert sum(r.sent for r in made) == header + frames
    with store.counting() as made:
        found.epoch(1)[0]
        found.epoch(1)[1]
    assert [(r.method, r.sent) for r in made] == [("GET", whole.parts[2].blocks[0].length)]


def test_small_blocks_come_with_the_frame_in_one_request_a_part(
    store: Store, whole: Manifest
) -> None:
    url = upload(store, whole)
    with store.counting() as made:
        opened(store, url)
    assert len([r for r in made if r.method == "GET"]) == 1 + len(whole.parts)


def test_few_blocks_are_kept(
    store: Store, whole: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all parts together, whatever their number; the newest stays."""
    blocks = [b for p in whole.parts for b in p.blocks]
    monkeypatch.setattr(part_reader, "_CACHED_BYTES", 2 * (blocks[0].length + 4096))
    found = opened(store, upload(store, whole))
    with store.counting() as made:
        for _ in range(2):
            for epoch in (0, 1):
                list(found.epoch(epoch).blocks())
    assert len(made) == 2 * len(blocks)
    cache = found._readers[0]._cache
    assert len(cache._blocks) == 2
    assert cache._held <= 2 * (blocks[0].length + 4096)
    with store.counting() as made:
        for _ in range(3):
            found.epoch(1)[5]
    assert made == []


def test_series_on_a_store(store: Store, tmp_path: Path) -> None:
    options = {"storage_options": store.options}
    with pytest.raises(ManifestError, match="There is no manifest at s3://"):
        open_plan(store.at("s"), **options)
    series = Series(store.at("s"), **options)
    assert series.ranges == []
    parent = None
    for start, stop in ((0, 2), (2, 3)):
        place, expected = series.next_member(start, stop)
        assert (place, expected) == (store.at(f"s/epochs-00000{start}-00000{stop}"), parent)
        plans = {e: plan_of([3, 4]) for e in range(start, stop)}
        parent = write(place, snapshot_of(7), plans, parent=expected, **options).manifest_id
        series.refresh()
    assert series.ranges == [(0, 2), (2, 3)]
    found = open_plan(store.at("s"), verify="all", **options)
    assert isinstance(found, Series)
    assert found.epochs == (0, 1, 2)
    assert found.epoch(2).plan().rows.tolist() == list(range(7))
    assert found.path == store.at("s")
    store.put("s/epochs-000003-000004/part-x", b"")  # not committed yet
    found.refresh()
    assert found.epochs == (0, 1, 2)
    with pytest.raises(ManifestError, match="is a series of manifests; name a member of it"):
        Manifest.open(store.at("s"), **options)


def test_snapshots_and_content_hashes_on_a_store(store: Store, whole: Manifest) -> None:
    options = {"storage_options": store.options}
    snapshot = snapshot_of(3, 0, 9)
    snapshot.save(store.at("a/snapshot.json"), **options)
    assert Snapshot.load(store.at("a/snapshot.json"), **options) == snapshot
    snapshot_of(4).save(store.at("a/snapshot.json"), **options)  # over what is there
    assert Snapshot.load(store.at("a/snapshot.json"), **options) == snapshot_of(4)
    assert Snapshot.load(upload(store, whole), **options) == whole.snapshot
    with pytest.raises(DatasetError, match="The snapshot cannot be read: .*no such file"):
        Snapshot.load(store.at("a/none.json"), **options)
    with pytest.raises(StorageError, match="nothing can be committed to 'http'"):
        snapshot.save("http://127.0.0.1:9/a.json")
    assert find_deep_hashes(store.at("a"), **options) is None
    hashes = {"data:a": "1" * 64, "data:b": "2" * 64}
    path = write_deep_hashes(store.at("a"), hashes, **options)
    assert str(path).startswith(store.at("a/deep-"))
    assert find_deep_hashes(store.at("a"), **options) == hashes
    name = str(path).removeprefix(f"{store.url}/")
    store.put(name, store.get(name).replace(b"1", b"3"))
    with pytest.raises(DatasetError, match="are damaged; make them again"):
        find_deep_hashes(store.at("a"), **options)


# --- damage ---------------------------------------------------------------------------------------


def drain(manifest: Manifest) -> Iterator[tuple[Any, ...]]:
    for number in manifest.epochs:
        epoch = manifest.epoch(number)
        for k in range(len(epoch)):
            batch = epoch[k]
            assert batch.weights is not None
            yield batch.step, batch.micro, batch.rows.tobytes(), batch.weights.tobytes()


@pytest.mark.usefixtures("no_merging")
def test_no_damaged_byte_is_delivered(store: Store, whole: Manifest) -> None:
    """Flips in each file, as the store keeps it: found in time, the file named by its URI."""
    url, rng = upload(store, whole), np.random.default_rng(1)
    expected = list(drain(whole))
    for path in sorted(Path(whole.path).iterdir()):
        data = path.read_bytes()
        for place in rng.choice(len(data), 6, replace=False).tolist():
            damaged = bytearray(data)
            damaged[place] ^= int(rng.integers(1, 256))
            store.put(f"m/{path.name}", bytes(damaged))
            seen: list[Any] = []
            with pytest.raises(ManifestCorruptError) as caught:
                seen.extend(drain(opened(store, url)))
            assert f"{url}/{path.name}" in str(caught.value)
            assert seen == expected[: len(seen)]
            with pytest.raises(ManifestCorruptError):
                opened(store, url, verify="all")
        store.put(f"m/{path.name}", data)
    assert list(drain(opened(store, url))) == expected


def test_what_is_missing_cut_or_replaced(store: Store, whole: Manifest, tmp_path: Path) -> None:
    url, part = upload(store, whole), whole.parts[1].name
    data = store.get(f"m/{part}")
    for changed, said in (
        (data[:-1], rf"{part}: expected {len(data):,} bytes, found {len(data) - 1:,}"),
        (data + b"0", rf"{part}: expected {len(data):,} bytes, found {len(data) + 1:,}"),
        (b"", rf"{part}: expected {len(data):,} bytes, found 0"),
    ):
        store.put(f"m/{part}", changed)
        with pytest.raises(ManifestCorruptError, match=said):
            opened(store, url)
    store.delete(f"m/{part}")
    with pytest.raises(ManifestCorruptError, match=rf"{url}/{part} is missing; the manifest names"):
        opened(store, url)
    store.put(f"m/{part}", data)
    found = opened(store, url)
    store.delete(f"m/{part}")
    with pytest.raises(ManifestCorruptError, match=rf"{url}/{part} is missing"):
        list(drain(found))
    store.put(f"m/{part}", data[: len(data) // 2])
    with pytest.raises(BatchloomError, match=part):
        list(drain(opened(store, url)))
    copy = shutil.copytree(whole.path, tmp_path / "copy")
    rewrite_header(copy, lambda header: header["identity"].update(schema_version="2.0"))
    with pytest.raises(ManifestVersionError, match=r"s3://.*manifest\.json has format version 2"):
        opened(store, upload(store, copy, "newer"))


@pytest.mark.usefixtures("no_merging")
def test_a_connection_that_is_cut_while_a_block_is_read(store: Store, whole: Manifest) -> None:
    found = opened(store, upload(store, whole))
    expected = list(drain(whole))
    for kind in ("cut-body", "short", "cut-before"):
        fault = store.fail(kind, method="GET", match="part-", times=2, skip=1)
        assert list(drain(opened(store, store.at("m")))) == expected
        assert fault.seen == 2
    store.fail("cut-body", method="GET", match="part-", times=1000)
    with pytest.raises(StorageError, match=r"s3://.*part-.*cannot be read: ") as caught:
        list(drain(found))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_merging")
def test_a_block_that_is_damaged_on_its_way(
    store: Store, whole: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second reading may find it whole: nothing of the first is kept, nor believed later."""
    found = opened(store, upload(store, whole))
    store.fail("flip", method="GET", match=whole.parts[0].name)
    with pytest.raises(ManifestCorruptError, match="block 0: expected .*No row of it"):
        found.epoch(0)[0]
    assert found.epoch(0)[0].rows.tolist() == whole.epoch(0)[0].rows.tolist()
    monkeypatch.setattr(found._readers[0]._cache, "_limit", 0)
    list(found.epoch(1).blocks())  # now it is not kept any more
    store.fail("flip", method="GET", match=whole.parts[0].name)
    with pytest.raises(ManifestCorruptError, match="block 0: expected .*No row of it"):
        found.epoch(0)[0]


def test_places_that_hold_no_manifest(store: Store, whole: Manifest) -> None:
    upload(store, whole, "my-plan")
    with pytest.raises(ManifestError, match=r"no manifest at s3://.*Did you mean 'my-plan'"):
        opened(store, store.at("my-plam"))
    store.delete("my-plan/manifest.json")
    with pytest.raises(ManifestError, match=r"is not a manifest: it holds no manifest\.json"):
        opened(store, store.at("my-plan"))
    with pytest.raises(ManifestError, match="no manifest at s3://nowhere/x: .*no such bucket"):
        opened(store, "s3://nowhere/x")
    with pytest.raises(StorageError, match="permission denied"):
        Manifest.open(store.at("my-plan"), storage_options={**store.options, "key": "WRONG"})
    dead = store.options_with(retries={"total_max_attempts": 1}) | {
        "endpoint_url": "http://[::1]:9"
    }
    with pytest.raises(StorageError, match="Could not connect to the endpoint"):
        Manifest.open(store.at("m"), storage_options=dead)


def test_other_filesystems(whole: Manifest) -> None:
    """What fsspec reaches can be read from, each by its package."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in Path(whole.path).iterdir():
        memory.pipe_file(f"/reading/m/{path.name}", path.read_bytes())
    found = Manifest.open("memory://reading/m", verify="all")
    assert list(drain(found)) == list(drain(whole))
    with pytest.raises(DatasetError, match="nosuch://x/m.*: Protocol not known"):
        Manifest.open("nosuch://x/m")
