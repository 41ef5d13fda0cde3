"""Gender of English pronouns after names and nouns, and a dose at which a model prefers neither.

python examples/english_gender.py --offline
python examples/english_gender.py --model google-bert/bert-base-cased    # text from Wikipedia
"""

from __future__ import annotations

from common import english_text, learn, options, show, table
from english_pronouns import WIKIPEDIA

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, NeutralSpec, TextFilters

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
        classes, pairs=list(zip(*classes.values(), strict=True)), counterfactual="paired", max_per_class=args.max_rows,
        filters=TextFilters(unit="sentence", min_words=6, max_words=40, mixed=False), max_per_word=args.max_rows // 2,
        max_texts=None if args.offline else 100_000, neutral=NeutralSpec(300, exclude_words=FORMS), language="en",
    )  # fmt: skip
    data = FeatureDatasetBuilder(config).build(english_text(args, WIKIPEDIA))
    show(data, args)
    neutral = data.neutral["validation"] if data.neutral else None
    learned = learn("gender", data.rows, ("male", "female"), args, neutral=neutral)
    print(f"\n{table([learned], args)}\n")
    learned.trainer.evaluate()
    print("strength  P(male words)  P(female words)  gap    LM score")
    gaps = {}
    for point in learned.trainer.report.splits["eval"].curve:
        male, female = (sum(point.probability[of][name] for of in classes) / 2 for name in ("male", "female"))
        gaps[point.strength] = abs(male - female)
        print(f"{point.strength:+8.2f}  {male:13.3f}  {female:15.3f}  {abs(male - female):.3f}  {point.lm_score:.3f}")
    best = min(gaps, key=gaps.__getitem__)
    print(
        f"The words of both genders are most evenly likely at strength {best:+g} (gap {gaps[0.0]:.3f} → {gaps[best]:.3f})."
    )


if __name__ == "__main__":
    main()
