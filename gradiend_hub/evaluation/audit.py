"""Faults and oddities of somebody's direction, found in its files alone: no model is loaded, nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import ARTIFACT_FILES, CONFIG_FILE, PROBES_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import identifies
from gradiend_hub.artifact.names import hub_id
from gradiend_hub.artifact.probes import Probes, content_digests
from gradiend_hub.errors import ArtifactNotFoundError, GradiendError
from gradiend_hub.hub.resolve import ResolvedRepo, other_files, resolve_folder
from gradiend_hub.printable import listed, printable

from .claims import check_summary
from .plausibility import count_figures, implausible
from .report import Report

Level = Literal["refused", "impossible", "suspicious"]

HANDFUL = 16
"""Entries of an edit that are few, whatever the size of the model."""
MOST_SHARE = 0.5
"""Share of ‖Δ‖² in a handful of entries, or in the embedding of one token, from which an edit is odd."""
VOCABULARY = 1000
"""Rows of a matrix from which it may hold an embedding for each token."""
RUNS_CODE = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".py")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        level: "refused": this library does not read or apply it (unasked); "impossible": claims that cannot be true, or
            contradict each other; "suspicious": possible, but to be asked about.
        text: what it is, in a sentence.
    """

    level: Level
    text: str


@dataclass(frozen=True)
class Audit:
    """Result of `audit`.

    Attributes:
        source: what was asked for, and `commit` its commit if it is on the Hub.
        figures: number of figures that its report claims; none of them was measured here.
        findings: the gravest first.
    """

    source: str
    commit: str | None
    figures: int
    findings: list[Finding]


def audit(repo_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Audit:
    """Look at all files of a direction for what is harmful, impossible or suspicious.

    Args:
        repo_or_path: Folder, or repository on the Hub.
        revision: Branch, tag or commit of the repository.
        token: Hub token.

    Raises:
        ArtifactNotFoundError: There is no direction.
    """
    try:
        found = resolve_folder(repo_or_path, revision=revision, token=token, required=(CONFIG_FILE, WEIGHTS_FILE))
    except ArtifactNotFoundError:
        raise
    except GradiendError as error:  # damaged, also after a second download
        return Audit(str(repo_or_path), None, 0, [Finding("refused", str(error))])
    look = _Look(found)
    findings = sorted(look(), key=lambda one: ("refused", "impossible", "suspicious").index(one.level))
    return Audit(str(repo_or_path), found.commit, 0 if look.report is None else count_figures(look.report), findings)


class _Look:
    """One pass over the files of a direction."""

    def __init__(self, found: ResolvedRepo) -> None:
        self.found, self.folder = found, found.folder
        self.report: Report | None = None
        self._refused: list[Finding] = []

    def __call__(self) -> Iterator[Finding]:
        """Yield what is found."""
        self.report = self._read(lambda: Report.find(self.folder))
        config = self._read(lambda: GradiendConfig.from_pretrained(str(self.folder)))
        if config is not None:
            self._read(config.require_supported_strength)
            direction = self._read(lambda: Direction.stream(self.folder, config).check())
            yield from self._of_base(config, direction)
            yield from (Finding("impossible", claim) for claim in implausible(config, self.report))
            yield from _suspicious(self._of_claims(config))
            for check in self._read(lambda: check_summary(self.folder, config, self.report)) or ():
                if not check.passed:
                    said = f"{check.name} says {printable(check.claimed)}, but it is {printable(check.found)}."
                    yield Finding("impossible", said)
            if direction is not None:
                yield from _suspicious(_of_edit(config, direction))
            yield from self._of_self_test()
        yield from _suspicious(self._of_files())
        yield from self._refused

    def _read(self, action: Callable[[], _T]) -> _T | None:
        """Result of reading something; a refusal is a finding."""
        try:
            return action()
        except GradiendError as error:
            self._refused.append(Finding("refused", str(error)))
            return None

    def _of_base(self, config: GradiendConfig, direction: Direction | None) -> Iterator[Finding]:
        name = config.base_model_name_or_path
        if name is None:
            yield Finding("suspicious", "The direction names no base model.")
        elif hub_id(name) is None:
            level: Level = "suspicious" if self.found.repo_id is None else "refused"
            yield Finding(level, f"The base model {name!r} is no repository on the Hub, but a path.")
        elif config.revision is None:
            yield Finding("suspicious", f"No commit of the base model {name} is named, so it may be any version.")
        if direction is not None and not identifies(direction.fingerprint):
            text = "No sampled weights identify the base model, so it is applied with allow_unverified_base=True only."
            yield Finding("refused", text)
        import transformers

        wanted = (config.auto_mapping or {}).get("base_model_class", "")
        if not wanted.isidentifier() or not hasattr(transformers, wanted):
            yield Finding("suspicious", f"The class of the base model, {wanted!r}, is none of transformers.")

    def _of_claims(self, config: GradiendConfig) -> Iterator[str]:
        report = self.report
        if report is None:
            yield "There is no report that can be read, so nothing is known about effect and damage."
            return
        if count_figures(report) and not report.data.get("train_sha256") and not report.examples:
            yield "Figures are claimed, but nothing is said of the data (digest, examples)."
        if report.usage:
            yield "The report shows the output of code (“usage”); nobody has run it here."
        for name, split in report.splits.items():
            if split.curve and not split.control:
                yield f"{name}: an effect is claimed, but no random direction beside it (control)."
            if split.encoder is not None and not split.encoder.encodings:
                yield f"{name}: figures of the encoder are claimed, but no point is shown."
            if any(p.quality is not None for p in split.curve) and not any(p.intervals for p in split.curve):
                yield f"{name}: the figures of the curve have no intervals."
        if config.safe_band is not None and not any(split.curve for split in report.splits.values()):
            yield "A safe band is claimed, but no curve that it was read from."

    def _of_self_test(self) -> Iterator[Finding]:
        if not (self.folder / PROBES_FILE).exists():
            yield Finding("suspicious", "There is no self-test, so verify has nothing to measure.")
            return
        probes = self._read(lambda: Probes.load(self.folder))
        digests = self._read(lambda: content_digests(self.folder)) or {}
        for name, digest in (probes.sha256 if probes else {}).items():
            if digests.get(name) != digest:
                yield Finding("impossible", f"{name} is not the file that the self-test was made with.")

    def _of_files(self) -> Iterator[str]:
        others = self._read(lambda: other_files(self.found, ARTIFACT_FILES)) or []
        if harmful := [name for name in others if Path(name).suffix in RUNS_CODE]:
            yield f"Files that may run code when others load them lie beside it: {listed(harmful)}."
        if rest := [name for name in others if Path(name).suffix not in RUNS_CODE]:
            yield f"Files that are no part of a direction lie beside it: {listed(rest)}."


def _suspicious(texts: Iterable[str]) -> Iterator[Finding]:
    return (Finding("suspicious", text) for text in texts)


def _of_edit(config: GradiendConfig, direction: Direction) -> Iterator[str]:
    """Say where the edit at strength 1 is unlike one that was learned from many sentences."""
    c_w, c_b = config.coefficients(1.0)
    total, largest, rows = 0.0, torch.zeros(0, dtype=torch.float64), []
    entries = 0
    for name, part in direction.parameters.items():
        delta = part.dense(part.delta(c_w, c_b))
        square = delta.double().square()
        total, entries = total + float(square.sum()), entries + int(delta.count_nonzero())
        known = torch.cat([largest, square.flatten().topk(min(HANDFUL, square.numel())).values])
        largest = known.topk(min(HANDFUL, len(known))).values
        if delta.ndim == 2 and delta.shape[0] >= VOCABULARY and delta.shape[0] > delta.shape[1]:
            by_row = square.sum(1)
            place = int(by_row.argmax())
            rows.append((float(by_row[place]), place, name))
    if not total:
        yield "The edit is zero."
        return
    if entries > 100 * HANDFUL and (share := float(largest.sum()) / total) > MOST_SHARE:
        yield f"{share:.0%} of the edit's squared norm is in {HANDFUL} of {entries:,} entries."
    for square_of_row, place, name in rows:
        if (share := square_of_row / total) > MOST_SHARE:
            yield f"{share:.0%} of the edit's squared norm is in row {place} of {name}: it may be about one token."
    samples = direction.fingerprint.samples if direction.fingerprint else {}
    weight = sum(direction.parameters[n].numel * float(v.square().mean()) for n, v in samples.items())
    if weight and (ratio := math.sqrt(total / weight)) > 1:
        yield f"At strength 1 the edit is about {ratio:.3g} times as large as the weights that it edits (by their samples)."
