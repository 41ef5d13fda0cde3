"""The explorer's answers, compared with the model's own, and its files for a Space."""

from __future__ import annotations

import ast
import math
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

from gradiend_hub import GradiendModel
from gradiend_hub.errors import ConfigError, DataError, HubPushError, MissingLibraryError
from gradiend_hub.explorer import Explorer, Shown, Word, build_page, launch_options, push_space, space_files
from gradiend_hub.explorer.view import answers, curve, notice, words
from gradiend_hub.hub.publish import publish_folder
from tests.cli.conftest import Run, Trained, causal_direction, run, trained  # noqa: F401
from tests.hub_server import HubServer
from tests.test_package import imported_by

TEXT = "Tom and Mia said that [MASK] would come ."


@pytest.fixture(scope="module")
def explorer(trained: Trained) -> Explorer:  # noqa: F811
    return Explorer.load([trained.folder])


def slot_probs(model: GradiendModel, text: str, strength: float) -> torch.Tensor:
    """Probabilities at the slot, by transformers alone."""
    tokens = model.tokenizer(text.replace("[MASK]", model.tokenizer.mask_token), return_tensors="pt")
    place = (tokens["input_ids"][0] == model.tokenizer.mask_token_id).nonzero().item()
    with model.strength_at(strength), torch.no_grad():
        return model.get_base_model()(**tokens).logits[0, place].double().softmax(-1)


def test_answers_are_those_of_the_model(explorer: Explorer, trained: Trained) -> None:  # noqa: F811
    model = GradiendModel.from_pretrained(trained.folder, strength=0.0)
    (name,) = explorer.configs
    for strength in (0.0, 1.0, -2.0):
        base, edited = explorer.ask(TEXT, {name: strength})
        p, q = slot_probs(model, TEXT, 0.0), slot_probs(model, TEXT, strength)
        for shown, probs in ((base, p), (edited, q)):
            assert [chance for _, chance in shown.outputs] == pytest.approx(probs.topk(5).values.tolist(), abs=1e-5)
            words_of = {c: explorer.configs[name].fillers[c] for c in explorer.classes(name)}
            for of, chance in shown.classes[name].items():
                ids = {model.tokenizer.convert_tokens_to_ids(word) for word in words_of[of]}
                assert chance == pytest.approx(sum(probs[i].item() for i in ids), abs=1e-5)
        assert edited.kl == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-5)
    assert base.kl == 0.0


def test_a_question_leaves_the_model_as_it_was(explorer: Explorer) -> None:
    before = {n: p.clone() for n, p in explorer.model.get_base_model().named_parameters()}
    (name,) = explorer.configs
    explorer.ask(TEXT, {name: 1.5})
    explorer.values("He went home .", name)
    assert all(torch.equal(before[n], p) for n, p in explorer.model.get_base_model().named_parameters())


def test_users_at_once_do_not_disturb_each_other(explorer: Explorer) -> None:
    (name,) = explorer.configs
    strengths = [-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]
    alone = [explorer.ask(TEXT, {name: s}) for s in strengths]
    together: dict[int, tuple[Shown, Shown]] = {}

    def visit(number: int) -> None:
        for _ in range(3):
            together[number] = explorer.ask(TEXT, {name: strengths[number]})

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(len(strengths))]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert [together[number] for number in range(len(strengths))] == alone


def test_values_are_read_word_by_word(explorer: Explorer) -> None:
    (name,) = explorer.configs
    text = "Tom said that he would come, and they didn't."
    found = explorer.values(text, name)
    assert "".join(word.text for word in found) + "." == text
    assert [w.text for w in found if w.h is not None] == [
        "Tom",
        "said",
        "that",
        "he",
        "would",
        "come",
        "and",
        "they",
        "didn't",
    ]
    values = {w.text: w.h for w in found}
    assert values["he"] > values["they"]
    assert all(-1 < w.h < 1 for w in found if w.h is not None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write a sentence"),
        ("No slot here .", r"write \[MASK\]"),
        ("[MASK] and [MASK] .", "leave one"),
        ("word " * 3000 + "[MASK]", "Shorten it"),
        (None, "write a sentence"),
    ],
)
def test_bad_input_says_what_to_do(explorer: Explorer, text: str | None, says: str) -> None:
    with pytest.raises(DataError, match=says):
        explorer.ask(text, {})


def test_remarks_tell_of_the_band_and_of_another_language(explorer: Explorer) -> None:
    (name,) = explorer.configs
    config = explorer.configs[name]
    before, config.safe_band = config.safe_band, [-1.0, 1.5]
    try:
        assert explorer.remarks(TEXT, {name: 1.5}) == []
        (told,) = explorer.remarks(TEXT, {name: -1.05})
        assert "outside of the safe band, -1 to +1.5" in told
        config.safe_band = None
        assert "no safe band was measured" in explorer.remarks(TEXT, {name: 1.0})[0]
    finally:
        config.safe_band = before
    foreign = (
        "Übergrößenträger пришли вчера [MASK]",
        "Вчера пришли новые гости и [MASK] остались",
        "οι γυναίκες [MASK] σπίτι",
    )
    for sentence in foreign:
        assert any("language" in told for told in explorer.remarks(sentence, {}))
    own = ("The boys ran home because [MASK] felt ill.", "[MASK] is", "In 1984 [MASK] was 3 to 2.")
    assert [told for sentence in own for told in explorer.remarks(sentence, {})] == []
    with pytest.raises(ConfigError, match="no direction"):
        explorer.ask(TEXT, {"strange": 1.0})
    with pytest.raises(ConfigError, match="finite"):
        explorer.ask(TEXT, {name: math.nan})


def test_several_directions_move_together(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    other = tmp_path / "other"
    GradiendModel.from_pretrained(trained.folder, strength=0.0).save_pretrained(other)
    both = Explorer.load([trained.folder, other])
    first, second = both.configs
    model = GradiendModel.from_pretrained(trained.folder, strength=0.0)
    _, edited = both.ask(TEXT, {first: 0.5, second: 0.25})  # twice the same direction: the sum of the strengths
    expected = slot_probs(model, TEXT, 0.75).topk(5).values.tolist()
    assert [chance for _, chance in edited.outputs] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="twice"):
        Explorer.load([trained.folder, trained.folder])
    with pytest.raises(ConfigError, match="no direction"):
        Explorer.load([])


def test_a_generating_model_goes_on(causal_direction: Path) -> None:  # noqa: F811
    explorer = Explorer.load([causal_direction])
    (name,) = explorer.configs
    base, edited = explorer.ask("Tom went home because", {name: 1.0}, tokens=6)
    assert base.continuation
    assert base.kl == 0.0
    assert edited.kl is not None
    assert {*base.classes[name]} == {"3SG", "3PL"}
    assert "no curve was measured" in curve(name, explorer.reports[name], explorer.classes(name), None, 0.0)


def test_what_is_shown_is_never_code() -> None:
    attack = "<script>alert(1)</script>"
    shown = Shown([(attack, 0.5)], attack, {attack: {attack: 0.5}}, 0.1)
    page = answers(shown, shown, {attack: 1.0}) + notice([attack]) + words([Word(attack, 0.5)], (attack, attack))
    assert "<script" not in page
    assert "&lt;script" in page


def test_the_curve_marks_the_dose(explorer: Explorer) -> None:
    (name,) = explorer.configs
    page = curve(name, explorer.reports[name], explorer.classes(name), [-1.0, 1.0], 0.5)
    assert 'data-strength="0.5"' in page
    assert page.count("<polyline") == 2
    assert re.findall(r'text-anchor="middle">([^<]+)<', page) == ["-2", "-1", "0", "+1", "+2", "now +0.5"]
    assert "+0<" not in curve(name, explorer.reports[name], explorer.classes(name), [0.0, 1.0], 0.0)
    base, edited = explorer.ask(TEXT, {name: 0.0})
    assert f"At {name} 0<" in answers(base, edited, {name: 0.0})


def test_the_extra_is_named_where_gradio_is_absent(
    explorer: Explorer,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,  # noqa: F811
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    for use in (lambda: build_page(explorer), launch_options):
        with pytest.raises(MissingLibraryError, match=r"pip install 'gradiend_hub\[explorer\]'"):
            use()
    result = run("explore", "not-looked-at-before-the-library")
    assert result.exit_code == 1
    assert "gradiend_hub[explorer]" in result.stderr


def test_nothing_of_the_explorer_imports_gradio_early() -> None:
    (added,) = imported_by("import gradiend_hub.explorer, gradiend_hub_cli.explore")
    assert "gradiend_hub.explorer.page" in added
    assert "gradio" not in added


def test_a_space_of_something_else_is_kept(
    hub: HubServer,
    repo_id: str,
    trained: Trained,  # noqa: F811
) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    def upload(space: str, **files: str) -> None:
        for name, text in files.items():
            path = name.replace("_", ".")
            HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=space, repo_type="space")

    def text(space: str, name: str) -> str:
        return Path(hf_hub_download(space, name, repo_type="space")).read_text(encoding="utf-8")

    publish_folder(trained.folder, repo_id)
    placeholder = "---\ntitle: New\nsdk: gradio\nsdk_version: 9.9.9\n---\n\nCheck out the configuration reference.\n"
    # the Hub writes a card into a new Space
    space = f"{repo_id}-new"
    HfApi().create_repo(space, repo_type="space", space_sdk="gradio")
    upload(space, README_md=placeholder)
    push_space(space, [repo_id], "alice/base")
    card = text(space, "README.md")
    assert "9.9.9" not in card
    # what people add to our card stays, when other directions are shown, too
    upload(space, README_md=card.replace("title: ", "title: My own, ", 1) + "\nWritten by Alice.\n")
    push_space(space, [repo_id], "alice/other")
    card = text(space, "README.md")
    assert "title: My own, " in card
    assert "Written by Alice." in card
    assert yaml.safe_load(card.split("---")[1])["models"] == [repo_id, "alice/other"]
    with pytest.raises(HubPushError, match="a Space has no base model"):
        publish_folder(trained.folder, space, repo_type="space", base_id="alice/base")
    # somebody's program is not replaced
    theirs = f"{repo_id}-theirs"
    HfApi().create_repo(theirs, repo_type="space", space_sdk="gradio")
    upload(theirs, README_md=placeholder, app_py="print('theirs')")
    with pytest.raises(HubPushError, match="--overwrite"):
        push_space(theirs, [repo_id], "alice/base")
    assert text(theirs, "app.py") == "print('theirs')"
    push_space(theirs, [repo_id], "alice/base", overwrite=True)
    assert "build_page" in text(theirs, "app.py")


def test_a_space_is_pushed_with_its_metadata(
    hub: HubServer,
    repo_id: str,
    trained: Trained,  # noqa: F811
    tmp_path: Path,
) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    with pytest.raises(ConfigError, match="Publish it first"):
        space_files([str(trained.folder)])
    publish_folder(trained.folder, repo_id)
    with pytest.raises(ConfigError, match="names no base model on the Hub"):
        space_files([repo_id])
    commit = push_space(f"{repo_id}-space", [repo_id], "alice/base")
    again = push_space(f"{repo_id}-space", [repo_id], "alice/base")
    assert commit.oid == again.oid
    names = HfApi().list_repo_files(f"{repo_id}-space", repo_type="space")
    assert {"README.md", "app.py", "requirements.txt"} <= {*names}

    def text(name: str) -> str:
        return Path(hf_hub_download(f"{repo_id}-space", name, repo_type="space")).read_text(encoding="utf-8")

    card = yaml.safe_load(text("README.md").split("---")[1])
    assert card["sdk"] == "gradio"
    assert card["app_file"] == "app.py"
    assert card["models"] == [repo_id, "alice/base"]
    assert text("requirements.txt").startswith("gradiend_hub[explorer]==")
    tree = ast.parse(text("app.py"))
    assert repo_id in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
