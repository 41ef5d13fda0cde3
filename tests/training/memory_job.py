"""A small job in a process of its own: prints the peak memory that its dry run says, or that it came to, in bytes.

python -m tests.training.memory_job (said | came) BASE (autoencoder | natural) ROWS_AND_TEXTS OUTPUT
"""

from __future__ import annotations

import sys

import torch
from datasets import load_dataset

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.gradients.memory import resident_bytes

KINDS = {
    "autoencoder": {"solver": "autoencoder", "decoder": "solver"},
    "natural": {"solver": "closed_form", "decoder": "natural", "rank": 8},
}


def main(what: str, base: str, kind: str, data: str, output: str) -> int:
    """Train, evaluate and save, or predict it."""
    torch.set_num_threads(1)
    rows, texts = load_dataset(data), load_dataset(data, "neutral", split="neutral")
    texts = texts.filter(lambda row: row["split"] == "validation")
    arguments = GradiendTrainingArguments(
        output, max_steps=4, controls=1, quality_tokens=400, save_strategy="no", logging_strategy="no",
        disable_tqdm=True, **KINDS[kind],
    )  # fmt: skip
    trainer = GradiendTrainer(
        base, GradiendConfig(feature_classes=["3SG", "3PL"]), arguments,
        train_dataset=rows["train"], eval_dataset=rows["validation"].select(range(96)),
        neutral_dataset=texts.select(range(0, 80, 2)),
        neutral_train_dataset=texts.select(range(1, 80, 2)) if kind == "natural" else None,
    )  # fmt: skip
    if what == "said":
        return trainer.dry_run().peak_bytes
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return resident_bytes()


if __name__ == "__main__":
    sys.stdout.write(f"PEAK {main(*sys.argv[1:])}\n")
