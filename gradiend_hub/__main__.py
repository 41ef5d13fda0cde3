"""The command line, as `python -m gradiend_hub`."""

from __future__ import annotations

import runpy

# by its name alone: this package imports nothing of its command line
runpy.run_module("gradiend_hub_cli", run_name="__main__", alter_sys=True)
