"""Comparing directions: what they share, what one does to another, and how they combine."""

from __future__ import annotations

from .clusters import Clusters
from .combining import Combination, ConflictReport
from .direction_set import DirectionSet
from .effects import Agreement, agreement
from .encodings import CrossEncodings
from .tables import Cell, Matrix, Profile, mean_and_spread

__all__ = [
    "Agreement",
    "Cell",
    "Clusters",
    "Combination",
    "ConflictReport",
    "CrossEncodings",
    "DirectionSet",
    "Matrix",
    "Profile",
    "agreement",
    "mean_and_spread",
]
