"""The papers' comparison: 44 directions of one model, what they share and what one does to another.

python examples/comparison.py --offline --out out/comparison

German gender × case 23, English gender 1, race 3, religion 3, pronouns 10 (all pairs of five persons and numbers), merged
persons and numbers 4. With --offline the texts are made from templates, and the base is the small bundled model, which has
hardly seen German: its German figures say that the method runs. The page has the papers' heatmap and Venn diagram and,
beside them, what they lack: predicted and measured effects, the null of coin labels, and the ceiling of split halves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from german_articles import CELLS
from race_religion import CLASSES as GROUPS
from race_religion import FRAMES, PEOPLE
from transformers.utils import logging

from gradiend_hub import GradiendTrainingArguments
from gradiend_hub.base_model import load_base_model
from gradiend_hub.comparison import DirectionSet, agreement
from gradiend_hub.comparison.tables import Matrix
from gradiend_hub.plots.comparison import plot_venn
from gradiend_hub.plots.comparison_page import Section, render_comparison, sections_of
from gradiend_hub.training import DirectionSuite

HERE = Path(__file__).resolve().parent
PERSONS = {"1SG": ["i"], "1PL": ["we"], "2": ["you"], "3SG": ["he", "she"], "3PL": ["they"]}
MERGED = {"SG": ["1SG", "3SG"], "PL": ["1PL", "3PL"], "p1": ["1SG", "1PL"], "p3": ["3SG", "3PL"], "p2": ["2"]}
GENDER = {
    "male": ["man", "king", "father", "son", "brother"],
    "female": ["woman", "queen", "mother", "daughter", "sister"],
}
PRONOUN_FRAMES = [
    "In the evening {} came to the house with a friend.", "Then {} went to the city to see the king.",
    "It was late when {} came back from the field.", "The people said that {} had come from far away.",
    "After the war {} lived in the old house by the sea.", "At last {} came to the place and sat down there.",
    "The next day {} took the road to the village again.", "When the sun was low {} saw the ship in the harbour.",
    "Before that {} said nothing to the people of the town.", "Last year {} wrote a long letter to the judge.",
]  # fmt: skip
NOUNS = {
    "masc_nom": "{} Mann kommt heute", "masc_acc": "wir sehen {} Mann heute", "masc_dat": "wir helfen {} Mann heute",
    "masc_gen": "das Haus {} Mannes ist alt", "fem_nom": "{} Frau kommt heute", "fem_acc": "wir sehen {} Frau heute",
    "fem_dat": "wir helfen {} Frau heute", "fem_gen": "das Haus {} Frau ist alt", "neut_nom": "{} Kind kommt heute",
    "neut_acc": "wir sehen {} Kind heute", "neut_dat": "wir helfen {} Kind heute", "neut_gen": "das Haus {} Kindes ist alt",
}  # fmt: skip
GERMAN_ENDS = ["", " wieder", " in die Stadt", " mit uns", " am Abend", " im Dorf", " noch einmal", " nach dem Krieg"]


def rows_of(frames: Sequence[str], classes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every word of every class in every frame, with a row for each other class."""
    found = []
    for frame in frames:
        for of, to in permutations(classes, 2):
            for number, word in enumerate(classes[of]):
                other = classes[to][number % len(classes[to])]
                if word != other:
                    found.append({"masked": frame.format("[MASK]"), "factual": word, "alternative": other,
                                  "factual_class": of, "alternative_class": to})  # fmt: skip
    return found


def german_rows() -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """Articles by gender and case; pairs of cells that share gender or case, with different articles (23 are taken)."""
    rows = []
    for cell, frame in NOUNS.items():
        for end in GERMAN_ENDS:
            for other in CELLS:
                if CELLS[other][0] != CELLS[cell][0]:
                    masked = f"Heute sagt man: {frame.format('[MASK]')}{end}."
                    rows.append({"masked": masked, "factual": CELLS[cell][0], "alternative": CELLS[other][0],
                                 "factual_class": cell, "alternative_class": other})  # fmt: skip
    related = [
        (a, b) for a, b in combinations(CELLS, 2)
        if CELLS[a][0] != CELLS[b][0] and (CELLS[a][1] == CELLS[b][1] or CELLS[a][2] == CELLS[b][2])
    ]  # fmt: skip
    return rows, related[:23]


def features() -> dict[str, tuple[list[dict[str, str]], list[tuple[str, str]], dict[str, list[str]]]]:
    """Rows, pairs and merged classes of each group of directions."""
    german, cells = german_rows()
    people = [frame.format(person=person) for frame in FRAMES for person in PEOPLE[:3]]
    gender = [frame.replace("{}", "the {}") for frame in PRONOUN_FRAMES]
    persons = list(combinations(PERSONS, 2))
    merged = [("SG", "PL"), ("p1", "p2"), ("p1", "p3"), ("p2", "p3")]
    return {
        "German": (german, cells, {}),
        "gender": (rows_of(gender, GENDER), [("male", "female")], {}),
        "race": (rows_of(people, GROUPS["race"]), list(combinations(GROUPS["race"], 2)), {}),
        "religion": (rows_of(people, GROUPS["religion"]), list(combinations(GROUPS["religion"], 2)), {}),
        "pronouns": (rows_of(PRONOUN_FRAMES, PERSONS), [*persons, *merged], MERGED),
    }


def main() -> None:
    """Learn the directions, compare them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of the base model; default: the bundled masked one")
    parser.add_argument(
        "--offline", action="store_true", help="nothing but this folder (texts are made from templates)"
    )
    parser.add_argument("--out", type=Path, default=Path("out/comparison"), help="folder of directions and page")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base = load_base_model(args.model or HERE / "base_models" / "masked")
    folders: dict[str, Path] = {}
    groups: dict[str, list[str]] = {}
    for feature, (rows, pairs, merged) in features().items():
        training = GradiendTrainingArguments(
            str(args.out / feature), solver="closed_form", per_device_train_batch_size=8, final_density=0.05, use_cpu=True,
            disable_tqdm=True, logging_strategy="no", save_strategy="no", controls=0,
        )  # fmt: skip
        suite = DirectionSuite(base, training, train_dataset=rows, pairs=pairs, merged=merged)
        for name, folder in suite.train().items():
            folders[name] = folder
            groups.setdefault("merged" if {*name.split("_")} & {*MERGED} - {"2"} else feature, []).append(name)
        print(f"{feature}: {len(suite.pairs)} directions, {suite.seconds['stream']:.0f} s of gradients", flush=True)
    ds = DirectionSet.from_pretrained(folders, base)
    for member in ds.members:  # one dose for all of them, as none was calibrated: a thousandth of the weights' norm
        member.config.strength_unit = 1e-3 * _norm(base, ds) / member.direction.norm(1.0, 0.0)
    sections = sections_of(ds, measured=True, groups=groups)
    three = ["1SG_1PL", "3SG_3PL", "3SG_2" if "3SG_2" in folders else "2_3SG"]
    venn = plot_venn({name: ds.largest(name, 1000) for name in three})
    sections.insert(2, Section("Three pronoun pairs", ["Their 1000 largest entries."], [(venn, "Venn diagram")]))
    said = conclusions(ds, groups)
    print("\n".join(said))
    sections.insert(0, Section("What holds here", said))
    page = render_comparison(
        "44 directions of one model", sections, f"Base model: {Path(str(base.name_or_path)).name}."
    )
    (args.out / "comparison.html").write_text(page, encoding="utf-8")
    (args.out / "conclusions.json").write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"\npage: {args.out / 'comparison.html'}")


def _norm(base: object, ds: DirectionSet) -> float:
    parameters = dict(base.named_parameters())  # type: ignore[attr-defined]
    return float(sum(parameters[name].detach().float().square().sum() for name in ds.frame.shapes)) ** 0.5


def conclusions(ds: DirectionSet, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The papers' claims as sentences with the figures that a reader can check."""
    cosine, overlap = ds.similarity("cosine"), ds.similarity("overlap")
    assert isinstance(cosine, Matrix) and isinstance(overlap, Matrix)
    found = agreement(ds.predicted_effects(), ds.measured_effects())
    said = [
        f"Predicted and measured effects: r = {found.pearson:.2f} [{found.interval[0]:.2f}, {found.interval[1]:.2f}], "
        f"ρ = {found.spearman:.2f}, {found.pairs} pairs of different directions."
    ]
    for group, names in groups.items():
        inside = list(combinations(names, 2))
        if inside:
            said.append(f"Within {group}: {_figures(inside, cosine, overlap)}")
    across = [(a, b) for one, other in combinations(groups, 2) for a in groups[one] for b in groups[other]]
    said.append(f"Between groups: {_figures(across, cosine, overlap)}")
    number = [("1SG_1PL", "3SG_3PL")]
    person = [("1SG_3SG", "1PL_3PL")]
    apart = [("1SG_1PL", "1SG_3SG"), ("3SG_3PL", "1PL_3PL")]
    said.append(f"Number of the first and of the third person: {_figures(number, cosine, overlap)}")
    said.append(f"Person in singular and in plural: {_figures(person, cosine, overlap)}")
    said.append(f"Number and person: {_figures(apart, cosine, overlap)}")
    return said


def _figures(pairs: Sequence[tuple[str, str]], cosine: Matrix, overlap: Matrix) -> str:
    cells = [cosine[pair] for pair in pairs]
    shared = [overlap[pair] for pair in pairs]
    beyond = sum(abs(cell.value or 0) > (cell.null or 0) for cell in cells)
    above = sum((cell.value or 0) > (cell.null or 0) for cell in shared)
    ceiling = [cell.ceiling for cell in cells if cell.ceiling is not None]

    def mean(values: list[float | None]) -> float:
        return float(np.mean([value or 0.0 for value in values]))

    return (
        f"mean |cosine| {mean([abs(c.value or 0) for c in cells]):.2f} (null {mean([c.null for c in cells]):.2f}, ceiling "
        f"{np.mean(ceiling or [np.nan]):.2f}), beyond the null in {beyond} of {len(cells)} pairs; mean overlap "
        f"{mean([c.value for c in shared]):.2f} (null {mean([c.null for c in shared]):.2f}), above it in {above}."
    )


if __name__ == "__main__":
    main()
