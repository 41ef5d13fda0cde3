"""`GradiendModel`: loading, strengths, receipts, several directions, saving, pushing, and every mistake of a user."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import nn

from gradiend_hub.adapter import gradiend_layers
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, ENCODER_FILE, REPORT_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import base_commit
from gradiend_hub.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    BaseModelError,
    BaseModelMismatchError,
    ConfigError,
    EditError,
    HubPushError,
)
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, config_for, edited, random_direction, same_bits, save
from tests.models import build, inputs, output


@pytest.fixture
def base() -> nn.Module:
    return build("bert")


@pytest.fixture
def stored_base(tmp_path: Path, base: nn.Module) -> Path:
    base.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def in_memory(base: nn.Module, strength: float = 1.0, **arguments: Any) -> GradiendModel:
    direction = random_direction(base)
    return GradiendModel.from_direction(base, direction, config_for(direction), strength=strength, **arguments)


# -------------------------------------------------------------------------------------------------------- base model


def test_base_model_by_record_by_path_and_as_an_object(base: nn.Module, stored_base: Path, tmp_path: Path) -> None:
    direction = random_direction(base)
    named = save(tmp_path / "a", direction, base, base_model_name_or_path=str(stored_base))
    unnamed = save(tmp_path / "b", direction, base)
    expected = output(edited(base, [(direction, 1.0, 1.0)]), "bert")
    for model in (
        GradiendModel.from_pretrained(named),
        GradiendModel.from_pretrained(str(unnamed), str(stored_base)),
        GradiendModel.from_pretrained(unnamed, stored_base),
        GradiendModel.from_pretrained(unnamed, copy.deepcopy(base)),
    ):
        assert torch.equal(output(model, "bert"), expected)
        assert not model.training
    with pytest.raises(BaseModelError, match="names no base model"):
        GradiendModel.from_pretrained(unnamed)
    with pytest.raises(ConfigError, match="dtype"):
        GradiendModel.from_pretrained(unnamed, base, dtype=torch.float16)


def test_another_architecture_is_refused_before_it_is_built(
    base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would load what fits by name and fill the rest with random numbers."""
    build("gpt2").save_pretrained(tmp_path / "gpt2")
    folder = save(tmp_path / "a", random_direction(base), base)
    monkeypatch.setattr(type(base), "from_pretrained", lambda *_, **__: pytest.fail("a model was built"))
    with pytest.raises(BaseModelMismatchError, match=r"learned on a bert model.* is a gpt2 model"):
        GradiendModel.from_pretrained(folder, tmp_path / "gpt2")


def test_a_part_of_a_composite_checkpoint_is_accepted(tmp_path: Path) -> None:
    """The text model of a CLIP checkpoint has another model type than the checkpoint."""
    text = build("clip_text")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4, "projection_dim": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text.config.to_dict(), vision_config=vision, projection_dim=8)
    whole = transformers.CLIPModel(config)
    whole.save_pretrained(tmp_path / "clip")
    loaded = type(text).from_pretrained(tmp_path / "clip").eval()
    direction = random_direction(loaded)
    model = GradiendModel.from_pretrained(save(tmp_path / "a", direction, loaded), tmp_path / "clip")
    assert torch.equal(output(model, "clip_text"), output(edited(loaded, [(direction, 1.0, 1.0)]), "clip_text"))


@pytest.mark.parametrize(
    "name", ["os", "system", "AutoModel.from_pretrained", "pipeline", "__doc__", "BertConfig", "", "Nope"]
)
def test_only_model_classes_of_transformers(stored_base: Path, base: nn.Module, tmp_path: Path, name: str) -> None:
    """A configuration cannot name code."""
    mapping = {"base_model_class": name, "parent_library": "os"}
    folder = save(tmp_path / "a", random_direction(base), auto_mapping=mapping)
    with pytest.raises(BaseModelError, match="model class"):
        GradiendModel.from_pretrained(folder, stored_base)


def test_base_model_that_is_not_there(base: nn.Module, tmp_path: Path) -> None:
    folder = save(tmp_path / "a", random_direction(base), base, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(BaseModelError, match="gone could not be loaded"):
        GradiendModel.from_pretrained(folder)


def test_recorded_commit_is_used(hub: object, repo_id: str, base: nn.Module, tmp_path: Path) -> None:
    """The base model's repository moves on; the direction still finds the commit that it was learned on."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id)
    base.save_pretrained(tmp_path / "base")
    api.upload_folder(repo_id=repo_id, folder_path=tmp_path / "base")
    learned_on = type(base).from_pretrained(repo_id)
    assert base_commit(learned_on)
    direction = random_direction(learned_on)
    model = GradiendModel.from_direction(learned_on, direction, config_for(direction), strength=1.0)
    model.save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["revision"] == model.active_peft_config.revision
    build("bert", seed=5).save_pretrained(tmp_path / "other")
    api.upload_folder(repo_id=repo_id, folder_path=tmp_path / "other")
    again = GradiendModel.from_pretrained(tmp_path / "a")
    assert same_bits(bits(again), bits(model))
    with pytest.raises(BaseModelMismatchError, match="not the base model"):
        GradiendModel.from_pretrained(tmp_path / "a", type(base).from_pretrained(repo_id))


def test_identity_of_the_base_model(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    folder = save(tmp_path / "a", direction)
    stranger, relative = build("bert", seed=9), copy.deepcopy(base)
    with torch.no_grad():
        for parameter in relative.parameters():
            parameter.mul_(1.01)
    before = bits(stranger), bits(relative)
    with pytest.raises(BaseModelMismatchError, match=r"not the base model.*differ by"):
        GradiendModel.from_pretrained(folder, stranger, allow_related=True)
    with pytest.raises(BaseModelMismatchError, match=r"relative.*differ by 0\.01.*allow_related=True"):
        GradiendModel.from_pretrained(folder, relative)
    assert same_bits(bits(stranger), before[0])
    assert same_bits(bits(relative), before[1])
    with pytest.warns(UserWarning, match="relative"):
        model = GradiendModel.from_pretrained(folder, relative, allow_related=True)
    assert model.strength == 1.0
    GradiendModel.from_pretrained(folder, copy.deepcopy(base).half())


def test_no_direction_there(tmp_path: Path, base: nn.Module) -> None:
    with pytest.raises(ArtifactNotFoundError):
        GradiendModel.from_pretrained(tmp_path, base)
    with pytest.raises(ArtifactNotFoundError):
        GradiendModel.from_pretrained(tmp_path / "nowhere", base)
    (tmp_path / CONFIG_FILE).write_text("{}")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(ArtifactError, match="parameters"):
        GradiendModel.from_pretrained(tmp_path, base)


# ---------------------------------------------------------------------------------------------------------- strength


@pytest.mark.parametrize("strength", [math.nan, math.inf, "1", None, True, 10**400])
def test_strength_must_be_a_number(base: nn.Module, strength: Any) -> None:
    model = in_memory(base)
    before = bits(model)
    for call in (model.set_strength, lambda value: model.set_strength({"default": value})):
        with pytest.raises(ConfigError, match="finite number"):
            call(strength)
    assert same_bits(bits(model), before)
    assert model.strength == 1.0


@pytest.mark.filterwarnings("ignore:At strength .* times as large as the weights")
def test_strength_from_the_configuration_or_the_caller(base: nn.Module, tmp_path: Path) -> None:
    folder = save(tmp_path, random_direction(base), strength=0.3)
    assert GradiendModel.from_pretrained(folder, copy.deepcopy(base)).strength == 0.3
    assert GradiendModel.from_pretrained(folder, copy.deepcopy(base), strength=-2.0).strength == -2.0


def test_feature_factor(base: nn.Module) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_direction(copy.deepcopy(base), direction, config_for(direction))
    model.set_strength(2.0, feature_factor=0.0)
    assert same_bits(bits(model), bits(edited(base, [(direction, 0.0, 2.0)])))
    with model.strength_at(1.0, feature_factor=0.5):
        assert same_bits(bits(model), bits(edited(base, [(direction, 0.5, 1.0)])))
    assert same_bits(bits(model), bits(edited(base, [(direction, 0.0, 2.0)])))
    with pytest.raises(ConfigError):
        model.set_strength(1.0, feature_factor=math.nan)


def test_strength_at_restores_after_an_error(base: nn.Module) -> None:
    model = in_memory(base)
    before = bits(model)
    with pytest.raises(ZeroDivisionError), model.strength_at(-3.0):
        assert model.strength == -3.0
        1 / 0  # noqa: B018
    assert model.strength == 1.0
    assert same_bits(bits(model), before)


def test_an_edit_that_changes_nothing(base: nn.Module) -> None:
    direction = 0.0 * random_direction(base)
    before = bits(base)
    with pytest.raises(EditError, match="no weight changes"):
        GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0)
    assert same_bits(bits(base), before)
    assert not any(gradiend_layers(base))
    GradiendModel.from_direction(base, direction, config_for(direction), strength=0.0)


def test_an_edit_beyond_the_type(base: nn.Module) -> None:
    model = in_memory(base.half())
    before = bits(model)
    with pytest.raises(EditError, match="smaller strength"):
        model.set_strength(1e8)
    assert same_bits(bits(model), before)
    assert model.strength == 1.0


def test_positive_strength_means_the_first_class_for_every_source_and_target() -> None:
    """A model of one logit: the decoder as training leaves it, for every choice of gradients.

    θ is the logit of the first class, so g(class) = ∂L/∂θ is negative for the first and positive for the second class.
    The decoder answers h = +1 (a first-class source) with the mean target of the rows that have such a source.
    """
    gradient = {+1: -0.5, -1: 0.5}
    for source in ("alternative", "factual", "diff"):
        for target in ("diff", "factual", "alternative"):
            answers = {}
            for label in (+1, -1):  # class of the token whose gradient is the source
                factual = -label if source == "alternative" else label
                parts = {"factual": gradient[factual], "alternative": gradient[-factual]}
                answers[label] = {**parts, "diff": parts["factual"] - parts["alternative"]}[target]
            weight = (answers[+1] - answers[-1]) / 2
            net = nn.Linear(1, 1, bias=False)
            direction = Direction({"weight": ParameterDirection((1, 1), torch.tensor([weight]))})
            config = GradiendConfig(feature_classes=["first", "second"], source=source, target=target)
            start = net.weight.item()
            model = GradiendModel.from_direction(net, direction, config)
            for strength in (1.0, -1.0):
                model.set_strength(strength)
                moved = net.weight.item() - start
                # t = g_f - g_a is *added*; the other targets are gradients to descend or ascend
                assert math.copysign(1, moved) == strength, (source, target)


# ----------------------------------------------------------------------------------------------------------- receipts


@pytest.mark.parametrize("merged", [True, False])
def test_receipt(base: nn.Module, merged: bool) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_direction(copy.deepcopy(base), direction, config_for(direction), strength=0.5)
    if not merged:
        model.unmerge_adapter()
    receipt = model.receipt
    weights = torch.cat([p.detach().flatten() for p in base.parameters()])
    assert receipt.tensors == len(direction.parameters)
    deltas = [part.dense(part.delta(0.5, 0.5)) for part in direction.parameters.values()]
    assert receipt.entries == sum(int(delta.count_nonzero()) for delta in deltas)
    assert receipt.relative_norm == pytest.approx(direction.norm(0.5, 0.5) / float(weights.norm()), rel=1e-4)
    assert receipt.swallowed == 0.0
    names = set(receipt.by_layer)
    assert {"bert.encoder.layer.0", "bert.encoder.layer.1", "bert.embeddings.word_embeddings"} <= names
    layer = [name for name in direction.parameters if name.startswith("bert.encoder.layer.0.")]
    part = Direction({name: direction.parameters[name] for name in layer}).norm(0.5, 0.5)
    norm = torch.cat([base.get_parameter(name).detach().flatten() for name in layer]).norm()
    assert receipt.by_layer["bert.encoder.layer.0"] == pytest.approx(part / float(norm), rel=1e-4)
    model.set_strength(0.0)
    assert (model.receipt.tensors, model.receipt.entries, model.receipt.relative_norm) == (0, 0, 0.0)


def test_receipt_tells_what_a_coarse_type_swallows(base: nn.Module) -> None:
    half = copy.deepcopy(base).to(torch.bfloat16)
    direction = random_direction(half, "dense", bias=False)
    shares = []
    for strength in (10.0, 0.1, 0.001):
        model = GradiendModel.from_direction(half, direction, config_for(direction), strength=strength)
        target = edited(model.unload(), [(direction, strength, strength)])
        pairs = [(half.get_parameter(name), target.get_parameter(name)) for name in direction.parameters]
        same = sum(int((old == new).sum()) for old, new in pairs)
        model = GradiendModel.from_direction(half, direction, config_for(direction), strength=strength)
        shares.append(model.receipt.swallowed)
        assert shares[-1] == pytest.approx(same / direction.entries)
        model.unload()
    assert shares == sorted(shares)
    assert shares[0] < 0.05 < 0.5 < shares[-1]


# ------------------------------------------------------------------------------------------------ several directions


def test_several_directions(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    save(tmp_path / "b", second, strength=0.5)
    model = GradiendModel.from_direction(copy.deepcopy(base), first, config_for(first), strength=1.0, adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    assert model.strengths == {"a": 1.0}
    assert same_bits(bits(model), bits(edited(base, [(first, 1.0, 1.0)])))
    model.set_strength({"b": -0.5})
    assert model.strengths == {"a": 1.0, "b": -0.5}
    assert same_bits(bits(model), bits(edited(base, [(first, 1.0, 1.0), (second, -0.5, 0.5)])))
    with pytest.raises(ConfigError, match="2 directions are active"):
        _ = model.strength
    with model.disable_adapter():
        assert same_bits(bits(model), bits(base))
    model.delete_adapter("a")
    assert model.strengths == {"b": -0.5}
    assert same_bits(bits(model), bits(edited(base, [(second, -0.5, 0.5)])))
    for call in (
        lambda: model.delete_adapter("b"),
        lambda: model.delete_adapter("x"),
        lambda: model.set_adapter("x"),
        lambda: model.set_strength({"x": 1.0}),
        lambda: model.load_adapter(tmp_path / "b", "b"),
        lambda: model.save_pretrained(tmp_path / "c", "x"),
        lambda: model.swap(tmp_path / "b", "x"),
    ):
        with pytest.raises(ConfigError):
            call()
    assert same_bits(bits(model.unload()), bits(base))


def test_swap(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, "sparse", seed=2)
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    model = GradiendModel.from_pretrained(tmp_path / "a", copy.deepcopy(base), strength=0.5)
    model.swap(tmp_path / "b")
    assert list(model.peft_config) == ["default"]
    assert model.strength == 0.5
    assert same_bits(bits(model), bits(edited(base, [(second, 0.5, 0.5)])))
    assert all(
        torch.equal(part.encoder, second.parameters[n].encoder) for n, part in model.direction.parameters.items()
    )
    model.swap(tmp_path / "a", strength=-1.0)
    assert same_bits(bits(model), bits(edited(base, [(first, -1.0, 1.0)])))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    (tmp_path / "c" / WEIGHTS_FILE).write_bytes(b"")
    with pytest.raises(ArtifactError):
        model.swap(tmp_path / "c")
    assert same_bits(bits(model), bits(edited(base, [(first, -1.0, 1.0)])))
    assert same_bits(bits(model.unload()), bits(base))


# ------------------------------------------------------------------------------------------------------------- saving


def test_saving_keeps_everything(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    folder = save(tmp_path / "a", direction, base, strength=0.4, safe_band=[-1.0, 1.0])
    for name in (REPORT_FILE, "README.md"):
        (folder / name).write_text(name)
    model = GradiendModel.from_pretrained(folder, base, strength=1.5)
    model.save_pretrained(tmp_path / "b")
    for name in (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE, REPORT_FILE, "README.md"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    config = GradiendConfig.from_pretrained(str(tmp_path / "b"))
    assert (config.strength, config.safe_band) == (0.4, [-1.0, 1.0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        model.save_pretrained(tmp_path / "file")


def test_encoder_is_read_only_when_asked(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_pretrained(save(tmp_path, direction), base)
    assert not model._directions["default"].has_encoder
    assert model.direction.has_encoder
    assert model.direction.encoder_bias == 0.25


def test_push_and_load(hub: object, repo_id: str, base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_pretrained(save(tmp_path, direction), base, strength=0.5)
    with pytest.raises(HubPushError, match="unmeasured"):
        model.push_to_hub(repo_id)
    model.push_to_hub(repo_id, allow_unmeasured=True)
    again = GradiendModel.from_pretrained(repo_id, build("bert"), strength=0.5)
    assert same_bits(bits(again), bits(model))
    assert torch.equal(output(again, "bert"), output(model, "bert"))
    assert again.direction.has_encoder


@pytest.mark.parametrize(("name", "options", "error"), [("a//b", {}, HubPushError), ("a/b", {"tags": 1}, TypeError)])
def test_a_refused_push_leaves_no_folder(
    name: str, options: Any, error: type[Exception], base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(error) as found:
        in_memory(base, 0.5).push_to_hub(name, **options)
    assert not list(tmp_path.iterdir()) and str(tmp_path) not in str(found.value)


def test_an_offline_push_leaves_no_folder(base: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubPushError, match="offline"):
        in_memory(base, 0.5).push_to_hub("a/b")
    assert not list(tmp_path.iterdir())


def test_merged_model_is_a_plain_one(base: nn.Module, tmp_path: Path) -> None:
    model = in_memory(copy.deepcopy(base), 0.8)
    expected = output(model, "bert")
    merged = model.merge_and_unload()
    assert type(merged) is type(base)
    assert not any(gradiend_layers(merged))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in merged.modules())
    merged.save_pretrained(tmp_path)
    assert torch.equal(output(type(base).from_pretrained(tmp_path), "bert"), expected)


def test_merged_state_has_no_hooks(base: nn.Module) -> None:
    model = in_memory(base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    model.unmerge_adapter()
    assert any(module._forward_pre_hooks for module in base.modules())


def test_offloaded_weights_are_refused(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    with torch.device("meta"):
        empty = type(base)(base.config)
    with pytest.raises(BaseModelError, match="offloaded"):
        GradiendModel.from_direction(empty, direction, config_for(direction), strength=1.0)
    assert not any(gradiend_layers(empty))


def test_forward_with_labels(base: nn.Module) -> None:
    loss = in_memory(base)(**inputs("bert"), labels=inputs("bert")["input_ids"]).loss
    assert math.isfinite(float(loss))
