from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets import CoLM, facility_location, keep_largest
from batchloom.dataplane.errors import ParameterError, SelectionError

COUNTS = {"a": 500, "b": 300, "c": 120, "d": 50, "e": 30}
BATCH = {"a": 58, "b": 35, "c": 20, "d": 10, "e": 5}  # of 128 rows 35 are of small sources


def some(n: int, d: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def labels(batch: Any = BATCH, seed: int = 1) -> Any:
    names = np.repeat(list(batch), list(batch.values()))
    return names[np.random.default_rng(seed).permutation(len(names))]


def by_source(found: Any, sources: Any) -> dict[str, int]:
    names, counts = np.unique(sources[found.rows.astype(int)], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def test_small_sources_whole_and_the_best_of_each_other_one() -> None:
    features, sources = some(128), labels()
    found = CoLM().select(features, sources, 64, source_counts=COUNTS)
    assert by_source(found, sources) == {"a": 18, "b": 11, "c": 20, "d": 10, "e": 5}
    assert found.weights is None
    cost = 0.0
    for name, k in (("a", 18), ("b", 11)):
        mine = np.flatnonzero(sources == name)
        expected = facility_location(features[mine], k)
        assert set(mine[expected.rows.astype(int)]) == set(
            found.rows[sources[found.rows.astype(int)] == name]
        )
        (told,) = (s for s in found.report["sources"] if s["source"] == name)
        assert told == {"source": name, "rows": len(mine), "selected": k, "small": False}
        cost += expected.cost
    assert found.report["cost"] == pytest.approx(cost)
    assert [s["small"] for s in found.report["sources"]] == [False, False, True, True, True]


def test_weights_count_the_rows_of_the_source() -> None:
    features, sources = some(128), labels()
    found = CoLM(weights="cluster").select(features, sources, 64, source_counts=COUNTS)
    assert found.weights is not None
    assert found.weights.sum() == 128
    chosen = sources[found.rows.astype(int)]
    for name, rows in BATCH.items():
        assert found.weights[chosen == name].sum() == rows
    assert (found.weights[np.isin(chosen, ["c", "d", "e"])] == 1).all()


def test_what_is_small_is_said_of_the_dataset() -> None:
    sources = labels({"a": 3, "b": 90, "c": 35})
    found = CoLM().select(some(128), sources, 64, source_counts=COUNTS)
    assert by_source(found, sources) == {"a": 1, "b": 28, "c": 35}
    named = CoLM().select(some(128), sources, 64, source_counts=COUNTS, small=["a"])
    assert by_source(named, sources)["a"] == 3
    assert by_source(named, sources)["c"] == 17


def test_more_small_rows_than_the_batch() -> None:
    batch = {"a": 58, "c": 60, "d": 9, "e": 1}
    sources = labels(batch)
    features = some(128)
    found = CoLM().select(features, sources, 64, source_counts=COUNTS)
    assert found.report["overflow"]
    assert len(found.rows) == 64
    assert set(by_source(found, sources)) == {"c", "d", "e"}
    mixed = np.random.default_rng(3).permutation(128)
    ids = np.arange(128)
    again = CoLM().select(features[mixed], sources[mixed], 64, source_counts=COUNTS, ids=ids[mixed])
    assert set(mixed[again.rows.astype(int)]) == set(found.rows.tolist())


@pytest.mark.parametrize("weights", ["uniform", "cluster"])
def test_order_of_rows_and_names_of_sources_change_nothing(weights: Any) -> None:
    features = np.random.default_rng(0).integers(-2, 3, (128, 4)).astype(np.float32)  # many ties
    sources, ids = labels(), np.arange(128) * 7 + 3
    method = CoLM(weights=weights)
    found = method.select(features, sources, 50, source_counts=COUNTS, ids=ids)
    mixed = np.random.default_rng(2).permutation(128)
    again = method.select(
        np.asfortranarray(features[mixed]), sources[mixed], 50, source_counts=COUNTS, ids=ids[mixed]
    )
    pairs = dict(
        zip(found.rows.tolist(), found.weights if weights == "cluster" else [1] * 50, strict=True)
    )
    others = again.weights if weights == "cluster" else [1] * 50
    assert dict(zip(mixed[again.rows.astype(int)].tolist(), others, strict=True)) == pairs
    numbers = np.searchsorted(list(COUNTS), sources)
    by_number = method.select(
        features, numbers, 50, source_counts=dict(enumerate(COUNTS.values())), ids=ids
    )
    assert by_number.rows.tolist() == found.rows.tolist()


def test_of_one_probe_the_largest_dimensions_change_nothing() -> None:
    """After Adam all dimensions of a single probe are of one size: h only scales distances."""
    draw = np.random.default_rng(0)
    numbers, direction = draw.integers(-50, 50, (128, 1)), draw.choice([-1, 1], (1, 32))
    probe, sources = (numbers * direction).astype(np.float32), labels()
    chosen = [
        CoLM(optimizer=o).select(f, sources, 64, source_counts=COUNTS).rows.tolist()
        for o in ("lazy", "auto")
        for f in (probe, keep_largest(probe, sources, 1), numbers)
    ]
    assert chosen[0] == chosen[1] == chosen[2]
    assert chosen[3] == chosen[4] == chosen[5]


@pytest.mark.parametrize("where", ["a", "e"])
def test_rows_that_are_not_finite_are_left_out(where: str) -> None:
    features, sources = some(128), labels()
    bad = int(np.flatnonzero(sources == where)[0])
    features[bad, 1] = np.nan
    rest = np.delete(np.arange(128), bad)
    found = CoLM().select(features, sources, 60, source_counts=COUNTS, ids=np.arange(128) + 500)
    expected = CoLM().select(features[rest], sources[rest], 60, source_counts=COUNTS)
    assert found.rows.tolist() == rest[expected.rows.astype(int)].tolist()
    assert found.report["left_out"] == [500 + bad]


def test_none_and_all() -> None:
    features, sources = some(128), labels()
    assert len(CoLM().select(features, sources, 0, source_counts=COUNTS).rows) == 0
    everything = CoLM(weights="cluster").select(features, sources, 128, source_counts=COUNTS)
    assert everything.rows.tolist() == list(range(128))
    assert (everything.weights == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 129}, r"129 rows cannot be chosen of 128: .*\[0, 128\]"),
        ({"sources": ["a"]}, r"'sources' of shape \(128,\), .* found \(1,\)"),
        ({"sources": ["a"] * 127 + [None]}, "A row has no source: .*127"),
        ({"source_counts": {"a": 5, "aa": 3}}, "Source 'b' of the batch has no count"),
        ({"small": ["f"]}, "'small' names the source 'f', which has no count"),
        ({"source_counts": dict(COUNTS, a=-1)}, "none negative"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"sources": labels(), "k": 64, "source_counts": COUNTS} | options
    with pytest.raises(SelectionError, match=message):
        CoLM().select(some(128), **given)


def test_parameters() -> None:
    with pytest.raises(ParameterError, match="'metric' parameter of CoLM must be one of 'l1'"):
        CoLM(metric="l3")  # type: ignore[arg-type]
