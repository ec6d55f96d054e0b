"""Signal stores: what is appended is found again, whole, whatever was killed or written twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.dataplane import (
    SignalStore,
    open_dataset,
    signal_binding,
    signal_compaction,
    signal_parts,
    signal_writer,
    signals,
)
from batchloom.dataplane import latest as latest_module
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetChangedError,
    DatasetError,
    ParameterError,
    RowIdError,
    SelectionError,
    SignalConflictError,
    SignalCorruptError,
    SignalError,
    StorageError,
)
from batchloom.dataplane.observations import Observations, stable_order, winners
from batchloom.dataplane.signal_columns import Appended, Copy, Workspace
from batchloom.dataplane.snapshot import Snapshot
from batchloom.dataplane.storage import locate
from batchloom.tests.dataplane.helpers import plan_of, snapshot_of, write
from batchloom.tests.dataplane.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st

SNAPSHOT = snapshot_of(60, 0, 40, first_ids=[0, 60, 100])  # ids 0–59 and 100–139


def writing(path: Any, snapshot: Snapshot = SNAPSHOT, **options: Any) -> SignalStore:
    return SignalStore.for_writing(path, snapshot, **options)


def latest(store: SignalStore, **options: Any) -> dict[int, Any]:
    """Return {row: value} of all latest values."""
    found: dict[int, Any] = {}
    for part in store.latest(**options):
        assert (np.diff(part.rows.astype(np.int64)) > 0).all()
        found |= dict(zip(part.rows.tolist(), part.values.tolist(), strict=True))
    return found


def parts_of(path: Path, signal: str = "loss") -> list[Path]:
    return sorted((path / signal).glob("*.arrow"))


# --- append and read ------------------------------------------------------------------------------


def test_the_everyday_loop(tmp_path: Path) -> None:
    with writing(tmp_path / "s") as store:
        for epoch in range(2):
            for step in range(3):
                rows = torch.arange(step * 10, step * 10 + 10)
                losses = (rows + epoch * 0.5).requires_grad_()
                store.append(rows, epoch=epoch, step=step, loss=losses)
        assert store.unflushed == 60
    assert store.unflushed == 0
    found = SignalStore.open(tmp_path / "s")
    assert found.signals == ("loss",)
    assert latest(found) == {r: r + 0.5 for r in range(30)}
    assert latest(found, before=1) == {float(r): float(r) for r in range(30)}
    assert latest(found, before=0) == {}
    history = found.history(12)
    assert history.epoch.tolist() == [0, 1]
    assert history.step.tolist() == [1, 1]
    assert history.value.tolist() == [12.0, 12.5]
    assert len(found.history(50)) == 0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, "f4", "f8"])
def test_values_of_any_float_type_land_on_their_rows(tmp_path: Path, kind: Any) -> None:
    """Row ids never take the losses' type, in which most of them would be others."""
    big = snapshot_of(1 << 25)
    rows = np.array([16_777_217, 2049, 257], np.uint64)
    values = [1.5, 0.25, -2.0]
    given_ = torch.tensor(values, dtype=kind) if not isinstance(kind, str) else np.array(values)
    with writing(tmp_path / "s", big) as store:
        store.append(rows, epoch=0, step=0, loss=given_)
    assert latest(SignalStore.open(tmp_path / "s")) == dict(zip(rows.tolist(), values, strict=True))


def test_what_is_appended_may_be_changed_afterwards(tmp_path: Path) -> None:
    rows, loss, pad = torch.arange(4), torch.ones(4), torch.tensor([False, False, True, False])
    with writing(tmp_path / "s") as store:
        store.append(rows, epoch=0, step=0, loss=loss, pad=pad)
        rows += 100
        loss *= 0
        pad |= True
    assert latest(SignalStore.open(tmp_path / "s")) == {0: 1.0, 1: 1.0, 3: 1.0}


def test_vectors_and_several_signals(tmp_path: Path) -> None:
    with writing(tmp_path / "s") as store:
        grads = np.arange(6, dtype=np.float32).reshape(3, 2)
        store.append([5, 100, 7], epoch=0, step=0, loss=[1, 2, 3], grad=grads)
        store.append([5], epoch=0, step=1, grad=[[9, 9]])
    found = SignalStore.open(tmp_path / "s")
    assert found.signals == ("grad", "loss")
    assert latest(found, signal="grad") == {5: [9, 9], 7: [4, 5], 100: [2, 3]}
    assert latest(found) == {5: 1, 7: 3, 100: 2}


def test_duplicates_of_a_step_are_averaged(tmp_path: Path) -> None:
    with writing(tmp_path / "s", part_rows=1) as store:
        store.append([1, 1, 2], epoch=0, step=0, loss=[1, 3, 5])
        store.flush()
        store.append([1], epoch=0, step=0, loss=[5])  # a third one of the step, in another part
        store.flush()
        store.append([2, 2], epoch=0, step=1, loss=[0, 1])
    found = SignalStore.open(tmp_path / "s")
    assert latest(found) == {1: 3.0, 2: 0.5}
    assert found.history(1).occurrence.tolist() == [0, 1, 2]


def test_the_highest_attempt_wins(tmp_path: Path) -> None:
    with writing(tmp_path / "s") as first:
        first.append([1, 2, 3], epoch=0, step=5, loss=[1, 1, 1])
        first.append([3], epoch=0, step=9, loss=[7])
    with writing(tmp_path / "s") as second:  # resumed from step 5
        second.append([1, 2], epoch=0, step=5, loss=[2, 2])
    assert (first.attempt, second.attempt) == (1, 2)
    with writing(tmp_path / "s", attempt=1, writer=3) as late:  # a rank of the first start
        late.append([1], epoch=0, step=5, loss=[1])
    found = SignalStore.open(tmp_path / "s")
    assert latest(found) == {1: 2, 2: 2, 3: 7}
    assert found.history(3).value.tolist() == [1, 7]
    assert found.history(1).attempt.tolist() == [2]


def test_one_attempt_with_two_values_is_an_error_by_name(tmp_path: Path) -> None:
    with writing(tmp_path / "s") as one:
        one.append([4, 5], epoch=2, step=7, loss=[1, 2])
    with writing(tmp_path / "s", attempt=1, writer=1) as other:
        other.append([5, 4], epoch=2, step=7, loss=[3, 1])  # row 4: the same value is fine
    found = SignalStore.open(tmp_path / "s")
    said = r"'loss' has two values of row 5 in epoch 2, step 7, attempt 1: 2.0 and 3.0"
    for read in (lambda: latest(found), lambda: found.history(5), found.digest, found.compact):
        with pytest.raises(SignalConflictError, match=said):
            read()
    assert len(found.history(4)) == 1
    with writing(tmp_path / "s") as third:  # what is newer, or of a later attempt, settles it
        third.append([5], epoch=2, step=7, loss=[9])
    assert latest(SignalStore.open(tmp_path / "s"))[5] == 9


observation = st.tuples(
    st.integers(0, 5),  # row
    st.integers(0, 2),  # epoch
    st.integers(0, 2),  # step
    st.integers(0, 1),  # occurrence
    st.integers(0, 2),  # attempt
)


@settings(max_examples=150)
@given(st.lists(st.lists(observation, max_size=8), max_size=5), st.sampled_from([0, 2, 1 << 20]))
def test_the_fold_is_what_sorting_would_say(parts: list[list[Any]], aside: int) -> None:
    """Whatever the order and the cuts, and however often it looks through what ties."""

    def value(key: Any) -> float:
        return float(hash(key) % 97)

    best: dict[Any, Any] = {}
    for key in (k for part in parts for k in part):
        best[key[:4]] = max(best.get(key[:4], key), key)
    expected = {}
    for row in {k[0] for k in best}:
        newest = max(k[1:3] for k in best if k[0] == row)
        inside = [value(v) for k, v in best.items() if k[0] == row and k[1:3] == newest]
        expected[row] = np.float32(np.mean(inside))
    fold = latest_module.LatestFold("loss", 0, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latest_module, "_ASIDE", aside)
        for part in parts:
            ordered = sorted(part, key=lambda k: k[0])
            columns = zip(*ordered, strict=True) if part else [[]] * 5
            types = (np.uint64, np.uint32, np.uint64, np.uint16, np.uint16)
            arrays = [np.array(list(c), t) for c, t in zip(columns, types, strict=True)]
            fold.add(Observations(*arrays, np.array([value(k) for k in ordered], np.float32)))
        found = fold.finish()
    assert dict(zip(found.rows.tolist(), found.values.tolist(), strict=True)) == expected


@given(st.lists(st.integers(0, 1 << 63) | st.integers(0, 5), max_size=40))
def test_the_fast_order_is_the_stable_one(rows: list[int]) -> None:
    values = np.array(rows, np.uint64)
    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()


@pytest.mark.parametrize("ascending", [False, True])
def test_memory_that_is_used_again_holds_nothing_of_before(tmp_path: Path, ascending: bool) -> None:
    """Many parts of different sizes, with padding, repeats and steps over the cuts."""
    rng = np.random.default_rng(0)
    expected: dict[int, list[Any]] = {}
    with writing(tmp_path / "s", part_rows=40) as store:
        for step in range(120):
            size = int(rng.integers(0, 300 if step % 20 == 7 else 30))
            rows, value = rng.integers(0, 60, size), rng.random(size, np.float32)
            rows = np.sort(rows) if ascending else rows
            pad = rng.random(size) < 0.2 if step % 3 else None
            key = step // 50, step // 2  # a step comes in two calls
            store.append(rows, epoch=key[0], step=key[1], loss=value, pad=pad)
            for at in range(size) if pad is None else np.flatnonzero(~pad):
                of_row = expected.setdefault(int(rows[at]), [])
                nth = sum(k[:2] == key for k in of_row)
                of_row.append((*key, nth, float(value[at])))
            rows[:], value[:] = 0, -1
            if step % 17 == 3:
                store.flush()
        writer = store._writer
        assert writer is not None
        store.flush()
        assert len(writer._free) <= 6
        assert all(a.room <= 80 for batch in writer._free for a in batch.columns.values())
    found = SignalStore.open(tmp_path / "s")
    o = winners(Observations.concat([b for p in found.parts() for b in p.read()]), "loss")
    keys = (o.epoch.tolist(), o.step.tolist(), o.occurrence.tolist(), o.value.tolist())
    told = zip(o.rows.tolist(), zip(*keys, strict=True), strict=True)
    assert list(told) == [(row, k) for row in sorted(expected) for k in expected[row]]


def test_columns_take_what_comes_later() -> None:
    """As of a device: rows and values are fetched when a part is made."""
    columns, space = Appended(2), Workspace()
    grads = np.arange(6, dtype=np.float32).reshape(3, 2)
    columns.add(2, 1, 1 << 63, np.array([9, 4]), grads[:2])
    here = columns.add(
        3, 1, 7, Copy((3,), lambda: np.array([1, 9, 2])), Copy((3, 2), lambda: grads)
    )
    columns.add_later("pad", here, lambda: np.array([0, 0, 1]))
    columns.add_later("occurrence", here, lambda: np.array([0, 3, 0]))
    found, last = columns.by_row(5, space)
    assert found.rows.tolist() == [1, 4, 9, 9]
    assert found.epoch.tolist() == [1] * 4
    assert found.step.tolist() == [7, 1 << 63, 1 << 63, 7]
    assert found.occurrence.tolist() == [0, 0, 0, 3]
    assert found.attempt.tolist() == [5] * 4
    assert found.value.tolist() == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert (last.rows.tolist(), last.step.tolist()) == ([1, 9], [7, 7])
    assert not columns.counted


def test_occurrences_given_by_the_caller(tmp_path: Path) -> None:
    """Two ranks that share a row within a step."""
    for writer, value in ((0, 1.0), (1, 3.0)):
        with writing(tmp_path / "s", attempt=1, writer=writer) as store:
            store.append([7], epoch=0, step=0, loss=[value], occurrence=[writer])
    assert latest(SignalStore.open(tmp_path / "s")) == {7: 2.0}


def test_ranges_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_parts, "BLOCK_BYTES", 7 * 28)  # of 28 bytes each
    rng = np.random.default_rng(0)
    with writing(tmp_path / "s", part_rows=30) as store:
        for step in range(20):
            rows = rng.choice(60, 10, replace=False)
            store.append(rows, epoch=step // 10, step=step % 10, loss=rng.random(10))
            if step % 3 == 0:
                store.flush()
    found = SignalStore.open(tmp_path / "s")
    assert len(parts_of(tmp_path / "s")) >= 6
    whole, digest = latest(found), found.digest()
    for size in (1, 9, 64):
        monkeypatch.setattr(signals, "RANGE_ROWS", size)
        assert latest(found) == whole
        assert found.digest() == digest
    assert latest(found, start=10, stop=20) == {r: v for r, v in whole.items() if 10 <= r < 20}


def test_digest_by_hand(tmp_path: Path) -> None:
    with writing(tmp_path / "s") as store:
        store.append([3, 1, 100, 2], epoch=0, step=0, loss=[0.5, -1, 2, np.nan])
    first = struct.pack("<QfQf", 1, -1.0, 3, 0.5)
    inner = hashlib.sha256(first).digest() + hashlib.sha256(struct.pack("<Qf", 100, 2)).digest()
    assert SignalStore.open(tmp_path / "s").digest() == hashlib.sha256(inner).hexdigest()


def test_completeness(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m", SNAPSHOT, {0: plan_of([5, 5]), 1: plan_of([4])})
    with writing(tmp_path / "s", manifest) as store:
        store.append(np.arange(7), epoch=0, step=0, loss=np.ones(7))
        store.append([50], epoch=0, step=1, loss=[1.0])  # of no step of the plan
        store.append([8], epoch=1, step=0, loss=[1.0])
        store.flush()
        found = store.completeness(manifest, 0)
        assert (found.expected, found.found) == (10, 7)
        assert found.missing.ids().tolist() == [7, 8, 9]
        assert store.completeness(manifest, 1).found == 0


# --- what was not written as it should ------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A store of two parts: rows 0–19, rows 20–29."""
    with writing(tmp_path / "s") as store:
        store.append(np.arange(20), epoch=0, step=0, loss=np.arange(20.0))
        store.flush()
        store.append(np.arange(20, 30), epoch=0, step=1, loss=np.arange(10.0))
    return tmp_path / "s"


@pytest.mark.parametrize("left", [0, 3, 100, -1])
def test_a_torn_part_is_left_out_and_told_of(
    written: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    torn = parts_of(written)[1]
    torn.write_bytes(torn.read_bytes()[:left])
    found = SignalStore.open(written)
    with caplog.at_level(logging.WARNING):
        assert latest(found) == {r: float(r) for r in range(20)}
    assert f"{torn.name} is torn and left out" in caplog.text
    assert found.torn() == [torn.name]


def test_what_a_killed_writer_left_is_not_read(written: Path) -> None:
    half = written / "loss" / f".{parts_of(written)[0].name}.0123456789ab.tmp"
    half.write_bytes(parts_of(written)[0].read_bytes())
    found = SignalStore.open(written)
    assert len(latest(found)) == 30
    assert found.torn() == [half.name]


def test_every_flipped_bit_is_an_error_or_changes_nothing(written: Path) -> None:
    part = parts_of(written)[0]
    data, whole = part.read_bytes(), latest(SignalStore.open(written))
    errors = 0
    for place in range(0, len(data), 13):
        part.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            found = latest(SignalStore.open(written))
        except SignalCorruptError as error:
            errors += part.name in str(error)
        else:
            if found != whole:  # the end of the file is what makes it a whole one
                assert place >= len(data) - 6
                assert SignalStore.open(written).torn() == [part.name]
    assert errors > len(data) / 13 / 3


def test_a_killed_process_loses_what_was_not_flushed_and_no_more(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, time\n"
        "from batchloom.dataplane import SignalStore\n"
        "from batchloom.tests.dataplane.helpers import snapshot_of\n"
        "s = SignalStore.for_writing(sys.argv[1], snapshot_of(100_000), part_rows=500)\n"
        "for step in range(10_000):\n"
        "    rows = np.arange(step * 10, step * 10 + 10)\n"
        "    s.append(rows, epoch=0, step=step, loss=rows)\n"
        "    if step == 200:\n"
        "        s.flush(); print('flushed', flush=True)\n"
        "    if step > 200: time.sleep(0.0005)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "flushed\n"
    time.sleep(0.2)
    child.kill()
    child.communicate()
    found = latest(SignalStore.open(tmp_path / "s"))
    assert set(found) >= set(range(2010))
    assert found == {float(r): float(r) for r in found}
    assert len(found) % 10 == 0  # a step is there whole


def test_an_interrupted_program_flushes_at_its_end(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from batchloom.dataplane import SignalStore\n"
        "from batchloom.tests.dataplane.helpers import snapshot_of\n"
        "s = SignalStore.for_writing(sys.argv[1], snapshot_of(10))\n"
        "s.append([1, 2], epoch=0, step=0, loss=[1, 2])\n"
        "raise SystemExit(3)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], check=False)
    assert ran.returncode == 3
    assert latest(SignalStore.open(tmp_path / "s")) == {1: 1.0, 2: 2.0}


def test_a_full_disk_loses_nothing_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = writing(tmp_path / "s")
    real = signal_writer.put_part

    def full(*_: Any) -> None:
        raise StorageError("Writing signals failed: No space left on device.")

    monkeypatch.setattr(signal_writer, "put_part", full)
    store.append([1, 2], epoch=0, step=0, loss=[1, 2])
    with pytest.raises(StorageError, match="No space left"):
        store.flush()
    assert store.unflushed == 2
    monkeypatch.setattr(signal_writer, "put_part", real)
    store.append([3], epoch=0, step=1, loss=[3])
    store.close()
    assert latest(SignalStore.open(tmp_path / "s")) == {1: 1, 2: 2, 3: 3}


def test_a_disk_that_fails_between_two_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = writing(tmp_path / "s")
    real, folders = signal_writer.put_part, []

    def second_fails(folder: Any, *given_: Any) -> None:
        folders.append(folder)
        if len(folders) == 2:
            raise StorageError("Writing signals failed: Input/output error.")
        real(folder, *given_)

    monkeypatch.setattr(signal_writer, "put_part", second_fails)
    store.append([2, 1], epoch=0, step=0, loss=[2, 1], other=[4, 3])
    with pytest.raises(StorageError, match="Input/output"):
        store.flush()
    assert store.unflushed == 2
    store.append([3], epoch=0, step=1, loss=[3], other=[5])
    store.close()
    assert latest(SignalStore.open(tmp_path / "s")) == {1: 1, 2: 2, 3: 3}
    assert latest(SignalStore.open(tmp_path / "s"), signal="other") == {1: 3, 2: 4, 3: 5}


def test_a_slow_disk_holds_the_training_up_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    real = signal_writer.put_part

    def slow(*given_: Any) -> None:
        gate.wait(20)
        real(*given_)

    monkeypatch.setattr(signal_writer, "put_part", slow)
    store = writing(tmp_path / "s", part_rows=10)
    for step in range(4):
        store.append(np.arange(10), epoch=0, step=step, loss=np.zeros(10))
    assert store.unflushed == 40
    threading.Timer(0.2, gate.set).start()
    with caplog.at_level(logging.WARNING):
        store.append(np.arange(10), epoch=0, step=4, loss=np.ones(10))
    assert "signals come faster than" in caplog.text
    store.close()
    assert set(latest(SignalStore.open(tmp_path / "s")).values()) == {1.0}


def test_a_fork_neither_writes_nor_hangs(tmp_path: Path) -> None:
    store = writing(tmp_path / "s")
    store.append([1], epoch=0, step=0, loss=[1.0])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.append([2], epoch=0, step=1, loss=[2.0])
        except SignalError as error:
            code = 0 if "another process" in str(error) else 2
        store.close()
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    store.close()
    assert latest(SignalStore.open(tmp_path / "s")) == {1: 1.0}


def test_time_alone_makes_it_durable(tmp_path: Path) -> None:
    with writing(tmp_path / "s", flush_seconds=0.05) as store:
        store.append([1], epoch=0, step=0, loss=[1.0])
        for _ in range(200):
            if not store.unflushed:
                break
            time.sleep(0.02)
        assert latest(SignalStore.open(tmp_path / "s")) == {1: 1.0}


def test_four_processes_write_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from batchloom.dataplane import SignalStore\n"
        "from batchloom.tests.dataplane.helpers import snapshot_of\n"
        "rank = int(sys.argv[2])\n"
        "with SignalStore.for_writing(sys.argv[1], snapshot_of(4000), writer=rank, attempt=1,\n"
        "                             part_rows=100) as s:\n"
        "    for step in range(25):\n"
        "        rows = np.arange(40) * 100 + step * 4 + rank\n"
        "        s.append(rows, epoch=0, step=step, loss=rows * 2)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s"), str(rank)])
        for rank in range(4)
    ]
    assert [c.wait() for c in children] == [0] * 4
    assert latest(SignalStore.open(tmp_path / "s")) == {r: 2.0 * r for r in range(4000)}


# --- compaction -----------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(signal_parts, "BLOCK_BYTES", 8 * 28)  # of 28 bytes each
    monkeypatch.setattr(signal_compaction, "RANGE_OBSERVATIONS", 40)
    for attempt in range(2):
        with writing(tmp_path / "s", part_rows=1) as store:
            for step in range(6):
                rows = np.arange(step % 2, 60, 2)
                store.append(rows, epoch=attempt, step=step % 3, loss=rows + step * 0.25)
                store.flush()
    return tmp_path / "s"


def test_compaction_changes_nothing_but_the_files(many: Path) -> None:
    store = SignalStore.open(many)
    before, digest = latest(store), store.digest()
    earlier, history = latest(store, before=1), [store.history(r).value.tolist() for r in range(60)]
    assert len(parts_of(many)) == 12
    left = store.compact()
    assert left == len(parts_of(many)) < 12
    again = SignalStore.open(many)
    assert latest(again) == before
    assert latest(again, before=1) == earlier
    assert again.digest() == digest
    assert [again.history(r).value.tolist() for r in range(60)] == history
    with writing(many) as more:
        more.append([0], epoch=5, step=0, loss=[-1])
    assert latest(again)[0] == -1
    again.compact()
    assert latest(SignalStore.open(many)) == {**before, 0: -1}
    assert len(list((many / "loss").glob("compacted-*"))) == 1


def test_compacting_what_is_compact_changes_nothing(many: Path) -> None:
    written = signal_compaction.written_parts(locate(many / "loss"))
    assert len(written) == 12
    SignalStore.open(many).compact()
    before, files = latest(SignalStore.open(many)), sorted((many / "loss").iterdir())
    assert len(files) > 2
    SignalStore.open(many).compact()
    assert latest(SignalStore.open(many)) == before
    assert sorted((many / "loss").iterdir()) == files
    with writing(many, part_rows=1) as more:
        more.append([0], epoch=5, step=0, loss=[-1])
    SignalStore.open(many).compact()
    names = signal_compaction.written_parts(locate(many / "loss"))
    assert set(names) > set(written)  # what was written stays known
    assert len(names) == 13


def test_compacting_again_and_again_loses_nothing(many: Path) -> None:
    """Most ranges have the same content each time, and their files must not have the same names."""
    before = latest(SignalStore.open(many))
    for step in range(8):
        with writing(many, part_rows=1) as more:
            more.append([59], epoch=5, step=step, loss=[step])
        SignalStore.open(many).compact()
        assert latest(SignalStore.open(many)) == {**before, 59: step}
        assert len(list((many / "loss").glob("compacted-*"))) == 1


@pytest.mark.parametrize("moment", ["before the record", "before the removal"])
def test_a_compaction_that_dies(many: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    store = SignalStore.open(many)
    before = latest(store)
    name = "create_file" if moment == "before the record" else "_remove"

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(signal_compaction, name, die)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
    assert latest(SignalStore.open(many)) == before
    left = SignalStore.open(many).compact()
    assert latest(SignalStore.open(many)) == before
    assert len(SignalStore.open(many).parts()) == left


# --- binding to a dataset -------------------------------------------------------------------------


def test_the_store_grows_with_its_dataset(tmp_path: Path) -> None:
    grown = snapshot_of(60, 0, 40, 10, first_ids=[0, 60, 100, 140])
    with writing(tmp_path / "s") as store:
        store.append([139], epoch=0, step=0, loss=[1.0])
    with writing(tmp_path / "s", grown) as store:
        assert store.snapshot == grown
        store.append([149], epoch=1, step=0, loss=[2.0])
    assert SignalStore.open(tmp_path / "s").snapshot == grown
    with writing(tmp_path / "s") as store:  # the older one is fine, and does not shrink it
        assert store.snapshot == grown
    assert latest(SignalStore.open(tmp_path / "s")) == {139: 1.0, 149: 2.0}


def test_another_dataset_is_refused(tmp_path: Path) -> None:
    writing(tmp_path / "s").close()
    others = snapshot_of(7, 8, first_ids=[140, 147])
    with pytest.raises(DatasetChangedError, match="belongs to another dataset"):
        writing(tmp_path / "s", others)
    renumbered = snapshot_of(60, 0, 40, 10, first_ids=[0, 60, 100, 120])
    with pytest.raises(DatasetChangedError, match=r"Row 120 is in 'part-2.parquet' .* 'part-3"):
        writing(tmp_path / "s", renumbered)


def test_rows_that_the_dataset_does_not_hold(tmp_path: Path) -> None:
    store = writing(tmp_path / "s")
    store.append([1, 70, 99, 139], epoch=0, step=0, loss=[1, 2, 3, 4])
    with pytest.raises(RowIdError, match="2 of the rows whose 'loss' was appended .*: 70, 99"):
        store.flush()
    store.close()
    assert latest(SignalStore.open(tmp_path / "s")) == {1: 1.0, 139: 4.0}


def test_negative_rows_are_named(tmp_path: Path) -> None:
    store = writing(tmp_path / "s")
    store.append([1, 2], epoch=0, step=0, loss=[1, 2])
    store.append([3, -4, -7], epoch=0, step=1, loss=[3, 4, 7])
    store.append([-9], epoch=0, step=2, loss=[9])
    with pytest.raises(RowIdError, match="Row -7 cannot be: row ids are not negative"):
        store.flush()
    assert store.unflushed == 0
    store.append([1.5], epoch=0, step=3, loss=[1])
    with pytest.raises(RowIdError, match="found 1 dimensions of float64"):
        store.flush()
    store.append([0, 59, 100, 139], epoch=0, step=4, loss=[1, 2, 3, 4])  # the borders
    store.close()
    assert latest(SignalStore.open(tmp_path / "s")) == {0: 1, 59: 2, 100: 3, 139: 4}


@pytest.mark.parametrize("row", [60, 99, 140, 1 << 62])
def test_rows_beside_the_borders_are_refused(tmp_path: Path, row: int) -> None:
    store = writing(tmp_path / "s")
    store.append([59, row, 100], epoch=0, step=0, loss=[1, 2, 3])
    with pytest.raises(RowIdError, match=rf"1 of the rows .* left out: {row}\."):
        store.close()
    assert latest(SignalStore.open(tmp_path / "s")) == {59: 1, 100: 3}


def test_attempts_are_drawn_once(tmp_path: Path) -> None:
    stores = [writing(tmp_path / "s") for _ in range(3)]
    assert [s.attempt for s in stores] == [1, 2, 3]
    assert writing(tmp_path / "s", attempt=2, writer=1).attempt == 2


# --- what is refused ------------------------------------------------------------------------------


def test_a_reduced_loss_is_refused_at_once(tmp_path: Path) -> None:
    store = writing(tmp_path / "s")
    rows = torch.arange(32)
    said = r"'loss': expected shape \(32,\), got \(\); .*reduction='none'"
    with pytest.raises(SelectionError, match=said):
        store.append(rows, epoch=0, step=0, loss=torch.tensor(0.5))
    with pytest.raises(SelectionError, match=r"expected shape \(32,\), got \(31,\)"):
        store.append(rows, epoch=0, step=0, loss=torch.ones(31))
    with pytest.raises(SelectionError, match=r"'pad': expected shape \(32,\), got \(3,\)"):
        store.append(rows, epoch=0, step=0, loss=torch.ones(32), pad=[True] * 3)
    with pytest.raises(ParameterError, match="at least one signal"):
        store.append(rows, epoch=0, step=0)
    with pytest.raises(ParameterError, match=r"letters, digits.*Got 'a b'"):
        store.append(rows, epoch=0, step=0, **{"a b": torch.ones(32)})
    store.append(rows, epoch=0, step=0, loss=torch.ones(32))
    store.append(rows, epoch=0, step=0, loss=torch.ones(32, 2))
    with pytest.raises(SelectionError, match="values of shape"):
        store.flush()
    assert len(latest(store)) == 32


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no signal store at .*SignalStore.for_writing"):
        SignalStore.open(tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SignalError, match="holds other files"):
        writing(tmp_path / "other")
    writing(tmp_path / "s").close()
    store = SignalStore.open(tmp_path / "s")
    with pytest.raises(SignalError, match="opened for reading"):
        store.append([1], epoch=0, step=0, loss=[1.0])
    with pytest.raises(SignalError, match="holds no signal 'los'.* It holds: none"):
        next(store.latest("los"))
    header = tmp_path / "s" / "signals.json"
    header.write_text(json.dumps({"format": "batchloom-signals/9"}))
    with pytest.raises(SignalError, match="'batchloom-signals/9'; this version reads"):
        SignalStore.open(tmp_path / "s")
    with pytest.raises(ParameterError, match="'dataset' parameter must be a Snapshot"):
        SignalStore.for_writing(tmp_path / "t", "data/")
    with pytest.raises(ParameterError, match=r"'writer' .* in the range \[0, 99999\]. Got -1"):
        writing(tmp_path / "t", writer=-1)


def test_a_closed_store_takes_nothing(tmp_path: Path) -> None:
    store = writing(tmp_path / "s")
    store.close()
    store.close()
    with pytest.raises(SignalError, match="closed"):
        store.append([1], epoch=0, step=0, loss=[1.0])


def test_errors_are_of_the_tree_and_travel() -> None:
    for error in (SignalError, SignalConflictError, SignalCorruptError):
        assert issubclass(error, BatchloomError)
        assert str(pickle.loads(pickle.dumps(error("said")))) == "said"
    assert len(winners(Observations.zeros(), "loss")) == 0


# --- on an object store ---------------------------------------------------------------------------


def test_a_store_on_s3(store: Store, tmp_path: Path) -> None:
    options = {"storage_options": store.options}
    for expected in (1, 2):
        with writing(store.at("s"), **options) as made:
            assert made.attempt == expected
            made.append([3, 100], epoch=0, step=0, loss=[expected, 5])
    found = SignalStore.open(store.at("s"), **options)
    assert latest(found) == {3: 2, 100: 5}
    assert found.compact() == 1
    assert latest(SignalStore.open(store.at("s"), **options)) == {3: 2, 100: 5}
    with writing(tmp_path / "s") as local:
        local.append([3, 100], epoch=0, step=0, loss=[2, 5])
    assert SignalStore.open(tmp_path / "s").digest() == found.digest()


def test_bound_to_a_dataset_that_was_opened(awkward_data: Any, tmp_path: Path) -> None:
    dataset = open_dataset(awkward_data())
    with SignalStore.for_writing(tmp_path / "s", dataset) as store:
        store.append([0], epoch=0, step=0, loss=[1.0])
    assert SignalStore.open(tmp_path / "s").snapshot == dataset.snapshot


def test_writers_that_make_the_store_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sees no store, and by the time that it lists the folder another has made it."""
    looked = []

    def too_early(location: Any) -> Snapshot | None:
        found = real(location)
        if not looked:
            looked.append(found)
            writing(location.path).close()
        return found

    real = signal_binding.snapshot_of
    monkeypatch.setattr(signal_binding, "snapshot_of", too_early)
    with writing(tmp_path / "s") as store:
        store.append([1], epoch=0, step=0, loss=[0.5])
    assert looked == [None]
    assert latest(SignalStore.open(tmp_path / "s")) == {1: 0.5}
