"""JSON values as annotated dataclasses, with every type checked.

A field that an older version wrote under another name says so: `field(metadata={"formerly": "lm_score"})`. A field that
this version does not know was added by a newer one, and is left out.
"""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_as(kind: type[T], value: Any, where: str = "report") -> T:
    """The JSON value `value` as a `kind`: a dataclass, or a list, dictionary, union or scalar of such.

    Raises:
        TypeError: a value of another type, or a missing field; the message names its place.
        ValueError: a number that is not finite.
    """
    result: T = _read(kind, value, where)
    return result


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is list and isinstance(value, list):
        return [_read(args[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: _read(args[1], item, f"{where}.{name}") for name, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; only finite numbers are allowed")
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if kind is type(None) and value is None:
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise TypeError(f"{where}: expected {expected}, found {str(value)[:40]!r} ({type(value).__name__})")


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{where}: expected an object with the fields of {kind.__name__}, found {type(value).__name__}")
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):
        name = next((n for n in (field.name, field.metadata.get("formerly")) if n in value), None)
        if name is not None:
            given[field.name] = _read(hints[field.name], value[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise TypeError(f"{where}: the field {field.name!r} of {kind.__name__} is missing")
    return kind(**given)


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _read(kind, value, where)
        except TypeError as error:
            problems.append(error)
    raise problems[0]
