"""Every registered method passes the stage contract; one without an example here fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.jobs.methods import METHODS
from batchloom.tests.contracts.stage import StageContract


def examples(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Parameters of one instance of each method."""
    keys = tmp_path / "keys.txt"
    keys.write_text("doc-3\ndoc-500\ndoc-no\n")
    ids = tmp_path / "ids.npy"
    np.save(ids, np.array([3, 500, 12], np.uint64))
    return {
        "shuffle": {"stratify": "label", "balance": "label"},
        "kmeans": {"columns": "x", "k": 4},
        "ppp": {"columns": "x", "k_max": 6, "separable": True},
        "groups": {"column": "label"},
        "balanced": {"columns": "x", "size": 20, "metric": "cosine", "batches": "within"},
        "ngame": {"columns": "x", "labels": "label", "cluster_size": 4},
        "prototypes": {"columns": "x", "fraction": 0.5, "balance": 0.5},
        "near-duplicates": {"columns": "x", "threshold": 0.999},
        "within": {},
        "across": {},
        "aligned": {},
        "where": {"expression": "label in [1, 2] and a > 0"},
        "keep": {"file": str(keys), "key": "key"},
        "drop": {"file": str(ids)},
        "seta": {"column": "a", "weights": "unbiased"},
        "infobatch": {"column": "a"},
        "importance": {"column": "a"},
        "random": {"prune_ratio": 0.4},
        "colm": {"columns": "x", "sources": "label", "weights": "cluster", "k": 1},
        "craig": {"columns": "x", "classes": "label", "k": 1},
        "gradmatch": {"columns": "x"},
        "k-center": {"columns": "x"},
        "keep-small": {"sources": "label"},
        "random-rows": {},
        "hard-batches": {"column": "a", "level": "rows"},
        "split": {"shares": "train=0.7,val=0.3:val", "key": "key"},
    }


def test_every_method_has_an_example(tmp_path: Path) -> None:
    assert set(examples(tmp_path)) == set(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
class TestStage(StageContract):
    @pytest.fixture(autouse=True)
    def _example(self, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
        self.name = name
        self.parameters = examples(tmp_path)[name]
        if name == "aligned":  # its groups must fit a batch
            job, state = request.getfixturevalue("job"), request.getfixturevalue("state")
            groups = job.column([(np.arange(len(state.rows)) // 10).astype(np.int32)])
            object.__setattr__(state, "groups", groups)
