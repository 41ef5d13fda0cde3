"""Objectives of text with one slot, whatever model reads it."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import TextRow
from gradiend_hub.data.casing import Casing, capitalised
from gradiend_hub.data.row import COLUMNS
from gradiend_hub.errors import DataError

from .batching import by_turns, padded, padded_tokens
from .checks import Behaviour, behaviour_of, most_tokens
from .filling import Encoded, Filled, SlotFiller
from .logits import position_logits
from .samples import IGNORED, Answer, Batch, Example, Reading, Sample
from .tokenized import TokenizedObjective

MASKED_SHARE = 0.15
"""Share of a neutral text's tokens that are hidden together when its quality is read."""

MOST_PROMPT_CHARACTERS = 160
LEAST_PROMPT_WORDS = 4
PROMPTS_PER_CLASS = 3


class TextObjective(SlotFiller, TokenizedObjective):
    """A text with one slot, filled with a word of one or more tokens; its arguments are those of `TokenizedObjective`."""

    columns: ClassVar[tuple[str, ...]] = COLUMNS
    read_name = "the word in the text"
    output_name = "word"
    reads_right_context: bool
    """Return whether the text behind a token is read, too."""

    # -- which models ---------------------------------------------------------------------------------------------------

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return the longest input that tokenizer and model can both read, and whether padding matters.

        Raises:
            BaseModelError: The model has no vocabulary head, or reads its text in another way than the objective does.
        """
        behaviour = behaviour_of(model)
        if behaviour is not None:
            cls.require(behaviour, type(model).__name__)
        matters = behaviour is not None and behaviour.padding_matters
        return {"max_length": most_tokens(model, processor, max_length), "padding_matters": matters}

    @classmethod
    def require(cls, behaviour: Behaviour, model: str) -> None:
        """Raise `BaseModelError` if a model that behaves so cannot be read by this objective."""

    @property
    def width(self) -> int:
        """Size of the vocabulary."""
        return len(self.tokenizer)

    # -- rows -----------------------------------------------------------------------------------------------------------

    def read(self, record: Mapping[str, Any]) -> TextRow:
        """Make a row of a record with the columns `masked`, `factual`, `alternative` and their classes."""
        return TextRow.read(record)

    def record(self, row: TextRow) -> dict[str, Any]:
        """Return the record that `read` reads back."""
        return row.record()

    def sample(self, row: TextRow, output: str) -> Sample:
        """Return the text of a row with its slot for a word."""
        return self.samples(row, (output,))[0]

    def samples(self, row: TextRow, outputs: Sequence[str]) -> list[Sample]:
        """Return a sample for each of some words.

        Words of equally many tokens share a masked model's input; words of one token share a causal model's, too.
        """
        filled = [self.read_part(self.fill(row.input, word)) for word in outputs]
        longest = max(len(found.word) for found in filled)
        known: dict[Any, dict[str, tuple[int, ...]]] = {}
        samples = []
        for found in filled:
            inputs, positions = self.slot(row.input, found, longest)
            shared = known.setdefault(tuple(inputs.values()), inputs)
            samples.append(Sample(shared, positions, found.word, sum(map(len, shared.values()))))
        return samples

    def read_part(self, filled: Filled) -> Filled:
        """Return the part of a filled text whose likelihood is read: the word."""
        return filled

    @abstractmethod
    def slot(self, masked: str, filled: Filled, longest: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
        """Return the token ids of the model's inputs, by name, and the positions from which the word is predicted.

        Args:
            masked: The text, for messages.
            filled: The text with the word.
            longest: Tokens of the longest word that is read in this text.
        """

    def require_room(self, masked: str, filled: Filled, size: int) -> None:
        """Raise `DataError` if a row has more tokens than the model reads."""
        if size > self.max_length:
            raise DataError(
                f"The row has {size} tokens and its slot is token {filled.start}, but {self.name_or_path} reads "
                f"{self.max_length}: truncation could cut the slot off. Shorten the text around the slot: {masked[:80]!r}."
            )

    def spelling(self, row: TextRow, classes: Mapping[str, Sequence[str]]) -> Callable[[str], str]:
        """Return what writes words in the case of the row's own: small letters, a capital, or all capitals."""
        return Casing(classes).of_row(row, row.input.partition(SLOT)[0])

    # -- neutral text ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def token_sample(self, encoded: Encoded, places: Sequence[int]) -> Sample:
        """Return a sample that reads the tokens of a text at some places, all at once."""

    def one_token(self, encoded: Encoded, place: int) -> Sample:
        """Return a sample that reads one token of a text."""
        return self.token_sample(encoded, [place])

    def token_samples(self, text: str, spans: Sequence[tuple[int, int]] | None = None) -> list[Sample]:
        """Return samples that together read every token of a text, each with all the context that the model has.

        Args:
            text: The text.
            spans: First character and end of the parts whose tokens are read; by default all.

        Raises:
            DataError: The text is longer than the model reads.
        """
        encoded = self.encode(text)
        if len(encoded.ids) > self.max_length:
            raise DataError(f"{text[:80]!r} has {len(encoded.ids)} tokens; the model reads {self.max_length}.")
        places = [
            i
            for i in self.readable(encoded)
            if spans is None or any(encoded.spans[i][0] < high and low < encoded.spans[i][1] for low, high in spans)
        ]
        return [self.token_sample(encoded, group) for group in self.together(places)]

    def readable(self, encoded: Encoded) -> list[int]:
        """Return the places of tokens that the model can predict."""
        return self.content(encoded)

    def together(self, places: Sequence[int]) -> list[Sequence[int]]:
        """Group places by what one input can read without hiding context from any of them: each by itself."""
        return [[place] for place in places]

    def neutral_example(self, item: str, rng: random.Random) -> Example | None:
        """Return one random real token of a text as a slot whose factual and alternative filler are that token itself."""
        encoded = self.cut(self.encode(item))
        places = self.readable(encoded)
        if not places:
            return None
        sample = self.one_token(encoded, rng.choice(places))
        return Example(sample, sample)

    def other_example(self, row: TextRow, rng: random.Random, avoid: Sequence[str] = ()) -> Example | None:
        """Return a random token of a row's filled text that is no word of the classes."""
        words = {word.casefold() for word in (*avoid, row.factual, row.alternative)}
        for _ in range(8):
            example = self.neutral_example(row.text, rng)
            if example is not None and self.describe(example.factual)[1].casefold() not in words:
                return example
        return None

    def quality_samples(self, item: str, rng: random.Random, draws: int = 1) -> list[Sample]:
        """Read tokens of a text."""
        encoded = self.cut(self.encode(item))
        return self.drawn(encoded, self.readable(encoded), rng, draws)

    def drawn(self, encoded: Encoded, places: Sequence[int], rng: random.Random, draws: int = 1) -> list[Sample]:
        """Return up to `draws` samples, each time of other places of a text: 15 % of them, hidden together."""
        if not places:
            return []
        count = max(1, round(MASKED_SHARE * len(places)))
        chosen = rng.sample(places, min(count * draws, len(places)))
        return [self.token_sample(encoded, sorted(chosen[i : i + count])) for i in range(0, len(chosen), count)]

    def own_samples(self, row: TextRow, rng: random.Random, avoid: Collection[int] = ()) -> list[Sample]:
        """Read tokens of a row's filled text beside the word; none of a text that is longer than the model reads."""
        filled = self.fill(row.input, row.factual)
        encoded = filled.encoded
        if len(encoded.ids) > self.max_length:
            return []
        own = range(filled.start, filled.stop)
        places = [i for i in self.readable(encoded) if i not in own and encoded.ids[i] not in avoid]
        return self.drawn(encoded, places, rng)

    def class_outputs(self, classes: Mapping[str, Sequence[str]], readings: Sequence[Reading] = ()) -> set[int]:
        """Return the first tokens of the classes' words at the rows, and in a text and at its beginning, in any case.

        A spelling counts if it has as many tokens as the word: the first letter of "H ##E ##R" is none of the class.
        """
        found = super().class_outputs(classes, readings)
        for word in dict.fromkeys(word for words in classes.values() for word in words):
            spelled = [
                tokens
                for form in dict.fromkeys((word, capitalised(word), word.upper()))
                for masked in (f"a {SLOT}", SLOT)
                if (tokens := self._word_tokens(masked, form))
            ]
            found |= {tokens[0] for tokens in spelled if len(tokens) == len(spelled[0])}
        return found

    def _word_tokens(self, masked: str, word: str) -> tuple[int, ...]:
        """Return the tokens of a word in a text's slot; none if it has no tokens of its own there."""
        try:
            return self.fill(masked, word).word
        except DataError:
            return ()

    # -- batches --------------------------------------------------------------------------------------------------------

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad to the longest sample (to the right; positions are explicit)."""
        return Batch(
            inputs=padded_tokens([s.inputs["input_ids"] for s in samples], self.pad_token_id),
            positions=padded([s.positions for s in samples], 0),
            labels=padded([s.labels for s in samples], IGNORED),
            samples=tuple(samples),
        )

    def log_probs_together(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the vocabulary at the slots: [B, S, V], fp32 or wider."""
        return position_logits(model, batch).log_softmax(-1)

    # -- for people -----------------------------------------------------------------------------------------------------

    def describe(self, sample: Sample) -> tuple[str, str]:
        """Return the text with `[MASK]` at the first slot, and the word."""
        ids, position = list(sample.inputs["input_ids"]), sample.positions[0]
        here = position if self.reads_right_context else position + 1
        behind = ids[position + len(sample.labels) :] if self.reads_right_context else []
        before, after = (self.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:here], behind))
        return f"{before} {SLOT} {after}".strip(), self.tokenizer.decode(list(sample.labels)).strip()

    def show(self, row: TextRow) -> str:
        """Return the text with the factual word in brackets."""
        return row.input.replace(SLOT, f"[{row.factual}]")

    def asked_row(self, prompt: str, outputs: Mapping[str, Sequence[str]]) -> TextRow:
        """Return a row with the first word of each class for the slot of a text."""
        (first, words), (second, others) = outputs.items()
        return TextRow.read(dict(zip(COLUMNS, (prompt, words[0], others[0], first, second), strict=True)))

    def prompts(self, rows: Sequence[TextRow]) -> list[str]:
        """Return short texts of rows with different beginnings, alternately of each class; there may be none."""
        groups: dict[str, list[str]] = {}
        seen: set[str] = set()
        for row in rows:
            before = row.input.partition(SLOT)[0]
            short = len(before.split()) >= LEAST_PROMPT_WORDS and len(row.input) <= MOST_PROMPT_CHARACTERS
            group = groups.setdefault(row.factual_class, [])
            if short and before not in seen and len(group) < PROMPTS_PER_CLASS:
                seen.add(before)
                group.append(self.prompt(row))
        return by_turns(groups.values())

    def prompt(self, row: TextRow) -> str:
        """Return what a person would ask the model with, to see what it makes of the row: the text with its slot."""
        return row.input

    def asked(self, text: str, hints: Sequence[str]) -> Sample:
        """Return the sample of a text's slot, for whatever word.

        Args:
            text: A text with a slot.
            hints: Words that are likely to fit.

        Raises:
            DataError: No slot, or none of many words has a token of its own there.
        """
        self.split_at_slot(text)
        words = [word for word in text.replace(SLOT, " ").split() if word.isalpha()]
        fault = DataError(f"No word can be read at the slot of {text[:80]!r}.")
        best: Sample | None = None
        for word in dict.fromkeys((*hints, *words, "it", "a")):
            try:
                sample = self.sample(TextRow(text, word, word, "", ""), word)
            except DataError as error:
                fault = error
                continue
            if len(sample.labels) == 1:
                return sample
            best = best or sample
        if best is None:
            raise fault
        return best

    def likeliest(self, model: nn.Module, samples: Sequence[Sample], top: int) -> list[list[tuple[str, float]]]:
        """Return the likeliest tokens at the first slot of each sample, with their probabilities."""
        device = next(model.parameters()).device
        best = self.log_probs(model, self.collate(samples).to(device))[:, 0].exp().topk(top, dim=-1)
        return [
            [(self.tokenizer.decode([token]).strip(), chance) for token, chance in zip(tokens, chances, strict=True)]
            for tokens, chances in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def complete(
        self, model: nn.Module, inputs: Sequence[str], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return the likeliest fillers of the slot of each text.

        Raises:
            DataError: A text has no slot, or none that a word could fill.
        """
        samples = [self.asked(text, hints) for text in inputs]
        return [Answer(found) for found in self.likeliest(model, samples, top)] if samples else []
