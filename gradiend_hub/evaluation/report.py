"""The record of everything measured; cards, plots and tables are rendered from it and from nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradiend_hub.constants import REPORT_FILE, SCHEMA_VERSION
from gradiend_hub.data import Row, neutral_examples, require_classes, tokenize_rows
from gradiend_hub.errors import ArtifactError, SchemaVersionError
from gradiend_hub.objectives import Example, Objective

from .encoder import EncoderReport, encoder_report, encoder_tensors, neutral_source, preactivations
from .strength import CURVE, LM_SCORE_FLOOR, StrengthPoint, StrengthProbe, calibrate, safe_band

if TYPE_CHECKING:
    from gradiend_hub.model import GradiendModel


@dataclass(frozen=True)
class SplitReport:
    """A direction measured on one set of rows.

    Attributes:
        encoder: what the encoder reads.
        curve: what each strength changes.
        search: the doses that were tried to find the strength unit; empty where it was only used.
        scored_tokens: neutral tokens behind each language-modelling score.
    """

    encoder: EncoderReport
    curve: list[StrengthPoint]
    search: list[StrengthPoint]
    scored_tokens: int

    def at(self, strength: float) -> StrengthPoint:
        """The measured point at `strength`."""
        return next(p for p in self.curve if p.strength == strength)

    def flat(self) -> dict[str, float]:
        """The scalars that a trainer logs."""
        values = flat_encoder(self.encoder)
        scores = [p.lm_score for p in self.curve if abs(p.strength) == 1 and p.lm_score is not None]
        if scores:
            values["lm_score"] = min(scores)
        for point in self.curve:
            if abs(point.strength) == 1:
                first, second = self.encoder.rows
                wanted, other = (first, second) if point.strength > 0 else (second, first)
                values[f"probability_{wanted}"] = point.probability[other][wanted]
        return values


def flat_encoder(encoder: EncoderReport) -> dict[str, float]:
    """The scalars of an encoder report."""
    values = {"correlation": encoder.correlation, "accuracy": encoder.accuracy, "auc": encoder.auc}
    values |= {f"mean_{name}": mean for name, mean in encoder.class_means.items()}
    if encoder.neutral_abs_mean is not None:
        values["neutral_abs_mean"] = encoder.neutral_abs_mean
    return values


def evaluate_direction(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[str] = (),
    *,
    choose_unit: bool = False,
    floor: float = LM_SCORE_FLOOR,
    strengths: Sequence[float] = CURVE,
    batch_size: int = 64,
    seed: int = 0,
) -> SplitReport:
    """Measure the active direction of `model` on `rows` and neutral `texts`; the model is left as it was.

    Args:
        choose_unit: first search the dose that becomes strength 1 (do this on validation rows only).
        floor: lowest relative language-modelling score that counts as safe.
        strengths: grid of the curve.
        seed: decides which neutral tokens are masked or encoded.
    """
    config = model.active_peft_config
    classes = require_classes(config.feature_classes)
    base = model.get_base_model()
    encoder, bias = encoder_tensors(model)

    def encode(examples: Sequence[Example], source: str) -> Tensor:
        z = preactivations(base, objective, examples, encoder, bias, source=source, batch_size=batch_size)
        return torch.tanh(z)

    with model.strength_at(0.0):
        h = encode(tokenize_rows(objective, rows), config.source)
        quiet = neutral_examples(objective, texts, seed=seed)
        neutral = encode(quiet, neutral_source(config.source)) if quiet else None
    labels = torch.tensor([row.label(classes, config.source) for row in rows])
    probe = StrengthProbe(model, objective, rows, texts, batch_size=batch_size, seed=seed)
    search = calibrate(probe, floor=floor) if choose_unit else []
    curve = [probe.measure(strength) for strength in strengths]
    if choose_unit:
        config.safe_band = safe_band(curve, floor=floor)
    return SplitReport(encoder_report(h, labels, classes, neutral), curve, search, probe.scored_tokens)


@dataclass
class Report:
    """Everything that is known about a direction by measurement; `gradiend_report.json`.

    Attributes:
        feature_classes: the class of positive strength first.
        base_model: path or id of the base model, and `base_revision` its commit.
        scope: the tensors and weights that were in scope, in words.
        steps: optimizer steps.
        training: the training arguments that shape the result.
        data: rows per split and a digest of the training rows.
        splits: measurements by split; the strength unit was chosen on "eval".
        seconds: wall time by phase.
        versions: of the libraries that took part.
    """

    feature_classes: list[str]
    base_model: str
    base_revision: str | None = None
    scope: str = ""
    steps: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, SplitReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def save(self, folder: str | Path) -> None:
        """Write `gradiend_report.json`."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        Path(folder, REPORT_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read `gradiend_report.json`.

        Raises:
            SchemaVersionError: written by a newer version of this library.
            ArtifactError: no report there, or not one that this library wrote.
        """
        path = Path(folder, REPORT_FILE)
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            version = fields["schema_version"]
            if version > SCHEMA_VERSION:
                raise SchemaVersionError(
                    f"{path} has schema {version}; this version of gradiend_hub reads {SCHEMA_VERSION}."
                )
            splits = {
                name: SplitReport(
                    EncoderReport(**split["encoder"]),
                    [StrengthPoint(**p) for p in split["curve"]],
                    [StrengthPoint(**p) for p in split["search"]],
                    split["scored_tokens"],
                )
                for name, split in fields.pop("splits").items()
            }
            return cls(**fields, splits=splits)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, SchemaVersionError):
                raise
            raise ArtifactError(f"{path} is missing or not a report of this library: {error!r}.") from error
