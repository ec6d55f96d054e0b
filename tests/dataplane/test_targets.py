"""Committing to an object store: whole or not at all, one winner, whatever gets lost on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import pytest
from batchloom.dataplane import epoch_writer, objects, remote_files, targets
from batchloom.dataplane.deep_hashes import find_deep_hashes
from batchloom.dataplane.errors import (
    BatchloomError,
    ManifestConflictError,
    ManifestError,
    StorageError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.objects import put_if_absent
from batchloom.dataplane.storage import locate
from batchloom.dataplane.targets import ObjectTarget, target_at
from batchloom.tests.dataplane.helpers import (
    litter,
    plan_of,
    small_manifest,
    snapshot_of,
    write,
)
from batchloom.tests.dataplane.store import Store
from s3fs import S3FileSystem

HEADER = "manifest.json"
ONE_TRY: dict[str, Any] = {"retries": {"mode": "standard", "total_max_attempts": 1}}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; nothing may be left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def make(place: Any, store: Store | None = None, rows: int = 6, **options: Any) -> Manifest:
    if store is not None:
        options.setdefault("storage_options", store.options)
    return write(place, snapshot_of(10), {0: plan_of([rows])}, **options)


def several_parts(place: Any, **options: Any) -> Manifest:
    """Write 12 parts, two of them alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_ROWS", 10)
        patch.setattr(epoch_writer, "PART_ROWS", 10)
        plans = {0: plan_of([10] * 6), 1: plan_of([10] * 5), 2: plan_of([10])}
        return write(place, snapshot_of(60), plans, **options)


# --- the same manifest ----------------------------------------------------------------------------


def test_the_same_manifest_everywhere(store: Store, tmp_path: Path) -> None:
    """The same id and the same parts on disk, in memory and on S3; nothing else is there."""
    for number, write_one in enumerate((small_manifest, several_parts)):
        local = write_one(tmp_path / f"m{number}")
        memory = write_one(f"memory://targets/m{number}")
        remote = write_one(store.at(f"m{number}"), storage_options=store.options)
        for found in (memory, remote):
            assert found.manifest_id == local.manifest_id
            assert found.provenance["parts"] == local.provenance["parts"]
            found.verify(deep=True)
        names = sorted(p.name for p in (tmp_path / f"m{number}").iterdir())
        assert store.names(f"m{number}/") == [f"m{number}/{name}" for name in names]
        for name in names:
            assert store.get(f"m{number}/{name}") == (tmp_path / f"m{number}" / name).read_bytes()
        kept = fsspec.filesystem("memory").ls(f"/targets/m{number}", detail=False)
        assert sorted(Path(k).name for k in kept) == names
    fsspec.filesystem("memory").rm("/targets", recursive=True)


def test_a_commit_again_is_success_and_sends_no_part_twice(store: Store) -> None:
    first = several_parts(store.at("m"), storage_options=store.options)
    before = store.names()
    second = several_parts(store.at("m"), storage_options=store.options)
    assert (first.manifest_id, store.names()) == (second.manifest_id, before)
    assert first.path == second.path == store.at("m")


def test_another_id_is_a_conflict_and_leaves_the_first_as_it_was(store: Store) -> None:
    first = make(store.at("m"), store, deep_hashes={"data:a": "1" * 64})
    before = {key: store.get(key) for key in store.names()}
    with pytest.raises(ManifestConflictError, match=f"found {first.manifest_id}. Choose another"):
        make(store.at("m"), store, rows=7, deep_hashes={"data:a": "2" * 64})
    assert {key: store.get(key) for key in store.names()} == before


def test_content_hashes_come_with_it_or_later(store: Store) -> None:
    hashes = {"data:part-0.parquet": "a" * 64}
    options = {"storage_options": store.options}
    make(store.at("one"), store, deep_hashes=hashes)
    assert find_deep_hashes(store.at("one"), **options) == hashes
    make(store.at("two"), store)
    assert find_deep_hashes(store.at("two"), **options) is None
    make(store.at("two"), store, deep_hashes=hashes)
    assert find_deep_hashes(store.at("two"), **options) == hashes


def test_whatever_is_in_the_folder_is_sent_before_the_header(store: Store) -> None:
    name = f"bitmap-{'7' * 64}.bin"
    with ManifestWriter(
        store.at("m"), snapshot=snapshot_of(10), storage_options=store.options
    ) as writer:
        with writer.epoch(0):
            writer.append(plan_of([3]))
        (writer.folder / name).write_bytes(b"bits")
        writer.commit()
    assert store.get(f"m/{name}") == b"bits"
    puts = [r.path.rsplit("/", 1)[-1] for r in store.log if r.method == "PUT"]
    assert puts.index(name) < puts.index(HEADER) == len(puts) - 1


def test_the_disk_is_not_filled(store: Store, scratch: Path) -> None:
    """Parts leave it as they are finished."""
    held = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_ROWS", 10)
        patch.setattr(epoch_writer, "PART_ROWS", 10)
        with ManifestWriter(
            store.at("m"), snapshot=snapshot_of(600), storage_options=store.options
        ) as writer:
            with writer.epoch(0):
                for k in range(60):
                    writer.append(plan_of([10], range(10 * k, 10 * k + 10), steps=[(k, 0)]))
                    held.append(len(list(writer.folder.iterdir())))
            assert len(writer.commit().parts) == 60
    assert max(held) <= targets._UPLOADS + 2


# --- what may not be a target ---------------------------------------------------------------------


def test_foreign_targets_are_refused_before_anything_is_written(store: Store) -> None:
    store.put("folder/thesis.tex", b"mine")
    store.put("file", b"mine")
    store.put("series/epochs-000000-000001/manifest.json", b"{}")
    for name, said in (
        ("folder", "holds other files and no manifest; choose another"),
        ("file", "is a file; choose another target"),
        ("series", "holds other files and no manifest"),
    ):
        with pytest.raises(ManifestConflictError, match=f"s3://.*/{name} {said}"):
            make(store.at(name), store)
    assert not [r for r in store.log if r.method == "PUT"]


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9/plan", "simplecache::s3://b/plan", "nosuch://b/plan", "ftp://h/p"]
)
def test_what_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="nothing can be committed to '.*Targets are local dir"):
        make(uri)


def test_a_store_that_ignores_the_condition_is_refused(store: Store) -> None:
    store.ignores_conditions = True
    with pytest.raises(StorageError, match="second writer overwrite the first.*Write to a local"):
        make(store.at("m"), store)
    assert store.names() == []


def test_a_store_that_does_not_know_the_condition_is_refused(store: Store) -> None:
    store.fail("status", method="PUT", times=9, status=501, code="NotImplemented")
    with pytest.raises(StorageError, match="second writer overwrite the first"):
        make(store.at("m"), store)


def test_a_probe_whose_answer_was_lost_decides_rightly(store: Store) -> None:
    """The first PUT is done and repeated: that the repetition is refused proves nothing."""
    for ignores in (False, True):
        store.ignores_conditions = ignores
        fault = store.fail("cut-after", method="PUT", match=".probe-")
        if ignores:
            with pytest.raises(StorageError, match="overwrite the first"):
                make(store.at("m"), store)
        else:
            make(store.at("m"), store)
        assert fault.seen == 1


def test_a_probe_key_that_cannot_be_removed_is_told_of(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.fail("status", method="DELETE", times=9, status=403, code="AccessDenied")
    make(store.at("m"), store)
    assert "permission denied" in caplog.text
    assert "batchloom gc removes it" in caplog.text


def test_targets_out_of_reach_say_so(store: Store) -> None:
    with pytest.raises(StorageError, match="permission denied.*Check the credentials"):
        make(store.at("m"), storage_options={**store.options, "key": "WRONG"})
    with pytest.raises(BatchloomError, match="s3://no-such-bucket/m: no such bucket"):
        make("s3://no-such-bucket/m", store)
    store.fail("status", method="PUT", times=9, status=403, code="AccessDenied")
    with pytest.raises(StorageError, match="cannot be written: permission denied .AccessDenied"):
        make(store.at("m"), store)
    dead = store.options_with(**ONE_TRY) | {"endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match="Could not connect to the endpoint"):
        make(store.at("m"), storage_options=dead)


def test_space_is_looked_at_where_parts_are_built(store: Store, tmp_path: Path) -> None:
    target_at(store.at("m"), store.options).check_space(1 << 60)  # the store's disk is not ours
    with pytest.raises(StorageError, match="bytes in .* and .* are free"):
        target_at(tmp_path / "m").check_space(1 << 60)


# --- what fails leaves nothing --------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["epoch", "between", "after"])
def test_an_exception_leaves_no_manifest(
    store: Store, error: type[BaseException], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_writer, "PART_ROWS", 5000)

    def write_half() -> None:
        with ManifestWriter(
            store.at("m"), snapshot=snapshot_of(9000), storage_options=store.options
        ) as writer:
            with writer.epoch(0):
                writer.append(plan_of([1] * 5000))
                if where == "epoch":
                    raise error
            if where == "between":
                raise error
            with writer.epoch(1):
                writer.append(plan_of([5]))
            raise error

    with pytest.raises(error):
        write_half()
    assert HEADER not in [Path(key).name for key in store.names()]
    with pytest.raises(ManifestError):
        Manifest.open(store.at("m"), storage_options=store.options)


def test_a_part_that_cannot_be_sent(store: Store) -> None:
    """Nothing is committed, and the same command goes on from there."""
    several_parts(store.at("other"), storage_options=store.options)
    sent = len(store.names("other/")) - 1
    fault = store.fail("status", method="PUT", match="part-", skip=3, times=99, status=500)
    with pytest.raises(StorageError, match=r"part-.*cannot be written: .* Nothing was committed"):
        several_parts(store.at("m"), storage_options=store.options_with(**ONE_TRY))
    there = store.names("m/")
    assert 3 <= len(there) < sent
    assert f"m/{HEADER}" not in there
    fault.times = 0
    with store.counting() as made:
        several_parts(store.at("m"), storage_options=store.options)
    created = [r for r in made if r.method == "PUT" and "part-" in r.path and r.status == 200]
    assert len(created) == sent - len(there)


def test_an_upload_that_is_damaged_on_its_way(store: Store) -> None:
    """The store compares the checksum that came with it."""
    store.fail("corrupt-upload", method="PUT", match="part-", times=9)
    with pytest.raises(StorageError, match="cannot be written: BadDigest.*Nothing was committed"):
        make(store.at("m"), store)
    assert store.names() == []


def test_a_slow_uplink_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has still to send is not time without an answer."""
    monkeypatch.setitem(remote_files._S3_CONFIG, "read_timeout", 1)
    fault = store.fail("slow-upload", method="PUT", seconds=3.0)
    place = locate(store.at("x"), store.options)
    assert put_if_absent(place, bytes(2 << 20))
    assert fault.seen == len([r for r in store.log if r.method == "PUT"]) == 1


def test_a_part_of_another_size_under_its_name(store: Store, tmp_path: Path) -> None:
    name = make(tmp_path / "m").parts[0].name
    store.put(f"m/{name}", b"short")
    with pytest.raises(StorageError, match=rf"{name} is there with 5 bytes; .* Remove it, then"):
        make(store.at("m"), store)
    assert store.names() == [f"m/{name}"]


def test_a_part_that_vanishes_before_the_header(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = ObjectTarget._check_sizes

    def removed(self: ObjectTarget) -> None:
        store.delete(next(key for key in store.names() if "part-" in key))
        check(self)

    monkeypatch.setattr(ObjectTarget, "_check_sizes", removed)
    with pytest.raises(StorageError, match=r"part-.*: expected [\d,]+ bytes, found nothing"):
        make(store.at("m"), store)
    assert store.names() == []


def test_an_epoch_that_fails_can_be_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts may be on their way; the next epoch's commit does not stumble over them."""
    monkeypatch.setattr(epoch_writer, "BLOCK_ROWS", 10)
    monkeypatch.setattr(epoch_writer, "PART_ROWS", 10)
    store.fail("delay", method="PUT", match="part-", seconds=0.3, times=3)
    with ManifestWriter(
        store.at("m"), snapshot=snapshot_of(100), storage_options=store.options
    ) as writer:

        def fail() -> None:
            with writer.epoch(0):
                writer.append(plan_of([10] * 9))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with writer.epoch(1):
            writer.append(plan_of([10] * 2))
        found = writer.commit()
    found.verify(deep=True)
    assert found.epochs == (1,)


# --- answers that got lost ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut-after", "fail-after", "cut-before", "status", "delay"])
@pytest.mark.parametrize("tries", [1, 3])
def test_a_header_whose_answer_is_lost(store: Store, kind: str, tries: int) -> None:
    """Whether it was done or not: read back, and done if it was not."""
    retries = {"mode": "standard", "total_max_attempts": tries}
    options = store.options_with(read_timeout=1, retries=retries)
    store.fail(kind, method="PUT", match=HEADER, times=tries, status=500, seconds=2.0)
    found = make(store.at("m"), storage_options=options)
    assert found.manifest_id == make("memory://targets/lost").manifest_id
    Manifest.open(store.at("m"), storage_options=store.options, verify="all")
    fsspec.filesystem("memory").rm("/targets", recursive=True)


@pytest.mark.parametrize("kind", ["cut-after", "fail-after"])
def test_a_lost_answer_does_not_hide_another_manifest(store: Store, kind: str) -> None:
    first = make(store.at("m"), store)
    options = store.options_with(**ONE_TRY)
    store.fail(kind, method="PUT", match=HEADER, times=9, status=500)
    with pytest.raises(ManifestConflictError, match=f"found {first.manifest_id}"):
        make(store.at("m"), storage_options=options, rows=7)


def test_a_header_that_stays_away(store: Store) -> None:
    options = store.options_with(**ONE_TRY)
    store.fail("status", method="PUT", match=HEADER, times=99, status=500)
    with pytest.raises(StorageError, match=r"manifest\.json cannot be written.*Nothing was commit"):
        make(store.at("m"), storage_options=options)
    store.faults.clear()
    make(store.at("n"), store)
    store.fail("cut-after", method="PUT", match=HEADER, times=99)
    store.fail("status", method="HEAD", match=HEADER, times=99, status=503)
    with pytest.raises(StorageError, match="is not known; run the same command again"):
        make(store.at("o"), storage_options=options)
    store.faults.clear()
    make(store.at("o"), store)  # which was right


def test_a_part_whose_answer_is_lost(store: Store) -> None:
    store.fail("cut-after", method="PUT", match="part-", times=2)
    store.fail("fail-after", method="PUT", match="part-", times=2, status=500)
    several_parts(store.at("m"), storage_options=store.options_with(**ONE_TRY)).verify(deep=True)


def test_a_store_that_names_no_condition(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every store says which condition failed; the number 412 is enough."""
    store.fail("status", method="PUT", match="/x", status=412, code="PreconditionFailed")
    assert not put_if_absent(locate(store.at("x"), store.options), b"1")
    assert [r.method for r in store.log] == ["PUT"]
    store.fail("status", method="PUT", match="/x", status=409, code="ConditionalRequestConflict")
    assert put_if_absent(locate(store.at("x"), store.options_with(**ONE_TRY)), b"1")


# --- who else writes ------------------------------------------------------------------------------


def race(writers: int, write_one: Callable[[int], Manifest]) -> list[Manifest | BaseException]:
    """Let writers commit at the same moment."""
    barrier = Barrier(writers)

    def run(number: int) -> Manifest | BaseException:
        barrier.wait()
        try:
            return write_one(number)
        except ManifestConflictError as error:
            return error

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(run, range(writers)))


def test_eight_threads_of_one_content_all_succeed(store: Store) -> None:
    for round_ in range(3):
        results = race(8, lambda _, r=round_: make(store.at(f"m{r}"), store))  # type: ignore[misc]
        assert len({r.manifest_id for r in results if isinstance(r, Manifest)}) == 1
        assert all(isinstance(r, Manifest) for r in results)


def test_eight_threads_of_eight_contents_have_one_winner(store: Store) -> None:
    for round_ in range(3):
        results = race(
            8,
            lambda n, r=round_: make(store.at(f"m{r}"), store, seed=n, rows=1 + n),  # type: ignore[misc]
        )
        winner = Manifest.open(store.at(f"m{round_}"), storage_options=store.options, verify="all")
        for number, result in enumerate(results):
            if number == winner.seed:
                assert isinstance(result, Manifest)
            else:
                assert isinstance(result, ManifestConflictError)
        # The losers took their parts with them.
        names = {HEADER, *(p.name for p in winner.parts)}
        assert {Path(key).name for key in store.names(f"m{round_}/")} == names


RACING = """
import json, sys
from batchloom.dataplane.errors import ManifestConflictError
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write

url, options, seed = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for round_ in range(5):
    try:
        plans = {0: plan_of([10])}
        write(f"{url}/m{round_}", snapshot_of(10), plans, seed=seed, storage_options=options)
        print("ok")
    except ManifestConflictError:
        print("conflict")
"""


def test_processes_race(store: Store) -> None:
    """Four processes, two of each content: one content wins, its twin succeeds too."""
    seeds = (0, 0, 1, 1)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, store.url, json.dumps(store.options), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [child.communicate(timeout=120)[0].split() for child in children]
    assert [child.returncode for child in children] == [0] * len(seeds)
    for round_ in range(5):
        place = store.at(f"m{round_}")
        winner = Manifest.open(place, storage_options=store.options, verify="all").seed
        expected = ["ok" if seed == winner else "conflict" for seed in seeds]
        assert [r[round_] for r in results] == expected


def test_a_key_that_another_writer_removes_while_it_is_looked_at(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as its probe's: the place is empty then, not out of reach."""
    monkeypatch.setattr(S3FileSystem, "isdir", lambda *_: True)
    assert locate(store.at("m"), store.options).entries() == []
    assert make(store.at("m"), store).epochs == (0,)


# --- kill -9 --------------------------------------------------------------------------------------

KILLED = """
import json, sys
from batchloom.dataplane import epoch_writer
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write

epoch_writer.BLOCK_ROWS = epoch_writer.PART_ROWS = 10
plans = {0: plan_of([10] * 6), 1: plan_of([10] * 5), 2: plan_of([10])}
write(sys.argv[1], snapshot_of(60), plans, storage_options=json.loads(sys.argv[2]))
"""


def test_a_killed_writer_leaves_nothing_or_all(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL while a request is on its way: before each of several parts, and at the header."""
    undisturbed = several_parts(tmp_path / "m")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "killed"))
    (tmp_path / "killed").mkdir()
    cases = [("part-", 0), ("part-", 4), ("part-", 9), (HEADER, 0)]
    for number, (match, skip) in enumerate(cases):
        fault = store.fail("delay", method="PUT", match=match, skip=skip, seconds=5.0)
        place = store.at(f"m{number}")
        child = subprocess.Popen([sys.executable, "-c", KILLED, place, json.dumps(store.options)])
        while not fault.seen:
            assert child.poll() is None
        child.kill()
        assert child.wait(30) == -9
        store.faults.clear()
        keys = store.names(f"m{number}/")
        assert f"m{number}/{HEADER}" not in keys
        with pytest.raises(ManifestError, match=r"no manifest at|is not a manifest"):
            Manifest.open(place, storage_options=store.options)
        with store.counting() as made:
            again = several_parts(place, storage_options=store.options)
        assert again.manifest_id == undisturbed.manifest_id
        used = [k for k in keys if "part-" in k]
        refused = [r for r in made if r.method == "PUT" and r.status == 412 and "part-" in r.path]
        assert len(refused) >= len(used)
    assert len(litter(tmp_path / "killed")) == len(cases)


# --- the pieces -----------------------------------------------------------------------------------


def test_objects_are_put_once(store: Store) -> None:
    for place in (locate(store.at("x"), store.options), locate("memory://targets/x")):
        assert put_if_absent(place, b"one")
        assert not put_if_absent(place, b"two")
        assert place.read_bytes() == b"one"
        objects.put(place, b"three")
        assert place.read_bytes() == b"three"
        objects.remove(place)
        objects.remove(place)
        assert not place.exists()
