"""Small tokenizers of every kind, built here from a few sentences. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = (
    "The dog barked because it was hungry and they left.",
    "They ran home. It ran home. He and she ran, too.",
    'I saw (they) there; "it was," he said.',
    "the children slept because they were tired, and she slept.",
)
SPECIAL = [AddedToken(t, special=True, lstrip=t == "<mask>") for t in ("<pad>", "<s>", "</s>", "<unk>", "<mask>")]
WORDS = sorted({word for line in CORPUS for word in "".join(c if c.isalnum() else " " for c in line).split()})
LETTERS = [chr(c) for c in (*range(48, 58), *range(65, 91), *range(97, 123))] + list("().,;\"'")


def _word_piece() -> PreTrainedTokenizerBase:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *sorted({w.lower() for w in WORDS})]
    pieces += [c for c in LETTERS if c.islower() or not c.isalpha()] + [f"##{c}" for c in LETTERS if c.islower()]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        mask_token="[MASK]", model_max_length=40,
    )  # fmt: skip


def _wrapped(tokenizer: Tokenizer, *, mask: bool, end: bool, start: bool = True) -> PreTrainedTokenizerBase:
    single = " ".join(["<s>"] * start + ["$A"] + ["</s>"] * end)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    )
    names: dict[str, str] = {"eos_token": "</s>"}
    names |= {"bos_token": "<s>", "pad_token": "<pad>"} if start else {}
    names |= {"mask_token": "<mask>"} if mask else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names)


def _byte_bpe(*, mask: bool, start: bool = True, lstrip: bool = True) -> PreTrainedTokenizerBase:
    """As GPT-2's and RoBERTa's: a word begins with "Ġ" where a space is before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=SPECIAL if lstrip else list(map(str, SPECIAL)), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([*CORPUS, *(f"{w}\n{w} {w}" for w in WORDS)], trainer)
    return _wrapped(tokenizer, mask=mask, end=mask, start=start)


def _unigram(*, mask: bool, scheme: str) -> PreTrainedTokenizerBase:
    """As XLM-R's (every text begins with "▁") and T5's or Llama's: words begin with "▁"."""
    pieces = (
        {str(piece): -20.0 for piece in SPECIAL} | dict.fromkeys(LETTERS, -12.0) | {f"▁{c}": -12.0 for c in LETTERS}
    )
    pieces |= dict.fromkeys(WORDS, -6.0) | {f"▁{word}": -5.0 for word in WORDS} | {"▁": -8.0}
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=3))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _wrapped(tokenizer, mask=mask, end=mask)


MASKED: Mapping[str, Callable[[], PreTrainedTokenizerBase]] = {
    "word_piece": _word_piece,
    "byte_bpe": lambda: _byte_bpe(mask=True),
    "byte_bpe_greedy_space": lambda: _byte_bpe(mask=True, lstrip=False),
    "unigram_always": lambda: _unigram(mask=True, scheme="always"),
    "unigram_first": lambda: _unigram(mask=True, scheme="first"),
}

CAUSAL: Mapping[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte_bpe": lambda: _byte_bpe(mask=False),
    "byte_bpe_without_start": lambda: _byte_bpe(mask=False, start=False),
    "unigram_always": lambda: _unigram(mask=False, scheme="always"),
    "unigram_first": lambda: _unigram(mask=False, scheme="first"),
}


@cache
def masked_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer with a mask token."""
    return MASKED[kind]()


@cache
def causal_tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer without one."""
    return CAUSAL[kind]()
