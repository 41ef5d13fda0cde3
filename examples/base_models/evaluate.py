"""Measure a bundled base model: held-out text, and the number of pronouns on the pronoun data set's test split.

    python examples/base_models/evaluate.py examples/base_models/masked --text FILE...

Prints one JSON object. Without `--text`, only the pronouns and the neutral sentences are measured. With `--card`, the
figures also replace the table of the model's README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path

import torch
from corpus import DATA, load_corpus
from torch.nn import functional as F
from train import MASK_RATE, MAX_TOKENS
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CLASSES = {"3SG": ("he", "she", "it"), "3PL": ("they",)}


def text_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: list[str], *, masked: bool
) -> dict[str, float]:
    """Accuracy and perplexity of the scored tokens: a random 15 % masked, or every next token."""
    generator = torch.Generator().manual_seed(0)
    loss, right, count = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=MAX_TOKENS)["input_ids"]
        if masked:
            chosen = torch.rand(ids.shape, generator=generator) < MASK_RATE
            chosen[:, [0, -1]] = False
            if not chosen.any():
                continue
            logits = model(input_ids=ids.masked_fill(chosen, tokenizer.mask_token_id)).logits[chosen]
            labels = ids[chosen]
        else:
            logits, labels = model(input_ids=ids).logits[0, :-1], ids[0, 1:]
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        count += len(labels)
    return {
        "tokens": count,
        "accuracy": round(right / count, 4),
        "nll": round(loss / count, 4),
        "perplexity": round(math.exp(loss / count), 2),
    }


def slot_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, *, masked: bool
) -> torch.Tensor:
    """Probabilities (vocabulary,) at the slot; a causal model reads the text on its left alone."""
    left, _, right = text.partition("[MASK]")
    if masked:
        ids = tokenizer(left + tokenizer.mask_token + right, return_tensors="pt")["input_ids"]
        position = (ids[0] == tokenizer.mask_token_id).nonzero().item()
    else:
        ids = tokenizer(left.rstrip(), return_tensors="pt")["input_ids"]
        position = -1
    return model(input_ids=ids).logits[0, int(position)].softmax(-1)


def pronoun_score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]], *, masked: bool
) -> dict[str, float]:
    """Balanced accuracy of the number (P(he)+P(she)+P(it) against P(they)), of the best of the four words' class, the
    share of rows whose best word of the whole vocabulary is of the right class, and the mean probability of the
    right class."""
    prefix = "" if masked else " "
    ids = {
        name: [tokenizer(prefix + word, add_special_tokens=False)["input_ids"] for word in group]
        for name, group in CLASSES.items()
    }
    assert all(len(word) == 1 for group in ids.values() for word in group), "a pronoun is more than one token"
    hits: dict[str, list[tuple[bool, bool, bool, float]]] = {"3SG": [], "3PL": []}
    for row in rows:
        probabilities = slot_probabilities(model, tokenizer, row["masked"], masked=masked)
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
    tokenizer = AutoTokenizer.from_pretrained(folder)
    masked = tokenizer.mask_token_id is not None
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()

    def read(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (DATA / "pronouns" / f"{name}.jsonl").read_text("utf-8").splitlines()]

    rows = read(split)
    neutral = [row["text"] for row in read("neutral") if row["split"] == split]
    result = {"held_out_text": text_score(model, tokenizer, texts, masked=masked)} if texts else {}
    result["neutral"] = text_score(model, tokenizer, neutral, masked=masked)
    result["pronouns"] = pronoun_score(model, tokenizer, rows, masked=masked)
    for source in ("template", "kjv", "wordnet"):
        part = [row for row in rows if row["source"] == source]
        result[f"pronouns_{source}"] = pronoun_score(model, tokenizer, part, masked=masked)
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
