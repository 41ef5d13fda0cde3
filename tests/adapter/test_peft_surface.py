"""What PEFT users expect of any adapter, one by one."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
)
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from torch import nn

from gradiend_hub.adapter import GRADIEND, GradiendLayer, gradiend_layers, register
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.errors import ArtifactError, BaseModelMismatchError, ConfigError, EditError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import (
    NEEDS_OWN_LOADER,
    OWN_LOADER_WORKS,
    bits,
    config_for,
    edited,
    random_direction,
    same_bits,
    save,
)
from tests.models import build, inputs, output

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]


@pytest.fixture
def base() -> nn.Module:
    return build("bert")


def at(base: nn.Module, architecture: str, *edits: tuple) -> torch.Tensor:
    """Expected logits with directions at strengths."""
    return output(edited(base, [(d, *config_for(d).coefficients(s)) for d, s in edits]), architecture)


def test_registration_is_repeatable_and_picklable() -> None:
    register()
    assert pickle.loads(pickle.dumps(GRADIEND)) is GRADIEND
    assert copy.deepcopy(GRADIEND) is GRADIEND
    assert GradiendConfig(peft_type="GRADIEND").peft_type is GRADIEND


def test_fresh_adapter_learns_and_saves(base: nn.Module, tmp_path: Path) -> None:
    plain = output(base, "bert")
    before = bits(base)
    model = get_peft_model(base, GradiendConfig(scope=["*.query.weight", "*LayerNorm*"], strength=2.0))
    assert torch.equal(output(model, "bert"), plain)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("gradiend_weight" in name for name in trainable)
    loss = model(**inputs("bert"), labels=inputs("bert")["input_ids"]).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.5 * parameter.grad
    changed = model(**inputs("bert"), labels=inputs("bert")["input_ids"]).loss
    assert changed < loss
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model.unload()), tmp_path)
    assert same_bits(bits(again.get_base_model()), before)
    assert torch.equal(again(**inputs("bert"), labels=inputs("bert")["input_ids"]).loss, changed)


def test_base_is_thawed_by_unload(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_direction(base, direction, config_for(direction), strength=1.0)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.unload().parameters())


def test_auto_classes(tmp_path: Path) -> None:
    for architecture, task, auto in (("bert", None, AutoPeftModel), ("gpt2", "CAUSAL_LM", AutoPeftModelForCausalLM)):
        build(architecture).save_pretrained(tmp_path / architecture)
        base = type(build(architecture)).from_pretrained(tmp_path / architecture)
        direction = random_direction(base)
        names = {"base_model_name_or_path": str(tmp_path / architecture), "task_type": task}
        folder = save(tmp_path / f"{architecture}-direction", direction, base, strength=0.5, **names)
        expected = at(base, architecture, (direction, 0.5))
        assert torch.equal(output(auto.from_pretrained(folder), architecture), expected)
        assert torch.equal(output(GradiendModel.from_pretrained(folder), architecture), expected)
        generic = transformers.AutoModelForMaskedLM if task is None else transformers.AutoModelForCausalLM
        if OWN_LOADER_WORKS:
            assert torch.equal(output(generic.from_pretrained(folder), architecture), expected)
        half = GradiendModel.from_pretrained(folder, dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16
        rounded = edited(base.to(torch.bfloat16), [(direction, *config_for(direction).coefficients(0.5))])
        assert same_bits(bits(half), bits(rounded))


@pytest.mark.skipif(Version(transformers.__version__) >= Version("5.20"), reason="it finds the values")
def test_transformers_own_loader_is_refused_where_it_finds_no_values(tmp_path: Path) -> None:
    base = build("llama")
    before, folder = output(base, "llama"), save(tmp_path, random_direction(base))
    with pytest.raises(ConfigError, match=r"5\.20 does. Use GradiendModel.from_pretrained"):
        base.load_adapter(str(folder))
    assert not list(gradiend_layers(base))
    assert torch.equal(output(base, "llama"), before)


def test_generation(tmp_path: Path) -> None:
    base = build("gpt2")
    direction = random_direction(base)
    arguments = {"max_new_tokens": 5, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    expected = edited(base, [(direction, 1.0, 1.0)]).requires_grad_(False).generate(**inputs("gpt2"), **arguments)
    plain = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path, direction))
    merged = GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base))
    for model in (plain, merged):
        found = model.generate(**inputs("gpt2"), **arguments)
        assert all(torch.equal(a, b) for a, b in zip(found.scores, expected.scores, strict=True))


def test_several_directions(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, "sparse", seed=2)
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    assert torch.equal(output(model, "bert"), at(base, "bert", (first, 1.0)))
    model.set_adapter("b")
    assert torch.equal(output(model, "bert"), at(base, "bert", (second, 1.0)))
    model.base_model.set_adapter(["b", "a"])
    both = at(base, "bert", (first, 1.0), (second, 1.0))
    assert torch.equal(output(model, "bert"), both)
    model.merge_adapter()
    assert torch.equal(output(model, "bert"), both)
    status = model.get_model_status()
    assert status.merged_adapters == ["a", "b"]
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("a")
    model.unmerge_adapter()
    model.delete_adapter("a")
    assert torch.equal(output(model, "bert"), at(base, "bert", (second, 1.0)))


def test_merging_one_after_the_other_does_not_depend_on_the_order(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    model = PeftModel.from_pretrained(base, tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    before = bits(base)
    results = []
    for order in (["a", "b"], ["b", "a"]):
        for name in order:
            with pytest.warns(UserWarning, match="Already following") if name == order[1] else _silent():
                model.merge_adapter([name])
        results.append(bits(base))
        model.unmerge_adapter()
        assert same_bits(bits(base), before)
    assert same_bits(*results)


class _silent:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_scaling(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    model = PeftModel.from_pretrained(copy.deepcopy(base), save(tmp_path, direction, strength=0.5))

    def strengths() -> set[float]:
        return {layer.strength["default"] for layer in gradiend_layers(model)}

    for layer in gradiend_layers(model):
        layer.set_scale("default", 3.0)
    assert strengths() == {1.5}
    assert torch.equal(output(model, "bert"), at(base, "bert", (direction, 1.5)))
    for layer in gradiend_layers(model):
        layer.scale_layer(2.0)
    assert strengths() == {3.0}
    for layer in gradiend_layers(model):
        layer.unscale_layer(4.0)
    assert strengths() == {0.75}
    for layer in gradiend_layers(model):
        layer.unscale_layer()
    assert strengths() == {0.5}


@pytest.mark.parametrize("storage", ["sparse", "dense", "mixed"])
def test_weighted_sum(base: nn.Module, tmp_path: Path, storage: str) -> None:
    first, second = random_direction(base, storage, seed=1), random_direction(base, storage, seed=2)
    model = GradiendModel.from_direction(copy.deepcopy(base), first, config_for(first), adapter_name="a")
    model.add_direction("b", second, config_for(second))
    model.set_strength({"a": 0.5, "b": -1.0})
    model.add_weighted_adapter(["a", "b"], [2.0, -0.5], "sum")
    expected = edited(base, [(first, 1.0, 1.0), (second, 0.5, -0.5)])
    model.set_adapter("sum")
    model.set_strength({"sum": 1.0})
    found = bits(model)
    for name, tensor in bits(expected).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)
    sparse = {part.indices is not None for part in model.direction.parameters.values()}
    assert sparse == {"sparse": {True}, "dense": {False}, "mixed": {True, False}}[storage]
    model.save_pretrained(tmp_path)
    again = GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base))
    assert same_bits(bits(again), found)
    for names, weights, new in ((["a"], [1.0, 2.0], "c"), (["x"], [1.0], "c"), (["a"], [1.0], "b")):
        with pytest.raises(ConfigError, match="add_weighted_adapter"):
            model.add_weighted_adapter(names, weights, new)
    with pytest.raises(ConfigError, match="linear"):
        model.add_weighted_adapter(["a"], [1.0], "c", combination_type="ties")


@NEEDS_OWN_LOADER
@pytest.mark.parametrize("lora_first", [True, False])
def test_together_with_lora(base: nn.Module, tmp_path: Path, lora_first: bool) -> None:
    direction = random_direction(base)
    folder = save(tmp_path / "direction", direction)
    torch.manual_seed(0)
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    lora.save_pretrained(tmp_path / "lora")
    expected = edited(base, [(direction, 1.0, 1.0)])
    expected.load_adapter(tmp_path / "lora", "lora")
    model = copy.deepcopy(base)
    for name in ("lora", "direction") if lora_first else ("direction", "lora"):
        model.load_adapter(tmp_path / name, name)
    model.set_adapter(["lora", "direction"])
    assert torch.equal(output(model, "bert"), output(expected, "bert"))
    model.set_adapter("direction")
    assert torch.equal(output(model, "bert"), at(base, "bert", (direction, 1.0)))
    model.disable_adapters()
    assert torch.equal(output(model, "bert"), output(base, "bert"))
    assert PeftConfig.from_pretrained(folder).peft_type is GRADIEND


def test_copies_and_pickles(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    save(tmp_path, direction)
    expected, stronger = at(base, "bert", (direction, 1.0)), at(base, "bert", (direction, -2.0))
    unmerged = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    merged = GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base))
    for model in (unmerged, merged):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(output(twin, "bert"), expected)
            twin.base_model.set_strength("default", -2.0)
            assert torch.equal(output(twin, "bert"), stronger)
            assert torch.equal(output(model, "bert"), expected)
            assert torch.equal(output(twin.unload(), "bert"), output(base, "bert"))


@pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="the compiler of torch 2.6 breaks the graph")
def test_compiled_in_one_graph(tmp_path: Path) -> None:
    base = build("llama")
    direction = random_direction(base)
    save(tmp_path, direction)
    expected = at(base, "llama", (direction, 1.0))
    for model in (
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path),
        GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base)),
    ):
        compiled = torch.compile(model.get_base_model(), backend="eager", fullgraph=True)
        torch.testing.assert_close(output(compiled, "llama"), expected)
        torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(tmp_path: Path, reentrant: bool) -> None:
    base = build("llama")
    direction = random_direction(base)
    save(tmp_path, direction)

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
        model.train()
        if checkpointing:
            renamed = hasattr(model, "activation_checkpointing_enable")  # transformers ≥ 5.23
            enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(**inputs("llama"), labels=inputs("llama")["input_ids"]).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


def test_threads_share_one_model(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    save(tmp_path, direction)
    expected = at(base, "bert", (direction, 1.0))
    for model in (
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path),
        GradiendModel.from_pretrained(tmp_path, copy.deepcopy(base)),
    ):
        wrong: list[int] = []

        def work(model: nn.Module = model, wrong: list[int] = wrong) -> None:
            for turn in range(10):
                if not torch.equal(output(model, "bert"), expected):
                    wrong.append(turn)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert torch.equal(output(model.unload(), "bert"), output(base, "bert"))


def test_moving_and_casting_a_merged_model(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    model = GradiendModel.from_direction(copy.deepcopy(base), direction, config_for(direction), strength=1.0)
    model.half()
    rounded = copy.deepcopy(base).half()
    assert same_bits(bits(model), bits(edited(rounded, [(direction, 1.0, 1.0)])))
    assert {layer.gradiend_weight["default"].dtype for layer in gradiend_layers(model)} == {torch.float32}
    model.set_strength(0.0)
    assert same_bits(bits(model), bits(rounded))


def test_loading_into_the_same_name_replaces_the_values(base: nn.Module, tmp_path: Path) -> None:
    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    save(tmp_path / "a", first)
    save(tmp_path / "b", second)
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
    model.merge_adapter()
    model.load_adapter(tmp_path / "b", "default")
    assert torch.equal(output(model, "bert"), at(base, "bert", (second, 1.0)))
    assert torch.equal(output(model.unload(), "bert"), output(base, "bert"))


def test_names_with_or_without_the_backbone_prefix(base: nn.Module, tmp_path: Path) -> None:
    backbone = base.bert
    bare = random_direction(backbone)
    save(tmp_path / "bare", bare)
    prefixed = bare.renamed({name: f"bert.{name}" for name in bare.parameters})
    save(tmp_path / "prefixed", prefixed)
    for folder in ("bare", "prefixed"):
        for target in (base, backbone):
            model = PeftModel.from_pretrained(copy.deepcopy(target), tmp_path / folder)
            own = GradiendModel.from_pretrained(tmp_path / folder, copy.deepcopy(target))
            merged = model.merge_and_unload()
            assert same_bits(bits(merged), bits(own))
            body = merged if target is backbone else merged.bert
            assert same_bits(bits(body), bits(edited(backbone, [(bare, 1.0, 1.0)])))


def test_companions_survive_plain_peft(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    folder = save(tmp_path / "a", direction)
    (folder / "gradiend_report.json").write_text("{}")
    (folder / "gradiend_probes.jsonl").write_text("")
    PeftModel.from_pretrained(copy.deepcopy(base), folder).save_pretrained(tmp_path / "b")
    for name in (
        "gradiend_encoder.safetensors",
        "gradiend_base.safetensors",
        "gradiend_report.json",
        "gradiend_probes.jsonl",
    ):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "b" / "config.json").exists()


def test_half_precision_storage(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    folder = save(tmp_path / "a", direction, dtype="bfloat16")
    model = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    own = GradiendModel.from_pretrained(folder, copy.deepcopy(base))
    assert torch.equal(output(model, "bert"), output(own, "bert"))
    model.save_pretrained(tmp_path / "b")
    again = GradiendModel.from_pretrained(tmp_path / "b", copy.deepcopy(base))
    assert same_bits(bits(again), bits(own))


def test_doors_that_peft_closes(base: nn.Module, tmp_path: Path) -> None:
    direction = random_direction(base)
    folder = save(tmp_path, direction)
    model = GradiendModel.from_pretrained(folder, base)
    with pytest.raises(EditError, match="strengths="):
        model(**inputs("bert"), adapter_names=["default"] * 3)
    with pytest.raises(ValueError, match="caling"), rescale_adapter_scale(model, 0.5):
        pass
    with pytest.raises(ValueError, match="LORA"):
        hotswap_adapter(model, str(folder), "default")
    with pytest.raises(ValueError, match="type"):
        PeftMixedModel(copy.deepcopy(build("bert")), config_for(direction))
    assert not next(gradiend_layers(model)).supports_lora_conversion()


def test_adapter_names_with_a_dot_are_refused(base: nn.Module, tmp_path: Path) -> None:
    folder = save(tmp_path, random_direction(base))
    before = bits(base)
    with pytest.raises(ConfigError, match="Use '_'"):
        PeftModel.from_pretrained(base, folder, adapter_name="v1.0")
    assert same_bits(bits(base), before)
    assert not any(isinstance(module, GradiendLayer) for module in base.modules())


@pytest.mark.parametrize("problem", ["missing", "shape", "tied"])
def test_wrong_base_model(base: nn.Module, tmp_path: Path, problem: str) -> None:
    direction = random_direction(base)
    name = "bert.embeddings.word_embeddings.weight"
    if problem == "missing":
        direction = direction.renamed({name: "nope.weight"})
    elif problem == "shape":
        base = build("bert_classifier")
        direction = random_direction(build("bert")).renamed({})
        direction.parameters["bert.embeddings.LayerNorm.weight"].__dict__["shape"] = (4, 4)
    else:
        direction.parameters["cls.predictions.decoder.weight"] = direction.parameters[name]
    folder = save(tmp_path, direction)
    for load in (PeftModel.from_pretrained, lambda model, folder: GradiendModel.from_pretrained(folder, model)):
        before = bits(base)
        with pytest.raises(BaseModelMismatchError):
            load(base, folder)
        assert same_bits(bits(base), before)
        assert not any(isinstance(module, GradiendLayer) for module in base.modules())


@pytest.mark.parametrize("kind", ["nan", "range", "order", "size"])
def test_damaged_values_are_refused_by_every_loader(base: nn.Module, tmp_path: Path, kind: str) -> None:
    direction = random_direction(base, "sparse")
    name, part = next(iter(direction.parameters.items()))
    spec = direction.spec()
    if kind == "nan":
        part.decoder[3] = float("nan")
    elif kind == "range":
        part.indices[-1] = part.numel
    elif kind == "order":
        part.indices[:2] = part.indices[:2].flip(0)
    else:
        spec[name]["entries"] -= 1
    direction.save(tmp_path)
    GradiendConfig(feature_classes=["a", "b"], parameters=spec, has_bias=True).save_pretrained(str(tmp_path))
    before, plain = bits(base), output(base, "bert")
    with pytest.raises(ArtifactError):
        PeftModel.from_pretrained(base, tmp_path)
    assert not any(isinstance(module, GradiendLayer) for module in base.modules())
    with pytest.raises(ArtifactError):
        GradiendModel.from_pretrained(tmp_path, base)
    assert same_bits(bits(base), before)
    assert torch.equal(output(base, "bert"), plain)
    if kind != "size" and OWN_LOADER_WORKS:  # transformers compares sizes itself
        base.load_adapter(tmp_path)
        with pytest.raises(ArtifactError):
            output(base, "bert")
        base.disable_adapters()
        assert torch.equal(output(base, "bert"), plain)


def test_hub_revision_and_subfolder(base: nn.Module, tmp_path: Path, hub: object, repo_id: str) -> None:
    from gradiend_hub.hub.publish import publish_folder

    first, second = random_direction(base, seed=1), random_direction(base, seed=2)
    save(tmp_path / "a", first)
    save(tmp_path / "a" / "nested", second)
    options = {"allow_patterns": ["*.json", "*.safetensors"], "allow_unmeasured": True}
    publish_folder(tmp_path / "a", repo_id, **options)
    save(tmp_path / "a", second)
    publish_folder(
        tmp_path / "a", repo_id, revision="other", allow_patterns=["*.json", "*.safetensors"], allow_unmeasured=True
    )
    for revision, subfolder, direction in ((None, None, first), ("other", None, second), (None, "nested", second)):
        expected = at(base, "bert", (direction, 1.0))
        model = PeftModel.from_pretrained(copy.deepcopy(base), repo_id, revision=revision, subfolder=subfolder)
        assert torch.equal(output(model, "bert"), expected)
        own = GradiendModel.from_pretrained(repo_id, copy.deepcopy(base), revision=revision, subfolder=subfolder)
        assert torch.equal(output(own, "bert"), expected)
    model.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "gradiend_encoder.safetensors").is_file()
