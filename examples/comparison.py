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
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations, product
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
from gradiend_hub.training.suite_rows import Pair

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
GERMAN_STARTS = ["Heute sagt man", "Im Dorf hört man oft"]
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
        for start, end in product(GERMAN_STARTS, GERMAN_ENDS):
            for other in CELLS:
                if CELLS[other][0] != CELLS[cell][0]:
                    masked = f"{start}: {frame.format('[MASK]')}{end}."
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
    pairs_by_name: dict[str, Pair] = {}
    for feature, (rows, pairs, merged) in features().items():
        training = GradiendTrainingArguments(
            str(args.out / feature), solver="closed_form", per_device_train_batch_size=8, final_density=0.05, use_cpu=True,
            disable_tqdm=True, logging_strategy="no", save_strategy="no", controls=0,
        )  # fmt: skip
        suite = DirectionSuite(base, training, train_dataset=rows, pairs=pairs, merged=merged)
        pairs_by_name |= {pair.name: pair for pair in suite.pairs}
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
    said = conclusions(ds, groups, pairs_by_name)
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


Pairs = Sequence[tuple[str, str]]


def conclusions(ds: DirectionSet, groups: Mapping[str, Sequence[str]], names: Mapping[str, Pair]) -> list[str]:
    """The papers' claims, each with the figures that a reader can check, and whether these bear it out.

    Two sets of pairs differ in what they share if more of the first than of the second lie beyond the null, by 20 points.
    """
    cosine, overlap = ds.similarity("cosine"), ds.similarity("overlap")
    assert isinstance(cosine, Matrix) and isinstance(overlap, Matrix)
    found = agreement(ds.predicted_effects(), ds.measured_effects())
    said = [
        f"Artifacts predict what a direction does to other features: r = {found.pearson:.2f} "
        f"[{found.interval[0]:.2f}, {found.interval[1]:.2f}], ρ = {found.spearman:.2f}, {found.pairs} pairs of different "
        "directions. Overlap has no sign, so it cannot tell what raises a feature from what lowers it."
    ]

    def claim(what: str, related: Pairs, other: Pairs, named: tuple[str, str]) -> None:
        shares = [beyond_null(cosine, pairs) for pairs in (related, other)]
        verdict = "Holds here" if shares[0] - shares[1] > 0.2 else "Does not hold here"
        said.append(f"{what} {verdict}. {named[0]}: {figures(related, cosine, overlap)} {named[1]}: "
                    f"{figures(other, cosine, overlap)}")  # fmt: skip

    within = [pair for members in groups.values() for pair in combinations(members, 2)]
    across = [(a, b) for one, other in combinations(groups, 2) for a in groups[one] for b in groups[other]]
    claim("Directions of one group share weights.", within, across, ("Within groups", "Between groups"))
    articles = {
        name: frozenset(CELLS[c][0] for c in (names[name].first, names[name].second)) for name in groups["German"]
    }
    pairs = list(combinations(groups["German"], 2))
    same = [(a, b) for a, b in pairs if articles[a] == articles[b]]
    apart = [(a, b) for a, b in pairs if not articles[a] & articles[b]]
    claim("German transitions that exchange the same articles share weights.", same, apart,
          ("The same two articles", "No article in common"))  # fmt: skip
    number = [("1SG_1PL", "3SG_3PL")]
    person = [("1SG_3SG", "1PL_3PL")]
    mixed = [("1SG_1PL", "1SG_3SG"), ("3SG_3PL", "1PL_3PL"), ("1SG_1PL", "1PL_3PL"), ("3SG_3PL", "1SG_3SG")]
    disjoint = beyond_null(cosine, mixed) < 0.5
    said.append(
        f"Number and person are largely disjoint. {'Holds here' if disjoint else 'Does not hold here'}. Number and person: "
        f"{figures(mixed, cosine, overlap)} Number of the first and of the third person: {figures(number, cosine, overlap)} "
        f"Person in singular and in plural: {figures(person, cosine, overlap)}"
    )
    return said


def beyond_null(table: Matrix, pairs: Pairs) -> float:
    """Share of pairs whose value lies beyond what directions of coin labels reach."""
    return float(np.mean([abs(table[pair].value or 0) > (table[pair].null or 0) for pair in pairs]))


def figures(pairs: Pairs, cosine: Matrix, overlap: Matrix) -> str:
    """Means over some pairs, each beside its null and ceiling."""

    def mean(values: Iterable[float | None]) -> str:
        known = [abs(value) for value in values if value is not None]
        return f"{np.mean(known):.2f}" if known else "unknown"

    parts = []
    for name, table in (("|cosine|", cosine), ("overlap", overlap)):
        cells = [table[pair] for pair in pairs]
        references = f"null {mean(c.null for c in cells)}, ceiling {mean(c.ceiling for c in cells)}"
        parts.append(
            f"mean {name} {mean(c.value for c in cells)} ({references}, beyond the null {beyond_null(table, pairs):.0%})"
        )
    return f"{'; '.join(parts)}; {len(pairs)} pair{'s' * (len(pairs) > 1)}."


if __name__ == "__main__":
    main()
