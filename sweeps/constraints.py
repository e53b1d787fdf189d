"""Constraints of a study: boolean expressions over settings, read as a small part of Python and never executed.

    objective.lambda_local > 0 or objective.lambda_temporal > 0
    not (objective.curriculum.kind == 'length' and data.sequence_length < 4)
    data.views in ['both', 'frontal']
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda value, among: value in among,
    ast.NotIn: lambda value, among: value not in among,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_NAMES = {"true": True, "false": False, "null": None}
"""YAML's words for what Python spells otherwise."""


class ConstraintError(ValueError):
    """A constraint that cannot be read or judged."""


@dataclass(frozen=True)
class Constraint:
    """One expression that every arm must fulfil."""

    text: str
    keys: frozenset[str]
    """The dotted settings on which it depends."""

    @staticmethod
    def parse(text: str) -> Constraint:
        """Read an expression.

        Raises:
            ConstraintError: not an expression, or one that does more than compare settings and numbers.
        """
        constraint = Constraint(text, frozenset(_keys(_expression(text))))
        if not constraint.keys:
            raise ConstraintError(f"constraint '{text}': no setting stands in it")
        return constraint

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Judge it on settings, which must hold all of `keys`.

        Raises:
            ConstraintError: values that cannot be compared.
        """
        try:
            found = _value(_expression(self.text), values)
        except (TypeError, ZeroDivisionError) as error:
            raise ConstraintError(f"constraint '{self.text}': {error}") from None
        if not isinstance(found, bool):
            raise ConstraintError(f"constraint '{self.text}': is {found!r}, neither true nor false")
        return found


def _expression(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ConstraintError(f"constraint '{text}': {error.msg}, at character {error.offset}") from None


def _dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (parent := _dotted(node.value)) is not None:
        return f"{parent}.{node.attr}"
    return None


def _keys(node: ast.expr) -> set[str]:
    """The settings in an expression; refuses every part that is none of those known here."""
    key = _dotted(node)
    if key is not None:
        return set() if key in _NAMES else {key}
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return set()
        case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            return set().union(*map(_keys, parts))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
            return _keys(part)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _keys(left) | _keys(right)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            return _keys(left).union(*map(_keys, others))
    raise ConstraintError(f"'{ast.unparse(node)}': a constraint may hold settings, numbers, texts, lists, comparisons, "
                          "+ - * / %, and, or, not")


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    key = _dotted(node)
    if key is not None:
        return _NAMES[key] if key in _NAMES else values[key]
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part, values) for part in parts]
        case ast.BoolOp(op=op, values=parts):
            # Every part is judged, so that a wrong one is found whatever the others say.
            truths = [_truth(part, values) for part in parts]
            return all(truths) if isinstance(op, ast.And) else any(truths)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _truth(part, values)
        case ast.UnaryOp(operand=part):
            return -_value(part, values)
        case ast.BinOp(left=left, op=arithmetic, right=right):
            return _ARITHMETIC[type(arithmetic)](_value(left, values), _value(right, values))
        case ast.Compare(left=left, ops=ops, comparators=others):
            pairs = itertools.pairwise(_value(part, values) for part in (left, *others))
            return all(_COMPARISONS[type(op)](*pair) for op, pair in zip(ops, pairs, strict=True))
    raise AssertionError(f"not refused when it was read: {ast.dump(node)}")


def _truth(node: ast.expr, values: Mapping[str, Any]) -> bool:
    found = _value(node, values)
    if not isinstance(found, bool):
        raise TypeError(f"'{ast.unparse(node)}' is {found!r}, neither true nor false")
    return found
