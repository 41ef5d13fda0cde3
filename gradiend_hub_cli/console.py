"""The two streams that commands write on: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_WIDEST = 100


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a word on what is kept and how to go on."""


@contextmanager
def on_interrupt(message: str) -> Iterator[None]:
    """Inside, Ctrl-C ends with a message of one's own."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted(message) from interrupt


class _Console(Console):
    """A console on which texts are shown and nothing else: what would act on a terminal or hide is spelled out."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        from gradiend_hub.printable import spelled_out

        for text, style, control in super().render(renderable, options):
            yield Segment(text, style, control) if control else Segment(spelled_out(text, lines=True), style)


def output(*, stderr: bool = False) -> Console:
    """Make a console without markup (texts hold `[MASK]`), guessed colours, or lines beyond reading width.

    In a notebook, too, it is the stream that is written on.
    """
    console = _Console(stderr=stderr, markup=False, highlight=False, emoji=False, force_jupyter=False)
    console.width = min(console.width, _WIDEST)
    return console


def show_error(label: str, message: str, console: Console | None = None) -> None:
    """Print one message on standard error, broken only where it breaks itself, so that commands in it can be copied."""
    style = "bold yellow" if label == "Warning" else "bold red"
    (console or output(stderr=True)).print(Text.assemble((f"{label}: ", style), message), soft_wrap=True)


def write_json(content: dict[str, Any]) -> None:
    """Print one JSON object on standard output; a number that JSON cannot write is null."""
    from gradiend_hub.printable import escaped_json

    print(escaped_json(json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)))  # noqa: T201


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def command_lines(words: Sequence[str], width: int) -> str:
    """Return a command as a shell reads it, in lines that fit if its words do."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1] and len(lines[-1]) + len(word) + 5 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "  " + " \\\n  ".join(lines)


def program() -> list[str]:
    """Return the words that start this program in a shell in this folder: its name, if the shell finds it, or its path."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name in ("gradiend_hub", "gradiend_hub_cli"):
        return [_shorter(Path(sys.executable)), "-m", started.parent.name]
    found = shutil.which("gradiend-hub")
    if started.name != "gradiend-hub" or (found and Path(found).samefile(started)):
        return ["gradiend-hub"]
    return [_shorter(started)]


def _shorter(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


@dataclass
class Step:
    """A step of a story while it lasts.

    Attributes:
        outcome: what came of it; printed when it ends.
    """

    name: str
    bars: Progress
    task: TaskID
    outcome: str = ""
    _shown: str = ""

    def count(self, what: str, done: int, total: int | None) -> None:
        """Show on a terminal how much of a phase is done, and of how much."""
        if total == 1:  # nothing to count
            total = None
        description = f"{self.name}: {what}"
        of = f"{done:,} of {total:,}" if total else f"{done:,}" if done else ""
        if description != self._shown:  # another phase, with a time of its own
            self.bars.reset(self.task, total=total, description=description, of=of)
            self._shown = description
        self.bars.update(self.task, completed=done, total=total, of=of)


class Story:
    """Told by a command: its steps with their outcomes and seconds, one line each, and its result.

    Steps and result go to standard output; the bar of the step under way to standard error, if that is a terminal. A
    program that asks for JSON gets the result alone there, and the steps on standard error.

    Args:
        as_json: the result is for a program.
        quiet: tell no steps.

    Attributes:
        seconds: wall time by step.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.console = output(stderr=as_json)
        self.seconds: dict[str, float] = {}
        self._step: Step | None = None
        self._warned: set[str] = set()

    @contextmanager
    def step(self, name: str, *, told: bool = True) -> Iterator[Step]:
        """Run one step; its line appears when it has succeeded.

        Args:
            told: print that line.
        """
        start = time.perf_counter()
        terminal = output(stderr=True)
        bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[of]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=terminal,
            transient=True,
            redirect_stdout=False,
            refresh_per_second=5,
            disable=self.quiet or not terminal.is_terminal,
        )
        with bars:
            step = self._step = Step(name, bars, bars.add_task(f"{name} …", total=None, of=""))
            try:
                yield step
            finally:
                self._step = None
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if not told:
            return
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(width=10, style="bold", no_wrap=True)
        line.add_column(ratio=1, overflow="fold")
        line.add_column(width=7, justify="right", style="dim", no_wrap=True)
        line.add_row(name, step.outcome, f"{seconds:.1f} s")
        self.say(line)

    def count(self, what: str, done: int, total: int | None) -> None:
        """Show the count of a phase at the step under way, if there is one."""
        if self._step is not None:
            self._step.count(what, done, total)

    def warn(self, message: str) -> None:
        """Print a warning on standard error, above the bar if there is one; the same one only once."""
        if message not in self._warned:
            self._warned.add(message)
            show_error("Warning", message, self._step.bars.console if self._step else None)

    def say(self, *lines: RenderableType, **options: Any) -> None:
        """Print what belongs to the story."""
        if not self.quiet:
            self._print(*lines, **options)

    def show(self, *lines: RenderableType, **options: Any) -> None:
        """Print the result for people. A program that asked for JSON gets what the command returns instead."""
        if not self.as_json:
            self._print(*lines, **options)

    def _print(self, *lines: RenderableType, **options: Any) -> None:
        bars = self._step.bars if self._step else None
        if bars is not None and not bars.disable:  # they are on the other stream, and would be in the way
            bars.stop()
        self.console.print(*lines, **options)
        if bars is not None and not bars.disable:
            bars.start()
