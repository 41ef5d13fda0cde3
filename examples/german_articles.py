"""German definite articles by gender and case.

    python examples/german_articles.py                                # spaCy's de_core_news_sm, German Wikipedia
    apt-get install debian-faq-de debian-reference-de maint-guide-de developers-reference-de fortunes-de
    (cd /usr/share
     zcat doc/debian/FAQ/debian-faq.de.txt.gz debian-reference/debian-reference.de.txt.gz
     zcat doc/maint-guide-de/maint-guide.de.txt.gz developers-reference/de/developers-reference.txt.gz
     find games/fortunes/de -type f ! -name '*.*' | LC_ALL=C sort | xargs sed 's/^%$//') > german.txt
    python examples/german_articles.py --offline --text german.txt    # rules instead of a parser

The offline rules are regular expressions for what follows the article: endings of nouns that allow one gender only (-ung:
feminine), which with the form of the article leave one case that is likely. The small offline models have hardly seen
German: their figures say that the method runs, nothing about what a German model knows.
"""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from common import learn, options, show, table

from gradiend_hub.data import ClassSpec, FeatureData, FeatureDataConfig, FeatureDatasetBuilder, TextFilters

CELLS = {
    "masc_nom": ("der", "Masc", "Nom"),
    "masc_acc": ("den", "Masc", "Acc"),
    "masc_dat": ("dem", "Masc", "Dat"),
    "masc_gen": ("des", "Masc", "Gen"),
    "fem_nom": ("die", "Fem", "Nom"),
    "fem_acc": ("die", "Fem", "Acc"),
    "fem_dat": ("der", "Fem", "Dat"),
    "fem_gen": ("der", "Fem", "Gen"),
    "neut_nom": ("das", "Neut", "Nom"),
    "neut_acc": ("das", "Neut", "Acc"),
    "neut_dat": ("dem", "Neut", "Dat"),
    "neut_gen": ("des", "Neut", "Gen"),
}
WIKIPEDIA = {"path": "wikimedia/wikipedia", "name": "20231101.de", "split": "train"}

# what the endings can tell apart: "der" before -er is nominative, and before -ung taken for a dative
_ENDINGS = {
    "Fem": r"\w+(?:ung|heit|keit|schaft|tät|ion)",
    "Masc": r"(?:\w+(?:ismus|ling|ist|ner)|Benutzer|Server|Kernel|Befehl|Name|Fehler|Rechner|Ordner)",
    "Neut": r"(?:\w+(?:chen|ment|um)|System|Paket|Programm|Verzeichnis|Dokument|Netzwerk|Skript)",
}
_RULED = ("masc_nom", "fem_nom", "fem_dat", "neut_nom")


def spec(name: str, offline: bool) -> ClassSpec:
    """An article, by what a parser says of it or by the noun that follows."""
    article, gender, case = CELLS[name]
    if offline:
        return ClassSpec((article,), after=rf"(?-i: (?=[A-ZÄÖÜ]){_ENDINGS[gender]}\b)")
    return ClassSpec((article,), tags={"pos": "DET", "Gender": gender, "Case": case, "Number": "Sing"})


def build(args: Namespace) -> FeatureData:
    """One class for each gender and case."""
    classes = {name: spec(name, args.offline) for name in (_RULED if args.offline else CELLS)}
    config = FeatureDataConfig(
        classes,
        language="de",
        spacy_model=None if args.offline else "de_core_news_sm",
        max_per_class=args.max_rows,
        filters=TextFilters(unit="sentence", min_words=5, max_words=50),
        max_texts=None if args.offline else 20_000,
    )
    source: Any = args.text or WIKIPEDIA
    if args.text and Path(args.text).suffix == ".txt":  # lines are wrapped: a paragraph is a text
        paragraphs = re.split(r"\n\s*\n", Path(args.text).read_text(encoding="utf-8", errors="replace"))
        source = [" ".join(paragraph.split()) for paragraph in paragraphs]
    return FeatureDatasetBuilder(config).build(source)


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
