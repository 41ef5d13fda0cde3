"""The card of a direction, from its config and report and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import (
    ASSETS_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    GGUF_FILES,
    HTML_FILE,
    LORA_FOLDER,
    LORA_SIGNS,
    MOST_CARD_BYTES,
    SLOT,
    WEIGHTS_FILE,
    own_file,
)
from gradiend_hub.artifact.names import shown_name
from gradiend_hub.artifact.validation import read_text
from gradiend_hub.evaluation import GenerationReport, Report, SplitReport, StrengthPoint
from gradiend_hub.evaluation.damage import NEUTRAL, OWN, set_label
from gradiend_hub.evaluation.measure import compared_strengths
from gradiend_hub.evaluation.measurements import Headline, Measurements, find_measurements
from gradiend_hub.hub.published import is_generated
from gradiend_hub.hub.resolve import ResolvedRepo
from gradiend_hub.objectives import OBJECTIVES, Objective
from gradiend_hub.plots import FIGURES
from gradiend_hub.plots.style import shown_split
from gradiend_hub.plots.text import NOT_MEASURED, number, percent, with_interval

from .caveats import caveats
from .filling import fill, names_of, save_card
from .metadata import metadata_of, task_of

BENCHMARKS = ("StereoSet", "CrowS-Pairs", "WinoBias", "WinoGender", "SEAT")
"""Benchmarks that the card names even where nobody has run them."""

MOST_ROW = 4000
"""Most letters of a row that the code of the card holds."""
_SAMPLES = 6
"""Continuations that the card shows."""

_PROMPT = f"The players ran home because {SLOT} was late."


def write_card(folder: str | Path, config: GradiendConfig | None = None, report: Report | None = None) -> Path:
    """Write `README.md` into the folder of a saved direction; a card that a person wrote or edited is left alone.

    Args:
        config: of the direction, and `report` what was measured of it; by default those in the folder.

    Raises:
        ArtifactError: the template cannot be filled with what the folder holds.
    """
    return save_card(Path(folder), render_card(folder, config, report))


def card_state(folder: Path) -> str:
    """Say in words whether the card of a direction is as it was generated."""
    path = own_file(folder, CARD_FILE)
    if path is None:
        return "none"
    try:
        generated = is_generated(read_text(path, MOST_CARD_BYTES))
    except ValueError:  # too large, or not UTF-8
        generated = False
    return "as generated" if generated else "written or edited by hand"


def render_card(
    folder: str | Path,
    config: GradiendConfig | None = None,
    report: Report | None = None,
    *,
    others: Measurements | None = None,
) -> ModelCard:
    """The card of a saved direction, from its config, its report (if there is one), and the figures beside.

    Args:
        config: of the direction, and `report` what was measured of it; by default those in the folder.
        others: what others have measured; by default the reports in the folder `reports`.

    Raises:
        ArtifactError: the template cannot be filled with what the folder holds.
    """
    folder = Path(folder)
    if config is None:
        config, report = GradiendConfig.from_pretrained(str(folder)), report or Report.find(folder)
    name, split = shown_split(report) if report and report.splits else (None, None)
    if others is None:
        others = find_measurements(ResolvedRepo(folder, None, None), config)
    compared, objective = compared_strengths(config), OBJECTIVES.get(config.objective or "")
    kind = objective or Objective
    return fill(
        "direction.md.jinja",
        metadata_of(config, report),
        config=config,
        report=report,
        split_name=name,
        split=split,
        prompt=_prompt(split),
        probability=kind.probability_note,
        row=_row(report) if report and (folder / ENCODER_FILE).is_file() else None,
        examples=_examples(report) if report else [],
        pictures=task_of(config) == "image-classification",
        answers=kind.answers_name,
        reads=kind.read_name,
        output=kind.output_name,
        compared=compared,
        caveats=caveats(report, name, split, kind.output_name) if report and name and split else [],
        side_effects=_side_effects(report, split, compared, kind.output_name) if report and split else [],
        completions=_completions(split, compared) if split else [],
        continuations=_continuations(split, compared) if split else [],
        limits=_limits(report) if report else {},
        training=_training(report) if report else [],
        figures=[n for n in FIGURES if (folder / ASSETS_FOLDER / f"{n}.png").is_file()],
        interactive=(folder / HTML_FILE).is_file(),
        size=(folder / WEIGHTS_FILE).stat().st_size,
        lora=report.lora if report and own_file(folder, f"{_lora_place(folder)}/{CONFIG_FILE}") else None,
        lora_place=_lora_place(folder),
        gguf=[name for name in GGUF_FILES if own_file(folder, name)],
        auto_class=objective.auto_class.__name__ if objective else None,
        assets=ASSETS_FOLDER,
        others=_others(others, config),
        headings=[_heading(strength, config) for strength in compared],
        **names_of(config, split),
    )


def _others(others: Measurements, config: GradiendConfig) -> list[dict[str, Any]]:
    """Rows of the card's table of measurements by others."""
    classes = config.feature_classes or ["first", "second"]
    return [
        {
            "source": one.source,
            "base": shown_name(one.report.base_model),
            "weights": {True: "these", False: "other ones", None: "not known"}[one.same_weights],
            "headline": Headline.of(one.split, classes),
        }
        for one in others.reports
        if one.split is not None
    ]


def _lora_place(folder: Path) -> str:
    """Folder of the LoRA of positive strengths within an artifact."""
    signed = f"{LORA_FOLDER}/{LORA_SIGNS[1]}"
    return signed if (folder / signed).is_dir() else LORA_FOLDER


def _prompt(split: SplitReport | None) -> str:
    """A text of one line that the direction has something to say about, if there is one."""
    texts = [completion.text for completion in split.completions] if split else []
    plain = [text for text in texts if text.isprintable() and re.fullmatch(r"[^'\"\\`$]{1,200}", text)]
    return min(plain, key=len, default=_PROMPT)


def _row(report: Report) -> dict[str, str] | None:
    """A row of the data that the code of the card encodes; none if all are too long for that, as images may be."""
    short = [row for row in report.examples if len(str(row)) <= MOST_ROW]
    return min(short, key=lambda row: len(str(row)), default=None)


def _examples(report: Report) -> list[dict[str, Any]]:
    """The rows that the card lists: columns with their values, of which images are only named."""

    def shown(value: Any) -> Any:
        return "an image" if isinstance(value, str) and value.startswith("data:image/") else value

    return [{column: shown(value) for column, value in row.items()} for row in report.examples]


def _heading(strength: float, config: GradiendConfig) -> str:
    """Heading of a column in a table that compares before and after."""
    name = f"{strength:+g}".replace("-", "−") if strength else "0 (base model)"
    return f"{name} (recommended)" if strength == config.strength not in (0, 1) else name


def _completions(split: SplitReport, compared: Sequence[float]) -> list[tuple[str, list[str]]]:
    """Text, and what the model writes there at each compared strength."""
    found = []
    for completion in split.completions:
        at = {float(strength): text for strength, text in completion.by_strength.items()}
        written = [at.get(strength) for strength in compared]
        texts = [NOT_MEASURED if w is None else w if isinstance(w, str) else _guesses(w) for w in written]
        found.append((completion.text, texts))
    return found


def _guesses(words: list[list[str | float]]) -> str:
    quoted = ((word if re.search(r"\w", str(word)) else f'"{word}"', float(chance)) for word, chance in words)
    return ", ".join(f"{word} {chance:.2f}" for word, chance in quoted)


def _side_effects(
    report: Report, split: SplitReport, compared: Sequence[float], output: str
) -> list[tuple[str, list[str]]]:
    """Name of a figure, and its value at each compared strength."""
    found = {p.strength: p for p in split.curve}
    points = [found.get(strength) for strength in compared]
    rows = [
        *_damage(split, points, output),
        ("KL from the base model, nats per token of neutral text", [number(p.kl if p else None, 4) for p in points]),
        (
            "NLL of neutral text, nats per token",
            [with_interval(p.nll, p.intervals.get("nll"), 4) if p else NOT_MEASURED for p in points],
        ),
        ("tokens of neutral text ranked first", [percent(p.accuracy if p else None) for p in points]),
    ]
    if output != "label":
        rows.append(("what the model goes on with", [_soundness(split.generation, at) for at in compared]))
    for name in dict.fromkeys(result.name for result in report.side_effects):
        runs = {result.strength: result for result in report.side_effects if result.name == name}
        for score in dict.fromkeys(score for run in runs.values() for score in run.scores):
            results = [runs.get(strength) for strength in compared]
            cells = [with_interval(r.scores.get(score), r.intervals.get(score)) if r else NOT_MEASURED for r in results]
            rows.append((f"{name}: {score}", cells))
    run_names = {name.casefold() for r in report.side_effects for name in r.name.split()[0].split("/")}  # "WEAT/SEAT"
    if output != "label":  # they are of language models
        rows += [(name, [NOT_MEASURED] * len(compared)) for name in BENCHMARKS if name.casefold() not in run_names]
    return [*rows, ("other features of the model", [NOT_MEASURED] * len(compared))]


def _damage(split: SplitReport, points: Sequence[StrengthPoint | None], output: str) -> list[tuple[str, list[str]]]:
    """Rows of the table of side effects: quality on each damage set, and what changes at the slots beside the classes.

    Args:
        output: the objective's `output_name`; an input with one label has no text of its own beside it.
    """
    others = dict.fromkeys(name for p in split.curve for name in p.damage if name not in (NEUTRAL, OWN))
    rows = []
    for name in (NEUTRAL, *([] if output == "label" else [OWN]), *others):
        cells = []
        for point in points:
            damage = point.damage.get(name) if point else None
            value, key = (None, "quality") if damage is None else (damage.counted(name)[0], damage.counted_as(name))
            if damage is None and name == NEUTRAL and point is not None:  # a report of version 0.1
                value = point.quality
            bounds = (damage or point).intervals.get(key) if value is not None and (damage or point) else None  # type: ignore[union-attr]
            cells.append(with_interval(value, bounds))
        what = f", the {output}s of the classes left out" if name == OWN else ""
        rows.append((f"quality on {set_label(name)}{what}", cells))
    if not others:
        rows.append(("quality on text of another source", [NOT_MEASURED] * len(points)))
    names = dict.fromkeys(name for p in split.curve for name in p.slot)
    for name in names:
        cells = [
            with_interval(p.slot.get(name), p.intervals.get(f"slot {name}"), 4) if p else NOT_MEASURED for p in points
        ]
        of = f"but the {output}s of the classes" if name == "collateral" else name
        rows.append((f"KL at the slots, {of}, nats", cells))
    return rows


def _limits(report: Report) -> dict[str, Any]:
    """Name what limits the unit and both ends of the safe band, as measured at its choice; `None` if unseen."""
    chosen = report.splits.get("eval")
    bands = chosen.band_limits if chosen and chosen.band_limits else [None, None]
    named = report.settings.get("damage_sets")  # a stranger's report may say anything there
    return {
        "unit": set_label(chosen.unit_limit) if chosen and chosen.unit_limit else None,
        "band": [set_label(name) if name else None for name in bands],
        "sets": [set_label(name) for name in named if isinstance(name, str)] if isinstance(named, list) else [],
    }


def _soundness(generation: GenerationReport | None, strength: float) -> str:
    """Say whether continuations at a strength are sound, and what is at fault."""
    points = generation.at(strength) if generation else []
    if not points:
        return NOT_MEASURED
    found = [f"{point.kind}: {'; '.join(point.faults)}" for point in points if not point.sound]
    return "; ".join(found) if found else "sound"


def _continuations(split: SplitReport, compared: Sequence[float]) -> list[tuple[str, list[str]]]:
    """Prompt, and what the model goes on with at each compared strength, of prompts without the feature."""
    samples = [s for s in split.generation.samples if s.kind != "feature"] if split.generation else []
    return [
        (s.prompt, [s.by_strength.get(str(float(at)), NOT_MEASURED) for at in compared]) for s in samples[:_SAMPLES]
    ]


_FOUND = ("effect_by_damping", "encoder_overlap", "decoder_overlap")
"""What a training has found, among its arguments in the report."""


def _training(report: Report) -> list[tuple[str, Any, bool]]:
    """Name, value and whether it is the default, of each argument that was set; those that differ come first."""
    usual = report.training.keys() if report.default_arguments is None else {*report.default_arguments, *_FOUND}
    listed = [(n, value, n in usual) for n, value in report.training.items() if value is not None]
    return sorted(listed, key=lambda item: item[2])
