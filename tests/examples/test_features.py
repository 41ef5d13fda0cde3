"""The feature examples from end to end, on the bundled model and a little text of their own."""

from __future__ import annotations

import importlib
import random
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi

from gradiend_hub.data import read_rows
from tests.conftest import ROOT

PLACES = ["town", "village", "forest", "garden", "castle", "market", "harbour", "valley", "church", "school"]
THINGS = ["bread", "water", "letters", "horses", "books", "apples", "candles", "stones", "flowers", "tools"]
FRAMES = {
    "english_pronouns": "On day {n} in the {a} by the {b} everybody was told that {word} had sold the {c} there.",
    "english_gender": "On day {n} in the {a} by the {b} everybody knew that {word} had sold the {c} there.",
    "sentiment": "On day {n} in the {a} by the {b} the people said that the {c} were {word} again.",
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs an example in this process with the bundled masked model, or with what other options say."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))

    def run(name: str, capsys: Any, *arguments: str) -> str:
        base = ROOT / "examples" / "base_models" / "masked"
        given = arguments if "--model" in arguments else ("--offline", "--model", str(base), *arguments)
        monkeypatch.setattr(sys, "argv", [name, "--max-rows", "24", *given])
        importlib.import_module(name).main()
        return str(capsys.readouterr().out)

    yield run
    datasets.enable_progress_bars()


def words_of(name: str) -> list[str]:
    module = importlib.import_module(name)
    if name == "english_pronouns":
        return [word for found in module.CLASSES.values() for word in found]
    return [word for found in module.WORDS.values() for word in found.split()]


def sentences(name: str, each: int) -> list[str]:
    rng = random.Random(0)
    drawn = [(word, n) for word in words_of(name) for n in range(each)]
    rng.shuffle(drawn)
    return [
        FRAMES[name].format(n=n, word=word, a=rng.choice(PLACES), b=rng.choice(PLACES), c=rng.choice(THINGS))
        for n, (word, _) in enumerate(drawn)
    ]


def correlations(output: str) -> dict[str, float]:
    found = re.findall(r"^\| [^|]+ \| ([^|]+ / [^|]+) \| \d+ \| \d+ \| \w+ \| (-?\d\.\d+) \|$", output, re.M)
    return {pair: float(value) for pair, value in found}


@pytest.mark.parametrize(("name", "each"), [("english_gender", 10), ("sentiment", 12)])
def test_built_from_text(name: str, each: int, example: Any, capsys: Any, tmp_path: Path, masked_path: Path) -> None:
    text = [
        *sentences(name, each),
        *(f"On day {n} nobody was in the {place} at all." for n, place in enumerate(PLACES * 3)),
    ]
    (tmp_path / "text.txt").write_text("\n".join(text), encoding="utf-8")
    output = example(name, capsys, "--text", str(tmp_path / "text.txt"), "--save", str(tmp_path / f"set-{name}"))
    ((pair, _),) = correlations(output).items()
    saved = datasets.load_dataset(str(tmp_path / f"set-{name}"))
    assert read_rows(saved["test"], pair.split(" / "))
    if name == "sentiment":
        train, test = ({row["factual"] for row in saved[split]} for split in ("train", "test"))
        assert not train & test
    else:
        assert re.search(r"^strength \+0\.00 +[+-]0\.\d+ +1\.000$", output, re.M)


def test_pairs_from_templates(example: Any, capsys: Any, masked_path: Path) -> None:
    output = example("race_religion", capsys)
    found = correlations(output)
    assert len(found) == 6
    assert min(found.values()) > 0.1  # after four steps


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_with_a_model_and_a_set_of_the_hub(
    example: Any, capsys: Any, hub: Any, repo_id: str, masked_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `--offline`: the base model is a repository, and the set has equal splits, as some of aieng-lab's have."""
    api = HfApi()
    api.create_repo(f"{repo_id}-base")
    api.upload_folder(repo_id=f"{repo_id}-base", folder_path=masked_path)
    pair = [("Asian", "asian", "White", "white"), ("White", "white", "Asian", "asian")]
    rows = [
        {"masked": f"On day {n} the [MASK] people came to the {place}.", "source": a, "target": b, "source_id": i,
         "target_id": j}
        for n, place in enumerate(PLACES * 4) for a, i, b, j in pair
    ]  # fmt: skip
    same = datasets.DatasetDict(dict.fromkeys(("train", "test"), datasets.Dataset.from_list(rows)))
    same.push_to_hub(repo_id, config_name="asian_to_white")
    module = importlib.import_module("race_religion")
    monkeypatch.setattr(module, "HUB", {"race": repo_id})
    monkeypatch.setattr(module, "CLASSES", {"race": {"asian": ["Asian"], "white": ["White"]}})
    output = example("race_religion", capsys, "--model", f"{repo_id}-base")
    assert "0 rows occur in a later split again" in output
    assert list(correlations(output)) == ["asian / white"]


@pytest.mark.slow
def test_german_articles_by_rules(example: Any, capsys: Any, tmp_path: Path, masked_path: Path) -> None:
    nouns = {"der": "Benutzer Server Kernel Befehl", "die": "Meldung Sicherheit Version Einheit",
             "das": "System Paket Programm Dokument", "in der": "Meldung Sicherheit Version Einheit"}  # fmt: skip
    rng = random.Random(1)
    lines = [
        f"Am Tag {n} sahen wir gleich, dass {article} {rng.choice(found.split())} ganz {rng.choice(THINGS)} war."
        for n, (article, found) in enumerate(list(nouns.items()) * 14)
    ]
    (tmp_path / "german.txt").write_text("\n\n".join(lines), encoding="utf-8")
    output = example("german_articles", capsys, "--text", str(tmp_path / "german.txt"))
    assert len(correlations(output)) == 4
    assert "  fem_dat: 22 train, 4 validation, 2 test" in output  # masc_nom has the same word


@pytest.mark.slow
@pytest.mark.release
def test_all_pairs_of_pronouns(example: Any, capsys: Any, tmp_path: Path, masked_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(sentences("english_pronouns", 30)), encoding="utf-8")
    found = correlations(example("english_pronouns", capsys, "--text", str(tmp_path / "text.txt")))
    assert len(found) == 10  # the pair 3SG / 3PL is learned from both sets
    assert statistics.median(found.values()) > 0.8  # a pair has only two or three test rows here, and one may fail
