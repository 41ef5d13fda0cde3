"""The command line `gradiend-hub`. What does a command's work needs torch, and is imported when it runs."""

from __future__ import annotations

import io
import sys

from . import learning, looking, sharing  # noqa: F401  (their commands join the groups)
from .groups import app


def main() -> None:
    """Run the command line that this process was started with."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old terminal gets a "?" and no traceback
    app(prog_name="gradiend-hub")
