"""The card of a published direction with what others have measured: rendered anew, and nothing that people wrote is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import ASSETS_FOLDER, CARD_FILE, SUMMARY_FILE
from gradiend_hub.cards import refresh as module
from gradiend_hub.cards import write_card
from gradiend_hub.cards.refresh import refresh_card
from gradiend_hub.cards.summary import summarize
from gradiend_hub.errors import HubPushError
from gradiend_hub.evaluation import Report
from gradiend_hub.hub import publish_folder, search_directions
from gradiend_hub.hub.published import is_generated
from tests.cli.conftest import invoke
from tests.evaluation.test_measurements import add, folder, report_of  # noqa: F401 (a fixture)
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub_server import TOKENS, HubServer

pytestmark = TOLERATE_LFS_UPLOAD
HEADING = "## Measured by others"


@pytest.fixture
def published(folder: Path, repo_id: str) -> str:  # noqa: F811
    """A published direction with card, a figure and a summary."""
    (folder / ASSETS_FOLDER).mkdir()
    (folder / ASSETS_FOLDER / "strength.png").write_bytes(b"\x89PNG")
    write_card(folder)
    summarize(folder, GradiendConfig.from_pretrained(str(folder)), Report.find(folder)).save(folder)
    publish_folder(folder, repo_id)
    return repo_id


def card_of(repo_id: str, revision: str = "main") -> str:
    return Path(HfApi().hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_text(encoding="utf-8")


def summary_of(repo_id: str) -> dict[str, Any]:
    return dict(json.loads(Path(HfApi().hf_hub_download(repo_id, SUMMARY_FILE)).read_text()))


def propose_and_merge(api: HfApi, repo_id: str, name: str, token: str = TOKENS.bob) -> None:
    add(repo_id, f"reports/{name}.json", report_of(repo_id), token=token)
    api.merge_pull_request(repo_id, len(list(api.get_repo_discussions(repo_id))))


def test_merged_reports_come_onto_the_card_by_one_command(api: HfApi, published: str) -> None:
    before = card_of(published)
    assert HEADING not in before and is_generated(before)
    add(published, "reports/open.json", report_of(published), token=TOKENS.carol)  # which nobody has taken yet
    for name in ("bobs", "bobs-second"):
        propose_and_merge(api, published, name)
    assert HEADING not in card_of(published)  # the card is a text in the repository
    count = len(api.list_repo_commits(published))
    result = invoke("refresh", published, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert [(one["by"], one["file"], one["same_weights"]) for one in said["others"]] == [
        ("bob", "reports/bobs-second.json", True),
        ("bob", "reports/bobs.json", True),
    ]
    card = card_of(published)
    assert "Measured by 3: the author, bob (reports/bobs" in card.replace("&#46;", ".") and is_generated(card)
    table = card[card.index(HEADING) : card.index("## Base model and edit")]
    assert table.count("| bob (reports/") == 2 and "carol" not in card
    # beside that section (and what points to it), the card is as it was: no file was forgotten
    former, present = before.splitlines(), card.splitlines()
    assert [line for line in former if line not in present and not line.startswith("<!--")] == [
        line for line in former if line.startswith("* All figures are the author's own.")
    ]
    assert summary_of(published)["others"] == 2
    (row,) = search_directions(published.partition("/")[2], token=TOKENS.alice)
    assert row.summary is not None and row.summary.others == 2
    assert len(api.list_repo_commits(published)) == count + 1
    again = refresh_card(published)
    assert again.commit.oid == said["commit"] and len(again.others) == 2
    assert len(api.list_repo_commits(published)) == count + 1


def test_what_people_wrote_around_it_stays_and_a_card_of_theirs_is_refused(api: HfApi, published: str) -> None:
    propose_and_merge(api, published, "bobs")
    card = ModelCard(card_of(published))
    card.data["license"], card.text = "mit", card.text + "\nMy own words.\n"
    api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo=CARD_FILE, repo_id=published)
    refresh_card(published)
    merged = ModelCard(card_of(published))
    assert HEADING in merged.text and merged.text.rstrip().endswith("My own words.") and merged.data["license"] == "mit"
    mine = b"---\nlicense: mit\n---\n# Mine alone\n"
    api.upload_file(path_or_fileobj=mine, path_in_repo=CARD_FILE, repo_id=published)
    head = api.repo_info(published).sha
    with pytest.raises(HubPushError, match=r"written or changed by hand(.|\n)*--overwrite(.|\n)*gradiend-hub refresh"):
        refresh_card(published)
    assert api.repo_info(published).sha == head
    refresh_card(published, overwrite=True)
    assert HEADING in card_of(published)


def test_a_report_that_is_merged_meanwhile_is_on_the_card(
    api: HfApi, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose_and_merge(api, published, "bobs")
    rendered, calls = module._rendered, []

    def slow(*arguments: Any) -> dict[str, bytes]:
        found = rendered(*arguments)
        if not calls:
            propose_and_merge(api, published, "carols", TOKENS.carol)
        calls.append(1)
        return found

    monkeypatch.setattr(module, "_rendered", slow)
    assert len(refresh_card(published).others) == 2
    assert len(calls) == 2 and "Measured by 3" in card_of(published) and summary_of(published)["others"] == 2


def test_somebody_else_may_propose_it(api: HfApi, published: str) -> None:
    propose_and_merge(api, published, "bobs")
    with pytest.raises(HubPushError, match="the token may not write there"):
        refresh_card(published, token=TOKENS.bob)
    done = refresh_card(published, token=TOKENS.bob, create_pr=True)
    assert done.commit.pr_url is not None and HEADING not in card_of(published)
    assert HEADING in card_of(published, "refs/pr/2")


@pytest.mark.parametrize("fault", [{"action": "lost_response"}, {"action": "status", "status": 503}])
def test_a_fault_makes_no_second_commit(api: HfApi, published: str, hub: HubServer, fault: dict[str, Any]) -> None:
    propose_and_merge(api, published, "bobs")
    count = len(api.list_repo_commits(published))
    hub.fault(path="/commit/", **fault)
    refresh_card(published)
    assert len(api.list_repo_commits(published)) == count + 1 and HEADING in card_of(published)


def test_the_authors_next_push_keeps_it(api: HfApi, published: str, folder: Path) -> None:  # noqa: F811
    propose_and_merge(api, published, "bobs")
    local = (folder / CARD_FILE).read_text()
    commit = publish_folder(folder, published)
    assert HEADING in card_of(published) and summary_of(published)["others"] == 1
    assert (folder / CARD_FILE).read_text() == local
    assert publish_folder(folder, published).oid == commit.oid
    assert refresh_card(published).commit.oid == commit.oid  # both render the same
    report = Report.load(folder)
    report.steps += 1
    report.save(folder)
    write_card(folder)
    publish_folder(folder, published)
    assert HEADING in card_of(published) and "bob (reports/" in card_of(published)


def test_where_it_is_from_stays(api: HfApi, published: str) -> None:
    line = "> First published as [us/first](https://huggingface.co/us/first) at commit `0123`; its author measured it."
    card = card_of(published).replace("\n\n", f"\n\n{line}\n\n", 2)
    api.upload_file(path_or_fileobj=card.encode(), path_in_repo=CARD_FILE, repo_id=published)
    propose_and_merge(api, published, "bobs")
    refresh_card(published, overwrite=True)
    assert line in card_of(published) and HEADING in card_of(published)


def test_what_is_no_direction_is_refused(api: HfApi, repo_id: str) -> None:
    for name in (repo_id, "no id"):
        with pytest.raises(HubPushError, match="Could not renew the card"):
            refresh_card(name)
    api.create_repo(repo_id)
    with pytest.raises(HubPushError, match="There is no direction in"):
        refresh_card(repo_id)
    api.create_commit(repo_id, [CommitOperationAdd("adapter_config.json", b"[")], commit_message="x")
    with pytest.raises(HubPushError, match="is not valid JSON"):
        refresh_card(repo_id)
