"""Feature data of others, served from a Hub in exactly the layouts in which they lie there, and read from files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from gradiend_hub.data import (
    FeatureDataConfig,
    FeatureDatasetBuilder,
    NeutralSpec,
    read_rows,
    read_texts,
    without_leaks,
)
from gradiend_hub.data import readers as module
from gradiend_hub.data.readers import ReadData
from gradiend_hub.errors import DataError
from tests.conftest import PRONOUNS
from tests.data.builder.test_build import PRONOUNS as WORDS
from tests.data.builder.test_build import texts

ARTICLES = {
    "masc_nom": "der", "masc_acc": "den", "masc_dat": "dem", "masc_gen": "des", "fem_nom": "die", "fem_acc": "die",
    "fem_dat": "der", "fem_gen": "der", "neut_nom": "das", "neut_acc": "das", "neut_dat": "dem", "neut_gen": "des",
}  # fmt: skip
SPLITS = ("train", "validation", "test")
NEUTRAL = [f"Nobody {number} was seen in the old house on the long road today." for number in range(80)]


def read_feature_data(*args: Any, **options: Any) -> ReadData:
    """Every set that these tests read has a funnel that ends with its rows, and never rises or falls below zero."""
    read = module.read_feature_data(*args, **options)
    assert read.funnel.kept == sum(map(len, read.rows.values()))
    for unit in ("records", "rows"):
        counts = [count for _, of, count in read.funnel.steps if of == unit]
        assert counts == sorted(counts, reverse=True) and counts[-1] >= 0
    return read


def pushed(tables: dict[str, dict[str, list[dict[str, Any]]]], repo_id: str, folder: Path) -> None:
    """A data set on the Hub, by configuration and split, as `push_to_hub` of datasets lays it out."""
    for config, splits in tables.items():
        (folder / config).mkdir(parents=True)
        for name, rows in splits.items():
            datasets.Dataset.from_list(rows).to_parquet(folder / config / f"{name}-00000-of-00001.parquet")
    configs = [
        {"config_name": config, "data_files": [{"split": s, "path": f"{config}/{s}-*"} for s in splits]}
        for config, splits in tables.items()
    ]
    DatasetCard(f"---\n{DatasetCardData(configs=configs).to_yaml()}\n---\n").save(folder / "README.md")
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset")
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder)


def test_german_articles(hub: Any, repo_id: str, tmp_path: Path) -> None:
    """A configuration per class with `masked`, `split` and `label`, as aieng-lab/de-gender-case-articles."""
    tables = {
        name: {
            split: [
                {"masked": f"Satz {number} mit [MASK] Wort für {name}, {split}.", "split": split, "label": article}
                for number in range(6)
            ]
            for split in SPLITS
        }
        for name, article in ARTICLES.items()
    }
    tables["masc_nom"]["train"].append({"masked": "[MASK] Hund bellt.", "split": "train", "label": "Der"})
    pushed(tables, repo_id, tmp_path / "set")
    read = read_feature_data(repo_id, ["masc_nom", "fem_nom"])
    assert {name: len(part) for name, part in read.rows.items()} == {"train": 13, "validation": 12, "test": 12}
    rows = read_rows(read.rows["train"], ["masc_nom", "fem_nom"])
    assert {(r.factual, r.alternative, r.factual_class) for r in rows} == {
        ("der", "die", "masc_nom"), ("Der", "Die", "masc_nom"), ("die", "der", "fem_nom"),
    }  # fmt: skip
    with pytest.raises(DataError, match=r"has no usable rows(?s:.*)factual and alternative are the same word"):
        read_feature_data(repo_id, ["masc_nom", "fem_dat"])  # "der" twice: nothing to tell apart
    every = read_feature_data(repo_id)
    pairs = {(row["factual_class"], row["alternative_class"]) for row in every.rows["test"]}
    assert pairs == {(a, b) for a, article in ARTICLES.items() for b, other in ARTICLES.items() if article != other}


def test_pairs_of_races(hub: Any, repo_id: str, tmp_path: Path) -> None:
    """A configuration per pair with source and target, as aieng-lab/gradiend_race_data and gradiend_religion_data."""

    def record(source: str, target: str, own: str, other: str, number: int = 0) -> dict[str, str]:
        masked = f"The [MASK] people of town {number} came."
        text, swapped = masked.replace("[MASK]", source), masked.replace("[MASK]", target)
        return {"text": text, "swapped": swapped, "masked": masked, "source": source, "target": target,
                "source_id": own, "target_id": other}  # fmt: skip

    def table(first: tuple[str, str], second: tuple[str, str]) -> dict[str, list[dict[str, str]]]:
        rows = [record(first[0], second[0], first[1], second[1], n) for n in range(3)]
        rows += [record(second[0], first[0], second[1], first[1], n) for n in range(2)]
        rows.append(rows[0] | {"masked": "The [MASK] and the [MASK] came."})
        return {"train": rows, "val": rows[:4], "test": rows}

    white, black, asian = ("white", "white"), ("African", "black"), ("Asian", "asian")
    pairs = {"black_to_white": (black, white), "asian_to_white": (asian, white), "asian_to_black": (asian, black)}
    pushed({name: table(*pair) for name, pair in pairs.items()}, repo_id, tmp_path / "set")
    read = read_feature_data(repo_id, ["black", "white"])
    assert {name: len(part) for name, part in read.rows.items()} == {"train": 5, "validation": 4, "test": 5}
    assert read.funnel.steps == [
        ("read", "records", 16), ("more than one slot", "records", 14), ("rows, one for each alternative", "rows", 14),
    ]  # fmt: skip
    rows = read_rows(read.rows["train"], ["black", "white"])
    assert {(r.factual, r.alternative) for r in rows} == {("African", "white"), ("white", "African")}


def test_equal_splits_are_said_and_can_be_divided_anew(
    hub: Any, repo_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A set whose test split is its training split, as some configurations of the race and religion data."""
    rows = [
        {"masked": f"The [MASK] people of town {n} came.", "source": a, "target": b, "source_id": a, "target_id": b}
        for n in range(20) for a, b in (("jewish", "muslim"), ("muslim", "jewish"))
    ]  # fmt: skip
    pushed({"jewish_to_muslim": {"train": rows, "test": rows}}, repo_id, tmp_path / "set")
    read = read_feature_data(repo_id)
    assert read.leaks.exact == len(rows) == len(read.leaks.pairs)
    said = f"40 rows occur in a later split again (40 of them word for word) of {repo_id}. What is measured on rows"
    assert said in caplog.text
    with pytest.raises(DataError, match="All 40 rows of split 'train' occur in a later split again"):
        without_leaks(read.rows)
    caplog.clear()
    anew = read_feature_data(repo_id, splits={"train": 0.5, "validation": 0.25, "test": 0.25})
    assert {name: len(part) for name, part in anew.rows.items()} == {"train": 20, "validation": 10, "test": 10}
    texts = [set(part["masked"]) for part in anew.rows.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert not anew.leaks.pairs and not caplog.text
    assert anew.funnel.steps[-1] == ("in several of the old splits", "rows", 40)


def test_a_column_for_each_class(hub: Any, repo_id: str, tmp_path: Path) -> None:
    """A configuration per class with a column per class, as the later form of the race and religion data."""
    words = {"christian": "church", "jewish": "synagogue", "muslim": "mosque"}
    tables = {
        name: {split: [{"masked": f"In the [MASK] of {name} {n}.", "split": split, **words} for n in range(3)]
               for split in SPLITS}
        for name in words
    }  # fmt: skip
    pushed(tables, repo_id, tmp_path / "set")
    read = read_feature_data(repo_id, ["christian", "muslim"])
    assert [len(part) for part in read.rows.values()] == [6, 6, 6]
    assert {(r["factual"], r["alternative"]) for r in read.rows["test"]} == {("church", "mosque"), ("mosque", "church")}
    assert len(read_feature_data(repo_id).rows["train"]) == 18  # each against both others


def test_name_templates_and_neutral_text(hub: Any, repo_id: str, tmp_path: Path) -> None:
    """Names and pronouns in templates, as aieng-lab/genter; sentences alone, as aieng-lab/biasneutral."""
    rows = [
        {"text": "mary knew she was right .", "masked": "[NAME] knew [PRONOUN] was right .", "label": "F", "name": "mary",
         "pronoun": "she", "pronoun_count": 1},
        {"text": "john said he was late .", "masked": "[NAME] said [PRONOUN] was late .", "label": "M", "name": "john",
         "pronoun": "he", "pronoun_count": 1},
        {"text": "john said he knew he was late .", "masked": "[NAME] said [PRONOUN] knew [PRONOUN] was late .",
         "label": "M", "name": "john", "pronoun": "he", "pronoun_count": 2},
    ]  # fmt: skip
    pushed({"default": {"train": rows, "validation": rows[:2], "test": rows[:2]}}, repo_id, tmp_path / "set")
    read = read_feature_data(repo_id)
    assert read.rows["train"][:] == {
        "masked": ["mary knew [MASK] was right .", "john said [MASK] was late ."], "factual": ["she", "he"],
        "alternative": ["he", "she"], "factual_class": ["F", "M"], "alternative_class": ["M", "F"],
        "split": ["train", "train"],
    }  # fmt: skip
    assert ("more than one slot", "records", 6) in read.funnel.steps
    sentences = repo_id.replace("alice/", "alice/neutral-")
    pushed({"default": {"train": [{"text": "Nobody came ."}]}}, sentences, tmp_path / "sentences")
    assert read_texts(datasets.load_dataset(sentences, split="train")) == ["Nobody came ."]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["label", "token", None])
def test_files_of_single_classes(tmp_path: Path, ending: str, column: str | None) -> None:
    words = {"3SG": ["he", "it"], "3PL": ["they"]}
    for name, found in words.items():
        rows = [
            {
                "masked": f"So then [MASK] came {n}.",
                "split": "val" if n else "train",
                column or name: found[n % len(found)],
            }
            for n in range(4)
        ]
        getattr(datasets.Dataset.from_list(rows), f"to_{ending}")(tmp_path / f"{name}.{ending}")
    for source in (tmp_path, {name: tmp_path / f"{name}.{ending}" for name in words}):
        read = read_feature_data(source, ["3SG", "3PL"])
        assert {name: len(part) for name, part in read.rows.items()} == {"train": 2, "validation": 6}
        assert len(read_rows(read.rows["validation"], ["3SG", "3PL"])) == 6


@pytest.mark.parametrize("explicit", [False, True])
def test_one_table_of_all_classes(tmp_path: Path, explicit: bool) -> None:
    rows = [
        {"masked": f"So then [MASK] came {n}.", "split": "train", "label": word, "label_class": name}
        | ({"alternative": "x", "alternative_class": "3PL" if name == "3SG" else "3SG"} if explicit else {})
        for n, (word, name) in enumerate([("He", "3SG"), ("they", "3PL"), ("it", "3SG"), ("we", "1PL")])
    ]
    path = tmp_path / "training.csv"
    datasets.Dataset.from_list(rows).to_csv(path)
    read = read_feature_data(path, ["3SG", "3PL"])
    assert read.funnel.steps[:2] == [("read", "records", 4), ("of another class", "records", 3)]
    assert read.rows["train"]["alternative"][0] == ("x" if explicit else "They")
    own = read.rows["train"]
    assert read_feature_data(own).rows["train"][:] == own[:]  # the library's own layout


def test_what_cannot_be_read(tmp_path: Path, hub: Any) -> None:
    with pytest.raises(
        DataError, match=r"The columns \['label', 'text'\] .* are of no known layout. Expected `masked`"
    ):
        read_feature_data(datasets.Dataset.from_list([{"text": "a", "label": 1}]), ["a", "b"])
    with pytest.raises(DataError, match="'alice/there-is-none' cannot be read"):
        read_feature_data("alice/there-is-none")
    rows = [{"masked": m, "label": "he", "label_class": "a"} for m in ("no slot", "[MASK]")]
    rows.append({"masked": "so [MASK]", "label": "", "label_class": "b"})
    with pytest.raises(DataError, match=r"Class 'a' has no usable rows(?s:.*)no slot"):
        read_feature_data(datasets.Dataset.from_list(rows))


def test_the_bundled_set() -> None:
    """Its configuration of neutral text has no slots: it is left out, and counted."""
    for classes in (None, ["3SG", "3PL"], ["3PL", "3SG"]):
        read = read_feature_data(PRONOUNS, classes)
        assert set(read.rows) == set(SPLITS)
        read_rows(read.rows["train"], ["3SG", "3PL"])
        neutral = len((PRONOUNS / "neutral.jsonl").read_text(encoding="utf-8").splitlines())
        (_, _, before), (name, _, after) = read.funnel.steps[:2]
        assert (name, before - after) == ("texts without a slot (neutral)", neutral)
        assert after == read.funnel.kept


def test_what_this_library_saves_and_pushes_reads_back(hub: Any, repo_id: str, tmp_path: Path) -> None:
    config = FeatureDataConfig(WORDS, neutral=NeutralSpec(40))
    data = FeatureDatasetBuilder(config).build([*texts(200), *NEUTRAL])
    data.save(tmp_path / "set")
    data.push_to_hub(repo_id)
    for source in (tmp_path / "set", repo_id):
        for classes in (None, ["3SG", "3PL"]):
            read = read_feature_data(source, classes)
            assert {name: part[:] for name, part in read.rows.items()} == {n: p[:] for n, p in data.rows.items()}
            assert read.funnel.steps[1][0] == "texts without a slot (neutral)"


def test_another_folder_of_the_same_name_is_read_anew(tmp_path: Path) -> None:
    """The cache of datasets takes them for one."""
    for number in range(2):
        config = FeatureDataConfig(WORDS, balance="none")
        data = FeatureDatasetBuilder(config).build(texts(80, seed=number))
        read = read_feature_data(data.save(tmp_path / str(number) / "same-name"))
        assert read.rows["test"][:] == data.rows["test"][:]


def test_a_record_is_judged_once() -> None:
    """With several alternatives, each reason counts records, and one usable alternative is enough."""
    records = [
        {"masked": "In the [MASK] they sat.", "a": "church", "b": "mosque", "c": "temple"},
        {"masked": "In the [MASK] they ate.", "a": "church", "b": "church", "c": None},
        {"masked": "In the hall they ate.", "a": "church", "b": "mosque", "c": "temple"},
        {"masked": "In the [MASK] we slept.", "a": None, "b": "mosque", "c": "temple"},
        {"masked": "In the [MASK] we sang.", "a": "church", "b": None, "c": "temple"},
    ]
    other = [
        {"masked": f"To the {m} they went.", "a": "church", "b": "mosque", "c": "temple"} for m in ("[MASK]", "hall")
    ]
    parts = {"a": records, "b": other, "c": other}
    read = read_feature_data({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    assert read.funnel.steps == [
        ("read", "records", 9), ("factual and alternative are the same word", "records", 8), ("no slot", "records", 5),
        ("a value is missing", "records", 4), ("rows, one for each alternative", "rows", 7),
    ]  # fmt: skip


def test_records_that_get_no_alternative_are_counted() -> None:
    words = [("he", "a"), ("they", "b"), ("he", "b"), (None, "b"), ("it", None)]
    rows = [
        {"masked": f"So [MASK] came {n}.", "label": word, "label_class": name} for n, (word, name) in enumerate(words)
    ]
    steps = read_feature_data(datasets.Dataset.from_list(rows), ["a", "b"], seed=1).funnel.steps
    assert steps == [
        ("read", "records", 5), ("a value is missing", "records", 3),
        ("factual and alternative are the same word", "records", 2), ("rows, one for each alternative", "rows", 2),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"Class 'a' has no usable rows(?s:.*)no word of another class"):
        read_feature_data(datasets.Dataset.from_list(rows[:1]))


def test_names_that_are_missing_are_counted() -> None:
    templates = [("mary", "she", "F"), ("john", "he", "M"), (None, "he", "M"), ("", "she", "F")]
    rows = [
        {"masked": f"[NAME] knew {number} so [PRONOUN] left.", "name": name, "pronoun": pronoun, "label": label}
        for number, (name, pronoun, label) in enumerate(templates)
    ]
    read = read_feature_data(datasets.Dataset.from_list(rows))
    assert ("a value is missing", "records", 2) in read.funnel.steps
    assert [row["masked"].split()[0] for row in read.rows["train"]] == ["mary", "john"]


def test_a_class_that_is_misspelt(tmp_path: Path) -> None:
    for name, word in (("a", "he"), ("b", "they")):
        datasets.Dataset.from_list([{"masked": f"So [MASK] {name}.", "label": word}]).to_csv(tmp_path / f"{name}.csv")
    with pytest.raises(DataError, match=r"Class 'zzz' has no usable rows .*classes that the data name: \['a', 'b'\]"):
        read_feature_data(tmp_path, ["a", "zzz"])


def test_tables_with_tabs(tmp_path: Path) -> None:
    lines = ["masked\tlabel\tlabel_class", "So, [MASK] came.\the\ta", "So, [MASK] went.\tthey\tb"]
    (tmp_path / "rows.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert read_feature_data(tmp_path / "rows.tsv").rows["train"]["factual"] == ["he", "they"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "masked,label\nGrüße [MASK],he\n".encode("latin-1"), r"a.csv' cannot be read.*Save it as UTF-8"),
        ("a.csv", b"", r"a.csv has no rows: the file is empty"),
        ("a.jsonl", b"", r"a.jsonl has no rows: the file is empty"),
        ("a.jsonl", b'{"masked": \n', "a.jsonl' cannot be read"),
        ("a.parquet", b"text" * 9, "a.parquet' cannot be read. Parquet magic bytes not found"),
        ("a.csv.gz", gzip.compress(b"masked,label\n" * 999, mtime=0)[:-9], "a.csv.gz' cannot be read.*copy it again"),
        ("a.xlsx", b"PK", r"a.xlsx is no data set. Expected a .*a file that ends in .txt, .csv, .tsv"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_feature_data(tmp_path / name)


@pytest.mark.parametrize("source", [3, [{"masked": "a"}], datasets.Dataset.from_list([{"a": 1}]).to_iterable_dataset()])
def test_objects_that_are_no_data_set(source: Any) -> None:
    for wrong in (source, {"train": source}):
        with pytest.raises(DataError, match=rf"found {type(source).__name__}\. Of rows or a stream, datasets.Dataset"):
            read_feature_data(wrong)


def test_a_set_without_records() -> None:
    with pytest.raises(DataError, match="The data set has no records"):
        read_feature_data(datasets.Dataset.from_dict({"masked": [], "label": []}))
