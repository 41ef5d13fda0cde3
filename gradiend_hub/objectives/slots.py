"""Text with a slot, whatever model reads it.

The tokens that are read are those of the filled text: the text is tokenised with each word in its slot, and the word's
tokens are found by their characters. So white space, letters that touch the slot, and a tokenizer's own rules for the
beginning of a word are never guessed; where a token covers the word and more than white space beside it, the row is refused.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.data import TextRow
from gradiend_hub.data.casing import Casing, capitalised
from gradiend_hub.data.row import COLUMNS
from gradiend_hub.errors import DataError

from .base import IGNORED, Answer, Batch, Example, Objective, Reading, Sample
from .checks import Behaviour, behaviour_of, longest_input
from .logits import position_logits

__all__ = ["Filled", "TextObjective"]

MOST_PROMPT_CHARACTERS = 160
LEAST_PROMPT_WORDS = 4
PROMPTS_PER_CLASS = 3


@dataclass(frozen=True)
class Encoded:
    """A text as its tokenizer writes it.

    Attributes:
        ids: Token ids, the tokenizer's own first and last ones included.
        spans: First character and end of each token in the text.
        added: Whether the tokenizer has put the token there, and not the text.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    added: tuple[bool, ...]

    @property
    def start(self) -> int:
        """Number of tokens that the tokenizer has put before the text."""
        return next((i for i, added in enumerate(self.added) if not added), len(self.added))

    @property
    def end(self) -> int:
        """Place behind the text's last token."""
        return len(self.added) - next((i for i, added in enumerate(reversed(self.added)) if not added), 0)


@dataclass(frozen=True)
class Filled:
    """A text with a word in its slot: token ids, and the places `start` to `stop` of the word's own."""

    encoded: Encoded
    start: int
    stop: int

    @property
    def word(self) -> tuple[int, ...]:
        """Token ids of the word."""
        return self.encoded.ids[self.start : self.stop]


class TextObjective(Objective):
    """A text with one slot, filled with a word of one or more tokens.

    Args:
        processor: The base model's tokenizer.
        max_length: Longest input in tokens; by default what the tokenizer allows.
        padding_matters: Whether the model's output for a row depends on the padding beside it; rows of different lengths
            are then run apart.
        name_or_path: How messages call the base model.
    """

    columns: ClassVar[tuple[str, ...]] = COLUMNS
    read_name = "the word in the text"
    reads_right_context: bool
    """Return whether the text behind a token is read, too."""

    def __init__(
        self,
        processor: Any,
        *,
        max_length: int | None = None,
        padding_matters: bool = False,
        name_or_path: str = "the base model",
    ) -> None:
        super().__init__(processor, name_or_path=name_or_path)
        self.tokenizer = processor
        self.padding_matters = padding_matters
        self.max_length = max_length or min(int(processor.model_max_length), 1_000_000)
        pad = processor.pad_token_id
        self.pad_token_id = pad if pad is not None else processor.eos_token_id or 0

    # -- which models ---------------------------------------------------------------------------------------------------

    @classmethod
    def of_model(cls, model: nn.Module, processor: Any, *, max_length: int | None = None) -> TextObjective:
        """Make the objective of a model; inputs never exceed what tokenizer and model can read.

        Raises:
            BaseModelError: The model has no vocabulary head, or reads its text in another way than the objective does.
        """
        config = getattr(model, "config", None)
        name = getattr(config, "name_or_path", "") or type(model).__name__
        behaviour = behaviour_of(model)
        if behaviour is not None:
            cls.require(behaviour, type(model).__name__)
        limits = [int(processor.model_max_length), longest_input(model), max_length]
        longest = min(limit for limit in limits if limit)
        matters = behaviour is not None and behaviour.padding_matters
        return cls(processor, max_length=longest, padding_matters=matters, name_or_path=name)

    @classmethod
    def require(cls, behaviour: Behaviour, model: str) -> None:
        """Raise `BaseModelError` if a model that behaves so cannot be read by this objective."""

    @classmethod
    def load_processor(cls, name_or_path: str, **hub: Any) -> Any:
        """Load the tokenizer."""
        return AutoTokenizer.from_pretrained(name_or_path, **hub)

    @property
    def key(self) -> str:
        """Name and longest input."""
        return f"{self.name}, at most {self.max_length} tokens"

    @property
    def width(self) -> int:
        """Size of the vocabulary."""
        return len(self.tokenizer)

    # -- tokens ---------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> Encoded:
        """Tokenise a text as it is, however long, with the tokenizer's own first and last tokens.

        A text that brings its own first or last token (a chat template does) does not get another one.
        """
        if self.tokenizer.is_fast:
            found = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
            spans = [(int(low), int(high)) for low, high in found.offset_mapping]
            mask = found.special_tokens_mask
            added = [bool(special) and low == high for special, (low, high) in zip(mask, spans, strict=True)]
            ids = list(found.input_ids)
        else:
            ids, spans, added = self._encode_slowly(text)
        if len(ids) > 1 and ids[0] == ids[1] and added[0] and not added[1]:
            ids, spans, added = ids[1:], spans[1:], added[1:]
        if len(ids) > 1 and ids[-1] == ids[-2] and added[-1] and not added[-2]:
            ids, spans, added = ids[:-1], spans[:-1], added[:-1]
        return Encoded(tuple(ids), tuple(spans), tuple(added))

    def _encode_slowly(self, text: str) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
        """Find the characters of each token of a tokenizer in Python, which does not tell them, in the decoded text."""
        ids: list[int] = self.tokenizer(text, verbose=False).input_ids
        bare: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        start = next((i for i in range(len(ids) - len(bare) + 1) if ids[i : i + len(bare)] == bare), None)
        if start is None:
            raise DataError(
                f"The tokenizer of {self.name_or_path} writes {text[:80]!r} otherwise between special tokens."
            )
        spans: list[tuple[int, int]] = []
        place = 0
        for number in range(len(bare)):
            # what one more token adds to the text, white space aside, stands next in it
            written = "".join(self._decoded(bare[: number + 1]).split())
            known = "".join(text[:place].split())
            low = place
            while len(known) < len(written) and place < len(text):
                if not text[place].isspace():
                    known += text[place]
                place += 1
            while low < place and text[low].isspace():
                low += 1
            spans.append((low, place))
        if "".join(self._decoded(bare).split()).casefold() != "".join(text.split()).casefold():
            raise DataError(
                f"The tokenizer of {self.name_or_path} does not say which characters its tokens stand for, and changes "
                f"{text[:80]!r}, so the slot cannot be found in it. Use a fast tokenizer."
            )
        behind = len(ids) - start - len(bare)
        added = [True] * start + [False] * len(bare) + [True] * behind
        return ids, [(0, 0)] * start + spans + [(len(text), len(text))] * behind, added

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def split_at_slot(self, masked: str) -> tuple[str, str]:
        """Return the text before and behind the slot.

        Raises:
            DataError: There is no slot, or more than one.
        """
        before, found, after = masked.partition(SLOT)
        if not found or SLOT in after:
            raise DataError(
                f"{'No' if not found else 'More than one'} slot: expected exactly one {SLOT} in {masked!r}."
            )
        return before, after

    def fill(self, masked: str, word: str) -> Filled:
        """Tokenise a text with a word in its slot, and find the word's tokens.

        Raises:
            DataError: No slot, a token that the word shares with letters beside it, or a word that the tokenizer cannot
                write.
        """
        return self.fill_between(*self.split_at_slot(masked), word)

    def fill_between(self, before: str, after: str, word: str) -> Filled:
        """`fill` of the text between two others."""
        text, low, high = before + word + after, len(before), len(before) + len(word)
        encoded = self.encode(text)
        own = [
            i
            for i, ((start, stop), added) in enumerate(zip(encoded.spans, encoded.added, strict=True))
            if not added and start < high and stop > low
        ]
        if not own:
            raise self._unknown(word)
        start, stop = own[0], own[-1] + 1
        first, last = encoded.spans[start][0], encoded.spans[own[-1]][1]
        if text[first:low].strip() or text[high:last].strip():
            side, place = ("before", "before") if text[first:low].strip() else ("behind", "behind")
            raise DataError(
                f"The tokenizer of {self.name_or_path} merges {word!r} with the letters {side} it into one token, so the "
                f"filler has no token of its own here. Put a space {place} the slot: {(before + SLOT + after)[:80]!r}."
            )
        # " they" is one token or a space and its letters, as the vocabulary has it: the space is the word's in either case
        if start and first == low and encoded.spans[start - 1] == (low - 1, low) and text[low - 1] == " ":
            start -= 1
        filled = Filled(encoded, start, stop)
        if (unknown := self.tokenizer.unk_token_id) is not None and unknown in filled.word:
            raise self._unknown(word)
        return filled

    def _unknown(self, word: str) -> DataError:
        return DataError(
            f"The filler {word!r} is unknown to the tokenizer of {self.name_or_path}. Choose another filler or a base "
            "model whose vocabulary can write it."
        )

    def content(self, encoded: Encoded) -> list[int]:
        """Return the places of tokens that are text: no special token, nor one that stands for unknown letters."""
        special = set(self.tokenizer.all_special_ids)
        return [i for i, token in enumerate(encoded.ids) if not encoded.added[i] and token not in special]

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
        filled = [self.fill(row.input, word) for word in outputs]
        longest = max(len(found.word) for found in filled)
        known: dict[Any, dict[str, tuple[int, ...]]] = {}
        samples = []
        for found in filled:
            inputs, positions = self.slot(row.input, found, longest)
            shared = known.setdefault(tuple(inputs.values()), inputs)
            samples.append(Sample(shared, positions, found.word, sum(map(len, shared.values()))))
        return samples

    @abstractmethod
    def slot(self, masked: str, filled: Filled, longest: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
        """Return the token ids of the model's inputs, by name, and the positions from which the word is predicted.

        Args:
            masked: The text, for messages.
            filled: The text with the word.
            longest: Tokens of the longest word that is read in this text.
        """

    def spelling(self, row: TextRow, classes: Mapping[str, Sequence[str]]) -> Callable[[str], str]:
        """Return what writes words in the case of the row's own: small letters, a capital, or all capitals."""
        return Casing(classes).of_row(row, row.input.partition(SLOT)[0])

    # -- neutral text ---------------------------------------------------------------------------------------------------

    def cut(self, encoded: Encoded) -> Encoded:
        """Cut a text at its end to the longest input; what the tokenizer adds stays."""
        surplus = len(encoded.ids) - self.max_length
        if surplus <= 0:
            return encoded
        keep = [*range(encoded.end - surplus), *range(encoded.end, len(encoded.ids))]
        return Encoded(*(tuple(part[i] for i in keep) for part in (encoded.ids, encoded.spans, encoded.added)))  # type: ignore[arg-type]

    @abstractmethod
    def token_sample(self, encoded: Encoded, places: Sequence[int]) -> Sample:
        """Return a sample that reads the tokens of a text at some places, all at once."""

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

    @abstractmethod
    def together(self, places: Sequence[int]) -> list[Sequence[int]]:
        """Group places by what one input can read without hiding context from any of them."""

    def neutral_example(self, item: str, rng: random.Random) -> Example | None:
        """Return one random real token of a text as a slot whose factual and alternative filler are that token itself."""
        encoded = self.cut(self.encode(item))
        places = self.readable(encoded)
        if not places:
            return None
        sample = self.token_sample(encoded, [rng.choice(places)])
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

    @abstractmethod
    def drawn(self, encoded: Encoded, places: Sequence[int], rng: random.Random, draws: int = 1) -> list[Sample]:
        """Return up to `draws` samples that read tokens at some places of a text, each time others."""

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
        ids = [s.inputs["input_ids"] for s in samples]
        tokens, slots = max(map(len, ids)), max(len(s.positions) for s in samples)

        def pad(values: Sequence[int], size: int, fill: int) -> list[int]:
            return [*values, *[fill] * (size - len(values))]

        return Batch(
            inputs={
                "input_ids": torch.tensor([pad(row, tokens, self.pad_token_id) for row in ids]),
                "attention_mask": torch.tensor([pad((1,) * len(row), tokens, 0) for row in ids]),
            },
            positions=torch.tensor([pad(s.positions, slots, 0) for s in samples]),
            labels=torch.tensor([pad(s.labels, slots, IGNORED) for s in samples]),
            samples=tuple(samples),
        )

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the vocabulary at the slots: [B, S, V], fp32 or wider."""
        if not self.padding_matters:
            return position_logits(model, batch).log_softmax(-1)
        lengths = batch.inputs["attention_mask"].sum(1).tolist()
        parts: list[Tensor] = []
        order: list[int] = []
        for length in dict.fromkeys(lengths):
            rows = [i for i, other in enumerate(lengths) if other == length]
            chosen = batch.select(rows)
            inputs = {name: value[:, :length] for name, value in chosen.inputs.items()}
            parts.append(position_logits(model, Batch(inputs, chosen.positions, chosen.labels)).log_softmax(-1))
            order += rows
        return torch.cat(parts)[torch.tensor(order, device=parts[0].device).argsort()]

    # -- for people -----------------------------------------------------------------------------------------------------

    def describe(self, sample: Sample) -> tuple[str, str]:
        """Return the text with `[MASK]` at the first slot, and the word."""
        ids, position = list(sample.inputs["input_ids"]), sample.positions[0]
        here = position if self.reads_right_context else position + 1
        decode = self.tokenizer.decode
        before = decode(ids[:here], skip_special_tokens=True)
        after = (
            decode(ids[position + len(sample.labels) :], skip_special_tokens=True) if self.reads_right_context else ""
        )
        return f"{before} {SLOT} {after}".strip(), decode(list(sample.labels)).strip()

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
        turns = range(max(map(len, groups.values()), default=0))
        return [group[turn] for turn in turns for group in groups.values() if turn < len(group)]

    @abstractmethod
    def prompt(self, row: TextRow) -> str:
        """Return what a person would ask the model with, to see what it makes of the row."""

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

    @abstractmethod
    def complete(
        self, model: nn.Module, inputs: Sequence[str], *, top: int = 5, tokens: int = 16, hints: Sequence[str] = ()
    ) -> list[Answer]:
        """Return what the model makes of some texts, as it is now."""
