"""Imports at the latest moment: of a package's names, beside another library, and of what only an extra brings."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .errors import MissingLibraryError

__all__ = ["attributes", "import_after", "require"]

EXTRAS = {
    "ahocorasick_rs": "data",
    "matplotlib": "plots",
    "PIL": "plots",
    "spacy": "spacy",
}
"""Extra of pyproject.toml that brings a library."""


def attributes(
    package: str, modules: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        modules: module of the package → public names that it has.
    """
    places = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(require(f"{package}.{places[name]}", f"{package}.{name}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names


def import_after(library: str, module: str) -> None:
    """Import a module as soon as a library has been imported, by anybody; at once, if it has been already."""
    if library in sys.modules:
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _Finder(library, module))


class _Finder(MetaPathFinder):
    """Finds the library where the other finders do; its loader imports the module in the end."""

    def __init__(self, library: str, module: str) -> None:
        self.library = library
        self.module = module

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.library:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _load(self, load: Callable[[ModuleType], None], library: ModuleType) -> None:
        load(library)
        importlib.import_module(self.module)


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
