"""Sequence to sequence: the encoder reads a text with its slot left out, and the decoder is read where it fills the slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from gradiend_hub.errors import BaseModelError

from .batching import padded
from .checks import most_tokens
from .filling import Encoded, Filled
from .samples import Batch, Sample
from .slots import TextObjective


class Seq2SeqObjective(TextObjective):
    """The slot is filled by the decoder: behind a sentinel (T5, mT5, UMT5), or where it writes the text again (BART, mBART).

    A model with sentinels reads `… <extra_id_0> …`, and its decoder, which was given that sentinel, goes on with the filler.
    A model with a mask token reads `… <mask> …`, and its decoder is read at the filler's place in the whole text. The tokens
    of the filler are those of the filled text in either case.

    Args:
        processor: The base model's tokenizer.
        decoder_start: Id that the decoder's input begins with; `None` if it is the text's last one (mBART).
        options: Of `TextObjective`.
    """

    name = "seq2seq"
    task = "text2text-generation"
    auto_class = AutoModelForSeq2SeqLM
    reads_right_context = True

    def __init__(self, processor: Any, *, decoder_start: int | None = None, **options: Any) -> None:
        super().__init__(processor, **options)
        self.decoder_start = decoder_start
        known, self.sentinels = self.tokenizer.get_vocab(), list[int]()
        while (token := f"<extra_id_{len(self.sentinels)}>") in known:
            self.sentinels.append(known[token])
        if not self.sentinels and processor.mask_token_id is None:
            raise BaseModelError(
                f"The tokenizer of {self.name_or_path} has neither sentinels (<extra_id_0>) nor a mask token, so its model "
                "was not trained to fill a slot. Use a T5, mT5 or BART, or another kind of base model."
            )

    @classmethod
    def fits(cls, architecture: str, config: Any) -> bool:
        """Return whether a class has an encoder of text and a decoder with a vocabulary head."""
        known = architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
        return known and bool(getattr(config, "is_encoder_decoder", False))

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return the longest input that tokenizer and model can both read, and the decoder's first token.

        Raises:
            BaseModelError: The model has no encoder and decoder.
        """
        config: Any = getattr(model, "config", None)
        if not getattr(config, "is_encoder_decoder", False):
            raise BaseModelError(
                f"{type(model).__name__} has no encoder and decoder: expected a model of AutoModelForSeq2SeqLM for the "
                f"objective {cls.name!r}."
            )
        start = getattr(config, "decoder_start_token_id", None)
        return {"max_length": most_tokens(model, processor, max_length), "decoder_start": start}

    # -- samples --------------------------------------------------------------------------------------------------------

    def slot(self, masked: str, filled: Filled, longest: int) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...]]:
        """Leave the word out of the encoder's text, and read it in the decoder."""
        inputs, positions, _ = self._spans(filled.encoded, [(filled.start, filled.stop)])
        self.require_room(masked, filled, max(map(len, inputs.values())) - len(filled.word) + longest)
        return inputs, positions

    def _spans(
        self, encoded: Encoded, spans: Sequence[tuple[int, int]]
    ) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...], tuple[int, ...]]:
        """Return the inputs of a text without some spans, the decoder's positions that predict their tokens, and these."""
        ids, stops = encoded.ids, [0, *(stop for _, stop in spans)]
        starts = [start for start, _ in spans]
        gaps = self.sentinels or [self.tokenizer.mask_token_id] * len(spans)
        kept = [(*ids[place:start], gap) for place, start, gap in zip(stops, starts, gaps, strict=False)]
        source = (*(token for part in kept for token in part), *ids[stops[-1] :])
        start_id = ids[-1] if self.decoder_start is None else self.decoder_start
        tokens = tuple(ids[i] for start, stop in spans for i in range(start, stop))
        if not self.sentinels:  # the decoder writes the whole text: what predicts token i stands at place i
            positions = tuple(i for start, stop in spans for i in range(start, stop))
            return {"input_ids": source, "decoder_input_ids": (start_id, *ids[: positions[-1]])}, positions, tokens
        written: list[int] = [start_id]
        positions_of: list[int] = []
        for (start, stop), sentinel in zip(spans, gaps, strict=False):
            written.append(sentinel)
            positions_of += range(len(written) - 1, len(written) - 1 + stop - start)
            written += ids[start:stop]
        return {"input_ids": source, "decoder_input_ids": tuple(written[:-1])}, tuple(positions_of), tokens

    def token_sample(self, encoded: Encoded, places: Sequence[int]) -> Sample:
        """Leave the tokens at some places out; those side by side are one span."""
        spans: list[tuple[int, int]] = []
        for place in sorted(places):
            if spans and spans[-1][1] == place:
                spans[-1] = (spans[-1][0], place + 1)
            elif not self.sentinels or len(spans) < len(self.sentinels):
                spans.append((place, place + 1))
        inputs, positions, tokens = self._spans(encoded, spans)
        return Sample(inputs, positions, tokens, sum(map(len, inputs.values())))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Pad the encoder's and the decoder's ids to the longest (to the right; positions are explicit)."""
        batch = super().collate(samples)
        written = [sample.inputs["decoder_input_ids"] for sample in samples]
        batch.inputs["decoder_input_ids"] = padded(written, self.pad_token_id)
        return batch

    # -- for people -----------------------------------------------------------------------------------------------------

    def describe(self, sample: Sample) -> tuple[str, str]:
        """Return the text with `[MASK]` at the first slot, and the word."""
        ids = list(sample.inputs["input_ids"])
        gap = self.sentinels[0] if self.sentinels else self.tokenizer.mask_token_id
        place = ids.index(gap)
        before, after = (
            self.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:place], ids[place + 1 :])
        )
        return f"{before} [MASK] {after}".strip(), self.tokenizer.decode(list(sample.labels)).strip()
