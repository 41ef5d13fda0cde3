"""The sentence grammar behind the template rows: nouns, adjectives, fillers and frames, divided between the splits.

A frame holds one noun phrase ({np}, the antecedent), to the left of the slot, and number-neutral words after the
slot in most frames, so that the antecedent decides between singular and plural. Frames belong to one split; nouns
marked as held out for validation or test never occur in a training row.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def _listed(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


MEN = (
    "man/men father uncle king boy policeman/policemen fisherman/fishermen prince monk waiter grandfather "
    "gentleman/gentlemen duke brother nephew salesman/salesmen"
)
WOMEN = (
    "woman/women girl mother aunt queen sister princess nun waitress niece grandmother daughter "
    "policewoman/policewomen duchess lady actress"
)
PEOPLE = (
    "doctor teacher farmer soldier child/children student player singer driver baker painter writer neighbour "
    "thief/thieves judge lawyer cook nurse sailor hunter traveller stranger guest worker pilot dancer merchant "
    "shepherd miner gardener carpenter tailor butcher scientist engineer musician poet actor clerk servant "
    "beggar scholar pupil prisoner captain officer guard visitor tourist runner swimmer climber librarian artist "
    "hero/heroes journalist reporter mechanic dentist architect chef cyclist winner secretary detective villager "
    "citizen"
)
ANIMALS = (
    "dog cat horse wolf/wolves mouse/mice goose/geese cow fox bear lion tiger rabbit goat pig duck hen donkey "
    "camel monkey elephant panther ox/oxen calf/calves bird eagle owl crow snake frog rat squirrel puppy kitten "
    "pony lamb hawk beaver badger turtle lizard spider otter raven swan hedgehog lynx/lynxes buffalo/buffaloes"
)
THINGS = (
    "table chair lamp box clock knife/knives shelf/shelves leaf/leaves loaf/loaves key book letter picture cup "
    "plate bottle basket blanket coat shirt hat shoe rope hammer shovel wagon boat bicycle machine radio mirror "
    "carpet curtain drum guitar candle coin ring watch statue ladder bucket barrel bench desk door map painting "
    "tool umbrella violin pot kettle suitcase sack wheel toy stone engine camera scarf/scarves potato/potatoes"
)
HELD_OUT = {
    "validation": _word_set(
        "uncle prince waiter aunt nun niece judge pilot merchant poet hero dentist librarian goat owl turtle "
        "calf pony raven lamp basket wagon drum ladder shelf scarf bench"
    ),
    "test": _word_set(
        "monk duke salesman sister princess grandmother woman thief nurse hunter miner tailor scholar tourist "
        "chef detective wolf goose fox camel hedgehog beaver ox swan knife loaf candle barrel violin kettle "
        "machine coin potato curtain"
    ),
}
ADJECTIVES = {
    "person": _listed(
        "young old tall tired friendly hungry clever poor rich quiet brave kind strange famous nervous foolish "
        "honest proud"
    ),
    "animal": _listed("young old wild small hungry grey brown black white strong frightened thin lazy lame tame hairy"),
    "thing": _listed(
        "old new small heavy broken red green wooden beautiful strange dirty cheap blue large dusty strong"
    ),
}
FILLERS = {
    "place": _listed(
        "near the river|behind the old barn|in the market|at the edge of the forest|by the gate|under the bridge|"
        "in the garden|on the hill|outside the church|in the kitchen|beside the road|at the harbour|"
        "in the valley|close to the fire|in the corner",
        "|",
    ),
    "time": _listed(
        "after the storm|in the evening|before dawn|that winter|early in the morning|one summer|late at night|"
        "on Sunday|last week|a year ago|during the war|in the end|at noon|after a long journey|yesterday",
        "|",
    ),
    "town": _listed("London|Paris|the city|the village|the castle|the coast|the capital|the next town", "|"),
    "feeling": _listed("tired|hungry|cold|unhappy|afraid|ill|lonely|thirsty|nervous|sad", "|"),
    "later": _listed("tomorrow|in the spring|after dinner|soon|before dark|one day|next year|on Monday", "|"),
}
DETERMINERS = {
    False: ["the"] * 9 + ["a", "this", "that", "one", "our"],
    True: ["the"] * 9 + ["these", "those", "two", "some", "our"],
}
FRAMES: dict[str, dict[str, list[str]]] = {
    "train": {
        "person": [
            "{time}, {np} stopped {place} because [MASK] wanted to rest.",
            "{np} ran home because [MASK] felt {feeling}.",
            "{np} said that [MASK] would come back {later}.",
            "when {np} came to {town}, [MASK] asked for bread and water.",
            "{np} went to bed early so that [MASK] could leave before sunrise.",
            "{np} knew that [MASK] had made a mistake.",
            "although {np} looked {feeling}, [MASK] kept on working {place}.",
            "{np} worked {place} until [MASK] could hardly stand.",
            "if {np} had seen the letter, [MASK] would have answered at once.",
            "nobody believed {np}, but [MASK] told the truth.",
            "I spoke to {np} {place}, and [MASK] answered with a smile.",
            "I asked {np} whether [MASK] had seen the road to {town}.",
            "we waited for {np}, but [MASK] never came back.",
            "{np} lost the way, so [MASK] slept {place}.",
            "{np} {was} tired, and [MASK] sat down {place}.",
            "{np} opened the door and saw that [MASK] {was} alone.",
            "I told {np} that [MASK] should wait {place}.",
            "before {np} left {town}, [MASK] had to sell the house.",
            "{np} laughed when [MASK] heard the news from {town}.",
            "{np} promised that [MASK] would never speak of the matter again.",
            "{time}, {np} found a purse {place}, but [MASK] did not keep the money.",
            "{np} cried because [MASK] {was} {feeling}.",
        ],
        "animal": [
            "{np} hid {place} because [MASK] had heard a noise.",
            "{np} ate quickly, for [MASK] had found no food all day.",
            "when {np} saw the fire, [MASK] ran into the forest.",
            "I fed {np} {time}, and then [MASK] slept for hours.",
            "{np} drank from the river until [MASK] had enough.",
            "{np} {was} thirsty, so [MASK] looked for water {place}.",
            "we followed {np} until [MASK] disappeared {place}.",
            "although {np} looked dangerous, [MASK] never hurt anyone.",
            "thunder scared {np}, and [MASK] fled across the field.",
            "{np} barely moved because [MASK] {was} {feeling}.",
        ],
        "thing": [
            "I bought {np} because [MASK] looked beautiful.",
            "{np} fell to the ground, and [MASK] broke.",
            "we painted {np} so that [MASK] would last longer.",
            "{np} lay {place} until [MASK] turned to dust.",
            "I cleaned {np}, but [MASK] still smelled of smoke.",
            "we repaired {np}, and then [MASK] looked as good as new.",
            "{np} {was} expensive, but [MASK] did not last long.",
            "when we moved {np}, [MASK] made a terrible sound.",
            "I wanted to use {np}, but [MASK] {was} missing.",
            "{np} cost so much that [MASK] could not be sold in {town}.",
            "nobody touched {np} because [MASK] might break.",
        ],
    },
    "validation": {
        "person": [
            "{np} took a long walk, for [MASK] needed fresh air.",
            "{np} closed the window since [MASK] felt {feeling}.",
            "I saw {np} {place}, and [MASK] waved to me.",
            "{time}, {np} thought that [MASK] might win the prize.",
        ],
        "animal": [
            "{np} stood still {place} as if [MASK] could smell danger.",
            "{np} grew fat because [MASK] ate so much grain.",
            "we gave {np} some food since [MASK] {was} hungry.",
        ],
        "thing": [
            "we put {np} {place}, where [MASK] stayed all winter.",
            "I threw away {np} because [MASK] had become useless.",
            "you may borrow {np} {later} if [MASK] can be found.",
        ],
    },
    "test": {
        "person": [
            "{np} left the room quickly because [MASK] had forgotten the keys.",
            "we met {np} {place}, and later [MASK] invited us to dinner.",
            "once {np} had eaten, [MASK] thanked the cook and went away.",
            "{np} could not pay, so [MASK] offered to work {place}.",
            "{np} smiled because [MASK] {was} proud of the result.",
            "{time}, {np} wrote to me that [MASK] would stay in {town}.",
            "while {np} waited {place}, [MASK] read the newspaper.",
        ],
        "animal": [
            "{np} crossed the meadow after [MASK] had rested in the shade.",
            "I looked at {np} {place} until [MASK] moved away.",
            "{np} made a loud noise because [MASK] {was} afraid.",
            "if you call {np} softly, [MASK] will come to you.",
            "{time}, {np} escaped, but [MASK] returned when winter came.",
        ],
        "thing": [
            "{np} stood {place} for years before [MASK] {was} sold.",
            "I carried {np} home, although [MASK] seemed too heavy.",
            "after we washed {np}, [MASK] shone in the sun.",
            "we kept {np} dry so that [MASK] would not spoil.",
            "{time}, I noticed {np} {place}, but [MASK] did not belong there.",
        ],
    },
}


@dataclass(frozen=True)
class Noun:
    """A noun with both forms, its kind (person, animal or thing) and the singular pronouns that may stand for it."""

    singular: str
    plural: str
    kind: str
    pronouns: tuple[str, ...]

    def split(self) -> str:
        """The only split besides which the noun is never used, or `train` for a noun that every split may use."""
        return next((split for split, nouns in HELD_OUT.items() if self.singular in nouns), "train")


def regular_plural(noun: str) -> str:
    """The plural of a noun that is not irregular."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _parse(words: str, kind: str, *pronouns: str) -> list[Noun]:
    pairs = (word.partition("/") for word in words.split())
    return [Noun(one, many or regular_plural(one), kind, pronouns) for one, _, many in pairs]


NOUNS: tuple[Noun, ...] = tuple(
    _parse(MEN, "person", "he")
    + _parse(WOMEN, "person", "she")
    + _parse(PEOPLE, "person", "he", "she")
    + _parse(ANIMALS, "animal", "it")
    + _parse(THINGS, "thing", "it")
)


@dataclass(frozen=True)
class TemplateRow:
    """A masked sentence, and the singular pronoun that agrees with its antecedent."""

    masked: str
    plural: bool
    singular_pronoun: str
    noun: str


def noun_phrase(noun: Noun, *, plural: bool, rng: random.Random) -> str:
    """A determiner, up to one adjective, and the noun in the number asked for."""
    determiner = rng.choice(DETERMINERS[plural])
    words = [noun.plural if plural else noun.singular]
    if rng.random() < 0.55:
        words.insert(0, rng.choice(ADJECTIVES[noun.kind]))
    if determiner == "a" and words[0][0] in "aeiou":
        determiner = "an"
    return " ".join([determiner, *words])


def fill(frame: str, noun: Noun, *, plural: bool, rng: random.Random) -> str:
    """The frame with its antecedent and its fillers, capitalised; `[MASK]` stays."""
    values = {name: rng.choice(options) for name, options in FILLERS.items()}
    phrase = noun_phrase(noun, plural=plural, rng=rng)
    text = frame.format(np=phrase, was="were" if plural else "was", **values)
    return text[0].upper() + text[1:]


def template_row(split: str, kind: str, *, plural: bool, rng: random.Random) -> TemplateRow:
    """One random row of a split; outside training, half of the nouns are those held out for the split."""
    own = [n for n in NOUNS if n.kind == kind and n.split() == split]
    common = [n for n in NOUNS if n.kind == kind and n.split() == "train"]
    noun = rng.choice(own if rng.random() < 0.5 else common)
    frame = rng.choice(FRAMES[split][kind])
    return TemplateRow(fill(frame, noun, plural=plural, rng=rng), plural, rng.choice(noun.pronouns), noun.singular)
