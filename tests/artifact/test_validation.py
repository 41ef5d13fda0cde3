"""The checker: what JSON can hold is taken if it is of the type that is asked for, and named by its place if not."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiend_hub.artifact.validation import (
    FILLED,
    POSITIVE,
    Limit,
    at_least,
    check,
    check_fields,
    check_keys,
    one_of,
    read_as,
    read_json,
)  # fmt: skip
from gradiend_hub.errors import ConfigError


class Colour(Enum):
    RED = "red"


class Shape(TypedDict):
    size: Annotated[int, at_least(1)]
    name: str | None


@dataclass(frozen=True)
class Part:
    share: Annotated[float, POSITIVE]
    names: list[Annotated[str, FILLED]] = field(default_factory=list)
    new: int = field(default=0, metadata={"formerly": "old"})


@dataclass(frozen=True)
class Whole:
    parts: dict[str, Part]
    best: Part | None = None
    kind: Literal["a", "b"] = "a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
KINDS = [
    bool, int, float, str, type(None), list[int], dict[str, float], int | None, list[str] | str, Shape, Part, Whole,
    Annotated[int, one_of(1, 2)], Literal[1, "x"], Colour, Sequence[str], Mapping[str, int], tuple[int, ...],
]  # fmt: skip


def fits(kind: Any, value: Any) -> bool:
    """An independent statement of a few kinds."""
    if kind is bool or kind is type(None):
        return type(value) is kind
    if kind is str:
        return type(value) is str and all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\t\n\r" for c in value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    if kind is float:
        return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 10**308)
    return {
        list[int]: lambda: type(value) is list and all(fits(int, v) for v in value),
        dict[str, float]: lambda: (
            type(value) is dict and all(fits(str, key) and fits(float, v) for key, v in value.items())
        ),
        int | None: lambda: value is None or fits(int, value),
        list[str] | str: lambda: fits(str, value) or (type(value) is list and all(fits(str, v) for v in value)),
        Sequence[str]: lambda: type(value) is list and all(fits(str, v) for v in value),
    }[kind]()


@given(st.sampled_from([*KINDS[:9], Sequence[str]]), JSON)
def test_a_value_is_taken_exactly_if_it_is_of_the_type(kind: Any, value: Any) -> None:
    try:
        result = check(kind, value, "here")
    except ConfigError as error:
        assert not fits(kind, value)
        assert str(error).startswith("here")
        assert ": expected " in str(error)
    else:
        assert fits(kind, value)
        assert result == value


@given(st.sampled_from(KINDS), JSON)
def test_whatever_comes_there_is_an_answer(kind: Any, value: Any) -> None:
    try:
        check(kind, value, "here")
    except ConfigError as error:
        assert str(error).startswith("here")


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (float, True, "here: expected a number, found True."),
        (int, 1.0, "here: expected an integer, found 1.0."),
        (list[str], "ab", "here: expected a list (of a text each), found 'ab'."),
        (dict[str, int], {1: 2}, "here, key: expected a text, found 1."),
        (dict[str, int], {"a": "b"}, "here['a']: expected an integer, found 'b'."),
        (Part, {"names": ["x"]}, "here.share: expected a number > 0, found no such field."),
        (Part, {"share": 0.0}, "here.share: expected a number > 0, found 0.0."),
        (Part, {"share": "x"}, "here.share: expected a number > 0, found 'x'."),
        (Whole, {"parts": {"p": {"share": 1, "names": ["x", " "]}}},
         "here.parts['p'].names[1]: expected a non-empty text, found ' '."),
        (Whole, {"parts": {}, "best": {"share": -1}}, "here.best.share: expected a number > 0, found -1."),
        (Whole, {"parts": {}, "best": 3},
         "here.best: expected a mapping with keys such as share, found 3."),
        (Whole, {"parts": {}, "kind": "c"}, "here.kind: expected one of a, b, found 'c'."),
        (Shape, {"size": 1}, "here: expected a mapping with the keys size, name, found {'size': 1}."),
        (Shape, {"size": 0, "name": None}, "here.size: expected an integer of 1 or more, found 0."),
        (Colour, "blue", "here: expected one of red, found 'blue'."),
        (int | None, [3] * 50, f"here: expected an integer, found {str([3] * 50)[:80]}…."),
    ],
)  # fmt: skip
def test_messages(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(kind, value, "here")
    assert str(caught.value) == message


def test_a_value_that_cannot_be_printed_is_refused_all_the_same() -> None:
    endless: list[Any] = []
    for value in (10**5000, endless):
        endless.append([endless] * 3)
        with pytest.raises(ConfigError, match=r"^here: expected a text, found "):
            check(str, value, "here")


def test_objects_are_made_from_json() -> None:
    made = read_as(Whole, {"parts": {"p": {"share": 1, "old": 2, "of the future": []}}, "best": {"share": 0.5}})
    assert made == Whole({"p": Part(1.0, new=2)}, Part(0.5))
    assert type(made.parts["p"].share) is float
    assert read_as(Whole, {"parts": {"p": made.best}}).parts["p"] is made.best


def test_an_object_is_checked_by_its_fields() -> None:
    check_fields(Part(1.0), "Part.")
    with pytest.raises(ConfigError, match=r"^Part\.names\[0\]: expected a non-empty text"):
        check_fields(Part(1.0, [""]), "Part.")
    with pytest.raises(ConfigError, match=r"^Part\.new: expected two, found 3"):
        check_fields(Part(1.0, new=3), "Part.", new=Annotated[int, Limit("two", lambda number: number == 2)])


def test_unknown_keys_have_a_nearest_one() -> None:
    check_keys(["size"], ["size", "name"], "part.")
    with pytest.raises(ConfigError, match=r"Unknown key part\.sise: did you mean part\.size\?"):
        check_keys(["sise"], ["size", "name"], "part.")
    with pytest.raises(ConfigError, match="Unknown key 7: expected one of size, name"):
        check_keys([7], ["size", "name"], "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": NaN}', "NaN"), ("[-Infinity]", "-Infinity"), ("[1e999]", "1e999"), ("[" * 100_000, "nested"),
        ("{", "Expecting"), ("[" + "1," * 600 + "1]", "more than the 1,000"),
    ],
)  # fmt: skip
def test_files_that_are_not_read(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_json(path, 1_000 if "more" in reason else 2**20)
    path.write_text(json.dumps({"a": 1.5}))
    assert read_json(path, 10) == {"a": 1.5}
