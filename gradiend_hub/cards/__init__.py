"""Cards, figures and the page: a report rendered for people."""

from __future__ import annotations

from .card import render_card, write_card
from .render import render_artifact
from .rewritten import render_rewritten_card, write_rewritten_card

__all__ = ["render_artifact", "render_card", "render_rewritten_card", "write_card", "write_rewritten_card"]
