"""Train, measure and render directions: card, figures, HTML page and report; the weights stay in a temporary folder.

    python examples/reports/render.py masked causal           # the bundled models
    python examples/reports/render.py --base FOLDER minilm    # any other masked or causal model, under a name
    python examples/reports/render.py digits-label digits-concept sentences-label sentences-concept preference

The latter are the directions of `examples/classifiers.py` and `examples/preferences.py`: a card of each further objective.

Everything is the default; run it in the repository's root folder.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from datasets import load_dataset

from gradiend_hub import GradiendConfig, GradiendTrainer, GradiendTrainingArguments
from gradiend_hub.artifact.files import ASSETS_FOLDER, CARD_FILE, HTML_FILE, REPORT_FILE

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
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
    """Copy card, figures, page and report of a direction, without its weights."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in (CARD_FILE, HTML_FILE, REPORT_FILE):
        shutil.copyfile(folder / file, target / file)
    shutil.copytree(folder / ASSETS_FOLDER, target / ASSETS_FOLDER)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help=f"masked, causal, {', '.join(SCRIPTS)}, or with --base any name")
    parser.add_argument("--base", type=Path, help="folder of another base model")
    arguments = parser.parse_args()
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as folder:
            if name in SCRIPTS and arguments.base is None:
                render_example(name, Path(folder))
            else:
                render(name, arguments.base or EXAMPLES / "base_models" / name, Path(folder))


if __name__ == "__main__":
    main()
