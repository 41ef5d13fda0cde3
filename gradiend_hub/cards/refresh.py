"""Cards that show what others have measured since: of a published direction, and of one that is pushed once more."""

from __future__ import annotations

import logging
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.hf_api import RepoFile

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import (
    ARTIFACT_FILES,
    CARD_FILE,
    CONFIG_FILE,
    MOST_CARD_BYTES,
    REPORT_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
    own_file,
)
from gradiend_hub.artifact.summary import Summary
from gradiend_hub.artifact.validation import read_text
from gradiend_hub.errors import ArtifactError, GradiendError, first_line
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.measurements import Measurement, Measurements, find_measurements
from gradiend_hub.hub.local_files import matches
from gradiend_hub.hub.patience import PushApi
from gradiend_hub.hub.published import is_generated, merged_card, published_card, with_origin
from gradiend_hub.hub.renewal import CardRenewal
from gradiend_hub.hub.resolve import ResolvedRepo, resolve_folder

from .card import render_card

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefreshedCard:
    """Result of `refresh_card`.

    Attributes:
        commit: that holds the card, and the pull request if one was opened.
        others: measurements by others that the card shows.
    """

    commit: CommitInfo
    others: list[Measurement]


def refresh_card(
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
) -> RefreshedCard:
    """Render the card of a published direction anew, from its files and the reports that its repository has taken.

    No vectors are downloaded. What people have written around the generated part stays, and so do licence and tags. The
    number of reports in `gradiend_summary.json`, which a search shows, goes into the same commit.

    Args:
        repo_id: repository of the direction.
        token: access token; by default the one that the user logged in with.
        revision: branch, by default `main`.
        create_pr: open a pull request, as somebody else than the author may.
        overwrite: replace a card that was written by hand or changed within its generated part.

    Raises:
        HubPushError: nothing was committed; the message says why.
    """
    shown: list[Measurement] = []

    def make(name: str, commit: str) -> Mapping[str, bytes]:
        others = _taken(name, commit, token)
        shown[:] = others
        return _rendered(name, commit, others, token, overwrite)

    command = ["gradiend-hub", "refresh", repo_id]
    command += ["--revision", revision] if revision else []
    command += ["--create-pr"] if create_pr else []
    command += ["--overwrite"] if overwrite else []
    renewal = CardRenewal(
        PushApi(token=token),
        [],  # its files are those that `make` makes
        repo_id,
        revision=revision,
        message="Render the card with what others have measured",
        create_pr=create_pr,
        make=make,
        again=shlex.join(command),
    )
    return RefreshedCard(renewal.send(), shown)


def with_measurements(folder: Path, repo_id: str, commit: str, token: str | bool | None) -> tuple[str, int] | None:
    """Return the card of a saved direction with the reports that its repository has taken and those beside it on disk, and
    their number; `None` if there are none, or the card is one that a person wrote."""
    path = own_file(folder, CARD_FILE)
    card = "" if path is None else path.read_bytes().decode("utf-8", errors="surrogateescape")
    if not is_generated(card):
        return None
    try:
        config = GradiendConfig.from_pretrained(str(folder))
        beside = find_measurements(ResolvedRepo(folder, None, None), config).reports
        taken = _taken(repo_id, commit, token)
        if not taken:
            return None
        names = {one.file for one in taken}
        others = [*taken, *(one for one in beside if one.file not in names)]
        rendered = render_card(folder, config, Report.find(folder), others=Measurements(others))
    except GradiendError as error:  # what was pushed before others measured it can be pushed after that, too
        logger.warning(f"The card is pushed without what others have measured: {first_line(error)}")
        return None
    return with_origin(str(rendered), card, repo_id), len(others)


def _taken(repo_id: str, commit: str, token: str | bool | None) -> list[Measurement]:
    """The reports by others that a commit of a repository holds. What cannot be read is logged."""
    found = resolve_folder(repo_id, revision=commit, token=token, required=(CONFIG_FILE,), wanted=(CONFIG_FILE,))
    config = GradiendConfig.from_pretrained(str(found.folder))
    others = find_measurements(found, config, token=token)
    for problem in others.problems:
        logger.warning(problem)
    return [one for one in others.reports if one.pull_request is None]


def _rendered(
    repo_id: str, commit: str, others: list[Measurement], token: str | bool | None, overwrite: bool
) -> dict[str, bytes]:
    """The card and the summary of a published direction, of its files at a commit."""
    wanted = (CONFIG_FILE, REPORT_FILE, CARD_FILE, SUMMARY_FILE)
    found = resolve_folder(repo_id, revision=commit, token=token, required=(CONFIG_FILE,), wanted=wanted)
    path = own_file(found.folder, CARD_FILE)
    theirs = "" if path is None else read_text(path, MOST_CARD_BYTES)
    rows = HfApi(token=token).list_repo_tree(repo_id, revision=commit, recursive=True)
    sizes = {row.path: row.size for row in rows if isinstance(row, RepoFile) and matches(row.path, ARTIFACT_FILES)}
    if WEIGHTS_FILE not in sizes:
        raise ArtifactError(f"there is no direction in it ({WEIGHTS_FILE} is missing)")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, size in sizes.items():  # a card says which files there are, and how large the vectors
            stand_in = folder / name
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            with stand_in.open("wb") as file:
                file.truncate(size)
        for name in wanted:
            if source := own_file(found.folder, name):
                (folder / name).write_bytes(source.read_bytes())
        config = GradiendConfig.from_pretrained(place)
        card = render_card(folder, config, Report.find(folder), others=Measurements(others))
        ours = published_card(with_origin(str(card), theirs, repo_id), repo_id)
        summary = _summary(folder, len(others))
    merged = ours if overwrite or not theirs else merged_card(ours, theirs)
    if merged is None:
        raise ArtifactError(
            f"its {CARD_FILE} was written or changed by hand, and this would replace it. To do it all the same: "
            "overwrite=True (--overwrite)"
        )
    return {CARD_FILE: merged.encode(), **summary}


def _summary(folder: Path, others: int) -> dict[str, bytes]:
    """The summary with another number of reports; nothing where it has that one, or there is none."""
    path = folder / SUMMARY_FILE
    if not path.is_file():
        return {}
    try:
        summary = Summary.load(path)
    except ArtifactError:
        return {}
    if summary.others == others:
        return {}
    replace(summary, others=others).save(folder)
    return {SUMMARY_FILE: path.read_bytes()} if path.is_file() else {}
