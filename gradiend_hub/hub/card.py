"""The model card of a direction, rendered from its config and report and from nothing else."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gradiend_hub.config import GradiendConfig
from gradiend_hub.constants import CARD_FILE, HUB_TAGS, REPORT_FILE, WEIGHTS_FILE
from gradiend_hub.evaluation import Report, SplitReport

_MARKER = "<!-- gradiend-hub card {} -->"
_MARKED = re.compile(r"<!-- gradiend-hub card (\w*) -->")


def write_card(folder: str | Path) -> Path:
    """Write `README.md` into the folder of a saved direction; a card that a person wrote or edited is left alone."""
    path = Path(folder, CARD_FILE)
    if not path.is_file() or _is_untouched(path.read_text(encoding="utf-8")):
        card = render_card(folder)
        card.save(path)
    return path


def _is_untouched(text: str) -> bool:
    """Whether a card has our mark, and the mark the digest of the card."""
    mark = _MARKED.search(text)
    return mark is not None and mark[1] == _digest(text)


def _digest(text: str) -> str:
    """Of everything but the mark and white space, which editors and git change on their own."""
    return hashlib.sha256("".join(_MARKED.sub("", text).split()).encode()).hexdigest()[:16]


def render_card(folder: str | Path) -> ModelCard:
    """The card of a saved direction, from `adapter_config.json` and (if there) `gradiend_report.json`."""
    config = GradiendConfig.from_pretrained(str(folder))
    report = Report.load(folder) if Path(folder, REPORT_FILE).is_file() else None
    first, second = config.feature_classes or ("first", "second")
    base_id = hub_id(config.base_model_name_or_path)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    template = environment.from_string(
        files("gradiend_hub.model_cards").joinpath("direction.md.jinja").read_text("utf-8")
    )
    splits = report.splits if report else {}
    text = template.render(
        card_data=_metadata(config, splits, base_id).to_yaml(),
        marker=_MARKER.format(""),
        config=config,
        report=report,
        first=first,
        second=second,
        base=base_id or Path(config.base_model_name_or_path or "unknown").name,
        base_id=base_id,
        shown=next((n for n in ("test", "eval") if n in splits), None),
        size=Path(folder, WEIGHTS_FILE).stat().st_size,
    )
    return ModelCard(text.replace(_MARKER.format(""), _MARKER.format(_digest(text))))


def hub_id(base_model: str | None) -> str | None:
    """The base model's Hub id; `None` for a local path, which means nothing to anybody else."""
    if not base_model or Path(base_model).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_model):
        return None
    try:
        validate_repo_id(base_model)
    except HFValidationError:
        return None
    return base_model


def _metadata(config: GradiendConfig, splits: dict[str, SplitReport], base_id: str | None) -> ModelCardData:
    """The YAML head. Only measured values get into `model-index`."""
    name = "-".join(config.feature_classes or ["direction"])
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type="feature-rows",
            dataset_name=f"{' / '.join(config.feature_classes or [])} rows",
            dataset_split=split,
            metric_type=metric,
            metric_name=label,
            metric_value=round(value, 4),
        )
        for split, measured in splits.items()
        for metric, label, value in (
            ("pearsonr", "Encoder correlation", measured.encoder.correlation),
            ("accuracy", "Encoder accuracy", measured.encoder.accuracy),
        )
        if value is not None
    ]
    extra: dict[str, Any] = {"base_model_relation": "adapter"} if base_id else {}
    return ModelCardData(
        library_name="peft",
        base_model=base_id,
        tags=[*HUB_TAGS, "peft"],
        model_name=name if results else None,
        eval_results=results or None,
        **extra,
    )


_SPECIAL = {ord(c): f"&#{ord(c)};" for c in "&<>|[]*`~\\:"}


def _cell(text: object) -> str:
    """Text of a stranger on one line, without the characters that begin HTML, links, emphasis, code or table cells."""
    return " ".join(str(text).split()).translate(_SPECIAL)
