"""A base model that has a LoRA: directions are learned, measured, saved and applied beside it, under plain names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.base_model import load_base_model, original_parameters
from gradiend_hub.errors import ConfigError
from gradiend_hub.model import GradiendModel
from gradiend_hub.scope import select_parameters
from tests.adapter.support import OWN_LOADER_WORKS, bits, config_for, edited, random_direction, same_bits
from tests.models import build, output
from tests.training.support import arguments, trainer_of

LORA = LoraConfig(target_modules=["query", "value"], init_lora_weights=False)


def with_lora(base: nn.Module, kind: str) -> nn.Module:
    """A copy of the base with a LoRA: of PEFT, or of transformers itself."""
    torch.manual_seed(0)
    model = copy.deepcopy(base)
    if kind == "peft":
        return get_peft_model(model, copy.deepcopy(LORA)).get_base_model().eval()
    if not OWN_LOADER_WORKS:
        pytest.skip("this transformers wants another PEFT for a LoRA of its own")
    model.add_adapter(copy.deepcopy(LORA))
    return model.eval()


def without_lora(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}


@pytest.mark.parametrize("kind", ["peft", "transformers"])
def test_a_direction_beside_a_lora(kind: str) -> None:
    base = build("bert")
    direction = random_direction(base)
    wrapped, reference = with_lora(base, kind), with_lora(edited(base, [(direction, 1.0, 1.0)]), kind)
    assert list(select_parameters(wrapped, scope="*")) == list(select_parameters(base, scope="*"))
    assert original_parameters(wrapped).keys() == original_parameters(base).keys()
    configs, before, plain = wrapped.peft_config, bits(wrapped), output(wrapped, "bert")
    model = GradiendModel.from_direction(wrapped, direction, config_for(direction), strength=0.0)
    assert torch.equal(output(model, "bert"), plain)
    assert list(model.peft_config) == ["default"]
    assert type(configs["default"]) is LoraConfig  # PEFT would write ours in its place
    model.set_strength(1.0)
    assert torch.equal(output(model, "bert"), output(reference, "bert"))
    with model.disable_adapter():  # the base model is the one with the LoRA
        assert torch.equal(output(model, "bert"), plain)
    model.unmerge_adapter()
    for _ in range(3):
        assert torch.equal(output(model, "bert"), output(reference, "bert"))
    model.merge_adapter()
    assert torch.equal(output(model, "bert"), output(reference, "bert"))
    assert same_bits(bits(model.unload()), before)
    assert wrapped.peft_config is configs
    assert torch.equal(output(wrapped, "bert"), plain)


def test_a_peft_model_is_refused_at_once(tmp_path: Path, masked_path: Path, pronouns: Any) -> None:
    lora = get_peft_model(load_base_model(masked_path), LORA)
    with pytest.raises(ConfigError, match="get_base_model"):
        trainer_of(lora, tmp_path, pronouns)
    with pytest.raises(ConfigError, match="get_base_model"):
        select_parameters(lora)


def test_the_whole_way(tmp_path: Path, masked_path: Path, pronouns: Any) -> None:
    """Three steps, measured and saved, then loaded onto the plain base and onto the one with the LoRA."""
    base = load_base_model(masked_path)
    wrapped = with_lora(base, "transformers")
    before = bits(wrapped)
    options = {"args": arguments(tmp_path, max_steps=3), "scope": "*layer.0.attention.self.*"}
    few = {split: pronouns[split].select(range(8)) for split in ("train", "validation")}
    options |= {"train_dataset": few["train"], "eval_dataset": few["validation"]}
    trainer = trainer_of(wrapped, tmp_path, pronouns, **options)
    trainer.train()
    assert same_bits(bits(wrapped), before)
    assert trainer.evaluate()
    trainer.save_model()
    config = GradiendConfig.from_pretrained(str(tmp_path))
    assert config.parameters and not any("base_layer" in name or "lora" in name for name in config.parameters)
    on_plain = GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base), strength=1.0)
    on_lora = GradiendModel.from_pretrained(tmp_path, with_lora(base, "peft"), strength=1.0)
    assert same_bits(without_lora(bits(on_lora)), bits(on_plain))
    assert not same_bits(bits(on_plain), bits(base))
