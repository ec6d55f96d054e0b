"""The manifest loader: the contract of all loaders, and what is its own."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from batchloom.dataplane import (
    BatchPlan,
    ManifestWriter,
    Ragged,
    SideColumn,
    epoch_writer,
    open_dataset,
)
from batchloom.dataplane.errors import (
    BatchloomError,
    InvalidValueError,
    ManifestCorruptError,
    ManifestError,
    MissingColumnError,
    ParameterError,
)
from batchloom.dataplane.manifest_part import PartReader
from batchloom.samplers import Batch, ManifestLoader
from batchloom.tests.contracts.awkward import awkward_table, write_fragment
from batchloom.tests.contracts.loader import (
    LoaderContract,
    drain,
    fingerprints,
    flat,
    json_round_trip,
    prefetch_threads,
    shuffled,
    write_plan,
)


class TestManifestLoader(LoaderContract):
    def make(self, plan, data, **options):
        return ManifestLoader(plan, data, **options)


@pytest.fixture
def data(awkward_data):
    return awkward_data("ipc")


@pytest.fixture
def plan(data, tmp_path):
    """Two epochs of ten micro-batches of 20 rows."""
    write_plan(tmp_path / "plan", data, {e: shuffled(e, rows=200, batch=20) for e in (0, 1)})
    return tmp_path / "plan"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    if prefetch_threads():
        gc.collect()
    assert prefetch_threads() == []


def places(batches):
    return [(b.epoch, b.step) for b in batches]


def take(loader, seen):
    for batch in loader:
        seen.append(batch.step)


EPOCH_0, EPOCH_1 = [(0, s) for s in range(10)], [(1, s) for s in range(10)]

# --- what a batch carries -------------------------------------------------------------------------


def test_batch_is_a_mapping(plan, data):
    batch = next(iter(ManifestLoader(plan, data, columns=["x", "text"], epochs=1)))
    assert dict(batch) == batch.columns
    assert (list(batch), len(batch), batch.num_rows) == (["x", "text"], 2, 20)
    assert "x" in batch
    assert batch.rows.dtype == torch.int64
    assert repr(batch) == "<Batch epoch 0, step 0, micro 0: 20 rows of x, text>"
    assert batch == batch
    assert len({batch, batch.with_columns()}) == 2
    with pytest.raises(KeyError):
        batch["y"]


def test_batch_moves_with_all_its_tensors(data, tmp_path):
    side = [SideColumn("pad_to", "batch", "int32"), SideColumn("score", "row", "float32")]
    plan = BatchPlan.of(
        [0, 2],
        [1, 2],
        side={"pad_to": np.array([7], np.int32), "score": np.array([1, 2], np.float32)},
    )
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    (batch,) = ManifestLoader(
        manifest, data, columns=["x", "text"], device="meta", world_size=1, rank=0
    )
    tensors = [batch["x"], batch.rows, batch.weights, batch.seeds, batch.side["score"]]
    assert {t.device.type for t in tensors} == {"meta"}
    assert isinstance(batch["text"], pa.Array)
    assert batch.side["pad_to"] == 7
    padded = Batch(**{**vars(batch), "pad": torch.tensor([True, False])})
    assert padded.to("meta").pad.device.type == "meta"


def test_side_columns(data, tmp_path):
    side = [
        SideColumn("tag", "batch", "uint16"),
        SideColumn("score", "row", "float32"),
        SideColumn("group", "row", "uint32"),
    ]
    values = {
        "tag": np.array([65_535, 3], np.uint16),
        "score": np.arange(10, dtype=np.float32),
        "group": np.arange(10, dtype=np.uint32) + np.uint32(4_000_000_000),
    }
    plan = BatchPlan.of([0, 6, 10], np.arange(10), side=values)
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    batches = flat(
        drain(ManifestLoader(manifest, data, columns=[], rank=r, world_size=2)) for r in (0, 1)
    )
    assert [b.side["tag"] for b in batches] == [65_535, 3, 65_535, 3]
    assert all(type(b.side["tag"]) is int for b in batches)
    assert [b.side["score"].tolist() for b in batches] == [[0, 1, 2], [6, 7], [3, 4, 5], [8, 9]]
    assert batches[3].side["group"].tolist() == [4_000_000_008, 4_000_000_009]
    assert batches[3].side["group"].dtype == torch.int64
    batches[0].side["score"].zero_()  # memory of its own, not the plan's
    assert manifest.epoch(0)[0].side["score"].tolist() == [0, 1, 2, 3, 4, 5]


def test_ragged_side_column_comes_whole(data, tmp_path):
    masks = Ragged(np.array([0, 2, 2, 5, 6], np.int64), np.arange(6, dtype=np.int32))
    plan = BatchPlan.of([0, 2, 4], [1, 2, 3, 4], side={"mask": masks}).folded(2)
    side = [SideColumn("mask", "csr", "int32")]
    manifest = write_plan(tmp_path / "plan", data, {0: plan}, side=side)
    assert manifest.unit == "micro"
    (batch,) = ManifestLoader(manifest, data, columns=[], rank=1, world_size=2)
    assert batch.side["mask"].offsets.tolist() == [0, 3, 4]
    assert batch.side["mask"].values.tolist() == [2, 3, 4, 5]
    assert batch.side["mask"].values.flags.writeable


def test_nothing_delivered_aliases_the_plan(plan, data):
    loader = ManifestLoader(plan, data, columns=["y"], epochs=1)
    first = fingerprints(loader)
    for batch in loader:
        for tensor in (batch.rows, batch.weights, batch.seeds, batch["y"]):
            tensor.zero_()
    assert fingerprints(loader) == first


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["y", "lable"], MissingColumnError, "no column 'lable'"),
        ("y", ParameterError, "'columns' parameter must be a list"),
        (["y", "y"], ParameterError, "different column names"),
    ],
)
def test_columns_that_cannot_be(plan, data, columns, error, message):
    with pytest.raises(error, match=message):
        ManifestLoader(plan, data, columns=columns)


def test_columns(plan, data):
    assert ManifestLoader(plan, data).columns == awkward_table(0, 1).schema.names
    loader = ManifestLoader(plan, data, columns=["y", "row"])
    assert loader.columns == ["y", "row"]
    assert list(next(iter(loader))) == ["y", "row"]


def test_null_in_a_planned_row_names_it(tmp_path):
    table = pa.table({"v": pa.array([1, None, 3, None, 5])})
    write_fragment(table, tmp_path / "data" / "a.parquet", "parquet")
    fine = write_plan(tmp_path / "fine", tmp_path / "data", {0: BatchPlan.of([0, 3], [4, 0, 2])})
    (batch,) = ManifestLoader(fine, tmp_path / "data")
    assert batch["v"].tolist() == [5, 1, 3]
    bad = write_plan(tmp_path / "bad", tmp_path / "data", {0: BatchPlan.of([0, 2], [4, 3])})
    with pytest.raises(InvalidValueError, match=r"'v' holds a null in row 3, .*--where"):
        drain(ManifestLoader(bad, tmp_path / "data"))


def test_several_sources(tmp_path):
    sources = {"web": tmp_path / "web", "books": tmp_path / "books"}
    write_fragment(awkward_table(0, 30), sources["books"] / "b.arrow", "ipc", chunk=7)
    write_fragment(awkward_table(30, 50), sources["web"] / "w.parquet", "parquet", chunk=7)
    manifest = write_plan(tmp_path / "plan", sources, {0: shuffled(rows=50, batch=8)})
    batches = drain(ManifestLoader(manifest, sources))
    assert sorted(flat(b["row"].tolist() for b in batches)) == list(range(50))
    for batch in batches:
        assert batch["row"].tolist() == batch.rows.tolist()
        assert batch["text"].to_pylist() == [f"row {i}" if i % 11 else "" for i in batch.rows]
        assert batch["color"].to_pylist() == [["red", "green", "blue"][i % 3] for i in batch.rows]


def test_row_ids_beyond_32_bits(tmp_path):
    """A dataset whose files were replaced many times."""
    write_fragment(awkward_table(0, 100), tmp_path / "data" / "a.arrow", "ipc")
    dataset = open_dataset(tmp_path / "data")
    start = 2**33
    fragment = replace(dataset.snapshot.fragments[0], first_row_id=start)
    snapshot = replace(dataset.snapshot, fragments=(fragment,), next_row_id=start + 100)
    with ManifestWriter(tmp_path / "plan", snapshot=snapshot) as writer:
        with writer.epoch(0):
            writer.append(BatchPlan.of([0, 3], np.array([start + 99, start, start + 7])))
        writer.commit()
    (batch,) = ManifestLoader(tmp_path / "plan", tmp_path / "data", columns=["row"])
    assert batch.rows.tolist() == [start + 99, start, start + 7]
    assert batch["row"].tolist() == [99, 0, 7]


# --- iterations -----------------------------------------------------------------------------------


def test_an_iteration_covers_the_epochs_and_starts_over(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    assert loader.epochs == (0, 1)
    assert len(loader) == 20
    assert places(loader) == EPOCH_0 + EPOCH_1
    assert loader.state_dict()["next_step"] == 10
    assert places(loader) == EPOCH_0 + EPOCH_1


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, EPOCH_0), (2, EPOCH_0 + EPOCH_1), ([1], EPOCH_1), ([1, 0], EPOCH_1 + EPOCH_0)],
)
def test_epochs(plan, data, epochs, expected):
    loader = ManifestLoader(plan, data, columns=[], epochs=epochs)
    assert places(loader) == expected
    assert len(loader) == len(expected)


@pytest.mark.parametrize("epochs", [0, [], [0, 0], "01", [0.5], True, [-1]])
def test_epochs_that_are_none(plan, data, epochs):
    with pytest.raises(ParameterError, match="'epochs' parameter must be an int above"):
        ManifestLoader(plan, data, columns=[], epochs=epochs)


def test_epochs_that_the_plan_lacks(plan, data):
    with pytest.raises(ManifestError, match="holds no epoch 2; it holds 0, 1"):
        ManifestLoader(plan, data, columns=[], epochs=3)


def test_epochs_of_a_plan_that_starts_later(data, tmp_path):
    write_plan(tmp_path / "plan", data, {3: shuffled(rows=64), 4: shuffled(rows=64)})
    loader = ManifestLoader(tmp_path / "plan", data, columns=[], epochs=5)
    assert places(loader) == [(3, 0), (4, 0)]


def test_set_epoch(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    for epoch, expected in [(0, EPOCH_0), (1, EPOCH_1), (0, EPOCH_0)]:
        loader.set_epoch(epoch)
        assert loader.state_dict()["epoch"] == epoch
        assert len(loader) == 10
        assert places(loader) == expected
    assert places(loader) == EPOCH_0  # as torch's samplers: until the next set_epoch
    with pytest.raises(ParameterError, match="no epoch 2 to set: this iteration covers 0, 1"):
        loader.set_epoch(2)


def test_the_usual_loop_resumes(plan, data):
    def train(state, stop=None):
        loader, seen = ManifestLoader(plan, data, columns=[]), []
        if state is not None:
            loader.load_state_dict(state)
        for epoch in range(state["epoch"] if state else 0, 2):
            loader.set_epoch(epoch)
            for batch in loader:
                seen.append((batch.epoch, batch.step))
                if seen[-1] == stop:
                    return seen, json_round_trip(loader.state_dict())
        return seen, json_round_trip(loader.state_dict())

    for stop in EPOCH_0 + EPOCH_1:
        before, state = train(None, stop)
        after, _ = train(state)
        assert before + after == EPOCH_0 + EPOCH_1


def test_last_call_of_load_and_set_epoch_wins(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    state = {**loader.state_dict(), "next_step": 4, "samples_seen": 80}
    loader.set_epoch(1)
    loader.load_state_dict(state)
    assert places(loader) == EPOCH_0[4:] + EPOCH_1
    loader.load_state_dict(state)
    loader.set_epoch(1)
    assert loader.state_dict() == {**state, "epoch": 1, "next_step": 0, "samples_seen": 0}
    assert places(loader) == EPOCH_1


def test_break_and_iterate_again_starts_over(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    for batch in loader:
        if batch.step == 3:
            break
    assert loader.state_dict()["next_step"] == 4
    assert places(loader)[:2] == [(0, 0), (0, 1)]


def test_state_before_the_first_batch(plan, data):
    loader = ManifestLoader(plan, data, columns=[], prefetch=8)
    start = loader.state_dict()
    assert (start["epoch"], start["next_step"], start["samples_seen"]) == (0, 0, 0)
    iterator = iter(loader)
    assert loader.state_dict() == start  # eight are prepared, none was delivered
    next(iterator)
    assert loader.state_dict() == {**start, "next_step": 1, "samples_seen": 20}
    loader.load_state_dict(start)
    assert places(loader) == EPOCH_0 + EPOCH_1


def test_a_newer_iteration_ends_the_older_one(plan, data):
    loader = ManifestLoader(plan, data, columns=[])
    older = iter(loader)
    next(older)
    newer = iter(loader)
    with pytest.raises(BatchloomError, match="ended by a newer iter"):
        next(older)
    assert places(newer) == EPOCH_0 + EPOCH_1
    state = loader.state_dict()
    finished = iter(loader)
    drain(finished)
    iter(loader)
    assert next(finished, None) is None  # it had ended by itself
    live = iter(loader)
    loader.load_state_dict(state)
    with pytest.raises(BatchloomError, match="load_state_dict"):
        next(live)
    assert loader.state_dict() == state
    assert places(loader) == []


def test_resuming_needs_neither_rows_nor_blocks_before_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 5)
    manifest = write_plan(tmp_path / "plan", data, {0: shuffled()})  # 32 blocks
    touched = []
    block = PartReader.block
    monkeypatch.setattr(
        PartReader, "block", lambda self, index: touched.append(index) or block(self, index)
    )
    loader = ManifestLoader(manifest, data, columns=["y"], prefetch=0)
    state = {**loader.state_dict(), "next_step": 150, "samples_seen": 150 * 64}
    loader.load_state_dict(state)
    assert next(iter(loader)).step == 150
    assert set(touched) <= {29, 30, 31}


def test_resume_in_a_fresh_process(data, tmp_path):
    plan = shuffled(micro_per_step=4, weighted=True)
    write_plan(tmp_path / "plan", data, {0: plan}, weight_semantics="importance")
    script = """if True:
        import json, sys
        from batchloom.samplers import ManifestLoader
        from batchloom.tests.contracts.loader import fingerprints
        plan, data, state = sys.argv[1:]
        loader = ManifestLoader(plan, data, columns=["x", "text", "color"], prefetch=3)
        loader.load_state_dict(json.loads(state))
        print(json.dumps([fingerprints(loader), loader.state_dict()]))
    """
    loader = ManifestLoader(tmp_path / "plan", data, columns=["x", "text", "color"])
    states, expected = {}, []
    for index, batch in enumerate(loader, start=1):
        expected += fingerprints([batch])
        if index in (80, 157):
            states[index] = json.dumps(loader.state_dict())
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    running = {
        index: subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "plan"), str(data), state],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for index, state in states.items()
    }
    for index, process in running.items():
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert json.loads(out) == [expected[index:], loader.state_dict()]


# --- the background thread ------------------------------------------------------------------------


def test_prefetch_prepares_so_many_ahead(plan, data):
    prepared = []
    loader = ManifestLoader(
        plan, data, columns=[], prefetch=3, transform=lambda b: prepared.append(b.step) or b
    )
    iterator = iter(loader)
    next(iterator)
    for _ in range(200):
        if len(prepared) == 4:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert prepared == [0, 1, 2, 3]  # one delivered, three ahead


def test_in_line_prepares_nothing_ahead(plan, data):
    names = []
    loader = ManifestLoader(
        plan,
        data,
        columns=[],
        prefetch=0,
        transform=lambda b: names.append(threading.current_thread()) or b,
    )
    iterator = iter(loader)
    next(iterator)
    assert names == [threading.main_thread()]


@pytest.mark.parametrize("how", ["close", "drop", "loader", "end", "break"])
def test_thread_ends_with_the_iteration(plan, data, how):
    loader = ManifestLoader(plan, data, columns=[])
    iterator = iter(loader)
    next(iterator)
    assert len(prefetch_threads()) == 1
    if how == "close":
        iterator.close()
        assert next(iterator, None) is None
    elif how == "drop":
        del iterator
    elif how == "loader":
        loader.close()
        assert len(drain(loader)) == 20  # and may be used again
    elif how == "end":
        drain(iterator)
    else:
        del iterator
        for _ in loader:
            break
    assert prefetch_threads() == []


def test_interrupt_in_the_loop_ends_the_thread(plan, data):
    def train():
        for batch in ManifestLoader(plan, data, columns=[], prefetch=4):
            if batch.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert prefetch_threads() == []


def test_interrupt_while_waiting_for_a_batch_ends_the_thread(plan, data):
    waiting, go = threading.Event(), threading.Event()

    def slow(batch):
        if batch.step == 2:
            waiting.set()
            go.wait(30)
        return batch

    def interrupt():
        waiting.wait(30)
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)
        go.set()  # the thread is joined once its batch is done

    threading.Thread(target=interrupt, daemon=True).start()
    loader, seen = ManifestLoader(plan, data, columns=[], transform=slow), []
    with pytest.raises(KeyboardInterrupt):
        take(loader, seen)
    assert prefetch_threads() == []
    assert seen == [0, 1]
    assert loader.state_dict()["next_step"] == 2


def test_process_ends_with_an_iteration_left_open(plan, data):
    script = f"""if True:
        from batchloom.samplers import ManifestLoader
        loader = ManifestLoader({str(plan)!r}, {str(data)!r}, columns=["y"], prefetch=8)
        iterator = iter(loader)
        print(next(iterator).step)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("prefetch", [0, 4])
def test_transform(plan, data, prefetch):
    doubled = ManifestLoader(
        plan,
        data,
        columns=["y"],
        prefetch=prefetch,
        transform=lambda b: b.with_columns(y=b["y"] * 2, z=b["y"]),
    )
    batch = next(iter(doubled))
    assert batch["y"].tolist() == (batch["z"] * 2).tolist()
    pairs = ManifestLoader(
        plan, data, columns=["y"], prefetch=prefetch, transform=lambda b: (b.step, b["y"])
    )
    assert [step for step, _ in pairs] == [*range(10)] * 2
    assert pairs.state_dict()["epoch"] == 1


@pytest.mark.parametrize("prefetch", [0, 4])
def test_transform_that_raises(plan, data, prefetch):
    def awful_transform(batch):
        if batch.step == 3:
            raise ZeroDivisionError("no")
        return batch

    loader = ManifestLoader(
        plan, data, columns=[], epochs=[1], prefetch=prefetch, transform=awful_transform
    )
    seen = []
    with pytest.raises(ZeroDivisionError, match="no") as caught:
        take(loader, seen)
    assert seen == [0, 1, 2]  # those before it were delivered
    assert loader.state_dict()["next_step"] == 3
    (note,) = caught.value.__notes__
    assert "epoch 1, step 3, micro 0" in note
    frames = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert "awful_transform" in frames
    assert prefetch_threads() == []


@pytest.mark.parametrize("prefetch", [0, 4])
def test_damaged_block_is_an_error_in_the_caller(data, tmp_path, prefetch):
    manifest = write_plan(tmp_path / "plan", data, {0: shuffled()})
    part = tmp_path / "plan" / manifest.parts[0].name
    block = manifest.parts[0].blocks[0]
    content = bytearray(part.read_bytes())
    content[block.offset + block.length // 2] ^= 1
    part.chmod(0o644)
    part.write_bytes(content)
    loader = ManifestLoader(tmp_path / "plan", data, columns=[], prefetch=prefetch)
    with pytest.raises(ManifestCorruptError, match=rf"{manifest.parts[0].name}, block 0"):
        next(iter(loader))
    with pytest.raises(ManifestCorruptError, match="block 0"):
        ManifestLoader(tmp_path / "plan", data, columns=[], verify="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefetch": -1}, r"'prefetch' parameter must be an int in the range \[0, inf\)"),
        ({"prefetch": 1.5}, "Got 1.5 instead"),
        ({"cache_bytes": -1}, "'cache_bytes'"),
        ({"transfer": "gds"}, r"'transfer' parameter must be one of 'auto', 'cpu'"),
        ({"device": "gpu"}, "'device' parameter"),
        ({"on_uneven": "drop"}, "'on_uneven' parameter must be one of 'error', 'pad'"),
        ({"verify": "deep"}, "'verify' parameter must be one of 'header', 'all'"),
        ({"poll_seconds": 0}, "'poll_seconds'"),
        ({"rank": 3}, "'rank' parameter was given without 'world_size'"),
        ({"follow": True, "epochs": 4}, "'follow' parameter needs a series"),
    ],
)
def test_options_that_cannot_be(plan, data, options, message):
    with pytest.raises(ParameterError, match=message):
        ManifestLoader(plan, data, columns=[], **options)


def test_plan_that_is_not_there(data, tmp_path):
    with pytest.raises(ManifestError, match="There is no manifest at"):
        ManifestLoader(tmp_path / "nowhere", data)
