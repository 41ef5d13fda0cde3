"""A limit to how long a silent Hub is waited for: its client waits for ever where it was not told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

__all__ = ["bounded"]

CONNECT_SECONDS: Final = 10.0
SILENT_SECONDS = max(30.0, float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
"""How long the Hub may send nothing while it is waited for; HF_HUB_DOWNLOAD_TIMEOUT makes it longer."""


@contextmanager
def bounded() -> Iterator[list[int]]:
    """Within the block, no request of this process to the Hub waits for ever; one that has a limit of its own keeps it.

    Yields:
        The status of each answer below 500, as they come.
    """
    answered: list[int] = []

    def limit(request: Any) -> None:
        given = request.extensions.get("timeout") or {}
        if given.get("read") is None:
            silent = {
                "read": SILENT_SECONDS,
                "write": SILENT_SECONDS,
                "pool": SILENT_SECONDS,
                "connect": CONNECT_SECONDS,
            }
            request.extensions = {**request.extensions, "timeout": silent}

    def note(response: Any) -> None:
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
