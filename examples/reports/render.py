"""Train, measure and render directions: card, figures, HTML page and report; the weights stay in a temporary folder.

    python examples/reports/render.py masked causal           # the bundled models
    python examples/reports/render.py --base FOLDER minilm    # any other masked or causal model, under a name
    python examples/reports/render.py digits-label digits-concept sentences-label sentences-concept preference
    python examples/reports/render.py --keep FOLDER pronouns  # a direction that was trained before, under a name
    python examples/reports/render.py --cards                 # learns nothing: cards and pages of the reports that are here

Those of the third line are the directions of `examples/classifiers.py` and `examples/preferences.py`: a card of each further
objective.

Everything is the default; run it in the repository's root folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from datasets import load_dataset

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.artifact.files import ASSETS_FOLDER, CARD_FILE, CONFIG_FILE, HTML_FILE, REPORT_FILE
from gradiend_hub.artifact.names import shown_name
from gradiend_hub.cards import render_card
from gradiend_hub.evaluation import Report
from gradiend_hub.plots import render_html, save_plots

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
MODEL_CARDS = EXAMPLES.parent / "model_cards"
SIZES = "files.json"
"""Sizes of the files of a direction, whose card states them, and what else was there."""
SCRIPTS = {
    **{
        f"{of}-{kind}": ("classifiers.py", "--only", f"{of}, {kind}")
        for of in ("digits", "sentences")
        for kind in ("label", "concept")
    },
    "preference": ("preferences.py", "--offline"),
}
"""What learns, measures and saves the directions of the other examples."""


def render(name: str, base: Path, folder: Path) -> None:
    """Train on the pronouns, measure on the validation and the test split, and keep what is rendered from that."""
    rows = load_dataset(str(EXAMPLES / "data" / "pronouns"))
    texts = load_dataset(str(EXAMPLES / "data" / "pronouns"), "neutral", split="neutral")
    neutral = {part: texts.filter(lambda row, p=part: row["split"] == p) for part in ("validation", "test")}
    trainer = GradiendTrainer(
        base,
        GradiendConfig(feature_classes=["3SG", "3PL"]),
        GradiendTrainingArguments(str(folder), save_strategy="no", disable_tqdm=True),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        neutral_dataset=neutral["validation"],
    )
    trainer.train()
    trainer.evaluate()
    trainer.evaluate(rows["test"], metric_key_prefix="test", neutral_dataset=neutral["test"])
    trainer.create_model_card(language="en")
    keep(name, folder)


def render_example(name: str, folder: Path) -> None:
    """Run an example, and keep what it renders."""
    script, *options = SCRIPTS[name]
    command = [sys.executable, str(EXAMPLES / script), *options, "--save", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    keep(name, folder if (folder / CARD_FILE).is_file() else folder / name)


def keep(name: str, folder: Path) -> None:
    """Copy card, figures, page, configuration and report of a direction, without its weights."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in (CARD_FILE, HTML_FILE, REPORT_FILE):
        shutil.copyfile(folder / file, target / file)
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = without_place(config["base_model_name_or_path"])
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copytree(folder / ASSETS_FOLDER, target / ASSETS_FOLDER)
    others = (p for p in folder.rglob("*") if p.is_file() and not (target / p.relative_to(folder)).exists())
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in others if "checkpoint" not in str(p)}
    (target / SIZES).write_text(json.dumps(sizes, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_pages(name)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e3:.0f} kB")


def without_place(base: str) -> str:
    """Return a base model's folder from the repository's root, or its name alone: nothing of the machine that has it."""
    path, root = Path(base), EXAMPLES.parent.resolve()
    if not path.is_absolute():
        return base
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def card(name: str) -> str:
    """Return the card of a direction that is kept here, as it is rendered today."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "direction")
        shutil.copytree(HERE / name, folder)
        for file, size in json.loads((folder / SIZES).read_text(encoding="utf-8")).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
            os.truncate(folder / file, size)  # takes no room
        return str(render_card(folder))


def page(name: str) -> str:
    """Return the HTML page of a direction that is kept here, as it is rendered today."""
    config, report = GradiendConfig.from_pretrained(str(HERE / name)), Report.load(HERE / name)
    base = shown_name(config.base_model_name_or_path)
    return str(render_html(report, base=base, safe_band=config.safe_band, objective=config.objective))


def write_pages(name: str) -> None:
    """Draw figures and page of a kept report; write its card beside them, and into `model_cards`, where all can be seen."""
    config, report = GradiendConfig.from_pretrained(str(HERE / name)), Report.load(HERE / name)
    save_plots(report, HERE / name / ASSETS_FOLDER, safe_band=config.safe_band, objective=config.objective)
    (HERE / name / HTML_FILE).write_text(page(name), encoding="utf-8")
    text = card(name)
    (HERE / name / CARD_FILE).write_text(text, encoding="utf-8")
    (MODEL_CARDS / f"{name}.md").write_text(shown_elsewhere(text, name), encoding="utf-8")


def shown_elsewhere(text: str, name: str) -> str:
    """Return a card whose figures are found from the folder `model_cards`."""
    return text.replace(f"]({ASSETS_FOLDER}/", f"](../examples/reports/{name}/{ASSETS_FOLDER}/")


def kept() -> list[str]:
    """Return the names of the directions whose card can be rendered."""
    return sorted(path.parent.name for path in HERE.glob(f"*/{SIZES}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"masked, causal, {', '.join(SCRIPTS)}, or with --base any name")
    parser.add_argument("--base", type=Path, help="folder of another base model")
    parser.add_argument("--keep", type=Path, help="folder of a direction that was trained before")
    parser.add_argument("--cards", action="store_true", help="render cards and pages of all reports that are here")
    arguments = parser.parse_args()
    for name in kept() if arguments.cards else ():
        write_pages(name)
    for name in arguments.names:
        if arguments.keep is not None:
            keep(name, arguments.keep)
            continue
        with tempfile.TemporaryDirectory() as folder:
            if name in SCRIPTS and arguments.base is None:
                render_example(name, Path(folder))
            else:
                render(name, arguments.base or EXAMPLES / "base_models" / name, Path(folder))


if __name__ == "__main__":
    main()
