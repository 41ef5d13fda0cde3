"""What the package gradiend has saved (`gradiend_package/MAKER`), against what it encoded, decoded and rewrote itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForMaskedLM

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    BaseModelMismatchError,
    ConfigError,
    GradiendError,
    SchemaVersionError,
)
from gradiend_hub.export import import_gradiend, read_gradiend_folder
from tests.cli.conftest import invoke
from tests.models import build

STORED = Path(__file__).with_name("gradiend_package")
KINDS = ("whole", "cut", "inverted")
CLASS_OF = {"he": "3SG", "they": "3PL"}


def base_model() -> nn.Module:
    model: nn.Module = AutoModelForMaskedLM.from_pretrained(STORED / "base", dtype=torch.float32)
    return model


def rows_of(kind: str) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The rows that the package has encoded, in our columns, and its values."""
    said = json.loads((STORED / f"{kind}.encoded.json").read_text(encoding="utf-8"))
    assert len(said) == 24
    rows = [
        {
            "masked": row["text"].replace(row["factual_token"], "[MASK]", 1),
            "factual": row["factual_token"],
            "alternative": row["alternative_token"],
            "factual_class": CLASS_OF[row["factual_token"]],
            "alternative_class": CLASS_OF[row["alternative_token"]],
        }
        for row in said
    ]
    return rows, torch.tensor([row["encoded"] for row in said])


def flat(direction: Direction, kind: str) -> torch.Tensor:
    """The vectors of all parameters one after the other, in the folder's order."""
    return torch.cat([getattr(part, kind) for part in direction.parameters.values()])


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_and_decodes_as_the_package(kind: str) -> None:
    direction, config = read_gradiend_folder(STORED / kind)
    said = load_file(STORED / f"{kind}.said.safetensors")
    encoded = torch.tanh(said["gradients"] @ flat(direction, "encoder") + direction.encoder_bias)
    torch.testing.assert_close(encoded, said["encoded"], atol=1e-5, rtol=0)
    for factor, decoded in zip(said["factors"], said["decoded"], strict=True):
        made = flat(direction, "decoder") * factor + flat(direction, "decoder_bias")
        torch.testing.assert_close(made, decoded, atol=1e-6, rtol=0)
    assert (config.source, config.target, config.dtype) == ("alternative", "diff", "float32")
    assert config.feature_classes == (["3PL", "3SG"] if kind == "inverted" else ["3SG", "3PL"])
    assert config.base_model_name_or_path == "us/tiny-bert" and config.strength == 0
    sparse = [part.indices is not None for part in direction.parameters.values()]
    assert not any(sparse) if kind == "whole" else any(sparse) and direction.entries == 565


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_encoded_as_by_the_package(kind: str, tmp_path: Path) -> None:
    result = invoke("import", STORED / kind, tmp_path / "out", "--base", STORED / "base", "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["has_bias"] and said["entries"] == read_gradiend_folder(STORED / kind)[0].entries
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()
    model = GradiendModel.from_pretrained(tmp_path / "out", strength=0.0)
    assert model.active_peft_config.objective == "masked_lm"
    rows, values = rows_of(kind)
    # ours answers for the word in the text, the package for the one whose gradient is read: the alternative
    torch.testing.assert_close(-torch.as_tensor(model.encode(rows)), values, atol=1e-5, rtol=0)
    assert values.abs().max() > 0.3 and values.min() < 0 < values.max()


@pytest.mark.parametrize("kind", KINDS)
def test_strength_is_the_learning_rate_of_its_rewriting(kind: str) -> None:
    """+0.25 is its rewritten model at ff = 1, what it takes for the first class; the other side by hand."""
    direction, config = import_gradiend(STORED / kind, base_model())
    said = load_file(STORED / f"{kind}.said.safetensors")
    base = dict(base_model().named_parameters())
    for strength in (0.25, -0.25):
        merged = GradiendModel.from_direction(base_model(), direction, config, strength=strength).merge_and_unload()
        found = dict(merged.named_parameters())
        for name, before in base.items():
            part = direction.parameters.get(name)
            if strength > 0:
                expected = said.get(f"rewritten.{name}", before)
            elif part is None:
                expected = before
            else:
                assert isinstance(part.decoder, torch.Tensor) and isinstance(part.decoder_bias, torch.Tensor)
                expected = before + 0.25 * part.dense(part.decoder_bias - part.decoder)
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=0)


def test_its_inversion_changes_what_is_decoded() -> None:
    """The fault that the documentation tells of: h changes its sign, and dec(h) is not what it was, but off by 2·b_d."""
    before, after = (load_file(STORED / f"{kind}.said.safetensors") for kind in ("cut", "inverted"))
    torch.testing.assert_close(after["encoded"], -before["encoded"])
    bias = flat(read_gradiend_folder(STORED / "cut")[0], "decoder_bias")
    assert bias.abs().max() > 1e-3
    torch.testing.assert_close(after["decoded"][1], before["decoded"][0] - 2 * bias)  # dec(−1) now, dec(+1) before


def changed(*keys: str, to: Any) -> Callable[[Path], None]:
    """Another value in config.json; `...` removes it."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        place = config
        for key in keys[:-1]:
            place = place[int(key) if isinstance(place, list) else key]
        if to is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = to
        path.write_text(json.dumps(config), encoding="utf-8")

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def tensor(file: str, key: str, to: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = {name: value for name, value in load_file(folder / file).items() if name != key}
        save_file(tensors if to is None else {**tensors, key: to}, folder / file)

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def linked(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(target)
    (folder / "model.safetensors").symlink_to(target)


def written(name: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(content, encoding="utf-8")

    return change


WEIGHTS, INDICES, MASKS = "model.safetensors", "mapping_indices.safetensors", "mapping_masks.safetensors"
NAN = torch.full((565, 1), float("nan"))
CONTEXT = {"source": "alternative", "target": "diff"}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without("config.json"), ArtifactNotFoundError, "no config.json"),
        (without("gradiend_context.json"), ArtifactNotFoundError, "no gradiend_context.json"),
        (without(WEIGHTS), ArtifactError, "has no model.safetensors"),
        (without(INDICES), ArtifactError, "has no mapping_indices"),
        (pickled, ArtifactError, "is pickled, and unpickling can run code"),
        (linked, ArtifactError, "outside of the direction's folder"),
        (written(WEIGHTS, "no tensors"), ArtifactError, "not a readable safetensors"),
        (written("config.json", "{"), ArtifactError, "not of the package gradiend"),
        (written("config.json", '{"model_type": "bert"}'), ArtifactError, "architecture"),
        (written("training.json", "{"), ArtifactError, "training.json"),
        (written("gradiend_context.json", '{"source": "me", "target": "diff"}'), ArtifactError, "factual"),
        (written("gradiend_context.json", json.dumps(CONTEXT)), ConfigError, "--classes"),
        (changed("format_version", to=1), SchemaVersionError, "format_version 1"),
        (changed("mapping", to=None), ArtifactError, "has no mapping"),
        (changed("mapping", "masks_file", to="mapping_masks.pth"), ArtifactError, "pickled"),
        (changed("mapping", "masks_file", to="../mapping_masks.safetensors"), ArtifactError, "file beside it"),
        (changed("mapping", "masks_file", to=...), ArtifactError, "found None"),
        (changed("mapping", "param_map", "0", "shape", to=[2**60]), ArtifactError, "elements"),
        (changed("mapping", "param_map", "0", "shape", to=[2]), ArtifactError, "outside of its shape"),
        (changed("mapping", "param_map", "2", "shape", to=[8, 2]), ArtifactError, "expected a mask"),
        (changed("mapping", "param_map", "0", "repr", to="all"), ArtifactError, "unexpected L0"),
        (changed("mapping", "param_map", "0", "name", to="a\x1b[2J"), ArtifactError, "name"),
        (changed("mapping", "param_map", "0", "name", to="bert.embeddings.LayerNorm.weight"), ArtifactError, "twice"),
        (changed("architecture", "latent_dim", to=2), ArtifactError, "2 feature values"),
        (changed("architecture", "activation_encoder", to="relu"), ArtifactError, "expected tanh and id"),
        (changed("architecture", "activation_decoder", to="tanh"), ArtifactError, "expected tanh and id"),
        (changed("architecture", "input_dim", to=564), ArtifactError, "says 564 entries"),
        (changed("architecture", "bias_decoder", to=False), ArtifactError, "unexpected decoder.0.linear.bias"),
        (changed("architecture", "torch_dtype", to="float16"), ArtifactError, "to be F16"),
        (tensor(WEIGHTS, "decoder.0.linear.weight", None), ArtifactError, "lacks decoder.0.linear.weight"),
        (tensor(WEIGHTS, "decoder.0.linear.weight", torch.zeros(1, 565)), ArtifactError, r"\[565, 1\]"),
        (tensor(WEIGHTS, "decoder.0.linear.weight", NAN), ArtifactError, "NaN"),
        (tensor(INDICES, "L3", torch.tensor([-1], dtype=torch.int32)), ArtifactError, "outside of its shape"),
        (tensor(INDICES, "L3", torch.tensor([1.0])), ArtifactError, "expected indices"),
        (tensor(INDICES, "L0", torch.arange(24, dtype=torch.int32).flip(0)), ArtifactError, "sorted"),
        (tensor(MASKS, "L2", torch.ones(2, 8, dtype=torch.uint8)), ArtifactError, "mapping chooses"),
    ],
)
def test_a_strangers_folder(
    change: Callable[[Path], None], error: type[GradiendError], message: str, tmp_path: Path
) -> None:
    shutil.copytree(STORED / "cut", tmp_path / "cut")
    change(tmp_path / "cut")
    with pytest.raises(error, match=message):
        read_gradiend_folder(tmp_path / "cut")
    refused = invoke("import", tmp_path / "cut", tmp_path / "out", "--base", STORED / "base")
    assert refused.exit_code == 1 and not (tmp_path / "out").exists()
    assert "\x1b" not in refused.stderr


def test_what_the_folder_does_not_tell(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(STORED / "cut", folder)
    (folder / "gradiend_context.json").write_text(json.dumps(CONTEXT | {"source": "factual"}), encoding="utf-8")
    config = read_gradiend_folder(folder, feature_classes=["3SG", "3PL"])[1]
    assert config.feature_classes == ["3SG", "3PL"] and config.source == "alternative"  # as training.json knows
    (folder / "training.json").unlink()
    factual = read_gradiend_folder(folder, feature_classes=["3SG", "3PL"])[1]
    # its feature factor for the first class is +1 with the source "alternative" and −1 with the others
    assert (factual.source, factual.decoder_sign, config.decoder_sign) == ("factual", -1, 1)
    with pytest.raises(ConfigError, match="+1 first".replace("+", r"\+")):
        read_gradiend_folder(STORED / "cut", feature_classes=["3PL", "3SG"])
    (folder / "model").mkdir()
    (folder / "model.safetensors").rename(folder / "model" / "model.safetensors")
    (folder / "config.json").write_text(
        (folder / "config.json")
        .read_text(encoding="utf-8")
        .replace('"name": "bert.', '"name": "module._orig_mod.bert.'),
        encoding="utf-8",
    )
    found, expected = (
        read_gradiend_folder(folder, feature_classes=["a", "b"])[0],
        read_gradiend_folder(STORED / "cut")[0],
    )
    assert found.spec() == expected.spec() and torch.equal(flat(found, "decoder"), flat(expected, "decoder"))


def test_another_base(tmp_path: Path) -> None:
    with pytest.raises(BaseModelMismatchError, match=r"is \[18, 8\] in"):
        import_gradiend(STORED / "cut", build("bert"))
    with pytest.raises(BaseModelMismatchError, match="do not exist"):
        import_gradiend(STORED / "cut", build("llama"))
    refused = invoke("import", STORED / "cut", STORED / "base", "--base", STORED / "base")
    assert refused.exit_code == 1 and "not empty" in refused.stderr
    assert invoke("import", tmp_path / "no", tmp_path / "out", "--base", STORED / "base").exit_code == 1


def test_a_model_that_the_package_has_rewritten_is_a_task_vector() -> None:
    """What its users publish as a rewritten model: read as a direction it is what was changed, and −1 undoes it."""
    direction = Direction.from_checkpoints(STORED / "base", STORED / "merged")
    said = load_file(STORED / "whole.said.safetensors")
    changed = {name.removeprefix("rewritten."): value for name, value in said.items() if name.startswith("rewritten.")}
    assert direction.parameters.keys() == changed.keys()
    base = base_model()
    config = GradiendConfig(feature_classes=["tuned", "base"], target="diff", decoder_sign=1)
    model = GradiendModel.from_direction(base, direction, config, strength=1.0)
    for name, value in changed.items():
        torch.testing.assert_close(model.get_base_model().get_parameter(name).detach(), value, atol=1e-7, rtol=1e-6)
    rewritten = AutoModelForMaskedLM.from_pretrained(STORED / "merged", dtype=torch.float32)
    with pytest.warns(UserWarning, match="relative of its base model"):
        tuned = GradiendModel.from_direction(rewritten, direction, config, strength=-1.0, allow_related=True)
    for name, parameter in base_model().named_parameters():
        torch.testing.assert_close(tuned.get_base_model().get_parameter(name), parameter, atol=1e-6, rtol=1e-5)
    imported, fields = import_gradiend(STORED / "whole", base_model())
    for name, part in direction.parameters.items():
        theirs = imported.parameters[name]
        at = theirs.dense(theirs.delta(*fields.coefficients(0.25)))
        torch.testing.assert_close(part.dense(part.decoder), at, atol=1e-6, rtol=0)
