"""Places: names, order, and the one sentence about what cannot be reached or written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetError,
    ManifestConflictError,
    StorageError,
)
from batchloom.dataplane.storage import Location, is_hidden, locate, natural_key, storing
from hypothesis import given
from hypothesis import strategies as st


def test_natural_order_by_hand() -> None:
    names = ["part-10", "part-2", "part-010", "part", "a/2", "a/10", "10", "9", "part-2a", "Part-1"]
    assert sorted(names, key=natural_key) == [
        "9",
        "10",
        "Part-1",
        "a/2",
        "a/10",
        "part",
        "part-2",
        "part-2a",
        "part-010",
        "part-10",
    ]


@given(st.lists(st.text(), unique=True))
def test_natural_order_takes_any_text_and_is_total(names: list[str]) -> None:
    """Digits of other scripts and superscripts are text; no two names are equal."""
    ordered = sorted(names, key=natural_key)
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == ordered
    assert len({str(natural_key(n)) for n in names}) == len(names)


def test_superscripts_are_no_numbers() -> None:
    assert sorted(["²", "١٢", "x²10", "x²9"], key=natural_key) == ["x²9", "x²10", "²", "١٢"]


@pytest.mark.parametrize(
    ("relative", "hidden"),
    [
        ("a/b.parquet", False),
        ("a_b/c.d", False),
        (".a", True),
        ("_a", True),
        ("a/.b/c", True),
        ("a/_b", True),
    ],
)
def test_hidden_names(relative: str, hidden: bool) -> None:
    assert is_hidden(relative) == hidden


def test_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("a/b").path == f"{tmp_path}/a/b"
    assert locate("~/a").path == f"{tmp_path}/a"
    assert locate(f"file://{tmp_path}/a").path == f"{tmp_path}/a"
    assert locate(Path("x")).is_local
    remote = locate("s3://bucket/a/b.parquet", {"key": "secret"})
    assert not remote.is_local
    assert (remote.name, str(remote.parent())) == ("b.parquet", "s3://bucket/a")
    assert str(remote.join("c")) == "s3://bucket/a/b.parquet/c"
    assert remote.join("") is remote
    assert remote.join("c").options == {"key": "secret"}
    assert "secret" not in repr(remote)
    assert not locate("simplecache::s3://bucket/x").is_local


def test_files_and_sizes(tmp_path: Path) -> None:
    for name, data in {"a": b"12", "b/c": b"123", ".h": b"", "_h/x": b"", "b/.git/y": b""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    here = locate(tmp_path)
    assert sorted(here.files()) == [("a", 2), ("b/c", 3)]
    assert here.join("b/c").size() == 3
    assert here.join("b/c").read_bytes() == b"123"
    assert here.join(".h").read_bytes() == b""
    assert (here.exists(), here.is_dir(), here.join("a").is_dir()) == (True, True, False)
    for reach in (here.join("none").size, here.join("none").open, here.join("none").read_bytes):
        with pytest.raises(DatasetError, match="none: no such file or directory"):
            reach()


def test_a_file_that_changes_while_it_is_open_to_others(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with locate(tmp_path / "a").open() as file:
        (tmp_path / "a").unlink()
        assert bytes(file.read(4)) == b"0123"


def test_packages_that_are_missing_are_named() -> None:
    with pytest.raises(DatasetError, match="nosuch://x"):
        Location("nosuch://x/y").size()
    script = """if True:
        import sys
        sys.modules["s3fs"] = None
        from batchloom.dataplane.errors import MissingExtraError
        from batchloom.dataplane.manifest import Manifest
        from batchloom.dataplane.storage import Location
        for reach in (Location("s3://bucket/y").size, lambda: Manifest.open("s3://bucket/y")):
            try:
                reach()
            except MissingExtraError as error:
                print(error)
    """
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(ran.stdout.splitlines()) == 2
    for line in ran.stdout.splitlines():
        assert line.endswith("the packages of the extra 's3': pip install 'batchloom[s3]'")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space or choose another target, then run the same command again"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "free some space"),
        (errno.EACCES, "choose a target that this user may write to"),
        (errno.EPERM, "may write to"),
        (errno.EROFS, "may write to"),
        (errno.EIO, "choose another target"),
        (errno.ENAMETOOLONG, "choose another target"),
    ],
)
def test_storing_makes_one_sentence_of_an_oserror(code: int, advice: str) -> None:
    with pytest.raises(StorageError) as caught, storing("Writing part 3", "/x/y"):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith(f"Writing part 3 failed: {os.strerror(code)} (/x/y). Nothing was")
    assert advice in message
    assert isinstance(caught.value.__cause__, OSError)


def test_storing_leaves_our_own_errors_alone() -> None:
    """A conflict is an `OSError` too, and must not become a failure of the disk."""
    for error in (ManifestConflictError("taken"), StorageError("inner"), BatchloomError("x")):
        with pytest.raises(type(error)) as caught, storing("Writing", "/x"):
            raise error
        assert caught.value is error
    with pytest.raises(ZeroDivisionError), storing("Writing", "/x"):
        raise ZeroDivisionError
