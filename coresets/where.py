"""Rows for which an expression over columns is true.

    >>> expression = parse_where("score > 0.5 and lang in ['en', 'de'] and text is not null")
    >>> expression.columns
    ('lang', 'score', 'text')
    >>> expression.mask(record_batch)

Python's syntax: comparisons (also chained), ``and or not``, ``in`` a list, ``+ - * / %``, numbers,
strings, ``True False``, ``is null``, ``is not null``, fields of structs as ``meta.lang``, and
``col('any name')`` for names that are no identifiers. A comparison with null is not true, so that
row does not take part. Nothing is evaluated by Python: the parsed tree maps onto Arrow's kernels.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataplane.columns import as_arrow, as_numpy
from ..dataplane.errors import ColumnTypeError, JobSpecError

__all__ = ["Expression", "parse_where"]

_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
    ast.Mod: lambda a, b: pc.subtract(a, pc.multiply(pc.floor(pc.divide(a, b)), b)),
}


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes
    ----------
    text : str
    columns : tuple of str
        Top-level columns that it reads, sorted.
    """

    text: str
    tree: ast.expr
    columns: tuple[str, ...]

    def mask(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Return where the expression is true; shape (rows,)."""
        try:
            value = _evaluate(self.tree, batch)
        except (pa.ArrowException, TypeError, ArithmeticError) as error:
            reason = str(error).split("\n")[0]
            raise ColumnTypeError(f"The expression '{self.text}' fails: {reason}.") from error
        if isinstance(value, bool | pa.Scalar):
            value = pa.array([value.as_py() if isinstance(value, pa.Scalar) else value])
            value = value.take(as_arrow(np.zeros(batch.num_rows, np.int64)))
        if not isinstance(value, pa.Array) or not pa.types.is_boolean(value.type):
            kind = getattr(value, "type", type(value).__name__)
            raise ColumnTypeError(
                f"The expression '{self.text}' gives {kind}: expected true or false for each row, "
                "for example 'score > 0.5'."
            )
        return as_numpy(value.fill_null(False))


def parse_where(text: str) -> Expression:
    """Parse an expression; `JobSpecError` points at what does not parse."""
    prepared = re.sub(r"\bis\s+not\s+null\b", "is not None", text)
    prepared = re.sub(r"\bis\s+null\b", "is None", prepared)
    try:
        tree = ast.parse(prepared.strip(), mode="eval").body
    except SyntaxError as error:
        at = f" at character {error.offset}" if error.offset else ""
        raise JobSpecError(
            f"The expression '{text}' does not parse{at}: {error.msg}. "
            "Write it as in Python: \"score > 0.5 and lang == 'en'\"."
        ) from None
    names = tuple(sorted(set(_names(tree, text))))
    return Expression(text, tree, names)


def _names(node: ast.expr, text: str) -> Iterator[str]:
    """Yield top-level columns; refuse what the language does not have."""
    match node:
        case ast.Name(id=name):
            yield name
        case ast.Attribute(value=inner):
            yield from _names(inner, text)
        case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str(name))], keywords=[]):
            yield name
        case ast.BoolOp(values=values):
            for value in values:
                yield from _names(value, text)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=inner):
            yield from _names(inner, text)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            yield from _names(left, text)
            yield from _names(right, text)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            for op in ops:
                if type(op) not in _COMPARE and not isinstance(
                    op, ast.In | ast.NotIn | ast.Is | ast.IsNot
                ):
                    raise _unknown(op, text)
            yield from _names(left, text)
            for right in rights:
                yield from _names(right, text)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            for item in items:
                yield from _names(item, text)
        case ast.Constant():
            return
        case _:
            raise _unknown(node, text)


def _unknown(node: ast.AST, text: str) -> JobSpecError:
    what = type(node).__name__
    return JobSpecError(
        f"The expression '{text}' uses {what}, which is not in the language: comparisons, and, or, "
        "not, in [...], is null, arithmetic, and columns."
    )


def _evaluate(node: ast.expr, batch: pa.RecordBatch) -> Any:
    match node:
        case ast.Name(id=name):
            return batch.column(name)
        case ast.Call(args=[ast.Constant(value=quoted)]):
            return batch.column(str(quoted))
        case ast.Attribute(value=inner, attr=name):
            return pc.struct_field(_evaluate(inner, batch), name)
        case ast.Constant(value=literal):
            return literal
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item, batch) for item in items]
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return pc.invert(_evaluate(inner, batch))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _evaluate(inner, batch)
            return operator.neg(number) if isinstance(number, int | float) else pc.negate(number)
        case ast.UnaryOp(operand=inner):
            return _evaluate(inner, batch)
        case ast.BoolOp(op=both, values=terms):
            join = pc.and_kleene if isinstance(both, ast.And) else pc.or_kleene
            result = _evaluate(terms[0], batch)
            for term in terms[1:]:
                result = join(result, _evaluate(term, batch))
            return result
        case ast.BinOp(left=left, op=sign, right=right):
            a, b = _evaluate(left, batch), _evaluate(right, batch)
            if isinstance(sign, ast.Div | ast.Mod):  # as in Python, not integer division
                a = a.cast(pa.float64()) if isinstance(a, pa.Array) else float(a)
            return _ARITHMETIC[type(sign)](a, b)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            return _compare(left, ops, rights, batch)
    raise TypeError(f"cannot evaluate {ast.dump(node)}")


def _compare(
    left: ast.expr, ops: list[ast.cmpop], rights: list[ast.expr], batch: pa.RecordBatch
) -> Any:
    result: Any = None
    a = _evaluate(left, batch)
    for op, right in zip(ops, rights, strict=True):
        b = _evaluate(right, batch)
        if isinstance(op, ast.Is | ast.IsNot):
            if b is not None:
                raise TypeError("'is' only compares with null")
            one = pc.is_null(a) if isinstance(op, ast.Is) else pc.is_valid(a)
        elif isinstance(op, ast.In | ast.NotIn):
            one = _is_in(a, b)
            one = pc.invert(one) if isinstance(op, ast.NotIn) else one
        else:
            one = _COMPARE[type(op)](a, b)
        result = one if result is None else pc.and_kleene(result, one)
        a = b
    return result


def _is_in(values: Any, items: Any) -> Any:
    """Membership, with null where the value is null."""
    if not isinstance(values, pa.Array) or not isinstance(items, list):
        raise TypeError("'in' takes a column on its left and a list on its right")
    type_ = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    dense = values.cast(type_) if values.type != type_ else values
    found = pc.is_in(dense, value_set=pa.array(items, type=type_))
    return pc.if_else(pc.is_valid(dense), found, pa.scalar(None, pa.bool_()))
