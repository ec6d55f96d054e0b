"""Jobs over an object store: the same plan as on disk, by function, by job file, by command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from batchloom.dataplane.errors import JobSpecError, ManifestConflictError, StorageError
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.series import open_plan
from batchloom.jobs import edit, gc, plan, trace, verify
from batchloom.jobs.diffing import diff
from batchloom.jobs.materializing import materialize
from batchloom.jobs.scanning import scan
from batchloom.tests.dataplane.store import Store
from batchloom.tests.jobs.conftest import ROWS
from batchloom.tests.jobs.test_cli import batchloom, failed


@pytest.fixture
def data(store: Store, small: Path) -> str:
    """The small dataset on the store."""
    for path in small.iterdir():
        store.put(f"data/{path.name}", path.read_bytes())
    return store.at("data")


def on(store: Store) -> dict[str, Any]:
    return {"storage_options": store.options}


def test_the_same_plan_from_store_to_store(
    store: Store, data: str, small: Path, tmp_path: Path
) -> None:
    """On processes of their own, which read the store by themselves; k-means reads all rows."""
    options: dict[str, Any] = {"columns": ["x"], "k": 5, "batch_size": 32, "epochs": (0, 2)}
    local = plan("kmeans", small, out=tmp_path / "plan", workers=0, **options)
    made = plan("kmeans", data, out=store.at("plan"), workers=2, **options, **on(store))
    assert made.manifest_id == local.manifest_id
    assert made.provenance["parts"] == local.provenance["parts"]
    crossed = plan("kmeans", data, out=tmp_path / "crossed", workers=0, **options, **on(store))
    assert crossed.manifest_id == local.manifest_id
    assert diff(store.at("plan"), tmp_path / "plan", **on(store)).same


def test_selects_hashes_and_series(store: Store, data: str, small: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"where": "a > 0", "split": "train=0.7,val=0.3:val"}
    options |= {"batch_size": 16, "series": True, "deep": True, "workers": 0}
    for epochs in ((0, 2), (2, 3)):
        local = plan("shuffle", small, out=tmp_path / "s", epochs=epochs, **options)
        made = plan("shuffle", data, out=store.at("s"), epochs=epochs, **options, **on(store))
        assert made.manifest_id == local.manifest_id
    found = verify(store.at("s"), data, deep=True, **on(store))
    assert found == verify(tmp_path / "s", small, deep=True)
    assert found.contents > 0
    with pytest.raises(ManifestConflictError, match="holds another manifest"):
        plan("shuffle", data, out=store.at("s"), epochs=(2, 3), seed=1, **options, **on(store))


def test_recipes(store: Store, data: str, small: Path, tmp_path: Path) -> None:
    """The bitmap is sent before the header, and read when a row is asked for."""
    options: dict[str, Any] = {"where": "a > 0", "batch_size": 16, "form": "recipe", "workers": 0}
    local = plan("shuffle", small, out=tmp_path / "r", **options)
    made = plan("shuffle", data, out=store.at("r"), **options, **on(store))
    assert made.manifest_id == local.manifest_id
    assert store.names("r/") == sorted(f"r/{p.name}" for p in (tmp_path / "r").iterdir())
    assert made.epoch(0).plan().rows.tolist() == local.epoch(0).plan().rows.tolist()
    copy = materialize(store.at("r"), out=store.at("copy"), **on(store))
    assert copy.epoch(0).plan().rows.tolist() == local.epoch(0).plan().rows.tolist()
    store.delete(f"r/{made.bitmaps[0].name}")
    with pytest.raises(Exception, match="bitmap-.* is missing; the manifest names it"):
        Manifest.open(store.at("r"), **on(store))


def test_snapshots_scans_and_edits(store: Store, data: str, tmp_path: Path) -> None:
    scanned = scan(data, out=store.at("snap/a.json"), deep=True, **on(store))
    assert str(scanned.deep_file).startswith(store.at("snap/deep-"))
    options: dict[str, Any] = {"batch_size": 16, "workers": 0, **on(store)}
    first = plan("shuffle", data, out=store.at("p"), snapshot=store.at("snap/a.json"), **options)
    again = plan("shuffle", data, out=store.at("q"), since=store.at("p"), **options)
    assert again.manifest_id == first.manifest_id
    child = edit(store.at("p"), out=store.at("child"), epoch=0, skip_steps="3:5", **on(store))
    assert child.parent == first.manifest_id
    assert child.epoch(0).record.steps == first.epoch(0).record.steps - 2
    two = plan("shuffle", data, out=store.at("two"), epochs=(0, 2), **options)
    for out in (store.at("kept"), tmp_path / "kept"):  # epoch 1 is taken over, part by part
        kept = edit(store.at("two"), out=out, epoch=0, skip_steps="3:5", **on(store))
        assert kept.epoch(1).plan().rows.tolist() == two.epoch(1).plan().rows.tolist()
        verify(out, data, **on(store))
    traced = trace(store.at("p"), data, row=7, **on(store))
    assert traced.rows[0].found


def test_a_target_inside_the_dataset(store: Store, data: str) -> None:
    """However the place is spelt."""
    for inside in (data, f"{data}/plan", f"{data}/a/b/", f"{data}/plan".replace("s3:", "s3a:")):
        with pytest.raises(JobSpecError, match="lies inside the dataset"):
            plan("shuffle", {"a": f"{data}/"}, out=inside, **on(store))
    plan("shuffle", data, out=f"{data}-plan", workers=0, **on(store))


def test_a_target_that_cannot_be_is_refused_before_the_data_are_read(
    store: Store, data: str, tmp_path: Path
) -> None:
    store.ignores_conditions = True
    with store.counting() as made, pytest.raises(StorageError, match="Write to a local directory"):
        plan("kmeans", data, out=store.at("p"), columns=["x"], k=3, **on(store))
    assert not [r for r in made if "part-" in r.path and r.received]
    assert [n for n in store.names() if not n.startswith("data/")] == []
    plan("shuffle", data, out=tmp_path / "p", workers=0, **on(store))


def test_gc_of_a_store(store: Store, data: str) -> None:
    plan("shuffle", data, out=store.at("p"), workers=0, **on(store))
    store.put(f"p/part-{'1' * 64}.arrow", b"12")
    found = gc(store.url, older_than="0s", **on(store))
    assert [(f.kind, f.bytes) for f in found.leftovers] == [("unreferenced", 2)]
    assert gc(store.url, **on(store)).leftovers == ()
    assert gc(store.url, older_than="0s", delete=True, **on(store)).bytes == 2
    assert gc(store.url, older_than="0s", **on(store)).leftovers == ()
    verify(store.at("p"), data, **on(store))


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line(store: Store, data: str, tmp_path: Path) -> None:
    """By option and by the usual environment; a job file needs no credentials in it."""
    given = ("--storage-options", json.dumps(store.options))
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_ENDPOINT_URL": store.endpoint,
    }
    small_plan = ("--batch-size", "32", "--workers", "0")
    ran = batchloom("plan", "shuffle", data, "--out", store.at("plan"), *small_plan, *given)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(store.at("plan"))
    made = open_plan(store.at("plan"), **on(store))
    job = tmp_path / "job.toml"
    job.write_text(f'dataset = "{data}"\nout = "{store.at("by-file")}"\nbatch_size = 32\n')
    ran = batchloom("run", job, *given)
    assert ran.returncode == 0, ran.stderr
    for arguments in (
        ("inspect", store.at("plan"), "--step", "2"),
        ("verify", store.at("plan"), "--dataset", data),
        ("diff", store.at("plan"), store.at("by-file")),
        ("trace", store.at("plan"), "--row", "3"),
    ):
        by_option = batchloom(*arguments, "--json", *given)
        by_environment = batchloom(*arguments, "--json", env=environment)
        assert by_option.returncode == by_environment.returncode == 0, by_option.stderr
        assert by_option.stdout == by_environment.stdout
    assert json.loads(batchloom("inspect", store.at("plan"), "--json", *given).stdout)[
        "manifest_id"
    ] == (made.manifest_id if isinstance(made, Manifest) else "")
    assert made.epochs == (0,)
    assert sum(r.samples for r in made.manifest_for(0).records.values()) == ROWS


def test_what_the_command_line_says(store: Store, data: str) -> None:
    given = ("--storage-options", json.dumps(store.options))
    wrong = ("--storage-options", json.dumps({**store.options, "key": "WRONG", "secret": "hush"}))
    out = ("--out", store.at("plan"))
    for code, said, arguments in (
        (1, "nothing can be committed to 'http'", ("plan", "shuffle", data, "--out", "http://h/p")),
        (2, "lies inside the dataset", ("plan", "shuffle", data, "--out", f"{data}/p")),
        (1, "There is no manifest at s3://", ("inspect", store.at("none"))),
        (1, "no such file or directory", ("plan", "shuffle", store.at("none"), *out)),
        (1, "There is no manifest at s3://", ("verify", "s3://no-such-bucket/plan")),
    ):
        assert said in failed(code, *arguments, *given)
    for arguments in (("plan", "shuffle", data, *out), ("inspect", store.at("plan"))):
        line = failed(1, *arguments, *wrong)
        assert "permission denied" in line
        assert "hush" not in line
        assert "\n" not in line
