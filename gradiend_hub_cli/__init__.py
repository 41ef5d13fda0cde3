"""The command line `gradiend-hub`.

A package beside `gradiend_hub`, because importing that one registers a PEFT method and so loads PEFT and torch, which
takes seconds. Here `app` and `console` load neither; a command imports the module that does its work when it runs.
"""

from __future__ import annotations

from .app import main
from .groups import app

__all__ = ["app", "main"]
