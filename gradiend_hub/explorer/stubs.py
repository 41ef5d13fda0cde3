"""gradio without the stub files (.pyi) that it would write."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from gradiend_hub.lazy import require

__all__ = ["require_gradio"]

_PART, _WRITES = "gradio.component_meta", "create_or_modify_pyi"


def require_gradio() -> Any:
    """Import gradio.

    Whenever it is imported, it parses all of its components' sources, to write stubs for editors beside them, which are
    there already. That takes more than half of its import on Python 3.11, and is left out here. Who defines a component
    afterwards gets its stub.

    Raises:
        MissingLibraryError: It is not installed.
    """
    without = _WithoutStubs()
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, without)
    try:
        return require("gradio", "The explorer")
    finally:
        without.end()


class _WithoutStubs(MetaPathFinder):
    """Finds the part of gradio that writes stubs where other finders do, and keeps it from writing."""

    _part: Any = None
    _write: Any = None

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PART:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader: Any = spec and spec.loader
        if loader is not None:
            load = loader.exec_module

            def exec_module(part: ModuleType) -> None:
                load(part)
                self._part, self._write = part, getattr(part, _WRITES, None)
                setattr(part, _WRITES, lambda *_: None)

            loader.exec_module = exec_module
        return spec

    def end(self) -> None:
        """Leave everything as it was."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._write is not None:
            setattr(self._part, _WRITES, self._write)
