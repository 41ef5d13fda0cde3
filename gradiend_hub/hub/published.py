"""Names that only a push knows, written into what it uploads: the repository's, and that of the base model.

The files on disk stay as they are, and so does a card that a person wrote or edited.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCard

from gradiend_hub.artifact.files import CARD_FILE, CONFIG_FILE
from gradiend_hub.artifact.plain_yaml import parse_yaml

REPO_PLACE: Final = "REPO_ID_OR_FOLDER"
"""Stands in a generated card for the repository until the push."""

BASE_PLACE: Final = "PATH_OR_ID_OF_THE_BASE"
"""Stands in a generated card for a base model that has no id on the Hub."""

_MARK: Final = re.compile(r"<!-- gradiend-hub card (\w*)(?: of (\S+))? -->")
_END: Final = re.compile(r"\n*<!-- end of gradiend-hub card (\w*) -->\n?")
_MEASURED: Final = frozenset(
    {"model-index", "model_name", "base_model", "base_model_relation", "library_name", "tags"}
    | {"models", "sdk", "sdk_version", "app_file"}
)
"""Metadata of a card that follow from the direction, or from a Space's program; people may add tags."""
_HEAD: Final = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_TITLE: Final = re.compile(r"^# .*$", re.MULTILINE)
_ORIGIN: Final = "First published as"
_BASE_ROW: Final = re.compile(r"^\| base model \| .* \|$", re.MULTILINE)


def marked(card: str, repo_id: str = REPO_PLACE) -> str:
    """The card with its own digest, and the repository that it names, in its mark, and a mark with the digest of the text
    at its end; `is_generated` and `merged_card` read them."""
    card = _END.sub("", card)
    if (begin := _MARK.search(card)) is not None:
        card = f"{card.rstrip()}\n\n<!-- end of gradiend-hub card {_digest(card[begin.end() :])} -->\n"
    return _MARK.sub(f"<!-- gradiend-hub card {_digest(card)} of {repo_id} -->", card, count=1)


def is_generated(card: str) -> bool:
    """Return whether the card is as it was generated: nobody wrote or edited it."""
    mark = _MARK.search(card)
    return mark is not None and mark[1] == _digest(card)


def _digest(card: str) -> str:
    """Digest of the card without its marks and without white space, which editors and git change on their own."""
    return hashlib.sha256("".join(_END.sub("", _MARK.sub("", card)).split()).encode()).hexdigest()[:16]


def merged_card(ours: str, theirs: str) -> str | None:
    """Our card with what people have written around an earlier one on the Hub, and with their licence, tags and the like.

    Returns:
        `None` if that would lose something: they have written the card, or changed it between its marks, or ours is written
        by hand, too.
    """
    if ours == theirs or is_generated(theirs):
        return ours
    try:
        parse_yaml(head[1] if (head := _HEAD.match(theirs)) else "")
    except ValueError:  # whoever has written it, the client would expand what it refers to
        return None
    old = ModelCard(theirs, ignore_metadata_errors=True)
    begin, end = _MARK.search(old.text), _END.search(old.text)
    if begin and end and _digest(old.text[begin.end() : end.start()]) == end[1]:
        before, after = old.text[: begin.start()], old.text[end.end() :]
    elif not old.text.strip():  # metadata alone, as the Hub's form for new repositories writes them
        before = after = ""
    else:
        return None
    if not is_generated(ours):
        return None
    new = ModelCard(ours, ignore_metadata_errors=True)
    written: dict[str, Any] = old.data.to_dict()  # type: ignore[no-untyped-call]
    for key, value in written.items():
        if key not in _MEASURED:
            new.data[key] = value
    if tags := [*(new.data.get("tags") or ()), *(written.get("tags") or ())]:
        new.data["tags"] = [*dict.fromkeys(tags)]
    new.text = before + new.text.lstrip("\n") + after if before else new.text + after
    return str(new)


def published_card(
    card: str, repo_id: str, base_id: str | None = None, commit: str | None = None, subfolder: str | None = None
) -> str:
    """The generated card with the ids of the repository and, if it is given, of the base model and its commit."""
    mark = _MARK.search(card)
    if mark is None or not is_generated(card):
        return card
    former = re.escape((mark[2] or REPO_PLACE).partition("@")[0])
    named = f'{repo_id}", subfolder="{subfolder}' if subfolder else repo_id
    card = re.sub(rf'(?<="){former}(", subfolder="[^"]*)?(?=")', lambda _: named, card)
    card = re.sub(rf"(?<=apply ){former}(?= )", lambda _: repo_id, card)
    if _ORIGIN not in card:
        card = _with_origin_of(mark, card, repo_id)
    if base_id is not None:
        found = ModelCard(card.replace(BASE_PLACE, base_id), ignore_metadata_errors=True)
        found.data["base_model"], found.data["base_model_relation"] = base_id, "adapter"
        row = f"| base model | {base_id}{f' at `{commit}`' if commit else ''} |"
        card = _BASE_ROW.sub(row, str(found), count=1)
    return marked(card, repo_id)


def with_origin(card: str, former: str, repo_id: str) -> str:
    """A card that was rendered anew for a repository, with what a former one says of where the direction is from."""
    line = re.search(rf"^> {_ORIGIN} .*$", former, re.MULTILINE)
    return marked(_with_line(card, line[0]) if line else _with_origin_of(_MARK.search(former), card, repo_id))


def _with_origin_of(mark: re.Match[str] | None, card: str, repo_id: str) -> str:
    """A card that says which other repository, if any, it was downloaded from, as its mark tells."""
    origin, _, commit = (mark[2] or "" if mark else "").partition("@")
    if not commit or origin == repo_id:
        return card
    place = f"[{origin}](https://huggingface.co/{origin}) at commit `{commit[:12]}`"
    return _with_line(card, f"> {_ORIGIN} {place}; its author measured it.")


def _with_line(card: str, line: str) -> str:
    """A card with a line below its title."""
    return _TITLE.sub(lambda title: f"{title[0]}\n\n{line}", card, count=1)


def keep_origin(folder: Path, commit: str | None) -> None:
    """Let a generated card that was downloaded know its commit: pushed to another repository, it names where it is from."""
    path = folder / CARD_FILE
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    mark = _MARK.search(card)
    if commit and mark is not None and mark[2] and "@" not in mark[2] and is_generated(card):
        path.write_text(marked(card, f"{mark[2]}@{commit}"), encoding="utf-8")


def published_config(config: dict[str, Any], base_id: str | None, commit: str | None) -> str:
    """The text of `adapter_config.json` with another base model, or without one: a path means nothing to others."""
    return json.dumps({**config, "base_model_name_or_path": base_id, "revision": commit}, indent=2, sort_keys=True)


def renewed_probes(probes: str, config: str) -> str:
    """The text of `gradiend_probes.jsonl` with the digest of another `adapter_config.json`."""
    from gradiend_hub.artifact.probes import content_digests  # torch is not needed for other pushes

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG_FILE).write_text(config, encoding="utf-8")
        digest = content_digests(Path(folder))[CONFIG_FILE]
    head, end, rows = probes.partition("\n")
    fields = json.loads(head)
    fields["sha256"][CONFIG_FILE] = digest
    return json.dumps(fields, ensure_ascii=False) + end + rows
