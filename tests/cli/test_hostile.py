"""The list of hostile artifacts, each at every door: one message of ours or a harmless answer, and nothing else happens."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import (
    BASE_FILE,
    CARD_FILE,
    CONFIG_FILE,
    ENCODER_FILE,
    PROBES_FILE,
    REFERENCES_FILE,
    REPORT_FILE,
    SUMMARY_FILE,
    WEIGHTS_FILE,
)
from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards import write_card
from gradiend_hub.errors import GradiendError, HubPushError
from gradiend_hub.hub import publish_folder
from tests.cli.conftest import Run, Trained
from tests.cli.test_strangers import assert_harmless, deep, edit, sparse_file
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub_server import HubServer

SENTENCE = "The team said [MASK] would win."
TITLE, CLIPBOARD = "\x1b]0;owned\x07", "\x1b]52;c;cm0gLXJm\x07"
TENSORS = (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE, REFERENCES_FILE)


def values(folder: Path, change: Callable[[torch.Tensor], torch.Tensor], kind: str = "gradiend_weight") -> None:
    """Change one vector of the decoder."""
    tensors = load_file(folder / WEIGHTS_FILE)
    key = max((k for k in tensors if k.endswith(kind)), key=lambda k: tensors[k].numel())
    tensors[key] = change(tensors[key])
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})


def one_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(vector: torch.Tensor) -> torch.Tensor:
        vector[7] = value
        return vector

    return change


def field_of(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def specs(folder: Path, **changed: Any) -> None:
    """Change the stored form of every parameter."""
    parameters = field_of(folder, CONFIG_FILE)["parameters"]
    edit(folder, parameters={name: spec | changed for name, spec in parameters.items()})


def renamed_parameters(folder: Path, rename: Callable[[str], str]) -> None:
    parameters = field_of(folder, CONFIG_FILE)["parameters"]
    edit(folder, parameters={rename(name): spec for name, spec in parameters.items()})


def raw(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def overlapping(folder: Path) -> None:
    """Two tensors at one place of the file."""
    header = json.dumps({
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    }).encode()  # fmt: skip
    raw(folder, WEIGHTS_FILE, struct.pack("<Q", len(header)) + header + bytes(16))


def twice(folder: Path) -> None:
    """The same key twice, of which parsers take one or the other."""
    text = (folder / CONFIG_FILE).read_text().rstrip()
    (folder / CONFIG_FILE).write_text(text[:-1] + ', "strength": 1e30, "base_model_name_or_path": "/etc/passwd"}')


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def pickled(folder: Path) -> None:
    bomb = pickle.dumps(Bomb(folder.parent / "unpickled"))
    for name in ("adapter_model.bin", "pytorch_model.bin", "training_args.bin"):
        raw(folder, name, bomb)


def instead_of_weights(folder: Path) -> None:
    pickled(folder)
    (folder / WEIGHTS_FILE).unlink()


def summary(folder: Path, **fields: Any) -> None:
    path = folder / SUMMARY_FILE
    (path).write_text(json.dumps({"feature_classes": ["3SG", "3PL"]} | fields))


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


def sparse(name: str) -> Callable[[Path], None]:
    return lambda folder: sparse_file(folder / name, 2**36)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: raw(folder, name, (folder / name).read_bytes()[:-9])


def curve(folder: Path, times: int) -> None:
    report = field_of(folder, REPORT_FILE)
    report["splits"]["test"]["curve"] *= times
    (folder / REPORT_FILE).write_text(json.dumps(report))


def in_report(folder: Path, text: str) -> None:
    report = field_of(folder, REPORT_FILE)
    report["splits"]["test"]["completions"][0]["text"] = text
    (folder / REPORT_FILE).write_text(json.dumps(report))


def in_probes(folder: Path, text: str) -> None:
    head, *lines = (folder / PROBES_FILE).read_text().splitlines()
    rows = [json.dumps(json.loads(line) | {"masked": f"{text} [MASK]"}) for line in lines]
    (folder / PROBES_FILE).write_text("\n".join([head, *rows]))


def again(folder: Path, name: str, fields: str) -> None:
    """Begin the first object of a file with some fields."""
    (folder / name).write_text((folder / name).read_text().replace("{", f"{{{fields}, ", 1))


def samples(folder: Path, value: float) -> None:
    found = load_file(folder / BASE_FILE)
    save_file({k: torch.full_like(v, value) for k, v in found.items()}, folder / BASE_FILE, {"base_dtype": "float32"})


def encoder_bias(folder: Path, value: float) -> None:
    found = load_file(folder / ENCODER_FILE)
    save_file(found | {"encoder_bias": torch.full_like(found["encoder_bias"], value)}, folder / ENCODER_FILE)


def metadata(folder: Path, name: str, fields: dict[str, str]) -> None:
    save_file(load_file(folder / name), folder / name, fields)


def header(folder: Path, tensors: list[tuple[str, int, int]]) -> None:
    """A file of 24 bytes with these tensors."""
    fields = {name: {"dtype": "F32", "shape": [2], "data_offsets": [low, high]} for name, low, high in tensors}
    text = json.dumps(fields).encode()
    raw(folder, WEIGHTS_FILE, struct.pack("<Q", len(text)) + text + bytes(24))


def folder_instead(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def in_field(folder: Path, **fields: Any) -> None:
    (folder / REPORT_FILE).write_text(json.dumps(field_of(folder, REPORT_FILE) | fields))


def points(folder: Path, count: int, **fields: Any) -> None:
    """Let the report show a point again and again."""
    report = field_of(folder, REPORT_FILE)
    encoder = report["splits"]["test"]["encoder"]
    encoder["encodings"] = [encoder["encodings"][0] | fields] * count
    (folder / REPORT_FILE).write_text(json.dumps(report))


def bomb_card() -> str:
    """A card whose head would be of 10^9 entries."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    return "---\n" + "\n".join(lines) + "\n---\n# Bomb\n"


def tokenizer_beside(folder: Path) -> None:
    code = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    raw(folder, "tokenizer_config.json", json.dumps(code).encode())
    raw(folder, "evil.py", b"import os; os.system('touch unpickled')")


REFUSED, SHOWN, IGNORED = "refused", "shown", "ignored"
"""Nothing applies it; it is applied and what is odd is said; it plays no part."""

HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    # texts that act on a terminal
    "title in a class": (lambda f: edit(f, feature_classes=[TITLE, "b"], fillers=None), REFUSED),
    "clipboard in a filler": (lambda f: edit(f, fillers={"3SG": [CLIPBOARD]}), REFUSED),
    "escape in the base's name": (lambda f: edit(f, base_model_name_or_path=f"a/{TITLE}"), REFUSED),
    "override in the commit": (lambda f: edit(f, revision="a\u202eb"), REFUSED),
    "escape in the scope": (lambda f: edit(f, scope=[f"*{TITLE}"]), REFUSED),
    "escape in the objective": (lambda f: edit(f, objective=f"masked_lm{TITLE}"), REFUSED),
    "escape in a parameter": (lambda f: renamed_parameters(f, lambda name: name + TITLE), REFUSED),
    "escape in the version": (lambda f: edit(f, gradiend_version=f"1{TITLE}"), REFUSED),
    "escape in the class of the base": (lambda f: edit(f, auto_mapping={"base_model_class": TITLE}), REFUSED),
    "escape in an unknown field": (lambda f: edit(f, **{f"x{TITLE}": CLIPBOARD}), IGNORED),
    "escape in the report": (lambda f: in_report(f, CLIPBOARD), SHOWN),
    "escape in the self-test": (lambda f: in_probes(f, CLIPBOARD), SHOWN),
    "escape in the card": (lambda f: raw(f, CARD_FILE, f"---\nlicense: mit\n---\n# {CLIPBOARD}".encode()), IGNORED),
    "escape in the summary": (lambda f: summary(f, task=CLIPBOARD), IGNORED),
    "escape in a file's name": (lambda f: raw(f, f"{TITLE.replace('/', '')}.json", b"{}"), SHOWN),
    # sizes
    "layers without end": (lambda f: edit(f, layers="0-9999999999"), SHOWN),
    "config nested deeply": (lambda f: raw(f, CONFIG_FILE, deep(100_000).encode()), REFUSED),
    "report nested deeply": (lambda f: raw(f, REPORT_FILE, deep(100_000).encode()), SHOWN),
    "self-test nested deeply": (lambda f: raw(f, PROBES_FILE, deep(100_000).encode()), SHOWN),
    "summary nested deeply": (lambda f: raw(f, SUMMARY_FILE, deep(1000).encode()), IGNORED),
    "config of 17 MB": (lambda f: edit(f, extra="x" * 17_000_000), REFUSED),
    "a header of 2^62 bytes": (lambda f: raw(f, WEIGHTS_FILE, struct.pack("<Q", 2**62) + b"{}"), REFUSED),
    "a header of 90 MB": (lambda f: raw(f, BASE_FILE, struct.pack("<Q", 90_000_000) + b" " * 90_000_000), REFUSED),
    "64 GiB of decoder": (sparse(WEIGHTS_FILE), REFUSED),
    "64 GiB of encoder": (sparse(ENCODER_FILE), REFUSED),
    "64 GiB of samples": (sparse(BASE_FILE), REFUSED),
    "64 GiB of report": (sparse(REPORT_FILE), SHOWN),
    "64 GiB of card": (sparse(CARD_FILE), IGNORED),
    "a curve of thousands of points": (lambda f: curve(f, 500), SHOWN),
    "a shape of 2^60": (lambda f: specs(f, shape=[2**30, 2**30]), REFUSED),
    "a number of 5,000 digits": (lambda f: raw(f, CONFIG_FILE, b'{"strength": ' + b"9" * 5000 + b"}"), REFUSED),
    # links and paths
    "a link to the password file": (linked(CONFIG_FILE, "/etc/passwd"), REFUSED),
    "a link to a device without end": (linked(WEIGHTS_FILE, "/dev/zero"), REFUSED),
    "a link to a parent": (linked(REPORT_FILE, "../secret"), REFUSED),
    "figures that are the disk": (linked("assets", "/"), IGNORED),
    "a link to itself": (linked(ENCODER_FILE, ENCODER_FILE), REFUSED),
    "a pipe": (lambda f: ((f / BASE_FILE).unlink(), os.mkfifo(f / BASE_FILE)), REFUSED),
    "an absolute base": (lambda f: edit(f, base_model_name_or_path="/etc"), REFUSED),
    "a base above": (lambda f: edit(f, base_model_name_or_path="../../etc"), REFUSED),
    "a base at an address": (lambda f: edit(f, base_model_name_or_path="https://evil.example/x"), REFUSED),
    # what it asks for
    "strength 1e30": (lambda f: edit(f, strength=1e30), REFUSED),
    "strength 50 in a claimed band": (lambda f: edit(f, strength=50.0, safe_band=[-64.0, 64.0]), REFUSED),
    "a unit of 1e30": (lambda f: edit(f, strength_unit=1e30), REFUSED),
    "strength NaN": (lambda f: raw(f, CONFIG_FILE, b'{"peft_type": "GRADIEND", "strength": NaN}'), REFUSED),
    "code as class of the base": (lambda f: edit(f, auto_mapping={"base_model_class": "os.system"}), REFUSED),
    "another method": (lambda f: edit(f, peft_type="LORA"), REFUSED),
    "a newer format": (lambda f: edit(f, schema_version=99), REFUSED),
    "fields twice": (twice, REFUSED),
    # vectors
    "NaN in the decoder": (lambda f: values(f, one_value(float("nan"))), REFUSED),
    "infinity in the decoder": (lambda f: values(f, one_value(float("inf"))), REFUSED),
    "overlapping tensors": (overlapping, REFUSED),
    "a decoder cut short": (cut(WEIGHTS_FILE), REFUSED),
    "an encoder cut short": (cut(ENCODER_FILE), REFUSED),
    "samples cut short": (cut(BASE_FILE), REFUSED),
    "references cut short": (cut(REFERENCES_FILE), SHOWN),
    "a vector too long": (lambda f: values(f, lambda v: torch.cat([v, v])), REFUSED),
    "a vector of other type": (lambda f: values(f, lambda v: v.double()), REFUSED),
    "other shapes in the config": (lambda f: specs(f, shape=[3, 3]), REFUSED),
    "parameters of no model": (lambda f: renamed_parameters(f, lambda name: f"other.{name}"), REFUSED),
    "samples of another model": (
        lambda f: save_file({k: v + 1 for k, v in load_file(f / BASE_FILE).items()}, f / BASE_FILE), REFUSED,
    ),
    "no samples": (lambda f: (f / BASE_FILE).unlink(), REFUSED),
    # forms that parsers read in several ways
    "a mark of byte order": (lambda f: raw(f, CONFIG_FILE, b"\xef\xbb\xbf" + (f / CONFIG_FILE).read_bytes()), REFUSED),
    "UTF-16": (lambda f: raw(f, CONFIG_FILE, (f / CONFIG_FILE).read_text().encode("utf-16")), REFUSED),
    "a lone surrogate": (lambda f: raw(f, CONFIG_FILE, b'{"peft_type": "GRADIEND", "objective": "\\ud800"}'), REFUSED),
    "a list as config": (lambda f: raw(f, CONFIG_FILE, b"[]"), REFUSED),
    "a key twice in the report": (lambda f: again(f, REPORT_FILE, '"steps": 1, "steps": 2'), SHOWN),
    "a key twice in the self-test": (lambda f: again(f, PROBES_FILE, '"dtype": "float32", "dtype": "float32"'), SHOWN),
    # numbers
    "a strength of 400 digits": (lambda f: edit(f, strength=10**400), REFUSED),
    "more entries than C counts": (lambda f: specs(f, entries=2**63), REFUSED),
    "a negative size": (lambda f: specs(f, shape=[-3, -5]), REFUSED),
    "a size of 0": (lambda f: specs(f, shape=[0, 4]), REFUSED),
    "sizes that are true": (lambda f: specs(f, shape=[True, True]), REFUSED),
    "a negative rank": (lambda f: specs(f, rank=-1, entries=None), REFUSED),
    "a band upside down": (lambda f: edit(f, safe_band=[1.0, -1.0]), REFUSED),
    "NaN among the samples": (lambda f: samples(f, float("nan")), REFUSED),
    "infinity among the samples": (lambda f: samples(f, float("inf")), REFUSED),
    "NaN as the encoder's bias": (lambda f: encoder_bias(f, float("nan")), REFUSED),
    # safetensors
    "escapes in the metadata": (lambda f: metadata(f, BASE_FILE, {"base_dtype": CLIPBOARD, TITLE: TITLE}), IGNORED),
    "metadata without end": (lambda f: metadata(f, WEIGHTS_FILE, {"format": "x" * 2**20}), REFUSED),
    "bytes behind the tensors": (lambda f: raw(f, WEIGHTS_FILE, (f / WEIGHTS_FILE).read_bytes() + b"PK\x03\x04"), REFUSED),
    "a hole between tensors": (lambda f: header(f, [("a", 0, 8), ("b", 16, 24)]), REFUSED),
    "offsets out of order": (lambda f: header(f, [("a", 8, 0)]), REFUSED),
    "a header of nothing": (lambda f: raw(f, WEIGHTS_FILE, bytes(8)), REFUSED),
    "a file of nothing": (lambda f: raw(f, WEIGHTS_FILE, b""), REFUSED),
    # names and places
    "a commit that is a path": (lambda f: edit(f, revision="../../../../../../etc/passwd"), REFUSED),
    "a base that is a folder above": (lambda f: edit(f, base_model_name_or_path="a/.."), REFUSED),
    "a base with a line break": (lambda f: edit(f, base_model_name_or_path="us/base\nus/other"), REFUSED),
    "a parameter that is a path": (lambda f: renamed_parameters(f, lambda name: f"../{name}"), REFUSED),
    "a config that is a folder": (lambda f: folder_instead(f, CONFIG_FILE), REFUSED),
    "a card that is a folder": (lambda f: folder_instead(f, CARD_FILE), IGNORED),
    "a report that is a folder": (lambda f: folder_instead(f, REPORT_FILE), REFUSED),
    "a self-test that is a folder": (lambda f: folder_instead(f, PROBES_FILE), REFUSED),
    # claims
    "a summary of another base": (lambda f: summary(f, base_model="us/famous"), SHOWN),
    "a report of another base": (lambda f: in_field(f, base_model="us/famous"), SHOWN),
    "points without end": (lambda f: points(f, 5000), SHOWN),
    "rows of no kind": (lambda f: points(f, 3, row={"masked": [[["x"]]]}), SHOWN),
    "a card whose head is a bomb": (lambda f: raw(f, CARD_FILE, bomb_card().encode()), IGNORED),
    # code
    "a tokenizer beside": (tokenizer_beside, SHOWN),
    "a config of code beside": (
        lambda f: raw(f, "config.json", b'{"auto_map": {"AutoModel": "evil--x.Evil"}, "model_type": "evil"}'), SHOWN,
    ),
    "pickles beside": (pickled, SHOWN),
    "pickles instead": (instead_of_weights, REFUSED),
    "a module beside": (lambda f: raw(f, "modeling_evil.py", b"import os"), SHOWN),
}  # fmt: skip


@pytest.fixture
def hostile(trained: Trained, tmp_path: Path) -> Path:
    folder = tmp_path / "hostile"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("checkpoint*", "runs"))
    write_card(folder)
    return folder


@pytest.fixture(scope="module")
def plain(masked_path: Path) -> Any:
    return load_base_model(masked_path)


ELSEWHERE = (
    "an absolute base",
    "a base above",
    "a base that is a folder above",
    "a base at an address",
    "code as class of the base",
)
"""Cases that are harmless where the reader names the base model."""

NOT_OF_PEFT = (
    "64 GiB of encoder",
    "an encoder cut short",
    "a link to itself",
    "NaN as the encoder's bias",
    "metadata without end",
    "a unit of 1e30",
    "a vector of other type",
)
"""Cases that plain PEFT applies: it reads no encoder and no limits, knows no measured band, and converts other types."""

OF_PEFT = (ValueError, TypeError, OSError, RuntimeError, SafetensorError, UserWarning)
"""Errors and warnings of PEFT's own reading of configuration and weights, which comes before ours."""


@pytest.mark.slow
@TOLERATE_LFS_UPLOAD
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")  # of PEFT
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_artifact_at_every_door(
    run: Run, hostile: Path, plain: Any, tmp_path: Path, hub: HubServer, repo_id: str, case: str
) -> None:
    tamper, outcome = HOSTILE[case]
    tamper(hostile)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    for command in (["info", hostile], ["audit", hostile], ["apply", hostile, SENTENCE, "--strengths", "0"]):
        result = run(*command)  # which raises whatever is no message of ours
        said = result.stdout + result.stderr
        assert_harmless(said)
        assert len(said) < 60_000 and "Traceback" not in said, command
        if command[0] == "audit" and outcome != IGNORED:
            assert result.exit_code == 1, said
    if outcome == REFUSED and case not in ELSEWHERE:
        with pytest.raises(GradiendError) as refused:
            GradiendModel.from_pretrained(hostile, plain)
        assert_harmless(str(refused.value))
        if case not in NOT_OF_PEFT:
            base = copy.deepcopy(plain)
            with pytest.raises((GradiendError, *OF_PEFT)):
                PeftModel.from_pretrained(base, hostile)
            values = {name.replace(".base_layer", ""): value for name, value in base.state_dict().items()}
            assert all(torch.equal(values[name], value) for name, value in before.items() if name in values)
    else:
        assert_harmless(repr(GradiendModel.from_pretrained(hostile, plain).unload()))
        assert_harmless(repr(PeftModel.from_pretrained(copy.deepcopy(plain), hostile)))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    hub.clear()
    try:
        publish_folder(hostile, repo_id)
    except HubPushError as error:
        assert_harmless(str(error))
        assert "Nothing was sent" in str(error) and hub.log() == []
    else:
        published = HfApi().list_repo_files(repo_id)
        assert not [name for name in published if name.endswith((".bin", ".py")) or not name.isprintable()]
    assert not (tmp_path / "unpickled").exists()
