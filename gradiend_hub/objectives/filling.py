"""Text with its slot filled.

The tokens that are read are those of the filled text: the text is tokenised with each word in its slot, and the word's
tokens are found by their characters. So white space, letters that touch the slot, and a tokenizer's own rules for the
beginning of a word are never guessed; where a token covers the word and more than white space beside it, the row is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradiend_hub.artifact.files import SLOT
from gradiend_hub.errors import DataError


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


class SlotFiller:
    """Tokenises texts, and finds the tokens of a word that fills their slot. `TextObjective` sets the attributes."""

    tokenizer: Any
    name_or_path: str
    max_length: int

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

    def cut(self, encoded: Encoded) -> Encoded:
        """Cut a text at its end to the longest input; what the tokenizer adds stays."""
        surplus = len(encoded.ids) - self.max_length
        if surplus <= 0:
            return encoded
        keep = [*range(encoded.end - surplus), *range(encoded.end, len(encoded.ids))]
        return Encoded(*(tuple(part[i] for i in keep) for part in (encoded.ids, encoded.spans, encoded.added)))  # type: ignore[arg-type]
