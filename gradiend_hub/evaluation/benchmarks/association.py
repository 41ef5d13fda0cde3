"""SEAT and WEAT: are two sets of targets associated with two sets of attributes in a model's representations?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap, permutation_test
from torch import nn

from gradiend_hub.data.text_files import read_text
from gradiend_hub.errors import BaseModelError, DataError
from gradiend_hub.evaluation.intervals import LEVEL, RESAMPLES, Array
from gradiend_hub.evaluation.report import BenchmarkResult
from gradiend_hub.objectives import evaluating
from gradiend_hub.objectives.batching import padded_tokens

from .scoring import BenchmarkRun, describe_source, unwrapped

SEAT = """@inproceedings{may2019measuring,
  title = {On Measuring Social Biases in Sentence Encoders},
  author = {May, Chandler and Wang, Alex and Bordia, Shikha and Bowman, Samuel R. and Rudinger, Rachel},
  booktitle = {NAACL}, year = {2019}}"""

_SETS = ("targ1", "targ2", "attr1", "attr2")


def association_test(
    model: nn.Module,
    tokenizer: Any,
    source: str | Path,
    *,
    strength: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
) -> BenchmarkRun:
    """WEAT (Caliskan et al. 2017) and SEAT (May et al. 2019): effect size and permutation test.

    A text is represented by the last layer at its first token (masked models) or its last one (causal models).

    Args:
        source: local JSON file in the layout of the SEAT repository: "targ1", "targ2", "attr1", "attr2", each with
            "category" and "examples" (words for WEAT, sentences for SEAT).
        seed: of the permutations and the bootstrap.

    Returns:
        Scores "effect_size" (in standard deviations; positive if targ1 goes with attr1) and "p_value" (one-sided), with a
        bootstrap interval of the effect size; one row per target with its association.
    """
    sets = read_sets(source)
    base = unwrapped(model)
    vectors = {name: _embed(base, tokenizer, texts, batch_size) for name, texts in sets.items()}
    first, second = (_associations(vectors[name], vectors["attr1"], vectors["attr2"]) for name in _SETS[:2])
    generator = np.random.default_rng(seed)
    test = permutation_test(
        (first, second),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        vectorized=True,
        n_resamples=9999,
        alternative="greater",
        random_state=generator,
    )
    drawn = bootstrap(
        (first, second),
        effect_size,
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        random_state=generator,
    ).confidence_interval
    result = BenchmarkResult(
        f"WEAT/SEAT {Path(source).stem}",
        strength,
        {"effect_size": effect_size(first, second), "p_value": float(test.pvalue)},
        {"effect_size": [float(drawn.low), float(drawn.high)]},
        len(first) + len(second),
        describe_source(source),
        SEAT,
    )
    rows = [
        {"set": name, "text": text, "association": float(value)}
        for name, values in zip(_SETS, (first, second), strict=False)
        for text, value in zip(sets[name], values, strict=True)
    ]
    return BenchmarkRun(result, rows)


def effect_size(first: Array, second: Array) -> float:
    """Difference of the mean associations of two sets of targets, in standard deviations (n − 1) of all of them."""
    spread = np.concatenate([first, second]).std(ddof=1)
    return float((first.mean() - second.mean()) / spread) if spread > 0 else 0.0


def _associations(targets: Array, attr1: Array, attr2: Array) -> Array:
    """Mean cosine similarity to the first attributes minus that to the second: [targets]."""
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (targets, attr1, attr2)]
    difference: Array = (units[0] @ units[1].T).mean(1) - (units[0] @ units[2].T).mean(1)
    return difference


def _embed(base: Any, tokenizer: Any, texts: list[str], batch_size: int) -> Array:
    """Last hidden state at the first token with both contexts, or the last one of a causal model: [texts, hidden]."""
    backbone = getattr(base, base.base_model_prefix, None)
    if backbone is None:
        raise BaseModelError(f"{type(base).__name__} has no backbone {base.base_model_prefix!r} to take vectors from.")
    masked = tokenizer.mask_token_id is not None
    device = next(base.parameters()).device
    found = []
    with evaluating(base), torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            ids = [tokenizer(text, verbose=False).input_ids for text in texts[start : start + batch_size]]
            batch = padded_tokens(ids, tokenizer.pad_token_id or 0)
            hidden = backbone(**{name: values.to(device) for name, values in batch.items()}).last_hidden_state
            places = [0 if masked else len(i) - 1 for i in ids]
            found.append(hidden[range(len(ids)), places].double().cpu())
    vectors: Array = torch.cat(found).numpy()
    if not np.isfinite(vectors).all():
        raise DataError(f"The model's vectors of {texts[0]!r} … are NaN or infinite.")
    return vectors


def read_sets(source: str | Path) -> dict[str, list[str]]:
    """Texts of each of the four sets; arguments and errors as of `association_test`."""
    path = Path(source)
    try:
        fields = json.loads(read_text(path))
        sets = {name: [str(text) for text in fields[name]["examples"]] for name in _SETS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected JSON with {_SETS}, each with 'examples': {error!r}.") from error
    if short := [name for name, texts in sets.items() if len(texts) < 2]:
        raise DataError(f"{path}: {short[0]} needs at least two examples.")
    return sets
