"""`info`: what a direction says about itself and what was measured, from its files alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from gradiend_hub.artifact.fields import StoredFields, require_classes, stored_size
from gradiend_hub.artifact.files import CONFIG_FILE, WEIGHTS_FILE
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.evaluation.shift import shifts
from gradiend_hub.hub.resolve import resolve_folder
from gradiend_hub.printable import listed, printable

from .console import Story
from .quiet import quiet
from .tables import curve_table, encoder_line, megabytes, pairs_table, strength_text

__all__ = ["Description", "describe", "show_direction"]


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
        learned: whether the training found the feature, `None` if that is not known; and `verdict`, why it did not.
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
            "report": None if self.split is None else asdict(self.split),
        }


def show_direction(direction: str, revision: str | None, story: Story) -> dict[str, Any]:
    """Print what a direction is and what was measured of it.

    Raises:
        ArtifactNotFoundError: there is none.
        ArtifactError: its files are damaged or of another kind.
    """
    with quiet(story), story.step("Read", told=False):
        description = describe(direction, revision=revision)
    _show(description, story)
    return description.to_dict()


def describe(direction: str, *, revision: str | None = None) -> Description:
    """Read the files of a direction.

    Raises:
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
    )


def _show(description: Description, story: Story) -> None:
    config = description.config
    first, second = require_classes(config.feature_classes)
    fillers = config.fillers or {}
    band = "not measured" if config.safe_band is None else " to ".join(map(strength_text, config.safe_band))
    dense = description.entries == description.weights
    kept = "all" if dense else f"{description.entries:,} ({description.entries / description.weights:.2%})"
    table = pairs_table()
    table.add_row("direction", description.source + (f" at {description.commit}" if description.commit else ""))
    if description.learned is False:
        table.add_row("not learned", f"the training did not find this feature. {printable(description.verdict, 500)}")
    table.add_row("strength > 0", f"{printable(first)}: {listed(fillers.get(first, ['?']))}")
    table.add_row("strength < 0", f"{printable(second)}: {listed(fillers.get(second, ['?']))}")
    table.add_row(
        "base model",
        printable(config.base_model_name_or_path or "?")
        + (f" at {printable(config.revision)}" if config.revision else ""),
    )
    table.add_row("objective", f"{config.objective}, gradients {config.source} -> {config.target}")
    table.add_row("rewrites", f"{description.tensors} tensors with {description.weights:,} weights; stored: {kept}")
    table.add_row("size", f"{megabytes(sum(description.sizes.values()))} ({_largest(description.sizes)})")
    table.add_row("strength 1 is", f"{config.strength_unit:.4g} times the raw decoder")
    table.add_row("applied at", f"strength {strength_text(config.strength)}, unless another one is asked for")
    table.add_row("safe strengths", band)
    table.add_row("encoder", "not measured" if description.split is None else encoder_line(description.split))
    for shift in shifts(description.split, (first, second)) if description.split else []:
        table.add_row(f"at {strength_text(shift.strength)}", f"{shift.claim}: {shift.figures}".removesuffix(": "))
    story.show(table)
    if description.split is None:
        story.show("What each strength changes: not measured.")
        return
    story.show(f"\nMeasured on the {description.measured} split:")
    story.show(curve_table(description.split, (first, second)))


def _largest(sizes: dict[str, int]) -> str:
    best = sorted(sizes.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {megabytes(size)}" for name, size in best)
