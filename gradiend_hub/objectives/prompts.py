"""Prompts that a generating model answers, in its chat template where it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradiend_hub.errors import DataError

CHAT_PROMPTS = (
    "Explain how a bicycle works.",
    "Write three sentences about the sea.",
    "What is the difference between a lake and a river?",
    "How do I boil an egg?",
    "Give me two reasons to learn a second language.",
    "Describe a kitchen in the morning.",
    "Why is the sky blue?",
    "List four things to pack for a hike.",
    "What does a compiler do?",
    "How is bread made?",
    "Summarize what photosynthesis is.",
    "Suggest a name for a small bookshop.",
    "What should I check before buying a used car?",
    "Tell me about the history of paper.",
    "How does a refrigerator keep food cold?",
    "Write a short note to say that a meeting was moved.",
)
"""Questions that hold no feature in particular, for models that have a chat template: damage is measured on the replies."""

FITTED_PROMPTS = (
    "Explain how a clock keeps time.",
    "Write two sentences about a forest.",
    "What is the difference between a village and a town?",
    "How do I change a light bulb?",
    "Give me three tips for sleeping well.",
    "Describe a train station in the evening.",
    "Why do leaves fall in autumn?",
    "List five things that are found in a toolbox.",
    "What does an operating system do?",
    "How is glass made?",
    "Summarize how rain forms.",
    "Write a short message to say that a parcel has arrived.",
)
"""Others of the same kind: decoders are made to spare the replies to these."""


@dataclass(frozen=True)
class Prompt:
    """A text that a model answers, as the model reads it: with everything that its chat template adds."""

    text: str

    def __str__(self) -> str:
        return self.text


def read_prompt(record: Mapping[str, Any], tokenizer: Any) -> Prompt | None:
    """Make a prompt of a record with the column `prompt` or `messages`: a text, or messages with `role` and `content`.

    Returns:
        The prompt in the tokenizer's chat template, if it has one; else the contents of the messages, a line each. `None`
        for a record with neither column.

    Raises:
        DataError: The column holds neither, nothing, or messages that the template refuses.
    """
    column = next((name for name in ("prompt", "messages") if record.get(name) is not None), None)
    if column is None:
        return None
    given = record[column]
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not _are_messages(messages):
        raise DataError(
            f"expected a text, or messages with 'role' and 'content', in column {column!r}, found {str(given)[:80]!r}."
        )
    if getattr(tokenizer, "chat_template", None) is None:
        return Prompt("\n".join(message["content"] for message in messages))
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program: it raises what it likes
        raise DataError(f"the chat template refuses {str(given)[:80]!r}: {error}.") from error
    return Prompt(text)


def _are_messages(given: Any) -> bool:
    return (
        isinstance(given, Sequence)
        and len(given) > 0
        and all(
            isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in given
        )
        and any(m["content"].strip() for m in given)
    )
