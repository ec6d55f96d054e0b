"""Parameter classes: small frozen dataclasses whose errors all have one form.

    >>> @parameters
    ... class Window:
    ...     '''Parameters of a window.'''
    ...     size: Annotated[int, Field(ge=1, description="rows a window")] = 5
    >>> Window(size=0)
    ParameterError: The 'size' parameter of Window must be an int in the range [1, inf).
    Got 0 instead.

Ranges, defaults and descriptions stand once, in the class; the command line's help and the checks
of job files read them from there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, dataclass_transform

import annotated_types
import pydantic
import pydantic.dataclasses
from pydantic.fields import FieldInfo

from .errors import BatchloomError, ParameterError, nearest

__all__ = ["Parameter", "describe_parameters", "parameters", "resolved"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(pydantic.Field, dataclasses.field))
def parameters(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, validated dataclass that raises `ParameterError`."""
    # A NaN has no canonical form, so no plan could be named by it.
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if isinstance(cause, BatchloomError):  # a check of ours says it best itself
                raise cause from None
            raise ParameterError(_sentence(made, error)) from None

    made.__init__ = checked  # type: ignore[method-assign]
    return typing.cast("type[T]", made)


def resolved(instance: Any) -> dict[str, Any]:
    """Return the values of a parameter instance, defaults filled in, as plain JSON values."""
    return typing.cast(
        "dict[str, Any]",
        pydantic.TypeAdapter(type(instance)).dump_python(instance, mode="json"),
    )


@dataclass(frozen=True)
class Parameter:
    """One parameter as the help prints it."""

    name: str
    allowed: str
    default: Any
    required: bool
    description: str


def describe_parameters(cls: type) -> Iterator[Parameter]:
    """Yield each parameter of a class made by `parameters`, in order."""
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    for name, field in fields.items():
        yield Parameter(
            name=name,
            allowed=_allowed(field),
            default=None if field.is_required() else field.get_default(call_default_factory=True),
            required=field.is_required(),
            description=field.description or "",
        )


def _sentence(cls: type, error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    place = first["loc"][0] if first["loc"] else ""
    # An argument given by position is reported by its number.
    name = list(fields)[place] if isinstance(place, int) and place < len(fields) else str(place)
    owner = getattr(cls, "method", cls.__name__)  # a stage goes by the name of its method
    if first["type"] in ("missing", "missing_argument"):
        return f"The '{name}' parameter of {owner} is required: {_allowed(fields[name])}."
    if first["type"] == "unexpected_positional_argument":
        return f"{owner} has {len(fields)} parameters and was given more: {_names(fields)}."
    if name not in fields:
        if first["type"] == "value_error":  # a check over several parameters
            return f"{owner}: {first['msg'].removeprefix('Value error, ')}"
        return (
            f"{owner} has no parameter '{name}'.{nearest(name, fields)} It has: {_names(fields)}."
        )
    return (
        f"The '{name}' parameter of {owner} must be {_allowed(fields[name])}. "
        f"Got {_short.repr(first.get('input'))} instead.{_advice(fields[name])}"
    )


def _advice(field: FieldInfo) -> str:
    """Return what a field's ``json_schema_extra={"advice": …}`` says to do instead."""
    extra = field.json_schema_extra
    return f" {extra['advice']}" if isinstance(extra, dict) and "advice" in extra else ""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def _names(fields: dict[str, FieldInfo]) -> str:
    return ", ".join(fields) or "none"


def _allowed(field: FieldInfo) -> str:
    """Say in words what a field takes: "an int in the range [2, 256]"."""
    return _in_range(_noun(field.annotation), field.metadata)


def _in_range(noun: str, rules: Iterable[Any]) -> str:
    low, high, left, right = "-inf", "inf", "(", ")"
    for rule in rules:
        if isinstance(rule, annotated_types.Ge):
            low, left = str(rule.ge), "["
        elif isinstance(rule, annotated_types.Gt):
            low, left = str(rule.gt), "("
        elif isinstance(rule, annotated_types.Le):
            high, right = str(rule.le), "]"
        elif isinstance(rule, annotated_types.Lt):
            high, right = str(rule.lt), ")"
        elif isinstance(rule, annotated_types.MinLen):
            noun = f"{noun} of at least {rule.min_length} item{'s' * (rule.min_length > 1)}"
    if (low, high) == ("-inf", "inf"):
        return noun
    return f"{noun} in the range {left}{low}, {high}{right}"


def _noun(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_noun(a) for a in args)
    if origin is typing.Annotated:
        inner_rules = (m.metadata if isinstance(m, FieldInfo) else [m] for m in args[1:])
        return _in_range(_noun(args[0]), itertools.chain.from_iterable(inner_rules))
    if origin in (list, tuple):
        inner = next((a for a in args if a is not Ellipsis), str)
        return f"a list of {getattr(inner, '__name__', 'value')}"
    words = {int: "an int", float: "a float", str: "a string", bool: "a bool"}
    if annotation is None or annotation is type(None):
        return "None"
    return words.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")
