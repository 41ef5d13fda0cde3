"""What strangers put onto the Hub to harm who only looks: bombs, names that lead elsewhere, and more than anybody reads."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards import write_card
from gradiend_hub.cards.refresh import refresh_card
from gradiend_hub.errors import ArtifactNotFoundError, ConfigError, GradiendError, HubPushError
from gradiend_hub.evaluation import measurements
from gradiend_hub.hub import publish_folder, resolve_folder
from gradiend_hub.hub.collections import add_to_collection
from tests.adapter.support import random_direction, save
from tests.cli.conftest import invoke
from tests.cli.test_hostile import bomb_card
from tests.cli.test_strangers import assert_harmless
from tests.evaluation.test_measurements import add, folder, measured, published, report_of  # noqa: F401 (fixtures)
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub_server import TOKENS, HubServer

pytestmark = TOLERATE_LFS_UPLOAD


def laughs(levels: int = 9) -> str:
    """YAML of a few lines whose last value has 10^levels parts."""
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"- {{dataset: *a{levels - 1}, value: *a{levels - 1}}}"])


def test_a_bomb_among_results_by_others(published: str) -> None:  # noqa: F811
    add(published, ".eval_results/laughs.yaml", laughs().encode())
    merged = "\n".join(bomb_card().splitlines()[1:-2])
    add(published, ".eval_results/merged.yaml", merged.encode())
    found = measured(published)
    assert found.results == [] and len(found.problems) == 2
    assert all("its aliases (*name) stand for more than 100,000 values" in problem for problem in found.problems)
    add(published, ".eval_results/itself.yaml", b"&a [*a]")
    assert "nested too deeply" in " ".join(measured(published).problems)


def test_a_card_that_is_a_bomb_is_neither_merged_nor_rendered(
    published: str,  # noqa: F811
    folder: Path,  # noqa: F811
) -> None:
    _commit_unchecked(published, bomb_card())
    write_card(folder)
    for push in (lambda: publish_folder(folder, published), lambda: refresh_card(published)):
        with pytest.raises(HubPushError, match="written or changed by hand"):
            push()
    refresh_card(published, overwrite=True)


def _commit_unchecked(repo_id: str, card: str) -> None:
    """Commit a card as git would, without the client's look at it."""
    api = HfApi()
    api._validate_yaml = lambda *arguments, **options: None  # type: ignore[method-assign]
    api.create_commit(repo_id, [CommitOperationAdd(CARD_FILE, card.encode())], commit_message="x")


def test_names_that_lead_elsewhere(published: str, hub: HubServer, tmp_path: Path) -> None:  # noqa: F811
    hub.clear()
    for subfolder in ("..", "../..", "a/../..", "/etc", "a//b", "."):
        with pytest.raises(ArtifactNotFoundError, match="is no name of a folder in a repository"):
            resolve_folder(published, subfolder=subfolder)
    assert hub.log() == []
    for revision in ("../../../../../../../../etc/passwd", "..", "a\x1b]0;x\x07", "main/../../x"):
        with pytest.raises(GradiendError) as refused:
            resolve_folder(published, revision=revision, cache_dir=tmp_path / "cache")
        assert_harmless(str(refused.value))
        result = invoke("info", published, "--revision", revision)
        assert result.exit_code == 1 and "Traceback" not in result.stderr
        assert_harmless(result.stdout + result.stderr)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(tmp_path / "cache")]
    assert not [path for path in outside if not path.is_relative_to(tmp_path / "direction")]


@pytest.mark.parametrize(
    "name", ["a\x1b]0;owned\x07/b", "a/\u202eb", "a/b\nc", "a/../b", "a/b/../../c", "-x/y", "a b/c"]
)
def test_ids_that_are_none(name: str, hub: HubServer) -> None:
    hub.clear()
    for command in (["info", "--", name], ["audit", "--", name], ["verify", "--", name], ["refresh", "--", name]):
        result = invoke(*command)
        assert result.exit_code == 1 and "Traceback" not in result.stderr
        assert_harmless(result.stdout + result.stderr)
    assert hub.log() == []


@pytest.mark.parametrize(
    "slug", ["alice/../../api/whoami-0123456789abcdef01234567", "a\x1b[2J", "alice/\u202ex", " / "]
)
def test_collections_that_lead_elsewhere(slug: str, hub: HubServer) -> None:
    hub.clear()
    try:
        done = add_to_collection(slug, ["alice/x"])
    except (ConfigError, HubPushError) as error:
        assert_harmless(str(error))
    else:
        raise AssertionError(done)
    assert not [record for record in hub.log() if "whoami" in record["path"]]


def test_more_reports_than_anybody_reads(
    published: str,  # noqa: F811
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurements, "_MOST_LOOKED_AT", 5)
    junk = [CommitOperationAdd(f"reports/{number}.json", b"{}" + b" " * number) for number in range(12)]
    HfApi(token=TOKENS.bob).create_commit(published, junk, commit_message="x", create_pr=True)
    add(published, "reports/own.json", report_of(published), token=TOKENS.alice, merged=True)
    hub.clear()
    found = measured(published)
    assert [one.file for one in found.reports] == ["reports/own.json"]  # the repository's own come first
    assert len({record["path"] for record in hub.log(method="GET", path="/reports/")}) <= 5
    assert found.problems[-1] == "8 further files by others are not read."


def test_names_of_reports_give_no_orders(published: str) -> None:  # noqa: F811
    add(published, "reports/\x1b]0;owned\x07.json", b"{}")
    result = invoke("info", published)
    assert result.exit_code == 0
    assert_harmless(result.stdout + result.stderr)


def test_no_code_beside_a_base_runs_and_nobody_is_asked(
    masked_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(masked_path, base)
    fields = (
        json.loads((base / "tokenizer_config.json").read_text()) if (base / "tokenizer_config.json").exists() else {}
    )
    evil = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (base / "tokenizer_config.json").write_text(json.dumps(fields | evil))
    (base / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    model_of_it = load_base_model(masked_path)
    place = save(tmp_path / "a", random_direction(model_of_it, "sparse", share=0.01), model_of_it)
    model = GradiendModel.from_pretrained(place, base, strength=0.0)
    try:
        assert model.tokenizer is not None
    except (GradiendError, ValueError, OSError) as error:
        assert_harmless(str(error))
    assert not (tmp_path / "ran").exists()
