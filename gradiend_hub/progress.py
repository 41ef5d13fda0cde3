"""Bars for long phases, shown after a second where the bars of transformers are shown, or told to a listener instead."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, closing, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers.utils.logging import is_progress_bar_enabled

from gradiend_hub.printable import printable

T = TypeVar("T")
Listener = Callable[[str, int, "int | None"], None]
"""Gets the name of a phase, how much of it is done, and how much there is in all, if that is known."""

_shown: ContextVar[bool] = ContextVar("shown", default=True)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_phase: ContextVar[_Phase | None] = ContextVar("phase", default=None)


class _Phase:
    """A phase under way: a bar, or calls of the listener."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._listener = _listener.get()
        hidden = self._listener is not None or not (_shown.get() and is_progress_bar_enabled())
        self._bar = tqdm(desc=printable(what), total=total, leave=False, delay=1.0, disable=hidden)
        self.advance(0)

    def advance(self, count: int) -> None:
        self._done += count
        self._bar.update(count)
        if self._listener is not None:
            self._listener(self._what, self._done, self._total)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def _within(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def shown(show: bool) -> AbstractContextManager[None]:
    """Within the block, bars and what is told are shown or not (`TrainingArguments.disable_tqdm`)."""
    return _within(_shown, show and _shown.get())


def listening(listener: Listener) -> AbstractContextManager[None]:
    """Within the block, `listener` gets the counts of all phases, and no bars are drawn."""
    return _within(_listener, listener)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, with a bar if they take longer than a second.

    Args:
        total: number of items; default: their length, if they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with closing(_Phase(what, total)) as phase:
        for item in items:
            yield item
            phase.advance(1)


@contextmanager
def counted(what: str, total: int | None = None) -> Iterator[None]:
    """Within the block, a bar that counts every `tick()`.

    Args:
        total: number of ticks to expect, if it is known.
    """
    with closing(_Phase(what, total)) as phase, _within(_phase, phase):
        yield


def tick(count: int = 1) -> None:
    """Count for the bar of the innermost `counted` block, if there is one."""
    if (phase := _phase.get()) is not None:
        phase.advance(count)


def tell(logger: logging.Logger, message: str, *values: object) -> None:
    """Log what a user wants to see without asking. Where nobody has set up logging, it goes to stderr, as bars do."""
    logger.info(message, *values)
    if _shown.get() and not (logger.isEnabledFor(logging.INFO) and logger.hasHandlers()):
        tqdm.write(printable(message % values, 10_000, lines=True), file=sys.stderr)
