"""Common parts of all commands: options, one way to give a result, one way to fail."""

from __future__ import annotations

import errno
import functools
import gc
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import version
from pkgutil import resolve_name
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from .console import Story, show_error, write_json

EXIT_CODES = """\
Exit status: 0, all went well; 1, an error, or a check that failed; 2, a mistake in the command itself; 130, interrupted."""

Result = dict[str, Any]
"""Everything that a command found or made, for `--json`."""

_LIBRARIES = ("torch", "transformers", "peft")

_ADVICE = {
    errno.ENOSPC: "The disk is full: free some space, or name a folder on another disk.",
    errno.EDQUOT: "Your quota on that disk is used up: free some space, or name a folder on another disk.",
    errno.EACCES: "You have no permission there: name another place.",
    errno.EPERM: "You have no permission there: name another place.",
    errno.EROFS: "That disk can only be read: name another place.",
    errno.ENOTDIR: "There is a file where a folder is expected: name another place.",
    errno.EISDIR: "There is a folder where a file is expected: name another place.",
    errno.EFBIG: "No larger file may be written there: name another place.",
    errno.EEXIST: "There is something of that name already: name another place.",
}


class _Plain:
    """Shows switches in the help without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Commands(_Plain, TyperGroup):
    """A group of commands."""


class _Command(_Plain, TyperCommand):
    """A command."""


Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and nothing on the way.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


Declared = Callable[..., None]


def command(app: typer.Typer, work: str, *, story: bool = False) -> Callable[[Declared], Declared]:
    """Make a command of `app` of a function that declares its options and its help; those of all commands are added.

    A parameter that is a dataclass stands for its fields, each of which is an option.

    Args:
        work: the function that does the work, `MODULE:NAME` in this package. Its module is imported when the command runs,
            since it needs torch. It takes the declared parameters and a `story` to tell, and returns what `--json` prints;
            `"exit_code"` in that is the exit status.
        story: the command takes a while, and the import is the first of the steps that it tells.
    """

    def register(function: Declared) -> Declared:
        signature = inspect.signature(function, eval_str=True)
        common = [("ctx", typer.Context), ("as_json", Json), ("quiet", Quiet), ("debug", Debug)]
        kind = inspect.Parameter.KEYWORD_ONLY
        grouped: dict[str, Any] = {
            name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
        }
        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            if name in grouped:
                parameters += _options(grouped[name])
            else:
                parameters.append(parameter.replace(kind=kind))
        for name, annotation in common:
            default = inspect.Parameter.empty if name == "ctx" else False
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

        @functools.wraps(function)
        def run(*, ctx: typer.Context, as_json: bool, quiet: bool, debug: bool, **arguments: Any) -> None:
            told = Story(as_json=as_json, quiet=quiet)
            for name, options in grouped.items():
                arguments[name] = options(**{field.name: arguments.pop(field.name) for field in fields(options)})

            def imported_and_done() -> Result:
                with told.step("Import", told=story) as step, _uncollected():
                    do: Callable[..., Result] = resolve_name(f"{__package__}.{work}")
                    step.outcome = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
                return do(story=told, **arguments)

            _run(imported_and_done, told, debug or bool(ctx.find_root().params.get("debug")))

        run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
        run.work = work  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(function.__name__.rstrip("_").replace("_", "-"), cls=_Command)(run)  # `push_` is `data push`
        return function

    return register


def _options(kind: Any) -> Iterator[inspect.Parameter]:
    """Yield a parameter for each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


def _run(work: Callable[[], Result], story: Story, debug: bool) -> None:
    """Run a command; end with its result, or with one message and an exit status."""
    try:
        with _warnings_told(story):
            result = work()
        code = result.pop("exit_code", 0)
        if story.as_json:
            write_json(result)
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise
    except KeyboardInterrupt as interrupt:
        _fail(story, "Interrupted", "Interrupted", str(interrupt) or "Nothing was written.", 130)
    except Exception as error:
        if isinstance(error, EOFError) and debug:  # which click would take for the end of the input
            raise RuntimeError("end of file") from error
        if debug:
            raise
        _fail(story, "Error", type(error).__name__, _message(error), 1)
    else:
        if code:
            raise typer.Exit(code)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, no garbage is looked for; what a new process has imported then is not looked through again, either.

    Looking takes a fifth of the imports' time, and finds 15 MB.
    """
    new, looked = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if new:
            gc.freeze()
        if looked:
            gc.enable()


@contextmanager
def _warnings_told(story: Story) -> Iterator[None]:
    """Inside, what the library warns of is a line for people; what others say of their own future is none."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning, FutureWarning)):
            story.warn(str(message))

    handler = _Told(logging.WARNING)
    handler.story = story
    logger = logging.getLogger("gradiend_hub")
    ours = not logger.hasHandlers()
    if ours:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        if ours:
            logger.removeHandler(handler)


class _Told(logging.Handler):
    """Tells a story what is logged."""

    story: Story

    def emit(self, record: logging.LogRecord) -> None:
        self.story.warn(record.getMessage())


def _fail(story: Story, label: str, kind: str, message: str, code: int) -> None:
    show_error(label, message)
    if story.as_json:
        write_json({"error": {"type": kind, "message": message}})
    raise typer.Exit(code) from None


def _message(error: Exception) -> str:
    """Return the message for an error. Those of gradiend_hub say all that is needed; others get a next step."""
    errors = sys.modules.get("gradiend_hub.errors")
    if errors is not None and isinstance(error, errors.GradiendError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _ADVICE:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}. {_ADVICE[error.errno]}"
    if "No space left on device" in str(error):  # of safetensors, which has an error of its own
        return f"No space left on device. {_ADVICE[errno.ENOSPC]}"
    if isinstance(error, MemoryError):
        return "Memory ran out. Use a smaller batch, fewer layers, or a smaller base model."
    said = str(error).strip().rstrip(".")
    return f"{type(error).__name__}{': ' if said else ''}{said}. Add --debug to see where it happened."
