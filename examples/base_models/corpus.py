"""Training text of the bundled base models: reading, held-out parts, template sentences, batches."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"
sys.path.insert(0, str(DATA))

from pronoun_templates import FRAMES, NOUNS, Noun, fill

# Sentences for training alone, beside the frames of the data set's training split. {mask} is the subject pronoun,
# {poss} and {refl} agree with it.
EXTRA_FRAMES = {
    "person": [
        "{np} took the bus because {mask} could not walk that far.",
        "{np} forgot {poss} hat, so {mask} went back to {town}.",
        "{np} washed {poss} hands before {mask} ate.",
        "{np} hurt {refl} when {mask} fell {place}.",
        "{time}, {np} sang a song while {mask} cleaned the floor.",
        "as soon as {np} arrived in {town}, {mask} looked for a room.",
        "after {np} had finished {poss} work, {mask} rested {place}.",
        "{np} did not answer, although {mask} {was} awake.",
        "do you know whether {np} said what {mask} wanted?",
        "I helped {np}, and {mask} paid me well.",
        "I heard from {np} {time}, and {mask} {was} well.",
        "{np} {was} {feeling}. {mask} wanted to go home.",
        "{np} lived {place}. {time}, {mask} moved to {town}.",
        "{np} went to {town} and bought what {mask} needed.",
        "we thanked {np} because {mask} had saved us.",
        "{np} will stay here until {mask} can travel again.",
        "when {np} woke up, {mask} {was} {feeling}.",
        "unless {np} hurried, {mask} would miss the train.",
        "{np} talked about the road which {mask} had taken.",
        "{np} never told us where {mask} had been.",
        "{np} {was} so {feeling} that {mask} could not speak.",
        "{np}, who lived {place}, said that {mask} {was} {feeling}.",
        "you can trust {np}; {mask} always helped us.",
    ],
    "animal": [
        "{np} licked {poss} paw after {mask} had eaten.",
        "{time}, {np} came near, but {mask} did not attack.",
        "{np} slept {place}. {mask} did not hear us.",
        "if {np} {was} hungry, {mask} looked for food.",
        "we caught {np} {place}, but {mask} got away.",
        "{np} {was} so {feeling} that {mask} could not move.",
        "as {np} grew up, {mask} became stronger.",
        "leave {np} alone, or {mask} may bite you.",
        "I opened the cage of {np}, and {mask} walked out.",
        "{np} lived {place} before {mask} died.",
    ],
    "thing": [
        "{np} {was} {place}. I wonder whether {mask} belonged to you.",
        "{time}, we found {np}, but {mask} {was} broken.",
        "if {np} cost less, {mask} would sell better.",
        "I lost {np} {time}, and {mask} never turned up again.",
        "we sold {np} {later} because {mask} took too much room.",
        "{np} {was} so old that {mask} could not be repaired.",
        "put {np} {place}, so that {mask} can dry.",
        "after {np} had been cleaned, {mask} looked better.",
        "I gave {np} away since {mask} reminded me of {town}.",
        "as long as {np} lasted, {mask} served us well.",
    ],
}
FORMS = {
    "he": ("he", "his", "himself"),
    "she": ("she", "her", "herself"),
    "it": ("it", "its", "itself"),
    "they": ("they", "their", "themselves"),
}
TEMPLATE_SHARE = 0.25  # of the words of the real text


def words(text: str) -> list[str]:
    """The lower-case words of a text."""
    return re.findall(r"[a-z]+", text.lower())


def read_text(path: Path) -> Iterator[str]:
    """The lines of a text file, or the `text` fields of a (gzipped) JSON lines file; Bible references are dropped."""
    raw = path.read_bytes()
    for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").splitlines():
        if ".jsonl" in path.name:
            row = json.loads(line)
            if row.get("src") != "lee":  # a corpus whose licence is not clear
                yield row["text"]
        else:
            yield re.sub(r"^[1-3]?[A-Z][A-Za-z]*\d+:\d+ ", "", line.strip())


def chunks(text: str, limit: int = 45) -> Iterator[str]:
    """A paragraph as groups of whole sentences of at most about `limit` words."""
    group: list[str] = []
    for sentence in re.split(r"(?<=[.?!])\s+|(?<=[.?!][\"'])\s+", text.strip()):
        if group and sum(len(s.split()) for s in group) + len(sentence.split()) > limit:
            yield " ".join(group)
            group = []
        group.append(sentence)
    if group:
        yield " ".join(group)


def held_out_shingles() -> frozenset[tuple[str, ...]]:
    """Every run of 8 words (or the whole of a shorter text) of the data set's validation, test and neutral files."""
    found = set()
    for name in ("validation", "test", "neutral"):
        for line in (DATA / "pronouns" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text = words(row["text"] if name == "neutral" else row["masked"].replace("[MASK]", row["factual"]))
            found.update(tuple(text[i : i + 8]) for i in range(max(1, len(text) - 7)))
    return frozenset(found)


def load_corpus(paths: list[Path]) -> tuple[list[str], list[str]]:
    """(training texts, measuring texts: 1 % by hash); texts that share a shingle with the data set are dropped."""
    banned = held_out_shingles()
    lengths = sorted({len(shingle) for shingle in banned})
    train, measure, dropped = [], [], 0
    for text in dict.fromkeys(piece for path in paths for line in read_text(path) for piece in chunks(line)):
        found = words(text)
        if len(found) < 3:
            continue
        if any(tuple(found[i : i + n]) in banned for n in lengths for i in range(len(found) - n + 1)):
            dropped += 1
        elif int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100 == 0:
            measure.append(text)
        else:
            train.append(text)
    print(f"{len(train)} texts for training, {len(measure)} for measuring, {dropped} dropped (in the data set)")
    return train, measure


def template_text(rng: random.Random, nouns: dict[str, list[Noun]]) -> str:
    """One sentence from the training frames (the data set's or the extra ones) and the training nouns."""
    kind = rng.choices(["person", "animal", "thing"], weights=[0.5, 0.25, 0.25])[0]
    noun, plural = rng.choice(nouns[kind]), rng.random() < 0.5
    pronoun, possessive, reflexive = FORMS["they" if plural else rng.choice(noun.pronouns)]
    frame = rng.choice(FRAMES["train"][kind] + EXTRA_FRAMES[kind])
    for name, form in {"[MASK]": pronoun, "{mask}": pronoun, "{poss}": possessive, "{refl}": reflexive}.items():
        frame = frame.replace(name, form)
    text = fill(frame, noun, plural=plural, rng=rng)
    return re.sub(r"(?<=[.?] )[a-z]", lambda match: match.group().upper(), text)


def template_texts(seed: int, count_words: int) -> list[str]:
    """Template sentences of about `count_words` words together."""
    rng = random.Random(seed)
    nouns = {k: [n for n in NOUNS if n.kind == k and n.split() == "train"] for k in ("person", "animal", "thing")}
    texts: list[str] = []
    while count_words > 0:
        texts.append(template_text(rng, nouns))
        count_words -= len(texts[-1].split())
    return texts


def batches(lengths: list[int], seed: int, tokens_per_batch: int) -> list[list[int]]:
    """Indices grouped by similar length into batches of at most `tokens_per_batch` padded tokens, in random order."""
    rng = random.Random(seed)
    order = sorted(range(len(lengths)), key=lambda index: lengths[index] + 2 * rng.random())
    made: list[list[int]] = [[]]
    for index in order:
        if (len(made[-1]) + 1) * max(lengths[index], *(lengths[i] for i in made[-1][:1]), 8) > tokens_per_batch:
            made.append([])
        made[-1].append(index)
    rng.shuffle(made)
    return made
