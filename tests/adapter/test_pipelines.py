"""Strengths by row in pipelines of transformers, which call the model themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

from gradiend_hub.errors import ConfigError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import config_for
from tests.adapter.test_side_path import learned

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*max_new_tokens.*:UserWarning"),
]
STRENGTHS = {"the boy was tired because": 1.0, "the girls were happy when": -1.0, "the player left after": 0.0}


def model_of(path: Path, kind: Any) -> GradiendModel:
    base = kind.from_pretrained(path, dtype=torch.float32)
    direction = learned(base) * 0.3
    return GradiendModel.from_direction(base, direction, config_for(direction, base), strength=0.0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation(causal_path: Path, batch_size: int) -> None:
    model, tokenizer = model_of(causal_path, AutoModelForCausalLM), AutoTokenizer.from_pretrained(causal_path)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "return_full_text": True, "max_length": None}
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)

    def by_text(input_ids: torch.Tensor, **_: Any) -> list[float]:
        return [STRENGTHS[text.strip()] for text in tokenizer.batch_decode(input_ids, skip_special_tokens=True)]

    with model.strengths_by_row(by_text):
        found = generate(list(STRENGTHS), batch_size=batch_size, **options)
    texts = [row[0]["generated_text"] for row in found]
    for (prompt, strength), text in zip(STRENGTHS.items(), texts, strict=True):
        with model.strength_at(strength):
            assert generate(prompt, **options)[0]["generated_text"] == text
    plain = generate(list(STRENGTHS), batch_size=batch_size, **options)
    assert [row[0]["generated_text"] for row in plain] != texts  # the strengths ended with the block


def test_filling(masked_path: Path) -> None:
    model, tokenizer = model_of(masked_path, AutoModelForMaskedLM), AutoTokenizer.from_pretrained(masked_path)
    texts = [f"{text} {tokenizer.mask_token} left ." for text in STRENGTHS]
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
    with model.strengths_by_row(list(STRENGTHS.values())):
        found = fill(texts, batch_size=len(texts))
        with pytest.raises(ConfigError, match="each of 1 rows"):
            fill(texts[0])
    for text, strength, answers in zip(texts, STRENGTHS.values(), found, strict=True):
        with model.strength_at(strength):
            alone = fill(text)
        assert [a["token"] for a in answers] == [a["token"] for a in alone]
        assert [a["score"] for a in answers] == pytest.approx([a["score"] for a in alone], rel=1e-4)
