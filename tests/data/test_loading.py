"""Data that somebody names: read right, or refused with what, where, expected, found and the next step."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pandas as pd
import pytest
from huggingface_hub import HfApi

from gradiend_hub.data import loading, read_feature_data
from gradiend_hub.data.loading import Source, load_data, load_rows
from gradiend_hub.data.text_files import read_text
from gradiend_hub.errors import ConfigError, DataError
from tests.data.builder.test_build import built, texts

ROWS = [
    {"masked": "So [MASK] kämen, »gut«; wir\tauch.", "factual": "sie", "alternative": "er",
     "factual_class": "3PL", "alternative_class": "3SG"},
    {"masked": 'Da sagte [MASK]: "Ja".', "factual": "null", "alternative": "NA",
     "factual_class": "3SG", "alternative_class": "3PL"},
    {"masked": "Долго [MASK] шёл 漢字.", "factual": "он", "alternative": "они",
     "factual_class": "3SG", "alternative_class": "3PL"},
]  # fmt: skip
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


def csv_of(rows: list[dict[str, str]], separator: str) -> str:
    return pd.DataFrame(rows).to_csv(sep=separator, index=False)


def written(path: Path, encoding: str, rows: list[dict[str, str]] = ROWS, separator: str = ",") -> Path:
    if ".csv" in path.name or ".tsv" in path.name:
        text = csv_of(rows, separator)
    elif ".jsonl" in path.name:
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    else:
        text = json.dumps(rows, ensure_ascii=False)
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(packed(text.encode(encoding)))
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("name", "separator"),
    [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.jsonl", ""), ("a.json", "")],
)
def test_encodings_and_separators(tmp_path: Path, encoding: str, name: str, separator: str) -> None:
    path = written(tmp_path / name, encoding, separator=separator)
    assert list(load_rows(path, "test", "rows")) == ROWS
    if name == "a.csv":
        assert list(load_rows(str(tmp_path), "train", "rows")) == ROWS  # the folder


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.bz2", "a.json.xz", "a.tsv.gz", "a.json"])
def test_archives(tmp_path: Path, name: str) -> None:
    assert list(load_rows(written(tmp_path / name, "utf-16"), "train", "rows")) == ROWS


def test_a_long_utf16_file_is_cut_between_characters(tmp_path: Path) -> None:
    many = [row | {"masked": f"{number} {row['masked']}"} for number in range(40_000) for row in ROWS]
    path = written(tmp_path / "a.jsonl", "utf-16", many)
    assert path.stat().st_size > 3 * 10 * 2**20  # of the chunks in which it would be read
    table = load_rows(path, "train", "rows")
    assert (len(table), table[-1]) == (len(many), many[-1])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_sources_of_text_have_the_same_encodings(tmp_path: Path, encoding: str, name: str) -> None:
    source = texts(60)
    lines = {"a.txt": source, "a.csv": ["number;text", *(f"{n};{text}" for n, text in enumerate(source))]}
    content = "\n".join(lines.get(name) or [json.dumps({"text": text}) for text in source])
    (tmp_path / name).write_text(content, encoding=encoding)
    assert built(str(tmp_path / name)).digest == built(source).digest


def test_columns_beside_each_other_may_hold_commas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"a, b"\nc\n')
    assert list(load_rows(tmp_path / "a.csv", "train", "x")) == [{"text": "a, b"}, {"text": "c"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"rows: {path} has no rows: the file is empty. Name data that has some.$"),
        ("a.csv", b"\n\n", r"rows: {path} has no rows: the file is empty"),
        ("a.csv", "\ufeff".encode("utf-16-le"), r"rows: {path} has no rows: the file is empty"),
        ("a.json", b" [] ", r"rows: {path} has no rows: the file is empty"),
        ("a.csv", b"masked,factual\n", r"rows: {path} has no rows: the file holds a header only"),
        ("a.tsv", "masked\tfactual\r\n".encode("utf-16"), r"rows: {path} has no rows: the file holds a header only"),
        ("a.jsonl", b'{"masked": "\xff"}\n', r"rows: '{path}' cannot be read. .*Save it as UTF-8, or name its `encoding`"),
        ("a.csv", b"masked\n\xe4\n", r"rows: '{path}' cannot be read. .*Save it as UTF-8, or name its `encoding`"),
        ("a.jsonl", b"{", r"rows: '{path}' cannot be read. "),
        ("a.csv", b'a,b\n1,2,3,4\n5,6,7,8,9\n"', r"rows: '{path}' cannot be read. "),
        ("a.csv.gz", b"a,b\n1,2\n", r"rows: '{path}' cannot be read. .*not whole: copy it again"),
        ("a.xlsx", b"PK", r"rows: {path} is no data set. Expected a folder, a Hub id, or a file that ends in .txt, .csv"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{message.format(path=path)}"):
        load_rows(path, "train", "rows")


def test_an_encoding_that_nothing_shows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("masked;factual\nDa käme [MASK].;er\n", encoding="latin-1")
    found = load_rows({"path": path, "encoding": "latin-1"}, "train", "rows")
    assert list(found) == [{"masked": "Da käme [MASK].", "factual": "er"}]
    with pytest.raises(ConfigError, match=r"rows.encoding: expected an encoding that Python knows.*found 'latin-99'"):
        load_rows({"path": path, "encoding": "latin-99"}, "train", "rows")


@pytest.fixture
def stranger() -> Iterator[None]:
    """Somebody who may read nothing that is not everybody's."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_path_that_cannot_be_looked_at_says_so(tmp_path: Path) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    for path, said in ((f"{'x' * 300}.csv", "File name too long"), (str(loop), "symbolic links")):
        with pytest.raises(DataError, match=rf"cannot be read\. .*{said}"):
            load_rows(path, "train", "rows")


def test_files_without_permission(tmp_path: Path, stranger: None, tmp_path_factory: Any) -> None:
    euid = os.geteuid()
    os.seteuid(os.getuid())
    folder = tmp_path_factory.mktemp("closed")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    path = written(folder / "a.csv", "utf-8")
    path.chmod(0)
    os.seteuid(euid)
    with pytest.raises(DataError, match=r"rows: '.*a.csv' cannot be read. .*Permission denied.*Let your user read it"):
        load_rows(path, "train", "rows")
    os.seteuid(os.getuid())
    folder.chmod(0)
    os.seteuid(euid)
    for name in (str(path), f"{path}:of-a-configuration", str(folder / "no-such")):
        with pytest.raises(DataError, match=r"rows: '.*' cannot be read. .*Permission denied.*Let your user read it"):
            load_rows(name, "train", "rows")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^rows: the folder .* holds no data. Expected files .txt, .* found nothing"):
        load_rows(tmp_path, "train", "rows")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no data. Expected files .txt, .* found model.safetensors"):
        load_rows(tmp_path, "train", "rows")
    written(tmp_path / "test.csv", "utf-8")
    written(tmp_path / "train.csv", "utf-16", separator=";")
    with pytest.raises(DataError, match=r"train.csv differs from test.csv in encoding or separator \(.*utf-16.*';'"):
        load_rows(tmp_path, "train", "rows")


def test_a_file_of_a_folder_is_named(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "utf-8")
    (tmp_path / "b.csv").write_bytes(b"masked\n\xe4\n")
    with pytest.raises(DataError, match=rf"^rows: '{tmp_path}/b.csv' cannot be read. .*Save it as UTF-8"):
        load_rows(tmp_path, "train", "rows")


def test_a_data_set_that_is_not_on_the_hub(hub: Any) -> None:
    with pytest.raises(DataError, match=r"^rows: 'alice/nothing' cannot be read. .*log in with `hf auth login`"):
        load_rows("alice/nothing", "train", "rows")


@pytest.mark.parametrize(("separator", "encoding"), [(";", "utf-8"), ("\t", "utf-16"), (",", "utf-8")])
def test_tables_on_the_hub_are_read_like_local_ones(
    hub: Any, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, encoding: str
) -> None:
    """Separator and encoding are found by looking, and the words "NA" and "null" stay words; offline, too."""
    for split in ("train", "test"):
        written(tmp_path / f"{split}.csv", encoding, separator=separator)
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset")
    api.upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=tmp_path)
    assert list(load_rows(repo_id, "test", "rows")) == ROWS
    assert list(load_rows({"path": repo_id, "split": "train[1:2]"}, "test", "rows")) == ROWS[1:2]
    assert list(load_data(repo_id, "rows", streaming=True)["train"]) == ROWS
    for module in (loading, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    assert list(load_rows(repo_id, "test", "rows")) == ROWS


def test_paths_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("./rows", "a/b/c", "rows.csv", str(tmp_path / "rows"), "~/nowhere/rows"):
        with pytest.raises(
            DataError, match=r"^rows: there is no file( or folder)? .*Expected a path that exists, or a Hub"
        ):
            load_rows(name, "train", "rows")
    written(tmp_path / "rows.csv", "utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(load_rows("~/rows.csv", "train", "rows")) == ROWS


def test_splits_and_configurations(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    both = datasets.DatasetDict({"train": table, "validation": table.select([0])})
    assert load_rows(both, "validation", "rows").num_rows == 1
    assert load_rows({"train": table}, "test", "rows") is table  # the only one there is
    with pytest.raises(
        DataError, match=r"rows: no split 'test' in the data set; name one of \['train', 'validation'\]"
    ):
        load_rows(both, "test", "rows")
    for split, part in both.items():
        part.to_csv(tmp_path / f"{split}.csv")
    assert len(load_rows(tmp_path, "validation", "rows")) == len(load_rows(tmp_path, "train", "rows")) - 2 == 1
    assert len(load_rows({"path": tmp_path, "split": "train[:2]"}, "test", "rows")) == 2
    with pytest.raises(DataError, match=rf"rows: no split 'test' in '{tmp_path}'; name one of"):
        load_rows(tmp_path, "test", "rows")
    with pytest.raises(DataError, match=r"no split 'dev' in .*train.csv: a file is one split"):
        load_rows({"path": tmp_path / "train.csv", "split": "dev"}, "test", "rows")
    with pytest.raises(ConfigError, match=r"rows.name: a file has none"):
        load_rows({"path": tmp_path / "train.csv", "name": "x"}, "test", "rows")


def test_a_stream_has_no_length(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "utf-8")
    stream = load_rows({"path": path, "streaming": True}, "train", "rows")
    assert isinstance(stream, datasets.IterableDataset) and list(stream) == ROWS


def test_rows_in_memory() -> None:
    frame = pd.DataFrame(ROWS, index=[5, 6, 7])
    assert list(load_rows(frame, "train", "rows")) == ROWS
    assert load_rows(ROWS, "train", "rows") is ROWS
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert load_rows(stream, "train", "rows") is stream
    for wrong in (3, None, b"rows"):
        with pytest.raises(
            ConfigError, match=r"^rows: expected a folder, a file, .* a DataFrame or a list of rows, found"
        ):
            load_data(wrong, "rows")
    for wrong in ("", "  ", {}, {"path": 3}):
        with pytest.raises(ConfigError, match=r"^rows: expected a folder, a file"):
            load_data(wrong, "rows")
    with pytest.raises(ConfigError, match=r"Unknown key rows.splits: did you mean rows.split\?"):
        load_data({"path": "x", "splits": "train"}, "rows")
    with pytest.raises(ConfigError, match=r"rows.streaming: expected true or false"):
        load_data({"path": "x", "streaming": "yes"}, "rows")


def test_a_name_is_split_at_its_configuration(tmp_path: Path) -> None:
    assert Source.parse("org/set:neutral", "x") == Source("org/set", "neutral")
    assert Source.parse("hf://datasets/org/set", "x").path == "hf://datasets/org/set"
    odd = tmp_path / "a:b.csv"
    odd.write_text("masked\nx\n")
    assert Source.parse(odd, "x") == Source(str(odd))


def test_feature_data_come_through_the_same_door(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "utf-16", separator=";")
    assert read_feature_data(path).rows["train"]["masked"][:] == [row["masked"] for row in ROWS]
    assert read_text(path) == csv_of(ROWS, ";")
    with pytest.raises(DataError, match="there is no file "):
        read_feature_data(tmp_path / "b.csv")
