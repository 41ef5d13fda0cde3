"""Directions that others have published: found by their tags, described by their summaries, nothing else downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode
from huggingface_hub.hf_api import ModelInfo

from gradiend_hub.artifact.files import HUB_TAGS, SUMMARY_FILE
from gradiend_hub.artifact.summary import MOST_SUMMARY_BYTES, Summary
from gradiend_hub.errors import ArtifactError, ConfigError, HubSearchError

from .patience import bounded
from .retry import FAILURES, summary, with_retries

Order = Literal["downloads", "likes", "last_modified", "created_at", "effect", "damage"]

_MEASURED = ("effect", "damage")
_READERS = 8
"""Summaries that are read at a time."""
_MOST_LOOKED_AT = 1000
"""Repositories that are looked at, where figures decide."""


@dataclass(frozen=True)
class FoundDirection:
    """A published direction.

    Attributes:
        repo_id: its repository, and `commit` the commit that was looked at.
        base_model: repository of its base model, as the Hub lists it; `None` if it names none.
        task: the Hub's name of what its base model does.
        downloads: in the last 30 days, and `likes`, as the Hub counts them.
        last_modified: date of the last commit, ISO 8601.
        summary: its figures, which are its author's word; `None` where there is no usable summary.
    """

    repo_id: str
    commit: str | None
    base_model: str | None
    task: str | None
    downloads: int
    likes: int
    last_modified: str | None
    summary: Summary | None


def search_directions(
    text: str | None = None,
    *,
    base_model: str | None = None,
    feature: str | None = None,
    task: str | None = None,
    author: str | None = None,
    sort: Order = "downloads",
    min_effect: float | None = None,
    max_damage: float | None = None,
    limit: int = 20,
    token: str | bool | None = None,
) -> list[FoundDirection]:
    """Search the Hub for published directions.

    The Hub's own list of models is asked, then one small file of each repository. Models that a direction was merged into
    are not found.

    Args:
        text: part of the repository's id.
        base_model: repository of the base model.
        feature: name of a feature class, or part of one, in any case.
        task: the Hub's name of a task, e.g. "fill-mask".
        author: user or organization.
        sort: the best first: "effect" (the weaker sign's) and "damage" are the authors' figures, the others the Hub's.
        min_effect: smallest probability of the wanted class at both strengths ±1.
        max_damage: largest share of the base model's quality that is lost at either.
        limit: most directions that are returned.
        token: access token; by default the one that the user logged in with.

    Raises:
        ConfigError: an argument is out of range.
        HubSearchError: the Hub cannot be reached, or refuses.
    """
    for name, share in (("min_effect", min_effect), ("max_damage", max_damage)):
        if share is not None and not 0 <= share <= 1:
            raise ConfigError(f"{name}: expected a share in [0, 1], found {share}.")
    if limit < 1:
        raise ConfigError(f"limit: expected at least 1, found {limit}.")
    if is_offline_mode():
        raise HubSearchError("Nothing was searched: this process is offline (HF_HUB_OFFLINE=1).")
    chosen = feature is not None or min_effect is not None or max_damage is not None or sort in _MEASURED
    api, tags = HfApi(token=token), [*HUB_TAGS, *([f"base_model:{base_model}"] if base_model else [])]

    def listed() -> list[ModelInfo]:
        return list(
            api.list_models(
                filter=tags,
                author=author,
                search=text,
                pipeline_tag=task,
                sort="downloads" if sort == "effect" or sort == "damage" else sort,
                limit=_MOST_LOOKED_AT if chosen else limit,
                full=True,
            )
        )

    try:
        with bounded():
            models = with_retries(listed)
        with ThreadPoolExecutor(_READERS) as readers:
            found = list(readers.map(lambda model: _described(api, model), models))
    except (*FAILURES, OSError) as error:
        raise HubSearchError(f"The Hub could not be searched: {summary(error)}.") from error
    kept = [one for one in found if _fits(one, feature, min_effect, max_damage)]
    return _sorted(kept, sort)[:limit]


def _described(api: HfApi, model: ModelInfo) -> FoundDirection:
    tags = model.tags or []
    bases = [tag.removeprefix("base_model:adapter:") for tag in tags if tag.startswith("base_model:adapter:")]
    return FoundDirection(
        repo_id=model.id,
        commit=model.sha,
        base_model=next(iter(bases), None),
        task=model.pipeline_tag,
        downloads=model.downloads or 0,
        likes=model.likes or 0,
        last_modified=model.last_modified.isoformat() if model.last_modified else None,
        summary=_summary(api, model),
    )


def _summary(api: HfApi, model: ModelInfo) -> Summary | None:
    """Read the summary of a direction, if it has a usable one; a larger file is not downloaded."""
    if model.siblings is not None and all(file.rfilename != SUMMARY_FILE for file in model.siblings):
        return None
    with bounded():
        files = with_retries(lambda: api.get_paths_info(model.id, [SUMMARY_FILE], revision=model.sha))
        if not files or getattr(files[0], "size", MOST_SUMMARY_BYTES + 1) > MOST_SUMMARY_BYTES:
            return None
        path = with_retries(lambda: hf_hub_download(model.id, SUMMARY_FILE, revision=model.sha, token=api.token))
    try:
        return Summary.load(path)
    except ArtifactError:
        return None


def _fits(found: FoundDirection, feature: str | None, min_effect: float | None, max_damage: float | None) -> bool:
    """Tell whether a direction is what was asked for; one without a figure that was asked for is not."""
    said = found.summary
    if said is None:
        return feature is None and min_effect is None and max_damage is None
    effect, damage = said.weakest_effect, said.damage
    return (
        (feature is None or any(feature.casefold() in name.casefold() for name in said.feature_classes))
        and (min_effect is None or (effect is not None and effect >= min_effect))
        and (max_damage is None or (damage is not None and damage <= max_damage))
    )


def _sorted(found: Iterable[FoundDirection], sort: Order) -> list[FoundDirection]:
    """Sort by a figure of the summaries, what has none last; the Hub has sorted by its own."""

    def key(one: FoundDirection) -> tuple[bool, float]:
        value = None
        if one.summary is not None:
            value = one.summary.damage if sort == "damage" else one.summary.weakest_effect
        return value is None, (value or 0.0) * (1 if sort == "damage" else -1)

    return sorted(found, key=key) if sort in _MEASURED else list(found)
