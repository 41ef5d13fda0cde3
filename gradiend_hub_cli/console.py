"""What the commands write on: the two streams, and the story of a command that takes a while."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

__all__ = ["Interrupted", "Step", "Story", "output", "show_error"]

_WIDEST = 100


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a word on how to go on."""


def output() -> Console:
    """The console of standard output: no markup (texts hold `[MASK]`), no guessed colours, no lines beyond reading width.

    In a notebook, too, it is the stream that is written on.
    """
    console = Console(markup=False, highlight=False, emoji=False, force_jupyter=False)
    console.width = min(console.width, _WIDEST)
    return console


def show_error(label: str, message: str) -> None:
    """One message on standard error, broken only where it breaks itself, so that commands in it can be copied."""
    console = Console(stderr=True, markup=False, highlight=False, emoji=False, force_jupyter=False)
    console.print(Text.assemble((f"{label}: ", "bold red"), message), soft_wrap=True)


@dataclass
class Step:
    """A step of a story while it lasts.

    Attributes:
        outcome: what came of it; printed when it ends.
    """

    name: str
    status: Status
    outcome: str = ""

    def progress(self, text: str) -> None:
        """Show how far it is, on a terminal."""
        self.status.update(f"{self.name}: {text}")


class Story:
    """Steps with their outcomes and seconds, one line each; the same lines on a terminal and in a file.

    Attributes:
        console: where it is written.
        seconds: wall time by step.
    """

    def __init__(self) -> None:
        self.console = output()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Run one step; its line appears when it has succeeded."""
        start = time.perf_counter()
        with self.console.status(name) as status:
            step = Step(name, status)
            yield step
        self.seconds[name] = time.perf_counter() - start
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=10, style="bold", no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(width=7, justify="right", style="dim", no_wrap=True)
        line.add_row(name, step.outcome, f"{self.seconds[name]:.1f} s")
        self.console.print(line)
