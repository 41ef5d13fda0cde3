"""Gradients of the frozen base model: which parameters, which coordinates, and what is read from them."""

from __future__ import annotations

from gradiend_hub.scope import Scope, select_parameters

from .directional import directional_derivatives
from .factor_reader import FactorReader, read_factors, stacks
from .factors import Outer
from .faults import SkippedRows
from .fisher import diagonal_fisher
from .importance import MEASURES, prune
from .kronecker import Curvature, KroneckerFactors, kronecker_factors
from .memory import Estimate, Workload, estimate, memory_advised
from .pairs import GradientReader, read_pair
from .rowwise import Entries, Tangent
from .store import STORE_DTYPES, GradientStore, StoreKey
from .stream import PairRows, PairStream, StoredPairs, neutral_source

__all__ = [
    "MEASURES",
    "STORE_DTYPES",
    "Curvature",
    "Entries",
    "Estimate",
    "FactorReader",
    "GradientReader",
    "GradientStore",
    "KroneckerFactors",
    "Outer",
    "PairRows",
    "PairStream",
    "Scope",
    "SkippedRows",
    "StoreKey",
    "StoredPairs",
    "Tangent",
    "Workload",
    "diagonal_fisher",
    "directional_derivatives",
    "estimate",
    "kronecker_factors",
    "memory_advised",
    "neutral_source",
    "prune",
    "read_factors",
    "read_pair",
    "select_parameters",
    "stacks",
]
