"""Preference pairs: two ways to answer, as a direction of a model that generates text.

python examples/preferences.py --offline                                     # cheerful and gloomy answers
python examples/preferences.py --offline --set british                       # of the sets in examples/data/preferences
python examples/preferences.py --model HuggingFaceTB/SmolLM2-135M-Instruct   # through its chat template
python examples/preferences.py --model … --decoder natural --rank 4          # spares neutral text and own replies
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import HERE, bundled_sentences
from transformers import AutoTokenizer, PrinterCallback
from transformers.utils import logging

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.objectives import own_replies
from gradiend_hub.training.decoders import DECODERS

SETS = HERE / "data" / "preferences"
NEUTRAL = ["Explain how a bicycle works.", "What is salt?", "Name three rivers.", "How do I boil an egg?",
           "What is a map for?", "Why is the sky blue?", "How many days has a week?", "What is bread made of?"]  # fmt: skip
SHOWN = (-1.0, 0.0, 1.0)


def main() -> None:
    """Learn the direction, measure it on prompts that were not learned from, and print what the model says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or Hub id")
    parser.add_argument("--offline", action="store_true", help="the bundled model instead")
    parser.add_argument("--set", default="cheerful", choices=sorted(path.name for path in SETS.iterdir()))
    parser.add_argument("--summed", action="store_true", help="−log P of a completion as a sum, not per token")
    parser.add_argument("--pairs", type=int, default=48, help="training pairs")
    parser.add_argument("--layers", help="transformer layers to learn on, e.g. 10-29")
    parser.add_argument("--neutral", type=int, default=60, help="neutral sentences")
    parser.add_argument("--controls", type=int, default=2, help="random directions to compare with")
    parser.add_argument(
        "--decoder", default="solver", choices=DECODERS, help="natural and damage_aware learn from text"
    )
    parser.add_argument("--rank", type=int, help="largest rank of the direction's matrices; natural: 8")
    parser.add_argument("--save", type=Path, help="folder for the direction")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = str(HERE / "base_models" / "causal") if args.offline else args.model
    base, tokenizer = load_base_model(path, objective="preference"), AutoTokenizer.from_pretrained(path)
    chat = bool(tokenizer.chat_template)
    train, held_out = (pairs(args.set, split, chat) for split in ("train", "validation"))
    first, second = (name for name in train[0] if name != "prompt")
    prompts = [message("user", text) if chat else asked(text) for text in NEUTRAL]
    every = list(bundled_sentences())
    neutral = [{"text": every[i * len(every) // args.neutral]} for i in range(args.neutral)]
    neutral += own_replies(base, tokenizer, prompts, tokens=24)
    learns = args.decoder in ("natural", "damage_aware")  # from every other one, and it is measured on the rest
    trainer = GradiendTrainer(
        base,
        GradiendConfig(
            feature_classes=[first, second],
            source="diff",
            layers=args.layers,
            objective_options={"per_token": not args.summed},
        ),
        GradiendTrainingArguments(
            str(args.save or tempfile.mkdtemp()),
            solver="closed_form",
            decoder=args.decoder,
            rank=args.rank,
            per_device_train_batch_size=8,
            controls=args.controls,
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            use_cpu=args.offline,
        ),
        train_dataset=train[:: max(len(train) // args.pairs, 1)],
        eval_dataset=held_out,
        neutral_dataset=neutral[::2] if learns else neutral,
        neutral_train_dataset=neutral[1::2] if learns else None,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    if args.save:
        trainer.save_model()
    show(trainer, first, second)


def pairs(name: str, split: str, chat: bool) -> list[dict[str, Any]]:
    """Pairs of a set; for a model with a chat template, as messages."""
    rows = [json.loads(line) for line in (SETS / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    if not chat:  # a model without dialogues goes on with a sentence
        return [{**row, "prompt": asked(row["prompt"])} for row in rows]
    return [{k: message("user" if k == "prompt" else "assistant", v) for k, v in row.items()} for row in rows]


def asked(prompt: str) -> str:
    """A question with the beginning of an answer."""
    return f"{prompt} They answered:" if prompt.endswith(("?", ".")) else prompt


def message(role: str, text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": role, "content": text.strip()}]


def show(trainer: GradiendTrainer, first: str, second: str) -> None:
    """Print the strength curve and the completions."""
    split = trainer.report.splits["eval"]
    encoder = split.encoder
    assert encoder is not None and encoder.auc is not None
    low, high = trainer.gradiend_config.safe_band or (float("nan"), float("nan"))
    print(
        f"{first} / {second}, {len(trainer.train_dataset)} training rows: correlation {encoder.correlation:.3f}, ",
        end="",
    )
    print(f"AUC {encoder.auc:.3f}, neutral |h| {encoder.neutral_abs_mean:.3f}, safe band {low:+.2f} … {high:+.2f}")
    odds = next(name for name in split.curve[0].readings if name.startswith("log-odds"))
    print(f"\nstrength  {first + ' is likelier':>20}  {odds:>18}  quality      KL")
    for p in split.curve:
        share, value, quality = p.readings["share"], p.readings[odds], p.quality or 0.0
        print(f"{p.strength:+8.2f}  {share:20.2f}  {value:+18.3f}  {quality:7.3f}  {p.kl or 0.0:6.4f}")
    said = [(completion.text, completion.by_strength) for completion in split.completions[:3]]
    prompts = [s for s in split.generation.samples if s.kind == "prompts"] if split.generation else []
    for text, by_strength in said + [(sample.prompt, sample.by_strength) for sample in prompts[:2]]:
        print(f"\n{' '.join(text.split())}")
        for strength in SHOWN:
            print(f"  {strength:+g}: {' '.join(str(by_strength.get(str(strength), 'not asked')).split())}")


if __name__ == "__main__":
    main()
