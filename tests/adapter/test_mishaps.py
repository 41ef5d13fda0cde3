"""What goes wrong in practice: two names of one tensor, a Ctrl-C, a cell that is run twice, calls that fail half-way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from gradiend_hub.adapter import gradiend_layers
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.artifact.files import BASE_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.fingerprint import Fingerprint
from gradiend_hub.errors import ArtifactError, BaseModelMismatchError, ConfigError, EditError, GradiendError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import NEEDS_OWN_LOADER, bits, config_for, edited, random_direction, same_bits, save
from tests.models import build, inputs, output

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture
def base() -> nn.Module:
    return build("bert")


def two(base: nn.Module, strength: float = 1.0) -> tuple[GradiendModel, Direction, Direction]:
    """A model with direction "one" at a strength, and "two" inactive."""
    first, second = random_direction(base, seed=1), random_direction(base, "sparse", seed=2)
    model = GradiendModel.from_direction(
        copy.deepcopy(base), first, config_for(first), strength=strength, adapter_name="one"
    )
    model.add_direction("two", second, config_for(second, strength=0.5))
    return model, first, second


def overflowing(direction: Direction) -> Direction:
    """The same with a last tensor that leaves the numbers of fp16 first."""
    name, part = list(direction.parameters.items())[-1]
    return replace(direction, parameters=direction.parameters | {name: replace(part, decoder=1e4 * part.decoder)})


# ------------------------------------------------------------------------------------------------- one tensor, one edit


def test_two_directions_may_call_a_tied_parameter_differently(tmp_path: Path) -> None:
    base = build("gpt2")
    shape = tuple(base.lm_head.weight.shape)
    names = ("transformer.wte.weight", "lm_head.weight")
    fingerprint = Fingerprint.of(dict.fromkeys(names, base.lm_head.weight))
    directions = [
        Direction(
            {n: ParameterDirection(shape, torch.full((shape[0] * shape[1],), 2.0**-7))}, 0.0, fingerprint.only([n])
        )
        for n in names
    ]
    for name, direction in zip("ab", directions, strict=True):
        save(tmp_path / name, direction)
    expected = base.lm_head.weight.detach() + 2.0**-6

    plain = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a", "one")
    plain.load_adapter(tmp_path / "b", "two")
    plain.base_model.set_adapter(["one", "two"])
    before = bits(plain.base_model.model)
    output(plain, "gpt2")
    assert same_bits(bits(plain.base_model.model), before)
    plain.merge_adapter()
    assert torch.equal(plain.base_model.model.lm_head.weight, expected)
    plain.unmerge_adapter()
    assert same_bits(bits(plain.base_model.model), before)

    model = GradiendModel.from_pretrained(tmp_path / "a", copy.deepcopy(base), adapter_name="one")
    model.load_adapter(tmp_path / "b", "two")
    model.set_strength({"one": 1.0, "two": 1.0})
    assert len(model.base_model.layers) == 1
    assert torch.equal(model.get_base_model().lm_head.weight, expected)
    assert same_bits(bits(model.unload()), bits(base))


@NEEDS_OWN_LOADER
def test_a_layer_that_lora_has_wrapped_in_between(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["query"]))  # adds nothing at first
    lora.save_pretrained(tmp_path / "lora")
    model = copy.deepcopy(base)
    for name, folder in (
        ("one", save(tmp_path / "a", first)), ("lora", tmp_path / "lora"), ("two", save(tmp_path / "b", second)),
    ):  # fmt: skip
        model.load_adapter(folder, name)
    assert len(list(gradiend_layers(model))) == len(first.parameters)
    model.set_adapter(["one", "two"])
    for _ in range(2):
        assert torch.equal(output(model, "bert"), output(edited(base, [(first, 1, 1), (second, 1, 1)]), "bert"))
    model.disable_adapters()
    assert torch.equal(output(model, "bert"), output(base, "bert"))


def test_an_interrupted_forward_leaves_the_base_as_it_was(base: nn.Module, tmp_path: Path) -> None:
    """torch runs no hooks after a KeyboardInterrupt, those that always run included."""
    direction = random_direction(base)
    model = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path, direction))
    plain, names = model.base_model.model, set(dict(model.named_parameters()))

    def interrupt(*_: object) -> None:
        assert set(dict(model.named_parameters())) == names
        raise KeyboardInterrupt

    handle = plain.bert.encoder.layer[1].attention.self.query.register_forward_pre_hook(interrupt)
    for run in (lambda: output(model, "bert"), lambda: plain(**inputs("bert"))):  # past PEFT's forward, too
        with pytest.raises(KeyboardInterrupt):
            run()
        model.set_strength("default", 1.0)
        assert same_bits(bits(plain), bits(base))
    handle.remove()
    assert torch.equal(output(model, "bert"), output(edited(base, [(direction, 1, 1)]), "bert"))
    assert torch.equal(output(model.unload(), "bert"), output(base, "bert"))


def test_a_base_model_holds_the_directions_of_one_model(base: nn.Module) -> None:
    """A notebook's cell that is run again would take the edited model for the base."""
    direction = random_direction(base)
    before = bits(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0)
    for again in (base, model):
        with pytest.raises(ConfigError, match=r"unload|get_base_model"):
            GradiendModel.from_direction(again, direction, config_for(direction), strength=1.0)
    assert same_bits(bits(model), bits(edited(build("bert"), [(direction, 1, 1)])))
    assert same_bits(bits(model.unload()), before)
    GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0).unload()


def test_a_second_peft_model_on_one_base_takes_the_first_direction_off(base: nn.Module, tmp_path: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    one, other = random_direction(base, seed=1), random_direction(base, seed=2)
    other = replace(other, parameters={name: other.parameters[name]}, fingerprint=other.fingerprint.only([name]))
    plain = copy.deepcopy(base)
    PeftModel.from_pretrained(plain, save(tmp_path / "a", one)).merge_adapter()
    model = PeftModel.from_pretrained(plain, save(tmp_path / "b", other))
    assert torch.equal(output(model, "bert"), output(edited(base, [(other, 1, 1)]), "bert"))
    assert [layer.site.name for layer in gradiend_layers(plain)] == [name]
    assert same_bits(bits(model.unload()), bits(base))


def test_weights_that_were_changed_under_an_edit_are_not_overwritten(base: nn.Module) -> None:
    model, _, _ = two(base)
    other = copy.deepcopy(base).requires_grad_(False)
    for parameter in other.parameters():
        parameter.add_(1.0)
    twin = copy.deepcopy(model)  # a copy's changes are counted anew
    twin.set_strength(0.25)
    model.get_base_model().load_state_dict(other.state_dict(), strict=False)
    for edit in (lambda: model.set_strength(0.5), lambda: model.set_adapter("two"), model.unload):
        with pytest.raises(EditError, match="changed in place"):
            edit()
        assert model.strengths == {"one": 1.0}
        assert same_bits(bits(model), bits(other))
    assert same_bits(bits(model.merge_and_unload()), bits(other))
    assert same_bits(bits(twin.unload()), bits(base))


# ----------------------------------------------------------------------------------------------- is it the right model?


def test_plain_peft_compares_the_base_model_too(base: nn.Module, tmp_path: Path) -> None:
    folder = save(tmp_path, random_direction(base))
    stranger = build("bert", seed=9)
    before = bits(stranger)
    with pytest.raises(BaseModelMismatchError, match="not the base model"):
        PeftModel.from_pretrained(stranger, folder)
    assert same_bits(bits(stranger), before)
    assert not list(gradiend_layers(stranger))
    relative = copy.deepcopy(base).requires_grad_(False)
    for parameter in relative.parameters():
        parameter.add_(0.01 * parameter.std() * torch.randn_like(parameter))
    with pytest.raises(BaseModelMismatchError, match="allow_related"):
        PeftModel.from_pretrained(relative, folder)


def test_a_weighted_sum_knows_its_base_model(base: nn.Module, tmp_path: Path) -> None:
    model, _, _ = two(base)
    model.set_strength({"two": 1.0})
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "sum")
    model.save_pretrained(tmp_path, "sum")
    GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base))
    with pytest.raises(BaseModelMismatchError):
        GradiendModel.from_pretrained(tmp_path, build("bert", seed=9))


def test_plain_peft_saves_what_ours_reads_under_any_prefix(base: nn.Module, tmp_path: Path) -> None:
    whole = random_direction(base)
    backbone = {name: name.removeprefix("bert.") for name in whole.parameters if name.startswith("bert.")}
    direction = replace(whole, parameters={n: whole.parameters[n] for n in backbone}).renamed(backbone)
    direction = replace(direction, fingerprint=direction.fingerprint.only(direction.parameters))
    PeftModel.from_pretrained(base, save(tmp_path / "a", direction)).save_pretrained(tmp_path / "b")
    for file in (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert GradiendModel.from_pretrained(tmp_path / "b", build("bert")).direction.has_encoder


def test_loading_into_a_name_that_is_taken(base: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """PEFT replaces the values alone: the encoder of the former ones is not saved with them; and a failure costs nothing."""
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    model = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path / "a", first))
    save(tmp_path / "b", second)
    (name, part), *_ = second.parameters.items()
    broken = replace(
        second,
        parameters=second.parameters | {name: replace(part, decoder=torch.full_like(part.decoder, float("nan")))},
    )
    save(tmp_path / "c", broken)
    expected = [output(edited(base, [(d, 1, 1)]), "bert") for d in (first, second)]
    with pytest.raises(ArtifactError):
        model.load_adapter(tmp_path / "c", "default")
    assert torch.equal(output(model, "bert"), expected[0])
    model.load_adapter(tmp_path / "b", "default")
    assert torch.equal(output(model, "bert"), expected[1])
    assert "were replaced" in caplog.text
    model.save_pretrained(tmp_path / "d")
    assert not (tmp_path / "d" / ENCODER_FILE).exists()


# ---------------------------------------------------------------------------------------------------- nothing by silence


def test_a_direction_that_becomes_active_has_its_recommended_strength(base: nn.Module) -> None:
    model, _, second = two(base)
    model.set_adapter("two")
    assert model.strengths == {"two": 0.5}
    assert same_bits(bits(model), bits(edited(base, [(second, 0.5, 0.5)])))


def test_calls_without_an_effect_are_refused(base: nn.Module, tmp_path: Path) -> None:
    model, _, _ = two(base)
    save(tmp_path / "a", random_direction(base))
    for call in (
        lambda: model.set_strength({}),
        lambda: model.merge_adapter(["typo"]),
        lambda: model.base_model.merge_and_unload(adapter_names=["typo"]),
        lambda: model.load_adapter(tmp_path / "a", "c", is_trainable=True),
        lambda: model.load_adapter(tmp_path / "a", "v1.0"),
        lambda: GradiendModel.from_pretrained(base, tmp_path / "a"),
    ):
        with pytest.raises(ConfigError):
            call()
    model.delete_adapter("one")
    output(model, "bert")  # no direction is active
    with pytest.raises(ConfigError, match="active"):
        model.set_strength(1.0)
    model.unload()
    for call in (lambda: model.set_strength({"two": 2.0}), lambda: model.set_adapter("two"), model.merge_adapter):
        with pytest.raises(ConfigError, match="unloaded"):
            call()
    norm = "bert.embeddings.LayerNorm.weight"  # of ones
    faint = Direction(
        {norm: ParameterDirection((len(base.get_parameter(norm)),), torch.full_like(base.get_parameter(norm), 1e-9))}
    )
    plain = PeftModel.from_pretrained(
        build("bert").to(torch.bfloat16), save(tmp_path / "b", faint), allow_unverified_base=True
    )
    with pytest.raises(EditError, match="changes no weight"):
        plain.merge_adapter()
    assert not any(layer.merged for layer in gradiend_layers(plain))


@pytest.mark.parametrize("value", [True, "0.5", float("nan"), None, 1 + 2j, 10**400])
def test_what_is_no_strength(base: nn.Module, tmp_path: Path, value: object) -> None:
    plain = PeftModel.from_pretrained(base, save(tmp_path, random_direction(base)))
    with pytest.raises(ConfigError, match="finite number"):
        plain.base_model.set_strength("default", value)
    assert {layer.strength["default"] for layer in gradiend_layers(plain)} == {1.0}


def test_strengths_of_numpy(base: nn.Module) -> None:
    model, first, _ = two(base)
    for strength in (*np.arange(-1, 1), np.float32(0.5)):
        model.set_strength(strength)
        assert same_bits(bits(model), bits(edited(base, [(first, float(strength), abs(float(strength)))])))


def test_strengths_by_row_leave_other_active_directions_as_they_are(base: nn.Module) -> None:
    model, first, second = two(base)
    model.set_strength({"two": 1.0})
    batch = inputs("bert")
    batch = {"position_ids": torch.arange(batch["input_ids"].shape[1])[None], **batch}
    with torch.inference_mode():
        found = model(**batch, strengths={"two": [-1.0] * len(batch["input_ids"])}).logits
        expected = edited(base, [(first, 1, 1), (second, -1, 1)])(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------- what fails changes nothing


def failures() -> dict[str, Callable[[GradiendModel, Path], object]]:
    return {
        "swap at no strength": lambda model, folder: model.swap(folder / "good", "one", strength=float("nan")),
        "swap for one that overflows": lambda model, folder: model.swap(folder / "big", "one", strength=1e3),
        "swap for one that does nothing": lambda model, folder: model.swap(folder / "zero", "one"),
        "sum with NaN": lambda model, folder: model.add_weighted_adapter(["one", "two"], [1.0, float("nan")], "sum"),
        "sum with a bad name": lambda model, folder: model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "v1.0"),
        "strength that overflows": lambda model, folder: model.set_strength(1e6),
        "activate one that overflows": lambda model, folder: model.set_adapter("big"),
    }


@pytest.mark.parametrize("name", failures())
def test_what_fails_changes_nothing(base: nn.Module, tmp_path: Path, name: str) -> None:
    base = base.half()
    model, first, _ = two(base)
    good, big = random_direction(base, seed=3), overflowing(random_direction(base, seed=4))
    zero = Direction({n: replace(p, decoder=0 * p.decoder, decoder_bias=None) for n, p in good.parameters.items()})
    for folder, direction in (("good", good), ("big", big), ("zero", zero)):
        save(tmp_path / folder, direction)
    model.add_direction("big", big, config_for(big, strength=1e3))
    before, known = bits(model), list(model.peft_config)
    with pytest.raises(GradiendError):
        failures()[name](model, tmp_path)
    assert same_bits(bits(model), before)
    assert list(model.peft_config) == known
    assert model.strengths == {"one": 1.0}
    with model.strength_at({"one": 0.5, "two": 1.0}):
        assert not same_bits(bits(model), before)
    assert same_bits(bits(model), before)
    model.set_strength(-0.5)
    assert same_bits(bits(model), bits(edited(base, [(first, -0.5, 0.5)])))
    assert same_bits(bits(model.unload()), bits(base))


def test_a_strength_that_overflows_is_refused_when_it_is_given(base: nn.Module, tmp_path: Path) -> None:
    """Not when the block of `disable_adapter` ends, or at the next forward."""
    base = base.half()
    big = overflowing(random_direction(base))
    model = GradiendModel.from_direction(copy.deepcopy(base), big, config_for(big), strength=0.01)
    plain = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path, big, strength=0.01))
    with model.disable_adapter(), pytest.raises(EditError, match="beyond the numbers"):
        model.set_strength(1e3)
    assert same_bits(bits(model), bits(edited(base, [(big, 0.01, 0.01)])))
    with pytest.raises(EditError, match="beyond the numbers"):
        plain.base_model.set_strength("default", 1e3)
    assert torch.equal(output(plain, "bert"), output(model, "bert"))


def test_a_swap_of_an_inactive_direction_stays_inactive(base: nn.Module, tmp_path: Path) -> None:
    model, first, _ = two(base)
    third = random_direction(base, seed=3)
    model.swap(save(tmp_path, third), "two")
    assert model.strengths == {"one": 1.0}
    model.set_strength({"two": 0.25})
    assert same_bits(bits(model), bits(edited(base, [(first, 1, 1), (third, 0.25, 0.25)])))


def test_deleting_within_a_block(base: nn.Module) -> None:
    model, first, _ = two(base)
    with model.strength_at({"one": 0.5, "two": 1.0}):
        model.delete_adapter("two")
    assert same_bits(bits(model), bits(edited(base, [(first, 1, 1)])))


# ------------------------------------------------------------------------------------------------------- doors of PEFT


def test_strength_for_a_while_with_plain_peft(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    model = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path, direction))
    expected = output(model, "bert")
    with model.strength_at(-0.5):
        assert torch.equal(output(model, "bert"), output(edited(base, [(direction, -0.5, 0.5)]), "bert"))
    assert torch.equal(output(model, "bert"), expected)


def test_an_adapter_that_peft_has_made_can_be_saved(base: nn.Module, tmp_path: Path) -> None:
    model, _, _ = two(base)
    model.add_adapter("fresh", GradiendConfig(feature_classes=["one", "two"], scope=["*query.weight"]))
    model.save_pretrained(tmp_path, "fresh")
    assert set(Direction.load(tmp_path, GradiendConfig.from_pretrained(str(tmp_path))).parameters) == {
        f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(len(base.bert.encoder.layer))
    }


def test_a_parameter_that_lora_computes(tmp_path: Path) -> None:
    """LoRA's `target_parameters` puts a computed tensor in the parameter's place while a block of experts runs."""
    base = build("mixtral")
    name = next(name for name, parameter in base.named_parameters() if parameter.ndim == 3)
    direction = random_direction(base)
    config = LoraConfig(target_modules=[], target_parameters=[name], init_lora_weights=False)
    reference = get_peft_model(edited(base, [(direction, 1, 1)]), config)
    values = {key: value for key, value in reference.state_dict().items() if "lora_" in key}
    model = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path, direction))
    with pytest.warns(UserWarning, match="second time"):
        lora = get_peft_model(model.base_model.model, config)
    lora.load_state_dict(values, strict=False)
    for _ in range(3):
        assert torch.equal(output(lora, "mixtral"), output(reference, "mixtral"))
    block = lora.base_model.model.model.layers[0].mlp.experts
    assert torch.equal(block.get_base_layer().get_parameter(name.rpartition(".")[2]), base.get_parameter(name))
    with pytest.raises(EditError, match="no plain parameter any more"):  # called past everything that contains it
        block(torch.zeros(2, 16), torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1))


def test_torch_dtype_is_dtype(base: nn.Module, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "base")
    folder = save(tmp_path / "a", random_direction(base), base, base_model_name_or_path=str(tmp_path / "base"))
    assert GradiendModel.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
