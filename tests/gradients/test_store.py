"""The gradient store: what was computed is what is read, by nobody else, after any interruption."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from gradiend_hub.errors import ConfigError, TrainingError
from gradiend_hub.gradients import GradientReader, GradientStore, Scope, StoreKey, read_pair, select_parameters
from gradiend_hub.objectives import Example, Sample
from tests.gradients.test_faults import poisoned
from tests.gradients.test_pairs import KINDS, examples
from tests.models import build
from tests.objectives.support import objective

GROUPS = ((0, 1), (2,), (1, 2), (0,))


def scope_of(model: nn.Module, **options: str) -> Scope:
    return Scope.dense(select_parameters(model, **options))


def pruned(model: nn.Module, step: int = 3) -> Scope:
    dense = scope_of(model)
    return dense.keep({n: torch.arange(0, p.numel(), step) for n, p in dense.parameters.items()})


def key_of(
    model: nn.Module,
    scope: Scope,
    rows: Sequence[Example] | None = None,
    groups: Sequence[Sequence[int]] = GROUPS,
    dtype: str = "float32",
) -> StoreKey:
    return StoreKey.of(model, scope, objective("bert"), rows or examples(), groups, dtype=dtype)


def filled(folder: Path, model: nn.Module, scope: Scope, dtype: str = "float32") -> GradientStore:
    store = GradientStore(folder, key_of(model, scope, dtype=dtype))
    with GradientReader(model, scope) as reader:
        store.fill(reader, objective("bert"), examples(), GROUPS)
    return store


def computed(reader: GradientReader, group: int, source: str, target: str) -> tuple[Tensor, Tensor]:
    how = objective("bert")
    batch = how.collate_pairs([examples()[i] for i in GROUPS[group]])
    return read_pair(reader, how, batch, source=source, target=target)


def test_reads_what_was_computed_for_every_source_and_target(tmp_path: Path) -> None:
    model = build("bert")
    scope = pruned(model)
    store = filled(tmp_path / "store", model, scope)
    again = GradientStore(tmp_path / "store", key_of(model, scope))
    assert store.missing == again.missing == []
    with GradientReader(model, scope) as reader:
        for group in range(len(GROUPS)):
            for source in KINDS:
                for target in KINDS:
                    pair, expected = (
                        again.read(group, source=source, target=target),
                        computed(reader, group, source, target),
                    )
                    assert pair is not None
                    for name, found, wanted in zip((source, target), pair, expected, strict=True):
                        if name == "factual":  # g_a + (g_f − g_a)
                            assert float((found - wanted).norm() / wanted.norm()) < 1e-6
                        else:
                            assert torch.equal(found, wanted)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 4e-3), ("float16", 1e-3)])
def test_half_the_size(tmp_path: Path, dtype: str, error: float) -> None:
    """In float16, too, where gradients of 1e-9 would all be zero if they were stored as they are."""
    model = build("bert")
    scope = pruned(model)
    store = GradientStore(tmp_path, key_of(model, scope, dtype=dtype))
    with GradientReader(model, scope) as reader:
        expected = computed(reader, 0, "alternative", "diff")
    tiny = tuple(1e-9 * vector for vector in expected)
    store.write(0, *tiny)
    pair = store.read(0)
    assert pair is not None
    for found, wanted in zip(pair, tiny, strict=True):
        assert found.dtype == torch.float32
        assert 0 < float((found - wanted).norm() / wanted.norm()) < error
    store.write(1, torch.zeros(scope.size), torch.ones(scope.size))
    zero = store.read(1)
    assert zero is not None
    assert [float(v.sum()) for v in zero] == [0, scope.size]
    assert (tmp_path / "group-000001.safetensors").stat().st_size < 2 * 2 * scope.size + 512


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_size_is_known_before(tmp_path: Path, dtype: str) -> None:
    model = build("bert")
    scope = pruned(model)
    expected = GradientStore.required_bytes(len(GROUPS), scope.size, dtype)
    filled(tmp_path / "store", model, scope, dtype)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "store").iterdir()}
    assert sizes.pop("key.json") < 1500
    assert len(sizes) == len(GROUPS) and expected - 512 * len(GROUPS) < sum(sizes.values()) <= expected


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert")
    key = key_of(model, scope_of(model))
    room = GradientStore.required_bytes(key.groups, key.size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room - 1))
    with pytest.raises(
        ConfigError, match=r"4 groups × 4,\d+ coordinates in float32 needs 1\d\d kB, and .* has 1\d\d kB left"
    ):
        GradientStore(tmp_path / "store", key)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room))
    assert len(GradientStore(tmp_path / "store", key).missing) == 4


def test_every_difference_is_refused_and_named(tmp_path: Path) -> None:
    model = build("bert")
    scope = pruned(model)
    filled(tmp_path, model, scope)
    key = key_of(model, scope)
    other = build("bert", seed=1)
    rounded = build("bert", torch.bfloat16)
    head = build("bert")
    with torch.no_grad():
        head.cls.predictions.bias.add_(1)  # not in scope, and yet every gradient is another one
    one, buffer, setting = build("bert"), build("bert"), build("bert")
    with torch.no_grad():
        one.bert.embeddings.word_embeddings.weight[40, 3] += 1  # one value of thousands
    buffer.register_buffer("scale", torch.ones(1))
    setting.config.hidden_act = "relu"
    rows = examples()
    rows[1] = Example(rows[1].factual, Sample(*rows[0].alternative.__dict__.values()))
    moved = [
        Example(
            *(replace(s, positions=tuple(p - 1 if p else 1 for p in s.positions)) for s in (e.factual, e.alternative))
        )
        for e in examples()
    ]
    shorter = StoreKey.of(
        model, scope, type(objective("bert"))(objective("bert").tokenizer, max_length=9), examples(), GROUPS
    )
    different = {
        "base": [
            key_of(other, pruned(other)),
            key_of(rounded, pruned(rounded)),
            key_of(head, pruned(head)),
            *(key_of(changed, pruned(changed)) for changed in (one, buffer, setting)),
        ],
        "rows": [key_of(model, scope, rows), key_of(model, scope, moved)],
        "composition": [
            key_of(model, scope, groups=((1, 0), (2,), (1, 2), (0,))),
            key_of(model, scope, groups=((0,), (1, 2), (1, 2), (0,))),
        ],
        "groups": [key_of(model, scope, groups=GROUPS[:3])],
        "scope": [key_of(model, scope_of(model, layers="1"))],
        "kept": [key_of(model, pruned(model, 4)), key_of(model, scope_of(model))],
        "size": [key_of(model, pruned(model, 4))],
        "dtype": [key_of(model, scope, dtype="bfloat16")],
        "objective": [shorter],
        "format": [replace(key, format=key.format + 1)],
    }
    assert set(different) == {field.name for field in fields(StoreKey)}
    for field, keys in different.items():
        for wrong in keys:
            with pytest.raises(TrainingError, match="was written for something else") as caught:
                GradientStore(tmp_path, wrong)
            assert f"{field} is {getattr(key, field)!r}, expected {getattr(wrong, field)!r}" in str(caught.value)
    assert GradientStore(tmp_path, key_of(build("bert"), pruned(build("bert")))).missing == []


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model = build("bert")
    scope = pruned(model)
    filled(tmp_path, model, scope)
    store = GradientStore(tmp_path, key_of(model, scope))
    file = tmp_path / "group-000002.safetensors"
    for content in (
        file.read_bytes()[:-3],
        b"",
        save({"alternative": torch.zeros(3), "alternative_scale": torch.ones(())}),
    ):
        file.write_bytes(content)
        with pytest.raises(
            TrainingError, match=r"group-000002.safetensors is damaged .* Remove it, and it is computed anew"
        ):
            store.read(2, source="alternative", target="alternative")
        assert store.read(1) is not None
    file.unlink()
    assert filled(tmp_path, model, scope).read(2) is not None  # that group alone
    for content in ("{", "[1]"):
        (tmp_path / "key.json").write_text(content)
        with pytest.raises(TrainingError, match=r"key.json cannot be read|was written for something else"):
            GradientStore(tmp_path, key_of(model, scope))


def test_groups_without_a_usable_row(tmp_path: Path) -> None:
    rows = examples()
    model = poisoned(rows, 2)
    scope = pruned(model)
    store = GradientStore(tmp_path, key_of(model, scope))
    written: list[int] = []
    with GradientReader(model, scope) as reader:
        store.fill(reader, objective("bert"), rows, GROUPS, progress=written.append)
        batch = objective("bert").collate_pairs([rows[1]])
        expected = read_pair(reader, objective("bert"), batch)
    assert written == [0, 1, 2, 3]
    assert store.missing == []
    assert store.read(1) is None
    pair = store.read(2)
    assert pair is not None
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(pair, expected, strict=True))


def test_a_group_that_is_not_written_is_no_zero(tmp_path: Path) -> None:
    model = build("bert")
    store = GradientStore(tmp_path, key_of(model, pruned(model)))
    with pytest.raises(TrainingError, match=r"Group 3 of the gradient store .* is not written yet"):
        store.read(3)
    with pytest.raises(ConfigError, match=r"must be one of .*'bfloat16', 'float16'.*, found 'int8'"):
        key_of(model, pruned(model), dtype="int8")


KILLED = """
import sys
from pathlib import Path
from tests.gradients import test_store as t
from gradiend_hub.gradients import store as module
model = t.build("bert")
scope = t.pruned(model)
store = t.GradientStore(Path(sys.argv[1]), t.key_of(model, scope))
flushes = []
fsync = module.os.fsync
def die_before_the_third_reaches_the_disk(handle):
    flushes.append(handle)
    if len(flushes) == 3:
        module.os.kill(module.os.getpid(), 9)
    fsync(handle)
module.os.fsync = die_before_the_third_reaches_the_disk
with t.GradientReader(model, scope) as reader:
    store.fill(reader, t.objective("bert"), t.examples(), t.GROUPS)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed by the system after the third group's values were written, and before they were known to be safe."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")], capture_output=True, text=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    model = build("bert")
    scope = pruned(model)
    store = GradientStore(tmp_path / "killed", key_of(model, scope))
    assert store.missing == [2, 3]
    written: list[int] = []
    with GradientReader(model, scope) as reader:
        store.fill(reader, objective("bert"), examples(), GROUPS, progress=written.append)
    assert written == [2, 3]
    filled(tmp_path / "whole", model, scope)
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "killed").iterdir()}


def test_a_folder_without_a_key_gets_one(tmp_path: Path) -> None:
    """Killed while it was created: the key comes first."""
    model = build("bert")
    scope = pruned(model)
    (tmp_path / ".key.json").write_bytes(b"half")
    assert filled(tmp_path, model, scope).missing == []
