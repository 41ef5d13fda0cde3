"""Made-up reports in which everything was measured; no two figures are alike, so that each can be traced."""

from __future__ import annotations

import math
import random
from typing import Any

from gradiend_hub.evaluation import (
    BenchmarkResult,
    Completion,
    EncoderReport,
    Encoding,
    LayerShare,
    OutputReport,
    Report,
    SplitReport,
    StrengthPoint,
)

STRENGTHS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.0)


def point(strength: float, classes: list[str], scale: float = 1.0, shift: float = 0.0) -> StrengthPoint:
    """A point of a curve on which both probabilities grow like a logistic function."""
    first, second = classes
    up = 0.97 / (1 + math.exp(2.5 - 2.6 * scale * strength)) + shift
    down = 0.93 / (1 + math.exp(2.2 + 2.9 * scale * strength)) + shift
    nll = 2.3456 * (1 + 0.011 * scale * abs(strength) ** 2.1)
    return StrengthPoint(
        strength,
        {first: {first: 0.98 - down, second: down}, second: {first: up, second: 0.97 - up}},
        nll, 0.4321 - 0.01 * abs(strength), 2.3456 / nll, 2.3456 / nll - 0.0023, 0.0131 * scale * strength**2,
        {
            f"{first} on {second}": [up - 0.021, up + 0.019], f"{second} on {first}": [down - 0.017, down + 0.023],
            "nll": [nll - 0.06, nll + 0.07], "quality": [2.3456 / nll - 0.003, 2.3456 / nll + 0.002],
            "kl": [0.9 * 0.0131 * scale * strength**2, 1.1 * 0.0131 * scale * strength**2],
        },
    )  # fmt: skip


def samples(classes: list[str], fillers: dict[str, list[str]], number: int = 60) -> list[Encoding]:
    """Batch of both classes, of neutral text and of other tokens."""
    rng = random.Random(0)
    made = []
    for kind, centre, width in (
        (classes[0], 0.86, 0.1),
        (classes[1], -0.82, 0.12),
        ("neutral", 0.02, 0.2),
        ("other", 0.0, 0.3),
    ):
        for i in range(number):
            words = fillers.get(kind, ["lamp", "the", "red"])
            h = max(-0.999, min(0.999, rng.gauss(centre, width)))
            made.append(Encoding(f"Sentence {i} of {kind} has [MASK] in it.", words[i % len(words)], kind, round(h, 4)))
    return made


def full_report(classes: list[str], fillers: dict[str, list[str]], **changes: Any) -> Report:
    """A report without a gap."""
    first, second = classes
    encoder = EncoderReport(
        0.9673, 0.9812, 0.9937, {first: 0.8512, second: -0.8234}, {first: 0.1023, second: 0.1217}, 0.1534,
        {first: 611, second: 587}, 402, 0.9321, 0.8678, 0.9456, 0.2145, 377,
        {
            "correlation": [0.9581, 0.9744], "accuracy": [0.9713, 0.9888], "neutral_abs_mean": [0.1411, 0.1666],
            f"mean {first}": [0.8431, 0.8598], f"mean {second}": [-0.8339, -0.8127],
        },
        {
            word: OutputReport(
                name, 101 + 7 * i, (0.84 if name == first else -0.81) + 0.013 * i, 0.11 + 0.007 * i, 0.9767 - 0.0111 * i
            )
            for name in classes for i, word in enumerate(fillers[name])
        },
        EncoderReport(
            0.9123, 0.9234, 0.9345, {first: 0.7345, second: -0.7456}, {first: 0.21, second: 0.23}, None,
            {first: 31, second: 29}, 0,
        ),
        samples(classes, fillers),
    )  # fmt: skip
    control = [[point(s, classes, 0.02 * k, 0.001 * k) for s in STRENGTHS] for k in (1, 2, 3)]
    completions = [
        Completion(
            "The girls ran home because [MASK] felt ill.",
            {
                "-1.0": [["they", 0.9142], ["he", 0.0521], ["she", 0.0212]],
                "0.0": [["she", 0.7123], ["they", 0.2011], ["it", 0.0344]],
                "1.0": [["she", 0.9333], ["he", 0.0499], ["it", 0.0077]],
            },
        ),
        Completion(
            "After the rain,",
            {"-1.0": " they went to the lake.", "0.0": " he saw them at the lake.", "1.0": " he went to the lake."},
        ),
    ]
    split = SplitReport(
        encoder, [point(s, classes) for s in STRENGTHS], [], 2077, control, [None, 3.0], completions,
        ["held-out words: every word of this split was trained on"],
    )  # fmt: skip
    fields: dict[str, Any] = {
        "feature_classes": classes, "base_model": "masked", "scope": "64 tensors, 3,162,624 of 6,012,345 weights (52.60%)",
        "steps": 612,
        "training": {
            "solver": "autoencoder", "source": "alternative", "target": "diff", "learning_rate": 0.05,
            "rows_per_gradient": 16, "epochs": 1.0, "max_steps": -1, "seed": 7, "base_parameters": 6012345,
        },
        "default_arguments": ["solver", "source", "target", "rows_per_gradient", "epochs", "max_steps", "base_parameters"],
        "data": {
            "train_rows": {first: 4815, second: 4799}, "eval_rows": 604, "neutral_texts": 399, "train_sha256": "5f" * 32,
        },
        "splits": {"eval": split, "test": split},
        "seconds": {"train": 61.27, "evaluate eval": 22.19, "evaluate test": 9.83},
        "versions": {"gradiend_hub": "0.1.0", "torch": "2.13.0"},
        "layers": [
            LayerShare(f"bert.encoder.layer.{i}", 16, 788736 + i, (4 - i) / 10, 0.0031 + 0.0007 * i) for i in range(4)
        ],
        "dtype_loss": {"float16": 0.0412, "bfloat16": 0.3871, "int8": 0.9123},
        "history": [{"step": s, "loss": 1.1 * math.exp(-s / 90) + 0.31, "learning_rate": 0.05} for s in range(10, 620, 10)]
        + [
            {"step": 300, "eval_correlation": 0.93, "eval_accuracy": 0.96},
            {"step": 612, "eval_correlation": 0.967, "eval_accuracy": 0.981},
        ],
        "seeds": [{"seed": 7, "correlation": 0.967}, {"seed": 8, "correlation": 0.958}],
        "side_effects": [
            BenchmarkResult(
                "StereoSet intrasentence", s, {"SS": 57.3 - s, "LMS": 81.4, "ICAT": 69.6}, {"SS": [54.2, 60.4]}, 2106,
                "stereoset@1a2b3c", "@inproceedings{nadeem}",
            )
            for s in (-1.0, 0.0, 1.0)
        ],
        "examples": [
            {
                "masked": f"Row {i}: the dog barked because [MASK] was hungry.", "factual": "it", "alternative": "they",
                "factual_class": first, "alternative_class": second,
            }
            for i in range(3)
        ],
        "energy_kwh": 0.00213,
        "usage": {"code": "model = GradiendModel.from_pretrained('REPO')", "output": "loaded"},
    }  # fmt: skip
    return Report(**{**fields, **changes})
