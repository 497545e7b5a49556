"""Checks of the settings of every experiment, before anything is computed or written."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import typing
from collections.abc import Mapping
from typing import Any

from catapult_ext import _validate as v

_ONE = {int: "an int", float: "a finite number", str: "a word", bool: "True or False"}
_MANY = {int: "distinct ints", float: "finite numbers", str: "distinct words"}
USUAL: dict[type, dict[str, Any]] = {int: {"least": 1}, float: {"above": 0}}


def setting(default: Any, **rule: Any) -> Any:
    """A field whose allowed values differ from the default for its type.

    By default ints are >= 1 and floats > 0, and a field with several values has at least one.

    Args:
        default: default value of the field.
        **rule: ``least``, ``above`` or ``below``, bounds of every value.  A field with several
            values also takes ``count``, ``ascending`` and ``some_below`` (at least one value is
            below it).
    """
    return dataclasses.field(default=default, metadata=rule)


def check(experiment: str, settings: Any) -> None:
    """Every field must be of its type and in its range.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of range, or the same one twice.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        *kinds, last = typing.get_args(hints[field.name]) or (hints[field.name],)
        optional = last is type(None)
        if value is None and optional:
            continue
        many = last is Ellipsis
        kind = kinds[0] if many or optional else last
        bounded = {"least", "above"} & set(field.metadata)
        rule = ({} if bounded else USUAL.get(kind, {})) | dict(field.metadata)
        wanted = _wanted(kind, many, rule) + (" or None" if optional else "")
        problem = "reproduce", f"{field.name} of {experiment} must be {wanted}", repr(value)
        values = value if many else (value,)
        if not isinstance(values, tuple) or not all(_is(x, kind) for x in values):
            v.fail(*problem, TypeError)
        v.require(_in_range(values, kind, rule), *problem)


def _wanted(kind: type, many: bool, rule: Mapping[str, Any]) -> str:
    bounds = {"least": ">=", "above": ">", "below": "<"}
    text = " and ".join(f"{sign} {rule[k]}" for k, sign in bounds.items() if k in rule)
    if not many:
        return f"{_ONE[kind]} {text}".rstrip()
    number = rule.get("count", "one or more")
    text = f"{number} {_MANY[kind]} {text}".rstrip()
    text += ", distinct in six digits" if kind is float else ""
    text += ", ascending" if rule.get("ascending") else ""
    return text + (f", one of them < {rule['some_below']}" if "some_below" in rule else "")


def _is(value: Any, kind: type) -> bool:
    fits = isinstance(value, (int, float) if kind is float else kind)
    return fits and (kind is bool or not isinstance(value, bool))


def _in_range(values: tuple[Any, ...], kind: type, rule: Mapping[str, Any]) -> bool:
    if len(values) != rule.get("count", max(1, len(values))):
        return False
    if kind in USUAL:
        least, above = rule.get("least", -float("inf")), rule.get("above", -float("inf"))
        inside = (least <= x and above < x < rule.get("below", float("inf")) for x in values)
        if not all(abs(x) <= sys.float_info.max for x in values) or not all(inside):
            return False
    names = {f"{x:g}" if kind is float else x for x in values}  # as the parts are called
    ordered = not rule.get("ascending") or all(a < b for a, b in itertools.pairwise(values))
    some = "some_below" not in rule or min(values) < rule["some_below"]
    return len(names) == len(values) and ordered and some
