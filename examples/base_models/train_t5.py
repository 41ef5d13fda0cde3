"""Train the bundled T5 on a CPU: `t5.py` says from what, and `train.py` how the texts become batches.

    python examples/base_models/train_t5.py --text FILE... --out DIR --steps 1500 --seed 0

The same text, seed, steps and thread count give the same weights. Started again, a run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from corpus import load_corpus
from t5 import from_masked, t5_loss, with_gaps, with_sentinels
from train import MASKED, MAX_TOKENS, PRONOUN_RATE, epochs, pronoun_ids, rate, save
from transformers import AutoTokenizer, BertForMaskedLM

LOGGED, KEPT = 25, 100  # steps
FITTED = 300  # texts that sizes are read on
POSITIONS = 30.0  # times the learning rate: what is new to the weights has to reach some units, and is few numbers


def groups_of(learned: torch.nn.Module) -> list[dict[str, Any]]:
    """All parameters, for the optimizer: those of the relative positions learn faster."""
    named = [(("relative_attention_bias" in name), parameter) for name, parameter in learned.named_parameters()]
    return [
        {"params": [p for is_position, p in named if not is_position], "factor": 1.0},
        {"params": [p for is_position, p in named if is_position], "factor": POSITIONS},
    ]


def main() -> None:
    """Train, log and checkpoint now and then, and write the model at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, or .jsonl(.gz) with `text`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)

    texts, _ = load_corpus(args.text)
    masked = BertForMaskedLM.from_pretrained(MASKED, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MASKED)
    tokenizer, pronouns = with_sentinels(tokenizer), pronoun_ids(tokenizer)
    first = tokenizer(texts[:FITTED], truncation=True, max_length=MAX_TOKENS)["input_ids"]
    model, to_masked = from_masked(
        masked, tokenizer, with_gaps(first, tokenizer, pronouns, random.Random(args.seed), PRONOUN_RATE)
    )
    learned = torch.nn.ModuleDict({"model": model, "to_masked": to_masked})
    optimizer = torch.optim.AdamW(groups_of(learned), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, step, seconds, tokens = args.out / "checkpoint.pt", 0, 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        learned.load_state_dict(state["learned"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, tokens = state["step"], state["seconds"], state["tokens"]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, from step {step}", flush=True)

    began, sums = time.process_time() - seconds, Counter[str]()
    for ids in epochs(texts, tokenizer, args.seed, step):
        if step == args.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate(step, args.steps)
        rows = [[i for i in row if i != tokenizer.pad_token_id] for row in ids.tolist()]
        rng = random.Random(args.seed * 10_000_000 + step)
        gaps = with_gaps(rows, tokenizer, pronouns, rng, PRONOUN_RATE)
        loss, parts = t5_loss(model, to_masked, masked, gaps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        step, tokens, seconds = step + 1, tokens + sum(map(len, rows)), time.process_time() - began
        sums.update({"loss": loss.item(), **parts})
        if step % LOGGED == 0:
            entry = {"step": step, **{name: round(value / LOGGED, 4) for name, value in sums.items()}}
            entry |= {"lr": optimizer.param_groups[0]["lr"], "tokens": tokens, "cpu_seconds": round(seconds)}
            with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            sums.clear()
        if step % KEPT == 0 or step == args.steps:
            state = {"learned": learned.state_dict(), "optimizer": optimizer.state_dict()}
            partial = checkpoint.with_suffix(".partial")
            torch.save({**state, "step": step, "seconds": seconds, "tokens": tokens}, partial)
            partial.replace(checkpoint)
            save(model, tokenizer, args.out / "model")


if __name__ == "__main__":
    main()
