"""ManifestLoader; the variant names the form of the dataset, and an option after ``+``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchloom
from batchloom.samplers import ManifestLoader
from peers.protocol import run

DATA = {"packed": "packed", "even": "even.arrow", "uneven": "uneven.arrow"}

_kept: dict[str, Any] = {}


def prepare(source: Path, target: str) -> None:
    """The benchmark writes the forms: it makes plans of them, too."""


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    if not _kept:  # as in training: one loader, iterated again
        form, _, option = variant.partition("+")
        _kept["loader"] = ManifestLoader(
            f"{target}/plan-{form}",
            f"{target}/{DATA[form]}",
            columns=["x", "y"],
            **{name: True for name in [option] if name},
        )
    for batch in _kept["loader"]:
        assert len(batch.weights) == batch.num_rows  # a column may be made when it is asked for
        yield batch["x"], batch["y"]


if __name__ == "__main__":
    run(prepare, batches, f"batchloom {batchloom.__version__}")
