"""User seconds of learning and measuring a bundled model with the autoencoder, for any version of this repository.

    git worktree add --detach ../before b46762f^
    OMP_NUM_THREADS=1 PYTHONPATH=$PWD/../before python tests/benchmarks/whole_job.py examples
    OMP_NUM_THREADS=1 PYTHONPATH=$PWD python tests/benchmarks/whole_job.py examples

b46762f is the commit with which evaluations became sequential. The rows are those of `examples/train.yaml`, without its test
split; nothing is given that the older version does not know.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import torch
from datasets import load_dataset

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments


def seconds() -> float:
    """User seconds of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def main(examples: Path, base: str = "masked") -> None:
    """Learn, evaluate on the validation rows, and print what each took."""
    torch.set_num_threads(1)
    data = str(examples / "data" / "pronouns")
    rows, texts = load_dataset(data), load_dataset(data, "neutral", split="neutral")
    with tempfile.TemporaryDirectory() as output:
        arguments = GradiendTrainingArguments(
            output, solver="autoencoder", decoder="solver", save_strategy="no", disable_tqdm=True
        )
        trainer = GradiendTrainer(
            str(examples / "base_models" / base), GradiendConfig(feature_classes=["3SG", "3PL"]), arguments,
            train_dataset=rows["train"], eval_dataset=rows["validation"],
            neutral_dataset=texts.filter(lambda row: row["split"] == "validation"),
        )  # fmt: skip
        start = seconds()
        trainer.train()
        assert trainer.direction is not None  # learning ends with it
        learned = seconds()
        trainer.evaluate()
        measured = seconds()
    sys.stdout.write(f"learning {learned - start:.1f} s, measuring {measured - learned:.1f} s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
