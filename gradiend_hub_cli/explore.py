"""`explore`: a page on which people move directions, or a Space with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradiend_hub.errors import ConfigError
from gradiend_hub.explorer import Explorer, build_page, launch_options, push_space, require_gradio

from .console import Story
from .quiet import quiet

__all__ = ["ExploreOptions", "explore_directions"]


@dataclass(frozen=True)
class ExploreOptions:
    """Options of `gradiend-hub explore`."""

    base: str | None
    host: str
    port: int
    browser: bool
    space: str | None
    private: bool
    overwrite: bool
    allowed: dict[str, Any]


def explore_directions(directions: Sequence[str], options: ExploreOptions, story: Story) -> dict[str, Any]:
    """Serve the page until Ctrl-C, or publish it as a Space.

    Raises:
        GradiendError: A direction cannot be loaded or published, or gradio is not installed.
    """
    if options.space:
        commit = push_space(
            options.space, directions, options.base, private=options.private or None, overwrite=options.overwrite
        )
        story.show(f"Published: {commit.commit_url}")
        return {"space": options.space, "commit": commit.oid, "url": commit.commit_url}
    require_gradio()  # before the model is loaded
    with quiet(story), story.step("Load"):
        explorer = Explorer.load(directions, options.base, **options.allowed)
    page = build_page(explorer)
    try:
        _, url, _ = page.launch(
            server_name=options.host,
            server_port=options.port or None,
            inbrowser=options.browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            **launch_options(),
        )
    except OSError as error:
        raise ConfigError(f"Port {options.port} of {options.host} is taken: give another one, --port 0.") from error
    story.show(f"The page is at {url} until you press Ctrl-C.")
    try:
        page.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()
    return {"directions": [*directions], "url": url}
