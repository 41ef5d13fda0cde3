"""Gradients of the frozen base model: which parameters, which coordinates, and what is read from them."""

from __future__ import annotations

from .directional import directional_derivatives
from .importance import prune
from .pairs import GradientReader, read_pair
from .scope import Scope, select_parameters

__all__ = ["GradientReader", "Scope", "directional_derivatives", "prune", "read_pair", "select_parameters"]
