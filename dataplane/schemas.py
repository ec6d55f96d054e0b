"""Schemas of fragments: when two columns have one type, and what is said where they do not.

Two types are the same *plainly* where they differ in nullability, in the names of list items, in
metadata, or in an extension type that a package has registered (HF ``datasets`` does): none of
these changes a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from .canonical import digest
from .errors import DatasetError, MissingColumnError, SchemaDriftError, nearest

__all__ = [
    "drift",
    "missing_column",
    "plain_schema",
    "plain_type",
    "refuse_equal_names",
    "schema_digest",
]


def plain_type(type_: Any, *, storage: bool = False) -> Any:
    """Return a type without nullability, item names and foreign extensions.

    With `storage` Arrow's own extension types (``arrow.fixed_shape_tensor``) go too: which of them
    a reader knows depends on its version.
    """
    if isinstance(type_, pa.BaseExtensionType):
        if type_.extension_name.startswith("arrow.") and not storage:
            return type_
        return plain_type(type_.storage_type, storage=storage)
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, plain_type(f.type, storage=storage)) for f in type_])
    if pa.types.is_map(type_):
        key = plain_type(type_.key_type, storage=storage)
        return pa.map_(key, plain_type(type_.item_type, storage=storage), type_.keys_sorted)
    if pa.types.is_fixed_size_list(type_) and type_.list_size > 0:
        return pa.list_(plain_type(type_.value_type, storage=storage), type_.list_size)
    if pa.types.is_list(type_):
        return pa.list_(plain_type(type_.value_type, storage=storage))
    if pa.types.is_large_list(type_):
        return pa.large_list(plain_type(type_.value_type, storage=storage))
    return type_


def plain_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return all columns of some schemas, each with its plain type in the first that has it."""
    fields: dict[str, pa.Field] = {}
    seen: set[int] = set()
    for schema in schemas:
        if id(schema) not in seen:  # fragments with equal schemas share one object
            seen.add(id(schema))
            for column in schema:
                if column.name not in fields:
                    fields[column.name] = pa.field(column.name, plain_type(column.type))
    return pa.schema(list(fields.values()))


def schema_digest(schema: pa.Schema) -> str:
    """Return a digest of column names and types; metadata and nullability do not count."""
    types = {f.name: str(plain_type(f.type, storage=True)) for f in schema}
    return digest([[name, types[name]] for name in sorted(types)])


def refuse_equal_names(schema: pa.Schema, label: str) -> None:
    """Raise `DatasetError` where two columns of a fragment have one name."""
    if len(set(schema.names)) < len(schema.names):
        name = next(n for n in schema.names if schema.names.count(n) > 1)
        raise DatasetError(f"{label}: two columns have the same name '{name}'; rename one of them.")


def missing_column(name: str, known: Sequence[str], where: str) -> MissingColumnError:
    """Say which columns exist and which is nearest."""
    names = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
    return MissingColumnError(
        f"There is no column '{name}' in {where}.{nearest(name, known)} It has: {names or 'none'}."
    )


def drift(label: str, column: str, found: Any, expected: Any) -> SchemaDriftError:
    """Say that one fragment holds a column as another type, or not at all (`found` is None)."""
    if found is None:
        return SchemaDriftError(
            f"{label} has no column '{column}'; other fragments have it as {expected}. "
            "Leave that file out, or rewrite it with the column."
        )
    return SchemaDriftError(
        f"Column '{column}' is {found} in {label} but {expected} in the fragments before it. "
        "Rewrite that file with the same type; Batchloom never casts silently."
    )
