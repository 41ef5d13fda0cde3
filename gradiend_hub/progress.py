"""What a user sees of long phases: bars with an expected end, after a second, where the libraries' own are shown."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers.utils.logging import is_progress_bar_enabled

__all__ = ["counted", "progress", "shown", "tell", "tick"]

T = TypeVar("T")

_shown: ContextVar[bool] = ContextVar("shown", default=True)
_bar: ContextVar[tqdm | None] = ContextVar("bar", default=None)


@contextmanager
def shown(show: bool) -> Iterator[None]:
    """Within the block, bars and what is told are shown or not (`TrainingArguments.disable_tqdm`)."""
    token = _shown.set(show and _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar if they take longer than a second."""
    yield from tqdm(items, desc=what, total=total, leave=False, delay=1.0, disable=not _enabled())


@contextmanager
def counted(what: str) -> Iterator[None]:
    """Within the block, a bar that counts each `tick()`; where it ends is not known."""
    with tqdm(desc=what, leave=False, delay=1.0, disable=not _enabled()) as bar:
        token = _bar.set(bar)
        try:
            yield
        finally:
            _bar.reset(token)


def tick() -> None:
    """One more, for the bar of the innermost `counted` block, if there is one."""
    if (bar := _bar.get()) is not None:
        bar.update()


def tell(logger: logging.Logger, message: str, *values: object) -> None:
    """Log what a user wants to see without asking. Where nobody has set up logging, it goes to stderr, as bars do."""
    logger.info(message, *values)
    if _shown.get() and not (logger.isEnabledFor(logging.INFO) and logger.hasHandlers()):
        tqdm.write(message % values, file=sys.stderr)


def _enabled() -> bool:
    return _shown.get() and bool(is_progress_bar_enabled())
