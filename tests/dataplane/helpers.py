"""What the tests of the data plane share: small snapshots, plans and manifests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import compiled
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.manifest_writer import ManifestWriter
from batchloom.dataplane.plan import BatchPlan, Ragged, SideColumn
from batchloom.dataplane.snapshot import Fragment, Snapshot

# One side column of each kind, and each kind of number.
SIDE = (
    SideColumn("tag", "batch", "int32"),
    SideColumn("score", "row", "float64"),
    SideColumn("flag", "row", "bool"),
    SideColumn("near", "csr", "uint8"),
)


def snapshot_of(*rows: int, first_ids: Sequence[int] | None = None) -> Snapshot:
    """Return a snapshot of fragments of so many rows, with the first row ids given or dense."""
    fragments, start = [], 0
    for number, count in enumerate(rows):
        first = start if first_ids is None else first_ids[number]
        name = f"part-{number}.parquet"
        fragments.append(Fragment("data", name, count, 100 + number, f"{number:064x}", first))
        start = first + count
    return Snapshot(tuple(fragments), start, "0" * 64)


def plan_of(
    sizes: Sequence[int],
    rows: Sequence[int] | np.ndarray | None = None,
    *,
    steps: Sequence[tuple[int, int]] | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
    side: Mapping[str, Any] | None = None,
) -> BatchPlan:
    """Return a plan of micro-batches of so many rows; rows 0, 1, 2 … and one a step by default."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    rows = np.arange(offsets[-1]) if rows is None else np.asarray(rows)
    steps = [(k, 0) for k in range(len(sizes))] if steps is None else steps
    return BatchPlan(
        offsets,
        rows.astype(np.uint64),
        None if weights is None else np.asarray(weights, np.float32),
        np.array([s for s, _ in steps], dtype=np.uint64),
        np.array([m for _, m in steps], dtype=np.uint16),
        side or {},
    )


def sides_of(sizes: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
    """Return values of the columns of `SIDE`, the bits of NaN and of -0.0 among them."""
    rows = int(sum(sizes))
    score = rng.normal(size=rows)
    score[::5] = np.nan
    score[1::5] = -0.0
    lengths = rng.integers(0, 3, rows)
    return {
        "tag": rng.integers(-100, 100, len(sizes)).astype(np.int32),
        "score": score,
        "flag": rng.random(rows) < 0.5,
        "near": Ragged(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            rng.integers(0, 256, int(lengths.sum())).astype(np.uint8),
        ),
    }


def write(
    target: Path,
    snapshot: Snapshot,
    epochs: Mapping[int, BatchPlan | Sequence[BatchPlan]],
    **options: Any,
) -> Manifest:
    """Write a manifest of some epochs, each a plan or the pieces of one."""
    with ManifestWriter(target, snapshot=snapshot, **options) as writer:
        for number, plans in epochs.items():
            with writer.epoch(number):
                for plan in [plans] if isinstance(plans, BatchPlan) else plans:
                    writer.append(plan)
        return writer.commit()


def small_manifest(target: Path, **options: Any) -> Manifest:
    """Write a manifest of two epochs of 40 rows each, weights and all kinds of side columns."""
    rng = np.random.default_rng(5)
    sizes = [10, 7, 3, 20]
    plans = {
        epoch: plan_of(
            sizes,
            rng.permutation(40),
            steps=[(0, 0), (0, 1), (1, 0), (1, 1)],
            weights=rng.random(40),
            side=sides_of(sizes, rng),
        )
        for epoch in (0, 1)
    }
    given = {"weight_semantics": "importance", "side": SIDE, "seed": 3, **options}
    return write(target, snapshot_of(15, 0, 25), plans, **given)


def assert_same_plan(found: BatchPlan, expected: BatchPlan) -> None:
    """Compare two plans to the bit."""
    pairs = [
        (getattr(found, f), getattr(expected, f)) for f in ("offsets", "rows", "step", "micro")
    ]
    assert (found.weights is None) == (expected.weights is None)
    if found.weights is not None:
        pairs.append((found.weights, expected.weights))
    assert set(found.side) == set(expected.side)
    for name, value in expected.side.items():
        there = found.side[name]
        assert isinstance(there, Ragged) == isinstance(value, Ragged)
        if isinstance(value, Ragged):
            assert isinstance(there, Ragged)
            pairs += [(there.offsets, value.offsets), (there.values, value.values)]
        else:
            pairs.append((there, value))
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


# --- the header, by hand --------------------------------------------------------------------------


def compact(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def rewrite_header(folder: Path, change: Any) -> None:
    """Change a manifest's header, with hashes that fit, as another version would write it."""
    path = folder / "manifest.json"
    header = read_json(path)
    change(header)
    both = {"identity": header["identity"], "provenance": header["provenance"]}
    header["manifest_id"] = sha256(compact(header["identity"]))
    header["header_sha256"] = sha256(compact(both))
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, indent=2)
    path.write_bytes(text.encode() + b"\n")


def litter(folder: Path) -> list[str]:
    """Return the names of what was staged beside a target."""
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def use_form(patch: pytest.MonkeyPatch, form: str) -> None:
    """Use the ``numpy`` or the ``numba`` form of all loops, whatever the size of their input."""
    patch.setenv("BATCHLOOM_NUMBA", str(int(form == "numba")))
    patch.setattr(compiled, "_COMPILED_FROM", 0)
    for state in ("_COMPILED_ONCE_LOADED", "_COMPILED_WITH_NUMBA"):  # whatever ran before
        patch.setattr(compiled, state, 0)
    assert (compiled.compiled_kernels(1) is not None) == (form == "numba")
