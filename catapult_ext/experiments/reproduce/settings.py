"""What the settings of every experiment must be, checked before anything is computed or written."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from typing import Any

from catapult_ext._validate import fail, require

_ONE = {"int": "an int", "float": "a finite number", "str": "a word", "bool": "True or False"}
_MANY = {"int": "distinct ints", "float": "finite numbers", "str": "distinct words"}
_TYPES: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}


def setting(default: Any, **rule: Any) -> Any:
    """A field of other values than its type says: ints >= 1 and floats > 0, one or more of them.

    Args:
        default: of the field.
        **rule: ``least``, ``above`` or ``below``: bounds of every value; of several values also
            ``count``, ``ascending`` and ``some_below``, which one of them must be.
    """
    return dataclasses.field(default=default, metadata=rule)


def check(experiment: str, settings: Any) -> None:
    """Every field must be of its type and in its range.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of range, or the same one twice.
    """
    for field in dataclasses.fields(settings):
        text, value = str(field.type), getattr(settings, field.name)
        if value is None and text.endswith("| None"):
            continue
        many = text.startswith("tuple")
        kind = text.removeprefix("tuple[").split(",")[0].split(" |")[0]
        rule = dict(field.metadata)
        if kind in ("int", "float") and not {"least", "above"} & set(rule):
            rule |= {"least": 1} if kind == "int" else {"above": 0}
        wanted = _wanted(kind, many, rule) + (" or None" if text.endswith("| None") else "")
        told = "reproduce", f"{field.name} of {experiment} must be {wanted}", repr(value)
        values = value if many else (value,)
        if not isinstance(values, tuple) or not all(_is(v, kind) for v in values):
            fail(*told, TypeError)
        require(_in_range(values, kind, rule), *told)


def _wanted(kind: str, many: bool, rule: Mapping[str, Any]) -> str:
    bounds = {"least": ">=", "above": ">", "below": "<"}
    text = " and ".join(f"{sign} {rule[k]}" for k, sign in bounds.items() if k in rule)
    if not many:
        return f"{_ONE[kind]} {text}".rstrip()
    number = rule.get("count", "one or more")
    text = f"{number} {_MANY[kind]} {text}".rstrip()
    text += ", distinct in six digits" if kind == "float" else ""
    text += ", ascending" if rule.get("ascending") else ""
    return text + (f", one of them < {rule['some_below']}" if "some_below" in rule else "")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def _in_range(values: tuple[Any, ...], kind: str, rule: Mapping[str, Any]) -> bool:
    if len(values) != rule.get("count", max(1, len(values))):
        return False
    if kind in ("int", "float"):
        least, above = rule.get("least", -float("inf")), rule.get("above", -float("inf"))
        inside = (least <= v and above < v < rule.get("below", float("inf")) for v in values)
        if not all(abs(v) <= sys.float_info.max for v in values) or not all(inside):
            return False
    names = {f"{v:g}" if kind == "float" else v for v in values}  # as the parts are called
    ordered = not rule.get("ascending") or all(a < b for a, b in itertools.pairwise(values))
    some = "some_below" not in rule or min(values) < rule["some_below"]
    return len(names) == len(values) and ordered and some
