"""Preference pairs: which of two completions a causal language model finds likelier behind a prompt."""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradiend_hub.data.preference import Chat, PreferenceRow, Text, read_completion, read_prompt, shared_beginning
from gradiend_hub.errors import ConfigError, DataError

from .causal_lm import CausalLMObjective
from .filling import Filled
from .logits import evaluating
from .prompts import Prompt
from .samples import Answer, Example, Reading, Sample

logger = logging.getLogger(__name__)

MOST_LEFT_OUT = 0.01
"""Share of the rows that may be left out because a completion is longer than the model reads."""
PROMPTS = 6

ROLES = ("system", "user", "assistant")
"""Roles that templates know; they may shorten what these say."""


@dataclass(frozen=True)
class NeutralPrompt:
    """A prompt without the feature, with a completion that an edit should leave as likely as it is."""

    prompt: Text
    completion: Text


class PreferenceObjective(CausalLMObjective):
    """−log P(completion | prompt) of the two completions of a pair, in a causal language model.

    Prompts and completions are texts, which are read as they are, or messages, which go through the tokenizer's chat
    template; of a chat, the token that ends the answer is read, too. The completion's tokens are those of the whole text. A
    prompt that is too long loses its beginning.

    The probability of a class at a row is the share of its completion among the two, so that it is above ½ on average where
    the model prefers it; with `GradiendConfig.fillers`, it is the probability of the class's short answers.

    Options:
        per_token: Divide −log P by the completion's number of tokens, so that long ones count no more.
        chat: Put a prompt that is asked as plain text into the chat template; by default, if the rows were messages.
    """

    name = "preference"
    columns = ("chosen", "rejected")
    asks = "PROMPT"
    probability_note = (
        "The probability of a class at a row is the share of its completion (or answers) among those of both classes behind "
        "the prompt. Share: pairs whose completion of the first class is the likelier one; log-odds: of the first class."
    )
    read_name = "the completion"
    output_name = "completion"
    relative = True

    def __init__(self, processor: Any, **options: Any) -> None:
        super().__init__(processor, **options)
        self.per_token = True
        self.chat = False

    def configure(self, *, per_token: bool = True, chat: bool = False, **unknown: Any) -> None:
        """Set the options."""
        super().configure(**unknown)
        for name, value in (("per_token", per_token), ("chat", chat)):
            if not isinstance(value, bool):
                raise ConfigError(f"objective_options[{name!r}] must be true or false, found {value!r}.")
        self.per_token, self.chat = per_token, chat

    @property
    def options(self) -> dict[str, Any]:
        """Return the options."""
        return {"per_token": self.per_token, "chat": self.chat}

    @property
    def key(self) -> str:
        """Name, longest input and reduction."""
        return f"{super().key}, {'mean' if self.per_token else 'sum'}"

    @classmethod
    def reads_columns(cls, columns: Collection[str]) -> bool:
        """Return whether there are pairs: `chosen` and `rejected`, or a `prompt` without a slot."""
        return super().reads_columns(columns) or ("prompt" in columns and "masked" not in columns)

    # -- rows -----------------------------------------------------------------------------------------------------------

    def read(self, record: Mapping[str, Any]) -> PreferenceRow:  # type: ignore[override]
        """Make a row of a pair; see `PreferenceRow.read`."""
        row = PreferenceRow.read(record)
        self.chat = self.chat or isinstance(row.input, Chat)
        return row

    def record(self, row: PreferenceRow) -> dict[str, Any]:  # type: ignore[override]
        """Return the record that `read` reads back."""
        return row.record()

    def prepare(self, rows: Sequence[Any], *, what: str = "dataset") -> list[Any]:
        """Return both transitions of every pair, without the pairs that have a completion longer than the model reads.

        Raises:
            DataError: These are more than 1 % of the pairs, or the model reads both completions of one alike.
        """
        kept, long = [], []
        for number, row in enumerate(rows):
            try:
                first, second = (self.filled(row.input, text).word for text in (row.factual, row.alternative))
            except DataError as error:
                raise DataError(f"{what}, row {number}: {error}") from error
            if first == second:
                raise DataError(
                    f"{what}, row {number}: {self.name_or_path} reads both completions of {str(row.input)[:60]!r} alike, so "
                    "there is nothing to prefer. Leave such pairs out."
                )
            lengths = [len(first), len(second)]
            if max(lengths) >= self.max_length:
                long.append(f"row {number} ({str(row.input)[:40]!r}) has a completion of {max(lengths)} tokens")
            else:
                kept += [row, row.swapped]
        if long:
            told = (
                f"{what}: {len(long)} of {len(rows)} pairs have a completion longer than {self.name_or_path} reads with a "
                f"prompt ({self.max_length} tokens); the first: {long[0]}."
            )
            if len(long) > MOST_LEFT_OUT * len(rows):
                raise DataError(f"{told} Shorten the completions, or leave these pairs out.")
            logger.warning("%s They are left out.", told)
        return list(dict.fromkeys(kept))

    def fillers(self, rows: Sequence[Any], classes: Sequence[str]) -> dict[str, list[str]]:
        """Return nothing: a completion belongs to its prompt."""
        return {}

    # -- text -----------------------------------------------------------------------------------------------------------

    def rendered(self, prompt: Text, completion: Text = "") -> tuple[str, str]:
        """Return prompt and completion as the model reads them, those of a chat in the tokenizer's template.

        Raises:
            DataError: There is no template, it fails, or the prompt in it is not what the conversation begins with.
        """
        if isinstance(prompt, str):
            if isinstance(completion, Chat):
                raise DataError(f"the prompt {prompt[:60]!r} is a text, and its completion a list of messages.")
            return prompt, completion
        if isinstance(completion, str):
            completion = Chat([("assistant", completion)]) if completion else Chat()
        goes_on = prompt[-1][0] == "assistant"  # the last answer is completed, no new one is begun
        before = self._templated(prompt, add_generation_prompt=not goes_on, continue_final_message=goes_on)
        if not completion:
            return before, ""
        whole = self._templated(Chat([*prompt, *completion]))
        if goes_on:
            whole = before + whole[len(before) :]
        start = shared_beginning(before, whole)  # some templates open more behind a prompt, e.g. a thought
        if start < len(before) and start < len(self._templated(prompt)):
            raise DataError(
                f"The chat template of {self.name_or_path} writes the prompt {str(prompt)[:60]!r} otherwise when an answer "
                "follows it, so the answer has no beginning. Use another template, or plain text."
            )
        return whole[:start], whole[start:].rstrip()

    def _templated(self, chat: Chat, **options: Any) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                f"The tokenizer of {self.name_or_path} has no chat template, which messages go through. Set "
                "tokenizer.chat_template, use the model's chat version, or give prompts and completions as plain text."
            )
        try:
            text = str(self.tokenizer.apply_chat_template(chat.messages(), tokenize=False, **options))
        except Exception as error:  # jinja's errors, and whatever a template raises
            raise DataError(f"The chat template of {self.name_or_path} refuses {str(chat)[:60]!r}: {error}") from error
        if dropped := [role for role, content in chat if role not in ROLES and content.strip() not in text]:
            raise DataError(
                f"The chat template of {self.name_or_path} leaves out what the role {dropped[0]!r:.40} says in "
                f"{str(chat)[:60]!r}. Use the roles {', '.join(ROLES)}."
            )
        return text

    def filled(self, prompt: Text, completion: Text) -> Filled:
        """Tokenise a prompt with a completion, and find the completion's tokens."""
        before, behind = self.rendered(prompt, completion)
        if not behind.strip():
            raise DataError(f"the completion of {str(prompt)[:60]!r} is empty.")
        return self.fill_between(before, "", behind)

    # -- samples --------------------------------------------------------------------------------------------------------

    def sample(self, row: Any, output: Text) -> Sample:
        """Return a row's prompt with a completion."""
        return self._sample(row.input, output)

    def samples(self, row: Any, outputs: Sequence[Text]) -> list[Sample]:
        """Return a sample for each of some completions; each has an input of its own."""
        return [self.sample(row, output) for output in outputs]

    def _sample(self, prompt: Text, completion: Text) -> Sample:
        filled = self.filled(prompt, completion)
        inputs, positions = self.slot(str(prompt), filled, len(filled.word))
        if len(ids := inputs["input_ids"]) > self.max_length or positions[0] < 0:
            raise DataError(f"a completion of {len(filled.word)} tokens is longer than {self.name_or_path} reads.")
        return Sample(inputs, positions, filled.word, len(ids))

    def readings(self, row: Any, classes: Mapping[str, Sequence[Any]]) -> list[Reading]:
        """Return the row's two completions, or the short answers of the classes, if there are any."""
        if any(classes.values()):
            return super().readings(row, classes)
        found = []
        for of, name in enumerate(classes):
            outputs: list[list[tuple[int, ...]]] = [[] for _ in classes]
            sample = self.sample(row, row.factual if row.factual_class == name else row.alternative)
            outputs[of] = [sample.labels]
            found.append(Reading(sample, outputs))
        return found

    def row_readings(self, chances: Tensor) -> dict[str, Tensor]:
        """Return whether the first class's completion is the likelier one, and the log-odds of both."""
        odds = chances[:, 0] - chances[:, 1]
        return {"share": (odds > 0).double(), "log-odds per token" if self.per_token else "log-odds": odds}

    def spelling(self, row: Any, classes: Mapping[str, Sequence[Any]]) -> Any:
        """Leave answers as they are."""
        return lambda output: output

    def other_example(self, row: Any, rng: random.Random, avoid: Sequence[Any] = ()) -> Example | None:
        """Return a random token of the row's prompt."""
        return self.neutral_example(self.rendered(row.input)[0], rng)

    # -- neutral prompts ------------------------------------------------------------------------------------------------

    def read_neutral(self, record: Mapping[str, Any]) -> Any:
        """Make an item of a `text`, or of a `prompt` with a `completion`; `own_replies` makes completions of prompts."""
        if record.get("prompt") is None:
            return super().read_neutral(record)
        if record.get("completion") is None:
            raise DataError(
                "a neutral 'prompt' needs a 'completion' that the edit should leave alone: "
                "gradiend_hub.objectives.own_replies writes the base model's own."
            )
        return NeutralPrompt(read_prompt(record["prompt"]), read_completion(record["completion"], "completion"))

    def neutral_example(self, item: Any, rng: random.Random) -> Example | None:
        """Return one random token of a text or of a completion."""
        if not isinstance(item, NeutralPrompt):
            return super().neutral_example(item, rng)
        whole = self._sample(item.prompt, item.completion)
        place = rng.randrange(len(whole.labels))
        ids = whole.inputs["input_ids"][: whole.positions[place] + 1]
        sample = Sample({"input_ids": ids}, (whole.positions[place],), (whole.labels[place],), len(ids))
        return Example(sample, sample)

    def quality_samples(self, item: Any, rng: random.Random, draws: int = 1) -> list[Sample]:
        """Read all tokens of a text, or of a completion."""
        if not isinstance(item, NeutralPrompt):
            return super().quality_samples(item, rng, draws)
        return [self._sample(item.prompt, item.completion)]

    def read_damage(self, record: Mapping[str, Any]) -> Any:
        """Make a text, a prompt with a completion, or a prompt that the base model answers."""
        return self.read_neutral(record) if record.get("completion") is not None else super().read_damage(record)

    def own_samples(self, row: Any, rng: random.Random, avoid: Collection[int] = ()) -> list[Sample]:
        """Return nothing: all of a completion is of its class."""
        return []

    def class_outputs(self, classes: Mapping[str, Sequence[Any]], readings: Sequence[Reading] = ()) -> set[int]:
        """Return nothing: completions begin with any token."""
        return set()

    # -- for people -----------------------------------------------------------------------------------------------------

    def show(self, row: Any) -> str:
        """Return the prompt with its completion in brackets."""
        return f"{row.input} [{row.factual}]"

    def prompts(self, rows: Sequence[Any]) -> list[Any]:
        """Return a few different prompts."""
        return list(dict.fromkeys(row.input for row in rows))[:PROMPTS]

    def prompt_ids(self, text: Any, tokens: int) -> list[int]:
        """Return the token ids of a prompt; a text is put into the chat template if the rows were messages."""
        if isinstance(text, Prompt):
            return super().prompt_ids(str(text), tokens)
        if isinstance(text, NeutralPrompt):
            text = text.prompt
        if self.chat and not isinstance(text, Chat):
            text = Chat([("user", text)])
        encoded = self.encode(self.rendered(text)[0].rstrip(" "))
        room = max(self.max_length - tokens - encoded.start, 1)
        return [*encoded.ids[: encoded.start], *encoded.ids[encoded.start : encoded.end][-room:]]

    def complete(
        self, model: nn.Module, inputs: Sequence[Any], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return the greedy completion of each prompt."""
        found = self._greedy(model, [self.prompt_ids(text, tokens) for text in inputs], tokens)
        return [Answer([], self.tokenizer.decode(ids, skip_special_tokens=True).strip()) for ids in found]


def own_replies(
    model: nn.Module, processor: Any, prompts: Sequence[Any], *, tokens: int = 32, batch_size: int = 16
) -> list[dict[str, Any]]:
    """Return neutral records of prompts with the base model's own greedy completions, which an edit should leave alone.

    Args:
        model: The base model.
        processor: Its tokenizer.
        prompts: Texts, or lists of messages.
        tokens: Most tokens of a completion.
        batch_size: Most prompts in a batch.

    Returns:
        Records with `prompt` and `completion`, without those whose completion is empty.
    """
    objective = PreferenceObjective.of_model(model, processor)
    read = [read_prompt(prompt) for prompt in prompts]
    with evaluating(model), torch.inference_mode():
        written = objective.generate(model, read, tokens=tokens, batch_size=batch_size)
    texts = [processor.decode(list(sample.labels), skip_special_tokens=True).strip() for sample in written]
    return [
        {
            "prompt": p.messages() if isinstance(p, Chat) else p,
            "completion": text if isinstance(p, Chat) else f" {text}",
        }
        for p, text in zip(read, texts, strict=True)
        if text
    ]
