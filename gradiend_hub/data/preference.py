"""Preference pairs: a prompt with two completions, as TRL's data sets have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradiend_hub.errors import DataError

from .row import COLUMNS, Row

CHOSEN, REJECTED = "chosen", "rejected"

ANSWERS = "assistant"
"""Role of a message that a model has written."""


class Chat(tuple[tuple[str, str], ...]):
    """Messages of a conversation, each (role, content). As text, it is the contents."""

    def __str__(self) -> str:
        return "\n".join(content for _, content in self)

    @classmethod
    def read(cls, messages: Sequence[Any], column: str) -> Chat:
        """Read a list of messages with the keys `role` and `content`.

        Raises:
            DataError: One is no message of text.
        """
        found = []
        for message in messages:
            role, content = (message.get(k) for k in ("role", "content")) if isinstance(message, Mapping) else (0, 0)
            if not isinstance(role, str) or not isinstance(content, str):
                raise DataError(
                    f"{column!r}: expected messages {{'role': …, 'content': TEXT}}, found {str(message)[:80]!r}."
                )
            found.append((role, content))
        return cls(found)

    def messages(self) -> list[dict[str, str]]:
        """Return the messages as a chat template takes them."""
        return [{"role": role, "content": content} for role, content in self]


Text = str | Chat


@dataclass(frozen=True)
class PreferenceRow(Row):
    """A prompt with a factual and an alternative completion: each a text, or messages of a conversation."""

    input: Text
    factual: Text
    alternative: Text

    @property
    def group(self) -> Any:
        """Rows of one prompt depend on each other."""
        return self.input

    @property
    def swapped(self) -> PreferenceRow:
        """The other transition of the same pair."""
        return PreferenceRow(self.input, self.alternative, self.factual, self.alternative_class, self.factual_class)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> PreferenceRow:
        """Read a record with one of these sets of columns, where `prompt` may be missing if the completions begin with it:

        * `prompt`, `chosen`, `rejected`: the row's completion is the chosen one, of the class "chosen".
        * `prompt`, `factual`, `alternative`, `factual_class`, `alternative_class`.
        * `prompt` and two columns that are named like the classes.

        Raises:
            DataError: A column is missing, a value is neither text nor messages, or a completion is empty.
        """
        if {CHOSEN, REJECTED} <= record.keys():
            pair, classes = (CHOSEN, REJECTED), (CHOSEN, REJECTED)
        elif {*COLUMNS[1:]} <= record.keys():
            pair, classes = ("factual", "alternative"), (record["factual_class"], record["alternative_class"])
        else:
            named = [name for name in record if name != "prompt"]
            if len(named) != 2:
                raise DataError(
                    f"expected the columns ['prompt', 'chosen', 'rejected'], {['prompt', *COLUMNS[1:]]}, or 'prompt' "
                    f"and two named like the classes; found {sorted(map(str, record))}."
                )
            pair = classes = (named[0], named[1])
        first, second = (read_completion(record[name], name) for name in pair)
        prompt = None if record.get("prompt") is None else read_prompt(record["prompt"])
        if isinstance(prompt, str) and isinstance(first, Chat) and isinstance(second, Chat):
            whole = (
                first[:1] == second[:1] and len(first) > 1
            )  # whole conversations beside the question, as in UltraFeedback
            prompt = None if whole else Chat([("user", prompt)])
        if prompt is None:
            prompt, first, second = _implicit(first, second)
        for name, completion in zip(pair, (first, second), strict=True):
            if not str(completion).strip():
                raise DataError(f"{name!r} is empty behind the prompt {str(prompt)[:60]!r}.")
            if isinstance(completion, Chat) and completion[0][0] != ANSWERS:
                raise DataError(
                    f"{name!r} begins with a message of the role {completion[0][0]!r:.40}; expected {ANSWERS!r}, whose "
                    "answer is learned from. What others say belongs to the prompt."
                )
        if first == second:
            raise DataError(
                f"{pair[0]!r} and {pair[1]!r} are the same, {str(first)[:60]!r}, so there is nothing to prefer. Leave such "
                "pairs out."
            )
        for name in classes:
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"a class must be a non-empty text, found {name!r}.")
        if classes[0] == classes[1]:
            raise DataError(f"both completions are of the class {classes[0]!r}: expected one of each class.")
        return cls(prompt, first, second, *classes)

    def record(self) -> dict[str, Any]:
        """Return the record that `read` reads back."""
        values = [v.messages() if isinstance(v, Chat) else v for v in (self.input, self.factual, self.alternative)]
        return dict(zip(("prompt", *COLUMNS[1:]), (*values, self.factual_class, self.alternative_class), strict=True))


def shared_beginning(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many characters two texts, or how many messages two conversations, begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def read_prompt(value: Any) -> Text:
    """Read a prompt: a text, or messages. Raises `DataError` if it is neither, or empty."""
    prompt = read_completion(value, "prompt")
    if not str(prompt).strip():
        raise DataError("'prompt' is empty: there is nothing to complete.")
    return prompt


def read_completion(value: Any, column: str) -> Text:
    """Read a completion: a text, or messages. Raises `DataError` if it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return Chat.read(value, column)
    raise DataError(f"{column!r} must be a text or a list of messages, found {str(value)[:80]!r}.")


def _implicit(first: Text, second: Text) -> tuple[Text, Text, Text]:
    """Split the prompt off two whole texts (or conversations): what they begin with in common, up to a word's beginning."""
    if isinstance(first, Chat) and isinstance(second, Chat):
        count = shared_beginning(first, second)
        found: tuple[Text, Text, Text] = Chat(first[:count]), Chat(first[count:]), Chat(second[count:])
    elif isinstance(first, str) and isinstance(second, str):
        cut = shared_beginning(first, second)
        while cut and not first[cut - 1].isspace():  # two words may begin alike
            cut -= 1
        cut -= cut > 0
        found = first[:cut], first[cut:], second[cut:]
    else:
        raise DataError("one completion is a text and the other a list of messages: expected two of a kind.")
    if not str(found[0]).strip():
        raise DataError(
            f"column 'prompt' is missing, and {str(first)[:40]!r} and {str(second)[:40]!r} do not begin alike."
        )
    return found
