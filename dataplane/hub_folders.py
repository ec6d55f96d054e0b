"""Folders as Hugging Face's tools write them: which of their files are data, and of which split.

Two layouts name the splits of a dataset, and each split becomes a source of that name:

a hub repository
    ``README.md`` and ``data/train-00000-of-00002.parquet``, or the same without ``data/``. The
    split is what stands before the first dash: ``train``, ``validation``, ``test`` and the other
    usual names, alone or followed by more (``train_sft``). All data files must be named so.
``DatasetDict.save_to_disk``
    ``dataset_dict.json``, and a folder a split.

``Dataset.save_to_disk`` writes ``data-00000-of-00003.arrow`` beside ``state.json``: one source,
called ``data`` like any other folder. What its ``map`` and ``filter`` leave in such a folder later,
``cache-<digits>.arrow``, are results of theirs and no rows of the dataset.
"""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["is_cache", "splits_of"]

_SPLITS = "train|training|validation|valid|val|dev|test|testing|eval|evaluation"
_SHARD = re.compile(rf"(?:data/)?((?:{_SPLITS})(?:_\w+)?)-\d{{5}}-of-\d{{5}}(?:-\w+)?\.\w+")
_CACHE = re.compile(r"(?:.*/)?cache-[0-9a-f]+(?:_\d+_of_\d+)?\.arrow")
_DICT, _STATE = "dataset_dict.json", "state.json"


def splits_of(paths: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Return the split of each data file, by path; nothing where a folder names no splits.

    Parameters
    ----------
    paths : collection of str
        Data files, relative to the folder.
    others : collection of str
        The folder's other files.
    """
    if _DICT in others:
        return {path: path.split("/", 1)[0] for path in paths if "/" in path}
    found = {path: _SHARD.fullmatch(path) for path in paths}
    if not all(found.values()):
        return {}
    return {path: match[1] for path, match in found.items() if match}


def is_cache(path: str, others: Collection[str]) -> bool:
    """Whether a file is a result that ``map`` or ``filter`` left beside a saved dataset."""
    if not _CACHE.fullmatch(path):
        return False
    folder = path.rpartition("/")[0]
    return (f"{folder}/{_STATE}" if folder else _STATE) in others
