"""Sets of trained directions: what the artifacts say alone, beside what is measured, and every mistake."""

from __future__ import annotations

import copy
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.artifact.files import CARD_FILE, ENCODER_FILE, PROBES_FILE, REFERENCES_FILE
from gradiend_hub.artifact.references import References
from gradiend_hub.base_model import load_base_model
from gradiend_hub.comparison import DirectionSet, agreement
from gradiend_hub.comparison.members import Member
from gradiend_hub.comparison.rows import SetRows
from gradiend_hub.errors import (
    ArtifactError,
    ArtifactNotFoundError,
    BaseModelMismatchError,
    ConfigError,
    DataError,
)
from gradiend_hub.evaluation import Report
from tests.adapter.test_quantized import GemmLinear, Linear4bit, quantize
from tests.comparison.conftest import FRAMES, gender_rows
from tests.conftest import ROOT
from tests.models import build


@pytest.fixture
def ds(compared: dict[str, Path], compared_base: Any) -> DirectionSet:
    return DirectionSet.from_pretrained(compared, compared_base)


def copied(folder: Path, place: Path, *without: str) -> Path:
    shutil.copytree(folder, place)
    for name in without:
        (place / name).unlink()
    return place


# ------------------------------------------------------------------------------------------------- from the artifacts alone


def test_similarities_need_no_base_model(compared: dict[str, Path]) -> None:
    ds = DirectionSet.from_pretrained([str(folder) for folder in compared.values()], "/nowhere")
    assert ds.names == ("number", "aware", "gender")
    table = ds.similarity()
    # 3SG/3PL and 3PL/3SG are one feature, turned round; that of sexes is another
    turned, other = table["number", "aware"], table["number", "gender"]
    assert turned.value < -1.5 * turned.null and abs(other.value) < other.null
    assert table["number", "number"] == (
        pytest.approx(1),
        table["number", "number"].null,
        table["number", "number"].ceiling,
    )
    assert 0.5 < table["number", "aware"].ceiling < 1 and 0 < table["number", "aware"].null < 0.5
    assert ds.predicted_effects()["number", "aware"].value < 0


def test_encoders_are_compared_by_what_they_read(ds: DirectionSet) -> None:
    table = ds.similarity(of="encoder")
    assert table["number", "number"].value == pytest.approx(1)
    assert table["number", "aware"].value < 0 and table["number", "aware"].null is None  # its classes are turned round
    assert table["number", "gender"].value == pytest.approx(table["gender", "number"].value)
    assert "not measured" in table.notes[-1]


def test_the_ceiling_is_what_the_training_measured(ds: DirectionSet) -> None:
    halves = [member.report.references.split_half for member in ds.members]
    for measure, key in (("cosine", "cosine"), ("overlap", "overlap 1000"), ("mass_overlap", "mass_overlap 1000")):
        found = ds.similarity(measure).ceiling
        assert found[0, 1] == pytest.approx((halves[0][key] * halves[1][key]) ** 0.5)
    assert ds.similarity("overlap", top_k=77)["number", "gender"].ceiling is None  # not measured, which is not 0


def test_the_null_is_of_coin_directions_of_other_rows(ds: DirectionSet) -> None:
    reached = []
    for member in ds.members:
        for other in ds.members:
            if other is not member:
                norm = member.direction.norm(1.0, 0.0)
                for c in other.references.controls:
                    cosine = member.direction.inner(c, 1.0, 0.0) / norm / c.norm()
                    reached.append((member.name, abs(cosine)))
    pooled = sorted(value for name, value in reached if name in ("number", "gender"))
    assert ds.similarity()["number", "gender"].null == pytest.approx(
        float(np.quantile(pooled, 0.95, method="higher")), rel=1e-6
    )


def test_predicted_effects_are_inner_products_with_the_gradient(ds: DirectionSet) -> None:
    table = ds.predicted_effects()
    for one in ds.members:
        c_w, c_b = one.config.coefficients(1.0)
        for other in ds.members:
            gradient, factor = other.gradient
            exact = 0.0
            for name, part in one.direction.parameters.items():
                if name in gradient.parameters:
                    g = gradient.parameters[name]
                    edit = part.dense(part.delta(c_w, c_b)).double()
                    exact += float((edit * g.dense(g.decoder).double()).sum()) * factor
            assert table[one.name, other.name].value == pytest.approx(exact, rel=1e-5)


def test_every_part_of_the_model_has_a_table(ds: DirectionSet) -> None:
    profile = ds.similarity("cosine", by="layer")
    assert list(profile.tables) == ["1", "2"]
    one, other = (member.direction.parameters for member in ds.members[:2])
    names = [name for name in one if ".layer.2." in name]
    flat = [torch.cat([side[n].decoder for n in names]).double() for side in (one, other)]
    exact = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    assert profile["2"]["number", "aware"].value == pytest.approx(exact, rel=1e-6)
    assert profile["2"]["number", "aware"].ceiling is None and len(profile.to_pandas()) == 9
    with pytest.raises(ConfigError, match="no layer '7'"):
        profile["7"]


def test_fisher_cosine_is_for_damage_aware_directions(ds: DirectionSet, compared: dict[str, Path]) -> None:
    aware = DirectionSet.from_pretrained({"one": compared["aware"], "same": str(compared["aware"]) + "/."})
    assert aware.similarity("fisher_cosine")["one", "same"].value == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"number carries none\. The other measures stay possible"):
        ds.similarity("fisher_cosine")


def test_similar_directions_form_groups(ds: DirectionSet) -> None:
    clusters = ds.clusters(absolute=True)
    assert sorted(map(sorted, clusters.groups(count=2))) == [["aware", "number"], ["gender"]]
    assert clusters.groups(similarity=0.9) != clusters.groups(similarity=-1.0)
    with pytest.raises(ConfigError, match="either `similarity` or `count`"):
        clusters.groups()


def test_a_mixture_is_taken_apart(ds: DirectionSet) -> None:
    config = copy.deepcopy(ds.members[0].config)
    direction, _ = ds.combine({"number": 0.5, "gender": -2.0})
    config.decoder_sign, config.strength_unit, config.parameters = 1, 1.0, direction.spec()
    found = ds.decompose((direction, config))
    assert found.coefficients == pytest.approx({"number": 0.5, "aware": 0.0, "gender": -2.0}, abs=1e-4)
    assert found.explained == pytest.approx(1, abs=1e-6) and found.null < 0.9
    assert "explained" in found.to_json() and list(found.to_pandas().index) == list(ds.names)
    part = DirectionSet([ds["gender"]]).decompose((direction, config))
    assert 0 < part.explained < 1


# --------------------------------------------------------------------------------------------------------- with the base


def test_prediction_and_measurement_agree(ds: DirectionSet) -> None:
    predicted, measured = ds.predicted_effects(), ds.measured_effects()
    found = agreement(predicted, measured)
    assert found.pairs == 6 and found.pearson > 0.9
    for (
        one
    ) in ds.names:  # ranks of six pairs say little, as four of them are near 0; what is beyond the null has its sign
        for other in ds.names:
            cell = predicted[one, other]
            if abs(cell.value) > cell.null:
                assert cell.value * measured[one, other].value > 0
    assert all(predicted[n, n].value > 0 and measured[n, n].value > 0 for n in ds.names)


def test_measured_effects_are_those_of_an_edited_model(ds: DirectionSet, compared_base: Any) -> None:
    rows = gender_rows(FRAMES[6:])[:4]
    found = ds.measured_effects({"gender": rows})
    model = GradiendModel.from_direction(compared_base, ds["number"].direction, copy.deepcopy(ds["number"].config))
    tokenizer = ds._rows.objective.processor

    def odds() -> float:
        total = 0.0
        for row in rows:
            inputs = tokenizer(row["masked"].replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
            at = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
            with torch.no_grad():
                logits = compared_base(**inputs).logits[0, at]
            male, female = (row["factual"], row["alternative"]) if row["factual_class"] == "male" else (
                row["alternative"], row["factual"])  # fmt: skip
            total += float(
                logits[tokenizer.convert_tokens_to_ids(male)] - logits[tokenizer.convert_tokens_to_ids(female)]
            )
        return total / len(rows)

    before = odds()
    model.set_strength(1.0)
    after = odds()
    model.unload()
    assert found["number", "gender"].value == pytest.approx(after - before, abs=1e-4)


def test_a_quantised_base(compared: dict[str, Path], compared_base: Any, masked_path: Path) -> None:
    """Encodings and effects are those of the dequantised model; what needs values of weights is refused with what to do."""
    packed, dense = quantize(compared_base, GemmLinear)
    for parameter in dense.parameters():
        parameter.data = parameter.data.contiguous()
    members = {}
    for name, folder in compared.items():
        config = GradiendConfig.from_pretrained(str(folder))
        members[name] = (replace(Direction.load(folder, config), fingerprint=None), config)
    tokenizer = AutoTokenizer.from_pretrained(masked_path)
    one, other = (DirectionSet.from_directions(members, base, processing_class=tokenizer) for base in (packed, dense))
    rows = {"gender": gender_rows(FRAMES[6:])[:6]}
    np.testing.assert_allclose(one.cross_encodings(rows).h, other.cross_encodings(rows).h, atol=1e-4)
    np.testing.assert_allclose(one.measured_effects(rows).values, other.measured_effects(rows).values, atol=1e-3)
    for base, checkpoint in ((packed, dense), (dense, quantize(compared_base, Linear4bit)[0])):
        ds = DirectionSet.from_directions(members, base, processing_class=tokenizer)
        with pytest.raises(BaseModelMismatchError, match=r"is quantised in .*without quantisation"):
            ds.compare_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=r"are quantised.*without quantisation"):
        one.measure_references(rows, batch_size=1)


def test_cross_encodings_are_those_of_each_direction(ds: DirectionSet, compared_base: Any) -> None:
    rows = gender_rows(FRAMES[6:])[:6]
    found = ds.cross_encodings({"gender": rows})
    for number, member in enumerate(ds.members):
        model = GradiendModel.from_pretrained(member.folder, base_model=compared_base)
        np.testing.assert_allclose(found.h[number], model.encode(rows).numpy(), atol=2e-5)
        model.unload()
    assert found.auc()["gender", "gender"].value > 0.8
    means = found.means()
    assert means["gender", "male→female"].value == pytest.approx(found.h[2][[0, 2, 4]].mean())
    # a perfect diagonal is +1: both classes of a direction read what they stand for
    anchors = ds.cross_encodings().anchors()
    assert all(anchors[name, name].value > 0.5 for name in ("3SG", "3PL", "male", "female"))
    assert anchors["3SG", "3PL"].value < -0.5


def test_the_drift_of_a_fine_tune_is_told(ds: DirectionSet, compared_base: Any) -> None:
    tuned = copy.deepcopy(compared_base)
    edited = GradiendModel.from_direction(
        tuned, ds["gender"].direction, copy.deepcopy(ds["gender"].config), strength=0.7
    )
    tuned = edited.merge_and_unload()
    found = ds.compare_checkpoint(tuned)
    assert found.coefficients["gender"] == pytest.approx(0.7, rel=1e-3) and abs(found.coefficients["number"]) < 1e-3
    assert found.cosine["gender"] == pytest.approx(1, abs=1e-3) and found.explained == pytest.approx(1, abs=1e-3)
    assert found.null < 0.5 and found.predicted_effect["gender"] == pytest.approx(
        0.7 * ds.predicted_effects()["gender", "gender"].value, rel=1e-2
    )
    with pytest.raises(ConfigError, match="base model's own weights"):
        ds.compare_checkpoint(copy.deepcopy(compared_base))
    with pytest.raises(BaseModelMismatchError, match="no checkpoint of the directions' base model"):
        ds.compare_checkpoint(build("llama"))


def test_an_older_artifact_has_no_null_and_no_ceiling(
    compared: dict[str, Path], compared_base: Any, tmp_path: Path
) -> None:
    old = copied(compared["gender"], tmp_path / "old", REFERENCES_FILE)
    report = Report.load(old)
    report.references = None
    report.save(old)
    ds = DirectionSet.from_pretrained([old], compared_base)
    table = ds.similarity()
    assert table["old", "old"] == (pytest.approx(1), None, None) and "carry no references" in table.notes[-1]
    assert ds.predicted_effects().columns == () and "is not known" in ds.predicted_effects().notes[-1]
    # and they are measured on request
    again = ds.measure_references({"old": gender_rows(FRAMES)}, batch_size=8)
    assert 0 < again.similarity()["old", "old"].ceiling < 1 and again.similarity()["old", "old"].null is not None
    fresh = DirectionSet.from_pretrained([compared["gender"]], compared_base).predicted_effects().values[0, 0]
    assert again.predicted_effects()["old", "old"].value == pytest.approx(fresh, rel=0.25)
    with pytest.raises(DataError, match="two halves of 32 rows"):
        ds.measure_references({"old": gender_rows(FRAMES[:1])}, batch_size=32)


# ----------------------------------------------------------------------------------------------------------- what is wrong


def test_other_bases_are_refused(compared: dict[str, Path], compared_base: Any, tmp_path: Path) -> None:
    tuned = copy.deepcopy(compared_base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0

    def moved(model: Any, name: str) -> Path:
        folder = copied(compared["gender"], tmp_path / name)
        config = GradiendConfig.from_pretrained(str(folder))
        direction = Direction.load(folder, config)
        prints = type(direction.fingerprint).of({n: dict(model.named_parameters())[n] for n in direction.parameters})
        Direction(direction.parameters, direction.encoder_bias, prints).save(folder)
        return folder

    relative = moved(tuned, "relative")
    with pytest.raises(BaseModelMismatchError, match=r"relatives of one model.*allow_related=True"):
        DirectionSet.from_pretrained([compared["number"], relative])
    with pytest.warns(UserWarning, match="relatives"):
        found = DirectionSet.from_pretrained([compared["number"], relative], allow_related=True)
    assert "relatives" in found.similarity().notes[0]
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.copy_(torch.randn_like(parameter))
    stranger = moved(tuned, "stranger")
    with pytest.raises(BaseModelMismatchError, match=r"different base models.*Compare directions of one base model"):
        DirectionSet.from_pretrained([compared["number"], stranger], allow_related=True)
    with pytest.raises(BaseModelMismatchError):
        DirectionSet.from_pretrained([stranger], compared_base)


def test_disjoint_parameters_are_a_clear_0(ds: DirectionSet) -> None:
    halves = {}
    for layer in ("1", "2"):
        parts = {n: p for n, p in ds["number"].direction.parameters.items() if f".layer.{layer}." in n}
        config = copy.deepcopy(ds["number"].config)
        direction = Direction(parts, fingerprint=ds["number"].direction.fingerprint.only(parts))
        config.parameters = direction.spec()
        halves[f"layer {layer}"] = (direction, config)
    apart = DirectionSet.from_directions(halves)
    for measure in ("cosine", "overlap", "mass_overlap", "spearman"):
        table = apart.similarity(measure)
        assert table["layer 1", "layer 2"].value == 0
        assert any("share no parameter" in note for note in table.notes)
        assert table["layer 1", "layer 1"].value == pytest.approx(1)
    assert "known by its name only" in apart.notes[0]
    members = [replace(m, references=References((), None, 1.0)) for m in apart.members]  # their gradients are known
    effects = DirectionSet(members).predicted_effects()
    assert effects["layer 1", "layer 2"].value == 0 and effects["layer 1", "layer 1"].value != 0
    assert any("share no parameter, so that 0 is predicted" in note for note in effects.notes)
    other = {name: (d, copy.deepcopy(c)) for name, (d, c) in halves.items()}
    other["layer 2"][1].base_model_name_or_path = "somebody/else"
    with pytest.raises(BaseModelMismatchError, match="Nothing says that"):
        DirectionSet.from_directions(other)


def test_rows_are_read_by_the_options_of_the_directions(causal_path: Path) -> None:
    """A preference's completions count as they were learned, and each pair gives both transitions."""
    base, tokenizer = load_base_model(causal_path), AutoTokenizer.from_pretrained(causal_path)

    def rows_of(*options: dict[str, Any]) -> SetRows:
        configs = [GradiendConfig(feature_classes=["chosen", "rejected"], objective="preference", objective_options=o)
                   for o in options]  # fmt: skip
        return SetRows([Member(f"d{i}", Direction({}), c) for i, c in enumerate(configs)], base, tokenizer)

    pair = {"prompt": "The man asked where the house was.", "chosen": " She knew it.", "rejected": " They had it."}
    for per_token in (True, False):
        rows = rows_of({"per_token": per_token, "chat": False}, {"per_token": per_token, "chat": True})
        assert rows.objective.per_token is per_token
        found, examples = rows.read({"d0": [pair]})["d0"]
        assert [row.factual_class for row in found] == ["chosen", "rejected"] and len(examples) == 2
    with pytest.raises(ConfigError, match=r"d0 and d1 read the base model by other options of 'preference'"):
        _ = rows_of({"per_token": True}, {"per_token": False}).objective


def test_a_direction_without_encoder_says_what_stays_possible(
    compared: dict[str, Path], compared_base: Any, tmp_path: Path
) -> None:
    mute = copied(compared["number"], tmp_path / "mute", ENCODER_FILE, PROBES_FILE)
    ds = DirectionSet.from_pretrained([compared["gender"], mute], compared_base)
    assert ds.similarity()["gender", "mute"].value is not None
    with pytest.raises(ConfigError, match=r"mute has no encoder.*stay possible"):
        ds.similarity(of="encoder")
    found = ds.cross_encodings()
    assert found.directions == ("gender",) and found.notes == ("Without an encoder: mute.", "Without rows: mute.")
    alone = DirectionSet.from_pretrained([mute], compared_base)
    with pytest.raises(ConfigError, match="None of these directions carries probes"):
        alone.cross_encodings()
    with pytest.raises(ConfigError, match="none of these directions has an encoder"):
        alone.cross_encodings({"mute": [dict(zip(
            ("masked", "factual", "alternative", "factual_class", "alternative_class"),
            ("Then [MASK] ran home.", "he", "they", "3SG", "3PL"), strict=True))]})  # fmt: skip


def test_names_tell_directions_apart(compared: dict[str, Path], tmp_path: Path) -> None:
    twin = copied(compared["number"], tmp_path / "other" / "number")
    ds = DirectionSet.from_pretrained([compared["number"], twin])
    assert len({*ds.names}) == 2 and ds.names[1] == "other/number"
    assert ds.similarity()[ds.names[0], ds.names[1]].value == pytest.approx(1)
    with pytest.raises(ConfigError, match="is named twice"):
        DirectionSet.from_pretrained([compared["number"], compared["number"]])
    with pytest.raises(ConfigError, match=r"Two directions are called '.*number'"):
        DirectionSet([*ds.members[:1], *ds.members[:1]])
    with pytest.raises(ConfigError, match="is a list of one"):
        DirectionSet.from_pretrained(str(compared["number"]))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no directions to compare"):
        DirectionSet.from_pretrained([])
    with pytest.raises(ArtifactNotFoundError):
        DirectionSet.from_pretrained([tmp_path])
    with pytest.raises(ConfigError, match="There is no direction 'x' in this set"):
        ds["x"]


def test_one_direction_is_a_set(compared: dict[str, Path]) -> None:
    ds = DirectionSet.from_pretrained([compared["gender"]])
    table = ds.similarity()
    assert table["gender", "gender"].value == pytest.approx(1) and table["gender", "gender"].null is not None
    assert ds.clusters().groups(count=1) == [["gender"]]
    with pytest.raises(ConfigError, match="at least three pairs"):
        agreement(ds.predicted_effects(), ds.predicted_effects())


@pytest.mark.parametrize(
    "call",
    [
        lambda ds: ds.similarity("euclid"),
        lambda ds: ds.similarity(of="bias"),
        lambda ds: ds.similarity(by="head"),
        lambda ds: ds.clusters(by="layer"),
        lambda ds: ds.clusters().groups(count=0),
        lambda ds: ds.clusters().groups(count=1.5),
        lambda ds: ds.clusters().groups(similarity=float("nan")),
        lambda ds: DirectionSet.from_directions({"number": ds["number"].direction}),
        lambda ds: DirectionSet.from_pretrained(None),
        lambda ds: ds.cross_encodings({"nobody": []}),
        lambda ds: ds.combine({}),
        lambda ds: ds.combine({"nobody": 1.0}),
        lambda ds: ds.combine({"number": float("nan")}),
        lambda ds: ds.combine({"number": 0.0}),
    ],
)
def test_what_cannot_be_meant_is_refused(ds: DirectionSet, call: Any) -> None:
    with pytest.raises(ConfigError):
        call(ds)


@pytest.mark.parametrize("damage", ["cut", "nan", "order", "head"])
def test_damaged_references_are_refused(damage: str, compared: dict[str, Path], tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = copied(compared["gender"], tmp_path / "bad")
    path = folder / REFERENCES_FILE
    with safe_open(str(path), framework="pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        if damage == "nan":
            tensors["control.0.values"][3] = float("nan")
        elif damage == "order":
            tensors["control.1.indices"] = tensors["control.1.indices"].flip(0).contiguous()
        else:
            metadata = {"references": '{"controls": 99, "parameters": {"a": [-1]}}'}
        save_file(tensors, path, metadata)
    with pytest.raises(ArtifactError, match="holds no references of this library"):
        References.find(folder)


def test_the_block_of_the_readme_runs_as_a_whole(
    compared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "DirectionSet" in block]
    for name, of in (("out/number", "number"), ("out/gender", "gender"), ("someone/bert-tense", "aware")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(compared[of])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block, names)
    ds, both = names["ds"], names["both"]
    assert ds.names == ("number", "gender", "bert-tense")
    assert both.report.weights == {"number": 1.0, "gender": -0.5}
    printed = capsys.readouterr().out
    assert "cancellation" in printed and "expected damage" in printed
    assert "Unmeasured" in (tmp_path / "out" / "both" / CARD_FILE).read_text(encoding="utf-8")
