"""`explore`: a page on which people move directions, or a Space with it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from gradiend_hub.errors import ConfigError
from gradiend_hub.explorer import Explorer, build_page, launch_options, push_space, require_gradio

from .console import Story
from .looking import ExploreOptions
from .quiet import quiet


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
            server_port=options.port or _free_port(options.host),
            inbrowser=options.browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            **launch_options(),
        )
    except OSError as error:
        raise ConfigError(_cannot_listen(options.host, options.port)) from error
    story.show(f"The page is at {url} until you press Ctrl-C.")
    try:
        page.block_thread()
    except KeyboardInterrupt:
        pass
    finally:
        page.close()
    return {"directions": [*directions], "url": url}


def _free_port(host: str) -> int:
    """Return a port of a host that nobody listens on; by itself gradio takes one of a hundred.

    Raises:
        OSError: The host is none of this machine.
    """
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        return int(listener.getsockname()[1])


def _cannot_listen(host: str, port: int) -> str:
    """Say why nothing listens there."""
    try:
        _free_port(host)
    except OSError:
        return f"{host} is no address of this machine: leave --host out, or use 0.0.0.0 to let other machines in."
    return f"Port {port} of {host} is taken: give another one, --port 0."
