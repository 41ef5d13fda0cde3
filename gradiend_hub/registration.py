"""The import hook that registers the PEFT method when PEFT is imported, by whomever.

PEFT has no entry point for methods of other packages, so without the hook `import gradiend_hub` would have to import PEFT:
5 CPU seconds (`time python -c "import peft"`), which `gradiend-hub info` and `--help` have no use for.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def import_after(library: str, module: str) -> None:
    """Import a module as soon as a library has been imported, by anybody; at once, if it has been already."""
    if library in sys.modules:
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _Hook(library, module))


class _Hook(MetaPathFinder):
    """Finds the library where the other finders do; its loader imports the module in the end."""

    def __init__(self, library: str, module: str) -> None:
        self.library = library
        self.module = module

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.library:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._extend(spec.loader)
                return spec
        return None

    def _extend(self, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(library: ModuleType) -> None:
            load(library)
            importlib.import_module(self.module)

        loader.exec_module = exec_module
