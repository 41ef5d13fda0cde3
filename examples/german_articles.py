"""German definite articles by gender and case.

    python examples/german_articles.py                                # spaCy's de_core_news_sm, German Wikipedia
    apt-get install debian-faq-de debian-reference-de
    zcat /usr/share/doc/debian/FAQ/debian-faq.de.txt.gz /usr/share/debian-reference/debian-reference.de.txt.gz > german.txt
    python examples/german_articles.py --offline --text german.txt    # rules instead of a parser

The offline rules read the gender from endings of nouns that allow no other one (-ung: feminine) and the case from the
form of the article. The small offline models have hardly seen German: their figures say that the method runs, nothing
about what a German model knows.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import learn, options, show, table

from gradiend_hub.data import ClassSpec, FeatureData, FeatureDataConfig, FeatureDatasetBuilder, TextFilters

CELLS = {
    "masc_nom": ("der", "Masc", "Nom"), "masc_acc": ("den", "Masc", "Acc"), "masc_dat": ("dem", "Masc", "Dat"),
    "masc_gen": ("des", "Masc", "Gen"), "fem_nom": ("die", "Fem", "Nom"), "fem_acc": ("die", "Fem", "Acc"),
    "fem_dat": ("der", "Fem", "Dat"), "fem_gen": ("der", "Fem", "Gen"), "neut_nom": ("das", "Neut", "Nom"),
    "neut_acc": ("das", "Neut", "Acc"), "neut_dat": ("dem", "Neut", "Dat"), "neut_gen": ("des", "Neut", "Gen"),
}  # fmt: skip
WIKIPEDIA = {"path": "wikimedia/wikipedia", "name": "20231101.de", "split": "train"}

# what the rules can tell apart: for them -er is masculine after "der", and "der" is dative or genitive before -ung
_RULED = ("masc_nom", "fem_nom", "fem_dat", "neut_nom")
_GENDERS = {
    "Fem": re.compile(r"\w+(?:ung|heit|keit|schaft|tät|ion)$"),
    "Masc": re.compile(r"(?:\w+(?:ismus|ling|ist|ner)|Benutzer|Server|Kernel|Befehl|Name|Fehler|Rechner|Ordner)$"),
    "Neut": re.compile(r"(?:\w+(?:chen|ment|um)|System|Paket|Programm|Verzeichnis|Dokument|Netzwerk|Skript)$"),
}
_CASES = {("der", "Masc"): "Nom", ("die", "Fem"): "Nom", ("der", "Fem"): "Dat", ("das", "Neut"): "Nom"}


@dataclass(frozen=True)
class Token:
    """As much of spaCy's token as the builder reads."""

    text: str
    idx: int
    pos_: str
    morph: dict[str, list[str]] = field(default_factory=dict)
    lemma_: str = ""


class EndingRules:
    """Stands in for a spaCy pipeline: an article and a noun whose ending decides its gender."""

    lang = "de"

    def has_pipe(self, _name: str) -> bool:
        return False

    def pipe(self, texts: Iterable[str]) -> Iterator[list[Token]]:
        for text in texts:
            found = re.finditer(r"\b(der|die|das)\b(?= ([A-ZÄÖÜ]\w+))", text, re.IGNORECASE)
            yield [token for match in found if (token := self._token(match))]

    def _token(self, match: re.Match[str]) -> Token | None:
        for gender, endings in _GENDERS.items():
            case = _CASES.get((match[1].lower(), gender))
            if case and endings.match(match[2]):
                return Token(match[1], match.start(1), "DET", {"Gender": [gender], "Case": [case], "Number": ["Sing"]})
        return None


def build(args: Namespace) -> FeatureData:
    """One class for each gender and case."""
    names = _RULED if args.offline else tuple(CELLS)
    classes = {
        name: ClassSpec(
            (CELLS[name][0],), (), {"pos": "DET", "Gender": CELLS[name][1], "Case": CELLS[name][2], "Number": "Sing"}
        )
        for name in names
    }
    config = FeatureDataConfig(
        classes, language="de", spacy_model="de_core_news_sm", max_per_class=args.max_rows,
        filters=TextFilters(unit="sentence", min_words=5, max_words=50), max_texts=None if args.offline else 20_000,
    )  # fmt: skip
    rules: Any = EndingRules() if args.offline else None
    source: Any = args.text or WIKIPEDIA
    if args.text and Path(args.text).suffix == ".txt":  # lines are wrapped: a paragraph is a text
        paragraphs = re.split(r"\n\s*\n", Path(args.text).read_text(encoding="utf-8", errors="replace"))
        source = [" ".join(paragraph.split()) for paragraph in paragraphs]
    return FeatureDatasetBuilder(config, nlp=rules).build(source)


def main() -> None:
    """Build the set and learn the pairs whose articles differ."""
    args = options(__doc__, "google-bert/bert-base-german-cased")
    if args.offline and not args.text:
        raise SystemExit(
            "--offline needs --text, a German text; the first lines of this file say where Debian has some."
        )
    data = build(args)
    show(data, args)
    different = [("masc_nom", "fem_nom"), ("masc_nom", "neut_nom"), ("fem_nom", "neut_nom"), ("fem_nom", "fem_dat")]
    results = [learn("German articles", data.rows, pair, args) for pair in different]
    print(f"\n{table(results, args)}")


if __name__ == "__main__":
    main()
