"""ManifestLoader, with its defaults; the variant names the form of the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batchloom
from batchloom.samplers import ManifestLoader
from peers.protocol import run

DATA = {"packed": "packed", "even": "even.arrow", "uneven": "uneven.arrow"}


def prepare(source: Path, target: str) -> None:
    """The benchmark writes the forms: it makes plans of them, too."""


def batches(source: Path, target: str, variant: str) -> Iterator[tuple[Any, Any]]:
    with_loader = ManifestLoader(
        f"{target}/plan-{variant}", f"{target}/{DATA[variant]}", columns=["x", "y"]
    )
    for batch in with_loader:
        yield batch["x"], batch["y"]


if __name__ == "__main__":
    run(prepare, batches, f"batchloom {batchloom.__version__}")
