"""Repositories that were renamed or handed over: the Hub leads on from a former name, and so do we, to the present one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, hf_hub_download
from peft import PeftModel

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import REPORT_FILE
from gradiend_hub.base_model import load_base_model
from gradiend_hub.errors import ArtifactNotFoundError, BaseModelError
from gradiend_hub.hub import publish_folder, resolve_folder
from gradiend_hub.hub.propose import ReportProposal
from tests.adapter.support import random_direction, save
from tests.cli.conftest import invoke
from tests.evaluation.test_measurements import add, folder, measured, published, report_of  # noqa: F401 (fixtures)
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub.test_models import upload
from tests.hub_server import TOKENS

pytestmark = TOLERATE_LFS_UPLOAD
SENTENCE = "The team said [MASK] would win."


def test_a_direction_and_its_base_are_found_by_their_former_names(
    api: HfApi, repo_id: str, masked_path: Path, tmp_path: Path
) -> None:
    base_id = upload(api, masked_path, f"{repo_id}-base")
    base = load_base_model(masked_path)
    direction = random_direction(base, "sparse", share=0.01)
    upload(api, save(tmp_path / "a", direction, base, base_model_name_or_path=base_id), repo_id)
    api.move_repo(base_id, f"{base_id}-2")
    api.move_repo(repo_id, f"acme/{repo_id.split('/')[1]}")
    assert api.repo_info(repo_id).id.startswith("acme/")
    model = GradiendModel.from_pretrained(repo_id, strength=0.5, cache_dir=tmp_path / "cache")
    assert model.direction.inner(direction) == pytest.approx(direction.norm() ** 2, rel=1e-6)
    assert model.tokenizer is not None
    plain = PeftModel.from_pretrained(load_base_model(base_id), repo_id, strength=0.5)
    text = model.tokenizer("They said so.", return_tensors="pt")
    torch.testing.assert_close(model(**text).logits, plain(**text).logits)
    assert not torch.allclose(model(**text).logits, base(**text).logits)
    result = invoke("info", repo_id, "--base", base_id)
    assert result.exit_code == 0, result.stderr
    api.create_repo(base_id)  # which ends the redirection
    with pytest.raises(BaseModelError, match=rf"{base_id} could not be loaded(.|\n)*`base_model=`.*--base"):
        GradiendModel.from_pretrained(repo_id, strength=0.5, cache_dir=tmp_path / "cache-2")


@pytest.mark.parametrize("token", [False, TOKENS.bob], ids=["nobody", "somebody"])
def test_a_gated_base_says_so_and_names_option_and_argument(
    api: HfApi, repo_id: str, masked_path: Path, tmp_path: Path, token: str | bool
) -> None:
    base_id = upload(api, masked_path, f"{repo_id}-base")
    api.update_repo_settings(base_id, gated="manual")
    base = load_base_model(masked_path)
    direction = random_direction(base, "sparse", share=0.01)
    upload(api, save(tmp_path / "a", direction, base, base_model_name_or_path=base_id), repo_id)
    with pytest.raises(BaseModelError) as refused:
        GradiendModel.from_pretrained(repo_id, strength=0.0, token=token, cache_dir=tmp_path / "cache")
    said = str(refused.value)
    assert base_id in said and "gated" in said and "`base_model=`" in said and "--base" in said and "token=" in said


def test_a_private_repository_leads_on_nobody_who_may_not_see_it(api: HfApi, repo_id: str, tmp_path: Path) -> None:
    api.create_repo(repo_id, private=True)
    api.move_repo(repo_id, f"{repo_id}-2")
    with pytest.raises(ArtifactNotFoundError, match="it does not exist, or it is private"):
        resolve_folder(repo_id, token=False, cache_dir=tmp_path)


def test_a_push_to_a_former_name_goes_to_the_present_one(
    api: HfApi, repo_id: str, direction_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_folder(direction_folder, repo_id)
    api.move_repo(repo_id, f"{repo_id}-2")
    report = json.loads((direction_folder / REPORT_FILE).read_text())
    (direction_folder / REPORT_FILE).write_text(json.dumps(report | {"steps": 7}))
    commit = publish_folder(direction_folder, repo_id)
    assert f"{repo_id} is called {repo_id}-2 now" in caplog.text
    assert api.repo_info(f"{repo_id}-2").sha == commit.oid and api.repo_info(repo_id).id == f"{repo_id}-2"


def test_reports_of_a_former_name_count(api: HfApi, published: str, tmp_path: Path) -> None:  # noqa: F811
    add(published, "reports/before.json", report_of(published))
    present = f"{published}-2"
    api.move_repo(published, present)
    add(present, "reports/after.json", report_of(present))
    add(present, "reports/other.json", report_of(present, direction="us/another"))
    for name in (published, present):
        found = measured(name)
        assert {one.file for one in found.reports} == {"reports/before.json", "reports/after.json"}
        (problem,) = found.problems
        assert "report of us/another" in problem
    (tmp_path / "carols.json").write_bytes(report_of(present))
    proposal = ReportProposal(tmp_path / "carols.json", published, token=TOKENS.carol)
    proposal.check()
    assert present in (proposal.send().pr_url or "")
    path = hf_hub_download(present, "reports/carols.json", revision="refs/pr/4")
    assert Path(path).read_bytes() == (tmp_path / "carols.json").read_bytes()
    assert re.search("gradiend-hub refresh", api.list_repo_commits(present, revision="refs/pr/4")[0].message)
