"""Positive and negative words, tested on words that no training row has.

python examples/sentiment.py --offline
python examples/sentiment.py --model google-bert/bert-base-cased    # text from Wikipedia
"""

from __future__ import annotations

from common import english_text, learn, options, show, table
from english_pronouns import WIKIPEDIA

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, TextFilters

WORDS = {
    "positive": "good great happy beautiful wonderful excellent nice pleasant brave strong rich glad kind better best fine",
    "negative": "bad terrible sad ugly awful horrible evil unpleasant cruel weak poor angry nasty worse worst wrong",
}


def main() -> None:
    """Build the set with a held-out vocabulary and learn the direction."""
    args = options(__doc__, "google-bert/bert-base-cased")
    config = FeatureDataConfig(
        {name: words.split() for name, words in WORDS.items()}, split_by="word", max_per_word=args.max_rows // 8,
        splits={"train": 0.6, "validation": 0.2, "test": 0.2}, max_texts=None if args.offline else 100_000,
        filters=TextFilters(unit="sentence", min_words=6, max_words=40, mixed=False), language="en",
    )  # fmt: skip
    data = FeatureDatasetBuilder(config).build(english_text(args, WIKIPEDIA))
    show(data, args)
    for name, part in data.rows.items():
        print(f"  {name}: {', '.join(sorted({row['factual'].lower() for row in part}))}")
    learned = learn("sentiment", data.rows, ("positive", "negative"), args, held_out="words")
    print(f"\n{table([learned], args)}")


if __name__ == "__main__":
    main()
