"""A mixture of texts that the environment brings along: docstrings, a package a source.

The sources are packages that batchloom's own dependencies and its extras `plan` and `dev` name; one
that is not installed is left out. Texts are the docstrings of modules, classes and functions, each
once in all sources, in the order of a package's files, cut into rows of 128 bytes, each once.
A tenth of a source's text is held out, by files, drawn by a key of their names. The docstrings of
Python's own library, which is no source, are there to train a first model on.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash
from batchloom.dataplane.random import Stream, choose, hash_values

__all__ = ["CONTEXT", "SOURCES", "Texts", "collect"]

SOURCES = (
    "torch", "scipy", "scikit-learn", "numpy", "dask", "datasets", "numba", "lightning",
    "distributed", "pydantic", "hypothesis", "rich", "fsspec", "pyarrow",
)  # fmt: skip
CONTEXT = 128
HELD_OUT, LARGEST_FILE = 0.1, 0.1  # shares of a source's text; a larger file is trained on

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Texts:
    """Rows of bytes, shape (n, 128), and the sources that they are of.

    Attributes
    ----------
    names : list of str
        Of the sources.
    missing : list of str
        Sources that are not installed.
    rows, sources : uint8, shape (n, 128); int64, shape (n,)
        To train on.
    test, test_sources : uint8, shape (m, 128); int64, shape (m,)
        Held out.
    general : uint8, shape (g, 128)
        Of Python's library.
    """

    names: list[str]
    missing: list[str]
    rows: U8
    sources: npt.NDArray[np.int64]
    test: U8
    test_sources: npt.NDArray[np.int64]
    general: U8

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows of each source to train on."""
        return np.bincount(self.sources, minlength=len(self.names))

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> Texts:
        with np.load(path) as found:
            fields = {name: found[name] for name in cls.__dataclass_fields__}
        fields.update({name: fields[name].tolist() for name in ("names", "missing")})
        return cls(**fields)


def collect(sources: Sequence[str], test_rows: int) -> Texts:
    """Read the texts of the sources that are installed; hold out at most so many rows of each."""
    seen: set[int] = set()
    names, train, test = [], [], []
    general = _cut(text for _, text in _of_files(*_library(), seen))
    for source in sources:
        texts = list(_of_files(*_package(source), seen))
        held = _held_out(source, texts)
        if held:
            names.append(source)
            train.append(_cut(text for name, text in texts if name not in held))
            test.append(_cut(text for name, text in texts if name in held))
    rows, parts = _once([general, *train, *test])
    count = len(names)
    tested = []
    for part in range(1 + count, 1 + 2 * count):
        mine = np.flatnonzero(parts == part)
        size = min(test_rows, len(mine))
        tested.append(mine[choose(size, mine, seed=0, stream=Stream.SPLIT)])
    at, held_out = np.flatnonzero((parts > 0) & (parts <= count)), np.concatenate(tested)
    return Texts(
        names=names,
        missing=[source for source in sources if source not in names],
        rows=rows[at],
        sources=parts[at] - 1,
        test=rows[held_out],
        test_sources=parts[held_out] - 1 - count,
        general=rows[parts == 0],
    )


def _package(source: str) -> tuple[Path, list[str]]:
    """Return where a package is, and its Python files; none where it is not installed."""
    try:
        found = metadata.distribution(source)
    except metadata.PackageNotFoundError:
        return Path(), []
    places = (str(f) for f in found.files or [] if f.suffix == ".py")
    return Path(str(found.locate_file(""))), sorted(places)


def _library() -> tuple[Path, list[str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    places = (p.relative_to(root) for p in root.rglob("*.py"))
    return root, sorted(str(p) for p in places if not p.parts[0].endswith("-packages"))


def _of_files(root: Path, places: Iterable[str], seen: set[int]) -> Iterator[tuple[str, bytes]]:
    """Yield files with the docstrings in them that no file before had."""
    for place in places:
        if {"test", "tests"} & set(Path(place).parts):
            continue
        try:
            tree = ast.parse((root / place).read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        found = []
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = (ast.get_docstring(node) or "").encode(errors="replace")
                key = xxhash.xxh3_64_intdigest(text)
                if text and key not in seen:
                    seen.add(key)
                    found.append(text)
        if found:
            yield place, b"\n\n".join(found) + b"\n\n"


def _held_out(source: str, texts: list[tuple[str, bytes]]) -> set[str]:
    """Return files with about a tenth of the text."""
    hashes = [xxhash.xxh3_64_intdigest(f"{source}/{name}".encode()) for name, _ in texts]
    order = np.argsort(hash_values(0, Stream.SPLIT, np.array(hashes, np.uint64)))
    whole = sum(len(text) for _, text in texts)
    held: set[str] = set()
    size = 0
    for name, text in (texts[at] for at in order):
        if size < HELD_OUT * whole and len(text) <= LARGEST_FILE * whole:
            held.add(name)
            size += len(text)
    return held


def _cut(texts: Iterable[bytes]) -> U8:
    """Cut each file's text into rows; what is left at its end is dropped."""
    rows = [np.frombuffer(t[: len(t) // CONTEXT * CONTEXT], np.uint8) for t in texts]
    return np.concatenate([np.zeros(0, np.uint8), *rows]).reshape(-1, CONTEXT)


def _once(parts: list[U8]) -> tuple[U8, npt.NDArray[np.int64]]:
    """Return rows that no part before has, in order, and the number of their part."""
    rows = np.concatenate(parts)
    of = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    hashes = [xxhash.xxh3_64_intdigest(row.tobytes()) for row in rows]
    first = np.sort(np.unique(np.array(hashes, np.uint64), return_index=True)[1])
    return rows[first], of[first]
