"""Damage sets, made of what a user gives: texts, prompts that the model answers, and continuations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradiend_hub.data import Row
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, Prompt, QualityItem, evaluating

from .damage import GENERATION, NEUTRAL, OWN
from .generation import GenerationProbe, beginnings

CHAT = "chat"
"""Name of the set of prompts that is measured for every model with a chat template, unless a user gives one of that name."""

REPLY_TOKENS = 32
"""Most tokens of a reply that are scored."""

SET_TOKENS = 2000
"""Tokens of a further set that are scored at least, if it has them."""

PROMPTS, NEW_TOKENS = 8, 24
"""Prompts of each kind that are continued, and the length of a continuation."""


def check_names(names: Sequence[str]) -> None:
    """Refuse names of damage sets that mean something else.

    Raises:
        ConfigError: a name is no text, empty, or taken.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip() or name in (NEUTRAL, OWN, GENERATION):
            raise ConfigError(
                f"damage_datasets: {name!r} cannot be the name of a damage set; give any text but {NEUTRAL!r}, {OWN!r} and "
                f"{GENERATION!r}, e.g. 'chat'."
            )


def damage_items(
    model: GradiendModel, objective: Objective, sets: Mapping[str, Sequence[Any]], *, seed: int = 0
) -> dict[str, list[QualityItem]]:
    """Return the samples of damage sets; a model with a chat template gets the set `CHAT`, if none is given.

    Prompts are answered by the base model, and an edit should leave its replies as likely as they are.

    Args:
        sets: by name, items as `Objective.read_damage` makes them.
        seed: decides which tokens of a masked model's texts are scored.

    Raises:
        DataError: a set has nothing that is scored.
    """
    check_names(list(sets))
    given = dict(sets)
    if CHAT not in given and (prompts := objective.chat_prompts()):
        given[CHAT] = prompts
    found, base = {}, model.get_base_model()
    for name, items in given.items():
        prompts = [item for item in items if isinstance(item, Prompt)]
        texts = [item for item in items if not isinstance(item, Prompt)]
        found[name] = objective.quality_items(texts, labels=SET_TOKENS, draws=4, seed=seed) if texts else []
        if prompts:
            with model.strength_at(0.0), evaluating(base), torch.inference_mode():
                samples = objective.generate(base, list(dict.fromkeys(prompts)), tokens=REPLY_TOKENS)
            found[name] += [QualityItem(len(texts) + i, sample) for i, sample in enumerate(samples) if sample.labels]
        if not any(item.sample.labels for item in found[name]):
            raise DataError(f"The damage set {name!r} has nothing that could be scored: {len(items)} items.")
    return found


def continued(
    model: GradiendModel,
    objective: Objective,
    rows: Sequence[Row],
    texts: Sequence[Any],
    sets: Mapping[str, Sequence[Any]],
) -> GenerationProbe | None:
    """Return what continues beginnings of neutral texts, of the rows, and the prompts of damage sets at any strength.

    `None` for an objective whose models generate no text, or without anything to continue.
    """
    if type(objective).generate is Objective.generate:
        return None
    prompts = {
        NEUTRAL: beginnings([text for text in texts if isinstance(text, str)], PROMPTS),
        "feature": objective.prompts(rows)[:PROMPTS],
    }
    asked = [item for items in sets.values() for item in items if isinstance(item, Prompt)]
    prompts["prompts"] = (asked or objective.chat_prompts())[:PROMPTS]
    if not any(prompts.values()):
        return None
    return GenerationProbe(model, objective, prompts, new_tokens=NEW_TOKENS)
