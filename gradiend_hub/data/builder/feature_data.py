"""`FeatureData`: a data set that was built, its card and its files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import datasets
import jinja2
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData

from gradiend_hub.artifact.files import CARD_FILE
from gradiend_hub.data.funnel import Funnel
from gradiend_hub.data.splits import Leaks
from gradiend_hub.errors import ConfigError, DataError, first_line
from gradiend_hub.folders import require_empty, require_writable
from gradiend_hub.hub.published import marked, published_card

from .spec import FeatureDataConfig

CONFIG_FILE = "build.json"
"""The configuration of a set beside its rows; as JSON it is YAML, too, and so the command line can build from it."""

_HERE = "path/to/this/folder"
"""Stands in the card for a folder, whose path says more about a machine than about the data."""

_MOST_WORDS = 40
_EXAMPLES = 3
_CHOSEN = {"paired": "its partner", "sampled": "drawn by frequency", "all": "each one of the other class in turn"}


@dataclass(frozen=True)
class FeatureData:
    """A data set that a builder made.

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

    @property
    def neutral_counts(self) -> list[int]:
        """Neutral texts of each split of the rows."""
        return [len(self.neutral[split]) if split in self.neutral else 0 for split in self.rows] if self.neutral else []

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `{split}.jsonl`, `neutral/{split}.jsonl`, the configuration and the card.

        `datasets.load_dataset(folder)` and `read_feature_data(folder)` read them.

        Args:
            folder: a new or empty folder.
            overwrite: replace the data set of an earlier build in it, with all of its splits; other files stay.

        Raises:
            ConfigError: nothing can be written there, or the folder holds something that may not be replaced.
        """
        folder = Path(folder)
        check_folder(folder, overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        remove_build(folder)  # a split that is gone would be read with the new ones
        for split, part in self.rows.items():
            part.to_json(folder / f"{split}.jsonl", force_ascii=False)
        for split, part in (self.neutral or {}).items():
            (folder / "neutral").mkdir(exist_ok=True)
            part.to_json(folder / "neutral" / f"{split}.jsonl", force_ascii=False)
        (folder / CONFIG_FILE).write_text(self._config_text(), encoding="utf-8")
        self.card(_HERE).save(folder / CARD_FILE)
        return folder

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Publish rows, neutral text and card in one commit; options are those of `publish_folder`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return push_saved(folder, repo_id, **options)

    def _config_text(self) -> str:
        content = self.config.to_dict() | {"source": _public(self.config.source)}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def card(self, repo_id: str) -> DatasetCard:
        """Counts by class, word and split, examples, the funnel, the configuration, source, licence and digest."""
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
        environment.filters.update(cell=_cell, fenced=_fenced)
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
            neutral=self.neutral_counts if self.neutral else None,
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
            config_file=CONFIG_FILE,
            config_text=self._config_text(),
        )
        header = DatasetCardData(
            pretty_name=said.get("pretty_name", " / ".join(config.classes)),
            language=config.language,
            license=said.get("license"),
            task_categories=["fill-mask"],
            tags=["gradiend"],
            configs=_configs(self),
        )
        return DatasetCard(marked(f"---\n{header.to_yaml()}\n---\n<!-- gradiend-hub card  -->\n\n{body}", repo_id))


def _configs(data: FeatureData) -> list[dict[str, Any]]:
    def files_of(folder: str, splits: Any) -> list[dict[str, str]]:
        return [{"split": split, "path": f"{folder}{split}.jsonl"} for split in splits]

    # by the digests: the cache of datasets tells local folders apart by their last name and this header alone
    rows = {"config_name": "rows", "default": True, "description": f"Digest {data.digest}"}
    configs: list[dict[str, Any]] = [rows | {"data_files": files_of("", data.rows)}]
    if data.neutral:
        texts = "\x1e".join(text for part in data.neutral.values() for text in part["text"])
        neutral = {"config_name": "neutral", "description": f"Digest {hashlib.sha256(texts.encode()).hexdigest()}"}
        configs.append(neutral | {"data_files": files_of("neutral/", data.neutral)})
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


def _public(source: Any) -> Any:
    """A source as others may know it: of a file its name without the folder, of what is in memory nothing."""
    if isinstance(source, (str, Path)):
        return Path(source).name if Path(source).is_absolute() or Path(source).exists() else str(source)
    if type(source) is dict:  # not a DatasetDict
        return {key: _public(value) for key, value in source.items()}
    return source if isinstance(source, (bool, int)) else None


def _source_name(source: Any) -> str:
    public = _public(source)
    return str((public.get("path") if isinstance(public, dict) else public) or "not stated")


def push_saved(folder: str | Path, repo_id: str, **options: Any) -> CommitInfo:
    """Publish a data set that `FeatureData.save` wrote in one commit, with the repository's id in its card.

    The folder stays as it is, and may have been moved.

    Args:
        folder: of the data set.
        repo_id: `namespace/name`, or `name` for the user's own namespace.
        **options: those of `publish_folder`.

    Raises:
        ConfigError: it is no folder of a data set that was built.
        DataError: its rows cannot be read. Nothing was sent.
        HubPushError: nothing was committed.
    """
    from gradiend_hub.data.readers import read_feature_data
    from gradiend_hub.hub.publish import publish_folder

    folder = Path(folder)
    for name in (CONFIG_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} is no data set that was built: there is no {name}. Expected a folder that `gradiend-hub data "
                "build` or FeatureData.save wrote. Nothing was sent."
            )
    try:
        read_feature_data(folder)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"The rows of {folder} cannot be read: {first_line(error)} Nothing was sent.") from error
    options.setdefault("commit_message", "Upload feature data")
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place, "data")
        shutil.copytree(folder, copy, symlinks=True)  # a link that leads out is refused by the push
        text = (copy / CARD_FILE).read_text(encoding="utf-8")
        (copy / CARD_FILE).write_text(published_card(text, repo_id), encoding="utf-8")
        return publish_folder(copy, repo_id, repo_type="dataset", **options)


def remove_build(folder: Path) -> None:
    """Remove the files of an earlier build; other files in the folder stay."""
    for pattern in ("*.jsonl", "neutral/*.jsonl", CONFIG_FILE, CARD_FILE):
        for path in folder.glob(pattern):
            path.unlink()


def check_folder(folder: Path, overwrite: bool = False) -> None:
    """Refuse a folder that a data set cannot be saved in; ask before a build, which may take long.

    Raises:
        ConfigError: it is a file, it or the nearest folder that exists may not be written to, or it holds something (with
            `overwrite`, something else than an earlier build).
    """
    earlier = (folder / CONFIG_FILE).is_file()
    if not (earlier and overwrite):
        instead = ", or overwrite=True (--overwrite) to replace that data set" if earlier else ""
        nothing = f"; without {CONFIG_FILE}, it is no data set of an earlier build" if overwrite else ""
        require_empty(folder, f"another folder{instead}{nothing}")
    require_writable(folder)


def _cell(text: Any) -> str:
    """A text in a table, as itself and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _fenced(text: str, language: str) -> str:
    """A block of code that nothing in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}"
