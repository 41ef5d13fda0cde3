"""Comparison: how well artifacts predict measured effects, the cost of a suite, and of comparing many directions.

    python -m tests.benchmarks.bench_comparison [--features N] [--rows N] [--held N] [--dose SHARE] [BASE] ...
    python -m tests.benchmarks.bench_comparison --cost

As a command of its own it measures only the first of these, and prints a line for each base model: predicted and measured
effects of every direction on the features of the others, with null and ceiling of the cosines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from transformers import AutoTokenizer
from transformers.utils import logging

from gradiend_hub import GradiendTrainingArguments
from gradiend_hub.artifact.direction import Direction, ParameterDirection
from gradiend_hub.base_model import load_base_model
from gradiend_hub.comparison import DirectionSet, agreement
from gradiend_hub.comparison.encodings import Encoder, encode_all
from gradiend_hub.comparison.similarity import Sides, similarity
from gradiend_hub.comparison.vectors import Frame, Vectors
from gradiend_hub.objectives import examples_of, make_objective
from gradiend_hub.scope import select_parameters
from gradiend_hub.training import DirectionSuite

from .measure import MODELS, interleaved, line, skipped

ROOT = Path(__file__).parents[2]
SIZES = {"hidden": 576, "inner": 1536, "layers": 30, "heads": (576, 192, 192, 576)}
"""SmolLM2-135M: its linear maps, all that is in the default scope but for the norms."""

SHOWN = (
    "signed cosine and measured effects, Spearman", "overlap of 1000 and size of measured effects, Spearman",
    "null of the cosine", "ceiling of the cosine", "null of the overlap", "ceiling of the overlap",
)  # fmt: skip

THEIRS = {
    "cosine_signed": "cosine",
    "topk_overlap": "overlap",
    "mass_overlap": "mass_overlap",
    "spearman_signed": "spearman",
}
"""Measures of the reference, and what they are called here."""

DOSE = 1e-3
"""Norm of an edit whose effects are predicted and measured, as a share of the weights' norm."""

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
            lines += predicted_and_measured(name, Path(path), most=48 if quick else 120)
    lines += suite_cost(quick)
    lines += many_directions(quick)
    lines += cross_encoding_cost(quick)
    return lines + beside_the_reference(quick)


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


def predicted_and_measured(
    name: str, path: Path, most: int, features: int | None = None, held_out: int = 24, dose: float = DOSE
) -> list[dict[str, Any]]:
    """Train a closed form of each feature, and compare what artifacts predict with what edits do on other rows.

    Args:
        most: training rows of each class.
        features: the first so many of `FEATURES`; default: all.
        held_out: rows of each class that effects are measured on.
        dose: norm of every edit, as a share of the weights' norm.
    """
    texts, base, folders, held = sentences(), load_base_model(path), {}, {}
    with tempfile.TemporaryDirectory() as place:
        for feature, pairs in list(FEATURES.items())[:features]:
            rows = feature_rows(pairs, texts, most + held_out)
            half = len(rows) // 2
            if half < held_out + 16:
                continue
            train = [r for of in (rows[:half], rows[half:]) for r in of[held_out:]]
            held[feature] = [r for of in (rows[:half], rows[half:]) for r in of[:held_out]]
            args = GradiendTrainingArguments(
                str(Path(place, feature)), solver="closed_form", max_steps=-1, per_device_train_batch_size=8, controls=0,
                use_cpu=True, disable_tqdm=True, logging_strategy="no", save_strategy="no",
            )  # fmt: skip
            suite = DirectionSuite(base, args, train_dataset=train, pairs=[("first", "second")])
            folders[feature] = suite.train()["first_second"]
        ds = DirectionSet.from_pretrained(folders, base)
        for member in ds.members:  # one small dose for all
            member.config.strength_unit = dose * _norm(base, ds) / member.direction.norm(1.0, 0.0)
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
    """CPU seconds of the stream of 44 directions beside that of one with as many rows, and with as many texts.

    A text has a row for each of its 9 alternatives. Its forward pass serves them all, but each needs a backward pass of its
    own: 10 with the factual one, beside 2 of a text of one direction.
    """
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

    chosen = [row for row in rows if (row["factual"], row["alternative"]) in {*pairs, *((b, a) for a, b in pairs)}]
    of_one = [row for row in rows if {row["factual"], row["alternative"]} == {*pairs[0]}]

    def one_direction(count: int) -> list[dict[str, str]]:
        """As many different rows of the first pair."""
        return [
            {**row, "masked": f"{row['masked']} {number}"}
            for number in range(-(-count // len(of_one)))
            for row in of_one
        ][:count]

    texts = len({(r["masked"], r["factual"]) for r in chosen})
    many = seconds(chosen, pairs)
    found = []
    for what, count, target in (("rows", len(chosen), "≤ 3"), ("texts", texts, "")):
        single = seconds(one_direction(count), pairs[:1])
        found.append(
            line(f"a suite of 44 directions beside one with the same {what}", many / single, "×", target,
                 model="masked, one layer", ours=f"{many:.1f} s", other=f"{single:.1f} s", note=f"{count} {what}")
        )  # fmt: skip
    return found


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


def cross_encoding_cost(quick: bool) -> list[dict[str, Any]]:
    """CPU seconds of encoding rows by 44 directions of 1 % of the weights, beside one: a backward pass serves all."""
    path = MODELS["masked"]
    base, count = load_base_model(path), 8 if quick else 44
    objective = make_objective(base, AutoTokenizer.from_pretrained(path))
    rows = feature_rows(FEATURES["number"], sentences(), 8)
    examples = examples_of(objective, [objective.read(row) for row in rows])
    generator, encoders = torch.Generator().manual_seed(0), []
    for _ in range(count):
        parts = {}
        for name, parameter in select_parameters(base).items():
            places = (
                torch.randint(parameter.numel(), (max(1, parameter.numel() // 100),), generator=generator)
                .unique()
                .int()
            )
            values = torch.randn(len(places), generator=generator)
            parts[name] = ParameterDirection(tuple(parameter.shape), values, None, values, places)
        encoders.append(Encoder(Direction(parts), "alternative"))
    works = {str(n): partial(encode_all, base, objective, encoders[:n], examples) for n in (1, count)}
    times = interleaved(works, 3)
    return [
        line(f"encoding a row by {count} directions beside one", times.ratios[str(count)], "×", "≤ 1.5",
             model="masked, 1 %", ours=f"{1e3 * times.medians[str(count)] / len(examples):.1f} ms",
             other=f"{1e3 * times.medians['1'] / len(examples):.1f} ms")
    ]  # fmt: skip


def beside_the_reference(quick: bool) -> list[dict[str, Any]]:
    """CPU seconds of the reference's functions and of ours on the same sparse vectors, and how far the tables differ."""
    python = os.environ.get("GRADIEND_REFERENCE_PYTHON")
    if not python:
        return [
            skipped("against the reference", "GRADIEND_REFERENCE_PYTHON is not set; see tests/benchmarks/README.md")
        ]
    count, entries, generator = 4, 20_000 if quick else 200_000, torch.Generator().manual_seed(0)
    elements, parts = 10 * entries, []
    for _ in range(count):
        places = torch.randperm(elements, generator=generator)[:entries].sort().values
        parts.append((places, torch.randn(entries, generator=generator)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vectors.safetensors")
        save_file(
            {f"{i}.{n}": pair[k] for i, pair in enumerate(parts) for k, n in enumerate(("places", "values"))}, file
        )
        script = Path(__file__).with_name("reference_comparison.py")
        command = [python, str(script), str(file), str(elements), "1000", *THEIRS]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    shape = (elements // 1000, 1000)
    directions = [Direction({"weight": ParameterDirection(shape, v, indices=p.int())}) for p, v in parts]
    lines = []
    for measure, ours in THEIRS.items():
        start = time.process_time()
        sides = Sides(Vectors(Frame.of([{"weight": shape}]), directions, [1.0] * count))
        table = similarity(sides, ours, 1000)
        seconds, other = time.process_time() - start, theirs[measure]
        apart = float(np.abs(table - np.array(other["matrix"])).max())
        lines.append(
            line(f"{ours}: reference / ours", other["seconds"] / seconds, "×", "> 1", model="drawn",
                 ours=f"{1e3 * seconds:.0f} ms", other=f"{other['seconds']:.2f} s",
                 note=f"{count} vectors of {entries:,} of {elements:,} entries; tables differ by {apart:.0e} at most")
        )  # fmt: skip
    return lines


def main() -> None:
    """Print the table of predicted and measured effects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bases", nargs="*", default=list(MODELS), help="masked, causal, minilm, or folders of base models"
    )
    parser.add_argument("--features", type=int, help="the first so many; default: all")
    parser.add_argument("--rows", type=int, default=120, help="training rows of each class, at most")
    parser.add_argument("--held", type=int, default=24, help="rows of each class that effects are measured on")
    parser.add_argument("--dose", type=float, default=DOSE, help="norm of an edit, as a share of the weights'")
    parser.add_argument("--cost", action="store_true", help="instead: what comparing and encoding 44 directions costs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.cost:
        for one in [*many_directions(False), *cross_encoding_cost(False)]:
            print(json.dumps(one, ensure_ascii=False), flush=True)
        return
    print("| base | r, ρ and their number | " + " | ".join(SHOWN) + " | CPU s |\n|" + "---|" * (len(SHOWN) + 3))
    for name in options.bases:
        start, path = time.process_time(), Path(MODELS.get(name, name))
        found = predicted_and_measured(path.name, path, options.rows, options.features, options.held, options.dose)
        values = {one["what"]: one["value"] for one in found}
        cells = [
            path.name,
            f"r {found[0]['value']:.3f}, {found[0]['note']}",
            *(f"{values[what]:.2f}" for what in SHOWN),
        ]
        print(f"| {' | '.join(cells)} | {time.process_time() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
