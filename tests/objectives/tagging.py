"""A small classifier of words: sentences of templates with their nouns tagged, and a model that is trained for a moment."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from transformers.utils import logging

TAGS = ("O", "SINGULAR", "PLURAL")
TEMPLATES = Path(__file__).parents[2] / "examples" / "data"

Sentence = tuple[list[str], list[int]]
"""Words, and the number of each word's tag."""


def tagged(count: int) -> list[Sentence]:
    """Return sentences of templates with their nouns tagged as singular or plural."""
    sys.path.insert(0, str(TEMPLATES))
    try:
        templates = importlib.import_module("pronoun_templates")
    finally:
        sys.path.remove(str(TEMPLATES))
    rng, nouns = random.Random(0), [noun for noun in templates.NOUNS if noun.kind != "thing"]
    frames = ("The old {} slept .", "We saw the {} there .", "In the morning the {} came .", "They gave it to the {} .")
    found = []
    for _ in range(count):
        noun, plural = rng.choice(nouns), rng.random() < 0.5
        word = noun.plural if plural else noun.singular
        tokens = rng.choice(frames).format(word).split()
        found.append((tokens, [TAGS.index("PLURAL" if plural else "SINGULAR") if t == word else 0 for t in tokens]))
    return found


def train_tagger(masked: Path, folder: Path, sentences: list[Sentence]) -> None:
    """Train the first layers of the bundled masked model with a new head on the first 160 sentences, and save it."""
    torch.manual_seed(0)
    config = tf.BertConfig.from_pretrained(masked, num_hidden_layers=2, id2label=dict(enumerate(TAGS)))
    logging.set_verbosity_error()  # of layers that are left out, and a head that is new
    model = tf.BertForTokenClassification.from_pretrained(masked, config=config, dtype=torch.float32)
    logging.set_verbosity_warning()
    tokenizer = tf.AutoTokenizer.from_pretrained(masked)
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
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tagger_records(sentences: list[Sentence]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a record of each sentence's noun with the other number as alternative, and one of another word."""
    rows, neutral = [], []
    for tokens, tags in sentences:
        of = next(i for i, tag in enumerate(tags) if tag)
        rows.append({"tokens": tokens, "index": of, "label": TAGS[tags[of]], "alternative": TAGS[3 - tags[of]]})
        neutral.append({"tokens": tokens, "index": (of + 1) % len(tokens), "label": "O"})
    return rows, neutral
