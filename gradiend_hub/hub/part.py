"""Contents of a push for one place of a repository (a direction, data set or Space), checked against what stands there."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from gradiend_hub.artifact.files import (
    ARTIFACT_FILES,
    ASSETS_FOLDER,
    CARD_FILE,
    CONFIG_FILE,
    LORA_FOLDER,
    PROBES_FILE,
    SUMMARY_FILE,
)
from gradiend_hub.artifact.names import hub_id, is_inside
from gradiend_hub.artifact.validation import parse_json
from gradiend_hub.errors import ArtifactError
from gradiend_hub.printable import listed

from .local_files import LocalFile, chosen_files, matches, require_publishable
from .published import merged_card, published_card, published_config, renewed_probes
from .pushed import Memory

logger = logging.getLogger(__name__)

_NEUTRAL: Final = frozenset({".gitattributes", ".gitignore", CARD_FILE, "LICENSE"})
"""Files that a repository may have before a direction is pushed to it; a push removes none of them."""
_OVERWRITE: Final = "To push all the same: overwrite=True (--overwrite)"


@dataclass
class Part:
    """Files of one folder on their way to one place of a repository.

    Attributes:
        folder: where they are.
        repo_id: the repository.
        repo_type: "model", "dataset" or "space".
        patterns: glob patterns of the files.
        base_id: repository of the base model, if another one is to be named than the configuration's.
        subfolder: folder of the repository; by default the repository itself.
        allow_unmeasured: whether a direction may have no report or no card.
        overwrite: whether what others have put there may be replaced.
        card: our card, before it is merged with that of the repository.
        config: fields of `adapter_config.json`.
        stale: files of a former direction that the push removes, once `respect` has looked.
        others: our card with the reports by others that the repository has taken, and their number, if there are any.
    """

    folder: Path
    repo_id: str
    repo_type: str
    patterns: tuple[str, ...]
    base_id: str | None = None
    subfolder: str | None = None
    allow_unmeasured: bool = False
    overwrite: bool = False
    card: LocalFile | None = None
    config: dict[str, Any] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    others: tuple[str, int] | None = None

    @property
    def place(self) -> str:
        """Prefix of the names of the files in the repository."""
        return f"{self.subfolder}/" if self.subfolder else ""

    @cached_property
    def files(self) -> list[LocalFile]:
        """Files to push, some with other content than on disk.

        Raises:
            ArtifactError: one is a link that leads out of the folder.
        """
        return chosen_files(self.folder, self.patterns, self.subfolder)

    def check(self) -> None:
        """Find what is wrong without the Hub.

        Raises:
            ArtifactError: with the reason.
        """
        if self.repo_type == "model":
            self.check_config()
        elif self.base_id is not None:
            kind = {"dataset": "data set", "space": "Space"}[self.repo_type]
            raise ArtifactError(f"a {kind} has no base model, so base_id is not for it")
        if self.subfolder is not None and not is_inside(self.subfolder):
            raise ArtifactError(f"{self.subfolder!r} is no name of a folder in a repository")
        if not self.files:
            raise ArtifactError(f"no file of the folder matches {', '.join(self.patterns)}")

    def check_config(self) -> None:
        """Read `adapter_config.json`.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        try:
            self.config = parse_json((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ArtifactError(f"the folder is not a saved direction, it has no {CONFIG_FILE}") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{CONFIG_FILE} cannot be read: {error}") from error
        if not isinstance(self.config, dict):
            raise ArtifactError(f"{CONFIG_FILE} is not a JSON object")

    def check_content(self) -> None:
        """Refuse what nobody could load or judge; see `require_publishable`."""
        if self.repo_type == "model":
            require_publishable(self.folder, self.patterns, self.allow_unmeasured)

    # -------------------------------------------------------------------------------------------------- what is published

    def name(self, base_commit: Callable[[str], str | None]) -> None:
        """Put the ids of the repository and of the base model into card and config, and no path of this machine.

        Args:
            base_commit: is given the base model's id, and returns its head commit.
        """
        if self.repo_type == "model":
            self._name_base(base_commit)
        self.card = next((file for file in self.files if file.name == self.place + CARD_FILE), None)

    def _name_base(self, base_commit: Callable[[str], str | None]) -> None:
        contents: dict[str, str] = {}
        base, base_id, commit = self.config.get("base_model_name_or_path"), self.base_id, self.config.get("revision")
        if base_id is None and base is not None and hub_id(base) is None:
            logger.warning(
                f"{CONFIG_FILE} names the base model {base!r}, which is a path and no repository on the Hub, so it is not "
                "published. Others will have to pass `base_model=`. Publish the base model, too, and name it with "
                "`base_id=` (gradiend-hub push --base-id)."
            )
            contents[CONFIG_FILE] = published_config(self.config, None, commit)
        elif base_id is not None and base_id != base:
            commit = base_commit(base_id)
            contents[CONFIG_FILE] = published_config(self.config, base_id, commit)
            if (probes := self.folder / PROBES_FILE).is_file():
                contents[PROBES_FILE] = renewed_probes(probes.read_text(encoding="utf-8"), contents[CONFIG_FILE])
        if self.others and (summary := self.folder / SUMMARY_FILE).is_file():
            said = json.loads(summary.read_text(encoding="utf-8")) | {"others": self.others[1]}
            contents[SUMMARY_FILE] = json.dumps(said, ensure_ascii=False) + "\n"
        if CONFIG_FILE in contents:
            for name in (file.name.removeprefix(self.place) for file in self.files):
                if name.startswith(f"{LORA_FOLDER}/") and name.endswith(CONFIG_FILE):
                    fields = json.loads((self.folder / name).read_text(encoding="utf-8"))
                    contents[name] = published_config(fields, base_id, commit)
                elif name == SUMMARY_FILE:
                    said = json.loads(contents.get(name) or (self.folder / name).read_text(encoding="utf-8"))
                    named = {"base_model": base_id, "base_revision": commit}
                    contents[name] = json.dumps({**said, **named}, ensure_ascii=False) + "\n"
        if (card := self.folder / CARD_FILE).is_file():
            text = self.others[0] if self.others else card.read_bytes().decode("utf-8", errors="surrogateescape")
            contents[CARD_FILE] = published_card(text, self.repo_id, base_id, commit, self.subfolder)
        for name, text in contents.items():
            self._put(self.place + name, text.encode("utf-8", errors="surrogateescape"))

    def _put(self, name: str, content: bytes) -> None:
        """Publish other content than that on disk under a name."""
        self.files = [replace(file, content=content) if file.name == name else file for file in self.files]

    # ------------------------------------------------------------------------------------------- what the repository holds

    def respect(self, names: set[str], read: Callable[[str], bytes]) -> None:
        """Look at what the repository holds, take what people have written there into our card, and note what is stale.

        Args:
            names: of all files of the repository.
            read: is given one of these names, and returns the file's content.

        Raises:
            ArtifactError: it holds what we would destroy.
        """
        kind = self._method(read(self.place + CONFIG_FILE)) if self._meets_a_config(names) else None
        if not self.overwrite:
            self._refuse_others(names, kind)
        card = self.place + CARD_FILE
        is_new_space = self.repo_type == "space" and not names - _NEUTRAL  # with a card that the Hub has written
        if self.card is not None and card in names and not self.overwrite and not is_new_space:
            self._put(card, self._with_their_words(card, read(card)))
        self.stale = self._stale(names) if kind == "GRADIEND" else []

    def _meets_a_config(self, names: set[str]) -> bool:
        return self.repo_type == "model" and self.place + CONFIG_FILE in names

    @staticmethod
    def _method(config: bytes) -> str | None:
        """The PEFT method of a configuration in the repository; `None` if it says none."""
        try:
            return str(json.loads(config)["peft_type"])
        except (ValueError, LookupError, TypeError):
            return None

    def _refuse_others(self, names: set[str], kind: str | None) -> None:
        config = self.place + CONFIG_FILE
        if self._meets_a_config(names):
            if kind != "GRADIEND":
                raise ArtifactError(
                    f"its {config} is of {f'a {kind} adapter' if kind else 'no adapter'}, which this push would replace. "
                    f"{_OVERWRITE}"
                )
        elif not self.subfolder and names - _NEUTRAL and not {file.name for file in self.files} - _NEUTRAL & names:
            others = listed(sorted(names - _NEUTRAL))
            raise ArtifactError(f"it holds something else ({others}). Name another repository. {_OVERWRITE}")

    def _with_their_words(self, name: str, theirs: bytes) -> bytes:
        """Our card with what people have written around the one in the repository."""
        assert self.card is not None
        ours = self.card.read()
        if Memory(self.folder, self.repo_id).knows(name, theirs):
            return ours  # it came from here: what was changed since was changed here
        merged = merged_card(*(text.decode("utf-8", errors="surrogateescape") for text in (ours, theirs)))
        if merged is None:
            keep = f"To keep it, download it into your folder: hf download {self.repo_id} {name}. "
            raise ArtifactError(
                f"its {name} was written or changed by hand, and this push would replace it. "
                f"{'' if self.repo_type == 'space' else keep}{_OVERWRITE}"
            )
        return merged.encode("utf-8", errors="surrogateescape")

    def _stale(self, names: set[str]) -> list[str]:
        """Files that a direction of this library had in our place, and the one that is pushed has not.

        Pictures that the card shows stay, since people may have put them there.
        """
        if not {*ARTIFACT_FILES} <= {*self.patterns}:
            return []
        pushed = {file.name.removeprefix(self.place): file for file in self.files}
        theirs = {name.removeprefix(self.place) for name in names if name.startswith(self.place)}
        shown = pushed[CARD_FILE].read().decode("utf-8", errors="replace") if CARD_FILE in pushed else ""
        found = [name for name in theirs - pushed.keys() - _NEUTRAL if matches(name, ARTIFACT_FILES)]
        return sorted(
            self.place + name for name in found if not (name.startswith(f"{ASSETS_FOLDER}/") and name in shown)
        )

    def remember(self) -> None:
        """Note the card that was pushed, so that the next push knows what came from here; none with others' words in it."""
        memory = Memory(self.folder, self.repo_id)
        for file in self.files:
            if self.card is not None and file.name == self.card.name:
                memory.note(file.name, content if (content := file.read()) == self.card.read() else None)
