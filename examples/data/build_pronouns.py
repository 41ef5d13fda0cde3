"""Build the bundled pronoun data set (3SG / 3PL) from WordNet examples, the King James Bible and templates.

    bible -f ge1:1-re22:21 > kjv.txt        # Debian packages bible-kjv and bible-kjv-text
    python examples/data/build_pronouns.py --wordnet /usr/share/wordnet --kjv kjv.txt    # Debian package wordnet-base

The output is deterministic: the same inputs and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset
from pronoun_templates import NOUNS, template_row

from gradiend_hub.data import FeatureDataConfig, FeatureDatasetBuilder, TextFilters


def word_set(text: str) -> frozenset[str]:
    """The words of a list written as one string."""
    return frozenset(text.split())


SPLITS = {"train": 0.70, "validation": 0.15, "test": 0.15}
ROWS_PER_CLASS = {"template": 700, "wordnet": 150, "kjv": 550}
NEUTRAL_PER_SOURCE = 400
TEMPLATE_KINDS = {"person": 0.5, "animal": 0.25, "thing": 0.25}
CLASSES = {"3SG": ["he", "she", "it"], "3PL": ["they"]}
CLASS_OF = {word: name for name, found in CLASSES.items() for word in found}
SINGULAR_FORMS = word_set("he him his himself she her hers herself it its itself")
PLURAL_FORMS = word_set("they them their theirs themselves")
PRONOUN_FORMS = SINGULAR_FORMS | PLURAL_FORMS

# Words that tell the number of a real sentence's antecedent, besides the nouns of the templates.
SINGULAR_CUES = frozenset(noun.singular for noun in NOUNS) | word_set(
    "lord god david moses saul solomon jesus joseph jacob abraham isaac pharaoh samuel elijah elisha peter paul esther "
    "ruth sarah rachel mary samson joab daniel jeremiah ezekiel jonah son priest prophet angel servant wife damsel "
    "heart soul spirit city land house sea sword altar ark vine tree law beast bullock body company team book "
    "treaty nation baby storm cake student car tank computer vase ship train bank story garden disease"
)
PLURAL_CUES = frozenset(noun.plural for noun in NOUNS) | word_set(
    "these those many people sons daughters servants priests elders princes kings levites philistines egyptians jews "
    "pharisees disciples brethren apostles prophets angels messengers enemies fathers heathen nations gentiles scribes "
    "spies cities gods waters beasts parents americans scientists politicians troops workers cars trees both"
)
# Plural in form, but seldom an antecedent.
NOT_CUES = word_set("always years days hours weeks months minutes times ages dollars miles perhaps besides towards")
# A following word that shows "it" to be a subject.
IT_VERBS = word_set(
    "was is had has hath shall will would could should may might can became becomes fell began stood lay did does goes "
    "came comes looks looked seems seemed held holds makes made gave gives turned enables reached went"
)


@dataclass(frozen=True)
class Row:
    """One row of the data set, field for column."""

    masked: str
    factual: str
    alternative: str
    factual_class: str
    alternative_class: str
    split: str
    source: str


def words(text: str) -> list[str]:
    """The lower-case words of a text, apostrophes kept, punctuation dropped."""
    return re.findall(r"[a-z]+(?:['’-][a-z]+)*", text.lower())


def wordnet_sentences(folder: Path) -> Iterator[str]:
    """The quoted examples of the glosses in `data.noun`, `data.verb`, `data.adj` and `data.adv`."""
    for part in ("noun", "verb", "adj", "adv"):
        path = folder / f"data.{part}"
        if not path.is_file():
            sys.exit(f"{path} is missing: install the Debian package wordnet-base and give its folder with --wordnet.")
        for line in path.read_text(encoding="utf-8").splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                # a causal model needs a space before the slot
                yield re.sub(r"\s*--\s*", " -- ", example.strip())


def kjv_sentences(path: Path) -> Iterator[str]:
    """Sentences of the Bible; one of more than 40 words is divided at its colons and semicolons."""
    if not path.is_file():
        sys.exit(f"{path} is missing: install the Debian package bible-kjv and run: bible -f ge1:1-re22:21 > {path}")
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        verse = re.sub(r"[\[\]{}()]", "", line.partition(" ")[2]).strip()
        for sentence in re.split(r"(?<=[.?!])\s+", verse):
            pieces = [sentence] if len(words(sentence)) <= 40 else re.split(r"[:;]\s+", sentence)
            for piece in pieces:
                piece = piece.strip(" ,;:")
                if piece:
                    yield piece[0].upper() + piece[1:] + ("" if piece[-1] in ".?!" else ".")


def lemmas(folder: Path, part: str) -> frozenset[str]:
    """The words of a WordNet index file (`index.noun`, `index.verb`)."""
    return frozenset(
        line.split(" ", 1)[0] for line in (folder / f"index.{part}").read_text(encoding="utf-8").splitlines()
    )


def plurals(sentences: Iterable[str], folder: Path) -> frozenset[str]:
    """The words that are plural nouns for certain: -s on a noun of WordNet that is no verb."""
    stems = lemmas(folder, "noun") - lemmas(folder, "verb")
    found = {word for text in sentences for word in words(text) if word.endswith("s") and word not in NOT_CUES}
    return frozenset(w for w in found if w[:-1] in stems and len(w) > 4 and not w.endswith(("ss", "us", "is")))


def left_number(left: list[str], plural_cues: frozenset[str]) -> str | None:
    """The class told by the cue nearest to the slot on its left, if any."""
    for word in reversed(left):
        if word in PLURAL_FORMS or word in plural_cues:
            return "3PL"
        if word in SINGULAR_FORMS or word in SINGULAR_CUES:
            return "3SG"
    return None


def real_slots(sentences: Iterable[str], plural_cues: frozenset[str]) -> dict[str, list[tuple[str, str]]]:
    """(masked text, pronoun) by class: in each sentence the last pronoun whose left context tells its number."""

    def accept(before: str, pronoun: str, after: str, name: str) -> bool:
        left, right, found = words(before), words(after), words(before + pronoun + after)
        classes = {"3SG" for w in found if w in SINGULAR_FORMS} | {"3PL" for w in found if w in PLURAL_FORMS}
        if not right or after[0] in "'’-" or not 6 <= len(found) <= 40 or len(left) < 3 or classes != {name}:
            return False
        if pronoun == "it" and (right[0] not in IT_VERBS or {"pass", "so"} & set(right[1:5])):
            return False
        return left_number(left, plural_cues) == name

    texts = dict.fromkeys(sentences)
    config = FeatureDataConfig(
        CLASSES, group_column="number", case_sensitive=True, occurrences="all", balance="none", splits={"all": 1},
        filters=TextFilters(refuse=r'["\[`]', min_left_words=0, contractions=True, deduplicate=False),
    )  # fmt: skip
    source = Dataset.from_dict({"text": list(texts), "number": range(len(texts))})
    data = FeatureDatasetBuilder(config, accept=accept).build(source)
    print(data.funnel)
    ordered = sorted(data.rows["all"], key=lambda row: (int(row["group"]), row["masked"].index("[MASK]")))
    last = {row["group"]: row for row in ordered}.values()
    return {name: [(r["masked"], r["factual"]) for r in last if r["factual_class"] == name] for name in CLASSES}


def divide(count: int) -> dict[str, int]:
    """The number of rows of each split for a number of rows in total."""
    validation, test = (round(count * SPLITS[name]) for name in ("validation", "test"))
    return {"train": count - validation - test, "validation": validation, "test": test}


def real_rows(sentences: list[str], source: str, plural_cues: frozenset[str], rng: random.Random) -> list[Row]:
    """Rows of one source, as many of each class; alternatives follow the frequencies of the 3SG rows' words."""
    slots = real_slots(sentences, plural_cues)
    count = min(ROWS_PER_CLASS[source], *(len(rows) for rows in slots.values()))
    # "he" is far the commonest word: it may fill at most half of the singular rows.
    rng.shuffle(slots["3SG"])
    he = [row for row in slots["3SG"] if row[1] == "he"]
    other = [row for row in slots["3SG"] if row[1] != "he"][: count - count // 2]
    singular = other + he[: count - len(other)]
    plural = rng.sample(slots["3PL"], count)
    frequencies = Counter(pronoun for _, pronoun in singular)
    drawn = rng.choices(list(frequencies), weights=list(frequencies.values()), k=count)
    rng.shuffle(singular)
    names = [name for name, number in divide(count).items() for _ in range(number)]
    return [Row(m, p, "they", "3SG", "3PL", split, source) for (m, p), split in zip(singular, names, strict=True)] + [
        Row(m, p, a, "3PL", "3SG", split, source) for (m, p), a, split in zip(plural, drawn, names, strict=True)
    ]


def template_rows(rng: random.Random) -> list[Row]:
    """Rows from the templates of each split, as many of each class, without a repeated text."""
    rows: dict[str, Row] = {}
    for split, count in divide(ROWS_PER_CLASS["template"]).items():
        for plural in (False, True):
            goal = len(rows) + count
            while len(rows) < goal:
                kind = rng.choices(list(TEMPLATE_KINDS), weights=list(TEMPLATE_KINDS.values()))[0]
                made = template_row(split, kind, plural=plural, rng=rng)
                factual, alternative = ("they", made.singular_pronoun) if plural else (made.singular_pronoun, "they")
                row = Row(
                    made.masked, factual, alternative, CLASS_OF[factual], CLASS_OF[alternative], split, "template"
                )
                rows.setdefault(made.masked, row)
    return list(rows.values())


def neutral_rows(sources: dict[str, list[str]], rng: random.Random) -> list[dict[str, str]]:
    """Sentences of 6 to 40 words without any third-person pronoun, half for validation and half for test."""
    rows = []
    for source, sentences in sources.items():
        fit = [t for t in dict.fromkeys(sentences) if 6 <= len(words(t)) <= 40 and not PRONOUN_FORMS & set(words(t))]
        fit = [t for t in fit if not re.search(r"[\[\]`\"]|\b(he|she|it|they)['’]", t.lower())]
        for index, text in enumerate(rng.sample(fit, NEUTRAL_PER_SOURCE)):
            split = "validation" if index < NEUTRAL_PER_SOURCE // 2 else "test"
            rows.append({"text": text, "split": split, "source": source})
    return rows


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write JSON lines and print the file's SHA-256 digest."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


def main() -> None:
    """Write train, validation, test and neutral files, and print the counts that the dataset card quotes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="WordNet's dict folder")
    parser.add_argument("--kjv", type=Path, default=Path("kjv.txt"), help="output of: bible -f ge1:1-re22:21")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pronouns")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    sources = {"wordnet": list(wordnet_sentences(args.wordnet)), "kjv": list(kjv_sentences(args.kjv))}
    cues = PLURAL_CUES | plurals(sources["wordnet"], args.wordnet)
    rows = [row for name, texts in sources.items() for row in real_rows(texts, name, cues, rng)] + template_rows(rng)
    rng.shuffle(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write(args.out / f"{split}.jsonl", (asdict(row) for row in rows if row.split == split))
    write(args.out / "neutral.jsonl", neutral_rows(sources, rng))
    for columns in (
        ("factual_class", "split"),
        ("source", "factual_class"),
        ("source", "split"),
        ("factual", "alternative"),
    ):
        counts = Counter(tuple(asdict(row)[column] for column in columns) for row in rows)
        print(" x ".join(columns), *(f"{' '.join(key)}: {n}" for key, n in sorted(counts.items())), sep="\n  ")


if __name__ == "__main__":
    main()
