"""Fine-tune the bundled classifier of sentences: the first layers of the bundled masked model with a head of three labels.

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python examples/base_models/train_sentiment.py --ratings vaderSentiment-3.3.2.tar.gz --out DIR

Of the rated sentences only their labels and the weights that were learned from them remain. The same data, seed, epochs
and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from labelled import SENTIMENTS, Labelled, sentiments
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

BODY = Path(__file__).parent / "masked"
LAYERS, MAX_TOKENS, BATCH, PEAK_LR = 2, 64, 32, 5e-4

Batch = tuple[dict[str, Tensor], Tensor]


def new_model(body: Path) -> BertForSequenceClassification:
    """The first layers of the masked model, with a new head."""
    config = BertConfig.from_pretrained(
        body,
        num_hidden_layers=LAYERS,
        id2label=dict(enumerate(SENTIMENTS)),
        label2id={label: i for i, label in enumerate(SENTIMENTS)},
    )
    return BertForSequenceClassification.from_pretrained(body, config=config, dtype=torch.float32)


def batches(rows: list[Labelled], tokenizer: AutoTokenizer, rng: random.Random) -> list[Batch]:
    """Rows of about equal length together, the batches in a random order."""
    ordered = sorted(rows, key=lambda row: (len(row.input), rng.random()))
    parts = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]
    rng.shuffle(parts)
    found = []
    for part in parts:
        texts = [row.input for row in part]
        inputs = tokenizer(texts, truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt")
        found.append((dict(inputs), torch.tensor([SENTIMENTS.index(row.label) for row in part])))
    return found


def figures(model: BertForSequenceClassification, data: list[Batch]) -> tuple[float, float]:
    """Share of texts whose label is the likeliest, and mean negative log-likelihood of the label."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(**inputs).logits for inputs, _ in data])
    labels = torch.cat([labels for _, labels in data])
    return float((logits.argmax(-1) == labels).float().mean()), float(F.cross_entropy(logits, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ratings", type=Path, required=True, help="source distribution of vaderSentiment")
    parser.add_argument("--body", type=Path, default=BODY, help="folder of the masked model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.body)
    parts: dict[str, list[Labelled]] = {"train": [], "validation": [], "test": []}
    for row in sentiments(args.ratings):
        parts[row.split].append(row)
    model = new_model(args.body)
    held = {name: batches(parts[name], tokenizer, random.Random(0)) for name in ("validation", "test")}
    print(f"{sum(p.numel() for p in model.parameters())} parameters; {len(parts['train'])} texts", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=0.01)
    steps = args.epochs * -(-len(parts["train"]) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.1)
    start = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "log.jsonl").open("w", encoding="utf-8") as log:
        for epoch in range(args.epochs):
            model.train()
            total = 0.0
            for inputs, labels in batches(parts["train"], tokenizer, rng):
                loss = F.cross_entropy(model(**inputs).logits, labels, label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(labels)
            right, nll = figures(model, held["validation"])
            entry = {"epoch": epoch + 1, "loss": round(total / len(parts["train"]), 4)}
            entry |= {"validation_accuracy": round(right, 4), "validation_nll": round(nll, 4)}
            print(json.dumps({**entry, "seconds": round(time.process_time() - start)}), file=log, flush=True)
    right, nll = figures(model, held["test"])
    print(f"test: {len(parts['test'])} texts, accuracy {right:.3f}, nll {nll:.3f}")
    model.to(torch.bfloat16).save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
