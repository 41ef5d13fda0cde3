"""`python -m gradiend_hub_cli`, the same as `gradiend-hub`."""

from __future__ import annotations

from . import main

main()
