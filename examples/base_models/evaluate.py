"""Measure a bundled base model: held-out text, and the number of pronouns on the pronoun data set's test split.

    python examples/base_models/evaluate.py examples/base_models/masked --text FILE...

Prints one JSON object. Without `--text`, only the pronouns and the neutral sentences are measured. With `--card`, the
figures also replace the table of the model's README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from corpus import DATA, load_corpus
from seq2seq import corrupt
from t5 import with_gaps
from torch.nn import functional as F
from train import MASK_RATE, MAX_TOKENS, PRONOUN_RATE, pronoun_ids
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

AUTO = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}
CLASSES = {"3SG": ("he", "she", "it"), "3PL": ("they",)}


@dataclass(frozen=True)
class Subject:
    """A model to measure: "masked", "causal" or "seq2seq", with its tokenizer."""

    kind: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def load(cls, folder: Path) -> Subject:
        """Read a model directory, in float32."""
        tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        kind = "seq2seq" if config.is_encoder_decoder else "causal" if tokenizer.mask_token_id is None else "masked"
        return cls(kind, AUTO[kind].from_pretrained(folder, dtype=torch.float32).eval(), tokenizer)

    @property
    def has_sentinels(self) -> bool:
        """Whether its decoder goes on behind a sentinel, as T5's, and does not write the whole text."""
        return "<extra_id_0>" in self.tokenizer.get_vocab()

    def read(self, text: str) -> torch.Tensor:
        """Ids [1, T] of a text, at most as long as in the training."""
        return self.tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)["input_ids"]

    def written(self, ids: list[int]) -> torch.Tensor:
        """What the decoder reads to write a text's tokens, and then the next one: [1, T + 1]."""
        return torch.tensor([[self.model.config.decoder_start_token_id, *ids]])


@dataclass
class Draws:
    """What a measurement draws from; the same each time."""

    torch: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    python: random.Random = field(default_factory=lambda: random.Random(0))


def scored(subject: Subject, text: str, drawn: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T, vocabulary] and ids [T] of a text's scored tokens: a random 15 % masked, every next token, or spans."""
    ids, model = subject.read(text), subject.model
    if subject.kind == "masked":
        chosen = torch.rand(ids.shape, generator=drawn.torch) < MASK_RATE
        chosen[:, [0, -1]] = False
        if not chosen.any():
            return torch.empty(0, len(subject.tokenizer)), ids[chosen]
        return model(input_ids=ids.masked_fill(chosen, subject.tokenizer.mask_token_id)).logits[chosen], ids[chosen]
    if subject.kind == "causal":
        return model(input_ids=ids).logits[0, :-1], ids[0, 1:]
    row = ids[0].tolist()
    if subject.has_sentinels:
        gaps = with_gaps([row], subject.tokenizer, pronoun_ids(subject.tokenizer), drawn.python, PRONOUN_RATE)
        words = torch.isin(gaps.labels, ids)  # sentinels and the end are no text
        words[:, -1] = False
        return model(input_ids=gaps.source, decoder_input_ids=gaps.written).logits[words], gaps.labels[words]
    source, hidden = corrupt(
        row, pronoun_ids(subject.tokenizer), subject.tokenizer.mask_token_id, drawn.python, PRONOUN_RATE
    )
    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=subject.written(row[:-1])).logits[0]
    return logits[hidden], ids[0, hidden]


def text_score(subject: Subject, texts: list[str]) -> dict[str, float]:
    """Accuracy and perplexity of the scored tokens."""
    drawn = Draws()
    loss, right, count = 0.0, 0, 0
    for text in texts:
        logits, labels = scored(subject, text, drawn)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return {
        "tokens": count,
        "accuracy": round(right / count, 4),
        "nll": round(loss / count, 4),
        "perplexity": round(math.exp(loss / count), 2),
    }


def slot_probabilities(subject: Subject, text: str) -> torch.Tensor:
    """Probabilities (vocabulary,) at the slot; a causal model reads the text on its left alone."""
    left, _, right = text.partition("[MASK]")
    if subject.kind == "causal":
        ids, position, more = subject.tokenizer(left.rstrip(), return_tensors="pt")["input_ids"], -1, {}
    else:
        ids = subject.tokenizer(left + subject.tokenizer.mask_token + right, return_tensors="pt")["input_ids"]
        position, more = int((ids[0] == subject.tokenizer.mask_token_id).nonzero().item()), {}
        if subject.has_sentinels:
            sentinel = subject.tokenizer.convert_tokens_to_ids("<extra_id_0>")
            ids[0, position], position = sentinel, 1
            more = {"decoder_input_ids": subject.written([sentinel])}
        elif subject.kind == "seq2seq":
            more = {"decoder_input_ids": subject.written(ids[0, :position].tolist())}
    return subject.model(input_ids=ids, **more).logits[0, position].softmax(-1)


def pronoun_score(subject: Subject, rows: list[dict[str, str]]) -> dict[str, float]:
    """Balanced accuracy of the number (P(he)+P(she)+P(it) against P(they)), of the best of the four words' class, the
    share of rows whose best word of the whole vocabulary is of the right class, and the mean probability of the
    right class."""
    prefix = " " if subject.kind == "causal" else ""
    ids = {
        name: [subject.tokenizer(prefix + word, add_special_tokens=False)["input_ids"] for word in group]
        for name, group in CLASSES.items()
    }
    assert all(len(word) == 1 for group in ids.values() for word in group), "a pronoun is more than one token"
    hits: dict[str, list[tuple[bool, bool, bool, float]]] = {"3SG": [], "3PL": []}
    for row in rows:
        probabilities = slot_probabilities(subject, row["masked"])
        words = {name: probabilities[[word[0] for word in group]] for name, group in ids.items()}
        own = row["factual_class"]
        other = "3PL" if own == "3SG" else "3SG"
        top = int(probabilities.argmax())
        hits[own].append(
            (
                bool(words[own].sum() > words[other].sum()),
                bool(words[own].max() > words[other].max()),
                [top] in ids[own],
                float(words[own].sum()),
            )
        )
    means = {name: torch.tensor(values, dtype=torch.float32).mean(0) for name, values in hits.items()}
    both = ((means["3SG"] + means["3PL"]) / 2).tolist()
    names = ("balanced_accuracy", "balanced_accuracy_best_word", "best_of_vocabulary", "probability")
    each = {f"accuracy_{name}": round(float(means[name][0]), 4) for name in CLASSES}
    return {"rows": len(rows), **{n: round(v, 4) for n, v in zip(names, both, strict=True)}, **each}


@torch.no_grad()
def evaluate(folder: Path, texts: list[str], split: str) -> dict[str, dict[str, float]]:
    """All figures of one model directory, in float32."""
    subject = Subject.load(folder)

    def read(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (DATA / "pronouns" / f"{name}.jsonl").read_text("utf-8").splitlines()]

    rows = read(split)
    neutral = [row["text"] for row in read("neutral") if row["split"] == split]
    result = {"held_out_text": text_score(subject, texts)} if texts else {}
    result["neutral"] = text_score(subject, neutral)
    result["pronouns"] = pronoun_score(subject, rows)
    for source in ("template", "kjv", "wordnet"):
        part = [row for row in rows if row["source"] == source]
        result[f"pronouns_{source}"] = pronoun_score(subject, part)
    return result


def write_card(folder: Path, result: dict[str, dict[str, float]], split: str) -> None:
    """Put the figures between the two `figures` marks of the model's README.md."""
    lines = ["| text | scored tokens | accuracy | NLL | perplexity |", "|---|---|---|---|---|"]
    for name in ("held_out_text", "neutral"):
        if figures := result.get(name):
            cells = (figures[key] for key in ("tokens", "accuracy", "nll", "perplexity"))
            lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(map(str, cells)) + " |")
    keys = ("rows", "balanced_accuracy", "accuracy_3SG", "accuracy_3PL", "best_of_vocabulary", "probability")
    lines += ["", "| pronouns, " + split + " split | " + " | ".join(key.replace("_", " ") for key in keys) + " |"]
    lines.append("|---" * (len(keys) + 1) + "|")
    labels = {"": "all", "_template": "templates", "_kjv": "Bible", "_wordnet": "WordNet"}
    for name, label in labels.items():
        lines.append(f"| {label} | " + " | ".join(str(result["pronouns" + name][key]) for key in keys) + " |")
    card = folder / "README.md"
    table = "\n".join(lines)
    marked = re.sub(
        r"(<!-- figures -->\n).*(<!-- /figures -->)",
        lambda found: found[1] + table + "\n" + found[2],
        card.read_text("utf-8"),
        flags=re.DOTALL,
    )
    card.write_text(marked, encoding="utf-8")


def main() -> None:
    """Evaluate one model directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--card", action="store_true", help="also write the figures into the model's README.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = load_corpus(args.text)[1] if args.text else []
    result = evaluate(args.model, texts, args.split)
    print(json.dumps(result, indent=2))
    if args.card:
        write_card(args.model, result, args.split)


if __name__ == "__main__":
    main()
