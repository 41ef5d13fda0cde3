"""Measurements of a direction by others than its author: reports and evaluation results that came by pull request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

from gradiend_hub.artifact.fields import DirectionFields
from gradiend_hub.artifact.files import EVAL_RESULTS_FOLDER, MOST_REPORT_BYTES, REPORTS_FOLDER, WEIGHTS_FILE, own_file
from gradiend_hub.artifact.plain_yaml import parse_yaml
from gradiend_hub.artifact.validation import NAME, read_as, read_text
from gradiend_hub.errors import GradiendError, first_line
from gradiend_hub.hub.contributions import Contribution, Contributions
from gradiend_hub.hub.resolve import ResolvedRepo
from gradiend_hub.hub.retry import FAILURES, summary
from gradiend_hub.printable import printable

from .plausibility import implausible
from .records import Estimate
from .report import Report, SplitReport

MOST_FILES: Final = 20
"""Reports, and files of results, that are read."""
_MOST_LOOKED_AT: Final = 3 * MOST_FILES
"""Files that are downloaded, whatever is in them."""
_MOST_RESULT_BYTES: Final = 2**16
_MOST_RESULTS: Final = 50

_Name = Annotated[str, NAME]


@dataclass(frozen=True)
class Measurement:
    """A report by somebody else than the direction's author, or by the author at another time; nobody has checked it.

    Attributes:
        report: what was measured.
        file: its name.
        by: the user who has added it, as the Hub says; `None` where that is not known, as for a file on disk.
        pull_request: number of the open pull request that it is in; `None` for one that the repository has taken.
        same_weights: whether the decoder that was measured is the present one; `None` if that is not known.
    """

    report: Report
    file: str
    by: str | None
    pull_request: int | None
    same_weights: bool | None

    @property
    def split(self) -> SplitReport | None:
        """The split that stands for the report: the test split, else any."""
        return self.report.splits.get("test") or next(iter(self.report.splits.values()), None)

    @property
    def source(self) -> str:
        """Who has measured, and where the report is, in words."""
        place = f"pull request {self.pull_request}" if self.pull_request is not None else self.file
        return f"{self.by} ({place})" if self.by else place


@dataclass(frozen=True)
class Headline:
    """The few figures of a split by which measurements are compared; `None` for what was not measured.

    Attributes:
        rows: that the encoder has read.
        correlation: of the feature values with the classes.
        effects: probability of the class that strength +1 makes likelier, on rows of the other one; and the same at −1.
        quality: damage set and quality where it is lowest at either strength.
    """

    rows: int | None
    correlation: float | None
    effects: tuple[Estimate, Estimate]
    quality: tuple[str, float] | None

    @classmethod
    def of(cls, split: SplitReport, classes: Sequence[str]) -> Headline:
        """Those of a split; `classes` are (c₊, c₋)."""
        points, encoder = {p.strength: p for p in split.curve}, split.encoder
        wanted = ((1.0, classes[0], classes[1]), (-1.0, classes[1], classes[0]))
        up, down = (points[at].reading(*pair) if at in points else Estimate() for at, *pair in wanted)
        worst = [found for at in (1.0, -1.0) if at in points and (found := points[at].worst(bound=False)) is not None]
        return cls(
            sum(encoder.rows.values()) if encoder else None,
            encoder.correlation if encoder else None,
            (up, down),
            min(worst, key=lambda found: found[1], default=None),
        )


@dataclass(frozen=True)
class _DataSet:
    id: _Name
    task_id: _Name
    revision: _Name | None = None


@dataclass(frozen=True)
class _Source:
    url: _Name
    name: _Name | None = None
    user: _Name | None = None
    org: _Name | None = None


@dataclass(frozen=True)
class ResultEntry:
    """An entry of `.eval_results/*.yaml`, in the Hub's form.

    Attributes:
        dataset: `id` on the Hub, `task_id` and `revision`.
        value: the figure.
        source: where it comes from: `url`, `name`, `user` and `org`.
        date: of the evaluation, and `notes` on it.
        by: who has added it, as the Hub says.
        pull_request: number of the open pull request that it is in.
    """

    dataset: _DataSet
    value: float
    source: _Source | None = None
    date: _Name | None = None
    notes: _Name | None = None
    by: str | None = None
    pull_request: int | None = None


@dataclass(frozen=True)
class Measurements:
    """Measurements of a direction by others than its author.

    Attributes:
        reports: each with who has made it.
        results: entries of `.eval_results`.
        problems: what could not be read or is not credible, a sentence each.
    """

    reports: list[Measurement] = field(default_factory=list)
    results: list[ResultEntry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_measurements(
    found: ResolvedRepo, config: DirectionFields, *, token: str | bool | None = None, offline: bool = False
) -> Measurements:
    """Read the reports beside a direction: those that its repository has taken, and those of open pull requests.

    They are strangers' files: limited, validated, and left out with a reason where they are of other classes or another
    direction, or hold what is impossible. A Hub that does not answer is one of the `problems`.

    Args:
        found: the direction's files.
        config: of the direction.
        token: access token; by default the one that the user logged in with.
        offline: do not ask the Hub.
    """
    measurements = Measurements()
    if found.repo_id is None or found.commit is None:
        folder = found.folder / REPORTS_FOLDER
        for path in sorted(folder.glob("*.json"))[:MOST_FILES] if folder.is_dir() else ():
            name = f"{REPORTS_FOLDER}/{path.name}"
            try:
                if own_file(found.folder, name):
                    _add(measurements, path, Contribution(name, path.stat().st_size, None, None, ""), config, None)
            except (GradiendError, OSError) as error:
                measurements.problems.append(f"{printable(name)}: {first_line(error)}")
        return measurements
    if offline:
        return measurements
    there = Contributions(found.repo_id, found.commit, token)
    try:
        files = there.listed(REPORTS_FOLDER, EVAL_RESULTS_FOLDER)
        for file in files[:_MOST_LOOKED_AT]:
            _read(measurements, there, file, config)
        if (left := len(files) - _MOST_LOOKED_AT) > 0:
            measurements.problems.append(f"{left} further files by others are not read.")
    except (*FAILURES, OSError) as error:
        measurements.problems.append(f"What others have measured is not known: {summary(error)}.")
    return measurements


def _read(measurements: Measurements, there: Contributions, file: Contribution, config: DirectionFields) -> None:
    """Download a file and take it in."""
    is_report = file.name.startswith(f"{REPORTS_FOLDER}/")
    taken = len(measurements.reports) if is_report else len({result.by for result in measurements.results})
    if not file.name.endswith(".json" if is_report else ".yaml") or taken >= MOST_FILES:
        return
    if file.size > (MOST_REPORT_BYTES if is_report else _MOST_RESULT_BYTES):
        measurements.problems.append(f"{printable(file.name)} is too large: {file.size:,} bytes.")
        return
    path = there.read(file)
    if is_report:
        _add(measurements, path, file, config, there)
        return
    try:
        entries = parse_yaml(read_text(path, _MOST_RESULT_BYTES))
        for entry in (entries if isinstance(entries, list) else [])[:_MOST_RESULTS]:
            known = read_as(ResultEntry, {**entry, "by": file.by, "pull_request": file.pull_request}, "entry")
            measurements.results.append(known)
    except (ValueError, TypeError) as error:
        measurements.problems.append(f"{printable(file.name)} is no list of evaluation results: {first_line(error)}")


def _add(
    measurements: Measurements, path: Path, file: Contribution, config: DirectionFields, there: Contributions | None
) -> None:
    """Take a report in, or say why not."""
    where = f"{printable(file.name)}{f' of pull request {file.pull_request}' if file.pull_request else ''}"
    try:
        report = Report.load(path)
    except GradiendError as error:
        measurements.problems.append(f"{where} is no report: {first_line(error)}")
        return
    if there is not None and not there.leads_here(report.direction):
        measurements.problems.append(f"{where} is a report of {printable(report.direction or 'no named direction')}.")
        return
    # the base model may be another one than the author's, and the curve shorter than his
    named: dict[str, Any] = {"base_model_name_or_path": report.base_model, "revision": report.base_revision}
    if problems := implausible(replace(config, safe_band=None, break_point=None, **named), report):
        measurements.problems.append(f"{where} is not credible: {printable(problems[0])}")
        return
    revision, same = report.direction_revision, None
    if there is not None and revision:
        same = True if revision == there.commit else there.same_file(WEIGHTS_FILE, revision)
    measurements.reports.append(Measurement(report, file.name, file.by, file.pull_request, same))
