"""Bounded retries with exponential backoff, for what the Hub's client does not retry by itself."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import Final, TypeVar

from huggingface_hub import errors
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from .patience import SilentHubError

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 6
"""How often an action is tried before its error is raised."""

FIRST_WAIT_SECONDS: Final = 1.0
"""Wait after the first failure, ± 50 % jitter; it doubles with each further one."""

LONGEST_WAIT_SECONDS: Final = 300.0
"""No wait is longer, whatever the Hub asks for. A rate limit of the Hub counts requests over 5 minutes."""

# the base class of the HTTP library's errors: httpx below huggingface_hub 2, then httpx2; HfHubHTTPError is one, too
_HTTPError: Final[type[Exception]] = HfHubHTTPError.__bases__[0]
# that a revision could not be resolved: a class of its own since huggingface_hub 2.2
_UnresolvedError: Final[type[Exception]] = getattr(errors, "RevisionResolutionError", LocalEntryNotFoundError)

FAILURES: Final = (
    _HTTPError,
    ConnectionError,  # of hf_xet, whatever it failed from
    RuntimeError,  # of an LFS upload, whatever it failed from
    _UnresolvedError,
    json.JSONDecodeError,  # an overloaded Hub answers with an HTML page where the client expects JSON
)
"""What a request to the Hub raises when it fails; `is_transient` tells which of them may pass."""

_OF_THE_DISK: Final = frozenset({errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS})
"""Errors of this machine's file system that hf_xet reports by their number alone."""

_PASSING_STATUS: Final = frozenset({408, 409, 412, 429})

_TAKEN_STATUS: Final = frozenset({409, 412})
"""Somebody else is writing, or has written, to the repository: not a failure, but their success."""

TURNS: Final = 40
"""How often an action gives way to others before its error is raised."""

LONGEST_TURN_SECONDS: Final = 8.0

_T = TypeVar("_T")
_jitter = random.Random()  # its own state: a retry must not change what a seeded training draws


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later.

    409 is the Hub's commit lock and 412 a branch that moved meanwhile. Being offline on purpose does not pass.
    """
    if disk_error(error) is not None or is_silent(error):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUS or error.response.status_code >= 500
    if isinstance(error, _UnresolvedError):
        return isinstance(error.__cause__, Exception) and is_transient(error.__cause__)
    return isinstance(error, FAILURES) and not isinstance(error, OfflineModeIsEnabled)


def is_silent(error: BaseException | None) -> bool:
    """Return whether the Hub was waited for and not heard of, be it behind an error of the client."""
    return isinstance(error, SilentHubError) or (error is not None and is_silent(error.__cause__))


def disk_error(error: BaseException) -> str | None:
    """Name what this machine's file system refused, e.g. "No space left on device"; `None` for an error of another kind."""
    if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)) and error.errno:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    number = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, (RuntimeError, OSError)) else None
    return os.strerror(int(number[1])) if number and int(number[1]) in _OF_THE_DISK else None


def wait_seconds(error: Exception, failures: int) -> float:
    """Return the wait after the `failures`-th failure in a row: backoff with jitter, or as long as the Hub asks."""
    backoff = FIRST_WAIT_SECONDS * 2.0 ** (failures - 1) * _jitter.uniform(0.5, 1.5)
    return min(max(backoff, _requested_wait(error)), LONGEST_WAIT_SECONDS)


def _requested_wait(error: Exception) -> float:
    """Seconds that the Hub asks to wait, 0 if it does not ask."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    retry_after = error.response.headers.get("Retry-After", "")
    return float(retry_after) if retry_after.isdecimal() else 0.0


def with_retries(action: Callable[[], _T]) -> _T:
    """Result of `action`, which is called again after a transient failure.

    The action must be safe to repeat, also when it succeeded and only its answer was lost.

    Raises:
        Exception: what the action raised, if it is not transient or the attempts are used up.
    """
    failures = turns = 0
    while True:
        try:
            return action()
        except FAILURES as error:
            taken = isinstance(error, HfHubHTTPError) and error.response.status_code in _TAKEN_STATUS
            failures, turns = failures + (not taken), turns + taken
            if failures == ATTEMPTS or turns == TURNS or not is_transient(error):
                raise
            seconds = wait_seconds(error, turns if taken else failures)
            seconds = min(seconds, LONGEST_TURN_SECONDS * _jitter.random()) if taken and turns > 1 else seconds
            logger.warning(f"Hub request failed ({summary(error)}); trying again in {seconds:.1f} s.")
            time.sleep(seconds)


def summary(error: BaseException) -> str:
    """One line on an error: its class, the first line of its message, and the error that it was raised from.

    Of an HTTP error only the status and the Hub's own words: the client's message has the URL, maybe a signed one.
    """
    if isinstance(error, HfHubHTTPError):
        return f"HTTP {error.response.status_code}, {error.server_message or error.response.reason_phrase}".rstrip(".")
    lines = str(error).strip().splitlines()
    text = (lines[0] if lines else "no message").rstrip(".")
    # the message of a failed LFS upload is only which file it was
    cause = f" ({summary(error.__cause__)})" if isinstance(error, RuntimeError) and error.__cause__ else ""
    return f"{type(error).__name__}: {text}{cause}"


def reason(error: Exception) -> str:
    """Say why a push failed, in the user's terms."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"the Hub needs a valid token, log in with `hf auth login` ({summary(error)})"
    if status == 403:
        return f"the token may not write there ({summary(error)})"
    if (refused := disk_error(error)) is not None:
        return f"a file cannot be read or written here ({refused})"
    if isinstance(error, LookupError):
        return f"the Hub has sent an answer without what was asked for ({summary(error)})"
    if isinstance(error, ValueError) and status is None:
        return " ".join(str(error).split())
    return summary(error)
