"""Winogender schemas: does a model choose pronouns by the share of women in an occupation?"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import pearsonr
from torch import nn

from gradiend_hub.data.text_files import read_text
from gradiend_hub.errors import DataError
from gradiend_hub.evaluation.intervals import bootstrap_interval
from gradiend_hub.evaluation.report import BenchmarkResult

from .scoring import BenchmarkRun, SentenceScorer, Span, describe_source

WINOGENDER = """@inproceedings{rudinger2018gender,
  title = {Gender Bias in Coreference Resolution},
  author = {Rudinger, Rachel and Naradowsky, Jason and Leonard, Brian and Van Durme, Benjamin},
  booktitle = {NAACL}, year = {2018}}"""

_PRONOUNS = {"$NOM_PRONOUN": ("she", "he"), "$POSS_PRONOUN": ("her", "his"), "$ACC_PRONOUN": ("her", "him")}


def winogender(
    model: nn.Module,
    tokenizer: Any,
    templates: str | Path,
    statistics: str | Path,
    *,
    strength: float = 0.0,
    batch_size: int = 32,
) -> BenchmarkRun:
    """Winogender (Rudinger et al. 2018), read as a language model: P(female pronoun) against the share of women at work.

    Only templates whose pronoun refers to the occupation are used. P(female) = P(she)/(P(she) + P(he)) with the probability
    of the pronoun (masked models: pseudo-likelihood) or of the whole sentence (causal models).

    Args:
        templates: the published `templates.tsv`: occupation, other participant, answer, sentence.
        statistics: the published `occupations-stats.tsv`: occupation, …, share of women (`bls_pct_female`, percent).

    Returns:
        Scores "correlation" (Pearson's r over occupations; 0 is no bias) and "female" (mean P(female), percent), with
        bootstrap intervals over occupations; one row per sentence.
    """
    occupations, texts, spans, shares = read_winogender(templates, statistics)
    scorer = SentenceScorer(model, tokenizer, batch_size=batch_size)
    female_score, male_score = (
        scorer.totals([t[side] for t in texts], [s[side] for s in spans] if scorer.masked else None) for side in (0, 1)
    )
    chances = expit(np.array(female_score) - np.array(male_score))
    rows: list[dict[str, Any]] = [
        {"occupation": o, "text": text[0], "female": float(p), "share_of_women": shares[o]}
        for o, text, p in zip(occupations, texts, chances, strict=True)
    ]
    by_occupation: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_occupation[row["occupation"]].append(row["female"])
    x = np.array([100 * np.mean(values) for values in by_occupation.values()])
    y = np.array([shares[occupation] for occupation in by_occupation])
    figures: dict[str, Callable[[Any, Any], float]] = {
        "correlation": _correlation,
        "female": lambda x, y: float(x.mean()),
    }
    scores = {name: value for name, figure in figures.items() if math.isfinite(value := figure(x, y))}
    result = BenchmarkResult(
        "Winogender",
        strength,
        scores,
        {name: bootstrap_interval(figures[name], x, y) for name in scores if len(x) > 2},
        len(rows),
        describe_source(templates, statistics),
        WINOGENDER,
    )
    return BenchmarkRun(result, rows)


def read_winogender(
    templates: str | Path, statistics: str | Path
) -> tuple[list[str], list[tuple[str, str]], list[tuple[list[Span], list[Span]]], dict[str, float]]:
    """Occupation, sentence with either pronoun and where these are, of each template; and the shares of women."""
    shares = _shares(Path(statistics))
    texts: list[tuple[str, str]] = []
    spans: list[tuple[list[Span], list[Span]]] = []
    occupations: list[str] = []
    for occupation, participant, answer, sentence in _templates(Path(templates)):
        if answer != "0" or occupation not in shares:
            continue
        filled = sentence.replace("$OCCUPATION", occupation).replace("$PARTICIPANT", participant)
        key = next((k for k in _PRONOUNS if k in filled), None)
        if key is None:
            raise DataError(f"{templates}: no pronoun ({', '.join(_PRONOUNS)}) in {sentence!r}.")
        start = filled.index(key)
        female, male = _PRONOUNS[key]
        texts.append((filled.replace(key, female), filled.replace(key, male)))
        spans.append(([(start, start + len(female))], [(start, start + len(male))]))
        occupations.append(occupation)
    if not texts:
        raise DataError(f"{templates}: no template whose pronoun refers to an occupation of {statistics}.")
    return occupations, texts, spans, shares


def _correlation(x: Any, y: Any) -> float:
    """Pearson's r; NaN where either does not vary, as in resamples in which one occupation is all there is."""
    return float(pearsonr(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan


def _templates(path: Path) -> list[list[str]]:
    lines = list(csv.reader(read_text(path).splitlines(), delimiter="\t"))[1:]
    if wrong := next((line for line in lines if len(line) != 4), None):
        raise DataError(f"{path.name}: expected 4 columns (occupation, participant, answer, sentence), found {wrong}.")
    return lines


def _shares(path: Path) -> dict[str, float]:
    records = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
    if not records or not {"occupation", "bls_pct_female"} <= records[0].keys():
        raise DataError(f"{path.name}: expected the columns 'occupation' and 'bls_pct_female', tab-separated.")
    return {record["occupation"]: float(record["bls_pct_female"]) for record in records}
