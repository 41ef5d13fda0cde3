"""A limit to how long a silent Hub is waited for: its client waits for ever where it was not told otherwise."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

CONNECT_SECONDS: Final = 10.0
SILENT_SECONDS = max(30.0, float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
"""How long the Hub may send nothing while it is waited for; HF_HUB_DOWNLOAD_TIMEOUT makes it longer."""

SLOWEST_BYTES_PER_SECOND: Final = 50_000
"""An upload that is slower than this, on top of the time for silence, is given up."""

TRIES: Final = 3
"""How often a request is sent before a silent Hub is given up."""

MOST_REPEATS: Final = 100
"""How often the same URL is asked, whatever it answers: the client repeats some refusals without end."""

_T = TypeVar("_T")
_hooking = threading.Lock()


class SilentHubError(ConnectionError):
    """The Hub was asked again and again, and has not answered. It is not asked once more."""


@contextmanager
def bounded() -> Iterator[list[int]]:
    """Within the block, no request of this process waits longer for the Hub; a shorter limit of its own stays.

    The client repeats a request that was not answered, in loops within loops; here that ends after `TRIES`.

    Yields:
        The status of each answer below 500, as they come.

    Raises:
        SilentHubError: a thread sent a request `TRIES` times and got no answer, or `MOST_REPEATS` times.
    """
    answered: list[int] = []
    unanswered: Counter[tuple[int, str, str]] = Counter()
    repeats: Counter[tuple[int, str, str]] = Counter()

    def limit(request: Any) -> None:
        place = _place(request)
        unanswered[place] += 1
        repeats[threading.get_ident(), request.method, str(request.url)] += 1
        if unanswered[place] > TRIES:
            raise SilentHubError(f"{place[2]} was asked {TRIES} times and has not answered")
        if repeats[threading.get_ident(), request.method, str(request.url)] > MOST_REPEATS:
            raise SilentHubError(f"{place[2]} was asked {MOST_REPEATS} times and was always busy")
        given = request.extensions.get("timeout") or {}
        limits = {"connect": CONNECT_SECONDS, **dict.fromkeys(("read", "write", "pool"), SILENT_SECONDS)}
        shorter = {name: min(most, given.get(name) or most) for name, most in limits.items()}
        request.extensions = {**request.extensions, "timeout": shorter}

    def note(response: Any) -> None:
        unanswered.pop(_place(response.request), None)
        if response.status_code < 500:
            answered.append(response.status_code)

    hooks = get_session().event_hooks
    with _hooking:  # new lists: another thread may be going through the old ones
        hooks["request"], hooks["response"] = [*hooks["request"], limit], [*hooks["response"], note]
    try:
        yield answered
    finally:
        with _hooking:
            hooks["request"] = [hook for hook in hooks["request"] if hook is not limit]
            hooks["response"] = [hook for hook in hooks["response"] if hook is not note]


def _place(request: Any) -> tuple[int, str, str]:
    """Identify what is asked for, how, and by which thread: others may ask for the same at the same time."""
    return threading.get_ident(), request.method, str(request.url.copy_with(query=None))


def in_time(transfer: Callable[[], _T], size: Callable[[], int], verb: str = "taken") -> _T:
    """Result of an upload or a download that is given up when it takes too long.

    hf_xet has a client of its own, which `bounded` does not reach and which waits for the end of a transfer for ever.

    Args:
        transfer: what is done, in a thread of its own.
        size: bytes to be transferred; asked for only if it takes longer than a silent Hub is waited for.
        verb: what the storage should have done with the bytes.

    Raises:
        SilentHubError: it took longer.
        BaseException: what the transfer raised.
    """
    result: Future[_T] = Future()

    def work() -> None:
        try:
            result.set_result(transfer())
        except BaseException as error:  # raised in the thread that waits
            result.set_exception(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    patience, count = (TRIES + 1) * SILENT_SECONDS, 0
    try:
        worker.join(patience)
        if worker.is_alive():
            count = size()
            worker.join(count / SLOWEST_BYTES_PER_SECOND)
    except BaseException:  # Ctrl-C
        _abort()
        raise
    if worker.is_alive():
        _abort()
        raise SilentHubError(
            f"the storage of the Hub has not {verb} {count:,} bytes within "
            f"{patience + count / SLOWEST_BYTES_PER_SECOND:.0f} s; HF_HUB_DOWNLOAD_TIMEOUT=SECONDS makes that longer"
        )
    return result.result()


def _abort() -> None:
    """End what hf_xet is at. An older client cannot: its thread waits on, and ends with the process."""
    with suppress(ImportError):
        from huggingface_hub.utils._xet import abort_xet_session

        abort_xet_session()  # type: ignore[no-untyped-call]


class PushApi(HfApi):
    """The Hub's client, whose uploads of large files end: with the files stored, or with an error."""

    def preupload_lfs_files(self, repo_id: str, additions: Iterable[CommitOperationAdd], **options: Any) -> None:
        additions = list(additions)
        upload = super().preupload_lfs_files
        size = sum(addition.upload_info.size for addition in additions)
        in_time(lambda: upload(repo_id, additions, **options), lambda: size)
