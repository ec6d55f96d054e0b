"""Damage to a manifest: each changed byte is found, its file named, and no wrong row is seen."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane import epoch_writer
from batchloom.dataplane.errors import ManifestCorruptError, ManifestError, ManifestVersionError
from batchloom.dataplane.manifest import Manifest
from batchloom.tests.dataplane.helpers import (
    SIDE,
    plan_of,
    read_json,
    rewrite_header,
    sides_of,
    snapshot_of,
    write,
)

HEADER = "manifest.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of two epochs of equal shape: two parts each, of two blocks and one."""
    folder = tmp_path_factory.mktemp("whole") / "m"
    rng = np.random.default_rng(0)
    sizes = [4, 5, 6, 5, 3, 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_writer, "BLOCK_MICRO_BATCHES", 2)
        patch.setattr(epoch_writer, "PART_ROWS", 15)
        plans = {
            epoch: plan_of(
                sizes,
                rng.permutation(40)[: sum(sizes)],
                weights=rng.random(sum(sizes)),
                side={k: v for k, v in sides_of(sizes, rng).items() if k != "near"},
            )
            for epoch in (0, 1)
        }
        options: dict[str, Any] = {"side": SIDE[:3], "weight_semantics": "importance"}
        manifest = write(folder, snapshot_of(40), plans, **options)
    assert [len(p.blocks) for p in manifest.parts] == [2, 1, 2, 1]
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "m")


def parts_of(folder: Path) -> list[str]:
    return [p["name"] for p in read_json(folder / HEADER)["provenance"]["parts"]]


def drain(folder: Path, seen: list[Any]) -> None:
    """Read all micro-batches into `seen`, in order, as bytes."""
    manifest = Manifest.open(folder)
    for number in manifest.epochs:
        for batch in manifest.epoch(number):  # type: ignore[attr-defined]
            side = [np.asarray(v).tobytes() for v in batch.side.values()]
            seen.append((batch.step, batch.micro, batch.rows.tobytes(), *side))
            seen[-1] = (*seen[-1], batch.weights.tobytes())


def assert_refused(folder: Path, whole: Path, file: str) -> str:
    """Assert that damage to a file is found in time; return what is said."""
    expected: list[Any] = []
    drain(whole, expected)
    seen: list[Any] = []
    with pytest.raises(ManifestCorruptError) as caught:
        drain(folder, seen)
    assert file in str(caught.value)
    assert len(seen) < len(expected)
    assert seen == expected[: len(seen)]
    with pytest.raises(ManifestCorruptError) as at_once:
        Manifest.open(folder, verify="all")
    assert file in str(at_once.value)
    return str(caught.value)


# --- flips ----------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_is_found(whole: Path, tmp_path: Path) -> None:
    """Some 90 random bytes of the header and 60 of each of the four parts."""
    rng = np.random.default_rng(1)
    tries = 0
    for file in [HEADER, *parts_of(whole)]:
        data = (whole / file).read_bytes()
        for place in rng.choice(len(data), 90 if file == HEADER else 60, replace=False).tolist():
            folder = shutil.copytree(whole, tmp_path / str(tries))
            damaged = bytearray(data)
            damaged[place] ^= int(rng.integers(1, 256))
            (folder / file).write_bytes(damaged)
            message = assert_refused(folder, whole, file)
            assert "expected" in message or file == HEADER
            shutil.rmtree(folder)
            tries += 1
    assert tries == 330


def test_every_bit_of_a_part_counts(whole: Path, copy: Path) -> None:
    """One bit in each byte of a part, paddings included, is seen by `verify`."""
    name = parts_of(whole)[1]
    data = bytearray((whole / name).read_bytes())
    manifest = Manifest.open(copy)
    for place in range(0, len(data), 7):
        data[place] ^= 1 << place % 8
        (copy / name).write_bytes(data)
        with pytest.raises(ManifestCorruptError, match=name):
            Manifest.open(copy, verify="all")
        data[place] ^= 1 << place % 8
    (copy / name).write_bytes(data)
    manifest = Manifest.open(copy, verify="all")
    manifest.verify(deep=True)


def test_what_is_said_of_a_damaged_block(whole: Path, copy: Path) -> None:
    """Its file, number, expected and found hash; other blocks are still delivered."""
    part = read_json(copy / HEADER)["provenance"]["parts"][0]
    block = part["blocks"][1]
    data = bytearray((copy / part["name"]).read_bytes())
    data[block["offset"] + 9] ^= 4
    (copy / part["name"]).write_bytes(data)
    epoch = Manifest.open(copy).epoch(0)
    expected = Manifest.open(whole).epoch(0)
    for k in (0, 1, 4, 5):
        assert epoch[k].rows.tolist() == expected[k].rows.tolist()
    for _ in range(2):  # it is not delivered the second time either
        for k in (2, 3):
            with pytest.raises(ManifestCorruptError) as caught:
                epoch[k]
            message = str(caught.value)
            assert f"{part['name']}, block 1: expected {block['sha256']}, found" in message
            assert "No row of it was delivered" in message
    for reach in (lambda: epoch.plan(1, 5), lambda: epoch.step(3), lambda: list(epoch.blocks())):
        with pytest.raises(ManifestCorruptError, match="block 1"):
            reach()


# --- files ----------------------------------------------------------------------------------------

CUTS: dict[str, Callable[[bytes], bytes]] = {
    "to nothing": lambda data: b"",
    "to half": lambda data: data[: len(data) // 2],
    "by a byte": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "doubled": lambda data: data + data,
    "garbage": lambda data: bytes(reversed(data)),
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("which", range(5))
def test_a_cut_file_is_found(whole: Path, copy: Path, which: int, cut: str) -> None:
    file = [HEADER, *parts_of(whole)][which]
    (copy / file).write_bytes(CUTS[cut]((whole / file).read_bytes()))
    assert_refused(copy, whole, file)


def test_a_part_that_was_cut_says_its_sizes(whole: Path, copy: Path) -> None:
    name = parts_of(whole)[0]
    size = (whole / name).stat().st_size
    os.truncate(copy / name, size - 1)
    with pytest.raises(ManifestCorruptError, match=f"expected {size:,} bytes, found {size - 1:,}"):
        Manifest.open(copy)


@pytest.mark.parametrize("which", range(4))
def test_a_missing_part_is_found_at_open(whole: Path, copy: Path, which: int) -> None:
    name = parts_of(whole)[which]
    (copy / name).unlink()
    with pytest.raises(ManifestCorruptError, match=f"{name} is missing"):
        Manifest.open(copy)


def test_a_missing_header_is_no_manifest(copy: Path) -> None:
    (copy / HEADER).unlink()
    with pytest.raises(ManifestError, match=r"is not a manifest: it holds no manifest\.json"):
        Manifest.open(copy)


def test_a_folder_in_place_of_a_file(whole: Path, copy: Path) -> None:
    name = parts_of(whole)[0]
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(ManifestCorruptError, match=name):
        Manifest.open(copy)
    (copy / HEADER).unlink()
    (copy / HEADER).mkdir()
    with pytest.raises(ManifestError, match=r"manifest\.json cannot be read: Is a directory"):
        Manifest.open(copy)


def test_parts_that_changed_places_are_found(whole: Path, copy: Path) -> None:
    """The first parts of both epochs have one shape, size and frame: only bodies differ."""
    first, second, third, _ = parts_of(whole)
    records = Manifest.open(whole).parts
    assert (records[0].bytes, records[0].frame_sha256) == (
        records[2].bytes,
        records[2].frame_sha256,
    )
    for one, other in ((first, third), (first, second)):
        shutil.copy(whole / one, copy / other)
        shutil.copy(whole / other, copy / one)
        assert_refused(copy, whole, one)
        for name in (one, other):
            shutil.copy(whole / name, copy / name)
    drain(copy, [])


def test_strange_files_beside_the_parts_are_left_alone(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    (copy / ".m.staging-123").mkdir()
    (copy / "part-000000.tmp").write_bytes(b"x")
    Manifest.open(copy, verify="all").verify(deep=True)


def test_verify_all_touches_each_byte_before_the_first_batch(whole: Path, copy: Path) -> None:
    part = read_json(copy / HEADER)["provenance"]["parts"][3]
    data = bytearray((copy / part["name"]).read_bytes())
    data[part["blocks"][0]["offset"]] ^= 1
    (copy / part["name"]).write_bytes(data)
    manifest = Manifest.open(copy)  # the last block was not touched
    assert manifest.epoch(0)[0].rows.size == 4
    with pytest.raises(ManifestCorruptError, match=r"block 0"):
        manifest.verify()
    with pytest.raises(ManifestCorruptError, match=r"block 0"):
        Manifest.open(copy, verify="all")


def test_verify_looks_again_at_blocks_it_has_seen(copy: Path) -> None:
    part = Manifest.open(copy).parts[0]
    whole = (copy / part.name).read_bytes()
    for place, where in ((part.blocks[0].offset, "block 0"), (part.bytes - 1, "frame")):
        manifest = Manifest.open(copy, verify="all")
        with open(copy / part.name, "r+b") as file:
            file.seek(place)
            file.write(bytes([whole[place] ^ 1]))
        with pytest.raises(ManifestCorruptError, match=where):
            manifest.verify()
        with open(copy / part.name, "r+b") as file:  # in place: it is mapped
            file.write(whole)
        manifest.verify()


# --- header edits ---------------------------------------------------------------------------------


def swap(old: str, new: str) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return edit


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "a newline more": lambda data: data + b"\n",
    "a newline less": lambda data: data[:-1],
    "a space": swap('"seed": 0', '"seed":  0'),
    "a leading space": lambda data: b" " + data,
    "a tab": swap("\n  ", "\n\t"),
    "carriage returns": lambda data: data.replace(b"\n", b"\r\n"),
    "a mark of byte order": lambda data: b"\xef\xbb\xbf" + data,
    "compact": lambda data: json.dumps(json.loads(data), sort_keys=True).encode(),
    "four spaces": lambda data: json.dumps(json.loads(data), sort_keys=True, indent=4).encode(),
    "escapes": swap('"importance"', '"\\u0069mportance"'),
    "a float for an int": swap('"seed": 0', '"seed": 0.0'),
    "seed": swap('"seed": 0', '"seed": 1'),
    "unit": swap('"sliceable"', '"micro"'),
    "step count": swap('"steps": 6', '"steps": 7'),
    "samples": swap('"samples": 27', '"samples": 26'),
    "version": swap('"schema_version": "1.0"', '"schema_version": "2.0"'),
    "minor version": swap('"schema_version": "1.0"', '"schema_version": "1.1"'),
    "no version": swap('"schema_version": "1.0"', '"schema_version": null'),
    "format": swap('"batchloom-manifest"', '"batchloom-manifesto"'),
    "a feature": swap('"reader_features": []', '"reader_features": ["recipe"]'),
    "python": swap('"python": "', '"python": "9'),
    "report": swap('"reports": {}', '"reports": {"a": 1}'),
    "a key twice": swap('"seed": 0', '"seed": 0,\n    "seed": 0'),
    "a key more": swap('{\n  "header_sha256"', '{\n  "extra": 1,\n  "header_sha256"'),
    "nan": swap('"seed": 0', '"seed": NaN'),
    "not utf-8": lambda data: data.replace(b"importance", b"importanc\xff", 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_header_is_found(whole: Path, copy: Path, edit: str) -> None:
    data = EDITS[edit]((whole / HEADER).read_bytes())
    assert data != (whole / HEADER).read_bytes()
    (copy / HEADER).write_bytes(data)
    assert_refused(copy, whole, HEADER)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b"3",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\x00\x00",
        b"PK\x03\x04",
        json.dumps({"name": "my extension", "manifest_version": 3}).encode(),
        json.dumps(
            dict.fromkeys(["manifest_id", "header_sha256", "identity", "provenance"])
        ).encode(),
    ],
    ids=range(13),
)
def test_a_header_that_is_none_is_found(copy: Path, text: bytes) -> None:
    (copy / HEADER).write_bytes(text)
    with pytest.raises(ManifestCorruptError, match=HEADER):
        Manifest.open(copy)


@pytest.mark.parametrize("key", ["manifest_id", "header_sha256"])
def test_a_hash_of_the_header_that_does_not_fit(whole: Path, copy: Path, key: str) -> None:
    header = read_json(whole / HEADER)
    old = header[key]
    new = "0" * 64
    (copy / HEADER).write_bytes((whole / HEADER).read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(ManifestCorruptError, match=f"expected .* {new}, found {old}"):
        Manifest.open(copy)


def change_identity(**changes: Any) -> Callable[[Any], None]:
    return lambda header: header["identity"].update(changes)


def change_part(index: int, **changes: Any) -> Callable[[Any], None]:
    return lambda header: header["provenance"]["parts"][index].update(changes)


def change_block(index: int, **changes: Any) -> Callable[[Any], None]:
    return lambda header: header["provenance"]["parts"][0]["blocks"][index].update(changes)


CRAFTED: dict[str, Callable[[Any], None]] = {
    "no epochs": lambda header: header["identity"].pop("epochs"),
    "epochs of another kind": change_identity(epochs=3),
    "an epoch without a count": lambda header: header["identity"]["epochs"][0].pop("steps"),
    "fewer micro-batches": lambda header: header["identity"]["epochs"][0].update(micro_batches=5),
    "no part": lambda header: header["provenance"].update(parts=[]),
    "a part elsewhere": change_part(0, name="../../etc/passwd"),
    "a part by another name": change_part(0, name="part-x.arrow", sha256="x"),
    "a part without a size": change_part(0, bytes=None),
    "a block that overlaps": change_block(1, offset=0),
    "a block of negative length": change_block(0, length=-8),
    "a block beyond the end": change_block(1, length=10**9),
    "features of another kind": change_identity(reader_features=7),
    "a version of words": change_identity(schema_version="one"),
    "another format": change_identity(format="something-else"),
    "side columns of another kind": change_identity(side_columns=[1]),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_header_of_nonsense_with_hashes_that_fit(copy: Path, case: str) -> None:
    rewrite_header(copy, CRAFTED[case])
    with pytest.raises(ManifestCorruptError, match=HEADER):
        Manifest.open(copy)


CRAFTED_BLOCKS = {
    "rows": change_block(0, rows=8),
    "first step": change_block(0, first_step=1),
    "micro-batches": lambda header: [
        block.update(micro_batches=n)
        for block, n in zip(header["provenance"]["parts"][0]["blocks"], (1, 3), strict=True)
    ],
    "columns": change_identity(weight_semantics=None),
}


@pytest.mark.parametrize("case", CRAFTED_BLOCKS)
def test_a_jump_index_that_does_not_fit_the_block(copy: Path, case: str) -> None:
    rewrite_header(copy, CRAFTED_BLOCKS[case])
    epoch = Manifest.open(copy).epoch(0)
    with pytest.raises(ManifestCorruptError, match=case):
        epoch[0]


def test_a_logical_digest_that_does_not_fit(copy: Path) -> None:
    rewrite_header(
        copy, lambda header: header["identity"]["epochs"][1].update(logical_digest="0" * 64)
    )
    manifest = Manifest.open(copy, verify="all")
    with pytest.raises(ManifestCorruptError, match=f"epoch 1: expected logical digest {'0' * 64}"):
        manifest.verify(deep=True)


# --- versions -------------------------------------------------------------------------------------


def test_a_newer_minor_version_opens_with_a_warning(
    whole: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it adds to any record is ignored."""

    def newer(header: Any) -> None:
        identity, provenance = header["identity"], header["provenance"]
        identity["schema_version"] = "1.7"
        for record in (
            identity,
            provenance,
            identity["snapshot"],
            *identity["snapshot"]["fragments"],
            *identity["side_columns"],
            *identity["epochs"],
            *provenance["parts"],
            *(b for p in provenance["parts"] for b in p["blocks"]),
        ):
            record["added_later"] = {"x": 1}

    rewrite_header(copy, newer)
    with caplog.at_level(logging.WARNING, logger="batchloom"):
        seen: list[Any] = []
        drain(copy, seen)
    expected: list[Any] = []
    drain(whole, expected)
    assert seen == expected
    assert "has format version 1.7, newer than 1.0" in caplog.text
    assert Manifest.open(copy).snapshot == Manifest.open(whole).snapshot


def test_this_version_opens_without_a_warning(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Manifest.open(whole)
    assert caplog.text == ""


@pytest.mark.parametrize("version", ["2.0", "3.1", "0.9"])
def test_another_major_version_is_refused_by_name(copy: Path, version: str) -> None:
    rewrite_header(copy, change_identity(schema_version=version, epochs="of another shape"))
    with pytest.raises(ManifestVersionError, match=f"has format version {version}; .* 1.x"):
        Manifest.open(copy)


def test_an_unknown_feature_is_refused_by_name(copy: Path) -> None:
    rewrite_header(copy, change_identity(reader_features=["time-travel"]))
    with pytest.raises(ManifestVersionError, match="needs the reader feature 'time-travel'"):
        Manifest.open(copy)
