"""All that is rendered from a report for people: cards, figures and the page."""

from __future__ import annotations

from .card import render_card, render_rewritten_card, write_card, write_rewritten_card
from .render import render_artifact

__all__ = ["render_artifact", "render_card", "render_rewritten_card", "write_card", "write_rewritten_card"]
