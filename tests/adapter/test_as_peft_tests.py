"""The checks that PEFT's and transformers' own tests make of every method, made of this one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradiend_hub.adapter import gradiend_layers
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.low_rank import Factors
from gradiend_hub.errors import ConfigError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import OWN_LOADER_WORKS, bits, config_for, edited, random_direction, same_bits, save
from tests.models import build, output

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture
def base() -> nn.Module:
    return build("bert")


@pytest.fixture
def config() -> GradiendConfig:
    return GradiendConfig(scope=["*query.weight", "*LayerNorm*"])


@pytest.mark.parametrize("mode", [True, False])
def test_training_mode_reaches_every_module(base: nn.Module, config: GradiendConfig, mode: bool) -> None:
    model = get_peft_model(base, config)
    model.train(mode)
    assert {module.training for module in model.modules()} == {mode}
    model.train(not mode)
    assert {module.training for module in model.modules()} == {not mode}


def test_evaluation_mode_of_loaded_models(base: nn.Module, tmp_path: Path) -> None:
    folder = save(tmp_path, random_direction(base))
    models = [PeftModel.from_pretrained(copy.deepcopy(base), folder), GradiendModel.from_pretrained(folder, base)]
    if OWN_LOADER_WORKS:
        models.append(copy.deepcopy(base))
        models[-1].load_adapter(folder)
    for model in models:
        model.eval()
        assert not any(module.training for module in model.modules())


def test_sizes_of_the_owner_are_exposed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.embedding, self.conv = nn.Linear(3, 4), nn.Embedding(5, 6), nn.Conv2d(2, 7, 3)
            self.turned, self.norm = Conv1D(8, 3), nn.LayerNorm(9)

    model = get_peft_model(Net(), GradiendConfig(scope="*weight"))
    sizes = {layer.site.name: (layer.in_features, layer.out_features) for layer in gradiend_layers(model)}
    assert sizes == {
        "linear.weight": (3, 4), "embedding.weight": (5, 6), "conv.weight": (2, 7), "turned.weight": (3, 8),
        "norm.weight": (None, None),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [True, False])
def test_type_of_the_values(base: nn.Module, tmp_path: Path, dtype: torch.dtype, autocast: bool) -> None:
    """fp32, or the base model's type if the caller asks for that; W + σΔ of those values either way."""
    expected = torch.float32 if autocast else dtype
    base = base.to(dtype)
    fresh = get_peft_model(copy.deepcopy(base), GradiendConfig(scope="*query.weight"), autocast_adapter_dtype=autocast)
    fresh.add_adapter("other", GradiendConfig(scope="*key.weight"), autocast_adapter_dtype=autocast)
    direction = random_direction(base)
    folder = save(tmp_path, direction)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder, autocast_adapter_dtype=autocast)
    loaded.load_adapter(folder, "other", autocast_adapter_dtype=autocast)
    sparing = PeftModel.from_pretrained(
        copy.deepcopy(base), folder, autocast_adapter_dtype=autocast, low_cpu_mem_usage=True
    )
    for model in (fresh, loaded, sparing):
        dtypes = {p.dtype for name, p in model.named_parameters() if "gradiend_" in name}
        assert dtypes == {expected}
        assert all(
            not b.is_floating_point() for layer in gradiend_layers(model) for b in layer.gradiend_indices.values()
        )
    assert {p.requires_grad for name, p in fresh.named_parameters() if "weight.default" in name} == {True}
    for part in direction.parameters.values():
        for values in (part.decoder, part.decoder_bias):
            for tensor in (values.b, values.a) if isinstance(values, Factors) else (values,):
                tensor.copy_(tensor.to(expected))
    reference = output(edited(base, [(direction, 1.0, 1.0)]).requires_grad_(False), "bert", dtype)
    for model in (loaded, sparing):
        assert torch.equal(output(model, "bert", dtype), reference)


def test_our_own_model_keeps_exact_values_on_any_base(base: nn.Module, tmp_path: Path) -> None:
    model = GradiendModel.from_pretrained(save(tmp_path, random_direction(base)), base.to(torch.bfloat16))
    assert {p.dtype for name, p in model.named_parameters() if "gradiend_" in name} == {torch.float32}


def test_state_dict_round_trip(base: nn.Module, tmp_path: Path) -> None:
    folder = save(tmp_path, random_direction(base))
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    state = get_peft_model_state_dict(model)
    assert not any("default" in key for key in state)
    other = get_peft_model(copy.deepcopy(base), GradiendConfig.from_pretrained(str(folder)))
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert torch.equal(output(other, "bert"), output(model, "bert"))
    assert get_peft_model_state_dict(other).keys() == state.keys()


def test_configuration_round_trip(base: nn.Module, tmp_path: Path, config: GradiendConfig) -> None:
    model = get_peft_model(base, config)
    before = config.to_dict()
    model.save_pretrained(tmp_path)
    assert config.to_dict() == before
    found = PeftConfig.from_pretrained(tmp_path)
    assert type(found) is GradiendConfig
    assert found.parameters == config.parameters
    assert found.inference_mode and not config.inference_mode
    assert "origin" not in found.to_dict()
    assert not any(key.startswith("_") for key in found.to_dict())


def test_names_in_the_configuration_are_those_of_the_artifact(base: nn.Module, tmp_path: Path) -> None:
    """A model may call a parameter otherwise, by a prefix; that is the model's matter."""
    backbone = random_direction(base.bert)
    folder = save(tmp_path, backbone)
    names = set(backbone.parameters)
    plain = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    own = GradiendModel.from_pretrained(folder, copy.deepcopy(base))
    for model in (plain, own):
        assert set(model.peft_config["default"].parameters) == names
    assert set(own.direction.parameters) == {f"bert.{name}" for name in names}
    own.save_pretrained(tmp_path / "again")
    assert set(GradiendConfig.from_pretrained(str(tmp_path / "again")).parameters) == names


def test_status(base: nn.Module, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(base, save(tmp_path, random_direction(base)))
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    assert status.requires_grad == {"default": False}
    assert status.num_adapter_layers == len(list(gradiend_layers(model)))
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
    assert {layer.name.rpartition(".")[2] for layer in model.get_layer_status()} >= {"rewrite_weight", "rewrite_bias"}


def test_set_adapter_and_what_learns(base: nn.Module, config: GradiendConfig) -> None:
    model = get_peft_model(base, config, adapter_name="one")
    model.add_adapter("two", copy.deepcopy(config))

    def learning() -> set[str]:
        return {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}

    assert learning() == {"one"}
    model.set_adapter("two")
    assert learning() == {"two"}
    model.set_adapter("one", inference_mode=True)
    assert learning() == set()
    model.set_requires_grad("two")
    assert learning() == {"two"}


def test_deleting_the_active_and_an_inactive_adapter(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    model = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path / "a", first), adapter_name="one")
    model.load_adapter(save(tmp_path / "b", second), "two")
    model.load_adapter(tmp_path / "b", "three")
    model.delete_adapter("three")
    assert torch.equal(output(model, "bert"), output(edited(base, [(first, 1, 1)]), "bert"))
    with pytest.warns(UserWarning, match="now deleted"):
        model.delete_adapter("one")
    assert model.active_adapters == ["two"]
    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        for name in (*layer.adapter_layer_names, *layer.other_param_names):
            assert set(getattr(layer, name)) <= {"two"}
    assert torch.equal(output(model, "bert"), output(edited(base, [(second, 1, 1)]), "bert"))


# ---------------------------------------------------------------------------------------------- our model's own surface


def two(base: nn.Module) -> GradiendModel:
    first, second = random_direction(base, seed=1), random_direction(base, "sparse", seed=2)
    model = GradiendModel.from_direction(copy.deepcopy(base), first, config_for(first), strength=1.0)
    model.add_direction("two", second, config_for(second))
    return model


def test_selected_adapters_are_saved_as_peft_does(base: nn.Module, tmp_path: Path) -> None:
    model = two(base)
    model.save_pretrained(tmp_path / "both", selected_adapters=["default", "two"])
    model.save_pretrained(tmp_path / "second", selected_adapters=["two"])
    assert not (tmp_path / "second" / "adapter_config.json").exists()
    for folder, subfolder, name in (("both", None, "default"), ("both", "two", "two"), ("second", "two", "two")):
        again = GradiendModel.from_pretrained(tmp_path / folder, copy.deepcopy(base), subfolder=subfolder, strength=1.0)
        model.set_adapter(name)
        assert same_bits(bits(again), bits(model))
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    model.save_pretrained(tmp_path / "one", "two", safe_serialization=True, save_embedding_layers="auto")
    for options in ({"safe_serialization": False}, {"push_to_hub": True}, {"max_shard_size": "1GB"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            model.save_pretrained(tmp_path / "x", **options)
    with pytest.raises(ConfigError, match="not both"):
        model.save_pretrained(tmp_path / "x", "two", selected_adapters=["two"])
    with pytest.raises(ConfigError, match="no direction 'nope'"):
        model.save_pretrained(tmp_path / "x", selected_adapters=["two", "nope"])
    assert not (tmp_path / "x").exists()


def test_directions_of_our_model_do_not_learn(base: nn.Module) -> None:
    model = two(base)
    model.set_adapter("two", inference_mode=True)
    with pytest.raises(ConfigError, match="do not learn"):
        model.set_adapter("default", inference_mode=False)
    assert model.active_adapters == ["two"]


def test_merge_and_unload_at_a_strength(base: nn.Module) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_direction(copy.deepcopy(base), direction, config_for(direction), strength=1.0)
    merged = model.merge_and_unload(strength=-2)
    assert same_bits(bits(merged), bits(edited(base, [(direction, -2.0, 2.0)])))
    assert "unloaded" in repr(model)


def test_a_device_may_be_named(base: nn.Module, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "base")
    direction = random_direction(base)
    folder = save(tmp_path / "a", direction, base, base_model_name_or_path=str(tmp_path / "base"))
    model = GradiendModel.from_pretrained(folder, device="cpu", strength=0.5)
    assert model.device == torch.device("cpu")
    assert same_bits(bits(model), bits(edited(base, [(direction, 0.5, 0.5)])))
    with pytest.raises(ConfigError, match="object already"):
        GradiendModel.from_pretrained(folder, base, device="cpu")


def test_short_representation(base: nn.Module) -> None:
    text = repr(two(base))
    assert "\n" not in text
    for word in ("BertForMaskedLM", "'default': '3SG/3PL'", "'two'", "strengths={'default': 1.0}", "merged"):
        assert word in text
