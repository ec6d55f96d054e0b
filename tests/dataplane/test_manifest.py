"""The manifest's format: what is written is what is read, and its hashes are those of the rules."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane.errors import ManifestError
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.part_reader import PartReader
from batchloom.dataplane.plan import BatchPlan, Ragged, SideColumn
from batchloom.tests.dataplane.helpers import (
    SIDE,
    assert_same_plan,
    compact,
    plan_of,
    read_json,
    sha256,
    sides_of,
    small_manifest,
    snapshot_of,
    write,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fresh_folder = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
_number = itertools.count()


# --- round trip -----------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> tuple[BatchPlan, tuple[SideColumn, ...]]:
    """A plan of some micro-batches, with or without weights, with some side columns."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    gaps = draw(st.lists(st.integers(1, 4), min_size=len(shape), max_size=len(shape)))
    numbers = np.cumsum(gaps) - 1
    steps = [(int(s), m) for s, n in zip(numbers, shape, strict=True) for m in range(n)]
    steps = (steps + [(int(numbers[-1]) + 1 + k, 0) for k in range(len(sizes))])[: len(sizes)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.integers(0, 1000, sum(sizes))
    names = draw(st.sets(st.sampled_from([c.name for c in SIDE])))
    columns = tuple(c for c in SIDE if c.name in names)
    side = {k: v for k, v in sides_of(sizes, rng).items() if k in names}
    weights = rng.random(sum(sizes)).astype(np.float32) if draw(st.booleans()) else None
    return plan_of(sizes, rows, steps=steps, weights=weights, side=side), columns


@fresh_folder
@given(plans(), st.lists(st.integers(0, 12), max_size=4).map(sorted))
def test_what_is_written_is_what_is_read(
    tmp_path: Path, drawn: tuple[BatchPlan, tuple[SideColumn, ...]], cuts: list[int]
) -> None:
    plan, side = drawn
    cuts = [0, *(min(c, len(plan)) for c in cuts), len(plan)]
    pieces = [plan.slice(a, b) for a, b in itertools.pairwise(cuts)]
    semantics = None if plan.weights is None else "cluster"
    target = tmp_path / str(next(_number))
    made = write(target, snapshot_of(1000), {0: pieces}, side=side, weight_semantics=semantics)
    for manifest in (made, Manifest.open(target, verify="all")):
        epoch = manifest.epoch(0)
        assert manifest.side_columns == side
        assert manifest.unit == ("micro" if "near" in plan.side else "sliceable")
        assert_same_plan(epoch.plan(), plan)
        assert_same_plan(BatchPlan.concat(list(epoch.blocks())), plan)
        manifest.verify(deep=True)
        for k in range(len(plan)):
            one, alone = epoch[k], plan.slice(k, k + 1)
            assert (one.step, one.micro) == (int(alone.step[0]), int(alone.micro[0]))
            assert one.rows.tolist() == alone.rows.tolist()
            assert (one.weights is None) == (alone.weights is None)
            if one.weights is not None:
                assert one.weights.tolist() == alone.weights.tolist()
            for column in side:
                value = alone.side[column.name]
                if isinstance(value, Ragged):
                    assert one.side[column.name].offsets.tolist() == value.offsets.tolist()
                    assert one.side[column.name].values.tolist() == value.values.tolist()
                elif column.kind == "batch":
                    assert one.side[column.name] == value[0]
                else:
                    assert one.side[column.name].tobytes() == value.tobytes()


def test_row_ids_beyond_32_bits_come_back(tmp_path: Path) -> None:
    snapshot = snapshot_of(5, 5, first_ids=[2**33, 2**62])
    rows = np.array([2**62 + 4, 2**33, 2**33 + 4], dtype=np.uint64)
    manifest = write(tmp_path / "m", snapshot, {0: plan_of([2, 1], rows)})
    assert manifest.epoch(0).plan().rows.tolist() == [2**62 + 4, 2**33, 2**33 + 4]


@pytest.mark.parametrize("type_", ["bool", "int8", "uint16", "int64", "uint64", "float32"])
@pytest.mark.parametrize("kind", ["batch", "row", "csr"])
def test_every_type_of_side_column(tmp_path: Path, kind: Any, type_: str) -> None:
    values = np.array([0, 1, 1, 0, 1], dtype=type_)
    if type_ not in ("bool", "float32"):
        values[-1] = np.iinfo(type_).max
    sizes = {"batch": [1, 2, 1, 1, 3], "row": [2, 3], "csr": [1, 2]}[kind]
    value: Any = Ragged(np.array([0, 0, 4, 5]), values) if kind == "csr" else values
    plan = plan_of(sizes, side={"s": value})
    column = SideColumn("s", kind, type_)
    manifest = write(tmp_path / "m", snapshot_of(20), {0: plan}, side=[column])
    assert_same_plan(manifest.epoch(0).plan(), plan)


def test_views_of_a_manifest_cannot_be_written(tmp_path: Path) -> None:
    batch = small_manifest(tmp_path / "m").epoch(0)[0]
    for array in (batch.rows, batch.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# --- the files, by the rules ----------------------------------------------------------------------


def test_the_header_is_canonical_and_its_hashes_are_by_the_rules(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "m", stages=[{"stage": "batch", "name": "Schlüssel"}])
    data = (tmp_path / "m" / "manifest.json").read_bytes()
    header = json.loads(data)
    assert set(header) == {"manifest_id", "header_sha256", "identity", "provenance"}
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, indent=2) + "\n"
    assert data == text.encode()
    assert "Schlüssel" in text
    assert header["manifest_id"] == sha256(compact(header["identity"])) == manifest.manifest_id
    both = {"identity": header["identity"], "provenance": header["provenance"]}
    assert header["header_sha256"] == sha256(compact(both))


def test_the_identity_holds_what_was_decided(tmp_path: Path) -> None:
    stages = [{"stage": "select", "method": "seta", "parameters": {"groups": 5, "share": 0.1}}]
    snapshot = snapshot_of(4, 0, 4)
    manifest = write(
        tmp_path / "m",
        snapshot,
        {2: plan_of([2, 2], [0, 1, 2, 3]), 5: plan_of([1], [3])},
        stages=stages,
        seed=11,
        parent="p" * 64,
        signals="s" * 64,
    )
    identity = read_json(tmp_path / "m" / "manifest.json")["identity"]
    record = identity["epochs"][0]
    digests = [e.pop("logical_digest") for e in identity["epochs"]]
    assert all(len(d) == 64 for d in digests)
    assert identity == {
        "format": "batchloom-manifest",
        "schema_version": "1.0",
        "reader_features": [],
        "snapshot": snapshot.to_json(),
        "stages": stages,
        "seed": 11,
        "unit": "sliceable",
        "weight_semantics": None,
        "side_columns": [],
        "planned_fragments": [0],
        "epochs": [record, identity["epochs"][1]],
        "parent": "p" * 64,
        "materialized_from": None,
        "signals": "s" * 64,
    }
    assert record == {
        "epoch": 2,
        "steps": 2,
        "micro_batches": 2,
        "samples": 4,
        "smallest_micro_batch": 2,
        "last_step_micro_batches": 1,
        "micro_divisor": 1,
        "coverage": "subset",
        "distinct_rows": 4,
        "dropped_rows": 0,
        "weight_sum": 4 << 24,
    }
    assert manifest.parent == "p" * 64
    assert (manifest.epochs, manifest.seed) == ((2, 5), 11)
    assert manifest.snapshot == snapshot


def test_parts_are_named_and_hashed_by_the_rules(tmp_path: Path) -> None:
    small_manifest(tmp_path / "m")
    header = read_json(tmp_path / "m" / "manifest.json")
    parts = header["provenance"]["parts"]
    assert [p["epoch"] for p in parts] == [0, 1]
    assert {p.name for p in (tmp_path / "m").iterdir()} == {
        "manifest.json",
        *(p["name"] for p in parts),
    }
    for part in parts:
        data = (tmp_path / "m" / part["name"]).read_bytes()
        assert part["name"] == f"part-{sha256(data)}.arrow"
        assert (part["sha256"], part["bytes"]) == (sha256(data), len(data))
        frame, at = hashlib.sha256(), 0
        for block in part["blocks"]:
            body = data[block["offset"] : block["offset"] + block["length"]]
            assert block["sha256"] == sha256(body)
            frame.update(data[at : block["offset"]])
            at = block["offset"] + block["length"]
        frame.update(data[at:])
        assert part["frame_sha256"] == frame.hexdigest()


def test_a_part_is_plain_arrow(tmp_path: Path) -> None:
    """Any Arrow library reads a part: the columns, types and values of the specification."""
    small_manifest(tmp_path / "m")
    part = read_json(tmp_path / "m" / "manifest.json")["provenance"]["parts"][0]
    with pa.ipc.open_file(tmp_path / "m" / part["name"]) as file:
        table = file.read_all()
        assert file.num_record_batches == len(part["blocks"])
    table.validate(full=True)
    types = {f.name: f.type for f in table.schema}
    assert types == {
        "step": pa.uint64(),
        "micro": pa.uint16(),
        "rows": pa.large_list(pa.uint64()),
        "weights": pa.large_list(pa.float32()),
        "tag": pa.int32(),
        "score": pa.large_list(pa.float64()),
        "flag": pa.large_list(pa.bool_()),
        "near": pa.large_list(pa.large_list(pa.uint8())),
    }
    plan = Manifest.open(tmp_path / "m").epoch(0).plan()
    assert table["step"].to_pylist() == plan.step.tolist() == [0, 0, 1, 1]
    assert table["micro"].to_pylist() == plan.micro.tolist() == [0, 1, 0, 1]
    assert [len(r) for r in table["rows"].to_pylist()] == [10, 7, 3, 20]
    assert [x for r in table["rows"].to_pylist() for x in r] == plan.rows.tolist()
    assert [x for r in table["flag"].to_pylist() for x in r] == plan.side["flag"].tolist()
    near = plan.side["near"]
    assert isinstance(near, Ragged)
    assert [x for b in table["near"].to_pylist() for r in b for x in r] == near.values.tolist()


def test_unweighted_parts_have_no_weights_column(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m", snapshot_of(3), {0: plan_of([3])})
    with pa.ipc.open_file(tmp_path / "m" / manifest.parts[0].name) as file:
        assert file.schema.names == ["step", "micro", "rows"]
    assert manifest.epoch(0)[0].weights is None


def list_digest(hasher: Any, lists: list[Any], dtype: str) -> None:
    """A list column: int64 offsets from 0, then the values."""
    hasher.update(np.cumsum([0] + [len(x) for x in lists]).astype("<i8").tobytes())
    hasher.update(np.array([x for one in lists for x in one], dtype=dtype).tobytes())


def test_the_logical_digest_is_by_the_rules(tmp_path: Path) -> None:
    """Recomputed from Python lists, as the specification words it."""
    manifest = small_manifest(tmp_path / "m")
    for number in (0, 1):
        part = manifest.parts[number]
        whole = hashlib.sha256()
        with pa.ipc.open_file(tmp_path / "m" / part.name) as file:
            for index in range(file.num_record_batches):
                table = file.get_batch(index)
                block = hashlib.sha256()
                block.update(np.array(table["step"].to_pylist(), dtype="<u8").tobytes())
                block.update(np.array(table["micro"].to_pylist(), dtype="<u2").tobytes())
                list_digest(block, table["rows"].to_pylist(), "<u8")
                list_digest(block, table["weights"].to_pylist(), "<f4")
                block.update(np.array(table["tag"].to_pylist(), dtype="<i4").tobytes())
                list_digest(block, table["score"].to_pylist(), "<f8")
                list_digest(block, table["flag"].to_pylist(), "?")
                near = table["near"].to_pylist()
                offsets = np.cumsum([0] + [len(x) for x in near]).astype("<i8")
                block.update(offsets.tobytes())
                list_digest(block, [row for batch in near for row in batch], "<u1")
                whole.update(block.digest())
        assert manifest.records[number].logical_digest == whole.hexdigest()


def test_absent_weights_add_nothing_to_the_digest(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m", snapshot_of(3), {0: plan_of([2, 1])})
    block = hashlib.sha256()
    block.update(np.array([0, 1], "<u8").tobytes() + np.array([0, 0], "<u2").tobytes())
    block.update(np.array([0, 2, 3], "<i8").tobytes() + np.array([0, 1, 2], "<u8").tobytes())
    assert manifest.records[0].logical_digest == sha256(block.digest())


# --- identity -------------------------------------------------------------------------------------


def identities(tmp_path: Path) -> dict[str, str]:
    """Ids of manifests that each differ from the first in one thing that is decided."""
    plan, snapshot = plan_of([3, 3], [0, 1, 2, 3, 4, 5]), snapshot_of(6)
    weighted = plan_of([3, 3], [0, 1, 2, 3, 4, 5], weights=np.ones(6))
    side = {"tag": np.array([1, 2], np.int8)}
    cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "first": (snapshot, {0: plan}, {}),
        "seed": (snapshot, {0: plan}, {"seed": 1}),
        "stages": (snapshot, {0: plan}, {"stages": [{"method": "shuffle"}]}),
        "unit": (snapshot, {0: plan}, {"unit": "micro"}),
        "weights": (snapshot, {0: weighted}, {"weight_semantics": "importance"}),
        "semantics": (snapshot, {0: weighted}, {"weight_semantics": "cluster"}),
        "parent": (snapshot, {0: plan}, {"parent": "0" * 64}),
        "signals": (snapshot, {0: plan}, {"signals": "0" * 64}),
        "snapshot": (snapshot_of(6, 1), {0: plan}, {}),
        "epoch": (snapshot, {1: plan}, {}),
        "rows": (snapshot, {0: plan_of([3, 3], [1, 0, 2, 3, 4, 5])}, {}),
        "cut": (snapshot, {0: plan_of([2, 4], [0, 1, 2, 3, 4, 5])}, {}),
        "steps": (snapshot, {0: plan_of([3, 3], steps=[(0, 0), (0, 1)])}, {}),
        "side": (
            snapshot,
            {0: plan_of([3, 3], side=side)},
            {"side": [SideColumn("tag", "batch", "int8")]},
        ),
    }
    return {
        name: write(tmp_path / name, where, epochs, **options).manifest_id
        for name, (where, epochs, options) in cases.items()
    }


def test_each_decision_has_an_id_of_its_own(tmp_path: Path) -> None:
    ids = identities(tmp_path)
    assert len(set(ids.values())) == len(ids), ids


def test_paths_reports_and_deep_hashes_do_not_enter_the_id(tmp_path: Path) -> None:
    plan, snapshot = plan_of([3, 3]), snapshot_of(6)
    one = write(tmp_path / "a", snapshot, {0: plan})
    two = write(tmp_path / "b" / "c", snapshot, {0: plan}, deep_hashes={"data:part-0": "0" * 64})
    with ManifestWriter(tmp_path / "d", snapshot=snapshot) as writer:
        with writer.epoch(0):
            writer.append(plan)
        three = writer.commit(reports={"took": 1.5})
    assert one.manifest_id == two.manifest_id == three.manifest_id
    assert three.provenance["reports"] == {"took": 1.5}
    assert one.provenance["parts"] == two.provenance["parts"] == three.provenance["parts"]


SCRIPT = """
import sys
from pathlib import Path
from batchloom.dataplane import BatchPlan, ManifestWriter, open_dataset
from batchloom.dataplane.random import Permutation

data, target, chunk = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
dataset = open_dataset(data)
order = dataset.snapshot.ids_at(Permutation(dataset.rows, seed=7)[:])
stage = {name: 1 for name in {"seed", "method", "order", "size"}}  # in the order of their hashes
with ManifestWriter(target, snapshot=dataset.snapshot, seed=7, stages=[stage]) as writer:
    with writer.epoch(0):
        whole = BatchPlan.cut(order, 64)
        for start in range(0, len(whole), chunk):
            writer.append(whole.slice(start, min(start + chunk, len(whole))))
    manifest = writer.commit()
print(manifest.manifest_id, *[p.name for p in manifest.parts])
"""


def test_the_id_does_not_depend_on_the_process(tmp_path: Path) -> None:
    """Another root, hash seed, listing order, chunking and no numba: the same id and parts."""
    values = pa.table({"x": np.zeros(70_000, np.int8)})
    for root, order in (("one", range(4)), ("two/deeper", reversed(range(4)))):
        (tmp_path / root).mkdir(parents=True)
        for k in order:
            with pa.ipc.new_file(tmp_path / root / f"part-{k}.arrow", values.schema) as file:
                file.write_table(values)
    runs = [("one", "0", "1", "10000"), ("two/deeper", "1234", "0", "33")]
    printed = []
    for number, (root, hash_seed, numba, chunk) in enumerate(runs):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path / root, tmp_path / f"m{number}", chunk],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "BATCHLOOM_NUMBA": numba},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.append(out.stdout)
    assert printed[0] == printed[1]
    assert len(printed[0].split()) == 2


def test_arrows_environment_does_not_enter_the_bytes(tmp_path: Path) -> None:
    """ARROW_PRE_0_15_IPC_FORMAT would make pyarrow write another form of the same file."""
    script = (
        "import sys; from pathlib import Path\n"
        "from batchloom.tests.dataplane.helpers import small_manifest\n"
        "print([p.name for p in small_manifest(Path(sys.argv[1])).parts])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "m"],
        env={**os.environ, "ARROW_PRE_0_15_IPC_FORMAT": "1", "ARROW_PRE_1_0_METADATA_VERSION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == str([p.name for p in small_manifest(tmp_path / "n").parts])


# --- access ---------------------------------------------------------------------------------------


def test_an_epoch_that_is_not_there_is_named(tmp_path: Path) -> None:
    manifest = small_manifest(tmp_path / "m")
    with pytest.raises(ManifestError, match="holds no epoch 7; it holds 0, 1"):
        manifest.epoch(7)
    assert manifest.manifest_for(1) is manifest
    with pytest.raises(ManifestError, match="holds no epoch 2"):
        manifest.manifest_for(2)


def test_a_manifest_that_is_not_there_has_a_suggestion(tmp_path: Path) -> None:
    small_manifest(tmp_path / "my-plan")
    with pytest.raises(ManifestError, match=r"There is no manifest at .*Did you mean 'my-plan'"):
        Manifest.open(tmp_path / "my-plam")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"is not a manifest: it holds no manifest\.json"):
        Manifest.open(tmp_path / "empty")
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.open(tmp_path / "my-plan" / "manifest.json")


def test_blocks_are_kept_but_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchloom.dataplane.epoch_writer.BLOCK_MICRO_BATCHES", 1)
    monkeypatch.setattr("batchloom.dataplane.part_reader._CACHED_BYTES", 3 * 4096)
    manifest = write(tmp_path / "m", snapshot_of(8), {0: plan_of([1] * 8)})
    epoch, reader = manifest.epoch(0), manifest._readers[0]
    checked: list[int] = []
    verified = PartReader._verified_message

    def counted(self: PartReader, index: int, metadata: int) -> Any:
        checked.extend([] if index in self._verified else [index])
        return verified(self, index, metadata)

    monkeypatch.setattr(PartReader, "_verified_message", counted)
    for k in [0, 1, 2, 3, 4, 5, 6, 7, 0, 7, 1]:
        assert epoch[k].rows.tolist() == [k]
        assert len(reader._cache._blocks) <= 3
    assert checked == list(range(8))  # hashed once, however often they are read
    assert epoch._at(1)[0] is epoch._at(1)[0]


def test_threads_share_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr("batchloom.dataplane.epoch_writer.BLOCK_MICRO_BATCHES", 3)
    monkeypatch.setattr("batchloom.dataplane.part_reader._CACHED_BYTES", 2 * 4096)
    epoch = write(tmp_path / "m", snapshot_of(300), {0: plan_of([1] * 300)}).epoch(0)
    order = np.random.default_rng(0).permutation(3000) % 300
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: int(epoch[int(k)].rows[0]), order))
    assert found == order.tolist()
