"""Where the slot is and which token fills it, compared with what the tokenizer makes of the filled text."""

from __future__ import annotations

import random
from itertools import chain

import pytest
import torch
from transformers import AutoTokenizer

from gradiend_hub.errors import BaseModelError, ConfigError, DataError
from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective, make_objective, objective_name
from tests.models import build
from tests.objectives.support import ROWS, filled, pieces
from tests.objectives.tokenizers import CAUSAL, CORPUS, MASKED, causal_tokenizer, masked_tokenizer

LONG = "the children slept because they were tired " * 9


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("row", ROWS)
def test_masked_slot_is_the_token_of_the_filled_text(kind: str, row: tuple[str, str, str]) -> None:
    tokenizer = masked_tokenizer(kind)
    example = MaskedLMObjective(tokenizer).tokenize(*row)
    for slots, filler in ((example.factual, row[1]), (example.alternative, row[2])):
        expected = filled(tokenizer, row[0], filler)
        assert slots.labels == (expected.label,)
        assert slots.positions == (expected.position,)
        assert slots.input_ids[expected.position] == tokenizer.mask_token_id
        assert slots.input_ids.count(tokenizer.mask_token_id) == 1
        if kind != "unigram_always":  # it puts a "▁" behind the mask, whatever comes there
            in_place = list(slots.input_ids)
            in_place[expected.position] = expected.label
            assert in_place == expected.ids


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("row", ROWS)
def test_causal_slot_is_the_next_token(kind: str, row: tuple[str, str, str]) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer)
    if kind == "byte_bpe_without_start" and row[0].startswith("[MASK]"):
        with pytest.raises(DataError, match="no start token"):
            objective.tokenize(*row)
        return
    example = objective.tokenize(*row)
    for slots, filler in ((example.factual, row[1]), (example.alternative, row[2])):
        expected = filled(tokenizer, row[0], filler, after=False)
        assert slots.labels == (expected.label,)
        assert slots.positions == (len(slots.input_ids) - 1,)
        assert list(slots.input_ids) == expected.ids[: expected.position]


def test_bundled_tokenizers(masked_path: object, causal_path: object) -> None:
    masked, causal = AutoTokenizer.from_pretrained(masked_path), AutoTokenizer.from_pretrained(causal_path)
    row = ("When the monkey saw the fire, [MASK] ran.", "it", "they")
    example = MaskedLMObjective(masked).tokenize(*row)
    assert masked.convert_ids_to_tokens(example.factual.input_ids)[example.factual.positions[0]] == "[MASK]"
    assert masked.convert_ids_to_tokens([*example.factual.labels, *example.alternative.labels]) == ["it", "they"]
    example = CausalLMObjective(causal).tokenize(*row)
    assert causal.convert_ids_to_tokens(example.factual.input_ids)[-1] == ","
    assert causal.convert_ids_to_tokens([*example.factual.labels, *example.alternative.labels]) == ["Ġit", "Ġthey"]


def test_word_boundary_forms() -> None:
    """The same filler is another token at the start of a text, after a space and within a word."""

    def pieces(kind: str, *texts: str) -> list[str]:
        objective = MaskedLMObjective(masked_tokenizer(kind))
        return objective.tokenizer.convert_ids_to_tokens([*chain(*(objective.filler_tokens(t, "it") for t in texts))])

    texts = ("[MASK] ran", "because [MASK] ran", "([MASK])")
    assert pieces("word_piece", *texts) == ["it", "it", "it"]
    assert pieces("byte_bpe", *texts) == ["it", "Ġit", "it"]
    assert pieces("unigram_always", *texts) == ["▁it", "▁it", "it"]
    assert pieces("unigram_first", *texts) == ["▁it", "▁it", "it"]


@pytest.mark.parametrize("kind", MASKED)
def test_what_is_no_slot_or_no_filler(kind: str) -> None:
    objective = MaskedLMObjective(masked_tokenizer(kind), name_or_path="tiny")
    with pytest.raises(DataError, match=r"No slot: expected exactly one \[MASK\] in 'They ran.'"):
        objective.tokenize("They ran.", "they", "it")
    with pytest.raises(DataError, match="More than one slot"):
        objective.tokenize("[MASK] and [MASK]", "they", "it")


def test_unknown_filler() -> None:
    with pytest.raises(DataError, match=r"'é漢' is unknown to the tokenizer of tiny"):
        MaskedLMObjective(masked_tokenizer("word_piece"), name_or_path="tiny").filler_tokens("a [MASK]", "é漢")


def test_masked_row_that_is_too_long_is_refused_wherever_its_slot_is() -> None:
    objective = MaskedLMObjective(masked_tokenizer("word_piece"), max_length=20, name_or_path="tiny")
    with pytest.raises(DataError, match=r"66 tokens and its slot is token 64, but tiny reads 20: truncation could cut"):
        objective.tokenize(LONG + "[MASK]", "it", "they")
    with pytest.raises(DataError, match="slot is token 1, but tiny reads 20"):
        objective.tokenize("[MASK] " + LONG, "it", "they")


LONG_WORDS = ("itself", "themselves", "it")


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("masked", ["because [MASK] ran.", "I saw ([MASK])"])
def test_masked_slot_has_a_mask_for_every_token_of_its_word(kind: str, masked: str) -> None:
    tokenizer = masked_tokenizer(kind)
    objective = MaskedLMObjective(tokenizer)
    for word in LONG_WORDS:
        expected = pieces(tokenizer, masked, word)
        sample = objective.tokenize(masked, word, "it").factual
        assert list(sample.positions) == expected.positions
        assert list(sample.labels) == [expected.ids[p] for p in expected.positions]
        assert [sample.input_ids[p] for p in sample.positions] == [tokenizer.mask_token_id] * len(sample.labels)
        assert sample.input_ids.count(tokenizer.mask_token_id) == len(sample.labels)
        assert sample.input_ids[: expected.positions[0]] == tuple(expected.ids[: expected.positions[0]])
    example = objective.tokenize(masked, "themselves", "it")
    assert len(example.factual.labels) > 1
    assert not objective.collate_pairs([example]).shared
    assert objective.collate_pairs([objective.tokenize(masked, "it", "they")]).shared


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_slots_are_the_tokens_of_the_continued_text(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer)
    for word in LONG_WORDS:
        expected = pieces(tokenizer, "they saw [MASK]", word)
        sample = objective.tokenize("they saw [MASK] there", word, "it").factual
        assert [*sample.input_ids, sample.labels[-1]] == expected.ids
        assert [p + 1 for p in sample.positions] == expected.positions
        assert list(sample.labels) == [expected.ids[p] for p in expected.positions]


def test_long_words_count_for_the_longest_input() -> None:
    row = ("the dog " * 5 + "[MASK]", "it", "xyzxyzxyz")  # 12 tokens with one slot
    masked = MaskedLMObjective(masked_tokenizer("word_piece"), max_length=14)
    with pytest.raises(DataError, match=r"The row has 21 tokens .* reads 14"):
        masked.tokenize(*row)
    causal = CausalLMObjective(causal_tokenizer("byte_bpe"), max_length=10)
    example = causal.tokenize(*row)
    assert len(example.alternative.input_ids) == 10
    prefix = example.factual.input_ids
    assert example.alternative.input_ids[: len(prefix)] == prefix  # both read the same context


@pytest.mark.parametrize("kind", CAUSAL)
def test_long_prefix_loses_its_beginning(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer, max_length=20)
    slots = objective.tokenize(LONG + "[MASK] ran", "it", "they").factual
    full = filled(tokenizer, LONG + "[MASK]", "it", after=False)
    start = [] if kind == "byte_bpe_without_start" else full.ids[:1]
    assert list(slots.input_ids) == start + full.ids[: full.position][len(start) - 20 :]
    assert len(slots.input_ids) == 20
    assert (slots.positions, slots.labels) == ((19,), (full.label,))


@pytest.mark.parametrize("kind", MASKED)
def test_neutral_slots_of_a_masked_model_are_real_tokens(kind: str) -> None:
    tokenizer = masked_tokenizer(kind)
    objective = MaskedLMObjective(tokenizer, max_length=20)
    rng = random.Random(0)
    seen = set()
    for text in (*CORPUS, LONG):
        ids = tokenizer(text, truncation=True, max_length=20).input_ids
        for _ in range(40):
            example = objective.neutral_example(text, rng)
            assert example is not None and example.factual == example.alternative
            (position,), (label,) = example.factual.positions, example.factual.labels
            seen.add((text, position))
            assert 0 < position < len(ids) - 1  # neither the start nor the end token
            assert label == ids[position]
            restored = list(example.factual.input_ids)
            assert restored[position] == tokenizer.mask_token_id
            restored[position] = label
            assert restored == ids
    assert len(seen) > 40  # random, not always the same one
    assert objective.neutral_example("", rng) is None
    assert objective.scored_text("", rng) == []


@pytest.mark.parametrize("kind", MASKED)
def test_scored_of_a_masked_model(kind: str) -> None:
    tokenizer = masked_tokenizer(kind)
    (scored,) = MaskedLMObjective(tokenizer, max_length=30).scored_text(LONG, random.Random(1))
    ids = tokenizer(LONG, truncation=True, max_length=30).input_ids
    assert len(scored.positions) == round(0.15 * 28)
    assert list(scored.labels) == [ids[p] for p in scored.positions]
    assert not {0, len(ids) - 1} & set(scored.positions)
    assert {i for i, token in enumerate(scored.input_ids) if token == tokenizer.mask_token_id} == set(scored.positions)
    assert MaskedLMObjective(tokenizer).scored_text(CORPUS[1], random.Random(2))[0].positions


@pytest.mark.parametrize("kind", CAUSAL)
def test_scored_and_neutral_tokens_of_a_causal_model(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer, max_length=20)
    ids = tokenizer(LONG).input_ids[:20]
    (scored,) = objective.scored_text(LONG, random.Random(1))
    assert list(scored.input_ids) == ids
    assert scored.positions == tuple(range(19))
    assert list(scored.labels) == ids[1:]
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        example = objective.neutral_example(LONG, rng)
        assert example is not None
        slots = example.factual
        seen.add(len(slots.input_ids))
        assert list(slots.input_ids) == ids[: len(slots.input_ids)]
        assert slots.positions == (len(slots.input_ids) - 1,)
        assert slots.labels == (ids[len(slots.input_ids)],)
    assert seen == set(range(1, 20))
    assert objective.scored_text("", rng) == []
    assert objective.neutral_example("", rng) is None


def test_tokenizer_without_mask_token() -> None:
    with pytest.raises(BaseModelError, match=r"tokenizer of tiny has no mask token.*objective='causal_lm'"):
        MaskedLMObjective(causal_tokenizer("byte_bpe"), name_or_path="tiny")


def test_objective_follows_the_head() -> None:
    assert objective_name(build("bert")) == "masked_lm"
    assert objective_name(build("gpt2")) == objective_name(build("llama")) == "causal_lm"
    assert objective_name(build("bert"), "causal_lm") == "causal_lm"
    with pytest.raises(BaseModelError, match="BertForSequenceClassification has no language-modelling head"):
        objective_name(build("bert_classifier"))
    with pytest.raises(ConfigError, match=r"Unknown objective 'nope'; expected one of \['causal_lm', 'masked_lm'\]"):
        objective_name(build("bert"), "nope")


def test_longest_input_is_what_everybody_can_read() -> None:
    tokenizer = masked_tokenizer("word_piece")  # 40 tokens, as the model
    assert make_objective(build("bert"), tokenizer).max_length == 40
    assert make_objective(build("bert"), tokenizer, max_length=12).max_length == 12
    assert make_objective(build("bert"), tokenizer, max_length=4000).max_length == 40


def test_positions_that_begin_behind_the_padding_index_are_counted() -> None:
    """RoBERTa's first position is padding_idx + 1, so one of the 40 is never used and a 40th token has none."""
    model = build("roberta")
    objective = make_objective(model, masked_tokenizer("word_piece"))
    assert objective.max_length == 39
    model(torch.full((1, 39), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.full((1, 40), 5))
