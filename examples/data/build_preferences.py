"""Write examples/data/preferences: five small sets of preference pairs, put together from the sentences below.

    python examples/data/build_preferences.py

Each set has two classes of completions, named by the columns beside `prompt`. The prompts of the validation split do not
occur in the training split. All text was written for this project and may be used under its licence.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent / "preferences"
PAIRS_PER_PROMPT = 4
HELD_OUT = 8
"""Fewest pairs to measure on: whatever the encodings of fewer than seven are, more than 1 % of labels by coin fit them."""

QUESTIONS = [
    "Where is the station?", "Can you help me with this form?", "When does the shop open?", "Is the soup ready?",
    "How much is the ticket?", "May I borrow your pen?", "Which bus goes to the harbour?", "Could you close the window?",
    "Did you read my letter?", "Where can I park the car?", "Is this seat free?", "What time is dinner?",
    "Can I pay by card?", "Do you know the way to the museum?", "Will it rain today?", "Have you seen my keys?",
]  # fmt: skip
POLITE = [
    "Of course, I would be glad to help you with that.", "Thank you for asking, I will gladly look into it for you.",
    "Certainly, please give me a moment and I will find out.", "I am sorry to keep you waiting, I will be right with you.",
    "With pleasure, please let me know if there is anything else.",
    "Thank you so much for your patience, I will check at once.",
]  # fmt: skip
CURT = [
    "No idea, ask somebody else.", "Look it up yourself, I am busy.", "Not my job, leave me alone.",
    "How should I know, go away.", "Stop asking, I have no time for this.", "Whatever, find out on your own.",
]  # fmt: skip

TOPICS = [
    "How are you today?", "How was the film?", "Tell me about your garden.", "What is your new flat like?",
    "How was the journey?", "What do you think of the food here?", "Tell me about your weekend.", "How is your work going?",
    "What is the weather like?", "How was the party?", "What do you think of this song?", "Tell me about your village.",
    "How was the lesson?", "What is your dog like?", "How was your summer?", "Tell me about the market.",
]  # fmt: skip
CHEERFUL = [
    "It is wonderful, and I enjoy every minute of it.", "It was delightful, full of laughter and good company.",
    "It is a pleasure, everything is bright and going well.", "It was lovely, I smiled the whole time.",
    "It makes me happy, I am grateful for all of it.", "It was a great joy, and everyone was kind.",
]  # fmt: skip
GLOOMY = [
    "It is awful, and I hate every minute of it.", "It was miserable, full of quarrels and bad company.",
    "It is a burden, everything is grey and going wrong.", "It was dreadful, I frowned the whole time.",
    "It makes me sad, I am tired of all of it.", "It was a great pain, and everyone was rude.",
]  # fmt: skip

SPELLED = [  # British, American
    ("The colour of the", "harbour was grey.", "harbor was gray."),
    ("She went to the", "theatre near the centre.", "theater near the center."),
    ("We shall", "organise a dinner for the neighbours.", "organize a dinner for the neighbors."),
    ("He did us a", "favour and apologised for the noise.", "favor and apologized for the noise."),
    ("They", "analysed the flavour of the tea.", "analyzed the flavor of the tea."),
    ("Her", "favourite jewellery was stolen.", "favorite jewelry was stolen."),
    ("The", "labour was honoured by the mayor.", "labor was honored by the mayor."),
    ("He wore", "grey pyjamas in the parlour.", "gray pajamas in the parlor."),
    ("A litre of milk is in the", "catalogue of colours.", "catalog of colors."),
    ("The traveller paid by", "cheque at the theatre.", "check at the theater."),
    ("Their", "behaviour in the harbour was odd.", "behavior in the harbor was odd."),
    ("I", "realised that the metre was broken.", "realized that the meter was broken."),
    ("The driver changed the", "tyre in the centre of the town.", "tire in the center of the town."),
    ("We", "cancelled the programme for the autumn.", "canceled the program for the autumn."),
    ("She", "recognised the odour of the paint.", "recognized the odor of the paint."),
    ("The army built a", "defence at the mouth of the harbour.", "defense at the mouth of the harbor."),
    ("The farmer bought a new", "plough and some fibre in the town.", "plow and some fiber in the town."),
    ("The old man", "practised his favourite song.", "practiced his favorite song."),
    ("The judge spoke of", "honour and good behaviour.", "honor and good behavior."),
    ("The sailor stood in the", "harbour in a grey jersey.", "harbor in a gray jersey."),
]  # fmt: skip

GERMAN = [  # formal, informal
    ("Guten Tag,", "könnten Sie mir bitte Ihren Namen sagen?", "kannst du mir bitte deinen Namen sagen?"),
    ("Entschuldigung,", "wissen Sie, wo der Bahnhof ist?", "weißt du, wo der Bahnhof ist?"),
    ("Hier ist der Schlüssel,", "bitte vergessen Sie ihn nicht.", "bitte vergiss ihn nicht."),
    ("Das Essen ist fertig,", "setzen Sie sich bitte zu uns.", "setz dich bitte zu uns."),
    ("Ich habe eine Frage:", "haben Sie heute Abend Zeit?", "hast du heute Abend Zeit?"),
    ("Vielen Dank,", "dass Sie mir geholfen haben.", "dass du mir geholfen hast."),
    ("Der Arzt sagt:", "Sie müssen mehr schlafen.", "du musst mehr schlafen."),
    ("Es regnet,", "nehmen Sie Ihren Schirm mit.", "nimm deinen Schirm mit."),
    ("Die Tür ist offen,", "kommen Sie bitte herein.", "komm bitte herein."),
    ("Ich hoffe,", "dass es Ihnen gut geht.", "dass es dir gut geht."),
    ("Wir freuen uns,", "wenn Sie uns besuchen.", "wenn du uns besuchst."),
    ("Bitte,", "geben Sie mir Ihr Buch.", "gib mir dein Buch."),
    ("Guten Morgen,", "haben Sie gut geschlafen?", "hast du gut geschlafen?"),
    ("Der Zug fährt gleich,", "beeilen Sie sich.", "beeil dich."),
    ("Ich glaube,", "dass Sie recht haben.", "dass du recht hast."),
    ("Sagen wir es so:", "Ihre Idee gefällt mir.", "deine Idee gefällt mir."),
    ("Der Tee ist heiß,", "verbrennen Sie sich nicht.", "verbrenn dich nicht."),
    ("Gute Nacht,", "schlafen Sie gut.", "schlaf gut."),
    ("Ich weiß nicht,", "ob Sie das kennen.", "ob du das kennst."),
    ("Am Sonntag", "besuchen wir Sie.", "besuchen wir dich."),
]  # fmt: skip

LONG = [
    "That depends on a few things, so let me explain them one after the other, and then you can decide for yourself.",
    "I have thought about it for a long time, and although there is much to say, the most important part is this.",
    "There are many reasons, and I could tell you about each of them, but let me begin with the oldest of them all.",
    "It is a long story, which began many years ago in a small town by the sea, and it is not over yet.",
]
SHORT = ["Yes.", "No.", "Not yet.", "Maybe."]


def answered(questions: list[str], first: list[str], second: list[str], seed: int) -> list[tuple[str, str, str]]:
    """A few pairs of answers to each question; the answers do not depend on it."""
    rng = random.Random(seed)
    return [
        (q, a, b)
        for q in questions
        for a, b in zip(rng.sample(first, PAIRS_PER_PROMPT), rng.sample(second, PAIRS_PER_PROMPT), strict=True)
    ]


def main() -> None:
    """Write the sets."""
    sets = {
        ("polite", "curt"): answered(QUESTIONS, POLITE, CURT, 1),
        ("cheerful", "gloomy"): answered(TOPICS, CHEERFUL, GLOOMY, 2),
        ("british", "american"): SPELLED,
        ("formal", "informal"): GERMAN,
        ("long", "short"): answered(QUESTIONS, LONG, SHORT, 3),
    }
    for (first, second), pairs in sets.items():
        prompts = list(dict.fromkeys(prompt for prompt, _, _ in pairs))
        held_out = {*prompts[-max(len(prompts) // 4, HELD_OUT // (len(pairs) // len(prompts))) :]}
        folder = HERE / first
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            rows = [p for p in pairs if (p[0] in held_out) == (split == "validation")]
            text = "".join(
                json.dumps({"prompt": p, first: f" {a}", second: f" {b}"}, ensure_ascii=False) + "\n"
                for p, a, b in rows
            )
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
            print(f"{first}/{second}, {split}: {len(rows)} pairs of {len({p for p, _, _ in rows})} prompts")


if __name__ == "__main__":
    main()
