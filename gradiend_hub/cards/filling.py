"""Filling the templates of cards: one way for all of them, and the values that each of them needs."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.artifact.names import hub_id, shown_name
from gradiend_hub.errors import ArtifactError
from gradiend_hub.evaluation import SplitReport
from gradiend_hub.evaluation.shift import shifts
from gradiend_hub.hub.published import BASE_PLACE, REPO_PLACE, is_generated, marked
from gradiend_hub.plots.text import NOT_MEASURED, with_interval

from .markdown import FILTERS


def save_card(folder: Path, card: ModelCard) -> Path:
    """Write `README.md` into a folder; a card that a person wrote or edited is left alone."""
    path = folder / CARD_FILE
    if not path.is_file() or is_generated(path.read_text(encoding="utf-8")):
        card.save(path)
    return path


def names_of(config: GradiendConfig, split: SplitReport | None) -> dict[str, Any]:
    """Values that all templates need: names of the classes and of the base model, and what was measured of the classes."""
    first, second = config.feature_classes or ("first", "second")
    base_id = hub_id(config.base_model_name_or_path)
    return {
        "first": first,
        "second": second,
        "shifts": shifts(split, (first, second)) if split else [],
        "base_id": base_id,
        "base": shown_name(config.base_model_name_or_path),
        "repo_place": REPO_PLACE,
        "base_place": None if base_id else BASE_PLACE,
    }


def fill(template: str, metadata: ModelCardData, **values: Any) -> ModelCard:
    """Fill a template of `model_cards`.

    Raises:
        ArtifactError: the values do not fit it.
    """
    try:
        filled = _templates().get_template(template).render(card_data=metadata.to_yaml(), **values)
    except (jinja2.TemplateError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The card could not be rendered from the template {template}: {error!r}. Nothing was uploaded; the other "
            "files of the artifact are on disk."
        ) from error
    return ModelCard(marked(filled))


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_source),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    environment.globals |= {"not_measured": NOT_MEASURED, "with_interval": with_interval}
    return environment


def _template_source(name: str) -> str:
    return files("gradiend_hub.model_cards").joinpath(name).read_text("utf-8")
