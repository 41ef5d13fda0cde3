"""Parts that all benchmarks share: likelihoods of parts of sentences, and tables from a file or the Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel
from peft import PeftModel
from torch import Tensor, nn

from gradiend_hub.data.loading import load_rows
from gradiend_hub.data.text_files import read_text
from gradiend_hub.errors import BaseModelError, DataError
from gradiend_hub.evaluation.report import BenchmarkResult
from gradiend_hub.objectives import TextObjective, batched, evaluating, make_objective

Span = tuple[int, int]
"""First character and end of a part of a text."""


@dataclass(frozen=True)
class BenchmarkRun:
    """Result of a benchmark, and one record per item behind it."""

    result: BenchmarkResult
    rows: list[dict[str, Any]]


def unwrapped(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model, whose weights hold the edit; any other model as it is."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class SentenceScorer:
    """Log-likelihoods of the tokens of texts: each token masked in turn (masked models), or as next tokens (causal ones).

    Args:
        model: a base model, or a `GradiendModel` at any strength.
        tokenizer: its (fast) tokenizer.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, batch_size: int = 32) -> None:
        self.model = unwrapped(model)
        objective = make_objective(self.model, tokenizer)
        if not isinstance(objective, TextObjective):
            raise BaseModelError(f"{type(self.model).__name__} reads no text, so no sentence can be scored with it.")
        self.objective = objective
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    @property
    def masked(self) -> bool:
        """True if tokens are read with both contexts."""
        return self.objective.reads_right_context

    def score(self, texts: Sequence[str], spans: Sequence[Sequence[Span]] | None = None) -> list[Tensor]:
        """Log-likelihood of each token that overlaps the spans of its text (by default all): one tensor [tokens] per text.

        Special tokens are never scored, nor is a causal model's first token without a start token before it.
        """
        of_spans = [None] * len(texts) if spans is None else spans
        of_texts = list(map(self.objective.token_samples, texts, of_spans))
        samples = [sample for of_text in of_texts for sample in of_text]
        device = next(self.model.parameters()).device
        parts: dict[int, Tensor] = {}
        with evaluating(self.model), torch.inference_mode():
            for rows in batched([sample.cost for sample in samples], self.batch_size):
                slots = self.objective.collate([samples[i] for i in rows]).to(device)
                log_probs = self.objective.log_probs(self.model, slots)
                values = log_probs.gather(-1, slots.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).double().cpu()
                parts |= {i: row[: len(samples[i].labels)] for i, row in zip(rows, values, strict=True)}
        none = torch.empty(0, dtype=torch.float64)
        in_order = (parts[i] for i in range(len(samples)))
        scores = [torch.cat([none, *islice(in_order, len(of_text))]) for of_text in of_texts]
        for text, values in zip(texts, scores, strict=True):
            if not len(values):
                raise DataError(f"No token of {text[:80]!r} can be scored where the benchmark asks for it.")
            if not bool(values.isfinite().all()):
                raise DataError(f"The model gives {text[:80]!r} a likelihood that is NaN or zero.")
        return scores

    def totals(self, texts: Sequence[str], spans: Sequence[Sequence[Span]] | None = None) -> list[float]:
        """Summed log-likelihoods of `score`."""
        return [float(values.sum()) for values in self.score(texts, spans)]


def read_table(source: str | Path, *, split: str, config: str | None = None) -> Any:
    """Records of a local file (CSV, TSV, JSON or JSON Lines, by its ending) or, if there is none, of a Hub data set.

    Args:
        source: file, or `REPO_ID`, or `REPO_ID:CONFIG`.
        split: of the Hub data set, whose class labels come as their names.
        config: of the Hub data set, where `source` names none.

    Raises:
        DataError: there is no such data, or it is of another form.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".json":  # an object, of which the rows are a part
        return json.loads(read_text(path))
    repo_id, _, own = str(source).partition(":")
    wanted = {"path": str(source)} if path.is_file() else {"path": repo_id, "name": own or config, "split": split}
    table = load_rows(wanted, split, "the benchmark's data")
    labels = {name: feature for name, feature in table.features.items() if isinstance(feature, ClassLabel)}
    return [{**record, **{name: of.int2str(record[name]) for name, of in labels.items()}} for record in table]


def require_columns(records: Sequence[Any], columns: Sequence[str], source: object) -> None:
    """Raise `DataError` unless there are records, and the first has these columns."""
    if not len(records):
        raise DataError(f"{source} has no rows.")
    if missing := [column for column in columns if column not in records[0]]:
        raise DataError(f"{source}: column {missing[0]!r} is missing; found {sorted(map(str, records[0]))}.")


def describe_source(*sources: str | Path) -> str:
    """File names with a digest of their content, or Hub ids."""
    names = []
    for source in sources:
        path = Path(source)
        digest = f" (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})" if path.is_file() else ""
        names.append(f"{path.name}{digest}" if digest else str(source))
    return ", ".join(names)
