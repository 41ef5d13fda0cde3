"""The configuration: every value is checked, the sign is fixed once, and the file survives a round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from gradiend_hub.artifact.config import GRADIEND, GradiendConfig
from gradiend_hub.artifact.fields import decoder_sign
from gradiend_hub.artifact.files import SCHEMA_VERSION
from gradiend_hub.errors import ArtifactError, ConfigError, SchemaVersionError

CLASSES = ["3SG", "3PL"]
PARAMETERS = {"a.weight": {"shape": [3, 4], "entries": None}, "b": {"shape": [], "entries": 1}}


@pytest.mark.parametrize(
    ("source", "target", "sign"),
    [
        ("alternative", "diff", 1), ("alternative", "factual", 1), ("alternative", "alternative", -1),
        ("factual", "diff", -1), ("factual", "factual", -1), ("factual", "alternative", 1),
        ("diff", "diff", -1), ("diff", "factual", -1), ("diff", "alternative", 1),
    ],
)  # fmt: skip
def test_sign_of_every_source_and_target(source: str, target: str, sign: int) -> None:
    """Row label +1 means: the source gradient is that of a first-class token.

    With the alternative as source, h > 0 means that the first class is the *alternative*, and adding g_f - g_a makes it
    likelier; every other choice flips one of the two.
    """
    config = GradiendConfig(feature_classes=CLASSES, source=source, target=target)
    assert config.decoder_sign == decoder_sign(source, target) == sign


def test_coefficients() -> None:
    config = GradiendConfig(feature_classes=CLASSES, strength_unit=2.0)
    assert config.coefficients(0.5) == (1.0, 1.0)
    assert config.coefficients(-0.5) == (-1.0, 1.0)
    assert config.coefficients(0.0) == (0.0, 0.0)
    assert config.coefficients(3.0, feature_factor=0.0) == (0.0, 6.0)
    flipped = GradiendConfig(feature_classes=CLASSES, source="factual", feature_factor=0.5)
    assert flipped.coefficients(1.0) == (-0.5, 1.0)
    one_token = GradiendConfig(feature_classes=CLASSES, target="factual", strength_unit=2.0)
    assert one_token.coefficients(0.5) == (1.0, -1.0)  # −dec(−1): down the loss of the first class's tokens
    assert one_token.coefficients(-0.5) == (-1.0, -1.0)


BAD: list[tuple[str, Any]] = [
    ("feature_classes", ["one"]), ("feature_classes", ["a", "a"]), ("feature_classes", "ab"),
    ("feature_classes", [1, 2]),
    ("fillers", {"4SG": ["x"]}), ("fillers", {"3SG": []}), ("fillers", {"3SG": "he"}), ("fillers", []),
    ("objective", ""), ("objective", 3), ("source", "gradient"), ("source", ["diff"]), ("target", None),
    ("scope", 3), ("scope", [""]), ("exclude", "x"), ("layers", 8), ("density", 0), ("density", 1.5), ("density", "1"),
    ("density", float("nan")), ("density", True),
    ("parameters", {}), ("parameters", []), ("parameters", {"a": {}}), ("parameters", {"a..b": PARAMETERS["b"]}),
    ("parameters", {"a": {"shape": [0], "entries": None}}), ("parameters", {"a": {"shape": [2.0], "entries": None}}),
    ("parameters", {"a": {"shape": [True], "entries": None}}), ("parameters", {"a": {"shape": [2], "entries": 3}}),
    ("parameters", {"a": {"shape": [2], "entries": 0}}), ("parameters", {"a": {"shape": [2**40, 2**40], "entries": 1}}),
    ("parameters", {"a": {"shape": [1] * 9, "entries": 1}}),
    ("parameters", {"a": {"shape": [2], "entries": 1, "x": 1}}),
    ("has_bias", 1), ("dtype", "int8"), ("dtype", "float64"), ("decoder_sign", 0), ("decoder_sign", True),
    ("strength_unit", 0.0), ("strength_unit", float("inf")), ("strength", float("nan")), ("strength", "1"),
    ("feature_factor", None), ("safe_band", [1.0]), ("safe_band", [1.0, -1.0]), ("safe_band", 1.0),
    ("break_point", [0.0, float("nan")]), ("schema_version", 0), ("schema_version", "1"), ("schema_version", True),
    ("base_model_name_or_path", 3), ("revision", ["main"]), ("task_type", "MLM"), ("task_type", []),
    ("peft_type", "LORA"), ("inference_mode", "yes"), ("auto_mapping", {"base_model_class": 3}), ("auto_mapping", "x"),
    ("gradiend_version", 1), ("transformers_version", {}), ("peft_version", 0.21),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda part: str(part)[:40])
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"GradiendConfig\.{name}.*expected .*, found "):
        GradiendConfig(**{"feature_classes": CLASSES, name: value})


def test_round_trip(tmp_path: Path) -> None:
    config = GradiendConfig(
        feature_classes=CLASSES, fillers={"3SG": ["he"], "3PL": ["they"]}, objective="masked_lm", source="factual",
        target="alternative", scope=["*.weight"], exclude=["*norm*"], layers="1-2", density=0.5, parameters=PARAMETERS,
        has_bias=True, dtype="bfloat16", strength_unit=0.1, strength=0.8, feature_factor=0.5, safe_band=[-1.0, 2.0],
        break_point=[-3.0, 4.0], gradiend_version="0.1", transformers_version="5", base_model_name_or_path="a/b",
        revision="c0ffee", task_type="CAUSAL_LM",
    )  # fmt: skip
    config.save_pretrained(str(tmp_path))
    for reader in (GradiendConfig, PeftConfig):
        read = reader.from_pretrained(str(tmp_path))
        assert isinstance(read, GradiendConfig)
        assert read.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "GRADIEND"
    assert read.peft_type is GRADIEND


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '"\\ud800"', "\xff\xfe"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError):
        GradiendConfig.from_pretrained(str(tmp_path))


def test_files_of_other_methods_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(ArtifactError, match="LORA"):
        GradiendConfig.from_pretrained(str(tmp_path))
    path.write_text(json.dumps({"peft_type": "NOBODY"}))
    with pytest.raises(ArtifactError, match="no GRADIEND direction"):
        GradiendConfig.from_pretrained(str(tmp_path))
    path.write_text(json.dumps({"peft_type": "GRADIEND", "source": "x"}))
    with pytest.raises(ArtifactError, match="source"):
        GradiendConfig.from_pretrained(str(tmp_path))
    path.write_text(json.dumps({"peft_type": "GRADIEND", "schema_version": SCHEMA_VERSION + 1, "shape_of_things": 1}))
    for reader in (GradiendConfig, PeftConfig):
        with pytest.warns() if reader is PeftConfig else _nothing(), pytest.raises(SchemaVersionError, match="Update"):
            reader.from_pretrained(str(tmp_path))


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
