"""The model card: the whole text of one, its YAML head, and what strangers and editors may do to it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.adapter.receipt import EditReceipt
from gradiend_hub.artifact.files import CARD_FILE, WEIGHTS_FILE
from gradiend_hub.artifact.names import hub_id, is_revision
from gradiend_hub.cards import filling
from gradiend_hub.cards.card import render_card, write_card
from gradiend_hub.cards.caveats import caveats
from gradiend_hub.cards.rewritten import render_rewritten_card, write_rewritten_card
from gradiend_hub.errors import ArtifactError
from gradiend_hub.evaluation import Completion, EncoderReport, Report, SplitReport, StrengthPoint
from gradiend_hub.evaluation.selftest import verify
from gradiend_hub.printable import legible, spelled_out
from tests.adapter.support import config_for, random_direction
from tests.conftest import ROOT
from tests.hub_server import HubServer
from tests.models import build
from tests.reports import full_report, point
from tests.training.support import arguments, trainer_of

EXPECTED = Path(__file__).with_name("expected_card.md")
"""The card of a run of two steps, in which every measured figure is N and every word that a model wrote is W."""

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?(?![\w])")


def normalised(card: str) -> str:
    """A card without what a measurement gives."""
    card = re.sub(r"card [0-9a-f]{16} (of|-->)", r"card HEX \1", card)
    card = re.sub(r"`[0-9a-f]{64}`", "`HEX`", card)
    card = re.sub(r"(?m)^(\| versions \| ).*$", r"\1V |", card)
    card = re.sub(r"(?m)^(\| seconds \| ).*$", r"\1S |", card)
    card = re.sub(r"(?m)^(> \*\*Not learned\.\*\* .*? base model\.) .*$", r"\1 WHY", card)
    card = re.sub(r"(?m)^(\* At strength .*?), .*$", r"\1, CLAIM", card)
    card = re.sub(r"(?s)(## Caveats\n\n).*?(\* A correlation rises)", r"\1\2", card)
    card = re.sub(r" \(limited by [^)]*\)|; it is \*\*limited by [^*]*\*\*", "", card)
    head, start, rest = card.partition("## What each")
    head = re.sub(r"(?m)^(      value: |    score: ).*$", r"\1N", head)
    head = re.sub(r"(?m)^(  - label: ).*$", r"\1W", head)
    head = re.sub(r"(?m)^\| (?!\||strength)([^|]*) \|.*$", r"| \1 | W | W | W |", head)
    rest = re.sub(r"The model breaks at: .*", "The model breaks at: N, N.", NUMBER.sub("N", rest))
    return head + start + re.sub(r"(?m)(^\| N \| N \[N, N\].*\n)+", "(one row for each measured strength)\n", rest)


def test_the_whole_card_of_a_short_run(
    masked_path: Path, pronouns: Any, neutral: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(masked_path, tmp_path, pronouns, neutral, args=arguments(tmp_path, max_steps=2), layers="3")
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(pronouns["test"].select(range(20)), metric_key_prefix="test")
    reads: list[object] = []
    read = GradiendConfig.from_pretrained
    monkeypatch.setattr(GradiendConfig, "from_pretrained", lambda *a, **k: reads.append(a) or read(*a, **k))
    trainer.save_model()
    assert len(reads) == 1  # for the self-test, whose digest is that of the file
    text = (tmp_path / CARD_FILE).read_text(encoding="utf-8")
    assert normalised(text) == EXPECTED.read_text(encoding="utf-8")
    # the figures are those of the report
    report = Report.load(tmp_path)
    assert untraced(text, report, GradiendConfig.from_pretrained(str(tmp_path))) == []
    one = report.splits["test"].at(1.0)
    assert one.quality is not None
    assert f"{one.probability['3PL']['3SG']:.3f}" in row(text, "| +1.00 |")
    assert f" {100 * one.quality:.2f} % " in row(text, "| +1.00 |")
    assert verify(GradiendModel.from_pretrained(tmp_path, strength=0.0), tmp_path).passed
    # the figures are there, and where it was trained is nobody's business
    linked = re.findall(r"\]\((assets/.*?\.png)\)", text)
    assert sorted(linked) == sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "assets").iterdir())
    assert str(masked_path.parent) not in text
    assert str(tmp_path) not in text
    card = ModelCard.load(tmp_path / CARD_FILE)
    card.validate(repo_type="model")
    results = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert results["test", "Encoder correlation"] == round(report.splits["test"].encoder.correlation or 0, 4)
    assert results["test", "Quality relative to the base model at strength +1"] == round(one.quality, 4)
    # what only a person knows is said once, and kept
    trainer.create_model_card(language="en", license="mit", dataset_tags=["alice/pronouns"])
    data = ModelCard.load(tmp_path / CARD_FILE).data
    assert (data.language, data.license, data.datasets) == ("en", "mit", ["alice/pronouns"])


def row(text: str, start: str) -> str:
    """The line that begins so."""
    return next(line for line in text.splitlines() if line.startswith(start))


def untraced(card: str, report: Report, config: GradiendConfig) -> list[str]:
    """Numbers of a card that are neither in the template nor, so rounded, in the report or the config."""
    known = [*numbers_of(asdict(report)), *numbers_of(config.to_dict()), *of_files(config)]
    known += [100 * v for v in known]
    template = (ROOT / "model_cards" / "direction.md.jinja").read_text()
    fixed = {
        *NUMBER.findall(template),
        *re.findall(r"\d+", "3SG 3PL [0.99] 0.5"),
        "-1,0,1",
        "+1",
        "-1",
        "1",
        "0",
        "2",
        "99",
        "95",
    }
    quoted = " ".join([report.scope, *strings_of(asdict(report))])
    body = re.sub(r"&#\d+;", " ", card.split("\n---\n", 1)[1])
    body = re.sub(r"\b[0-9a-f]{16}\b", "HEX", body)  # of the card's digest, which may happen to have no letter
    wrong = []
    for token in NUMBER.findall(body):
        digits = len(token.partition(".")[2])
        value = float(token.replace(",", ""))
        matches = any(f"{v:.{digits}f}" == f"{value:.{digits}f}" or f"{v:.3g}" == token.lstrip("+") for v in known)
        if not matches and token not in fixed and token not in quoted:
            wrong.append(token)
    return wrong


def numbers_of(value: Any) -> Iterator[float]:
    """All numbers in nested containers, and how many things the containers hold."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, (dict, list, tuple)):
        yield float(len(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(item)


def strings_of(value: Any) -> Iterator[str]:
    """All texts in nested containers, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        yield from (key for key in value if isinstance(value, dict))
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_of(item)


def of_files(config: GradiendConfig) -> list[float]:
    """Size of the decoder in MB, which the card reads from the file."""
    entries = sum(math.prod(spec["shape"]) for spec in (config.parameters or {}).values())
    return [4 * entries * (2 if config.has_bias else 1) / 1e6]


CLASSES, FILLERS = ["3SG", "3PL"], {"3SG": ["he", "she", "it"], "3PL": ["they", "them"]}


def test_every_number_of_a_full_card_is_one_of_the_report(tmp_path: Path) -> None:
    folder = saved(tmp_path, classes=CLASSES, fillers=FILLERS, safe_band=[-1.25, 1.75], strength_unit=0.03217)
    report, config = full_report(CLASSES, FILLERS), GradiendConfig.from_pretrained(str(folder))
    report.save(folder)
    text = str(render_card(folder))
    assert untraced(text, report, config) == []
    for wrong in (
        text.replace("0.967 [0.958, 0.974]", "0.968 [0.958, 0.974]"),
        text.replace("| 41.2", "| 14.2").replace("4.12 %", "4.21 %"),
        text.replace("788,736", "788,735"),
    ):
        assert wrong != text
        assert len(untraced(wrong, report, config)) == 1


def test_each_figure_of_a_full_card_stands_in_its_own_row(tmp_path: Path) -> None:
    folder = saved(tmp_path, classes=CLASSES, fillers=FILLERS)
    report = full_report(CLASSES, FILLERS)
    report.save(folder)
    text, split = str(render_card(folder)), report.splits["test"]
    encoder, one = split.encoder, split.at(1.0)
    assert encoder and encoder.held_out and one.quality and one.kl is not None
    effects = [p.effect for curve in split.control for p in curve if p.strength == 1.0]
    bounds = encoder.intervals
    figures: dict[str, list[float | None]] = {
        "| correlation with the class |": [encoder.correlation, *bounds["correlation"]],
        "| the same with neutral text as 0 |": [encoder.correlation_with_neutral],
        "| rank correlation (Spearman) |": [encoder.spearman],
        "| accuracy (sign) |": [encoder.accuracy, *bounds["accuracy"]],
        "| accuracy (two classes and neutral, thresholds ±0.5) |": [encoder.ternary_accuracy],
        "| AUC |": [encoder.auc],
        "| mean of 3SG (611 rows) |": [encoder.class_means["3SG"], *bounds["mean 3SG"], encoder.class_stds["3SG"]],
        "| mean of 3PL (587 rows) |": [encoder.class_means["3PL"], *bounds["mean 3PL"], encoder.class_stds["3PL"]],
        "| mean absolute value on neutral text (402 slots) |": [encoder.neutral_abs_mean, *bounds["neutral_abs_mean"]],
        "| mean absolute value on other tokens of the rows (377 slots) |": [encoder.other_abs_mean],
        "| accuracy on words that training did not have (60 rows) |": [encoder.held_out.accuracy],
        "| +1.00 |": [
            one.probability["3PL"]["3SG"], *one.intervals["3SG on 3PL"],
            one.probability["3SG"]["3PL"], *one.intervals["3PL on 3SG"],
            min(e for e in effects if e is not None), max(e for e in effects if e is not None), 100 * one.quality, one.kl,
        ],
    }  # fmt: skip
    for start, values in figures.items():
        shown = NUMBER.findall(row(text, start).removeprefix(start))
        assert len(shown) == len(values), start
        for written, value in zip(shown, values, strict=True):
            digits = len(written.partition(".")[2])
            assert digits >= 2 and float(written) == pytest.approx(value, abs=0.51 * 10**-digits), start


def test_what_was_not_measured_is_written_out(tmp_path: Path) -> None:
    text = str(render_card(saved(tmp_path)))
    for start in (
        "| KL from the base model", "| StereoSet |", "| CrowS-Pairs |", "| WinoBias |", "| WinoGender |", "| SEAT |",
        "| other features of the model |",
    ):  # fmt: skip
        assert row(text, start).endswith("| not measured | not measured | not measured |"), start
    for line in (
        "| share of the edit lost to rounding | not measured |", "| energy of the training | not measured |",
        "How the edit is spread over the layers: not measured.", "| rank correlation (Spearman) | not measured |",
        "| accuracy on words that training did not have | not measured |", "Break point: not measured.",
        "Examples of the data: not recorded.",
    ):  # fmt: skip
        assert line in text.splitlines(), line
    assert "Random directions were not measured" in text


def test_a_full_card_leaves_nothing_unmeasured_but_what_is(tmp_path: Path) -> None:
    folder = saved(tmp_path, classes=CLASSES, fillers=FILLERS)
    report = full_report(CLASSES, FILLERS)
    report.training["effect_by_damping"] = {"plain": 0.5}
    report.save(folder)
    text = str(render_card(folder))
    lines = [line for line in text.splitlines() if line.startswith("|") and "not measured" in line]
    assert [line.split(" | ")[0] for line in lines] == [
        "| quality on own text, the words of the classes left out", "| quality on text of another source",
        "| what the model goes on with",
        "| CrowS-Pairs", "| WinoBias", "| WinoGender", "| SEAT", "| other features of the model",
    ]  # fmt: skip
    training = [
        line
        for line in text.splitlines()
        if line.startswith(("| learning rate", "| seed", "| solver", "| epochs", "| effect by"))
    ]
    assert training == [
        "| learning rate (not the default) | 0.05 |", "| seed (not the default) | 7 |", "| solver | autoencoder |",
        "| epochs | 1 |", "| effect by damping | plain 0.5 |",
    ]  # fmt: skip
    assert "| The girls ran home because &#91;MASK&#93; felt ill. | they 0.91, he 0.05, she 0.02 | she 0.71" in text
    assert "StereoSet intrasentence: 2106 items of stereoset&#64;1a2b3c." in text
    assert "@inproceedings{nadeem}" in text


def replaced(report: Report, **changes: Any) -> list[str]:
    """Caveats of a report whose test split's encoder or curve is another one."""
    split = report.splits["test"]
    own = {name: changes.pop(name) for name in ("control", "break_point", "scored", "curve") if name in changes}
    split = replace(split, encoder=replace(split.encoder, **changes), **own)
    return caveats(report, "test", split)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"ternary_accuracy": 0.71}, "The encoder tells the classes apart better than either from neutral text"),
        (
            {"neutral_abs_mean": 0.39},
            "The encoder is not silent where the feature is absent: mean |h| is 0.390 on neutral",
        ),
        (
            {"intervals": {"correlation": [0.81, 0.93]}},
            "Few rows: the 95 % interval of the correlation goes from 0.810",
        ),
        ({"held_out": None}, "Words that training did not have were not measured."),
        ({"control": []}, "Random directions were not measured"),
        ({"break_point": [-1.5, None]}, "The model breaks near: already at strength -1.50."),
        ({"scored": 168}, "Damage was read from few tokens of neutral text: 168."),
        (
            {"control": [[point(s, CLASSES) for s in (-1.0, 0.0, 1.0)]]},
            "**The effect may be chance.** At strength +1 P(3SG)",
        ),
        ({"curve": [point(s, CLASSES, 0.01) for s in (-1.0, 0.0, 1.0)]}, "**Little effect at strength +1:** P(3SG) on"),
        ({"curve": [replace(point(0.0, CLASSES), quality=None)]}, "There was no text to read damage on"),
    ],
)
def test_caveats_follow_from_the_figures(changes: dict[str, Any], begins: str) -> None:
    report = full_report(CLASSES, FILLERS)
    assert not any(line.startswith(begins) for line in replaced(report))
    assert any(line.startswith(begins) for line in replaced(report, **changes))


def test_a_card_that_cannot_be_rendered_stops_before_the_hub(
    masked_path: Path, pronouns: Any, hub: HubServer, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_template_source", lambda name: "{{ nobody_knows_this }}")
    filling._templates.cache_clear()
    args = arguments(tmp_path, max_steps=1, hub_model_id=repo_id, hub_token=hub.tokens.alice)
    trainer = trainer_of(masked_path, tmp_path, pronouns, args=args)
    trainer.train()
    hub.clear()
    try:
        with pytest.raises(ArtifactError, match=r"card could not be rendered.*direction\.md\.jinja.*nobody_knows_this"):
            trainer.push_to_hub(allow_unmeasured=True)
    finally:
        filling._templates.cache_clear()
    assert hub.log() == []


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
    assert 'from_pretrained("REPO_ID_OR_FOLDER", strength=0.0)' in str(card)


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
    assert "| steps | 77 |" in renewed
    assert renewed != ours
    path.write_bytes(renewed.replace("\n", "\r\n").encode())  # as git or an editor may write it
    write_card(folder)
    assert path.read_text() == renewed
    for edited in (
        renewed.replace("## Citation", "Do not use it for hiring.\n\n## Citation"),
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


def rendered(markdown: str) -> str:
    """As HTML, with raw HTML let through: the worst that a web page may do with a card."""
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


class Tags(HTMLParser):
    """Collects tags, where they lead, and comments."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_comment(self, data: str) -> None:
        self.tags.append(data.split()[0])


def hostile_folder(folder: Path, text: str) -> Path:
    """A saved direction in which every text of a stranger is `text`; a name with line breaks would be refused."""
    name = spelled_out(text)
    fillers = {name: [name, "w"], "second": [f"{name}2"]}
    revision = name if is_revision(name) else "main"
    saved(folder, classes=[name, "second"], fillers=fillers, revision=revision, base_model_name_or_path=f"/x/{name}")
    report = full_report([name, "second"], fillers)
    report.scope = text
    report.versions = {name: name}
    report.training |= {"learning_rate": text, text: 1}
    report.data |= {"train_sha256": text, "eval_rows": text}
    report.examples = [dict.fromkeys(row, text) for row in report.examples]
    report.dtype_loss = {name: 0.2}
    report.seeds = [{text: text}, {text: text}]
    report.layers = [replace(layer, layer=name) for layer in report.layers]
    report.side_effects = [
        replace(r, name=name, source=text, citation=text, scores={name: 1.0}) for r in report.side_effects
    ]
    report.settings, report.converged, report.verdict = {"goal": text, "quality_floor": 0.9}, False, text
    for part, split in report.splits.items():
        completions = [Completion(text, {"-1.0": text, "0.0": [[text, 0.5]], "1.0": text})] * 2
        report.splits[part] = replace(split, completions=completions, missing=[text])
    report.save(folder)
    return folder


@pytest.mark.parametrize("text", HOSTILE)
def test_what_strangers_wrote_stays_text(tmp_path: Path, text: str) -> None:
    """Every text of an artifact comes from a file; on the Hub's page it must be text and nothing else."""
    plain = render_card(hostile_folder(tmp_path / "plain", "plain"))
    card = render_card(hostile_folder(tmp_path / "hostile", text))
    assert card.data.to_dict().keys() == plain.data.to_dict().keys()
    assert card.data.to_dict()["model-index"][0]["name"] == f"{spelled_out(text)}-second"
    found, expected = Tags(rendered(card.text)), Tags(rendered(plain.text))
    assert found.tags == expected.tags
    assert found.links == expected.links
    shown = html.unescape(re.sub(r"<[^>]*>", "", rendered(card.text)))
    assert spelled_out(" ".join(legible(text).split())) in shown and spelled_out(text) in shown


def test_the_rewritten_model_has_a_card(tmp_path: Path) -> None:
    receipt = EditReceipt(64, 3162624, 0.00312, {}, 0.0123)
    config = GradiendConfig(
        feature_classes=CLASSES, fillers=FILLERS, base_model_name_or_path="google-bert/bert-base-cased",
        revision="cd5ef92a9fb2f889e972770a3", safe_band=[-1.0, 1.0],
    )  # fmt: skip
    report = full_report(CLASSES, FILLERS)
    options: dict[str, Any] = {"direction": "alice/bert-3sg-3pl", "receipt": receipt, "dtype": "float32"}
    options["commit"] = "0123456789abcdef"
    path = write_rewritten_card(tmp_path, config, strength=-2.0, report=report, **options)
    card = ModelCard.load(path)
    card.validate(repo_type="model")
    data = card.data.to_dict()
    parents = ["google-bert/bert-base-cased", "alice/bert-3sg-3pl"]
    assert (data["base_model"], data["base_model_relation"]) == (parents, "merge")
    assert data["tags"] == ["gradiend-rewritten", "feature:3sg", "feature:3pl"]  # no search for directions finds it
    assert data["library_name"] == "transformers"
    text = card.text
    assert "[alice/bert-3sg-3pl](https://huggingface.co/alice/bert-3sg-3pl) merged" in text
    assert "**strength -2.00**" in text
    assert "| weights | 3,162,624 in 64 tensors |" in text
    down = report.splits["test"].at(-2.0).probability["3SG"]["3PL"]
    assert f" {down:.3f} [" in row(text, "| -2.00 |")
    assert "Outside of the safe band" in text
    assert text.count("0123456789abcdef") == 2 and "| cd5ef92a9fb2f889e972770a3 |" in text
    assert (
        "gradiend-hub merge alice/bert-3sg-3pl OUT --revision 0123456789abcdef --strength -2.0 --dtype float32" in text
    )
    assert 'from_pretrained("google-bert/bert-base-cased", revision="cd5ef92a9fb2f889e972770a3")' in text
    # at a strength that was not measured, and without a report
    other = str(render_rewritten_card(config, strength=0.7, report=report, **options))
    assert "were not measured at strength +0.70; measured are -4.00, -2.00" in other
    assert "Outside of the safe band" not in other
    local = replace(config, base_model_name_or_path="/x/bert", safe_band=None)
    bare = render_rewritten_card(local, strength=1.0, report=None, **{**options, "direction": "/x/out/mine"})
    assert "Effect and damage of this direction: not measured." in str(bare)
    assert "base_model" not in bare.data.to_dict()
    assert "\nmine merged into" in str(bare)
    # measured when it was merged
    own = full_report(CLASSES, FILLERS)
    own.splits["test"] = replace(own.splits["test"], curve=[own.splits["test"].at(s) for s in (-2.0, 0.0)])
    here = str(render_rewritten_card(config, strength=-2.0, report=None, measured=own, **options))
    assert "## Before and after\n" in here and "Measured when it was merged" in here
    assert f" {down:.3f} [" in row(here, "| -2.00 |")
    # a person's is kept
    path.write_text("# mine\n")
    write_rewritten_card(tmp_path, config, strength=-2.0, report=report, **options)
    assert path.read_text() == "# mine\n"


def test_safe_band_and_size(tmp_path: Path) -> None:
    text = str(render_card(saved(tmp_path, safe_band=[-1.5, 2.0])))
    assert "Safe band, as measured when the unit was chosen: -1.50 … +2.00." in text
    parameters = GradiendConfig.from_pretrained(str(tmp_path)).parameters or {}
    size = (tmp_path / WEIGHTS_FILE).stat().st_size / 1e6
    assert f"| size of the decoder | {size:.1f} MB, {len(parameters)} tensors |" in text


def test_another_recommended_strength_is_the_one_that_is_shown(tmp_path: Path) -> None:
    folder = saved(tmp_path, classes=CLASSES, fillers=FILLERS, strength=-0.198)
    report = full_report(CLASSES, FILLERS)
    split = report.splits["test"]
    for completion in split.completions:
        completion.by_strength["-0.198"] = "They saw it."
    split.curve.append(point(-0.198, CLASSES))
    report.side_effects.append(replace(report.side_effects[0], strength=-0.198))
    report.save(folder)
    text = str(render_card(folder))
    assert "and strength -0.198 is the dose that the\nevaluation below recommends" in text
    assert text.count("| | strength −1 | −0.198 (recommended) | 0 (base model) | +1 |") == 2
    assert "model.set_strength(-0.198)  # the recommended dose" in text
    assert "--strengths -1,-0.198,0,1" in text
    assert row(text, "| -0.198 (recommended) |").count("|") == row(text, "| +1.00 |").count("|")
    assert row(text, "| StereoSet intrasentence&#58; SS |").count("|") == 6
    assert "at strength -0.198" in text.split("---")[1]


def test_fillers_that_are_no_words_are_quoted_and_a_causal_card_has_no_fillers(tmp_path: Path) -> None:
    folder = saved(tmp_path, classes=CLASSES, fillers=FILLERS)
    report = full_report(CLASSES, FILLERS)
    report.splits["test"].completions[0].by_strength["1.0"] = [["they", 0.27], [",", 0.16]]
    report.save(folder)
    text = str(render_card(folder))
    assert '| they 0.27, "," 0.16 |' in text and "Likeliest words at" in text
    config = GradiendConfig.from_pretrained(str(folder))
    config.objective = "causal_lm"
    config.save_pretrained(str(folder))
    assert "Likeliest words at" not in str(render_card(folder))
    assert "Greedy continuations." in str(render_card(folder)).splitlines()


def test_how_the_unit_was_chosen_is_said_only_where_it_is_known() -> None:
    report = full_report(CLASSES, FILLERS)
    blind = replace(report.splits["test"], curve=[replace(point(0.0, CLASSES), quality=None)])
    report.splits = {"test": blind}
    assert "There was no text to read damage on, so nothing is known about it." in caveats(report, "test", blind)
    report.splits["eval"] = blind
    assert any("the strength unit was chosen without it" in text for text in caveats(report, "test", blind))
