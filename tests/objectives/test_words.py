"""The verdict on words: compared with what the tokenizer makes of the filled text."""

from __future__ import annotations

from typing import Any

import pytest

from gradiend_hub.objectives import CausalLMObjective, MaskedLMObjective
from gradiend_hub.objectives.words import word_tokens
from tests.objectives.tokenizers import CAUSAL, MASKED, causal_tokenizer, masked_tokenizer

WORDS = ["he", "they", "themselves", "zzqx"]


@pytest.mark.parametrize(("masked", "kind"), [*((True, kind) for kind in MASKED), *((False, kind) for kind in CAUSAL)])
def test_tokens_are_those_of_the_filled_text(kind: str, masked: bool) -> None:
    tokenizer: Any = (masked_tokenizer if masked else causal_tokenizer)(kind)
    objective = (MaskedLMObjective if masked else CausalLMObjective)(tokenizer)
    for found in word_tokens(objective, WORDS):
        text = tokenizer.tokenize(f"a {found.word}")
        if tokenizer.unk_token in text:
            assert found.unknown and found.verdict == "unknown to the tokenizer" and found.problem
            continue
        assert found.usable and found.inside == tuple(text[-len(found.inside) :])
        count = max(len(found.inside), len(found.first))
        assert found.verdict.startswith("one token" if count == 1 else f"{count} tokens")
        assert found.split == (count > 1)
        assert bool(found.first) == ("not at the beginning" not in found.verdict) == (not found.problem)
        assert bool(found.first) == (kind != "byte_bpe_without_start")


def test_words_that_cannot_be_read_are_explained() -> None:
    objective = MaskedLMObjective(masked_tokenizer("word_piece"), name_or_path="tiny")
    (odd,) = word_tokens(objective, ["é漢"])
    assert not odd.usable and odd.unknown
    assert "unknown to the tokenizer of tiny" in odd.problem
