"""Snapshots that were made at different times of one dataset: whether they agree, which is newest.

Several things hold a snapshot: a series, a signal store, a file. Row ids mean the same in all of
them only where every fragment that two of them know has the same ids, and no id stands for rows of
two fragments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from .errors import DatasetChangedError
from .snapshot import Fragment, Snapshot

__all__ = ["check_related", "newest_base"]


def newest_base(bases: Iterable[tuple[str, Snapshot]]) -> Snapshot | None:
    """Return the snapshot that knows the most row ids; None of none.

    Parameters
    ----------
    bases : iterable of (str, Snapshot)
        What holds each, for messages.

    Raises
    ------
    DatasetChangedError
        Where two give an id to different rows.
    """
    found: tuple[str, Snapshot] | None = None
    for name, snapshot in bases:
        if found is None:
            found = name, snapshot
            continue
        _check_agree(*found, name, snapshot)
        if _age(snapshot) > _age(found[1]):
            found = name, snapshot
    return None if found is None else found[1]


def _age(snapshot: Snapshot) -> tuple[int, int, str]:
    return snapshot.next_row_id, snapshot.rows, snapshot.fingerprint


def _check_agree(name: str, one: Snapshot, other_name: str, other: Snapshot) -> None:
    if one == other:
        return
    both = ((f, n) for n, s in ((name, one), (other_name, other)) for f in s.fragments if f.rows)
    held = sorted(both, key=lambda pair: pair[0].first_row_id)
    for (f, in_one), (g, in_other) in itertools.pairwise(held):
        same = f.first_row_id == g.first_row_id and _same(f, g)
        if g.first_row_id < f.stop_row_id and not same:
            raise DatasetChangedError(
                f"Row {g.first_row_id} is in '{f.path}' for {in_one}, and in '{g.path}' for "
                f"{in_other}: they number the rows of the dataset differently. Begin both with "
                "the same snapshot, or leave one of them out."
            )


def _same(f: Fragment, g: Fragment) -> bool:
    """Whether two fragments are one file, perhaps under a root that moved."""
    return f.source == g.source and f.same_file(g)


def check_related(name: str, known: Snapshot, dataset: Snapshot) -> None:
    """Raise `DatasetChangedError` where a dataset holds no fragment that `known` does.

    Parameters
    ----------
    name : str
        What is bound to `known`, for the message.
    known, dataset : Snapshot
        The second numbers rows since the first, so what both hold has the same ids.
    """
    there = {(f.first_row_id, f.rows, f.footer_hash) for f in known.fragments if f.rows}
    if not there or any(
        (f.first_row_id, f.rows, f.footer_hash) in there for f in dataset.fragments
    ):
        return
    example = next(f for f in known.fragments if f.rows)
    raise DatasetChangedError(
        f"{name} belongs to another dataset: it was written for {len(known.fragments)} fragments, "
        f"such as '{example.path}', and none of them is in this one. Name the dataset that was "
        "trained on; after a compaction, carry the signals over with batchloom rebind."
    )
