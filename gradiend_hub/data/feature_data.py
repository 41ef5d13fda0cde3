"""`FeatureData`: a data set that was built, its card and its files."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import jinja2
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from gradiend_hub.constants import CARD_FILE

from .funnel import Funnel
from .spec import FeatureDataConfig
from .splits import Leaks

__all__ = ["FeatureData"]

_MOST_WORDS = 40
_EXAMPLES = 3
_CHOSEN = {"paired": "its partner", "sampled": "drawn by frequency", "all": "each one of the other class in turn"}


@dataclass(frozen=True)
class FeatureData:
    """What a builder made.

    Attributes:
        rows: splits of rows with the columns `masked`, `factual`, `alternative`, `factual_class`, `alternative_class`,
            `split` and, if the source has groups, `group`.
        neutral: splits of sentences (`text`) without the feature, in the same shares; `None` if none were asked for.
        funnel: what became of every text.
        leaks: texts that reached two splits, before they were dropped.
        digest: SHA-256 of all rows in order.
        config: what they were built from.
    """

    rows: datasets.DatasetDict
    neutral: datasets.DatasetDict | None
    funnel: Funnel
    leaks: Leaks
    digest: str
    config: FeatureDataConfig

    def counts(self) -> dict[str, list[int]]:
        """Rows of each class, by split."""
        found = {split: Counter(part["factual_class"][:]) for split, part in self.rows.items()}
        return {name: [of[name] for of in found.values()] for name in self.config.classes}

    def save(self, folder: str | Path) -> Path:
        """Write `{split}.jsonl`, `neutral/{split}.jsonl` and the card; `datasets.load_dataset(folder)` reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in self.rows.items():
            part.to_json(folder / f"{split}.jsonl", force_ascii=False)
        for split, part in (self.neutral or {}).items():
            (folder / "neutral").mkdir(exist_ok=True)
            part.to_json(folder / "neutral" / f"{split}.jsonl", force_ascii=False)
        self.card(str(folder)).save(folder / CARD_FILE)
        return folder

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Publish rows, neutral text and card in one commit; options are those of `publish_folder`."""
        from gradiend_hub.hub.publish import publish_folder

        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            self.card(repo_id).save(Path(folder, CARD_FILE))
            options.setdefault("commit_message", "Upload feature data")
            return publish_folder(folder, repo_id, repo_type="dataset", **options)

    def card(self, repo_id: str) -> DatasetCard:
        """Counts by class, word and split, examples, the funnel, source, licence and digest."""
        config, splits = self.config, list(self.rows)
        counts = Counter(
            (row["factual_class"], config.key(row["factual"]), split)
            for split, part in self.rows.items()
            for row in part.select_columns(["factual_class", "factual"])
        )
        words = Counter[tuple[str, str]]()
        for (name, word, _), count in counts.items():
            words[name, word] += count
        said = config.card
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
        )
        environment.filters["cell"] = _cell
        template = environment.from_string(
            files("gradiend_hub.model_cards").joinpath("dataset.md.jinja").read_text(encoding="utf-8")
        )
        body = template.render(
            name=said.get("pretty_name", " / ".join(config.classes)),
            description=said.get("description", f"Sentences with a slot for a word of {' or '.join(config.classes)}."),
            repo_id=repo_id,
            splits=splits,
            classes={
                c: [sum(n for (name, _, s), n in counts.items() if name == c and s == split) for split in splits]
                for c in config.classes
            },
            neutral=[len(part) for part in self.neutral.values()] if self.neutral else None,
            words=[(c, w, [counts[c, w, split] for split in splits]) for (c, w), _ in words.most_common(_MOST_WORDS)],
            more_words=max(0, len(words) - _MOST_WORDS),
            examples=_examples(self),
            source=said.get("source") or _source_name(config.source),
            chosen=_CHOSEN[config.counterfactual],
            funnel=self.funnel.rows(),
            leaks=self.leaks,
            leak_count=len(self.leaks.pairs),
            license=said.get("license", "not stated"),
            digest=self.digest,
            config=config,
        )
        header = DatasetCardData(
            pretty_name=said.get("pretty_name", " / ".join(config.classes)),
            language=config.language,
            license=said.get("license"),
            task_categories=["fill-mask"],
            tags=["gradiend"],
            configs=_configs(self),
        )
        return DatasetCard(f"---\n{header.to_yaml()}\n---\n\n{body}")


def _configs(data: FeatureData) -> list[dict[str, Any]]:
    def files_of(folder: str, splits: Any) -> list[dict[str, str]]:
        return [{"split": split, "path": f"{folder}{split}.jsonl"} for split in splits]

    configs: list[dict[str, Any]] = [{"config_name": "rows", "default": True, "data_files": files_of("", data.rows)}]
    if data.neutral:
        configs.append({"config_name": "neutral", "data_files": files_of("neutral/", data.neutral)})
    return configs


def _examples(data: FeatureData) -> list[dict[str, str]]:
    """The first rows of each class."""
    found: dict[str, list[dict[str, str]]] = {name: [] for name in data.config.classes}
    for row in next(iter(data.rows.values())):
        rows = found[row["factual_class"]]
        if len(rows) < _EXAMPLES:
            rows.append(row)
        elif all(len(rows) == _EXAMPLES for rows in found.values()):
            break
    return [row for rows in found.values() for row in rows]


def _source_name(source: Any) -> str:
    if isinstance(source, dict):
        source = source.get("path", "")
    return (
        Path(source).name if isinstance(source, (str, Path)) and Path(source).exists() else str(source or "not stated")
    )


def _cell(text: Any) -> str:
    """A text in a table, as itself and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
