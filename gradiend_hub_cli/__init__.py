"""The command line `gradiend-hub`.

A package beside `gradiend_hub`, because importing that one registers a PEFT method and so loads PEFT and torch, which
takes seconds. Here neither is loaded; a command imports the module that does its work when it runs.
"""

from __future__ import annotations

import io
import sys

from . import learning, looking, sharing  # noqa: F401  (their commands join the groups)
from .groups import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line that this process was started with."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old terminal gets a "?" and no traceback
    app(prog_name="gradiend-hub")
