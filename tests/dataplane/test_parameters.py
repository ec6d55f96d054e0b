"""Parameter classes: one form of error, ranges that stand once."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from batchloom.dataplane.canonical import plain_json
from batchloom.dataplane.errors import BatchloomError, ParameterError
from batchloom.dataplane.parameters import describe_parameters, parameters, resolved
from pydantic import Field, model_validator


@parameters
class SeTa:
    """Parameters like those of a method."""

    groups: Annotated[int, Field(ge=2, le=256, description="groups of difficulty")] = 5
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    shift: float = 0.0
    rounds: Annotated[int, Field(ge=1)] | None = None
    order: Literal["loss", "random"] = "loss"
    columns: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["x"])
    schedule: dict[int, int] | None = None
    label: str | None = None
    deep: bool = False


@parameters
class Cut:
    size: Annotated[int, Field(ge=1)]
    steps: int = 1

    @model_validator(mode="after")
    def _together(self) -> Any:
        if self.size % self.steps:
            raise ValueError(f"size {self.size} is no multiple of steps {self.steps}.")
        return self


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": 1}, "'groups' parameter of SeTa must be an int in the range [2, 256]. Got 1"),
        ({"groups": 257}, "must be an int in the range [2, 256]. Got 257 instead."),
        ({"groups": 2.5}, "must be an int in the range [2, 256]. Got 2.5 instead."),
        ({"groups": "many"}, "must be an int in the range [2, 256]. Got 'many' instead."),
        ({"groups": None}, "must be an int in the range [2, 256]. Got None instead."),
        ({"share": 0}, "'share' parameter of SeTa must be a float in the range (0, 1). Got 0"),
        ({"share": 1.0}, "must be a float in the range (0, 1). Got 1.0 instead."),
        ({"share": float("nan")}, "must be a float in the range (0, 1). Got nan instead."),
        ({"shift": float("nan")}, "'shift' parameter of SeTa must be a float. Got nan instead."),
        ({"shift": float("inf")}, "must be a float. Got inf instead."),
        ({"rounds": 0}, "must be an int in the range [1, inf) or None. Got 0 instead."),
        ({"order": "lost"}, "must be one of 'loss', 'random'. Got 'lost' instead."),
        ({"columns": []}, "must be a list of str of at least 1 item. Got [] instead."),
        ({"columns": "x"}, "must be a list of str of at least 1 item. Got 'x' instead."),
        ({"label": 3}, "must be a string or None. Got 3 instead."),
        ({"deep": "maybe"}, "must be a bool. Got 'maybe' instead."),
    ],
)
def test_the_one_form_of_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as caught:
        SeTa(**given)
    assert message in str(caught.value)
    assert str(caught.value).startswith("The '")
    assert str(caught.value).endswith(" instead.")


def test_the_whole_sentence() -> None:
    with pytest.raises(ParameterError) as caught:
        SeTa(groups=1)
    assert str(caught.value) == (
        "The 'groups' parameter of SeTa must be an int in the range [2, 256]. Got 1 instead."
    )
    assert isinstance(caught.value, BatchloomError | ValueError)
    assert caught.value.exit_code == 2


def test_an_argument_by_position_is_named_too() -> None:
    assert SeTa(7, 0.5) == SeTa(groups=7, share=0.5)
    with pytest.raises(ParameterError, match="The 'share' parameter of SeTa must be a float"):
        SeTa(7, 2.0)
    with pytest.raises(
        ParameterError, match="Cut has 2 parameters and was given more: size, steps"
    ):
        Cut(1, 1, 1)  # type: ignore[call-arg]


def test_an_unknown_parameter_has_a_suggestion() -> None:
    with pytest.raises(ParameterError) as caught:
        SeTa(grops=3)  # type: ignore[call-arg]
    assert str(caught.value).startswith(
        "SeTa has no parameter 'grops'. Did you mean 'groups'? It has: groups, share, shift,"
    )
    with pytest.raises(ParameterError) as caught:
        SeTa(zzz=3)  # type: ignore[call-arg]
    assert "Did you mean" not in str(caught.value)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(ParameterError) as caught:
        Cut()  # type: ignore[call-arg]
    assert str(caught.value) == (
        "The 'size' parameter of Cut is required: an int in the range [1, inf)."
    )


def test_checks_over_several_parameters() -> None:
    assert Cut(6, 3).size == 6
    with pytest.raises(ParameterError) as caught:
        Cut(7, 3)
    assert str(caught.value) == "Cut: size 7 is no multiple of steps 3."


def test_long_values_are_cut_short() -> None:
    for value in (list(range(10_000)), np.arange(10**6), "x" * 10_000):
        with pytest.raises(ParameterError) as caught:
            SeTa(groups=value)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300


def test_texts_and_numpy_numbers_are_read() -> None:
    """As they come from a command line or from an array."""
    read = SeTa(groups="7", share=np.float32(0.25), rounds=np.int64(3), deep="true")  # type: ignore[arg-type]
    assert read == SeTa(groups=7, share=0.25, rounds=3, deep=True)
    assert type(read.groups) is int
    assert type(read.rounds) is int


def test_instances_are_frozen_values() -> None:
    one = SeTa(groups=7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.groups = 3  # type: ignore[misc]
    assert one == SeTa(groups=7) != SeTa(groups=8)
    assert pickle.loads(pickle.dumps(one)) == one
    assert dataclasses.replace(one, share=0.5) == SeTa(groups=7, share=0.5)
    with pytest.raises(ParameterError, match="'groups' parameter"):
        dataclasses.replace(one, groups=1)
    assert SeTa.__doc__ == "Parameters like those of a method."
    SeTa().columns.append("y")
    assert SeTa().columns == ["x"]


def test_resolved_is_plain_json() -> None:
    values = resolved(SeTa(groups=7, schedule={3: 4}))
    assert values == {
        "groups": 7,
        "share": 0.1,
        "shift": 0.0,
        "rounds": None,
        "order": "loss",
        "columns": ["x"],
        "schedule": {"3": 4},
        "label": None,
        "deep": False,
    }
    assert list(values) == [f.name for f in dataclasses.fields(SeTa)]  # type: ignore[arg-type]
    assert json.loads(json.dumps(values)) == plain_json(values, "values") == values


def test_descriptions() -> None:
    described = {p.name: p for p in describe_parameters(SeTa)}
    assert described["groups"].allowed == "an int in the range [2, 256]"
    assert described["groups"].default == 5
    assert described["groups"].description == "groups of difficulty"
    assert described["columns"].default == ["x"]
    assert not described["columns"].required
    size = next(describe_parameters(Cut))
    assert (size.name, size.required, size.default) == ("size", True, None)
