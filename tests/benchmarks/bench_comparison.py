"""Comparison: how well artifacts predict measured effects, the cost of a suite, and of comparing many directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from gradiend_hub import GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.comparison import DirectionSet, agreement
from gradiend_hub.training import DirectionSuite

from .measure import MODELS, line

ROOT = Path(__file__).parents[2]
SIZES = {"hidden": 576, "inner": 1536, "layers": 30, "heads": (576, 192, 192, 576)}
"""SmolLM2-135M: its linear maps, all that is in the default scope but for the norms."""

FEATURES = {
    "number": [("he", "they"), ("she", "they"), ("it", "they")],
    "present": [("is", "are")],
    "past": [("was", "were")],
    "article": [("the", "a")],
    "place": [("in", "on")],
    "gender": [("he", "she"), ("his", "her")],
    "have": [("has", "have")],
    "conjunction": [("and", "but")],
    "near": [("this", "that")],
}


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Lines of the table."""
    lines = []
    for name, path in MODELS.items():
        if not Path(path).exists():
            lines.append({"model": name, "what": "predicted and measured effects", "skipped": f"{path} is not there"})
        else:
            lines += predicted_and_measured(name, Path(path), quick)
    lines += suite_cost(quick)
    lines += many_directions(quick)
    return lines


def sentences() -> list[str]:
    """The bundled sentences with their slots filled."""
    found = []
    for path in sorted((ROOT / "examples" / "data" / "pronouns").glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(text)
            found.append(row["text"] if "text" in row else row["masked"].replace("[MASK]", row["factual"]))
    return found


def feature_rows(pairs: list[tuple[str, str]], texts: list[str], most: int) -> list[dict[str, str]]:
    """Rows of both classes: the first lower-case occurrence of a word after at least two others."""
    found: dict[str, list[dict[str, str]]] = {"first": [], "second": []}
    partner = {w: (o, of) for one, other in pairs for w, o, of in ((one, other, "first"), (other, one, "second"))}
    for text in texts:
        words = text.split(" ")
        for place, word in enumerate(words):
            if place > 1 and word in partner and len(found[partner[word][1]]) < most and len(words) < 40:
                other, of = partner[word]
                masked = " ".join([*words[:place], "[MASK]", *words[place + 1 :]])
                to = "second" if of == "first" else "first"
                found[of].append({"masked": masked, "factual": word, "alternative": other, "factual_class": of,
                                  "alternative_class": to})  # fmt: skip
                break
    count = min(map(len, found.values()))
    return [row for rows in found.values() for row in rows[:count]]


def predicted_and_measured(name: str, path: Path, quick: bool) -> list[dict[str, Any]]:
    """Train a closed form of each feature, and compare what artifacts predict with what edits do on other rows."""
    texts, most = sentences(), 48 if quick else 120
    base, folders, held = load_base_model(path), {}, {}
    with tempfile.TemporaryDirectory() as place:
        for feature, pairs in FEATURES.items():
            rows = feature_rows(pairs, texts, most + 24)
            half = len(rows) // 2
            if half < 40:
                continue
            train = [r for of in (rows[:half], rows[half:]) for r in of[24:]]
            held[feature] = [r for of in (rows[:half], rows[half:]) for r in of[:24]]
            args = GradiendTrainingArguments(
                str(Path(place, feature)), solver="closed_form", max_steps=-1, per_device_train_batch_size=8, controls=0,
                use_cpu=True, disable_tqdm=True, logging_strategy="no", save_strategy="no",
            )  # fmt: skip
            suite = DirectionSuite(base, args, train_dataset=train, pairs=[("first", "second")])
            folders[feature] = suite.train()["first_second"]
        ds = DirectionSet.from_pretrained(folders, base)
        for member in ds.members:  # one small dose for all: an edit of a thousandth of the weights' norm
            member.config.strength_unit = 0.001 * _norm(base, ds) / member.direction.norm(1.0, 0.0)
        predicted, measured = ds.predicted_effects(), ds.measured_effects(held)
        found = agreement(predicted, measured)
        off = ~np.eye(len(ds), dtype=bool)
        effects = np.abs(measured.values[off])
        overlap, cosine = ds.similarity("overlap"), ds.similarity("cosine")
        by_overlap = spearmanr(overlap.values[off], effects).statistic
        by_cosine = spearmanr(cosine.values[off], measured.values[off]).statistic
    low, high = found.interval
    text = f"ρ {found.spearman:.2f}, n {found.pairs}, r in [{low:.2f}, {high:.2f}], slope {found.slope:.2f}"
    return [
        line("predicted and measured effects, Pearson", found.pearson, "r", model=name, note=text),
        line("signed cosine and measured effects, Spearman", float(by_cosine), "ρ", model=name),
        line("overlap of 1000 and size of measured effects, Spearman", float(by_overlap), "ρ", model=name),
        line("null of the cosine", float(np.nanmean(cosine.null[off])), "", model=name, note="mean over the pairs"),
        line(
            "ceiling of the cosine", float(np.nanmean(cosine.ceiling[off])), "", model=name, note="mean over the pairs"
        ),
        line("null of the overlap", float(np.nanmean(overlap.null[off])), "", model=name, note="mean over the pairs"),
        line(
            "ceiling of the overlap",
            float(np.nanmean(overlap.ceiling[off])),
            "",
            model=name,
            note="mean over the pairs",
        ),
    ]


def _norm(base: Any, ds: DirectionSet) -> float:
    parameters = dict(base.named_parameters())
    return float(torch.stack([parameters[name].detach().float().norm() for name in ds.frame.shapes]).norm())


def suite_cost(quick: bool) -> list[dict[str, Any]]:
    """CPU seconds of the stream of 44 directions beside that of one with as many rows."""
    path = ROOT / "examples" / "base_models" / "masked"
    base = load_base_model(path)
    words = ["house", "king", "water", "people", "way", "time", "man", "day", "land", "city"]
    frames = [text for text in sentences() if 8 <= len(text.split(" ")) <= 24][: 8 if quick else 24]
    rows = []
    for frame in frames:
        tokens = frame.split(" ")
        masked = " ".join([*tokens[:4], "[MASK]", *tokens[5:]])
        for of, to in permutations(words, 2):
            rows.append(
                {"masked": masked, "factual": of, "alternative": to, "factual_class": of, "alternative_class": to}
            )
    pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :]][:44]

    def seconds(records: list[dict[str, str]], chosen: list[tuple[str, str]]) -> float:
        with tempfile.TemporaryDirectory() as place:
            args = GradiendTrainingArguments(
                place, solver="closed_form", per_device_train_batch_size=8, controls=0, use_cpu=True, disable_tqdm=True,
                logging_strategy="no", save_strategy="no",
            )  # fmt: skip
            suite = DirectionSuite(base, args, train_dataset=records, pairs=chosen, config={"scope": ["*.layer.2.*"]})
            trainers = {pair.name: suite._trainer(pair) for pair in suite.pairs}
            start = time.process_time()
            suite._stream(trainers)
            return time.process_time() - start

    texts = len({(r["masked"], r["factual"]) for r in rows})
    one = [
        {**row, "masked": f"{row['masked']} {number}"}
        for number in range(-(-texts // (2 * len(frames))))
        for row in rows
        if {row["factual"], row["alternative"]} == {"house", "king"}
    ][:texts]
    many, single = seconds(rows, pairs), seconds(one, [("house", "king")])
    return [
        line("a suite of 44 directions beside one with the same rows", many / single, "×", "≤ 3", model="masked, one layer",
             ours=f"{many:.1f} s", other=f"{single:.1f} s", note=f"{texts} texts")
    ]  # fmt: skip


_MANY = """
import resource, sys, time
import numpy as np, torch
from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.comparison import DirectionSet
folders = sys.argv[1:]
start, cpu = time.perf_counter(), time.process_time()
ds = DirectionSet.from_pretrained(folders)
ds.similarity("cosine"); ds.similarity("overlap"); ds.predicted_effects()
print(time.perf_counter() - start, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def many_directions(quick: bool) -> list[dict[str, Any]]:
    """Seconds and memory to compare 44 directions of 1 % of the weights of a 135M model; values are drawn."""
    from gradiend_hub.artifact.config import GradiendConfig
    from gradiend_hub.artifact.direction import Direction, ParameterDirection
    from gradiend_hub.artifact.references import References

    count, hidden, inner = 8 if quick else 44, SIZES["hidden"], SIZES["inner"]
    shapes = {}
    for layer in range(int(SIZES["layers"])):
        for part, shape in {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (192, hidden),
                            "self_attn.v_proj": (192, hidden), "self_attn.o_proj": (hidden, hidden),
                            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
                            "mlp.down_proj": (hidden, inner)}.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
    generator = torch.Generator().manual_seed(0)

    def drawn(share: float) -> Direction:
        parts = {}
        for name, shape in shapes.items():
            total = shape[0] * shape[1]
            size = max(1, int(share * total))
            places = torch.unique(torch.randint(total, (size,), generator=generator)).int()
            parts[name] = ParameterDirection(shape, torch.randn(len(places), generator=generator), indices=places)
        return Direction(parts)

    with tempfile.TemporaryDirectory() as place:
        folders = []
        for number in range(count):
            direction, folder = drawn(0.01 * 135 / 106), Path(place, f"d{number}")
            folder.mkdir()
            config = GradiendConfig(
                feature_classes=["a", "b"], parameters=direction.spec(), base_model_name_or_path="smollm2"
            )
            direction.save(folder)
            config.feature_classes = None
            config.save_pretrained(str(folder))
            References((drawn(0.001), drawn(0.001)), None, 1.0).save(folder)
            folders.append(str(folder))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", _MANY, *folders], env=environment, capture_output=True, text=True, check=True
        )
    wall, cpu, memory = map(float, done.stdout.split()[-3:])
    entries = direction.entries
    note = f"{count} directions of {entries:,} entries; {wall:.1f} s by the clock"
    return [
        line(
            "reading and comparing (cosine, overlap, predicted effects)",
            cpu,
            "CPU s",
            "≤ 30",
            model="135M, 1 %",
            note=note,
        ),
        line("the same: memory", memory, "GiB", "≤ 2", model="135M, 1 %"),
    ]
