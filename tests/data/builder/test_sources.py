"""Sources of text: what cannot be read says why, and every setting of one is read or refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from gradiend_hub.data import FeatureDataConfig
from gradiend_hub.data.builder.sources import read_source
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub_cli import app
from tests.data.builder.test_build import PRONOUNS, built, texts

LINES = "\n".join(texts(2000)).encode()
CUT = gzip.compress(LINES, mtime=0)[:20_000]


def corrupt(content: bytes) -> bytes:
    """An archive whose stream is wrong in the middle."""
    packed = bytearray(gzip.compress(content, mtime=0))
    packed[len(packed) // 2 : len(packed) // 2 + 40] = b"\xff" * 40
    return bytes(packed)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", CUT, "a.txt.gz.* cannot be read.*end-of-stream marker.*not whole: copy it again"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "a.jsonl.gz.* cannot be read.*: copy it again"),
        ("a.txt.gz", corrupt(LINES), "a.txt.gz.* cannot be read.*copy it again"),
        ("a.jsonl", b"", "a.jsonl has no rows: the file is empty"),
        ("a.csv", b"", "a.csv has no rows: the file is empty"),
        ("a.parquet", b"text" * 9, "a.parquet.* cannot be read. Parquet magic bytes not found"),
        ("a.xlsx", b"PK", r"a.xlsx is no data set. Expected a .*a file that ends in .txt, .csv, .tsv"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        built(str(tmp_path / name))


def test_a_cut_archive_on_the_command_line(tmp_path: Path) -> None:
    """`EOFError` is what a command line takes for the end of its input, and says only "Aborted."."""
    (tmp_path / "a.txt.gz").write_bytes(CUT)
    source = ["--set", f"source={tmp_path / 'a.txt.gz'}"]
    run = CliRunner().invoke(app, ["data", "build", "examples/data.yaml", str(tmp_path / "out"), *source])
    assert run.exit_code == 1
    assert "copy it again" in " ".join(run.output.split())


def test_a_failing_stream_says_so_and_our_own_errors_stay() -> None:
    def broken() -> Any:
        yield {"text": "So he came."}
        raise KeyError("somewhere else")

    with pytest.raises(DataError, match=r"The source cannot be read\. .*somewhere else"):
        built(datasets.IterableDataset.from_generator(broken))


def test_a_lone_surrogate_is_broken_encoding() -> None:
    source = texts(60)
    source[7] += " \ud800"
    assert ("broken encoding", "texts", 59) in built(source).funnel.steps


def test_a_mark_at_the_beginning_is_no_text(tmp_path: Path) -> None:
    source = texts(60)
    for name, content in (
        ("a.txt", "\n".join(source)),
        ("a.csv", "\n".join(["text", *source])),
        ("a.jsonl", "\n".join(f'{{"text": "{text}"}}' for text in source)),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert built(str(tmp_path / name)).digest == built(source).digest
        assert built({"path": str(tmp_path / name), "encoding": "UTF8"}).digest == built(source).digest


def splits_of(source: Any, **options: Any) -> list[str]:
    config = FeatureDataConfig(PRONOUNS, **options)
    return [split for batch in read_source(source, config) for split in batch.splits or []]


def test_the_column_of_splits_goes_before_the_splits_of_the_set(hub: Any, repo_id: str) -> None:
    table = datasets.Dataset.from_dict({"text": texts(4), "part": ["train", "val", "test", "test"]})
    given = ["train", "validation", "test", "test"]
    source = datasets.DatasetDict({"train": table})
    source.push_to_hub(repo_id)
    for found in (table, source, repo_id, {"path": repo_id, "split": "train"}):
        assert splits_of(found, split_column="part") == given
    assert splits_of(datasets.DatasetDict({"dev": table})) == ["validation"] * 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_says_nothing_of_splits(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(f'{{"text": "{text}"}}' for text in texts(60)), encoding=encoding)
    with pytest.raises(DataError, match=r"the source has no splits. Name their column as split_column"):
        built(str(path), split_by="given")


@pytest.mark.parametrize("option", ["split_column", "group_column"])
def test_a_value_that_is_missing_is_no_name(option: str) -> None:
    table = datasets.Dataset.from_dict({"text": texts(1003), "part": ["train"] * 1002 + [None]})
    with pytest.raises(DataError, match=rf"The column 'part' \({option}\) has no value in row 1002 of the source"):
        built(table, **{option: "part"})


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ({"path": "{}/a.txt", "name": "en"}, {}, "source.name: a file has none"),
        ({"path": "{}/a.txt", "revision": "main"}, {}, "source.revision: a file has none"),
        ({"path": "{}/a.txt", "data_files": "b.txt"}, {}, "source.data_files: a file has none"),
        ({"path": "{}/a.txt", "encoding": "utf-99"}, {}, "source.encoding: expected an encoding that Python kn.*'utf-99'"),
        ({"path": "{}/a.txt", "encoding": 8}, {}, "source.encoding: expected a text, found 8"),
        ({"path": "{}/a.parquet", "encoding": "latin-1"}, {}, "source.encoding: only a text, CSV or JSON file has one"),
        ({"path": "alice/set", "encoding": "latin-1"}, {}, "source.encoding: only a text, CSV or JSON file has one"),
        ({"path": 5}, {}, "source: expected a .* or a mapping with `path`, found"),
        (texts(9), {"group_column": "doc"}, "group_column is 'doc', but a list of texts has no columns"),
        (texts(9), {"split_column": "part"}, "split_column is 'part', but a list of texts has no columns"),
    ],
)  # fmt: skip
def test_settings_that_nothing_would_read(tmp_path: Path, source: Any, options: dict[str, Any], message: str) -> None:
    (tmp_path / "a.txt").write_bytes(LINES)
    datasets.Dataset.from_dict({"text": texts(9)}).to_parquet(tmp_path / "a.parquet")
    if isinstance(source, dict):
        source = {key: v.format(tmp_path) if isinstance(v, str) else v for key, v in source.items()}
    with pytest.raises(ConfigError, match=message):
        built(source, **options)


def test_a_source_that_is_dropped_whole_says_why() -> None:
    """The funnel of the scan has the reasons, whatever the message of the builder shows."""
    from gradiend_hub.data.builder.matching import Matcher
    from gradiend_hub.data.builder.scan import Scan
    from gradiend_hub.data.builder.spool import Spool

    config = FeatureDataConfig(PRONOUNS)
    for source, step in (([1, 2, None], "no text"), (["So \ufffd he came"] * 3, "broken encoding")):
        with Spool(["masked", "factual", "split"]) as spool:
            scan = Scan(config, Matcher(config), spool)
            scan.run(source)
            assert scan.funnel.steps[:2] == [("read", "texts", 3), (step, "texts", 0)]
            spool.table()
        spool.path.unlink()


# ------------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"filters": {"min_words": "six"}}, "filters.min_words: expected an integer of 0 or more, found 'six'"),
        ({"filters": {"context": "two"}}, "filters.context: expected an integer of 0 or more, found 'two'"),
        ({"filters": {"context": -1}}, "filters.context: expected an integer of 0 or more, found -1"),
        ({"filters": {"context": 2}}, "filters.context: texts are kept whole, so there is none. Add unit: sentence"),
        ({"filters": {"mixed": "no"}}, "filters.mixed: expected true or false, found 'no'"),
        ({"filters": {"min_words": True}}, "filters.min_words: expected an integer"),
        ({"filters": {"min_words": 9, "max_words": 3}}, "filters.max_words is 3, less than min_words"),
        ({"filters": 3}, "filters: expected a mapping with keys such as unit, found 3"),
        ({"neutral": True}, "neutral: expected a mapping with keys such as max_texts, found True"),
        ({"neutral": {"max_texts": "x"}}, "neutral.max_texts: expected an integer of 1 or more, found 'x'"),
        ({"neutral": {"max_texts": -4}}, "neutral.max_texts: expected an integer of 1 or more, found -4"),
        ({"neutral": {"exclude_words": None}}, "neutral.exclude_words: expected a list of words, found None"),
        ({"neutral": {"exclude_tags": {"pos": "VERB"}}}, "neutral.exclude_tags: expected a list"),
        ({"neutral": {"exclude_tags": ["VERB"]}}, "neutral.exclude_tags: expected a mapping such as {pos: DET"),
        ({"splits": [0.8, 0.2]}, r"splits: expected a mapping \(from names to a number each\), found \[0.8, 0.2\]"),
        ({"splits": {"train": None}}, r"splits\['train'\]: expected a number, found None"),
        ({"splits": {"train": float("nan")}}, r"splits\['train'\]: expected a number, found nan"),
        ({"splits": {"a/b": 1}}, "splits: a split's name is one word, found 'a/b'"),
        ({"seed": "abc"}, "seed: expected an integer of 0 or more, found 'abc'"),
        ({"near_duplicates": "x"}, r"near_duplicates: expected a number in \(0, 1\], found 'x'"),
        ({"pairs": 5}, r"pairs: expected a list \(of a list \(of a text each\) each\), found 5"),
        ({"language": 5}, "language: expected a text, found 5"),
        ({"classes": {"a": {"words": None}, "b": ["x"]}}, "classes.a.words: expected a list of words, found None"),
        ({"classes": {"a": {"tags": ["pos"]}, "b": ["x"]}}, "classes.a.tags: expected a mapping such as"),
        ({"classes": {"a": {"file": 5}, "b": ["x"]}}, "The word list 5 cannot be read"),
        ({"card": "text"}, r"card: expected a mapping \(from names to a text each\), found 'text'"),
        ({"card": {"licens": "mit"}}, "Unknown key card.licens: did you mean card.license"),
        ({"spacy_model": "en_core_web_sm"}, "spacy_model is 'en_core_web_sm', but no class has lemmas or tags"),
    ],
)  # fmt: skip
def test_values_of_a_configuration_are_checked(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureDataConfig.from_dict({"classes": PRONOUNS, **content})


def test_what_stands_for_the_same_is_read_as_the_same(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("they\n", encoding="utf-8-sig")
    content = {
        "classes": {"a": {"words": "he"}, "b": str(tmp_path / "words.txt")}, "neutral": {"exclude_words": "his"},
        "language": "en_US", "card": {"licence": "mit"},
    }  # fmt: skip
    config = FeatureDataConfig.from_dict(content)
    assert [spec.words for spec in config.classes.values()] == [("he",), ("they",)]
    assert config.neutral is not None and config.neutral.exclude_words == ("his",)
    assert (config.language, config.card) == ("en", {"license": "mit"})
    assert FeatureDataConfig(PRONOUNS, language="EN").language == "en"
    assert FeatureDataConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_of_words_and_pairs_have_the_usual_encodings(tmp_path: Path, encoding: str, separator: str) -> None:
    (tmp_path / "words.txt").write_text("# of women\nsie\nAmazone\n", encoding=encoding)
    (tmp_path / "pairs.csv").write_text(separator.join("ab") + "\n" + f"er{separator}sie\n", encoding=encoding)
    classes = {"a": ["er"], "b": str(tmp_path / "words.txt")}
    config = FeatureDataConfig.from_dict({"classes": classes, "pairs": str(tmp_path / "pairs.csv")})
    assert config.classes["b"].words == ("sie", "Amazone")
    assert config.pairs == (("er", "sie"),)


def test_rows_of_pairs_that_are_too_short(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a,b\nhe,they\nhe\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match=r"pairs: \['he', ''\] must be one word of each class"):
        FeatureDataConfig({"a": ["he"], "b": ["they"]}, pairs=tmp_path / "pairs.csv")  # type: ignore[arg-type]


def test_context_of_sentences_is_read() -> None:
    read = FeatureDataConfig.from_dict({"classes": PRONOUNS, "filters": {"unit": "sentence", "context": 1}})
    assert read.filters.context == 1
