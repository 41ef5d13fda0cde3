"""Where the slot is and which token fills it, compared with what the tokenizer makes of the filled text."""

from __future__ import annotations

import random
from itertools import chain, product
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gradiend_hub.errors import BaseModelError, ConfigError, DataError
from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective, make_objective, objective_name
from tests.models import build
from tests.objectives.support import filled, ids_of, pieces, text_row
from tests.objectives.tokenizers import CAUSAL, CORPUS, MASKED, causal_tokenizer, masked_tokenizer

LONG = "the children slept because they were tired " * 9


BEFORE = (
    *(
        "",
        "the dog barked because ",
        "they ran.\n",
        "they ran.\n\n",
        "they\tran\t",
        "because\u00a0",
        "because  ",
        " ",
        "\n",
    ),
    *('"', "I saw (", "un", "because", "<s>I saw ", "it <unk> "),
)
AFTER = ("", " ran home.", ".", ") there.", "\nThey left.", "\tran", "  ran", "self", "s", "\u00a0ran", "</s>")
WORDS = ("it", "they", "They", "she", "itself", "themselves")


def straddled(tokenizer: Any, text: str, start: int, stop: int) -> bool:
    """Whether a token of the text covers a character of the word and a letter beside it."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = [(low, high) for low, high in encoded.offset_mapping if low < stop and high > start]
    return any(text[low:start].strip() or text[stop:high].strip() for low, high in spans)


def expected_ids(tokenizer: Any, text: str) -> list[int]:
    """The text as the tokenizer encodes it; the start and end tokens that it brings itself are not doubled."""
    ids = tokenizer(text).input_ids
    own = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) > len(own) and own and ids[0] == own[0] == ids[1]:
        ids = ids[1:]
    if len(ids) > len(own) and own and ids[-1] == own[-1] == ids[-2]:
        ids = ids[:-1]
    return ids


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", [*MASKED, *(f"causal {kind}" for kind in CAUSAL)])
def test_the_input_with_its_slot_filled_is_the_tokenization_of_the_filled_text(kind: str, before: str) -> None:
    causal = kind.startswith("causal ")
    tokenizer = causal_tokenizer(kind.removeprefix("causal ")) if causal else masked_tokenizer(kind)
    objective = CausalLMObjective(tokenizer) if causal else MaskedLMObjective(tokenizer)
    read = 0
    for after, word in product(AFTER, WORDS):
        text = before + word + after
        whole = expected_ids(tokenizer, text)
        try:
            sample = objective.sample(text_row(f"{before}[MASK]{after}", word, "it"), word)
        except DataError as error:
            unknown = tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids
            first = causal and not before.strip() and "start token" in str(error)
            assert straddled(tokenizer, text, len(before), len(before) + len(word)) or unknown or first, (text, error)
            continue
        read += 1
        assert not straddled(tokenizer, text, len(before), len(before) + len(word)), text
        ids = list(ids_of(sample))
        if causal:
            first = sample.positions[0] + 1
            assert [p + 1 for p in sample.positions] == list(range(first, first + len(sample.labels)))
            assert [*ids[:first], *sample.labels] == whole[: first + len(sample.labels)]
            assert ids == whole[: len(ids)]
        else:
            assert {ids[p] for p in sample.positions} == {tokenizer.mask_token_id}
            for position, label in zip(sample.positions, sample.labels, strict=True):
                ids[position] = label
            assert ids == whole
        shown = tokenizer.decode(list(sample.labels)).replace("##", "")
        assert "".join(shown.split()).casefold() == word.casefold()
    nothing = before in ("un", "because") or (kind == "causal byte_bpe_without_start" and not before.strip())
    assert read >= (0 if nothing else len(WORDS) * 5 if before.strip() else 1)


def test_white_space_before_the_slot_is_read_as_it_is_written(causal_path: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(causal_path)
    objective = CausalLMObjective(tokenizer)
    written = {
        space: tokenizer.convert_ids_to_tokens(
            list(
                ids_of(
                    s := objective.sample(text_row(f"The boys were tired.{space}[MASK] slept.", "They", "It"), "They")
                )
            )
            + list(s.labels)
        )[-2:]
        for space in (" ", "\n", "\n\n")
    }
    assert written[" "] == [".", "ĠThey"]
    assert written["\n"] == ["Ċ", "They"]
    assert written["\n\n"][-1] == "They"


@pytest.mark.parametrize(("text", "word"), [("Das [MASK]haus", "Rat"), ("un[MASK]", "they"), ("a [MASK]s b", "it")])
def test_a_word_that_grows_together_with_its_neighbours_is_refused(text: str, word: str) -> None:
    vocabulary = {
        piece: i
        for i, piece in enumerate(["[UNK]", "[MASK]", "rathaus", "rat", "das", "##haus", "unthey", "its", "a", "b"])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", mask_token="[MASK]", pad_token="[UNK]"
    )
    with pytest.raises(
        DataError, match=r"merges .* with the letters (before|behind) it .* Put a space (before|behind) the slot"
    ):
        MaskedLMObjective(fast, max_length=20).sample(text_row(text, word, word), word)


def test_a_chat_template_brings_its_own_start() -> None:
    objective = CausalLMObjective(causal_tokenizer("byte_bpe"))
    (start,) = objective.tokenizer("", add_special_tokens=True).input_ids[:1]
    with_start, without = (
        ids_of(objective.sample(text_row(f"{s}I saw [MASK]", "it", "it"), "it")) for s in ("<s>", "")
    )
    assert with_start == without
    assert with_start.count(start) == 1
    (scored,) = objective.quality_samples("<s>I saw it", random.Random(0))
    assert ids_of(scored).count(start) == 1


@pytest.mark.parametrize("kind", MASKED)
def test_special_and_unknown_tokens_are_no_neutral_slots(kind: str) -> None:
    tokenizer = masked_tokenizer(kind)
    objective = MaskedLMObjective(tokenizer)
    symbols = f"the dog 漢 barked {tokenizer.sep_token or '</s>'} because 漢 it was {tokenizer.unk_token} hungry"
    special = set(tokenizer.all_special_ids)
    labels = [label for s in objective.quality_samples(symbols, random.Random(0), draws=40) for label in s.labels]
    drawn = [objective.neutral_example(symbols, random.Random(seed)).factual.labels[0] for seed in range(60)]  # type: ignore[union-attr]
    assert len(labels) > 5
    assert not special & {*labels, *drawn}


@pytest.mark.parametrize("kind", CAUSAL)
def test_special_and_unknown_tokens_are_not_scored_by_a_causal_model(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer)
    (sample,) = objective.quality_samples("the dog 漢 barked </s> because <unk> it was hungry", random.Random(0))
    assert not set(tokenizer.all_special_ids) & set(sample.labels)
    ids = tokenizer("the dog 漢 barked </s> because <unk> it was hungry").input_ids
    assert list(ids_of(sample)) == ids[: len(ids_of(sample))]  # they stay in the context
    assert [ids[p + 1] for p in sample.positions] == list(sample.labels)


@pytest.mark.parametrize("name", ["CanineTokenizer", "ByT5Tokenizer"])
def test_a_tokenizer_in_python_says_no_offsets_and_is_read_all_the_same(name: str) -> None:
    tokenizer = getattr(transformers, name)()
    assert not tokenizer.is_fast
    masked = tokenizer.mask_token_id is not None
    objective = (MaskedLMObjective if masked else CausalLMObjective)(tokenizer, max_length=200)
    for before, word, after in (("The boys said ", "they", " ran."), ("x\n", "it", "."), ("é ", "sié", " b")):
        sample = objective.sample(text_row(f"{before}[MASK]{after}", word, word), word)
        whole = tokenizer(before + word + after).input_ids
        if masked:
            ids = list(ids_of(sample))
            for position, label in zip(sample.positions, sample.labels, strict=True):
                ids[position] = label
            assert ids == whole
        else:
            stop = sample.positions[0] + 1 + len(sample.labels)
            assert [*ids_of(sample)[: sample.positions[0] + 1], *sample.labels] == whole[:stop]
        assert tokenizer.decode(list(sample.labels)).strip() == word


def test_bundled_tokenizers(masked_path: object, causal_path: object) -> None:
    masked, causal = AutoTokenizer.from_pretrained(masked_path), AutoTokenizer.from_pretrained(causal_path)
    row = ("When the monkey saw the fire, [MASK] ran.", "it", "they")
    example = MaskedLMObjective(masked).example(text_row(*row))
    assert masked.convert_ids_to_tokens(ids_of(example.factual))[example.factual.positions[0]] == "[MASK]"
    assert masked.convert_ids_to_tokens([*example.factual.labels, *example.alternative.labels]) == ["it", "they"]
    example = CausalLMObjective(causal).example(text_row(*row))
    assert causal.convert_ids_to_tokens(ids_of(example.factual))[-1] == ","
    assert causal.convert_ids_to_tokens([*example.factual.labels, *example.alternative.labels]) == ["Ġit", "Ġthey"]


def test_word_boundary_forms() -> None:
    """The same filler is another token at the start of a text, after a space and within a word."""

    def pieces(kind: str, *texts: str) -> list[str]:
        objective = MaskedLMObjective(masked_tokenizer(kind))
        return objective.tokenizer.convert_ids_to_tokens([*chain(*(objective.fill(t, "it").word for t in texts))])

    texts = ("[MASK] ran", "because [MASK] ran", "([MASK])")
    assert pieces("word_piece", *texts) == ["it", "it", "it"]
    assert pieces("byte_bpe", *texts) == ["it", "Ġit", "it"]
    assert pieces("unigram_always", *texts) == ["▁it", "▁it", "it"]
    assert pieces("unigram_first", *texts) == ["▁it", "▁it", "it"]


@pytest.mark.parametrize("kind", MASKED)
def test_what_is_no_slot_or_no_filler(kind: str) -> None:
    objective = MaskedLMObjective(masked_tokenizer(kind), name_or_path="tiny")
    with pytest.raises(DataError, match=r"No slot: expected exactly one \[MASK\] in 'They ran.'"):
        objective.example(text_row("They ran.", "they", "it"))
    with pytest.raises(DataError, match="More than one slot"):
        objective.example(text_row("[MASK] and [MASK]", "they", "it"))


def test_unknown_filler() -> None:
    with pytest.raises(DataError, match=r"'é漢' is unknown to the tokenizer of tiny"):
        MaskedLMObjective(masked_tokenizer("word_piece"), name_or_path="tiny").fill("a [MASK]", "é漢")


def test_masked_row_that_is_too_long_is_refused_wherever_its_slot_is() -> None:
    objective = MaskedLMObjective(masked_tokenizer("word_piece"), max_length=20, name_or_path="tiny")
    with pytest.raises(DataError, match=r"66 tokens and its slot is token 64, but tiny reads 20: truncation could cut"):
        objective.example(text_row(LONG + "[MASK]", "it", "they"))
    with pytest.raises(DataError, match="slot is token 1, but tiny reads 20"):
        objective.example(text_row("[MASK] " + LONG, "it", "they"))


LONG_WORDS = ("itself", "themselves", "it")


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("masked", ["because [MASK] ran.", "I saw ([MASK])"])
def test_masked_slot_has_a_mask_for_every_token_of_its_word(kind: str, masked: str) -> None:
    tokenizer = masked_tokenizer(kind)
    objective = MaskedLMObjective(tokenizer)
    for word in LONG_WORDS:
        expected = pieces(tokenizer, masked, word)
        sample = objective.example(text_row(masked, word, "it")).factual
        assert list(sample.positions) == expected.positions
        assert list(sample.labels) == [expected.ids[p] for p in expected.positions]
        assert [ids_of(sample)[p] for p in sample.positions] == [tokenizer.mask_token_id] * len(sample.labels)
        assert ids_of(sample).count(tokenizer.mask_token_id) == len(sample.labels)
        assert ids_of(sample)[: expected.positions[0]] == tuple(expected.ids[: expected.positions[0]])
    example = objective.example(text_row(masked, "themselves", "it"))
    assert len(example.factual.labels) > 1
    assert not objective.collate_pairs([example]).shared
    assert objective.collate_pairs([objective.example(text_row(masked, "it", "they"))]).shared


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_slots_are_the_tokens_of_the_continued_text(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer)
    for word in LONG_WORDS:
        expected = pieces(tokenizer, "they saw [MASK]", word)
        sample = objective.example(text_row("they saw [MASK] there", word, "it")).factual
        assert [*ids_of(sample), sample.labels[-1]] == expected.ids
        assert [p + 1 for p in sample.positions] == expected.positions
        assert list(sample.labels) == [expected.ids[p] for p in expected.positions]


def test_long_words_count_for_the_longest_input() -> None:
    row = ("the dog " * 5 + "[MASK]", "it", "xyzxyzxyz")  # 12 tokens with one slot
    masked = MaskedLMObjective(masked_tokenizer("word_piece"), max_length=14)
    with pytest.raises(DataError, match=r"The row has 21 tokens .* reads 14"):
        masked.example(text_row(*row))
    causal = CausalLMObjective(causal_tokenizer("byte_bpe"), max_length=10)
    example = causal.example(text_row(*row))
    assert len(ids_of(example.alternative)) == 10
    prefix = ids_of(example.factual)
    assert ids_of(example.alternative)[: len(prefix)] == prefix  # both read the same context


@pytest.mark.parametrize("kind", CAUSAL)
def test_long_prefix_loses_its_beginning(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer, max_length=20)
    slots = objective.example(text_row(LONG + "[MASK] ran", "it", "they")).factual
    full = filled(tokenizer, LONG + "[MASK]", "it", after=False)
    start = [] if kind == "byte_bpe_without_start" else full.ids[:1]
    assert list(ids_of(slots)) == start + full.ids[: full.position][len(start) - 20 :]
    assert len(ids_of(slots)) == 20
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
            restored = list(ids_of(example.factual))
            assert restored[position] == tokenizer.mask_token_id
            restored[position] = label
            assert restored == ids
    assert len(seen) > 40  # random, not always the same one
    assert objective.neutral_example("", rng) is None
    assert objective.quality_samples("", rng) == []


@pytest.mark.parametrize("kind", MASKED)
def test_scored_of_a_masked_model(kind: str) -> None:
    tokenizer = masked_tokenizer(kind)
    (scored,) = MaskedLMObjective(tokenizer, max_length=30).quality_samples(LONG, random.Random(1))
    ids = tokenizer(LONG, truncation=True, max_length=30).input_ids
    assert len(scored.positions) == round(0.15 * 28)
    assert list(scored.labels) == [ids[p] for p in scored.positions]
    assert not {0, len(ids) - 1} & set(scored.positions)
    assert {i for i, token in enumerate(ids_of(scored)) if token == tokenizer.mask_token_id} == set(scored.positions)
    assert MaskedLMObjective(tokenizer).quality_samples(CORPUS[1], random.Random(2))[0].positions


@pytest.mark.parametrize("kind", CAUSAL)
def test_scored_and_neutral_tokens_of_a_causal_model(kind: str) -> None:
    tokenizer = causal_tokenizer(kind)
    objective = CausalLMObjective(tokenizer, max_length=20)
    ids = tokenizer(LONG).input_ids[:20]
    (scored,) = objective.quality_samples(LONG, random.Random(1))
    assert list(ids_of(scored)) == ids[:19]  # the last token is never read
    assert scored.positions == tuple(range(19))
    assert list(scored.labels) == ids[1:]
    rng = random.Random(0)
    seen = set()
    for _ in range(200):
        example = objective.neutral_example(LONG, rng)
        assert example is not None
        slots = example.factual
        seen.add(len(ids_of(slots)))
        assert list(ids_of(slots)) == ids[: len(ids_of(slots))]
        assert slots.positions == (len(ids_of(slots)) - 1,)
        assert slots.labels == (ids[len(ids_of(slots))],)
    assert seen == set(range(1, 20))
    assert objective.quality_samples("", rng) == []
    assert objective.neutral_example("", rng) is None


def test_tokenizer_without_mask_token() -> None:
    with pytest.raises(BaseModelError, match=r"tokenizer of tiny has no mask token.*objective='causal_lm'"):
        MaskedLMObjective(causal_tokenizer("byte_bpe"), name_or_path="tiny")


def test_objective_follows_the_head() -> None:
    assert objective_name(build("bert")) == "masked_lm"
    assert objective_name(build("gpt2")) == objective_name(build("llama")) == "causal_lm"
    assert objective_name(build("bert"), "causal_lm") == "causal_lm"
    assert objective_name(build("bert_classifier")) == "text_classification"
    assert objective_name(build("vit")) == "image_classification"
    with pytest.raises(BaseModelError, match="CLIPTextModel has no head that an objective is known for"):
        objective_name(build("clip_text"))


def test_objective_follows_the_columns_of_the_data() -> None:
    classifier, vit = build("bert_classifier"), build("vit")
    assert objective_name(classifier, columns=["label", "text", "more"]) == "text_classification"
    assert objective_name(classifier, columns=["label", "text", "counterfactual"]) == "text_concept"
    assert (
        objective_name(classifier, columns=["counterfactual"]) == "text_classification"
    )  # what it lacks is said later
    assert objective_name(vit, columns=["image", "counterfactual", "label"]) == "image_concept"
    assert (
        objective_name(classifier, "text_classification", ["label", "text", "counterfactual"]) == "text_classification"
    )
    with pytest.raises(ConfigError, match=r"Unknown objective 'nope'; expected one of \['causal_lm', "):
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
