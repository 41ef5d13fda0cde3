"""Gender of English pronouns after names and nouns, and a dose at which a model prefers neither.

python examples/english_gender.py --offline
python examples/english_gender.py --model google-bert/bert-base-cased    # text from Wikipedia
"""

from __future__ import annotations

from itertools import pairwise

from common import english_text, learn, options, show, table
from english_pronouns import WIKIPEDIA

from gradiend_hub import GradiendModel
from gradiend_hub.data import (
    FeatureDataConfig,
    FeatureDatasetBuilder,
    NeutralSpec,
    TextFilters,
    read_rows,
    read_texts,
)
from gradiend_hub.evaluation import StrengthPoint, StrengthProbe

WORDS = {
    "male": "he king man boy men father son brother husband uncle lord prince actor John David James Paul Peter",
    "female": "she queen woman girl women mother daughter sister wife aunt lady princess actress Mary Anna Sarah Ruth Jane",
}
FORMS = ("him", "his", "himself", "her", "hers", "herself")


def main() -> None:
    """Build the set, learn the direction, and look for the strength that evens the classes out."""
    args = options(__doc__, "google-bert/bert-base-cased")
    classes = {name: words.split() for name, words in WORDS.items()}
    config = FeatureDataConfig(
        classes,
        pairs=list(zip(*classes.values(), strict=True)),
        counterfactual="paired",
        max_per_class=args.max_rows,
        filters=TextFilters(unit="sentence", min_words=6, max_words=40, mixed=False),
        max_per_word=args.max_rows // 2,
        max_texts=None if args.offline else 100_000,
        neutral=NeutralSpec(300, exclude_words=FORMS),
        language="en",
    )
    data = FeatureDatasetBuilder(config).build(english_text(args, WIKIPEDIA))
    show(data, args)
    neutral = data.neutral["validation"] if data.neutral else None
    learned = learn("gender", data.rows, ("male", "female"), args, neutral=neutral)
    print(f"\n{table([learned], args)}\n")
    learned.trainer.evaluate()  # on validation rows; the unit of strength is chosen here, and so is the even dose
    curve = learned.trainer.report.splits["eval"].curve
    even = even_strength([(point.strength, preference(point)) for point in curve])
    model = GradiendModel.from_direction(
        learned.trainer.base_model, learned.trainer.direction, learned.trainer.gradiend_config
    )
    rows = read_rows(data.rows["test"], list(classes))
    probe = StrengthProbe(
        model, learned.trainer.objective, rows, read_texts(data.neutral["test"] if data.neutral else [])
    )
    print("test split      P(male words) − P(female words)  quality")
    for strength in sorted({-1.0, 0.0, 1.0, even}):
        point = probe.measure(strength)
        print(f"strength {strength:+5.2f} {preference(point):+32.3f}  {point.quality:8.3f}")


def preference(point: StrengthPoint) -> float:
    """Return how much likelier the words of the first class are, averaged over the rows of both."""
    return sum(of["male"] - of["female"] for of in point.probability.values()) / 2


def even_strength(curve: list[tuple[float, float]]) -> float:
    """Return the strength nearest to 0 at which the preference changes its sign, by linear interpolation."""
    found = [(s * q - t * p) / (q - p) for (s, p), (t, q) in pairwise(curve) if p * q <= 0 and p != q]
    return min(found, key=abs, default=min(curve, key=lambda point: abs(point[1]))[0])


if __name__ == "__main__":
    main()
