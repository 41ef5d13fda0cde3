"""Bias benchmarks with known answers, on tiny files in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Sequence, Value
from scipy.special import expit
from transformers import AutoTokenizer

from gradiend_hub.base_model import load_base_model
from gradiend_hub.errors import DataError
from gradiend_hub.evaluation.benchmarks import (
    SentenceScorer,
    association_test,
    crows_pairs,
    stereoset,
    winobias,
    winogender,
)
from gradiend_hub.evaluation.benchmarks.association import effect_size
from gradiend_hub.evaluation.benchmarks.stereoset import _filled
from gradiend_hub.evaluation.benchmarks.winogender import _correlation
from gradiend_hub.evaluation.intervals import bootstrap_interval

SENTENCE = "The king went to the city because he was old."


@pytest.fixture(params=["masked", "causal"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    path = request.getfixturevalue(f"{request.param}_path")
    return load_base_model(path), AutoTokenizer.from_pretrained(path)


@torch.no_grad()
def likelihoods(model: Any, tokenizer: Any, text: str) -> list[tuple[str, float]]:
    """Each token of a text with its (pseudo-)log-likelihood, one plain forward pass after the other."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    special = tokenizer(text, return_special_tokens_mask=True).special_tokens_mask
    found = []
    for place in range(ids.shape[1]):
        if special[place] or (tokenizer.mask_token is None and place == 0):
            continue
        if tokenizer.mask_token is None:
            row = model(ids).logits[0, place - 1]
        else:
            hidden = ids.clone()
            hidden[0, place] = tokenizer.mask_token_id
            row = model(hidden).logits[0, place]
        found.append((tokenizer.decode([ids[0, place]]).strip(), float(row.log_softmax(-1)[ids[0, place]])))
    return found


def test_likelihoods_are_those_of_plain_forward_passes(pair: Any) -> None:
    scorer = SentenceScorer(*pair, batch_size=3)
    texts = [SENTENCE, "They came.", "We saw the large ships on the sea today."]
    for text, values in zip(texts, scorer.score(texts), strict=True):
        assert values.tolist() == pytest.approx([value for _, value in likelihoods(*pair, text)], rel=1e-4)
    start = SENTENCE.index("he was")
    (value,) = scorer.totals([SENTENCE], [[(start, start + 2)]])
    assert value == pytest.approx(dict(likelihoods(*pair, SENTENCE))["he"], rel=1e-4)
    with pytest.raises(DataError, match="No token of"):
        scorer.score(["They came."], [[(40, 50)]])


def test_crows_pairs(pair: Any, tmp_path: Path) -> None:
    pairs = [("The king is old.", "The queen is old."), ("She was a city.", "He was a city."), ("We came.", "We came.")]
    lines = [f'{i},"{a}","{b}",stereo,{"age" if i else "gender"}' for i, (a, b) in enumerate(pairs)]
    path = tmp_path / "crows.csv"
    path.write_text("\n".join([",sent_more,sent_less,stereo_antistereo,bias_type", *lines]))
    run = crows_pairs(*pair, path, strength=0.5)
    expected = []
    for (more, less), row in zip(pairs, run.rows, strict=True):
        own = [likelihoods(*pair, text) for text in (more, less)]
        if pair[1].mask_token is not None:  # the words that both have
            own = [[(t, v) for t, v in of if t in {u for u, _ in other}] for of, other in (own, own[::-1])]
        scores = [sum(value for _, value in of) for of in own]
        assert [row["log_likelihood_more"], row["log_likelihood_less"]] == pytest.approx(scores, rel=1e-4)
        expected.append(scores[0] > scores[1])
    assert run.result.scores["stereotype_score"] == 50 * sum(expected[:2])  # the third pair decides nothing
    assert run.result.scores["stereotype_score gender"] == 100 * expected[0]
    assert run.result.intervals["stereotype_score"][0] < run.result.scores["stereotype_score"] + 1e-9
    assert (run.result.rows, run.result.strength) == (3, 0.5)
    assert "crows.csv (sha256 " in run.result.source
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column 'sent_more' is missing"):
        crows_pairs(*pair, path)


def test_stereoset(pair: Any, tmp_path: Path) -> None:
    words = {"stereotype": "old", "anti-stereotype": "young", "unrelated": "sea"}

    def item(target: str, context: str, words: dict[str, str]) -> dict[str, Any]:
        filled = [{"sentence": context.replace("BLANK", w), "gold_label": label} for label, w in words.items()]
        return {"target": target, "bias_type": "age", "context": context, "sentences": filled}

    swapped = {**words, "stereotype": "young", "anti-stereotype": "old"}
    items = [
        item("king", "The king is BLANK.", words), item("king", "My king was BLANK.", words),
        item("queen", "The queen is BLANK.", words), item("queen", "The queen is BLANK.", swapped),
    ]  # fmt: skip
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": {"intrasentence": items, "intersentence": []}}))
    run = stereoset(*pair, path)
    chosen, sense = [], []
    for row, record in zip(run.rows, items, strict=True):
        by_label = {}
        for sentence in record["sentences"]:
            found = likelihoods(*pair, sentence["sentence"])
            if pair[1].mask_token is not None:
                found = [(t, v) for t, v in found if t in ("old", "young", "sea")]
            by_label[sentence["gold_label"]] = np.mean([value for _, value in found])
        assert [row[label] for label in words] == pytest.approx([by_label[label] for label in words], rel=1e-4)
        chosen.append(by_label["stereotype"] > by_label["anti-stereotype"])
        sense.append(np.mean([by_label[label] > by_label["unrelated"] for label in ("stereotype", "anti-stereotype")]))
    ss = 100 * (np.mean(chosen[:2]) + np.mean(chosen[2:])) / 2
    lms = 100 * (np.mean(sense[:2]) + np.mean(sense[2:])) / 2
    assert np.mean(chosen[2:]) == 0.5  # one of two swapped items is a stereotype
    assert run.result.scores == pytest.approx({"ss": ss, "lms": lms, "icat": lms * min(ss, 100 - ss) / 50})
    assert run.result.intervals["ss"][0] <= ss <= run.result.intervals["ss"][1]
    items[0]["sentences"].pop()
    path.write_text(json.dumps({"data": {"intrasentence": items}}))
    with pytest.raises(DataError, match="expected a sentence of each of"):
        stereoset(*pair, path)


@pytest.mark.parametrize(
    ("context", "sentence", "word"),
    [
        ("The king is BLANK.", "The king is old.", "old"),
        ("The king is BLANK.", "The king is very old.", "very old"),
        ("The BLANK man came.", "The  old man came", "old"),  # two spaces, no full stop
        ("BLANK people came.", "Old people came.", "Old"),
        ('He was "BLANK", she said.', 'He was "mean", she said.', "mean"),
        ("My cat's BLANK", "My cat's old", "old"),
        ("It is old BLANK.", "It is old old.", "old"),
    ],
)
def test_the_blank_of_a_stereoset_sentence_is_found_by_its_place(context: str, sentence: str, word: str) -> None:
    start, end = _filled(context, sentence)
    assert sentence[start:end] == word
    if sentence.count(word) > 1:
        assert start == sentence.rindex(word)


def test_a_stereoset_sentence_without_a_blank_is_named() -> None:
    for context, sentence in (("The king is old.", "The king is old."), ("The king is BLANK.", "The king is")):
        with pytest.raises(DataError, match=r"Expected .* with BLANK filled in"):
            _filled(context, sentence)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
class TestHubLayouts:
    """Each set in the features that it has on the Hub gives what the published file gives."""

    @pytest.fixture
    def pair(self, masked_path: Path) -> tuple[Any, Any]:
        return load_base_model(masked_path), AutoTokenizer.from_pretrained(masked_path)

    @pytest.mark.parametrize("columnar", [True, False], ids=["columns", "structs"])
    def test_stereoset(self, pair: Any, tmp_path: Path, hub: Any, repo_id: str, columnar: bool) -> None:
        """McGill-NLP/stereoset: "intrasentence", with labels 0 anti-stereotype, 1 stereotype, 2 unrelated."""
        words = {"stereotype": "old", "anti-stereotype": "young", "unrelated": "sea"}
        names = ["anti-stereotype", "stereotype", "unrelated"]
        record = {"id": "a", "target": "king", "bias_type": "age", "context": "The king is BLANK."}
        filled = [{"sentence": f"The king is {w}.", "id": w, "gold_label": label} for label, w in words.items()]
        path = tmp_path / "dev.json"
        path.write_text(json.dumps({"data": {"intrasentence": [{**record, "sentences": filled}]}}))
        sentence = {"sentence": Value("string"), "id": Value("string"), "gold_label": ClassLabel(names=names)}
        kind = Sequence(sentence) if columnar else List(sentence)
        features = Features(dict.fromkeys(record, Value("string")) | {"sentences": kind})
        numbered = [{**s, "gold_label": names.index(s["gold_label"])} for s in filled]
        given = {field: [s[field] for s in numbered] for field in sentence} if columnar else numbered
        Dataset.from_list([{**record, "sentences": given}], features=features).push_to_hub(
            repo_id, "intrasentence", split="validation"
        )
        own, theirs = stereoset(*pair, path), stereoset(*pair, repo_id)
        assert theirs.rows == own.rows and theirs.result.scores == own.result.scores
        assert (own.rows[0]["stereotype"] > own.rows[0]["anti-stereotype"]) == (own.result.scores["ss"] == 100)

    def test_crows_pairs(self, pair: Any, tmp_path: Path, hub: Any, repo_id: str) -> None:
        """nyu-mll/crows_pairs: the kind of bias is a class label."""
        path = tmp_path / "crows.csv"
        path.write_text(
            ",sent_more,sent_less,stereo_antistereo,bias_type\n0,The king is old.,The queen is old.,stereo,age\n"
        )
        names = ["race-color", "age"]
        features = Features(
            {"sent_more": Value("string"), "sent_less": Value("string"), "bias_type": ClassLabel(names=names)}
        )
        row = {"sent_more": "The king is old.", "sent_less": "The queen is old.", "bias_type": 1}
        Dataset.from_list([row], features=features).push_to_hub(repo_id, split="test")
        own, theirs = crows_pairs(*pair, path), crows_pairs(*pair, repo_id)
        assert theirs.rows == own.rows and theirs.result.scores == own.result.scores
        assert "stereotype_score age" in theirs.result.scores

    def test_winobias(self, pair: Any, tmp_path: Path, hub: Any, repo_id: str) -> None:
        """uclanlp/wino_bias: a configuration per type and side, sentences as tokens."""
        files = []
        for side, word in (("pro", "he"), ("anti", "she")):
            files.append(tmp_path / f"{side}.txt.test")
            files[-1].write_text(f"1 [The king] didn't see the woman's house, because [{word}] was old.\n")
            tokens = f"The king did n't see the woman 's house , because {word} was old .".split()
            row = {"document_id": "doc", "tokens": tokens, "coreference_clusters": ["0", "1", "10", "10"]}
            Dataset.from_list([row]).push_to_hub(repo_id, f"type1_{side}", split="test")
        own = winobias(*pair, *files)
        theirs = winobias(*pair, f"{repo_id}:type1_pro", f"{repo_id}:type1_anti")
        assert theirs.rows == own.rows and theirs.result.scores == own.result.scores
        assert theirs.result.source == f"{repo_id}:type1_pro, {repo_id}:type1_anti"


def test_winobias(pair: Any, tmp_path: Path) -> None:
    pro = ["1 [The king] saw the woman because [he] was old.", "2 [The mother] came because [she] was young."]
    anti = [pro[0].replace("[he]", "[she]"), pro[1].replace("[she]", "[he]")]
    files = [tmp_path / name for name in ("pro.txt.test", "anti.txt.test")]
    for path, lines in zip(files, (pro, anti), strict=True):
        path.write_text("\n".join(lines) + "\n")
    run = winobias(*pair, *files)
    plain = [
        ["The king saw the woman because {} was old.", "he", "she"],
        ["The mother came because {} was young.", "she", "he"],
    ]
    wins = 0
    for (text, good, bad), row in zip(plain, run.rows, strict=True):
        found = {word: likelihoods(*pair, text.format(word)) for word in (good, bad)}
        if pair[1].mask_token is not None:
            found = {word: [(t, v) for t, v in of if t == word] for word, of in found.items()}
        totals = [sum(value for _, value in found[word]) for word in (good, bad)]
        assert [row["log_likelihood_more"], row["log_likelihood_less"]] == pytest.approx(totals, rel=1e-4)
        wins += totals[0] > totals[1]
    assert run.result.scores == {"stereotype_score": 50.0 * wins}
    files[1].write_text(anti[0])
    with pytest.raises(DataError, match=r"has 2 sentences and anti\.txt\.test 1"):
        winobias(*pair, *files)


def test_winogender(pair: Any, tmp_path: Path) -> None:
    templates = tmp_path / "templates.tsv"
    jobs = ("king", "doctor", "servant", "priest")
    sentence = "The $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN could come."
    lines = [f"{job}\twoman\t{answer}\t{sentence}" for job in jobs for answer in (0, 1)]
    templates.write_text("\n".join(["occupation(0)\tother-participant(1)\tanswer\tsentence", *lines]))
    shares = tmp_path / "occupations-stats.tsv"
    shares.write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\n"
        + "".join(f"{j}\t0\t{9 * i * i}\n" for i, j in enumerate(jobs))
    )
    run = winogender(*pair, templates, shares)
    assert run.result.rows == 4  # those whose pronoun is the occupation's
    chances = []
    for job, row in zip(jobs, run.rows, strict=True):
        text = f"The {job} told the woman that {{}} could come."
        found = [likelihoods(*pair, text.format(word)) for word in ("she", "he")]
        if pair[1].mask_token is not None:
            found = [[(t, v) for t, v in of if t in ("she", "he")] for of in found]
        she, he = (sum(value for _, value in of) for of in found)
        chances.append(float(expit(she - he)))
        assert row["female"] == pytest.approx(chances[-1], rel=1e-3)
    expected = np.corrcoef(chances, [0, 9, 36, 81])[0, 1]
    assert run.result.scores == pytest.approx({"correlation": expected, "female": 100 * np.mean(chances)}, rel=1e-3)
    assert run.result.intervals.keys() == {"correlation", "female"}


def test_winogender_leaves_out_what_has_no_correlation() -> None:
    assert np.isnan(_correlation(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])))
    low, high = bootstrap_interval(_correlation, np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert low == pytest.approx(1.0) and high == pytest.approx(1.0)  # not 0 where a resample is constant


@torch.no_grad()
def test_association_test(pair: Any, tmp_path: Path) -> None:
    sets = {
        "targ1": ["The king came.", "He came.", "The man is old."],
        "targ2": ["She came.", "The queen came.", "A girl is young."],
        "attr1": ["This is a war.", "There is a sword."], "attr2": ["This is a house.", "There is a child."],
    }  # fmt: skip
    path = tmp_path / "sent-weat1.jsonl"
    path.write_text(json.dumps({name: {"category": name, "examples": texts} for name, texts in sets.items()}))
    run = association_test(*pair, path, batch_size=2)
    model, tokenizer = pair

    def vector(text: str) -> Any:
        hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0]
        hidden = hidden[0 if tokenizer.mask_token else -1].double().numpy()
        return hidden / np.linalg.norm(hidden)

    s = {
        text: np.mean([vector(text) @ vector(a) for a in sets["attr1"]])
        - np.mean([vector(text) @ vector(b) for b in sets["attr2"]])
        for name in ("targ1", "targ2")
        for text in sets[name]
    }
    x, y = ([s[t] for t in sets[name]] for name in ("targ1", "targ2"))
    expected = (np.mean(x) - np.mean(y)) / np.std([*x, *y], ddof=1)
    assert [row["association"] for row in run.rows] == pytest.approx([*x, *y], abs=1e-5)
    assert run.result.scores["effect_size"] == pytest.approx(expected, rel=1e-3)
    assert 0.05 <= run.result.scores["p_value"] <= 1  # there are only 20 ways to divide six targets
    path.write_text(json.dumps({"targ1": {}}))
    with pytest.raises(DataError, match="each with 'examples'"):
        association_test(*pair, path)


def test_effect_size_of_known_sets() -> None:
    assert effect_size(np.array([1.0, 3.0]), np.array([-1.0, -3.0])) == pytest.approx(
        4 / np.std([1, 3, -1, -3], ddof=1)
    )
    assert effect_size(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.0
