"""Positive and negative words, tested on words that no training row has.

python examples/sentiment.py --offline
python examples/sentiment.py --model google-bert/bert-base-cased    # text from Wikipedia
"""

from __future__ import annotations

import random
from itertools import permutations

from common import learn, options, show, table
from english_pronouns import WIKIPEDIA

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, TextFilters

WORDS = {
    "positive": "good great happy beautiful wonderful excellent nice pleasant brave strong rich glad kind better best fine",
    "negative": "bad terrible sad ugly awful horrible evil unpleasant cruel weak poor angry nasty worse worst wrong",
}


FRAMES = (
    "In the {a} by the {b} the people said that the {c} were {word} again.",
    "When the king came to the {a} he saw that the {c} of the {b} were {word}.",
    "The men who lived in the {a} told their wives of the {word} {c} in the {b}.",
    "She went through the {a} to the {b} and found the {word} {c} there.",
)
PLACES = [
    "town",
    "village",
    "forest",
    "garden",
    "castle",
    "market",
    "harbour",
    "valley",
    "church",
    "school",
    "river",
    "mountain",
]
THINGS = [
    "children",
    "horses",
    "letters",
    "stones",
    "flowers",
    "houses",
    "brothers",
    "songs",
    "stories",
    "ships",
    "shoes",
    "fields",
]


def sentences(each: int = 12) -> list[str]:
    """Make sentences with every word; no two have the same slot, since words are held out."""
    rng = random.Random(0)
    words = " ".join(WORDS.values()).split()
    return [
        FRAMES[n % len(FRAMES)].format(a=a, b=b, c=rng.choice(THINGS), word=word)
        for word in words
        for n, (a, b) in enumerate(rng.sample([*permutations(PLACES, 2)], each))
    ]


def main() -> None:
    """Build the set with a held-out vocabulary and learn the direction."""
    args = options(__doc__, "google-bert/bert-base-cased")
    config = FeatureDataConfig(
        {name: words.split() for name, words in WORDS.items()},
        split_by="word",
        max_per_word=args.max_rows // 8,
        splits={"train": 0.6, "validation": 0.2, "test": 0.2},
        max_texts=None if args.offline else 100_000,
        filters=TextFilters(unit="sentence", min_words=6, max_words=40, mixed=False),
        language="en",
    )
    data = FeatureDatasetBuilder(config).build(args.text or (sentences() if args.offline else WIKIPEDIA))
    show(data, args)
    for name, part in data.rows.items():
        print(f"  {name}: {', '.join(sorted({row['factual'].lower() for row in part}))}")
    learned = learn("sentiment", data.rows, ("positive", "negative"), args, held_out="words")
    print(f"\n{table([learned], args)}")


if __name__ == "__main__":
    main()
