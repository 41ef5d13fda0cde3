"""A stranger's files: whatever is in them, the outcome is a correct load or one of our errors, and no partial edit."""

from __future__ import annotations

import json
import math
import random
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradiend_hub.adapter import GradiendLayer
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, ENCODER_FILE, WEIGHTS_FILE
from gradiend_hub.errors import GradiendError
from gradiend_hub.model import GradiendModel
from tests.adapter.support import bits, random_direction, same_bits, save

SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, "", "a", "0",
    "float16", "bfloat16", "factual", "GRADIEND", "LORA", "../..", "x" * 5000, "\x00", "\ud800", [], {}, [[]], [None],
    {"shape": [6, 6], "entries": None}, {"shape": [1], "entries": 1},
]  # fmt: skip


class Net(nn.Module):
    """Three small parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three numbers for every row."""
        result: torch.Tensor = self.two(self.one(x))
        return result


TENSORS = (WEIGHTS_FILE, ENCODER_FILE, BASE_FILE)


class Mutator:
    """Damages the files of an artifact in one or a few places."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {name: (folder / name).read_bytes() for name in (CONFIG_FILE, *TENSORS)}
        self.written = dict(self.files)

    def damage(self, choose: random.Random) -> None:
        """Put damaged files into the folder."""
        for name, data in self.mutate(choose).items():
            if data != self.written[name]:
                (self.folder / name).write_bytes(data)
                self.written[name] = data

    def mutate(self, choose: random.Random) -> dict[str, bytes]:
        """Contents of all files, at least one of them changed in most cases."""
        files = dict(self.files)
        for _ in range(choose.choice([1, 1, 1, 2, 3])):
            kind = choose.choice(
                ["config", "config", "config", "header", "header", "bytes", "values", "cut", "raw config"]
            )
            name = choose.choice(TENSORS)
            if kind == "config":
                files[CONFIG_FILE] = self.config(choose, files[CONFIG_FILE])
            elif kind == "raw config":
                files[CONFIG_FILE] = self.flip(choose, files[CONFIG_FILE], 0)
            elif kind == "header":
                files[name] = self.header(choose, files[name])
            elif kind == "bytes":
                files[name] = self.flip(choose, files[name], 0)
            elif kind == "values":
                files[name] = self.values(choose, files[name])
            else:
                files[name] = files[name][: choose.randrange(len(files[name]) + 1)]
        return files

    @staticmethod
    def flip(choose: random.Random, data: bytes, start: int) -> bytes:
        """Change a few bytes from a position on."""
        damaged = bytearray(data)
        for _ in range(choose.choice([1, 1, 4, 40])):
            if len(damaged) > start:
                damaged[choose.randrange(start, len(damaged))] = choose.randrange(256)
        return bytes(damaged)

    @staticmethod
    def values(choose: random.Random, data: bytes) -> bytes:
        """Overwrite aligned words behind the header: NaN, infinity, huge and negative numbers, indices out of range."""
        if len(data) < 12:
            return data
        start = 8 + min(struct.unpack("<Q", data[:8])[0], len(data))
        damaged = bytearray(data)
        words = [
            b"\x00\x00\xc0\x7f",
            b"\x00\x00\x80\x7f",
            b"\xff\xff\xff\xff",
            b"\xff\xff\xff\x7f",
            b"\x24\x00\x00\x00",
        ]
        for _ in range(choose.choice([1, 2, 8])):
            place = start + 4 * choose.randrange(max(1, (len(data) - start) // 4))
            if place + 4 <= len(data):
                damaged[place : place + 4] = choose.choice(words)
        return bytes(damaged)

    def config(self, choose: random.Random, data: bytes) -> bytes:
        """Replace, remove, rename or add a value anywhere in the configuration."""
        try:
            tree = json.loads(data)
        except ValueError:
            return data
        self.edit_tree(choose, tree)
        return json.dumps(tree).encode("utf-8", "surrogatepass")

    def header(self, choose: random.Random, data: bytes) -> bytes:
        """Let the header of a safetensors file lie: names, types, shapes, offsets, its own length."""
        try:
            size = struct.unpack("<Q", data[:8])[0]
            tree = json.loads(data[8 : 8 + size])
        except (ValueError, struct.error):
            return data
        self.edit_tree(choose, tree)
        header = json.dumps(tree).encode("utf-8", "surrogatepass")
        length = (
            len(header) if choose.random() < 0.9 else choose.choice([0, 2**63 - 1, len(header) - 1, len(header) + 9])
        )
        return struct.pack("<Q", length) + header + data[8 + size :]

    @staticmethod
    def edit_tree(choose: random.Random, tree: Any) -> None:
        """Change one place of a JSON tree."""
        while isinstance(tree, (dict, list)) and tree:
            keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            key = choose.choice(keys)
            if isinstance(tree[key], (dict, list)) and tree[key] and choose.random() < 0.8:
                tree = tree[key]
                continue
            action = choose.choice(["replace", "replace", "replace", "remove", "add", "near"])
            if action == "replace":
                tree[key] = choose.choice(SCALARS)
            elif action == "remove":
                del tree[key]
            elif action == "near" and isinstance(tree[key], (int, float)):
                tree[key] += choose.choice([-1, 1, -tree[key] - 1])
            elif isinstance(tree, dict):
                tree[str(choose.choice(["extra", "", "peft_type", f"{key}x"]))] = choose.choice(SCALARS)
            else:
                tree.append(choose.choice(SCALARS))
            return


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "turns",
    [
        1_000,
        pytest.param(3_000, marks=pytest.mark.slow),
        pytest.param(10_500, marks=[pytest.mark.slow, pytest.mark.release]),
    ],
)
def test_fuzz(tmp_path: Path, turns: int) -> None:
    """Seeded mutations of configuration, headers and values, through our own loader."""
    net, x = Net(), torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    before, plain = bits(net), net(x)
    folder = save(tmp_path, random_direction(net, "mixed", share=0.3))
    mutator, choose = Mutator(folder), random.Random(20261122)
    loaded, refused = 0, 0
    for turn in range(turns):
        mutator.damage(choose)
        try:
            model = GradiendModel.from_pretrained(folder, net, allow_related=True)
        except GradiendError as error:
            assert str(error), turn
            refused += 1
        else:
            loaded += 1
            receipt = model.receipt
            assert math.isfinite(receipt.relative_norm), turn
            assert receipt.entries > 0 or model.strength == 0, turn
            with model.strength_at(0.0):
                assert same_bits(bits(model), before), turn
            assert model.unload() is net
        assert same_bits(bits(net), before), turn
        assert not any(isinstance(module, GradiendLayer) for module in net.modules()), turn
    assert torch.equal(net(x), plain)
    assert loaded > 0.03 * turns
    assert refused > 0.48 * turns


def test_fuzz_through_plain_peft(tmp_path: Path) -> None:
    """The same through PEFT's loader, which has errors of its own; the base model's weights are never touched."""
    from peft import PeftModel

    net = Net()
    before = bits(net)
    folder = save(tmp_path, random_direction(net, "mixed", share=0.3))
    mutator, choose = Mutator(folder), random.Random(7)
    outcomes: dict[str, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(800):
            mutator.damage(choose)
            try:
                model = PeftModel.from_pretrained(net, folder)
                outcome = "loaded"
                net = model.unload()
            except Exception as error:
                outcome = "ours" if isinstance(error, GradiendError) else type(error).__name__
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            assert same_bits(bits(net), before), turn
            if any(isinstance(module, GradiendLayer) for module in net.modules()):
                net = Net()  # PEFT attaches before it reads; its own errors leave idle side-cars behind
    assert outcomes.pop("loaded") > 20
    assert outcomes.pop("ours") > 150
    readers = {"SafetensorError", "JSONDecodeError", "UnicodeDecodeError", "KeyError", "TypeError", "ValueError"}
    assert set(outcomes) <= readers  # PEFT reads the files before it asks us


@pytest.mark.filterwarnings("ignore")
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    net = Net()
    folder = save(tmp_path, random_direction(net, "dense"))
    config = json.loads((folder / CONFIG_FILE).read_text())
    for shape in ([2**40], [2**24, 2**24], [2**63 - 1]):
        config["parameters"]["one.weight"] = {"shape": shape, "entries": None}
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        with pytest.raises(GradiendError):
            GradiendModel.from_pretrained(folder, net)


def test_unknown_keys_of_the_same_schema_are_ignored_with_a_warning(tmp_path: Path) -> None:
    folder = save(tmp_path, random_direction(Net(), "dense"))
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, "shape_of_things": 1}))
    with pytest.warns(UserWarning, match="shape_of_things"):
        assert isinstance(GradiendConfig.from_pretrained(str(folder)), GradiendConfig)


def test_no_pickle_is_ever_read(tmp_path: Path) -> None:
    net = Net()
    folder = save(tmp_path, random_direction(net, "dense"))
    (folder / WEIGHTS_FILE).unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(GradiendError, match=r"adapter_model\.safetensors"):
        GradiendModel.from_pretrained(folder, net)
