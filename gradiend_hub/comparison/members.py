"""The directions of a set: read from folders and repositories, named, and checked to be of one base model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CONFIG_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import DTYPES, BaseModelRelation
from gradiend_hub.artifact.names import hub_id, shown_name
from gradiend_hub.artifact.references import References
from gradiend_hub.errors import BaseModelMismatchError, ConfigError
from gradiend_hub.evaluation import Report
from gradiend_hub.hub.resolve import resolve_folder

from .vectors import Shape


@dataclass(frozen=True, eq=False)
class Member:
    """A direction of a set.

    Attributes:
        name: how the set calls it.
        direction: its decoder, which may be streamed from its file.
        config: its configuration.
        reader: the same with its encoder; `None` if it was published without one.
        references: what it is compared with; `None` in older artifacts.
        report: what was measured of it; `None` if there is no report.
        folder: its files; `None` for one that was never saved.
        source: the folder or repository id that it was read from, and `commit` of the latter.
    """

    name: str
    direction: Direction
    config: GradiendConfig
    reader: Direction | None = None
    references: References | None = None
    report: Report | None = None
    folder: Path | None = None
    source: str | None = None
    commit: str | None = None

    @property
    def sign(self) -> int:
        """Factor of the decoder's weights that makes the first class likelier."""
        return -1 if self.config.decoder_sign == -1 else 1

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of each parameter, without reading a value."""
        if self.config.parameters is not None and self.config.parameters.keys() == self.direction.parameters.keys():
            return {name: tuple(spec["shape"]) for name, spec in self.config.parameters.items()}
        return {name: part.shape for name, part in self.direction.parameters.items()}

    @property
    def gradient(self) -> tuple[Direction, float] | None:
        """∇ of the mean log-odds of its feature, as a direction's weights times a factor; `None` if it is not known."""
        if self.references is None:
            return None
        if self.references.gradient is not None:
            return self.references.gradient, 1.0
        scale = self.references.gradient_scale
        return None if scale is None else (self.direction, self.sign * scale)

    @property
    def split_half(self) -> dict[str, float]:
        """By measure, how alike it is learned from two halves of the rows; empty where that was not measured."""
        return {} if self.report is None or self.report.references is None else self.report.references.split_half

    @property
    def is_damage_aware(self) -> bool:
        """Return whether the decoder is a gradient divided by the Fisher information."""
        return self.report is not None and self.report.training.get("decoder") == "damage_aware"

    @property
    def classes(self) -> tuple[str, str]:
        """The two feature classes; empty names for a direction of none."""
        first, second = self.config.feature_classes or ("", "")
        return first, second


def named_sources(sources: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str]:
    """Give each source a name: the last part of its path, or as many parts as tell it from the others.

    Raises:
        ConfigError: No sources, one string in place of several, or one source twice.
    """
    if isinstance(sources, (str, Path)):
        raise ConfigError(f"Expected a list of directions, found one name: [{str(sources)!r}] is a list of one.")
    if not isinstance(sources, Iterable):
        raise ConfigError(f"Expected a list of folders or repositories, found {sources!r:.80}.")
    if isinstance(sources, Mapping):
        named = {name: str(source) for name, source in sources.items()}
    else:
        places = [str(source) for source in sources]
        if twice := sorted({place for place in places if places.count(place) > 1}):
            raise ConfigError(f"{twice[0]} is named twice. Name each direction once.")
        named = {_shortest(place, places): place for place in places}
    if not named:
        raise ConfigError("There are no directions to compare; name at least one folder or repository.")
    return named


def _shortest(place: str, places: Sequence[str]) -> str:
    parts = [part for part in place.split("/") if part not in ("", ".")] or [place]
    others = [[part for part in other.split("/") if part not in ("", ".")] for other in places if other != place]
    for count in range(1, len(parts) + 1):
        if all(other[-count:] != parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return place


def read_member(name: str, source: str, **hub: Any) -> Member:
    """Read a direction from a folder, a repository `USER/NAME`, or a folder in one, `USER/NAME/FOLDER`.

    Args:
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ArtifactError: There is none, or a file of it is unusable.
    """
    repo, subfolder = source, None
    if not Path(source).expanduser().is_dir() and source.count("/") > 1:
        owner, repository, *rest = source.split("/")
        repo, subfolder = f"{owner}/{repository}", "/".join(rest)
    found = resolve_folder(repo, subfolder=subfolder, required=(CONFIG_FILE, WEIGHTS_FILE), **hub)
    folder = found.folder
    config = GradiendConfig.from_pretrained(str(folder))
    reader = Direction.stream(folder, config).check()
    direction = Direction.stream(folder, config, encoder=False)
    first = next(iter(reader.parameters.values()))  # a file has encoders of all parameters, or none
    return Member(
        name,
        direction,
        config,
        reader if first.encoder is not None else None,
        References.find(folder),
        Report.find(folder),
        folder,
        source if found.repo_id else str(folder),
        found.commit,
    )


def require_one_base(members: Sequence[Member], *, allow_related: bool = False) -> list[str]:
    """Check that directions were learned on one base model, by the values that they carry of it.

    Args:
        allow_related: accept directions of a fine-tuned relative.

    Returns:
        Notes: what could not be checked.

    Raises:
        BaseModelMismatchError: Two are of different models, or of relatives, or nothing says that they are of one.
    """
    notes: list[str] = []
    for number, other in enumerate(members[1:], 1):
        unknown = None
        for one in members[:number]:
            note, checked = _compare(one, other, allow_related)
            if checked:  # and of the one base that those before it are of
                unknown = note
                break
            unknown = unknown or note
        if unknown:
            notes.append(unknown)
    return notes


def _compare(one: Member, other: Member, allow_related: bool) -> tuple[str | None, bool]:
    """Compare the base models of two directions: what to note, and whether their values were compared."""
    mine, theirs = one.direction.fingerprint, other.direction.fingerprint
    common = [] if mine is None or theirs is None else [name for name in mine.samples if name in theirs.samples]
    if not common:
        return _by_name(one, other, allow_related), False
    assert mine is not None and theirs is not None
    dtype = DTYPES.get(theirs.dtype)
    match = mine.only(common).compare({name: theirs.samples[name].to(dtype) for name in common})
    if match.relation in (BaseModelRelation.SAME, BaseModelRelation.ROUNDED):
        return None, True
    relatives = match.relation is BaseModelRelation.RELATED
    if relatives and allow_related:
        warnings.warn(f"{one.name} and {other.name} are of relatives. {match.evidence()}", stacklevel=5)
        return f"{one.name} and {other.name} were learned on relatives of one model.", True
    kind = "relatives of one model (such as a fine-tune)" if relatives else "different base models"
    step = (
        " To compare them all the same: allow_related=True." if relatives else " Compare directions of one base model."
    )
    raise BaseModelMismatchError(
        f"{one.name} ({_base(one)}) and {other.name} ({_base(other)}) were learned on {kind}. {match.evidence()}{step}"
    )


def _by_name(one: Member, other: Member, allow_related: bool) -> str:
    """Compare the base models of two directions that have no samples of one tensor."""
    bases = [(member.config.base_model_name_or_path, member.config.revision) for member in (one, other)]
    named = [(hub_id(name) or name, revision) for name, revision in bases]
    if named[0][0] is not None and named[0] == named[1]:
        return f"{one.name} and {other.name} share no tensor, so that they are of one base model is known by its name only."
    if allow_related:
        return f"Nothing says whether {one.name} and {other.name} are of one base model."
    raise BaseModelMismatchError(
        f"Nothing says that {one.name} ({_base(one)}) and {other.name} ({_base(other)}) are of one base model: they "
        "carry no values of a common tensor, and name different models. Pass base_model, or allow_related=True to compare "
        "them all the same."
    )


def _base(member: Member) -> str:
    name, revision = member.config.base_model_name_or_path, member.config.revision
    return f"{shown_name(name)} @{revision[:8]}" if revision else shown_name(name)
