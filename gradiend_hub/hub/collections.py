"""Collections of the Hub: directions that belong together, on one page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from huggingface_hub import Collection, HfApi, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from gradiend_hub.errors import ConfigError, HubPushError
from gradiend_hub.printable import is_printable, printable

from .patience import bounded
from .retry import FAILURES, summary, with_retries

_SLUG: Final = re.compile(r"[\w.-]+/[\w.-]+-[0-9a-f]{24}")
_LONGEST_NOTE: Final = 500
"""Characters of a note that the Hub takes."""


@dataclass(frozen=True)
class ExtendedCollection:
    """A collection, after something was added.

    Attributes:
        slug: by which the Hub knows it, and `url` its page.
        added: repositories that are new in it, and `present` those that it had.
    """

    slug: str
    url: str
    added: list[str]
    present: list[str]


def add_to_collection(
    collection: str,
    repo_ids: Sequence[str],
    *,
    note: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
) -> ExtendedCollection:
    """Add models to a collection, which is made if there is none of that title; what it has already stays as it is.

    To repeat a call that failed is safe.

    Args:
        collection: its slug, as at the end of its address ("alice/directions-64f9a55bb3115b4f513ec026"), or a title, in the
            user's own namespace unless it begins with another one ("acme/Directions").
        repo_ids: models to add, directions or others.
        note: what to say beside each of them.
        private: visibility of a new collection.
        token: access token; by default the one that the user logged in with.

    Raises:
        ConfigError: an id, the title or the note is unusable.
        HubPushError: the Hub refuses, or cannot be reached; what was added before stays.
    """
    for repo_id in repo_ids:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ConfigError(f"{printable(repo_id)} is no id of a repository: {error}") from error
    if not repo_ids or not collection.strip("/ "):
        raise ConfigError("Expected a collection and at least one repository, found none.")
    if not is_printable(collection):
        raise ConfigError(f"{printable(collection)} is no title of a collection: it has characters that nobody sees.")
    if note is not None and len(note) > _LONGEST_NOTE:
        raise ConfigError(f"note: expected at most {_LONGEST_NOTE} characters, found {len(note)}.")
    if is_offline_mode():
        raise HubPushError("Nothing was added: this process is offline (HF_HUB_OFFLINE=1).")
    api, added = HfApi(token=token), list[str]()
    try:
        with bounded():
            found = with_retries(lambda: _found(api, collection, private))
            known = {item.item_id for item in found.items if item.item_type == "model"}
            for repo_id in dict.fromkeys(repo_ids):
                if repo_id not in known:
                    with_retries(
                        lambda repo_id=repo_id: api.add_collection_item(  # type: ignore[misc]
                            found.slug, repo_id, "model", note=note, exists_ok=True
                        )
                    )
                    added.append(repo_id)
    except (*FAILURES, OSError) as error:
        before = f"Added before that: {', '.join(added)}. " if added else "Nothing was added. "
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = {
            401: "the Hub needs a valid token, log in with `hf auth login`",
            403: "the token may not write to that collection",
            404: "there is no such collection or repository, or this token does not see it",
        }.get(status or 0, "the Hub cannot be reached, or refuses")
        raise HubPushError(
            f"The collection {printable(collection)} could not be extended: {reason} ({summary(error)}). {before}To repeat "
            "the call is safe."
        ) from error
    return ExtendedCollection(found.slug, found.url, added, [name for name in repo_ids if name not in added])


def _found(api: HfApi, collection: str, private: bool) -> Collection:
    """A collection by its slug, or by its title, made if there is none."""
    if _SLUG.fullmatch(collection):
        return api.get_collection(collection)
    namespace, _, title = collection.rpartition("/")
    made = api.create_collection(title, namespace=namespace or None, private=private, exists_ok=True)
    return api.get_collection(made.slug)
