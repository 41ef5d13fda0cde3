"""Train the bundled base models from scratch on a CPU.

    python examples/base_models/train.py masked --text FILE... --out DIR --steps 5000 --seed 0
    python examples/base_models/train.py causal --text FILE... --out DIR --steps 5000 --seed 0
    python examples/base_models/train.py seq2seq --text FILE... --out DIR --steps 2400 --seed 0

The same text, seed, steps and thread count give the same weights. Started again, a run goes on from its last
checkpoint; until the decay begins (the last fifth), the state does not depend on `--steps`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import TEMPLATE_SHARE, batches, load_corpus, template_texts
from seq2seq import from_masked, padded, seq2seq_loss
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 6000
MAX_TOKENS = 64
TOKENS_PER_BATCH = 1024
PEAK_LR, WARM_UP, DECAY = 1e-3, 200, 0.2  # decay: the last part of the steps, linear to zero
MASK_RATE, PRONOUN_RATE = 0.15, 0.5
MASKED = Path(__file__).parent / "masked"  # what the encoder-decoder model is made of
PRONOUNS = ["he", "she", "it", "they", "him", "her", "them", "his", "their", "its"]
PRONOUNS += ["himself", "herself", "itself", "themselves"]


def masked_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """An uncased WordPiece tokenizer trained on the texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special))
    # The trainer numbers pieces of equal frequency in an order that changes from run to run.
    pieces = special + sorted(set(core.get_vocab()) - set(special))
    core.model = models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", core.token_to_id("[CLS]")), ("[SEP]", core.token_to_id("[SEP]"))],
    )
    return BertTokenizerFast(tokenizer_object=core, model_max_length=128, do_lower_case=True)


def causal_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts, which puts `<s>` first."""
    special = ["<pad>", "<s>", "</s>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def new_model(kind: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A small BERT or Llama with random weights, or a BART of the bundled BERT's."""
    if kind == "seq2seq":
        return from_masked(BertForMaskedLM.from_pretrained(MASKED, dtype=torch.float32), tokenizer)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 224,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 672,
        "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "masked":
        return BertForMaskedLM(
            BertConfig(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, tie_word_embeddings=True)
        )
    return LlamaForCausalLM(
        LlamaConfig(
            **{**size, "intermediate_size": 512},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    )


def masked_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The mean cross entropy at masked positions of a padded batch `ids` (rows, length); the head runs there alone."""
    is_pronoun = torch.isin(ids, torch.tensor(sorted(pronoun_ids(tokenizer))))
    draw = torch.rand(ids.shape, generator=generator)
    chosen = (draw < torch.where(is_pronoun, PRONOUN_RATE, MASK_RATE)) & (ids >= 5)
    how = torch.rand(ids.shape, generator=generator)
    other = torch.randint(5, len(tokenizer), ids.shape, generator=generator)
    inputs = torch.where(chosen & (is_pronoun | (how < 0.8)), tokenizer.mask_token_id, ids)
    inputs = torch.where(chosen & ~is_pronoun & (how > 0.9), other, inputs)
    padding = (ids != tokenizer.pad_token_id).long()
    hidden = model.bert(input_ids=inputs, attention_mask=padding).last_hidden_state[chosen]
    return F.cross_entropy(model.cls(hidden), ids[chosen])


def causal_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> torch.Tensor:
    """The mean cross entropy of the next token over a right-padded batch `ids` (rows, length)."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    real = ids[:, 1:] != tokenizer.pad_token_id
    return F.cross_entropy(model.lm_head(hidden[real]), ids[:, 1:][real])


def pronoun_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids of the pronouns."""
    return {*tokenizer.convert_tokens_to_ids(PRONOUNS)}


def epochs(texts: list[str], tokenizer: PreTrainedTokenizerFast, seed: int, start: int) -> Iterator[torch.Tensor]:
    """Batches (rows, length) without end, from batch number `start`: all texts and new template sentences per epoch."""
    end = [tokenizer.eos_token_id] if tokenizer.bos_token_id is not None else []  # the others put it there themselves

    def encode(batch: list[str]) -> list[list[int]]:
        ids = tokenizer(batch, truncation=True, max_length=MAX_TOKENS, return_attention_mask=False)["input_ids"]
        return [(row + end)[:MAX_TOKENS] for row in ids]

    real = encode(texts)
    share = int(TEMPLATE_SHARE * sum(len(text.split()) for text in texts))
    epoch = 0
    while True:
        rows = real + encode(template_texts(seed * 1000 + epoch, share))
        order = batches([len(row) for row in rows], seed * 1000 + epoch, TOKENS_PER_BATCH)
        print(f"epoch {epoch}: {len(order)} batches, {sum(map(len, rows))} tokens")
        for batch in order[start:]:
            yield padded([rows[index] for index in batch], tokenizer.pad_token_id)
        start = max(0, start - len(order))
        epoch += 1


def rate(step: int, steps: int) -> float:
    """The learning rate: linear warm-up, constant, linear decay to zero."""
    return PEAK_LR * min(1.0, (step + 1) / WARM_UP, (steps - step) / (DECAY * steps))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 and its tokenizer; the model in memory stays float32."""
    halved = type(model)(model.config)
    halved.load_state_dict(model.state_dict())
    halved.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Train, log every 50 steps, checkpoint every 500, and write the model at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("masked", "causal", "seq2seq"))
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, or .jsonl(.gz) with `text`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)

    texts, _ = load_corpus(args.text)
    checkpoint = args.out / "checkpoint.pt"
    if args.kind == "seq2seq":
        tokenizer = AutoTokenizer.from_pretrained(MASKED)
    elif checkpoint.exists():  # a tokenizer that was trained again might number its pieces in another way
        tokenizer = AutoTokenizer.from_pretrained(args.out / "model")
    else:
        makers = {"masked": masked_tokenizer, "causal": causal_tokenizer}
        tokenizer = makers[args.kind](texts + template_texts(args.seed, 200_000))
    model = new_model(args.kind, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    args.out.mkdir(parents=True, exist_ok=True)
    step, seconds, tokens = 0, 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, tokens = state["step"], state["seconds"], state["tokens"]
    log = (args.out / "log.jsonl").open("a", encoding="utf-8")
    print(f"{sum(p.numel() for p in model.parameters())} parameters, from step {step}", flush=True)

    began, total = time.monotonic() - seconds, 0.0
    for ids in epochs(texts, tokenizer, args.seed, step):
        if step == args.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps)
        seed = args.seed * 10_000_000 + step
        if args.kind == "masked":
            loss = masked_loss(model, tokenizer, ids, torch.Generator().manual_seed(seed))
        elif args.kind == "causal":
            loss = causal_loss(model, tokenizer, ids)
        else:
            rows = [[i for i in row if i != tokenizer.pad_token_id] for row in ids.tolist()]
            rng = random.Random(seed)
            loss = seq2seq_loss(model, tokenizer, rows, pronoun_ids(tokenizer), rng, PRONOUN_RATE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, tokens, total = step + 1, tokens + int((ids != tokenizer.pad_token_id).sum()), total + loss.item()
        seconds = time.monotonic() - began
        if step % 50 == 0:
            entry = {
                "step": step,
                "loss": round(total / 50, 4),
                "lr": optimizer.param_groups[0]["lr"],
                "tokens": tokens,
            }
            log.write(json.dumps({**entry, "seconds": round(seconds)}) + "\n")
            log.flush()
            total = 0.0
        if step % 500 == 0 or step == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            partial = checkpoint.with_suffix(".partial")
            torch.save({**state, "step": step, "seconds": seconds, "tokens": tokens}, partial)
            partial.replace(checkpoint)
            save(model, tokenizer, args.out / "model")
    log.close()


if __name__ == "__main__":
    main()
