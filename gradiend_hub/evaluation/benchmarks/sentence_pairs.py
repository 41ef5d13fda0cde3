"""Benchmarks that ask which of two sentences a model finds likelier: CrowS-Pairs and WinoBias."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gradiend_hub.data.text_files import read_text
from gradiend_hub.errors import DataError
from gradiend_hub.evaluation.intervals import share_interval
from gradiend_hub.evaluation.report import BenchmarkResult
from gradiend_hub.evaluation.scores import CROWS_PAIRS, preferred

from .scoring import BenchmarkRun, SentenceScorer, Span, describe_source, read_table, require_columns

WINOBIAS = """@inproceedings{zhao2018gender,
  title = {Gender Bias in Coreference Resolution: Evaluation and Debiasing Methods},
  author = {Zhao, Jieyu and Wang, Tianlu and Yatskar, Mark and Ordonez, Vicente and Chang, Kai-Wei},
  booktitle = {NAACL}, year = {2018}}"""


def crows_pairs(
    model: nn.Module,
    tokenizer: Any,
    source: str | Path,
    *,
    split: str = "test",
    strength: float = 0.0,
    batch_size: int = 32,
) -> BenchmarkRun:
    """CrowS-Pairs (Nangia et al. 2020): share of pairs whose more stereotyping sentence the model finds likelier.

    A masked model is asked for the pseudo-log-likelihood of the words that both sentences share, a causal one for the
    likelihood of the whole sentence. 50 is no preference. Pairs that the model finds equally likely count for neither.

    Args:
        source: a local file in the layout of `crows_pairs_anonymized.csv` (columns sent_more, sent_less, bias_type), or the
            id of a Hub data set with these columns.
        split: of the Hub data set.
        strength: of the model's edit, noted in the result.

    Returns:
        Scores "stereotype_score" (percent) and one per bias type, with Wilson intervals; one row per pair.
    """
    pairs, kinds = read_crows_pairs(source, split=split)
    scorer = SentenceScorer(model, tokenizer, batch_size=batch_size)
    rows = _compare(scorer, pairs, kinds, shared=True)
    return _run("CrowS-Pairs", rows, strength, describe_source(source), CROWS_PAIRS)


def winobias(
    model: nn.Module,
    tokenizer: Any,
    pro: str | Path,
    anti: str | Path,
    *,
    split: str = "test",
    strength: float = 0.0,
    batch_size: int = 32,
) -> BenchmarkRun:
    """WinoBias (Zhao et al. 2018): share of sentences whose pro-stereotypical pronoun the model finds likelier.

    A masked model is asked for the pseudo-log-likelihood of the bracketed words by which the two sentences differ, a causal
    one for the likelihood of the whole sentence. 50 is no preference.

    Args:
        pro: local file in the published layout (`pro_stereotyped_type1.txt.test`): numbered sentences with the coreferring
            phrases in square brackets; or `uclanlp/wino_bias:type1_pro` on the Hub, whose sentences are lists of tokens.
        anti: the other one of the same type, sentence by sentence with the other pronoun.
        split: of the Hub data set.

    Returns:
        Score "stereotype_score" (percent) with a Wilson interval; one row per pair.
    """
    pairs = read_winobias(pro, anti, split=split)
    scorer = SentenceScorer(model, tokenizer, batch_size=batch_size)
    rows = _compare(scorer, pairs, [""] * len(pairs), shared=False)
    return _run("WinoBias", rows, strength, describe_source(pro, anti), WINOBIAS)


def read_crows_pairs(source: str | Path, *, split: str = "test") -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of sentences and their bias types; arguments as of `crows_pairs`."""
    records = list(read_table(source, split=split))
    require_columns(records, ("sent_more", "sent_less", "bias_type"), source)
    pairs = [(r["sent_more"].strip(), r["sent_less"].strip()) for r in records]
    return pairs, [str(r["bias_type"]) for r in records]


def read_winobias(pro: str | Path, anti: str | Path, *, split: str = "test") -> list[tuple[str, str]]:
    """Pairs of sentences, the pro-stereotypical one first; arguments as of `winobias`."""
    first, second = (_sentences(source, split) for source in (pro, anti))
    if len(first) != len(second) or not first:
        raise DataError(
            f"{Path(pro).name} has {len(first)} sentences and {Path(anti).name} {len(second)}; expected equally many, "
            "and line by line the same ones with the other pronoun."
        )
    return list(zip(first, second, strict=True))


def _compare(
    scorer: SentenceScorer, pairs: Sequence[tuple[str, str]], kinds: Sequence[str], *, shared: bool
) -> list[dict[str, Any]]:
    """Score the sentences of pairs: a masked model by the words that both share, or by the others."""
    spans = [_spans(*pair, shared=shared) for pair in pairs] if scorer.masked else None
    first, second = (
        scorer.totals([pair[side] for pair in pairs], None if spans is None else [s[side] for s in spans])
        for side in (0, 1)
    )
    return [
        {"more": pair[0], "less": pair[1], "kind": kind, "log_likelihood_more": a, "log_likelihood_less": b}
        for pair, kind, a, b in zip(pairs, kinds, first, second, strict=True)
    ]


def _run(name: str, rows: list[dict[str, Any]], strength: float, source: str, citation: str) -> BenchmarkRun:
    scores: dict[str, float] = {}
    intervals: dict[str, list[float]] = {}
    groups = {"stereotype_score": rows} | {
        f"stereotype_score {kind}": [row for row in rows if row["kind"] == kind]
        for kind in sorted({row["kind"] for row in rows if row["kind"]})
    }
    for label, group in groups.items():
        hits, decided = preferred(*([row[f"log_likelihood_{side}"] for row in group] for side in ("more", "less")))
        if decided:
            scores[label] = 100 * hits / decided
            intervals[label] = [100 * end for end in share_interval(np.repeat([1.0, 0.0], [hits, decided - hits]))]
    return BenchmarkRun(BenchmarkResult(name, strength, scores, intervals, len(rows), source, citation), rows)


def _spans(first: str, second: str, *, shared: bool) -> tuple[list[Span], list[Span]]:
    """The words that both sentences have, or those by which they differ, in both."""
    a, b = ([match.span() for match in re.finditer(r"\w+|[^\w\s]", text)] for text in (first, second))
    words = [[text[start:end] for start, end in spans] for text, spans in ((first, a), (second, b))]
    blocks = SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes()
    chosen = [block for block in blocks if (block[0] == "equal") == shared]
    return [w for _, i, j, _, _ in chosen for w in a[i:j]], [w for _, _, _, i, j in chosen for w in b[i:j]]


def _sentences(source: str | Path, split: str) -> list[str]:
    """Sentences without their numbers and brackets, or put together from tokens."""
    if Path(source).is_file():
        lines = read_text(Path(source)).splitlines()
        return [re.sub(r"[\[\]]", "", re.sub(r"^\d+\s+", "", line)).strip() for line in lines if line.strip()]
    records = read_table(source, split=split)
    require_columns(records, ("tokens",), source)
    return [re.sub(r" (?=[.,;:!?]|n't\b|')", "", " ".join(record["tokens"])) for record in records]
