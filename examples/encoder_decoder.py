"""A direction of an encoder-decoder model, the whole way: learn, measure, save, load, ask, verify and merge.

python examples/encoder_decoder.py                                    # the bundled BART, without a network
python examples/encoder_decoder.py --model examples/base_models/t5    # the bundled T5: its slot is <extra_id_0>
python examples/encoder_decoder.py --model google-t5/t5-small         # one of the Hub
python examples/encoder_decoder.py --push USER/NAME                   # and publish it with its card
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendModel, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.objectives import make_objective

HERE = Path(__file__).resolve().parent
ASKED = ("The children slept because [MASK] were tired.", "The old king said that [MASK] would come back.")


def rows(name: str) -> list[dict[str, Any]]:
    """Records of the bundled pronoun set."""
    return [json.loads(line) for line in (HERE / "data" / "pronouns" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def learned(model: str, folder: Path) -> GradiendTrainer:
    """Learn 3SG against 3PL, measure it on the test split, and save it with its card."""
    neutral = rows("neutral")
    trainer = GradiendTrainer(
        model,
        GradiendConfig(feature_classes=["3SG", "3PL"]),  # the objective is found from the model's head
        GradiendTrainingArguments(
            str(folder),
            solver="closed_form",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
        ),
        train_dataset=rows("train")[:640],
        eval_dataset=rows("validation")[:120],
        test_dataset=rows("test")[:120],
        neutral_dataset=[row for row in neutral if row["split"] == "validation"][:100],
        test_neutral_dataset=[row for row in neutral if row["split"] == "test"][:100],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    trainer.evaluate_test()
    trainer.save_model()
    return trainer


def show(trainer: GradiendTrainer) -> None:
    """Print what the test split says."""
    split, (first, second) = trainer.report.splits["test"], trainer.report.feature_classes
    encoder, zero = split.encoder, split.at(0.0)
    assert encoder is not None
    chance = ", ".join(f"{end:+.2f}" for end in encoder.null_correlation or ())
    print(f"objective: {trainer.objective.name}")
    print(f"encoder: correlation {encoder.correlation:.3f} (by chance {chance}), AUC {encoder.auc:.3f}, "
          f"neutral abs. h {encoder.neutral_abs_mean:.3f}")  # fmt: skip
    for strength, wanted, other in ((1.0, first, second), (-1.0, second, first)):
        point, control = split.at(strength), split.control_range(strength, wanted, other)
        low, high = point.effect_interval or (float("nan"), float("nan"))
        random = "–" if control is None else f"{control[0]:.3f} … {control[1]:.3f}"
        print(f"strength {strength:+g}: P({wanted}) where it was {other} {zero.probability[other][wanted]:.3f} → "
              f"{point.effect:.3f} [{low:.3f}, {high:.3f}], random {random}, quality {point.quality:.3f}")  # fmt: skip


def main() -> None:
    """Go the whole way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "base_models" / "seq2seq"), help="folder or Hub id")
    parser.add_argument("--save", type=Path, help="folder for the direction")
    parser.add_argument("--push", help="repository on the Hub to publish it in")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    folder = args.save or Path(tempfile.mkdtemp())
    show(learned(args.model, folder))
    model = GradiendModel.from_pretrained(folder, strength=0.0)
    objective = make_objective(model.get_base_model(), model.tokenizer)
    for text in ASKED:
        print(f"\n{text}")
        for strength in (-1.0, 0.0, 1.0):
            with model.strength_at(strength), torch.inference_mode():
                (answer,) = objective.complete(model.get_base_model(), [text], top=3, hints=["it", "they"])
            print(f"  {strength:+g}: " + ", ".join(f"{word} {chance:.2f}" for word, chance in answer.outputs))
    print(f"\nself-test passed: {model.verify().passed}")
    if args.push:
        print("published:", model.push_to_hub(args.push))
    model.set_strength(1.0)
    print(f"merged: {type(model.merge_and_unload()).__name__}")


if __name__ == "__main__":
    main()
