"""`gradiend_summary.json`: what a search shows of a direction, in one small file beside it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Final

from gradiend_hub.errors import ArtifactError

from .files import SCHEMA_VERSION, SUMMARY_FILE
from .validation import NAME, Limit, at_least, one_of, read_as, read_json

logger = logging.getLogger(__name__)

MOST_SUMMARY_BYTES: Final = 4096
"""Largest summary that is written or read."""

_Name = Annotated[str, NAME]
_Two = Annotated[list[_Name], Limit("a list of two names", lambda values: len({*values}) == len(values) == 2)]
_Share = Annotated[float, Limit("a number in [0, 1]", lambda value: 0 <= value <= 1)]
_Correlation = Annotated[float, Limit("a number in [-1, 1]", lambda value: -1 <= value <= 1)]
_Quality = Annotated[float, Limit("a number in [0, 2]", lambda value: 0 <= value <= 2)]
_Sign = Annotated[str, one_of("-1.0", "1.0")]
"""A strength."""


@dataclass(frozen=True)
class Summary:
    """A direction in a few figures, which are its author's word; what was not measured is `None` or empty.

    Attributes:
        feature_classes: the class of positive strength first.
        base_model: repository of the base model; `None` for one that has no id on the Hub.
        base_revision: its commit.
        objective: name of the objective, and `task` what the Hub calls such a model.
        form: "dense", "sparse", or "rank R".
        size: bytes of the decoder's file.
        split: the split of the rows that the figures are of.
        correlation: of the feature values with the classes.
        before: probability of the wanted class at strength 0, for each sign of the strength, "-1.0" and "1.0".
        effect: the same at that strength.
        quality: at each of both strengths, relative to the base model's, where it is lowest.
        above_control: whether the effect at ±1 is above that of random directions of equal damage.
        learned: whether the training found the feature.
        others: reports by others that lie beside the author's; the figures above are the author's.
    """

    feature_classes: _Two
    base_model: _Name | None = None
    base_revision: _Name | None = None
    objective: _Name | None = None
    task: _Name | None = None
    form: _Name = "dense"
    size: Annotated[int, at_least(0)] = 0
    split: _Name | None = None
    correlation: _Correlation | None = None
    before: dict[_Sign, _Share] = field(default_factory=dict)
    effect: dict[_Sign, _Share] = field(default_factory=dict)
    quality: dict[_Sign, _Quality] = field(default_factory=dict)
    above_control: bool | None = None
    learned: bool | None = None
    others: Annotated[int, at_least(0)] = 0
    schema_version: Annotated[int, one_of(SCHEMA_VERSION)] = SCHEMA_VERSION

    @property
    def weakest_effect(self) -> float | None:
        """The smaller one of the effects at both signs; `None` unless both were measured."""
        return min(self.effect.values()) if len(self.effect) == 2 else None

    @property
    def damage(self) -> float | None:
        """1 − quality at the sign where it is worse; `None` unless both were measured."""
        return 1 - min(self.quality.values()) if len(self.quality) == 2 else None

    def save(self, folder: str | Path) -> None:
        """Write `gradiend_summary.json` into a folder; none, with a warning, where its names are too long for one."""
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        path = Path(folder, SUMMARY_FILE)
        if len(text.encode()) > MOST_SUMMARY_BYTES:
            path.unlink(missing_ok=True)
            logger.warning(
                "No %s is written, so a search shows no figures: it would be larger than %d bytes. Give the classes "
                "shorter names.",
                SUMMARY_FILE,
                MOST_SUMMARY_BYTES,
            )
        else:
            path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Summary:
        """Read what `save` wrote. Names, types and ranges are checked: it may be a stranger's.

        Raises:
            ArtifactError: it is missing, too large, or no summary.
        """
        try:
            return read_as(cls, read_json(Path(path), MOST_SUMMARY_BYTES), "summary")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is missing or no summary of a direction: {error}") from error
