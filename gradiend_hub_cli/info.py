"""`info`: what a direction says about itself and what was measured, from its files alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import is_offline_mode
from rich.table import Table

from gradiend_hub.artifact.fields import StoredFields, require_classes, stored_size
from gradiend_hub.artifact.files import CONFIG_FILE, WEIGHTS_FILE
from gradiend_hub.errors import ConfigError
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.evaluation.damage import set_label
from gradiend_hub.evaluation.measurements import Headline, Measurements, find_measurements
from gradiend_hub.evaluation.shift import Shift, shifts
from gradiend_hub.hub.resolve import resolve_folder
from gradiend_hub.printable import listed, printable

from .console import Story
from .quiet import quiet
from .tables import columns_table, curve_table, encoder_line, megabytes, pairs_table, strength_text

if TYPE_CHECKING:
    from gradiend_hub.export.base_fit import BaseFit

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Description:
    """A direction in figures.

    Attributes:
        source: the folder or repository that was asked for, and `commit` its commit if it is on the Hub.
        config: what the direction says about itself.
        tensors: parameters of the base model that it rewrites, with `weights` elements in all.
        entries: elements that it stores a value for.
        sizes: bytes by file.
        measured: name of the split that `split` was measured on; `None` if nothing was measured.
        learned: whether the training found the feature, `None` if that is not known; and `verdict`, why it did not, or why
            that is not known.
        fit: whether it fits the base model that was asked about, if one was.
        others: what others have measured.
    """

    source: str
    commit: str | None
    config: StoredFields
    tensors: int
    weights: int
    entries: int
    sizes: dict[str, int]
    measured: str | None
    split: SplitReport | None
    learned: bool | None
    verdict: str
    fit: BaseFit | None = None
    others: Measurements = field(default_factory=Measurements)

    @property
    def kept(self) -> str:
        """How many of the elements it stores a value for, in words."""
        return "all" if self.entries == self.weights else f"{self.entries:,} ({self.entries / self.weights:.2%})"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for `--json`."""
        fields = (
            "feature_classes",
            "fillers",
            "objective",
            "source",
            "target",
            "base_model_name_or_path",
            "revision",
            "dtype",
            "strength_unit",
            "strength",
            "safe_band",
        )
        return {
            "direction": self.source,
            "commit": self.commit,
            "config": {name: getattr(self.config, name) for name in fields},
            "tensors": self.tensors,
            "weights": self.weights,
            "entries": self.entries,
            "sizes": self.sizes,
            "measured": self.measured,
            "learned": self.learned,
            "verdict": self.verdict,
            **({} if self.fit is None else {"fit": asdict(self.fit)}),
            "report": None if self.split is None else asdict(self.split),
            "others": [
                {
                    "by": one.by,
                    "file": one.file,
                    "pull_request": one.pull_request,
                    "same_weights": one.same_weights,
                    "base_model": one.report.base_model,
                    "splits": {name: asdict(split) for name, split in one.report.splits.items()},
                }
                for one in self.others.reports
            ],
            "eval_results": [asdict(entry) for entry in self.others.results],
            "problems": self.others.problems,
        }


def show_directions(directions: Sequence[str], revision: str | None, base: str | None, story: Story) -> dict[str, Any]:
    """Print what directions are and what was measured of them: of one, all; of several, side by side.

    Args:
        base: folder or id of a model: would they fit? The exit status is 1 if one does not.

    Raises:
        ArtifactNotFoundError: there is none.
        ArtifactError: its files are damaged or of another kind.
        BaseModelError: there is no such model.
        ConfigError: a revision was given for several.
    """
    if revision is not None and len(directions) > 1:
        raise ConfigError("--revision is of one direction. Leave it out, or ask for one direction at a time.")
    with quiet(story), story.step("Read", told=False):
        found = [describe(direction, revision=revision, base=base) for direction in directions]
    if len(found) == 1:
        _show(found[0], story)
        result = found[0].to_dict()
    else:
        story.show(side_by_side(found))
        result = {"directions": [one.to_dict() for one in found]}
    return {**result, "exit_code": 0 if all(one.fit is None or one.fit.fits for one in found) else 1}


def describe(direction: str, *, revision: str | None = None, base: str | None = None) -> Description:
    """Read the files of a direction.

    Args:
        base: a model that it is to be compared with.

    Raises:
        BaseModelError: there is no such model.
        ArtifactNotFoundError: there is none.
        ArtifactError: its files are damaged or of another kind.
    """
    found = resolve_folder(direction, revision=revision, required=(CONFIG_FILE, WEIGHTS_FILE))
    config = StoredFields.read(found.folder)
    report = Report.find(found.folder)
    splits = report.splits if report else {}
    measured = next((name for name in ("test", "eval", *splits) if name in splits), None)
    parameters = (config.parameters or {}).values()
    weights = [math.prod(spec["shape"]) for spec in parameters]
    sizes = {printable(path.name): path.stat().st_size for path in sorted(found.folder.iterdir()) if path.is_file()}
    split = splits[measured] if measured else None
    return Description(
        direction,
        found.commit,
        config,
        len(weights),
        sum(weights),
        sum(map(stored_size, parameters)),
        sizes,
        measured,
        split,
        report.converged if report else None,
        report.verdict if report else "",
        None if base is None else _fit(found.folder, base),
        find_measurements(found, config, offline=is_offline_mode()),
    )


def _fit(folder: Path, base: str) -> BaseFit:
    from gradiend_hub.export.base_fit import base_fit  # needs torch, which `info` alone does not

    return base_fit(folder, base)


def _show(description: Description, story: Story) -> None:
    config = description.config
    first, second = require_classes(config.feature_classes)
    fillers = config.fillers or {}
    table = pairs_table()
    table.add_row("direction", description.source + (f" at {description.commit}" if description.commit else ""))
    if description.learned is False:
        table.add_row("not learned", f"the training did not find this feature. {printable(description.verdict, 500)}")
    elif description.learned is None and description.verdict:
        table.add_row("learned", f"not known, {printable(description.verdict, 500)}")
    if description.fit is not None:
        table.add_row("would fit", f"{printable(description.fit.base)}? {fit_text(description.fit)}")
    table.add_row("strength > 0", f"{printable(first)}: {listed(fillers.get(first, ['?']))}")
    table.add_row("strength < 0", f"{printable(second)}: {listed(fillers.get(second, ['?']))}")
    table.add_row(
        "base model",
        printable(config.base_model_name_or_path or "?")
        + (f" at {printable(config.revision)}" if config.revision else ""),
    )
    table.add_row("objective", f"{config.objective}, gradients {config.source} -> {config.target}")
    table.add_row(
        "rewrites", f"{description.tensors} tensors with {description.weights:,} weights; stored: {description.kept}"
    )
    table.add_row("size", f"{megabytes(sum(description.sizes.values()))} ({_largest(description.sizes)})")
    table.add_row("strength 1 is", f"{config.strength_unit:.4g} times the raw decoder")
    table.add_row("applied at", f"strength {strength_text(config.strength)}, unless another one is asked for")
    table.add_row("safe strengths", _band(config))
    table.add_row("encoder", "not measured" if description.split is None else encoder_line(description.split))
    for shift in shifts(description.split, (first, second)) if description.split else []:
        table.add_row(f"at {strength_text(shift.strength)}", f"{shift.claim}: {shift.figures}".removesuffix(": "))
    story.show(table)
    if description.split is None:
        story.show("What each strength changes: not measured.")
    else:
        story.show(f"\nMeasured on the {description.measured} split:")
        story.show(curve_table(description.split, (first, second)))
    _show_others(description, story)


def fit_text(fit: BaseFit) -> str:
    """The answer and its evidence."""
    return f"{'yes' if fit.fits else 'no'}, {fit.relation}: {printable(fit.why, 500)}"


def _largest(sizes: dict[str, int]) -> str:
    best = sorted(sizes.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {megabytes(size)}" for name, size in best)


def side_by_side(found: Sequence[Description]) -> Table:
    """A table of several directions: a row for each claim, and a column for each direction."""
    table = columns_table(["", *(printable(one.source, 60) for one in found)], [])
    table.columns[0].style = "bold"
    for name, of in _COMPARED.items():
        table.add_row(name, *map(of, found))
    if found[0].fit is not None:
        table.add_row(f"fits {found[0].fit.base}", *(fit_text(one.fit) for one in found if one.fit is not None))
    return table


def _of_shift(one: Description, strength: float) -> str:
    shift = next((s for s in _shifts(one) if s.strength == strength), None)
    if shift is None or shift.before is None or shift.after is None:
        return NOT_MEASURED
    chance = NOT_MEASURED if shift.chance is None else f"{shift.chance:.3f}"
    return f"P({printable(shift.wanted, 40)}) {shift.before:.3f} → {shift.after:.3f}, random directions up to {chance}"


def _shifts(one: Description) -> list[Shift]:
    return shifts(one.split, require_classes(one.config.feature_classes)) if one.split else []


def _worst(one: Description, strength: float) -> str:
    point = next((p for p in one.split.curve if p.strength == strength), None) if one.split else None
    worst = point.worst(bound=False) if point else None
    return NOT_MEASURED if worst is None else f"{worst[1]:.2%} ({printable(set_label(worst[0]), 40)})"


def _learned(one: Description) -> str:
    words = {None: "not known", True: "yes", False: "no"}[one.learned]
    return f"{words}: {printable(one.verdict, 120)}" if one.verdict and not one.learned else words


_COMPARED: dict[str, Callable[[Description], str]] = {
    "strength > 0": lambda one: printable(require_classes(one.config.feature_classes)[0]),
    "strength < 0": lambda one: printable(require_classes(one.config.feature_classes)[1]),
    "base model": lambda one: printable(one.config.base_model_name_or_path or "?"),
    "base's commit": lambda one: printable(one.config.revision or "not recorded"),
    "objective": lambda one: printable(one.config.objective or "?"),
    "rewrites": lambda one: f"{one.tensors} tensors, {one.weights:,} weights; stored: {one.kept}",
    "size": lambda one: megabytes(sum(one.sizes.values())),
    "measured on": lambda one: printable(one.measured or NOT_MEASURED),
    "learned": _learned,
    "encoder": lambda one: NOT_MEASURED if one.split is None else encoder_line(one.split),
    "at +1": lambda one: _of_shift(one, 1.0),
    "at -1": lambda one: _of_shift(one, -1.0),
    "quality at +1": lambda one: _worst(one, 1.0),
    "quality at -1": lambda one: _worst(one, -1.0),
    "safe strengths": lambda one: _band(one.config),
    "measured by": lambda one: _measured_by(one.split is not None, one.others),
}
"""Claims that are set side by side."""


def _band(config: StoredFields) -> str:
    return NOT_MEASURED if config.safe_band is None else " to ".join(map(strength_text, config.safe_band))


def _measured_by(author: bool, others: Measurements) -> str:
    """Who has measured a direction, in words: "3: the author, bob (pull request 2), reports/mine.json"."""
    sources = [*(["the author"] if author else []), *(printable(one.source, 80) for one in others.reports)]
    return f"{len(sources)}: {', '.join(sources)}" if sources else "nobody"


def _show_others(description: Description, story: Story) -> None:
    """Print what others have measured beside the author's figures; nothing where nobody else has."""
    others, classes = description.others, require_classes(description.config.feature_classes)
    if others.reports:
        story.show(f"\nMeasured by {_measured_by(description.split is not None, others)}")
        effects = [f"P({printable(name, 20)}) at {sign}1" for name, sign in zip(classes, "+-", strict=True)]
        table = columns_table(["by", "rows"], ["correlation", *effects, "quality"])
        if description.split is not None:
            table.add_row("the author", *_headline_cells(description.split, classes))
        for one in others.reports:
            note = {True: "", False: ", of other weights", None: ", of unknown weights"}[one.same_weights]
            if one.report.base_model != description.config.base_model_name_or_path:
                note += f", on {printable(one.report.base_model, 40)}"
            if one.split is not None:
                table.add_row(printable(one.source, 80) + note, *_headline_cells(one.split, classes))
        story.show(table)
        story.show("Nobody has checked these figures; to measure them: gradiend-hub evaluate.")
    for entry in others.results:
        by = f", added by {printable(entry.by, 40)}" if entry.by else ""
        place = f" in pull request {entry.pull_request}" if entry.pull_request is not None else ""
        story.show(f"{printable(entry.dataset.id)} {printable(entry.dataset.task_id)}: {entry.value:g}{by}{place}")
    for problem in others.problems:
        story.warn(problem)


def _headline_cells(split: SplitReport, classes: Sequence[str]) -> list[str]:
    found = Headline.of(split, classes)
    return [
        "–" if found.rows is None else f"{found.rows:,}",
        *("–" if value is None else f"{value:.3f}" for value in (found.correlation, *(e.value for e in found.effects))),
        "–" if found.quality is None else f"{found.quality[1]:.2%} ({printable(set_label(found.quality[0]), 30)})",
    ]
