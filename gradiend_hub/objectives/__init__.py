"""Objectives: records become inputs with labelled positions, and outputs are read there."""

from __future__ import annotations

from .base import Objective
from .batching import batched
from .causal_lm import CausalLMObjective
from .cloze import ClozeObjective
from .examples import examples_of, neutral_examples, other_examples, require_readable
from .image_labels import ImageClassificationObjective, ImageConceptObjective
from .labels import Labelled
from .logits import evaluating, position_logits
from .masked_lm import MaskedLMObjective
from .preference import PreferenceObjective, own_replies
from .prompts import Prompt
from .registry import (
    OBJECTIVES,
    fitting_objectives,
    make_objective,
    objective_class,
    objective_name,
    register_objective,
)
from .samples import IGNORED, Answer, Batch, Example, PairBatch, QualityItem, Reading, Sample, output_nll
from .seq2seq import Seq2SeqObjective
from .slots import TextObjective
from .text_labels import TextClassificationObjective, TextConceptObjective
from .token_labels import TokenClassificationObjective, Word

__all__ = [
    "IGNORED",
    "OBJECTIVES",
    "Answer",
    "Batch",
    "CausalLMObjective",
    "ClozeObjective",
    "Example",
    "ImageClassificationObjective",
    "ImageConceptObjective",
    "Labelled",
    "MaskedLMObjective",
    "Objective",
    "PairBatch",
    "PreferenceObjective",
    "Prompt",
    "QualityItem",
    "Reading",
    "Sample",
    "Seq2SeqObjective",
    "TextClassificationObjective",
    "TextConceptObjective",
    "TextObjective",
    "TokenClassificationObjective",
    "Word",
    "batched",
    "evaluating",
    "examples_of",
    "fitting_objectives",
    "make_objective",
    "neutral_examples",
    "objective_class",
    "objective_name",
    "other_examples",
    "output_nll",
    "own_replies",
    "position_logits",
    "register_objective",
    "require_readable",
]
