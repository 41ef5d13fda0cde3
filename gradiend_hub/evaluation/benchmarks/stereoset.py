"""StereoSet: does a model prefer stereotypes, and does it still prefer sense to nonsense?"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from gradiend_hub.errors import DataError
from gradiend_hub.evaluation.intervals import bootstrap_interval
from gradiend_hub.evaluation.report import BenchmarkResult

from .scoring import BenchmarkRun, SentenceScorer, Span, describe_source, read_table

STEREOSET = """@inproceedings{nadeem2021stereoset,
  title = {StereoSet: Measuring stereotypical bias in pretrained language models},
  author = {Nadeem, Moin and Bethke, Anna and Reddy, Siva},
  booktitle = {ACL}, year = {2021}}"""

_BLANK = "BLANK"
_LABELS = ("stereotype", "anti-stereotype", "unrelated")
_HUB_LABELS = ("anti-stereotype", "stereotype", "unrelated")
"""Names of the integers in `gold_label` on the Hub."""


def stereoset(
    model: nn.Module,
    tokenizer: Any,
    source: str | Path,
    *,
    split: str = "validation",
    strength: float = 0.0,
    batch_size: int = 32,
) -> BenchmarkRun:
    """StereoSet's intrasentence part (Nadeem et al. 2021): SS, LMS and ICAT.

    A masked model scores a sentence by the mean pseudo-log-likelihood of the tokens that fill the blank, a causal one by the
    mean log-likelihood of all tokens. Scores are averaged over target terms, as published.

    Args:
        source: the published `dev.json`, or a Hub id in the layout of McGill-NLP/stereoset (configuration "intrasentence").
        split: of the Hub data set.
        strength: of the model's edit, noted in the result.

    Returns:
        Scores "ss" (percent of items whose stereotype is preferred to the anti-stereotype; 50 is no preference), "lms"
        (percent in which either is preferred to the unrelated word) and "icat" = lms·min(ss, 100 − ss)/50, with bootstrap
        intervals over target terms; one row per item.

    Raises:
        DataError: an item without a blank, or without one sentence of each kind.
    """
    items, blanks = read_stereoset(source, split=split)
    scorer = SentenceScorer(model, tokenizer, batch_size=batch_size)
    texts = [item[label] for item in items for label in _LABELS]
    scores = [float(values.mean()) for values in scorer.score(texts, blanks if scorer.masked else None)]
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        found = dict(zip(_LABELS, scores[3 * number : 3 * number + 3], strict=True))
        rows.append({"target": item["target"], "kind": item["bias_type"], "context": item["context"], **found})
    terms: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        senses = [row[label] > row["unrelated"] for label in _LABELS[:2]]
        terms[row["target"]].append((row["stereotype"] > row["anti-stereotype"], sum(senses) / 2))
    means = 100 * np.array([np.mean(values, axis=0) for values in terms.values()], dtype=float)
    columns = means[:, 0], means[:, 1]
    figures = {"ss": lambda ss, lms: float(ss.mean()), "lms": lambda ss, lms: float(lms.mean()), "icat": _icat}
    result = BenchmarkResult(
        "StereoSet (intrasentence)",
        strength,
        {name: figure(*columns) for name, figure in figures.items()},
        {n: bootstrap_interval(f, *columns) for n, f in figures.items() if len(means) > 1},
        len(rows),
        describe_source(source),
        STEREOSET,
    )
    return BenchmarkRun(result, rows)


def _icat(ss: Any, lms: Any) -> float:
    """Idealised context association test: lms·min(ss, 100 − ss)/50 of the means."""
    share = float(ss.mean())
    return float(lms.mean()) * min(share, 100 - share) / 50


def read_stereoset(source: str | Path, *, split: str = "validation") -> tuple[list[dict[str, str]], list[list[Span]]]:
    """Items as target, bias_type, context and one sentence by label; and where the blank is in each of their sentences."""
    table = read_table(source, split=split, config="intrasentence")
    records = table["data"]["intrasentence"] if isinstance(table, dict) else table
    items = []
    for record in records:
        sentences = record["sentences"]
        if isinstance(sentences, dict):  # a column per field, as `datasets` gives it
            found = list(zip(sentences["gold_label"], sentences["sentence"], strict=True))
        else:
            found = [(sentence["gold_label"], sentence["sentence"]) for sentence in sentences]
        by_label = {_HUB_LABELS[label] if isinstance(label, int) else label: text for label, text in found}
        if set(by_label) != set(_LABELS):
            raise DataError(
                f"{source}: expected a sentence of each of {_LABELS}, found {sorted(by_label)} in {record}."
            )
        items.append({key: record[key] for key in ("target", "bias_type", "context")} | by_label)
    if not items:
        raise DataError(f"{source} has no intrasentence items.")
    return items, [[_filled(item["context"], item[label])] for item in items for label in _LABELS]


def _filled(context: str, sentence: str) -> Span:
    """Find the blank of `context` in the filled sentence.

    The published sentences repeat their context up to small slips (a missing full stop, two spaces), so words are counted.
    """
    words, found = context.split(), [match.span() for match in re.finditer(r"\S+", sentence)]
    place = next((place for place, word in enumerate(words) if _BLANK in word), None)
    if place is None or place >= len(found):
        raise DataError(f"Expected {context!r} with {_BLANK} filled in, found {sentence!r}.")
    last = max(place, len(found) - (len(words) - place))
    (start, _), (_, end) = found[place], found[last]
    before, _, after = words[place].partition(_BLANK)
    filled = sentence[start:end].removeprefix(before).removesuffix(after)
    start += sentence[start:end].index(filled)
    return start, start + len(filled)
