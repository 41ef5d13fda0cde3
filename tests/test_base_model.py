"""Base models by path and by Hub id, and what is no base model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModel, AutoModelForMaskedLM, BertForMaskedLM

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.names import hub_id, shown_name
from gradiend_hub.base_model import base_commit, base_name, load_base_model, load_recorded_base
from gradiend_hub.errors import BaseModelError
from tests.models import build


def test_head_and_type_of_a_bundled_model(masked_path: Path, causal_path: Path) -> None:
    """Stored in bfloat16, computed in float32 where there is no accelerator."""
    for path, name in ((masked_path, "BertForMaskedLM"), (causal_path, "LlamaForCausalLM")):
        model: Any = load_base_model(path)
        assert type(model).__name__ == name
        expected = torch.bfloat16 if torch.accelerator.is_available() else torch.float32
        assert {p.dtype for p in model.parameters()} == {expected}
        assert model.name_or_path == str(path)
        assert not model.training
    assert next(load_base_model(masked_path, dtype=torch.float16).parameters()).dtype == torch.float16


def two_commits(repo_id: str, folder: Path) -> list[str]:
    """Push two models to one repository, of seeds 1 and 2, and return their commits."""
    api = HfApi()
    api.create_repo(repo_id)
    commits = []
    for seed in (1, 2):
        build("bert", seed=seed).save_pretrained(folder / str(seed))
        commits.append(api.upload_folder(repo_id=repo_id, folder_path=folder / str(seed)).oid)
    return commits


def test_by_hub_id_and_revision(hub: object, repo_id: str, tmp_path: Path) -> None:
    commits = two_commits(repo_id, tmp_path)
    first, newest = load_base_model(repo_id, revision=commits[0]), load_base_model(repo_id)
    for model, seed in ((first, 1), (newest, 2)):
        assert all(
            torch.equal(p, q) for p, q in zip(model.parameters(), build("bert", seed=seed).parameters(), strict=True)
        )
    offline = load_base_model(repo_id, local_files_only=True)
    assert all(torch.equal(p, q) for p, q in zip(offline.parameters(), newest.parameters(), strict=True))


def test_the_commit_of_what_was_loaded(hub: object, repo_id: str, tmp_path: Path) -> None:
    """Not that of main in the cache, whoever loaded the model, and whatever else was loaded before or after it."""
    commits = two_commits(repo_id, tmp_path)
    only = BertForMaskedLM.from_pretrained(repo_id, revision=commits[0])
    assert base_commit(only) == commits[0]  # the only one in the cache
    newest = BertForMaskedLM.from_pretrained(repo_id)
    old = BertForMaskedLM.from_pretrained(repo_id, revision=commits[0], dtype=torch.bfloat16)
    assert [base_commit(model) for model in (only, newest, old)] == [commits[0], commits[1], commits[0]]
    ours = [load_base_model(repo_id, revision=revision) for revision in (commits[0], None)]
    elsewhere = load_base_model(repo_id, revision=commits[0], cache_dir=tmp_path / "cache")
    for model in (*ours, elsewhere):
        with torch.no_grad():
            next(model.parameters()).zero_()  # recorded when it was loaded
    assert [base_commit(model) for model in (*ours, elsewhere)] == [commits[0], commits[1], commits[0]]
    with torch.no_grad():
        old.bert.embeddings.word_embeddings.weight.zero_()
    recorded = getattr(old.config, "_commit_hash", None)  # by some releases of transformers
    assert base_commit(old) == recorded  # otherwise of no commit: none is better than a wrong one
    ours[0].save_pretrained(tmp_path / "saved")
    assert "commit" not in (tmp_path / "saved" / "config.json").read_text()


def test_what_is_no_base_model(hub: object, repo_id: str, tmp_path: Path) -> None:
    with pytest.raises(
        BaseModelError, match=r"There is no base model at '.*gone'.*expected a folder with a config.json"
    ):
        load_base_model(tmp_path / "gone")
    with pytest.raises(BaseModelError, match=f"There is no base model at '{repo_id}'"):
        load_base_model(repo_id)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="There is no base model at"):
        load_base_model(tmp_path)
    build("vit").save_pretrained(tmp_path / "vit")
    with pytest.raises(BaseModelError, match=r"a vit checkpoint that AutoModelForCausalLM cannot load"):
        load_base_model(tmp_path / "vit", objective="causal_lm")
    build("llama").save_pretrained(tmp_path / "llama")
    with pytest.raises(BaseModelError, match=r"llama checkpoint that AutoModelForMaskedLM cannot load"):
        load_base_model(tmp_path / "llama", objective="masked_lm")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    build("bert").config.save_pretrained(tmp_path)
    with pytest.raises(
        BaseModelError, match=r"The base model .* has no weights to load: Error no file named model.safetensors"
    ):
        load_base_model(tmp_path)


def test_a_checkpoint_without_its_head_is_refused(masked_path: Path, tmp_path: Path) -> None:
    """transformers would make up a random one."""
    AutoModel.from_pretrained(masked_path).save_pretrained(tmp_path)
    config = GradiendConfig(feature_classes=["a", "b"], auto_mapping={"base_model_class": "BertForMaskedLM"})
    for load in (
        lambda: load_base_model(tmp_path, objective="masked_lm"),
        lambda: load_base_model(tmp_path),
        lambda: load_recorded_base(config, tmp_path),
    ):
        with pytest.raises(BaseModelError, match=r"lacks \d+ parameters of a \w+, which would be random: .*cls\.pred"):
            load()
    tied = build("llama")
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")  # has the shared matrix once
    assert load_base_model(tmp_path / "tied").lm_head.weight is not None


def test_a_relative_folder_is_recorded_as_a_path(
    masked_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models/masked` would be a repository id wherever there is no such folder."""
    folder = shutil.copytree(masked_path, tmp_path / "models" / "masked")
    monkeypatch.chdir(tmp_path)
    own, loaded = load_base_model("models/masked"), AutoModelForMaskedLM.from_pretrained("models/masked")
    assert loaded.name_or_path == "models/masked"
    names = [own.name_or_path, base_name(own), base_name(loaded)]
    monkeypatch.chdir(tmp_path.parent)
    assert names == [str(folder)] * 3
    assert hub_id(names[0]) is None and shown_name(names[0]) == "masked"
