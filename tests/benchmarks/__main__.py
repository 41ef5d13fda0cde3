"""`make bench`: every benchmark, its lines in one JSON file and one Markdown table under out/bench/.

    python -m tests.benchmarks [--quick] [--base FOLDER] [--out FOLDER] [MODULE ...]

A module is named without `bench_`, e.g. `learner`. Each has a function `run(quick)` that returns lines as
`tests.benchmarks.measure.line` makes them. One that fails is shown as failed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers.utils import logging as transformers_logging

from .measure import MODELS

HERE = Path(__file__).parent
MODULES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"default: all of {', '.join(MODULES)}")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and models, for a first look")
    parser.add_argument(
        "--base", type=Path, help="folder of a base model in place of the listed ones (not in `adapter`)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of bench.json and bench.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.modules) - set(MODULES)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(MODULES)}")
    if arguments.base:
        MODELS.clear()
        MODELS[arguments.base.name] = arguments.base
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    lines = [line for name in arguments.modules or MODULES for line in _run(name, arguments.quick)]
    record = {"date": datetime.date.today().isoformat(), "quick": arguments.quick, **_machine(), "lines": lines}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    table = _table(record)
    (arguments.out / "bench.md").write_text(table)
    print(table)
    return int(any(line.get("failed") for line in lines))


def _run(name: str, quick: bool) -> list[dict[str, Any]]:
    """Lines of one module, which a failure adds one to."""
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        module = importlib.import_module(f"tests.benchmarks.bench_{name}")
        return [{"module": name, **line} for line in module.run(quick=quick)]
    except Exception as error:  # the other modules are measured all the same
        traceback.print_exc()
        return [{"module": name, "what": "run", "failed": f"{type(error).__name__}: {error}"}]


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if (information := Path("/proc/cpuinfo")).exists():
        cpu = next((x.split(":")[1].strip() for x in information.read_text().splitlines() if "model name" in x), cpu)
    names = ("gradiend_hub", "torch", "transformers", "peft", "accelerate")
    return {
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


def verdict(line: dict[str, Any]) -> str:
    """ "met", "missed", or nothing where there is no target such as "≤ 1.15"."""
    match = re.fullmatch(r"([≤≥<>])=?\s*([\d.]+)x?", str(line.get("target", "")).strip())
    if match is None or line.get("value") is None:
        return ""
    limit, value = float(match[2]), float(line["value"])
    return "met" if (value <= limit if match[1] in "≤<" else value >= limit) else "missed"


def _table(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    text = [
        f"# Benchmarks, {record['date']}{' (quick)' if record['quick'] else ''}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread; load {machine['load']:.1f}. {versions}.",
        "",
        "| module | model | what | ours | compared with | value | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in record["lines"]:
        cells = [line["module"], str(line.get("model", "")), line["what"]]
        if reason := line.get("failed") or line.get("skipped"):
            cells += ["", "", "", "", f"{'failed' if line.get('failed') else 'skipped'}: {reason}"]
        else:
            value = f"**{line['value']:.4g}** {line.get('unit', '')}".strip()
            cells += [str(line.get("ours", "")), str(line.get("other", "")), value, str(line.get("target") or "")]
            cells += ["; ".join(filter(None, [verdict(line), str(line.get("note", ""))]))]
        text.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    sys.exit(main())
