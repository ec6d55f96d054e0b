"""What dead writers leave: found by what it is and by its age, and never what a manifest needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from batchloom.dataplane.errors import BatchloomError, StorageError
from batchloom.dataplane.leftovers import Leftover, leftovers, remove
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.storage import Location, locate
from batchloom.tests.dataplane.helpers import small_manifest
from batchloom.tests.dataplane.store import BUCKET, Store

LONE = f"part-{'1' * 64}.arrow"
BITS = f"bitmap-{'2' * 64}.bin"
DEEP = f"deep-{'3' * 64}.json"


def found_in(place: Location, hours: float = 0.0) -> list[tuple[str, str, int]]:
    return [
        (f.path.removeprefix(f"{place}/"), f.kind, f.bytes)
        for f in leftovers(place, older_than_hours=hours)
    ]


def aged(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """Manifests, a dataset's snapshot, and all that can be left beside them."""
    small_manifest(tmp_path / "m")
    small_manifest(tmp_path / "series" / "epochs-000000-000001")
    (tmp_path / "m" / LONE).write_bytes(b"12")
    (tmp_path / "m" / DEEP).write_bytes(b"{}")  # belongs to it
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / LONE).write_bytes(b"123")
    (tmp_path / "half" / BITS).write_bytes(b"1234")
    (tmp_path / DEEP).write_bytes(b"{}")  # beside a snapshot
    staged = tmp_path / "series" / ".epochs-000001-000002.staging-0123456789ab"
    (staged / "inner").mkdir(parents=True)
    (staged / "manifest.json").write_bytes(b"{")
    (staged / "inner" / "x.npy").write_bytes(b"12345")
    (tmp_path / ".snapshot.json.0123456789ab.tmp").write_bytes(b"1")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / LONE).write_bytes(b"not ours")
    (tmp_path / "notes.tmp").write_bytes(b"mine")
    return tmp_path


ALL = [
    (".snapshot.json.0123456789ab.tmp", "temporary", 1),
    (f"half/{BITS}", "uncommitted", 4),
    (f"half/{LONE}", "uncommitted", 3),
    (f"m/{LONE}", "unreferenced", 2),
    ("series/.epochs-000001-000002.staging-0123456789ab", "staging", 6),
]


def test_what_is_left_in_a_directory(littered: Path) -> None:
    place = locate(littered)
    assert found_in(place) == ALL
    for leftover in leftovers(place, older_than_hours=0.0):
        assert 0 <= leftover.age < 0.1
        assert remove(leftover)
        assert not remove(leftover)
    assert found_in(place) == []
    for folder in ("m", "series/epochs-000000-000001"):
        Manifest.open(littered / folder, verify="all")
    assert (littered / DEEP).exists()
    assert (littered / "m" / DEEP).exists()
    assert (littered / ".git" / LONE).exists()
    assert (littered / "notes.tmp").exists()


def test_a_manifest_and_a_series_by_themselves(littered: Path) -> None:
    assert found_in(locate(littered / "m")) == [(LONE, "unreferenced", 2)]
    assert [kind for _, kind, _ in found_in(locate(littered / "series"))] == ["staging"]


def test_what_is_young_is_left_alone(littered: Path) -> None:
    """A staging folder is as old as the newest file in it: its writer may live."""
    assert found_in(locate(littered), hours=0.5) == []
    staged = littered / "series" / ".epochs-000001-000002.staging-0123456789ab"
    for path in (staged, staged / "inner", staged / "manifest.json", littered / "half" / LONE):
        aged(path, 30.0)
    assert found_in(locate(littered), hours=24.0) == [(f"half/{LONE}", "uncommitted", 3)]
    aged(staged / "inner" / "x.npy", 25.0)
    assert len(found_in(locate(littered), hours=24.0)) == 2
    ages = [f.age for f in leftovers(locate(littered), older_than_hours=24.0)]
    assert [round(age) for age in ages] == [30, 25]


def test_a_part_that_was_committed_meanwhile_stays(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "m")
    header = (tmp_path / "m" / "manifest.json").read_bytes()
    (tmp_path / "m" / "manifest.json").unlink()
    found = leftovers(locate(tmp_path), older_than_hours=0.0)
    assert {f.kind for f in found} == {"uncommitted"}
    assert len(found) == len(manifest.parts)
    (tmp_path / "m" / "manifest.json").write_bytes(header)
    assert [remove(f) for f in found] == [False] * len(found)
    Manifest.open(tmp_path / "m", verify="all")


def test_places_that_cannot_be_listed(tmp_path: Path, store: Store) -> None:
    with pytest.raises(StorageError, match="none cannot be listed: No such file"):
        leftovers(locate(tmp_path / "none"))
    with pytest.raises(BatchloomError, match="no such file or directory"):
        leftovers(locate(store.at("none"), store.options))
    with pytest.raises(StorageError, match="permission denied"):
        leftovers(locate(store.url, {**store.options, "key": "WRONG"}))


# --- on a store -----------------------------------------------------------------------------------


def uploads(store: Store, name: str) -> Iterator[str]:
    """Begin multipart uploads behind the writers' back; yield their ids."""
    fs, path = locate(store.at(name), store.options).filesystem()
    bucket, key, _ = fs.split_path(path)
    for _ in range(2):
        yield fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]


def test_what_is_left_on_a_store(store: Store) -> None:
    place = locate(store.at("d"), store.options)
    small_manifest(store.at("d/m"), storage_options=store.options)
    store.put(f"d/m/{LONE}", b"12")
    store.put(f"d/m/{DEEP}", b"{}")
    store.put(f"d/half/{LONE}", b"123")
    store.put("d/half/.probe-0123456789ab", b"first")
    store.put("d/snapshot.json", b"{}")
    begun = sorted(uploads(store, f"d/half/{BITS}"))
    list(uploads(store, f"dd/half/{BITS}"))  # another place, whose name begins alike
    assert found_in(place) == [
        ("half/.probe-0123456789ab", "probe", 5),
        (f"half/{BITS}", "upload", 0),
        (f"half/{BITS}", "upload", 0),
        (f"half/{LONE}", "uncommitted", 3),
        (f"m/{LONE}", "unreferenced", 2),
    ]
    found = leftovers(place, older_than_hours=0.0)
    assert sorted(f.upload_id for f in found if f.kind == "upload") == begun
    assert all(0 <= f.age < 0.1 for f in found if f.kind != "upload")
    # (moto says that all uploads were begun in 2010.)
    assert {kind for _, kind, _ in found_in(place, hours=0.5)} == {"upload"}
    assert {f.age > 10 * 365 * 24 for f in found if f.kind == "upload"} == {True}
    assert [remove(f) for f in found] == [True] * 5
    assert found_in(place) == []
    assert len(leftovers(locate(store.at("dd"), store.options), older_than_hours=0.0)) == 2
    Manifest.open(store.at("d/m"), storage_options=store.options, verify="all")
    assert f"d/m/{DEEP}" in store.names()


def test_many_uploads_are_listed_page_by_page(store: Store) -> None:
    for number in range(5):
        list(uploads(store, f"x{number}"))
    fs, _ = locate(store.url, store.options).filesystem()
    pages = []
    ask = fs.call_s3

    def in_pages(method: str, **asked: Any) -> Any:
        """Answer as a store does that has more than it tells at once; moto tells all."""
        if method != "list_multipart_uploads":
            return ask(method, **asked)
        marker = asked.pop("KeyMarker", ""), asked.pop("UploadIdMarker", "")
        every = [((u["Key"], u["UploadId"]), u) for u in ask(method, **asked)["Uploads"]]
        rest = [u for place, u in sorted(every, key=lambda pair: pair[0]) if place > marker]
        page: dict[str, Any] = {"Uploads": rest[:3], "IsTruncated": len(rest) > 3}
        pages.append(page)
        page["NextKeyMarker"] = page["Uploads"][-1]["Key"]
        page["NextUploadIdMarker"] = page["Uploads"][-1]["UploadId"]
        return page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "call_s3", in_pages)
        found = leftovers(locate(store.url, store.options), older_than_hours=0.0)
    assert len({f.upload_id for f in found}) == 10
    assert len(pages) == 4
    assert {f.path for f in found} == {store.at(f"x{n}") for n in range(5)}


def test_a_killed_writer_s_parts_are_found(store: Store) -> None:
    """Whatever the store is: the kinds are told by names and headers alone."""
    memory = fsspec.filesystem("memory")
    small_manifest("memory://left/m")
    memory.rm_file("/left/m/manifest.json")
    found = leftovers(locate("memory://left"), older_than_hours=0.0)
    assert [f.kind for f in found] == ["uncommitted", "uncommitted"]
    assert [isinstance(f, Leftover) and remove(f) for f in found] == [True, True]
    assert memory.find("/left") == []
    assert store.url.startswith(f"s3://{BUCKET}/")
