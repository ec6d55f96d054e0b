from __future__ import annotations

from typing import Any

import numpy as np
from batchloom.coresets import RandomShare
from batchloom.tests.contracts.loss_selector import LossSelectorContract


class TestRandomShare(LossSelectorContract):
    def make(self, **parameters: Any) -> Any:
        return RandomShare(**{"prune_ratio": 0.3} | parameters)


def test_fresh_shares_differ_and_fixed_ones_do_not() -> None:
    losses = np.zeros(2000)
    fresh = [RandomShare(prune_ratio=0.5).plan(losses, epoch=e).rows for e in (0, 1)]
    fixed = [RandomShare(prune_ratio=0.5, fresh=False).plan(losses, epoch=e).rows for e in (0, 1)]
    assert fixed[0].tolist() == fixed[1].tolist() == fresh[0].tolist()
    both = len(set(fresh[0].tolist()) & set(fresh[1].tolist()))
    assert abs(both / 2000 - 0.25) < 0.04
