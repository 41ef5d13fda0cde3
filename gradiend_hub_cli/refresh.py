"""`refresh`: the card of a published direction, with what others have measured since."""

from __future__ import annotations

from typing import Any

from gradiend_hub.cards.refresh import refresh_card
from gradiend_hub.printable import listed

from .console import Story
from .quiet import quiet


def refresh_published(
    repo_id: str, revision: str | None, create_pr: bool, overwrite: bool, story: Story
) -> dict[str, Any]:
    """Render and commit the card, and print whose measurements it shows.

    Raises:
        HubPushError: nothing was committed; the message says why.
    """
    with quiet(story), story.step("Render", told=False):
        done = refresh_card(repo_id, revision=revision, create_pr=create_pr, overwrite=overwrite)
    sources = listed(one.source for one in done.others)
    story.show(
        f"The card of {repo_id} shows {f'what was measured by {sources}' if sources else 'no measurement by others'}."
    )
    story.show(done.commit.pr_url or done.commit.commit_url, soft_wrap=True)
    return {
        "repo_id": repo_id,
        "commit": done.commit.oid,
        "url": done.commit.commit_url,
        "pull_request": done.commit.pr_url,
        "others": [{"by": one.by, "file": one.file, "same_weights": one.same_weights} for one in done.others],
    }
