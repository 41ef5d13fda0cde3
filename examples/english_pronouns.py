"""Person and number of English pronouns: 3SG/3PL and, with text of one's own or the Hub's, all pairs of five classes.

python examples/english_pronouns.py --offline
python examples/english_pronouns.py --model google-bert/bert-base-cased    # text from Wikipedia
"""

from __future__ import annotations

from common import english_text, learn_pairs, options, show, table

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, TextFilters

WIKIPEDIA = {"path": "wikimedia/wikipedia", "name": "20231101.en", "split": "train"}
CLASSES = {"1SG": ["I"], "1PL": ["we"], "2": ["you"], "3SG": ["he", "she", "it"], "3PL": ["they"]}


def main() -> None:
    """Build both sets, learn the directions, print them."""
    args = options(__doc__, "google-bert/bert-base-cased")
    filters = TextFilters(unit="sentence", min_words=6, max_words=40, mixed=False)
    results = []
    sets = {"number": {n: CLASSES[n] for n in ("3SG", "3PL")}}
    if args.text or not args.offline:  # of the other classes, the bundled sentences have a handful
        sets["person and number"] = CLASSES
    for feature, classes in sets.items():
        config = FeatureDataConfig(
            classes,
            filters=filters,
            max_texts=None if args.offline else 100_000,
            max_per_class=args.max_rows,
            language="en",
        )
        data = FeatureDatasetBuilder(config).build(english_text(args, WIKIPEDIA))
        print(f"\n{feature}")
        show(data, args)
        results += learn_pairs(feature, data.rows, classes, args)
    print(f"\n{table(results, args)}")


if __name__ == "__main__":
    main()
