"""Throughput of building feature data from text, beside a bare pass of the matcher and beside the reference's creator.

    python -m tests.benchmarks data

The text is ../shared/text/sentences.jsonl.gz where it is, else the bundled sentences over and over with a number. The bare
pass is the Aho-Corasick automaton (ahocorasick-rs) alone, called once per lower-cased text. The scan is all that the builder
does to every text: matching whole words, filters, duplicates, and writing the slots to disk. The whole build adds splits,
the exact comparison of all texts across splits, balance and alternatives.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ahocorasick_rs import AhoCorasick
from datasets import Dataset

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder
from gradiend_hub.data.builder.matching import Matcher
from gradiend_hub.data.builder.scan import Scan
from gradiend_hub.data.builder.spool import Spool
from tests.benchmarks.measure import interleaved, line, skipped

ROOT = Path(__file__).parents[2]
REFERENCE_PYTHON = os.environ.get("GRADIEND_REFERENCE_PYTHON")
_GOOD = "good great happy beautiful wonderful excellent nice pleasant brave strong rich glad kind"
_BAD = "bad terrible sad ugly awful horrible evil unpleasant cruel weak poor angry nasty"
CLASSES = {
    "pronouns": {"3SG": ["he", "she", "it"], "3PL": ["they"]},
    "sentiment": {name: words.split() for name, words in (("positive", _GOOD), ("negative", _BAD))},
}
_REFERENCE = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from gradiend.data import TextFilterConfig, TextPredictionDataCreator
texts, classes = json.load(open(sys.argv[1])), json.loads(sys.argv[2])
start = time.process_time()
TextPredictionDataCreator(
    base_data=texts, min_left_context_words=3,
    feature_targets=[TextFilterConfig(targets=words, id=name) for name, words in classes.items()],
).generate_training_data(format="per_class")
print("seconds", time.process_time() - start)
"""


def sentences(count: int) -> list[str]:
    """Real sentences, as many as there are, at most `count`."""
    path = ROOT.parent / "shared" / "text" / "sentences.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(row)["text"] for row, _ in zip(file, range(count), strict=False)]
    rows = (ROOT / "examples" / "data" / "pronouns" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    filled = [(row := json.loads(text))["masked"].replace("[MASK]", row["factual"]) for text in rows]
    return [f"{text} {number}" for number in range(-(-count // len(filled))) for text in filled][:count]


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Lines of the table."""
    texts = sentences(10_000 if quick else 130_000)
    source = Dataset.from_dict({"text": texts})
    lines = []
    for name, classes in CLASSES.items():
        find = AhoCorasick([word for words in classes.values() for word in words]).find_matches_as_indexes
        builder = FeatureDatasetBuilder(FeatureDataConfig(classes))

        def bare(find: Any = find) -> None:
            for batch in source.iter(1000):
                for text in batch["text"]:
                    find(text.lower(), overlapping=True)

        def scan(builder: FeatureDatasetBuilder = builder) -> None:
            with Spool(["masked", "factual", "split"]) as spool:
                Scan(builder.config, Matcher(builder.config), spool).run(source)
            spool.path.unlink()

        def build(builder: FeatureDatasetBuilder = builder) -> None:
            builder.build(source)

        times = interleaved({"bare": bare, "scan": scan, "build": build}, 1 if quick else 3)
        what, other = f"{name}, {len(texts):,} sentences", f"bare pass {times.medians['bare']:.2f} s"
        for part, target in (("scan", "≤ 3"), ("build", "")):
            ours = f"{times.medians[part]:.2f} s"
            lines.append(line(f"{what}: {part}", times.ratios[part], "×", target, ours=ours, other=other))
        lines.append(_against_reference(what, texts, classes, times.medians["build"]))
    return lines


def _against_reference(what: str, texts: list[str], classes: dict[str, list[str]], ours: float) -> dict[str, Any]:
    if not REFERENCE_PYTHON:
        return skipped(f"{what}: against the reference", "GRADIEND_REFERENCE_PYTHON is not set")
    path = Path("out/bench/texts.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(texts), encoding="utf-8")
    command = [REFERENCE_PYTHON, "-W", "ignore", "-c", _REFERENCE, str(path), json.dumps(classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = float(done.stdout.split("seconds")[-1])
    what = f"{what}: whole build against the reference's creator"
    return line(what, ours / theirs, "×", "< 1", ours=f"{ours:.2f} s", other=f"{theirs:.2f} s")


if __name__ == "__main__":
    for row in run(quick="--quick" in sys.argv):
        print(row)
