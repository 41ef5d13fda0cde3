"""`info`: what a direction says about itself and what was measured, from its files alone."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import CONFIG_FILE, REPORT_FILE, WEIGHTS_FILE
from gradiend_hub.data import require_classes
from gradiend_hub.evaluation import Report, SplitReport
from gradiend_hub.hub.resolve import resolve_folder

from .quiet import quiet
from .tables import curve_table, encoder_line, megabytes, pairs_table, strength_text

__all__ = ["Description", "describe", "show_description"]


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
    """

    source: str
    commit: str | None
    config: GradiendConfig
    tensors: int
    weights: int
    entries: int
    sizes: dict[str, int]
    measured: str | None
    split: SplitReport | None

    def to_json(self) -> str:
        """All of it as a JSON object."""
        config = self.config
        fields = (
            "feature_classes", "fillers", "objective", "source", "target", "base_model_name_or_path", "revision",
            "dtype", "strength_unit", "strength", "safe_band",
        )  # fmt: skip
        return json.dumps(
            {
                "direction": self.source, "commit": self.commit,
                "config": {name: getattr(config, name) for name in fields},
                "tensors": self.tensors, "weights": self.weights, "entries": self.entries, "sizes": self.sizes,
                "measured": self.measured, "report": None if self.split is None else asdict(self.split),
            },
            indent=2, ensure_ascii=False,
        )  # fmt: skip


def describe(direction: str, *, revision: str | None = None) -> Description:
    """Read the files of a direction.

    Raises:
        ArtifactNotFoundError: there is none.
        ArtifactError: its files are damaged or of another kind.
    """
    with quiet():
        found = resolve_folder(direction, revision=revision, required=(CONFIG_FILE, WEIGHTS_FILE))
        config = GradiendConfig.from_pretrained(str(found.folder))
    report = Report.load(found.folder) if Path(found.folder, REPORT_FILE).is_file() else None
    splits = report.splits if report else {}
    measured = next((name for name in ("test", "eval", *splits) if name in splits), None)
    parameters = (config.parameters or {}).values()
    weights = [math.prod(spec["shape"]) for spec in parameters]
    entries = [
        size if spec["entries"] is None else spec["entries"] for spec, size in zip(parameters, weights, strict=True)
    ]
    sizes = {path.name: path.stat().st_size for path in sorted(found.folder.iterdir()) if path.is_file()}
    split = splits[measured] if measured else None
    return Description(
        direction, found.commit, config, len(weights), sum(weights), sum(entries), sizes, measured, split
    )


def show_description(description: Description, console: Console) -> None:
    """Print it for people."""
    config = description.config
    first, second = require_classes(config.feature_classes)
    fillers = config.fillers or {}
    band = "not measured" if config.safe_band is None else " to ".join(map(strength_text, config.safe_band))
    dense = description.entries == description.weights
    kept = "all" if dense else f"{description.entries:,} ({description.entries / description.weights:.2%})"
    table = pairs_table()
    table.add_row("direction", description.source + (f" at {description.commit}" if description.commit else ""))
    table.add_row("strength > 0", f"{first}: {', '.join(fillers.get(first, ['?']))}")
    table.add_row("strength < 0", f"{second}: {', '.join(fillers.get(second, ['?']))}")
    table.add_row(
        "base model", (config.base_model_name_or_path or "?") + (f" at {config.revision}" if config.revision else "")
    )
    table.add_row("objective", f"{config.objective}, gradients {config.source} -> {config.target}")
    table.add_row("rewrites", f"{description.tensors} tensors with {description.weights:,} weights; stored: {kept}")
    table.add_row("size", f"{megabytes(sum(description.sizes.values()))} ({_largest(description.sizes)})")
    table.add_row("strength 1 is", f"{config.strength_unit:.4g} times the raw decoder")
    table.add_row("applied at", f"strength {strength_text(config.strength)}, unless another one is asked for")
    table.add_row("safe strengths", band)
    table.add_row("encoder", "not measured" if description.split is None else encoder_line(description.split))
    console.print(table)
    if description.split is None:
        console.print("What each strength changes: not measured.")
        return
    console.print(f"\nMeasured on the {description.measured} split:")
    console.print(curve_table(description.split, (first, second)))


def _largest(sizes: dict[str, int]) -> str:
    best = sorted(sizes.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {megabytes(size)}" for name, size in best)
