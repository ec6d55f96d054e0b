"""Files that were damaged on purpose, and what must come of them.

`damages` yields copies of a folder in each of which one file is damaged: a bit flipped, cut, gone,
or swapped for another one. What reads the copy must refuse it, name the file, and deliver no row
that the undamaged folder would not have delivered in that place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from batchloom.dataplane import Manifest, ManifestWriter, open_dataset
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.errors import BatchloomError
from batchloom.dataplane.plan import BatchPlan
from batchloom.dataplane.random import Permutation
from batchloom.dataplane.recipe import WeightClass

__all__ = ["KINDS", "Damage", "damages", "manifest_of_all_files", "read_all", "refusal"]

KINDS = ("flip", "cut to nothing", "cut to half", "cut by one byte", "removed", "swapped")


@dataclass(frozen=True)
class Damage:
    """What was done to which file.

    Attributes
    ----------
    file : str
        Its name in the folder.
    kind : str
        One of `KINDS`.
    at : int
        Byte of a flip.
    """

    file: str
    kind: str
    at: int = 0


def damages(
    folder: Path, scratch: Path, tries: int, *, seed: int = 0, spare: Sequence[str] = ()
) -> Iterator[tuple[Damage, Path]]:
    """Yield (damage, damaged copy of `folder`) for every file and kind in turn, then at random.

    Files named in `spare` are left whole: those that hold nothing which anything is made of.
    """
    draw = np.random.default_rng(seed)
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = [f for f in found if f not in spare]
    for number in range(tries):
        file = files[number % len(files)]
        kind = KINDS[number // len(files) % len(KINDS)] if number < tries // 2 else "flip"
        copy = scratch / f"damaged-{number}"
        shutil.copytree(folder, copy, copy_function=os.link)
        damage = Damage(file, kind, int(draw.integers(0, (folder / file).stat().st_size)))
        if not _damage(copy, damage, files, int(draw.integers(0, 8))):
            damage = Damage(file, "flip", damage.at)
            _damage(copy, damage, files, int(draw.integers(0, 8)))
        yield damage, copy
        shutil.rmtree(copy)


def _damage(copy: Path, damage: Damage, files: list[str], bit: int) -> bool:
    path = copy / damage.file
    data = bytearray(path.read_bytes())
    path.unlink()  # the copy is a hard link; the original must stay whole
    if damage.kind == "removed":
        return True
    if damage.kind == "swapped":
        others = [f for f in files if f != damage.file and Path(f).suffix == path.suffix]
        other = next((f for f in others if (copy / f).read_bytes() != data), None)
        path.write_bytes(data if other is None else (copy / other).read_bytes())
        return other is not None
    if damage.kind == "flip":
        data[damage.at] ^= 1 << bit
    stop = {"cut to nothing": 0, "cut to half": len(data) // 2, "cut by one byte": len(data) - 1}
    path.write_bytes(data[: stop.get(damage.kind, len(data))])
    return True


def refusal(damage: Damage, read: Callable[[], Any]) -> str | None:
    """Read a damaged folder; say what is wrong with what came of it, None where it was refused.

    `read` raises AssertionError where it delivers a row that it should not.
    """
    try:
        read()
    except BatchloomError as error:
        if Path(damage.file).name not in str(error):
            return f"{damage}: the error names another file: {error}"
        return None
    except AssertionError as error:
        return f"{damage}: a wrong row was delivered: {error}"
    except Exception as error:
        return f"{damage}: {type(error).__name__}: {error}"
    return f"{damage}: was not noticed"


# --- manifests ------------------------------------------------------------------------------------


def manifest_of_all_files(target: Path, data: Any, rows: int, **options: Any) -> Manifest:
    """Write a manifest with several parts, several blocks a part, and several bitmaps."""
    snapshot = open_dataset(data).snapshot
    ids = snapshot.ids_at(np.arange(snapshot.rows))
    with ManifestWriter(
        target, snapshot=snapshot, seed=3, weight_semantics="importance", **options
    ) as writer:
        with writer.epoch(0):
            order = ids[Permutation(rows, seed=3)[:].astype(np.int64)]
            weights = (order % np.uint64(7)).astype(np.float32)
            writer.append(BatchPlan.cut(order, 32, weights))
        bitmaps = [Bitmap.of(snapshot.next_row_id, [ids[k::3]]) for k in range(3)]
        classes = [WeightClass(b, w) for b, w in zip(bitmaps, (0.5, 1.0, 2.0), strict=True)]
        writer.write_recipe(1, classes, batch_size=32)
        return writer.commit()


def read_all(path: Path, truth: Manifest, **options: Any) -> None:
    """Read every micro-batch of a manifest and compare it with the undamaged one."""
    manifest = Manifest.open(path, **options)
    assert manifest.epochs == truth.epochs
    for number in truth.epochs:
        epoch, expected = manifest.epoch(number), truth.epoch(number)
        assert len(epoch) == len(expected)
        for k in range(len(expected)):
            found, wanted = epoch[k], expected[k]
            assert (found.step, found.micro) == (wanted.step, wanted.micro)
            assert np.array_equal(found.rows, wanted.rows)
            assert np.array_equal(found.weights, wanted.weights)  # type: ignore[arg-type]
