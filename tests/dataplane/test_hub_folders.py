"""Hugging Face folders open as they are, their splits as sources."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import DatasetError
from batchloom.dataplane.hub_folders import is_cache, splits_of
from batchloom.jobs import plan
from batchloom.jobs.progress import QuietProgress
from batchloom.samplers import ManifestLoader


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return pytest.importorskip("datasets")


def table(start: int, stop: int) -> pa.Table:
    return pa.table({"i": np.arange(start, stop), "text": [f"t{k}" for k in range(start, stop)]})


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A clone of a hub repository."""
    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text("---\nconfigs: …\n---\n")
    (root / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (root / ".git").mkdir()
    pq.write_table(table(900, 910), root / ".git" / "train-00000-of-00001.parquet")
    for name, start, stop in (
        ("train-00000-of-00002", 0, 40),
        ("train-00001-of-00002", 40, 70),
        ("test-00000-of-00001", 100, 110),
        ("train_sft-00000-of-00001-0f3a", 200, 205),
    ):
        pq.write_table(table(start, stop), root / "data" / f"{name}.parquet")
    return root


def by_source(dataset: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for part in dataset.scan(["i"]):
        source = part.fragment.label.split(":")[0]
        found.setdefault(source, []).extend(part.batch["i"].to_pylist())
    return found


SPLITS = {
    "test": list(range(100, 110)),
    "train": list(range(70)),
    "train_sft": list(range(200, 205)),
}


def test_a_hub_folder_is_one_source_a_split(hub: Path) -> None:
    assert by_source(open_dataset(hub)) == SPLITS
    for file in (hub / "data").iterdir():
        shutil.move(file, hub / file.name)
    (hub / "data").rmdir()
    assert by_source(open_dataset(hub)) == SPLITS


def test_a_hub_folder_on_a_store(hub: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    try:
        for name in ("README.md", *(f"data/{p.name}" for p in (hub / "data").iterdir())):
            store.pipe_file(f"/hub-folder/{name}", (hub / name).read_bytes())
        there = open_dataset("memory://hub-folder")
        assert by_source(there) == SPLITS
        assert there.snapshot == open_dataset(hub).snapshot
    finally:
        store.rm("/hub-folder", recursive=True)


def test_a_plan_of_one_split_opens_on_the_whole_folder(hub: Path, tmp_path: Path) -> None:
    planned = plan("shuffle", {"train": str(hub / "data" / "train-*.parquet")}, out=tmp_path / "p",
                   batch_size=16, workers=0)  # fmt: skip
    assert planned.snapshot.rows == 70
    batches = list(ManifestLoader(planned, hub, columns=["i"]))
    assert sorted(i for b in batches for i in b["i"].tolist()) == list(range(70))


def test_planning_all_splits_is_said(hub: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Told(QuietProgress):
        def warn(self, text: str) -> None:
            told.append(text)

    plan("shuffle", hub, out=tmp_path / "p", batch_size=16, workers=0, progress=Told())
    assert told == [
        f"{hub} holds the splits test, train, train_sft, and all of them are planned. Name what to "
        "train on to plan it alone, such as train=FILES."
    ]
    named = {"all": str(hub)}
    assert {f.source for f in open_dataset(named).snapshot.fragments} == {"all"}
    plan("shuffle", named, out=tmp_path / "q", batch_size=16, workers=0, progress=Told())
    assert len(told) == 1


def test_a_snapshot_without_splits_opens_as_it_was_made(hub: Path) -> None:
    """What was planned as one source `data` stays one."""
    listed = open_dataset([*map(str, sorted((hub / "data").iterdir()))])
    assert {f.source for f in listed.snapshot.fragments} == {"data"}
    assert open_dataset(hub, snapshot=listed.snapshot).snapshot is listed.snapshot
    grown = open_dataset(hub, since=listed.snapshot).snapshot
    assert [(f.source, f.first_row_id) for f in grown.fragments] == [
        (f.source, f.first_row_id) for f in listed.snapshot.fragments
    ]
    extended = open_dataset(hub, since=open_dataset(hub).snapshot)
    assert extended.snapshot == open_dataset(hub).snapshot


def test_other_files_make_it_a_plain_folder(hub: Path) -> None:
    pq.write_table(table(0, 1), hub / "data" / "extra.parquet")
    assert set(by_source(open_dataset(hub))) == {"data"}


def test_a_saved_dict_is_one_source_a_split(datasets: Any, tmp_path: Path) -> None:
    made = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict({"i": list(range(50))}),
            "validation": datasets.Dataset.from_dict({"i": list(range(50, 60))}),
            "odd-name": datasets.Dataset.from_dict({"i": [99]}),
        }
    )
    made.save_to_disk(tmp_path / "d", num_shards={"train": 3, "validation": 1, "odd-name": 1})
    dataset = open_dataset(tmp_path / "d")
    assert by_source(dataset) == {
        "train": list(range(50)), "validation": list(range(50, 60)), "odd-name": [99],
    }  # fmt: skip
    again = datasets.load_from_disk(str(tmp_path / "d"))
    for name in made:
        assert by_source(open_dataset(tmp_path / "d" / name))["data"] == again[name]["i"][:]


def test_what_map_and_filter_cache_beside_a_saved_dataset_is_no_data(
    datasets: Any, tmp_path: Path
) -> None:
    datasets.Dataset.from_dict({"i": list(range(20))}).save_to_disk(tmp_path / "d")
    before = open_dataset(tmp_path / "d").snapshot
    opened = datasets.load_from_disk(str(tmp_path / "d"))
    doubled = opened.map(lambda row: {"i": row["i"] * 2}, keep_in_memory=False)
    opened.filter(lambda row: row["i"] > 5, num_proc=2)
    assert doubled["i"][3] == 6
    assert list((tmp_path / "d").glob("cache-*.arrow"))
    assert open_dataset(tmp_path / "d").snapshot == before


def test_positions_are_those_of_the_loaded_dataset(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"i": list(range(100, 130))}).save_to_disk(
        tmp_path / "d", num_shards=11
    )
    dataset = open_dataset(tmp_path / "d")
    whole = datasets.load_from_disk(str(tmp_path / "d"))
    ids = dataset.snapshot.ids_at(np.arange(30))
    assert dataset.take(ids)["i"].to_pylist() == whole["i"][:]


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(DatasetError, match="There is no Parquet or Arrow file"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    ("paths", "others", "expected"),
    [
        (["part-00000-of-00002.parquet"], [], {}),
        (["train.parquet"], ["README.md"], {}),
        (["train-00000-of-00001.parquet"], [], {"train-00000-of-00001.parquet": "train"}),
        (["en/train-00000-of-00001.parquet"], ["README.md"], {}),
        (["data/val-00000-of-00001.arrow"], [], {"data/val-00000-of-00001.arrow": "val"}),
        (["trainer-00000-of-00001.parquet"], [], {}),
        (["a/x.arrow", "y.arrow"], ["dataset_dict.json"], {"a/x.arrow": "a"}),
        ([], [], {}),
    ],
)
def test_what_names_a_split(paths: list[str], others: list[str], expected: dict[str, str]) -> None:
    assert splits_of(paths, others) == expected


def test_what_is_a_cache() -> None:
    assert is_cache("cache-0123abcdef.arrow", ["state.json"])
    assert is_cache("train/cache-0123abcdef_00001_of_00002.arrow", ["train/state.json"])
    assert not is_cache("cache-0123abcdef.arrow", [])
    assert not is_cache("train/cache-0123abcdef.arrow", ["state.json"])
    assert not is_cache("cache-index.arrow", ["state.json"])
