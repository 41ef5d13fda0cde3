"""`collection`: directions on the Hub that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gradiend_hub.hub.collections import add_to_collection

from .console import Story
from .quiet import quiet

__all__ = ["extend_collection"]


def extend_collection(
    collection: str, repo_ids: Sequence[str], note: str | None, private: bool, story: Story
) -> dict[str, Any]:
    """Add repositories to a collection, and print where it is.

    Raises:
        ConfigError: an id is none.
        HubPushError: the Hub refuses, or cannot be reached.
    """
    with quiet(story), story.step("Add", told=False):
        found = add_to_collection(collection, repo_ids, note=note, private=private)
    story.show(f"{len(found.added)} added, {len(found.present)} there already: {found.url}", soft_wrap=True)
    return asdict(found)
