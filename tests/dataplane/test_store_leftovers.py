"""What dead writers leave on a store: found by what it is, and never what a manifest needs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import fsspec
import pytest
from batchloom.dataplane.errors import BatchloomError, StorageError
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.storage import Location, locate
from batchloom.dataplane.store_leftovers import remove_from_store, store_leftovers
from batchloom.tests.dataplane.helpers import small_manifest
from batchloom.tests.dataplane.store import Store

LONE = f"part-{'1' * 64}.arrow"
BITS = f"bitmap-{'2' * 64}.bin"
DEEP = f"deep-{'3' * 64}.json"


def found_in(place: Location, hours: float = 0.0) -> list[tuple[str, str, int]]:
    return [
        (f.path.removeprefix(f"{place}/"), f.kind, f.bytes) for f in store_leftovers(place, hours)
    ]


def uploads(store: Store, name: str) -> Iterator[str]:
    """Begin multipart uploads behind the writers' back; yield their ids."""
    fs, path = locate(store.at(name), store.options).filesystem()
    bucket, key, _ = fs.split_path(path)
    for _ in range(2):
        yield fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]


def test_what_is_left_on_a_store(store: Store) -> None:
    place, remove = (
        locate(store.at("d"), store.options),
        partial(remove_from_store, storage_options=store.options),
    )
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
    found = store_leftovers(place, 0.0)
    assert sorted(f.upload_id for f in found if f.kind == "upload") == begun
    assert all(0 <= f.age_hours < 0.1 for f in found if f.kind != "upload")
    # (moto says that all uploads were begun in 2010.)
    assert {kind for _, kind, _ in found_in(place, hours=0.5)} == {"upload"}
    assert [remove(f) for f in found] == [True] * 5
    assert not remove(next(f for f in found if f.kind == "upload"))
    assert found_in(place) == []
    assert len(store_leftovers(locate(store.at("dd"), store.options), 0.0)) == 2
    Manifest.open(store.at("d/m"), storage_options=store.options, verify="all")
    assert f"d/m/{DEEP}" in store.names()


def test_a_part_that_was_committed_meanwhile_stays(store: Store) -> None:
    small_manifest(store.at("m"), storage_options=store.options)
    header = store.get("m/manifest.json")
    store.delete("m/manifest.json")
    found = store_leftovers(locate(store.url, store.options), 0.0)
    assert [f.kind for f in found] == ["uncommitted", "uncommitted"]
    store.put("m/manifest.json", header)
    assert [remove_from_store(f, store.options) for f in found] == [False, False]
    Manifest.open(store.at("m"), storage_options=store.options, verify="all")


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
        found = store_leftovers(locate(store.url, store.options), 0.0)
    assert len({f.upload_id for f in found}) == 10
    assert len(pages) == 4
    assert {f.path for f in found} == {store.at(f"x{n}") for n in range(5)}


def test_other_stores_have_parts_too() -> None:
    memory = fsspec.filesystem("memory")
    small_manifest("memory://left/m")
    memory.rm_file("/left/m/manifest.json")
    found = store_leftovers(locate("memory://left"), 0.0)
    assert [f.kind for f in found] == ["uncommitted", "uncommitted"]
    assert [remove_from_store(f) for f in found] == [True, True]
    assert memory.find("/left") == []


def test_places_that_cannot_be_listed(store: Store) -> None:
    with pytest.raises(BatchloomError, match="no such file or directory"):
        store_leftovers(locate(store.at("none"), store.options))
    with pytest.raises(StorageError, match="permission denied"):
        store_leftovers(locate(store.url, {**store.options, "key": "WRONG"}))
