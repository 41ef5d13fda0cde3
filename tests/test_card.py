"""The model card: the whole text of one, its YAML head, and what strangers and editors may do to it."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.constants import CARD_FILE, WEIGHTS_FILE
from gradiend_hub.evaluation import EncoderReport, Report, SplitReport, StrengthPoint
from gradiend_hub.hub.card import hub_id, render_card, write_card
from tests.adapter.support import config_for, random_direction
from tests.models import build
from tests.training import arguments, trainer_of

EXPECTED = """\
---
library_name: peft
tags:
- gradiend
- feature-direction
- peft
model-index:
- name: 3SG-3PL
  results:
  - task:
      type: feature-extraction
    dataset:
      name: 3SG / 3PL rows
      type: feature-rows
      split: eval
    metrics:
    - type: pearsonr
      value: N
      name: Encoder correlation
    - type: accuracy
      value: N
      name: Encoder accuracy
  - task:
      type: feature-extraction
    dataset:
      name: 3SG / 3PL rows
      type: feature-rows
      split: test
    metrics:
    - type: pearsonr
      value: N
      name: Encoder correlation
    - type: accuracy
      value: N
      name: Encoder accuracy
---
<!-- gradiend-hub card HEX -->

# 3SG ↔ 3PL: a feature direction of masked

A [GRADIEND](https://arxiv.org/abs/2502.01406) feature direction. At a **positive strength 3SG becomes more
likely, at a negative one 3PL**; strength 0 is the base model, bit for bit, and strength 1 is the dose that the
evaluation below recommends.

```python
import gradiend_hub  # registers the adapter type; without it PEFT raises KeyError: 'GRADIEND'
from gradiend_hub import GradiendModel

model = GradiendModel.from_pretrained("REPO_ID_OR_FOLDER", base_model="PATH_OR_ID_OF_THE_BASE", strength=1.0)
model.set_strength(-0.5)                    # exact: always computed from the original weights
merged = model.merge_and_unload()           # a plain transformers model
```

## What each strength changes (test split)

| strength | P(3SG) on 3PL rows | P(3PL) on 3SG rows | LM score | neutral NLL |
|---:|---:|---:|---:|---:|
{curve}

LM score: the base model's mean negative log-likelihood on neutral text divided by the edited model's (168 scored tokens).
Safe band, as measured when the unit was chosen: N … N.
P(3SG) is the summed probability of it, he, she; P(3PL) of they.

## What the encoder reads (test split)

| | |
|---|---:|
| correlation with the class | N |
| accuracy (sign) | N |
| AUC | N |
| mean of 3SG (12 rows) | N ± N |
| mean of 3PL (8 rows) | N ± N |
| mean absolute value on neutral text | N |

## Where it comes from

| | |
|---|---|
| base model | masked |
| objective, source → target | masked_lm, alternative → diff |
| scope | 16 tensors, 504,448 of 504,448 weights (100.00%) |
| training | 2 steps of 16 rows, learning rate 0.1, seed 42 |
| rows | 3SG 163, 3PL 157 (sha256 of the training rows: `HEX`) |
| versions | gradiend_hub V, torch V, transformers V, peft V |
| size of the decoder | 4.0 MB, 16 tensors |

Side effects other than the LM score (bias benchmarks, other features): not measured.

```bibtex
@article{gradiend,
  title  = {GRADIEND: Feature Learning within Neural Networks Exemplified through Biases},
  author = {Drechsel, Jonathan and Herbold, Steffen},
  journal = {arXiv preprint arXiv:2502.01406},
  year   = {2025}
}
```
"""


def normalised(card: str) -> str:
    """A card without the figures that a measurement gives."""
    card = re.sub(r"(?m)^(\| versions \|).*$", lambda m: re.sub(r"(?<=[a-z] )\d[^,| ]*", "V", m[0]), card)
    card = re.sub(r"\b[0-9a-f]{16}\b", "HEX", card)
    card = re.sub(r"(?m)^(    - type: .*\n      value: ).*$", r"\1N", card)
    card = re.sub(r"(?m)^(Safe band.*: )\S+ … \S+\.$", r"\1N … N.", card)
    for name in ("correlation with", "accuracy", "AUC", "mean of", "mean absolute"):
        card = re.sub(
            rf"(?m)^(\| {name}[^|]*\|).*$", lambda m: m[1] + re.sub(r"[-+]?\d\.\d{3}", "N", m[0][len(m[1]) :]), card
        )
    return re.sub(r"(?m)^(\| [-+]\d\.\d\d \|)( \d\.\d{3} \| \d\.\d{3} \| \d+\.\d\d % \| \d\.\d{4} \|)$", r"\1", card)


def test_the_whole_card_of_a_short_run(masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path) -> None:
    trainer = trainer_of(masked_path, tmp_path, pronouns, neutral, args=arguments(tmp_path, max_steps=2), layers="3")
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(pronouns["test"].select(range(20)), metric_key_prefix="test")
    trainer.save_model()
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    points = trainer.report.splits["test"].curve
    assert normalised(text) == EXPECTED.replace("{curve}", "\n".join(f"| {p.strength:+.2f} |" for p in points))
    # the figures are those of the report
    one = trainer.report.splits["test"].at(1.0)
    singular, plural = one.probability["3PL"]["3SG"], one.probability["3SG"]["3PL"]
    assert one.lm_score is not None
    assert f"| +1.00 | {singular:.3f} | {plural:.3f} | {100 * one.lm_score:.2f} % | {one.nll:.4f} |" in text
    assert f"| correlation with the class | {trainer.report.splits['test'].encoder.correlation:.3f} |" in text
    # where it was trained is nobody's business
    assert str(masked_path.parent) not in text
    assert str(tmp_path) not in text
    card = ModelCard.load(tmp_path / CARD_FILE)
    card.validate(repo_type="model")
    results = card.data.eval_results
    assert [(r.dataset_split, r.metric_type) for r in results] == [
        ("eval", "pearsonr"), ("eval", "accuracy"), ("test", "pearsonr"), ("test", "accuracy"),
    ]  # fmt: skip
    assert results[2].metric_value == round(trainer.report.splits["test"].encoder.correlation, 4)


def saved(folder: Path, *, classes: list[str] | None = None, measured: bool = True, **changes: Any) -> Path:
    """A saved direction with a made-up report."""
    base, names = build("bert"), classes or ["a", "b"]
    direction = random_direction(base)
    fillers = changes.pop("fillers", {name: [f"word{i}"] for i, name in enumerate(names)})
    config = config_for(direction, feature_classes=names, fillers=fillers, objective="masked_lm", **changes)
    GradiendModel.from_direction(base, direction, config).save_pretrained(folder)
    if measured:
        chances = {c: dict.fromkeys(names, 0.25) for c in names}
        curve = [StrengthPoint(float(s), chances, 3.0, 0.4, 1.0, 1.0) for s in (-1, 0, 1)]
        encoder = EncoderReport(
            0.98, 1.0, 1.0, dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.1), 0.1, dict.fromkeys(names, 3), 7
        )
        training = {"rows_per_gradient": 16, "learning_rate": 0.1, "seed": 0}
        data = {"train_rows": dict.fromkeys(names, 3), "train_sha256": "0" * 64}
        Report(names, "base", None, "scope", 1, training, data, {"eval": SplitReport(encoder, curve, [], 10)}).save(
            folder
        )
    return folder


def test_an_unmeasured_direction_says_so_and_claims_nothing(tmp_path: Path) -> None:
    text = str(render_card(saved(tmp_path, measured=False)))
    assert "> **Unmeasured.** Nobody has evaluated this direction" in text
    assert "recommends" not in text
    assert "model-index" not in text
    assert "What each strength changes" not in text


def test_a_base_model_of_the_hub_is_linked(tmp_path: Path) -> None:
    folder = saved(
        tmp_path, base_model_name_or_path="google-bert/bert-base-cased", revision="cd5ef92a9fb2f889e972770a3"
    )
    card = render_card(folder)
    assert card.data.base_model == "google-bert/bert-base-cased"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "| base model | google-bert/bert-base-cased at `cd5ef92a9fb2f889e972770a3` |" in str(card)
    assert 'from_pretrained("REPO_ID_OR_FOLDER", strength=1.0)' in str(card)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google-bert/bert-base-cased", "google-bert/bert-base-cased"),
        ("gpt2", "gpt2"),
        ("/home/me/models/bert", None),
        ("./bert", None),
        ("../bert", None),
        ("a/b/c", None),
        ("C:\\models\\bert", None),
        ("a--b/c", None),
        ("", None),
        (None, None),
    ],
)
def test_what_is_a_hub_id(name: str | None, expected: str | None) -> None:
    assert hub_id(name) == expected


def test_a_folder_of_that_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    assert hub_id("models/bert") == "models/bert"
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/bert") is None


def test_our_own_card_is_written_anew_and_a_persons_is_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = write_card(folder)
    assert path == folder / CARD_FILE
    ours = path.read_text()
    report = Report.load(folder)
    report.steps = 77
    report.save(folder)
    write_card(folder)
    renewed = path.read_text()
    assert "77 steps" in renewed
    assert renewed != ours
    path.write_bytes(renewed.replace("\n", "\r\n").encode())  # as git or an editor may write it
    write_card(folder)
    assert path.read_text() == renewed
    for edited in (
        renewed.replace("not measured.", "not measured. Do not use it for hiring."),
        renewed.replace("library_name: peft", "library_name: peft\nlicense: mit"),
        "# My own card\n",
    ):
        path.write_text(edited)
        write_card(folder)
        assert path.read_text() == edited


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b\n| c |",
    "x\n---\nlicense: evil\n---\n",
    "x\r## Heading",
    "[click](https://evil.example)",
    "![i](https://evil.example/i.png)",
    "**bold** `code` ~~gone~~",
    "{{ 7 * 7 }} {% raw %}",
    "a: b\n- c: &x *x !!python/object:os.system",
    "\\",
    "&lt;b&gt;",
    "a\u2028b\x85c\x0bd",
]


class Tags(HTMLParser):
    """Collects the tags and the comments of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(data.split()[0])


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_strangers_stay_names(tmp_path: Path, name: str) -> None:
    """Class names and fillers come from a file; on the Hub's page they must be text and nothing else."""
    plain = str(
        render_card(saved(tmp_path / "plain", classes=["first", "second"], fillers={"first": ["w"], "second": ["v"]}))
    )
    folder = saved(tmp_path / "hostile", classes=[name, "second"], fillers={name: [name, "w"], "second": ["v"]})
    card = render_card(folder)
    text = str(card)
    head, body = re.split(r"(?m)^---$", text, maxsplit=2)[1:]
    assert yaml.safe_load(head).keys() == yaml.safe_load(re.split(r"(?m)^---$", plain, maxsplit=2)[1]).keys()
    assert card.data.to_dict()["model-index"][0]["name"] == f"{name}-second"
    assert "license" not in card.data.to_dict()
    plain_body = re.split(r"(?m)^---$", plain, maxsplit=2)[2]
    assert len(body.splitlines()) == len(plain_body.splitlines())
    for line, expected in zip(body.splitlines(), plain_body.splitlines(), strict=True):
        assert line.count("|") == expected.count("|")
        assert line[:2] == expected[:2]
    tags = Tags()
    tags.feed(body)
    assert tags.found == ["gradiend-hub"]
    shown = html.unescape(body)
    assert " ".join(name.split()) in shown
    written = body.replace(plain_body, "")
    for mark in ("](https://evil", "**bold**", "`code`", "~~gone"):
        assert mark not in written


def test_other_texts_of_the_artifact_stay_text(tmp_path: Path) -> None:
    folder = saved(tmp_path, revision="`<b>", base_model_name_or_path="/x/<img src=y>")
    report = Report.load(folder)
    report.versions = {"<b>": "<i>"}
    report.scope = "<u>"
    report.training["learning_rate"] = "<s>"  # type: ignore[index]
    report.save(folder)
    tags = Tags()
    tags.feed(str(render_card(folder)).split("---\n", 2)[2])
    assert tags.found == ["gradiend-hub"]


def test_safe_band_and_size(tmp_path: Path) -> None:
    text = str(render_card(saved(tmp_path, safe_band=[-1.5, 2.0])))
    assert "Safe band, as measured when the unit was chosen: -1.50 … +2.00." in text
    parameters = GradiendConfig.from_pretrained(str(tmp_path)).parameters or {}
    size = (tmp_path / WEIGHTS_FILE).stat().st_size / 1e6
    assert f"| size of the decoder | {size:.1f} MB, {len(parameters)} tensors |" in text
