"""Objectives by name, and which one fits a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from torch import nn

from gradiend_hub.errors import BaseModelError, ConfigError

from .base import Objective
from .causal_lm import CausalLMObjective
from .checks import behaviour_of
from .cloze import ClozeObjective
from .image_labels import ImageClassificationObjective, ImageConceptObjective
from .masked_lm import MaskedLMObjective
from .preference import PreferenceObjective
from .seq2seq import Seq2SeqObjective
from .text_labels import TextClassificationObjective, TextConceptObjective
from .token_labels import TokenClassificationObjective

OBJECTIVES: dict[str, type[Objective]] = {}
"""Known objectives by name."""

T = TypeVar("T", bound=type[Objective])


def register_objective(objective: T) -> T:
    """Make an objective known by its name; a class decorator.

    Raises:
        ConfigError: Another class has that name already.
    """
    known = OBJECTIVES.setdefault(objective.name, objective)
    if (known.__module__, known.__qualname__) != (objective.__module__, objective.__qualname__):
        raise ConfigError(f"There is an objective {objective.name!r} already: {known.__module__}.{known.__qualname__}.")
    OBJECTIVES[objective.name] = objective
    return objective


for _objective in (  # of one head, the first one is what data of unknown columns is for
    MaskedLMObjective,
    CausalLMObjective,
    ClozeObjective,
    PreferenceObjective,
    Seq2SeqObjective,
    TextClassificationObjective,
    TextConceptObjective,
    TokenClassificationObjective,
    ImageClassificationObjective,
    ImageConceptObjective,
):
    register_objective(_objective)


def objective_class(name: str) -> type[Objective]:
    """Return an objective by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in OBJECTIVES:
        raise ConfigError(
            f"Unknown objective {name!r}; expected one of {sorted(OBJECTIVES)}. One of your own has to be imported, so that "
            "`register_objective` makes it known."
        )
    return OBJECTIVES[name]


def fitting_objectives(architecture: str, config: Any) -> list[str]:
    """Return the names of objectives that a model class of that name has the head for."""
    return [name for name, objective in OBJECTIVES.items() if objective.fits(architecture, config)]


def objective_name(model: nn.Module, configured: str | None = None, columns: Collection[str] = ()) -> str:
    """Return the configured objective, or the one that the model's head stands for.

    Args:
        model: The base model.
        configured: Name of the objective, if it is chosen already.
        columns: Columns of the data, as far as they are known. Of several objectives of one head, the latest registered one
            that has all its columns there is taken, and the first one if there is none.

    Raises:
        ConfigError: There is no objective of the configured name.
        BaseModelError: No objective fits the model.
    """
    if configured is not None:
        return objective_class(configured).name
    config = getattr(model, "config", None)
    for kind in type(model).__mro__:  # a class of one's own may derive from one of transformers
        if names := fitting_objectives(kind.__name__, config):
            break
    else:
        raise BaseModelError(
            f"{type(model).__name__} has no head that an objective is known for ({', '.join(sorted(OBJECTIVES))}). Load the "
            "base with the head of its task, e.g. AutoModelForMaskedLM, AutoModelForCausalLM, "
            "AutoModelForSequenceClassification, AutoModelForTokenClassification or AutoModelForImageClassification."
        )
    if {MaskedLMObjective.name, CausalLMObjective.name} <= {*names}:  # XLM's one head serves both, as it was trained
        behaviour = behaviour_of(model)
        looks_ahead = behaviour is None or behaviour.looks_ahead
        names.remove(CausalLMObjective.name if looks_ahead else MaskedLMObjective.name)
    return next((name for name in reversed(names) if OBJECTIVES[name].reads_columns(columns)), names[0])


def make_objective(
    model: nn.Module,
    processor: Any,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
) -> Objective:
    """Make the objective of a model with what prepares its inputs.

    Args:
        model: The base model.
        processor: Its tokenizer or image processor.
        name: Name of the objective; by default the one that the model's head stands for.
        options: Its options, as in `GradiendConfig.objective_options`.
        max_length: Longest input in tokens; by default what tokenizer and model can read.

    Raises:
        ConfigError: There is no objective of that name, or an option that it does not have.
        BaseModelError: The model has no head for it, or reads its input in another way.
    """
    objective = objective_class(objective_name(model, name)).of_model(model, processor, max_length=max_length)
    objective.configure(**(options or {}))
    return objective
