"""`evaluate`: somebody's direction, measured again here; what is claimed beside what was found."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CONFIG_FILE, REPORT_FILE, REPORTS_FOLDER, WEIGHTS_FILE
from gradiend_hub.data import Row, read_neutral, read_rows, require_classes
from gradiend_hub.data.loading import Source as DataSource
from gradiend_hub.data.loading import load_rows
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import EvaluationSettings, Report, SplitReport, reevaluate
from gradiend_hub.evaluation.benchmarks import Benchmark, HarnessTask
from gradiend_hub.evaluation.damage import NEUTRAL, set_label
from gradiend_hub.evaluation.measure import compared_strengths
from gradiend_hub.folders import require_writable
from gradiend_hub.hub.propose import ReportProposal
from gradiend_hub.hub.resolve import ResolvedRepo, resolve_folder
from gradiend_hub.plots import can_draw, save_html, save_plots
from gradiend_hub.plots.text import number
from gradiend_hub.printable import printable
from gradiend_hub.training.data import read_damage_sets

from .console import Story, on_interrupt
from .looking import EvaluateOptions
from .options import numbers
from .quiet import quiet
from .tables import columns_table, encoder_line, pairs_table, strength_text

Source = tuple[str, str | None]
"""A data set as on the command line, and its split."""


def run_evaluation(direction: str, options: EvaluateOptions, story: Story) -> dict[str, Any]:
    """Measure, save, propose, and print the comparison.

    Raises:
        GradiendError: something cannot work; all that can be is found out before the measurement.
    """
    benchmarks: list[Benchmark | HarnessTask] = [Benchmark.parse(text) for text in options.benchmarks or ()]
    if options.lm_eval_include and not options.lm_eval:
        raise ConfigError("--lm-eval-include names a folder of tasks; name a task of it, too: --lm-eval TASK.")
    benchmarks += [HarnessTask(name, options.lm_eval_include) for name in options.lm_eval or ()]
    strengths = numbers(options.strengths)
    settings = EvaluationSettings(strengths=strengths, controls=options.controls, batch_size=options.batch_size)
    with quiet(story):
        for benchmark in benchmarks:
            benchmark.check()
        with story.step("Load") as step:
            found = resolve_folder(direction, revision=options.revision, required=(CONFIG_FILE, WEIGHTS_FILE))
            file = _report_file(options, found)
            proposal = ReportProposal(file, options.create_pr) if options.create_pr else None
            if proposal:
                proposal.check()
            claimed = Report.load(found.folder) if (found.folder / REPORT_FILE).is_file() else None
            model = _model(options, found)
            neutral = (options.neutral, options.neutral_split) if options.neutral else None
            rows, texts = read_data(model, (options.data, options.split), neutral)
            sets = _damage_sets(options.damage or (), model)
            step.outcome = f"{len(rows):,} rows, {len(texts):,} neutral sentences"
        with story.step("Measure") as step:
            settings = replace(settings, seed=_seed(claimed))
            report = reevaluate(model, rows, texts, settings, damage_sets=sets, benchmarks=benchmarks)
            report.direction = found.repo_id or found.folder.resolve().name
            report.direction_revision = found.commit
            step.outcome = encoder_line(report.splits["test"])
        proposed = None
        with on_interrupt(f"The measurement is in {file}; what was to follow is not done."):
            with story.step("Save") as step:
                _save(report, file, model.active_peft_config.safe_band)
                step.outcome = str(file)
            if proposal:
                with story.step("Propose") as step:
                    commit = proposal.send()
                    proposed = commit.pr_url or commit.commit_url
                    step.outcome = f"a pull request to {options.create_pr}"
    compared = compared_strengths(model.active_peft_config)
    figures = _compared(claimed, report, settings.strengths or compared)
    _show(claimed, report, figures, story)
    if proposed:
        story.show(f"\nProposed: {proposed}", soft_wrap=True)
    return {
        "direction": direction,
        "base_model": report.base_model,
        "report": file,
        "proposed": proposed,
        "figures": [asdict(figure) for figure in figures],
        "missing": report.splits["test"].missing,
        "seconds": story.seconds,
    }


def _save(report: Report, file: Path, band: Sequence[float] | None) -> None:
    """Write the report, and its figures and page in a folder of its name."""
    rendered = file.with_suffix("")
    rendered.mkdir(parents=True, exist_ok=True)
    report.save(file)
    if can_draw():
        save_plots(report, rendered, safe_band=band)
        save_html(report, rendered, base=report.base_model, safe_band=band)


def _report_file(options: EvaluateOptions, found: ResolvedRepo) -> Path:
    """Return the report's path: beside the published one, or below `out` where that is in the cache of the Hub."""
    home = found.folder if found.repo_id is None else Path("out", found.repo_id.split("/")[-1])
    file = options.out or home / REPORTS_FOLDER / f"{_slug(options)}.json"
    if file.suffix != ".json" or file.name == REPORT_FILE or file.is_dir():
        raise ConfigError(f"--out {file}: expected a file ending in .json that is not the published {REPORT_FILE}.")
    require_writable(file.parent)
    if file.exists() and not options.overwrite:
        raise ConfigError(f"{file} exists. Name another file with --out, or replace it with --overwrite.")
    return file


def _slug(options: EvaluateOptions) -> str:
    """`BASE-DATA-SPLIT` for a file name."""
    parts = [options.base and Path(options.base).name, Path(options.data).name, options.split]
    return re.sub(r"[^\w.-]+", "-", "-".join(part for part in parts if part)).strip("-.").lower() or "report"


def _model(options: EvaluateOptions, found: ResolvedRepo) -> GradiendModel:
    device = torch.accelerator.current_accelerator(True)
    given: dict[str, Any] = {"device_map": device and str(device), "dtype": options.dtype}
    given = {name: value for name, value in given.items() if value is not None}
    with warnings.catch_warnings():
        if options.allow_related:
            warnings.filterwarnings("ignore", message=".*to a relative of its base model")  # it was asked for
        return GradiendModel.from_pretrained(
            found.folder, base_model=options.base, strength=0.0, **options.allowed, **given
        )


def read_data(model: GradiendModel, data: Source, neutral: Source | None) -> tuple[list[Row], list[Any]]:
    """Read the rows that a model's direction is measured on, and the neutral items.

    Raises:
        DataError: one cannot be read.
    """
    objective = model.make_objective()
    rows = read_rows(
        _load(data, "--data"),
        require_classes(model.active_peft_config.feature_classes),
        read=objective.read,
        prepare=partial(objective.prepare, what="--data"),
        what="--data",
        need_both=False,
    )
    if not neutral:
        return rows, []
    return rows, read_neutral(_load(neutral, "--neutral"), objective.read_neutral, what="--neutral")


def _damage_sets(sets: Sequence[str], model: GradiendModel) -> dict[str, list[Any]]:
    """Read the data sets of `--damage NAME=DATA[:CONFIG]`."""
    given = {}
    for text in sets:
        name, _, data = text.partition("=")
        if not name.strip() or not data:
            raise ConfigError(f"--damage {text!r}: expected NAME=DATA[:CONFIG], e.g. chat=prompts.jsonl.")
        given[name.strip()] = list(_load((data, None), f"--damage {name.strip()}"))
    return read_damage_sets(given, model.make_objective())


def _load(source: Source, what: str) -> Iterator[dict[str, object]]:
    text, split = source
    return iter(load_rows(asdict(DataSource.parse(text, what)) | {"split": split}, "test", what))


def _seed(claimed: Report | None) -> int:
    """The author's, so that the same sentences have the same tokens masked."""
    seed = claimed.training.get("seed") if claimed else None
    return seed if isinstance(seed, int) and 0 <= seed < 2**32 else 0


@dataclass(frozen=True)
class Figure:
    """A figure as it is published and as it was measured here; `None` where not measured."""

    name: str
    claimed: float | None
    found: float | None
    interval: Sequence[float] | None


def _compared(claimed: Report | None, report: Report, strengths: Sequence[float]) -> list[Figure]:
    splits = claimed.splits if claimed else {}
    before = next((splits[name] for name in ("test", "eval", *splits) if name in splits), None)
    old = _figures(before, report.feature_classes, strengths) if before else {}
    old |= _benchmarks(claimed) if claimed else {}
    new = _figures(report.splits["test"], report.feature_classes, strengths) | _benchmarks(report)
    return [Figure(name, old[name][0] if name in old else None, *found) for name, found in new.items()]


def _show(claimed: Report | None, report: Report, figures: Sequence[Figure], story: Story) -> None:
    """Print the figures of the published report beside these."""
    table = columns_table(["figure"], ["claimed", "found", "95 % interval"])
    for figure in figures:
        bounds = f"{figure.interval[0]:.3f} to {figure.interval[1]:.3f}" if figure.interval else ""
        table.add_row(Text(printable(figure.name)), number(figure.claimed), number(figure.found), bounds)
    story.show()
    story.show(table)
    if claimed is None:
        story.show("\nThe direction has no published report, so nothing is claimed.")
    notes = pairs_table()
    for gap in report.splits["test"].missing:
        notes.add_row("missing", printable(gap, 500))
    story.show(notes)


_Figures = dict[str, tuple[float | None, Sequence[float] | None]]
"""Value and 95 % interval by name; `None` where not measured."""


def _figures(split: SplitReport, classes: Sequence[str], strengths: Sequence[float]) -> _Figures:
    figures: _Figures = {}
    if (encoder := split.encoder) is not None:
        bounds = encoder.intervals
        figures["encoder correlation"] = encoder.correlation, bounds.get("correlation")
        figures["encoder accuracy"] = encoder.accuracy, bounds.get("accuracy")
        figures["|h| on neutral text"] = encoder.neutral_abs_mean, bounds.get("neutral_abs_mean")
    points = {p.strength: p for p in split.curve}
    for wanted, other in (tuple(classes), tuple(classes)[::-1]):
        for strength in strengths:
            if strength in points and other in (p := points[strength]).probability:
                name = f"P({wanted}) on {other} rows at {strength_text(strength)}"
                figures[name] = p.probability[other][wanted], p.intervals.get(f"{wanted} on {other}")
    for strength in strengths:
        if strength and strength in points:
            point, at = points[strength], strength_text(strength)
            figures[f"quality on neutral text at {at}"] = point.quality, point.intervals.get("quality")
            for name, damage in point.damage.items():
                if name != NEUTRAL:
                    interval = damage.intervals.get(damage.counted_as(name))
                    figures[f"quality on {set_label(name)} at {at}"] = damage.counted(name)[0], interval
    return figures


def _benchmarks(report: Report) -> _Figures:
    return {
        f"{result.name} {score} at {strength_text(result.strength)}": (value, result.intervals.get(score))
        for result in report.side_effects
        for score, value in result.scores.items()
    }
