"""NGAME: oracles by hand, brute force over labels, and what must not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.clustering import NGAME
from batchloom.clustering.mining import Labels, mine, sample_positives
from batchloom.clustering.ngame import SIDE
from batchloom.dataplane.errors import InvalidValueError, ParameterError, SelectionError
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

Y = np.array([
    [1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 1],
])  # fmt: skip
SAMPLED = np.array([0, 1, 2, 3, 0, 4])
IDS = np.arange(6, dtype=np.uint64)


def some(n: int, d: int = 8, labels: int = 30, seed: int = 0) -> tuple[Any, Any]:
    """Rows around a few centers, of one to four labels each."""
    draw = np.random.default_rng(seed)
    centers = draw.standard_normal((7, d))
    x = (centers[draw.integers(0, 7, n)] + 0.4 * draw.standard_normal((n, d))).astype(np.float32)
    y = np.zeros((n, labels), bool)
    for row in range(n):
        y[row, draw.choice(labels, draw.integers(1, 5), replace=False)] = True
    return x, csr_array(y)


def lists(ragged: Any) -> list[list[Any]]:
    return [v.tolist() for v in np.split(ragged.values, ragged.offsets[1:-1])]


# --- by hand --------------------------------------------------------------------------------------


def test_masks_by_hand() -> None:
    labels = Labels.of(csr_array(Y), 6, IDS)
    found = mine(np.eye(6, dtype=np.float32), labels, SAMPLED, 0)
    assert lists(found.mask) == [[1, 4], [], [], [2], [0, 5], []]
    assert lists(found.negatives) == [[]] * 6


def test_negatives_are_the_nearest_that_are_not_masked() -> None:
    angles = np.radians([0, 10, 20, 60, 5, 180])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = mine(x, Labels.of(csr_array(Y), 6, IDS), SAMPLED, 2)
    assert lists(found.negatives)[0] == [2, 3]  # 1 and 4 have labels of row 0
    assert lists(found.scores)[0] == pytest.approx([np.cos(angles[2]), np.cos(angles[3])], abs=1e-6)
    assert lists(found.negatives)[5] == [3, 2]


def test_twelve_points() -> None:
    """Three rows in each of four directions: clusters of three are these, two in a batch."""
    row = np.arange(12)
    angle = np.radians(90 * (row % 4) + 2 * (row // 4))
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for seed in range(20):
        plan = NGAME(batch_size=6, cluster_size=3, seed=seed).batches(x)
        groups = {frozenset(plan.rows[i : i + 3].tolist()) for i in range(0, 12, 3)}
        assert groups == {frozenset({k, k + 4, k + 8}) for k in range(4)}
        assert np.diff(plan.offsets).tolist() == [6, 6]


def test_the_curriculum() -> None:
    epochs = [10, 20, 25, 50, 75, 100, 125, 150, 200]
    method = NGAME(schedule={e: 2 ** (i + 1) for i, e in enumerate(epochs)}, refresh_every=5)
    expected = {
        0: (1, False), 9: (1, False), 10: (2, True), 11: (2, False), 15: (2, True), 20: (4, True),
        24: (4, False), 25: (8, True), 50: (16, True), 75: (32, True), 100: (64, True),
        125: (128, True), 150: (256, True), 200: (512, True), 299: (512, False),
    }  # fmt: skip
    assert {e: (method.size_at(e), method.refreshes(e)) for e in expected} == expected
    late = NGAME(schedule={7: 4}, refresh_every=5)
    assert [late.size_at(e) for e in (6, 7, 9, 10)] == [1, 1, 1, 4]
    assert NGAME(cluster_size=8).size_at(0) == 8
    assert NGAME(cluster_size=8).refreshes(0)


# --- by brute force -------------------------------------------------------------------------------


@settings(max_examples=30)
@given(n=st.integers(2, 60), seed=st.integers(0, 999), shortlist=st.integers(0, 12))
def test_masks_and_negatives_as_they_read(n: int, seed: int, shortlist: int) -> None:
    x, y = some(n, labels=9, seed=seed)
    labels = Labels.of(y, n, np.arange(n, dtype=np.uint64))
    positive = sample_positives(labels, np.arange(n, dtype=np.uint64), seed=seed, epoch=1)
    whole = y.toarray()
    assert whole[np.arange(n), positive].all()
    found = mine(x, labels, positive, shortlist)
    false = whole[:, positive] & ~np.eye(n, dtype=bool)
    assert lists(found.mask) == [np.flatnonzero(row).tolist() for row in false]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = np.where(false | np.eye(n, dtype=bool), -np.inf, unit @ unit.T)
    for row, (columns, scores) in enumerate(
        zip(lists(found.negatives), lists(found.scores), strict=True)
    ):
        free = int(np.isfinite(cosines[row]).sum())
        assert len(columns) == len(set(columns)) == min(shortlist, free)
        best = np.sort(cosines[row])[::-1][: len(columns)]
        assert scores == pytest.approx(best.tolist(), abs=1e-5)
        assert cosines[row, columns].tolist() == pytest.approx(scores, abs=1e-5)


@settings(max_examples=40)
@given(
    n=st.integers(2, 500), batch=st.integers(2, 90), size=st.integers(1, 60),
    epoch=st.integers(0, 3),
)  # fmt: skip
def test_whole_clusters_in_batches_of_nearly_one_size(
    n: int, batch: int, size: int, epoch: int
) -> None:
    x, _ = some(n, d=3)
    plan = NGAME(batch_size=batch, cluster_size=size, shortlist=0).batches(x, epoch=epoch)
    plan.check(SIDE)
    assert sorted(plan.rows.tolist()) == list(range(n))
    sizes = np.diff(plan.offsets)
    assert len(sizes) == -(-n // batch)
    assert sizes.max() <= batch
    assert sizes.max() - sizes.min() <= 1
    batch_of = np.repeat(np.arange(len(plan)), sizes)
    clusters = np.asarray(plan.side["cluster"])
    for cluster in np.unique(clusters):
        assert len(np.unique(batch_of[clusters == cluster])) == 1


def test_every_negative_in_a_cluster_is_as_hard_as_its_radius_says() -> None:
    x, _ = some(600, d=16)
    plan = NGAME(batch_size=60, cluster_size=20).batches(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    clusters = np.asarray(plan.side["cluster"])
    for cluster in np.unique(clusters):
        rows = unit[plan.rows[clusters == cluster].astype(int)].astype(np.float64)
        center = rows.sum(axis=0) / np.linalg.norm(rows.sum(axis=0))
        radius = np.arccos(np.clip(rows @ center, -1, 1)).max()
        assert (rows @ rows.T).min() >= np.cos(min(np.pi, 2 * radius)) - 1e-6


# --- what must not matter, and what must ----------------------------------------------------------


def told(plan: Any, ids: Any) -> Any:
    """Return batches by row ids, with masks and negatives by row ids."""
    out = []
    for k in range(len(plan)):
        one = plan.slice(k, k + 1)
        names = ids[one.rows.astype(int)].tolist()
        by_name = {
            name: (
                [names[c] for c in mask], [names[c] for c in negatives], positive,
            )
            for name, mask, negatives, positive in zip(
                names, lists(one.side["mask"]), lists(one.side["negatives"]),
                one.side["positive"].tolist(), strict=True,
            )
        }  # fmt: skip
        out.append(by_name)
    return out


def test_the_order_of_rows_changes_nothing() -> None:
    x, y = some(300)
    ids = np.random.default_rng(3).choice(10_000, 300, replace=False).astype(np.uint64)
    method = NGAME(batch_size=50, cluster_size=10, seed=4)
    plan = method.batches(x, y, ids=ids, epoch=2)
    mixed = np.random.default_rng(1).permutation(300)
    again = method.batches(np.asfortranarray(x[mixed]), y[mixed], ids=ids[mixed], epoch=2)
    assert told(again, ids[mixed]) == told(plan, ids)


def test_epochs_deal_the_same_clusters_anew() -> None:
    x, y = some(300)
    method = NGAME(batch_size=50, cluster_size=10)
    plans = [method.batches(x, y, epoch=e) for e in (0, 1)]
    clusters = [
        {frozenset(p.rows[np.asarray(p.side["cluster"]) == c].tolist()) for c in range(30)}
        for p in plans
    ]
    assert clusters[0] == clusters[1]
    batches = [{frozenset(p.slice(k, k + 1).rows.tolist()) for k in range(len(p))} for p in plans]
    assert batches[0] != batches[1]
    assert plans[0].side["positive"].tolist() != plans[1].side["positive"].tolist()


def test_random_batches_before_the_curriculum() -> None:
    x, _ = some(300)
    method = NGAME(batch_size=50, schedule={5: 10})
    plans = [method.batches(x, epoch=e) for e in (0, 1, 5)]
    batches = [{frozenset(p.slice(k, k + 1).rows.tolist()) for k in range(6)} for p in plans]
    assert not batches[0] & batches[1]
    scores = [float(np.asarray(p.side["scores"].values).mean()) for p in plans]
    assert scores[2] > scores[0]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_rows_of_zeros_are_like_no_other() -> None:
    x, _ = some(40)
    x[7] = 0
    plan = NGAME(batch_size=40, cluster_size=10).batches(x)
    at = plan.rows.tolist().index(7)
    assert set(lists(plan.side["scores"])[at]) == {0.0}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NGAME(), ParameterError, "either 'cluster_size'.* Got neither"),
        (lambda: NGAME(cluster_size=2, schedule={1: 2}), ParameterError, "Got both"),
        (lambda: NGAME(schedule={}), ParameterError, "at least one epoch"),
        (lambda: NGAME(schedule={3: 0}), ParameterError, "sizes of 1 or more"),
        (lambda: NGAME(cluster_size=2, batch_size=1), ParameterError, "'batch_size' parameter"),
        (
            lambda: NGAME(cluster_size=2).batches(np.ones((1, 3))),
            SelectionError,
            "at least 2 rows, found 1",
        ),
        (
            lambda: NGAME(cluster_size=2).batches(np.ones((4, 3)), csr_array(np.eye(3))),
            SelectionError,
            "labels of 4 rows, found 3",
        ),
        (
            lambda: NGAME(cluster_size=2).batches(
                np.ones((3, 3)), csr_array(np.diag([1, 0, 1])), ids=[5, 6, 7]
            ),
            SelectionError,
            "1 rows have no label: 6",
        ),
        (
            lambda: NGAME(cluster_size=2).batches([[1.0], [np.nan], [2.0]], ids=[5, 6, 7]),
            InvalidValueError,
            "1 rows .* 6",
        ),
        (
            lambda: NGAME(cluster_size=1).batches([[1.0], [np.inf], [2.0]], ids=[5, 6, 7]),
            InvalidValueError,
            "1 rows .* 6",
        ),
    ],
)
def test_bad_input(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_schedule_as_the_command_line_has_it() -> None:
    assert NGAME(schedule="10:2,20:4").schedule == {10: 2, 20: 4}  # type: ignore[arg-type]
