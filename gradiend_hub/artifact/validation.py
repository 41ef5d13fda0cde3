"""The one checker of values that users and strangers' files give: annotated types, and limits on them.

A dataclass says what its fields may hold, `density: Annotated[float, Limit("a number in (0, 1]", …)]`, and

* `check_fields` checks an object that was made of such values, before anything uses it;
* `read_as` makes one of a JSON value. A field that an older version wrote under another name says so by
  `field(metadata={"formerly": "lm_score"})`; one that this version does not know was added by a newer one, and is left out.

Numbers are finite, true and false are no numbers, and a string is no list of its letters. No text, wherever it stands,
gives orders to a terminal; a name (`NAME`) also holds nothing that is invisible, reorders it, or breaks the line.
"""

from __future__ import annotations

import difflib
import json
import reprlib
import sys
import types
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from gradiend_hub.errors import ConfigError
from gradiend_hub.printable import is_legible, is_printable, printable

T = TypeVar("T")

LARGEST_INTEGER = 2**63 - 1
"""Largest integer of Arrow, safetensors and C."""

DEEPEST = 32
"""Containers within containers that are read."""

LONGEST_NAME = 1000
"""Characters of a name."""

_SHORT = reprlib.Repr()
"""Shows the beginning of a value: parts that are there many times over make a whole that fits into no memory."""
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxtuple = 3, 40, 40, 40
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200

_NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "None"}


@dataclass(frozen=True)
class Limit:
    """A condition on a value beside its type, as a part of `Annotated`.

    Attributes:
        expected: what fits, in words, e.g. "a number in (0, 1]".
        holds: is given a value of the right type, and returns whether it fits.
    """

    expected: str
    holds: Callable[[Any], bool]


def one_of(*values: Any) -> Limit:
    """Return the limit to some values."""
    return Limit(f"one of {', '.join(map(str, values))}", values.__contains__)


def at_least(least: int) -> Limit:
    """Return the limit to integers from one on."""
    return Limit(f"an integer of {least} or more", lambda number: number >= least)


def at_most(most: int, what: str) -> Limit:
    """Return the limit to containers with so many items."""
    return Limit(f"at most {most:,} {what}", lambda items: len(items) <= most)


FILLED = Limit("a non-empty text", lambda text: bool(text.strip()))
NAME = Limit(
    f"a text of one line and at most {LONGEST_NAME} characters, none of which is invisible",
    lambda text: len(text) <= LONGEST_NAME and is_printable(text),
)
POSITIVE = Limit("a number > 0", lambda number: number > 0)
TWO = Limit("a list of two", lambda values: len(values) == 2)
SHARE = Limit("a number in (0, 1]", lambda number: 0 < number <= 1)


class _Mismatch(ConfigError):
    """A value that does not fit, and its place."""

    def __init__(self, where: str, expected: str, found: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}.")
        self.where = where


class _Illegible(_Mismatch):
    """A text that would act on a terminal, or cannot be encoded."""


def read_as(kind: type[T], value: Any, where: str = "report") -> T:
    """Make a `kind` of a JSON value: a dataclass, or a list, dictionary, union or scalar of such.

    Raises:
        ConfigError: a value of another type or outside of its limits, or a missing field; the message names its place.
    """
    result: T = check(kind, value, where)
    return result


def check_fields(section: Any, where: str, names: Collection[str] | None = None, **kinds: Any) -> None:
    """Check the value of every field of a dataclass object.

    Args:
        section: the object, just made.
        where: what the messages begin with, e.g. "GradiendConfig.".
        names: the fields to check; all of them by default.
        kinds: types of fields that are annotated elsewhere, and not as strictly.

    Raises:
        ConfigError: a value does not fit; the message names its place.
    """
    made: Any = type(section)
    hints = {**_hints(made), **kinds}
    for field in (field for field in fields(section) if names is None or field.name in names):
        check(hints[field.name], getattr(section, field.name), f"{where}{field.name}")


def check(kind: Any, value: Any, where: str) -> Any:
    """Return a value as a `kind`, which may be annotated, a dataclass, a container or a union.

    Raises:
        ConfigError: it does not fit; the message names its place.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _limited(args[0], args[1:], value, where)
    if origin in (Union, types.UnionType):
        return _one_of(kind, args, value, where)
    if is_dataclass(kind) and isinstance(kind, type) and not isinstance(value, kind):
        return _object(kind, value, where)
    if is_typeddict(kind):
        if not (isinstance(value, dict) and kind.__required_keys__ <= value.keys() <= _hints(kind).keys()):
            raise _Mismatch(where, _described(kind), _shown(value))
        return {n: check(of, value[n], f"{where}.{n}") for n, of in _hints(kind).items() if n in value}
    if origin in (list, tuple, Sequence) and isinstance(value, list if origin is list else Sequence):
        if not isinstance(value, (str, bytes)):
            return [check(args[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    elif origin in (dict, Mapping) and isinstance(value, dict if origin is dict else Mapping):
        return {
            check(args[0], key, f"{where}, key"): check(args[1], item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    elif _is(kind, origin, args, value):
        if kind in (str, Any):
            _require_legible(value, where)
        return float(value) if kind is float else value
    raise _Mismatch(where, _described(kind), _shown(value))


def _require_legible(value: Any, where: str, depth: int = 0) -> None:
    """Refuse texts, also those within containers of any kind, that would act on a terminal or cannot be encoded."""
    if isinstance(value, str):
        if not is_legible(value):
            raise _Illegible(where, "a text without control characters", _shown(value))
    elif depth > DEEPEST:
        raise _Mismatch(where, f"at most {DEEPEST} containers within each other", "more")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _require_legible(key, where, depth + 1)
            _require_legible(item, where, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _require_legible(item, where, depth + 1)


def _is(kind: Any, origin: Any, args: tuple[Any, ...], value: Any) -> bool:
    """Return whether a value is of a type that has no parts."""
    if kind is Any:
        return True
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if origin is not None:  # list[int] is an instance of `type` on Python 3.10
        return False
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return is_number(value)
    if kind is int:
        return isinstance(value, int) and abs(value) <= LARGEST_INTEGER
    if isinstance(kind, type) and issubclass(kind, Enum):
        return isinstance(value, kind) or value in [member.value for member in kind]
    return isinstance(kind, type) and isinstance(value, kind)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _limited(kind: Any, limits: Sequence[Limit], value: Any, where: str) -> Any:
    try:
        result = check(kind, value, where)
    except _Illegible:
        raise
    except _Mismatch as error:
        if error.where == where:  # the limit says what is expected better than the type does
            raise _Mismatch(where, limits[0].expected, _shown(value)) from None
        raise
    for limit in limits:
        if not limit.holds(result):
            raise _Mismatch(where, limit.expected, _shown(value))
    return result


def _one_of(kind: Any, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    inner = None
    for one in kinds:
        try:
            return check(one, value, where)
        except _Mismatch as error:
            if error.where != where:
                inner = inner or error  # of the right shape, but with a wrong part
    raise inner or _Mismatch(where, _described(kind), _shown(value))


def _object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _Mismatch(where, _described(kind), _shown(value))
    hints, given = _hints(kind), {}
    for field in fields(kind):
        name = next((n for n in (field.name, field.metadata.get("formerly")) if n in value), None)
        if name is not None:
            given[field.name] = check(hints[field.name], value[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Mismatch(f"{where}.{field.name}", _described(hints[field.name]), "no such field")
    return kind(**given)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _described(kind: Any) -> str:
    """Return a type as a sentence names it."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return str(args[1].expected)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(one) for one in args if one is not type(None)))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (list, tuple, Sequence):
        return f"a list (of {_described(args[0])} each)"
    if origin in (dict, Mapping):
        return f"a mapping (from names to {_described(args[1])} each)"
    if is_dataclass(kind):
        return f"a mapping with keys such as {fields(kind)[0].name}"
    if is_typeddict(kind):
        return f"a mapping with the keys {', '.join(_hints(kind))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    try:
        text = _SHORT.repr(value)
    except (ValueError, RecursionError):  # of an integer of thousands of digits, or of nested lists without end
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"  # repr spells out what is not printable


def check_keys(found: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuse a key that nothing reads, and name the nearest one that something does.

    Raises:
        ConfigError: such a key.
    """
    names = list(known)
    for key in found:
        if key not in names:
            key = printable(key, 80)
            nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
            some = f"expected one of {', '.join(names[:24])}{', …' if len(names) > 24 else '.'}"
            raise ConfigError(f"Unknown key {where}{key}: {f'did you mean {where}{nearest[0]}?' if nearest else some}")


def read_json(path: Path, most_bytes: int, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Read a stranger's JSON file: of limited size, in UTF-8, with finite numbers.

    Args:
        path: the file.
        most_bytes: the largest size that is read.
        object_hook: is given every object, and returns what stands for it; see `json.loads`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `most_bytes`, or no such JSON.
    """
    return parse_json(read_text(path, most_bytes), object_hook)


def read_text(path: Path, most_bytes: int) -> str:
    """Read a stranger's text file: a regular one of limited size, in UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `most_bytes`, no file, or not UTF-8.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than the {most_bytes:,} bytes that are read")
    return content.decode("utf-8")


def parse_json(text: str, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse a stranger's JSON: not nested deeply, with finite numbers.

    Raises:
        ValueError: it is no such JSON.
    """
    try:
        hooks: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite}
        value = json.loads(text, **hooks, object_pairs_hook=lambda pairs: _object_of(pairs, object_hook))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [part for item in level for part in _parts(item)]
        if not level:
            return value
    raise ValueError(f"it is nested too deeply: more than {DEEPEST} containers within each other")


def _object_of(pairs: list[tuple[str, Any]], object_hook: Callable[[dict[str, Any]], Any] | None) -> Any:
    """Make an object of its keys and values; one that has a key twice says one thing to us and another one to others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has the key '{printable(name, 80)}' twice")
    return found if object_hook is None else object_hook(found)


def _parts(value: Any) -> Iterable[Any]:
    """The containers within a JSON value."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in parts if isinstance(part, (dict, list))]


def _finite(text: str) -> float:
    value = float(text)
    if not is_number(value):
        raise ValueError(f"it holds the number {text}, and only finite ones are allowed")
    return value
