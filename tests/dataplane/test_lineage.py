from __future__ import annotations

from pathlib import Path

from batchloom.dataplane.lineage import FirstChange, accepted_states, change_stage, state_id
from batchloom.tests.dataplane.helpers import small_manifest


def stage(parent: str, change: tuple[int, int] | None) -> dict[str, object]:
    first = None if change is None else {"epoch": change[0], "step": change[1]}
    return {"stage": "edit", "method": "drop", "parameters": {}, "states_of": parent,
            "first_change": first}  # fmt: skip


def test_a_plan_of_its_own_accepts_no_other_states() -> None:
    assert accepted_states([{"stage": "batch", "method": "shuffle", "parameters": {}}]) == {}


def test_states_of_all_ancestors_up_to_the_first_change_since() -> None:
    stages = [
        {"stage": "batch", "method": "shuffle", "parameters": {}},
        stage("a", (1, 5)),
        stage("b", (0, 9)),
        stage("c", None),
        stage("d", (2, 0)),
    ]
    assert accepted_states(stages) == {
        "a": FirstChange(0, 9),
        "b": FirstChange(0, 9),
        "c": FirstChange(2, 0),
        "d": FirstChange(2, 0),
    }
    assert accepted_states(stages[:4])["c"] is None


def test_two_changes_made_at_once() -> None:
    stages = [stage("a", (0, 7)), stage("a", (0, 3))]
    assert accepted_states(stages) == accepted_states(stages[::-1]) == {"a": FirstChange(0, 3)}


def test_a_copy_of_a_recipe_passes_the_recipes_id_on(tmp_path: Path) -> None:
    parent = small_manifest(tmp_path / "m")
    made = change_stage("edit", "drop", {"key": None}, parent, FirstChange(1, 2))
    assert made["states_of"] == parent.manifest_id
    assert made["first_change"] == {"epoch": 1, "step": 2}
    parent.identity["materialized_from"] = "r" * 64
    assert state_id(parent) == "r" * 64
    assert change_stage("edit", "drop", {}, parent, None)["states_of"] == "r" * 64
