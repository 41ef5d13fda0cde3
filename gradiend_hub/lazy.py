"""Imports at the latest moment: of a package's names, and of what only an extra brings."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import MissingLibraryError

EXTRAS = {
    "ahocorasick_rs": "data",
    "gguf": "gguf",
    "gradio": "explorer",
    "lm_eval": "lm-eval",
    "matplotlib": "plots",
    "PIL": "plots",
    "spacy": "spacy",
}
"""Extra of pyproject.toml that brings a library."""


def attach(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`, which import a name when it is used, as those of huggingface_hub.

    Args:
        package: its `__name__`.
        file: its `__file__`. The imports there that type checkers follow (`if TYPE_CHECKING:`) say where each name is.
    """
    parsed = ast.parse(Path(file).read_text(encoding="utf-8"))
    blocks = [node.body for node in parsed.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    places = {name.name: node.module for node in imports for name in node.names}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(require(f"{package}.{places[name]}", f"{package}.{name}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names


def require(module: str, purpose: str) -> ModuleType:
    """Import a library that an extra brings, or a module that needs such.

    Args:
        module: its name, maybe with dots.
        purpose: what needs it, in words that begin the message, e.g. "Drawing figures".

    Raises:
        MissingLibraryError: the library is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if isinstance(error, MissingLibraryError) or library not in EXTRAS:
            raise
        raise MissingLibraryError(
            f"{purpose} needs {library}, which is not installed: pip install 'gradiend_hub[{EXTRAS[library]}]'"
        ) from error
