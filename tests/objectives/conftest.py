"""A small classifier of words, trained for a moment."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.utils import logging

from tests.conftest import ROOT

TAGS = ("O", "SINGULAR", "PLURAL")


def tagged(monkeypatch: Any, count: int) -> list[tuple[list[str], list[int]]]:
    """Sentences of templates with their nouns tagged as singular or plural."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "data"))
    templates = importlib.import_module("pronoun_templates")
    rng, nouns = random.Random(0), [noun for noun in templates.NOUNS if noun.kind != "thing"]
    frames = ("The old {} slept .", "We saw the {} there .", "In the morning the {} came .", "They gave it to the {} .")
    found = []
    for _ in range(count):
        noun, plural = rng.choice(nouns), rng.random() < 0.5
        word = noun.plural if plural else noun.singular
        tokens = rng.choice(frames).format(word).split()
        found.append((tokens, [TAGS.index("PLURAL" if plural else "SINGULAR") if t == word else 0 for t in tokens]))
    return found


@pytest.fixture(scope="session")
def tagger(masked_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The first layers of the bundled masked model with a head that is trained for a moment; rows and neutral rows."""
    with pytest.MonkeyPatch.context() as patch:
        sentences = tagged(patch, 240)
    torch.manual_seed(0)
    config = tf.BertConfig.from_pretrained(masked_path, num_hidden_layers=2, id2label=dict(enumerate(TAGS)))
    logging.set_verbosity_error()  # of layers that are left out, and a head that is new
    model = tf.BertForTokenClassification.from_pretrained(masked_path, config=config, dtype=torch.float32)
    logging.set_verbosity_warning()
    tokenizer = tf.AutoTokenizer.from_pretrained(masked_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for start in [*range(0, 160, 16)] * 3:
        part = sentences[start : start + 16]
        inputs = tokenizer([tokens for tokens, _ in part], is_split_into_words=True, padding=True, return_tensors="pt")
        labels = torch.full(inputs["input_ids"].shape, -100)
        for i, (_, tags) in enumerate(part):
            words = inputs.word_ids(i)
            for place, word in enumerate(words):
                if word is not None and word not in words[:place]:
                    labels[i, place] = tags[word]
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("tagger")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows, neutral = [], []
    for tokens, tags in sentences:
        of = next(i for i, tag in enumerate(tags) if tag)
        rows.append({"tokens": tokens, "index": of, "label": TAGS[tags[of]], "alternative": TAGS[3 - tags[of]]})
        neutral.append({"tokens": tokens, "index": (of + 1) % len(tokens), "label": "O"})
    return folder, rows, neutral
