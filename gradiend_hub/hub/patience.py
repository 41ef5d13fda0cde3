"""A limit to how long a silent Hub is waited for: its client waits for ever where it was not told otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

__all__ = ["SilentHubError", "bounded"]

CONNECT_SECONDS: Final = 10.0
SILENT_SECONDS = max(30.0, float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
"""How long the Hub may send nothing while it is waited for; HF_HUB_DOWNLOAD_TIMEOUT makes it longer."""


TRIES: Final = 3
"""How often a request is sent before a silent Hub is given up."""


class SilentHubError(ConnectionError):
    """The Hub was asked again and again, and has not answered. It is not asked once more."""


@contextmanager
def bounded() -> Iterator[list[int]]:
    """Within the block, no request of this process waits longer for the Hub; a shorter limit of its own stays.

    The client repeats a request that was not answered, in loops within loops; here that ends after `TRIES`.

    Yields:
        The status of each answer below 500, as they come.

    Raises:
        SilentHubError: a request was sent `TRIES` times and never answered.
    """
    answered: list[int] = []
    unanswered: Counter[tuple[str, str]] = Counter()

    def limit(request: Any) -> None:
        place = request.method, str(request.url.copy_with(query=None))
        unanswered[place] += 1
        if unanswered[place] > TRIES:
            raise SilentHubError(f"{place[1]} was asked {TRIES} times and has not answered")
        given = request.extensions.get("timeout") or {}
        limits = {"connect": CONNECT_SECONDS, **dict.fromkeys(("read", "write", "pool"), SILENT_SECONDS)}
        shorter = {name: min(most, given.get(name) or most) for name, most in limits.items()}
        request.extensions = {**request.extensions, "timeout": shorter}

    def note(response: Any) -> None:
        unanswered.pop((response.request.method, str(response.request.url.copy_with(query=None))), None)
        if response.status_code < 500:
            answered.append(response.status_code)

    hooks = get_session().event_hooks
    hooks["request"].append(limit)
    hooks["response"].append(note)
    try:
        yield answered
    finally:
        hooks["request"].remove(limit)
        hooks["response"].remove(note)
