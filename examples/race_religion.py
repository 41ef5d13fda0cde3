"""Races and religions: a direction for every pair, tested on templates that were not learned from.

python examples/race_religion.py --offline    # sentences from templates
python examples/race_religion.py              # aieng-lab's sets on the Hub, as they are
"""

from __future__ import annotations

from argparse import Namespace

from common import Learned, from_templates, learn_pairs, options, show, table
from datasets import Dataset, DatasetDict

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, TextFilters, read_feature_data, without_leaks

CLASSES = {
    "race": {"asian": ["Asian", "Chinese"], "black": ["Black", "African"], "white": ["White", "European"]},
    "religion": {
        "christian": ["Christian", "Catholic"],
        "jewish": ["Jewish", "Hebrew"],
        "muslim": ["Muslim", "Islamic"],
    },
}
HUB = {"race": "aieng-lab/gradiend_race_data", "religion": "aieng-lab/gradiend_religion_data"}
PEOPLE = ["family", "teacher", "doctor", "neighbour", "writer", "student", "soldier", "farmer", "singer", "judge"]
FRAMES = (
    "In the evening a {{}} {person} came to our house.",
    "She wrote a long book about a {{}} {person} in the city.",
    "Last year the {{}} {person} moved to a small town.",
    "We were told that the {{}} {person} had lived there before.",
    "Nobody in the village knew the {{}} {person} by name.",
    "The newspaper had a story about a {{}} {person} today.",
)
TEMPLATES = [frame.format(person=person) for frame in FRAMES for person in PEOPLE]


def rows_from_templates(classes: dict[str, list[str]], args: Namespace) -> DatasetDict:
    """A set whose splits are made by template."""
    words = [word for found in classes.values() for word in found]
    config = FeatureDataConfig(
        classes,
        group_column="template",
        split_by="group",
        max_per_class=args.max_rows,
        near_duplicates=None,
        filters=TextFilters(min_left_words=2),
        splits={"train": 0.6, "validation": 0.2, "test": 0.2},
    )
    data = FeatureDatasetBuilder(config).build(Dataset.from_dict(from_templates(TEMPLATES, words)))
    show(data, args)
    return data.rows


def rows_from_hub(name: str, classes: dict[str, list[str]], args: Namespace) -> DatasetDict:
    """The set of the Hub, divided anew, because its own splits may share texts (the reader warns where they do)."""
    read = read_feature_data(HUB[name], list(classes), splits={"train": 0.6, "validation": 0.2, "test": 0.2})
    rows, leaks = without_leaks(read.rows)
    print(read.funnel, leaks, sep="\n")
    most = args.max_rows * len(classes)
    return DatasetDict({name: part.shuffle(seed=0).select(range(min(len(part), most))) for name, part in rows.items()})


def main() -> None:
    """Learn six directions."""
    args = options(__doc__, "google-bert/bert-base-cased")
    results: list[Learned] = []
    for feature, classes in CLASSES.items():
        print(f"\n{feature}")
        rows = rows_from_templates(classes, args) if args.offline else rows_from_hub(feature, classes, args)
        results += learn_pairs(feature, rows, classes, args, "templates" if args.offline else "texts")
    print(f"\n{table(results, args)}")


if __name__ == "__main__":
    main()
