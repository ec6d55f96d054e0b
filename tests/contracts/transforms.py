"""Transforms that worker processes can import."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch

FAILS_AT = 7  # step


def doubled(batch: Any) -> Any:
    """Return the batch with another column, and what its seeds and weights say."""
    return batch.with_columns(
        twice=batch["y"] * 2, seeds=batch.seeds + 0, weights=batch.weights * 1
    )


def slower_for_even_steps(batch: Any) -> Any:
    """Return the batch; the even ones take longer, so that they are done after the odd ones."""
    time.sleep(0.004 if batch.step % 2 == 0 else 0)
    return batch


def half(batch: Any) -> Any:
    """Return tensors of a type that numpy does not know, and one of no rows."""
    return batch["x"].to(torch.bfloat16), batch["x"][:0], torch.tensor(batch.step)


class UnsendableError(Exception):
    """An error that cannot be pickled back."""

    def __init__(self, one: Any, two: Any) -> None:
        super().__init__(f"{one} and {two}")
        self.lock = threading.Lock()


def fails(batch: Any) -> Any:
    """Raise at one step."""
    if batch.step == FAILS_AT:
        raise ZeroDivisionError("no")
    return batch


def fails_unsendably(batch: Any) -> Any:
    """Raise what no process can send."""
    if batch.step == FAILS_AT:
        raise UnsendableError("this", "that")
    return batch


def dies(batch: Any) -> Any:
    """End the process at one step."""
    if batch.step == FAILS_AT:
        os._exit(9)
    return batch


def makes_a_lock(batch: Any) -> Any:
    """Return what no process can send."""
    return threading.Lock()


def sleeps(batch: Any) -> Any:
    """Take longer than anybody waits."""
    time.sleep(600)
    return batch


def chosen(batch: Any) -> Any:
    """Do what the batch's columns stand for, so that one pool of processes serves many tests."""
    chosen = {
        ("x", "y"): doubled,
        ("x",): half,
        ("y",): fails,
        ("u8",): fails_unsendably,
        ("i8",): makes_a_lock,
        ("flag",): dies,
    }
    return chosen[tuple(batch)](batch)
