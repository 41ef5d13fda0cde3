"""Continuations of prompts at any strength, measured under the base model: is what an edited model writes still sound?

Fluent text that the edit changes stays likely under the base model and as varied as the base model's own; a broken model
repeats itself, ends at once, or writes what the base model finds absurd. Repeats are likely under any model, so that the
likelihood alone would not show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradiend_hub.errors import DataError
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import Objective, Sample, batched, evaluating, output_nll

from .continuations import (
    Continuation,
    GenerationPoint,
    GenerationReport,
    Texts,
    faults,
    figures,
)
from .intervals import Array, mean_interval, spread
from .part import NotFiniteError

NEW_TOKENS = 32
BATCH_SIZE = 16
SAMPLES = 4
"""Continuations of each kind of prompt that a report lists."""
PROMPTS, PROMPT_WORDS = 16, 8


def beginnings(texts: Sequence[str], count: int = PROMPTS, words: int = PROMPT_WORDS) -> list[str]:
    """Return the first words of up to `count` texts that go on behind them, evenly spread: prompts without the feature."""
    split = [text.split() for text in dict.fromkeys(texts)]
    return spread(list(dict.fromkeys(" ".join(parts[:words]) for parts in split if len(parts) > words)), count)


class GenerationProbe:
    """Lets a model continue fixed prompts at any strength; the base model's own continuations are what others are held to.

    Args:
        model: The model whose strength is changed and restored.
        objective: Of the base model; it has to generate text.
        prompts: Prompts by kind, as `Objective.prompts` returns them, e.g. {"neutral": […], "feature": […]}.
        new_tokens: Most tokens of a continuation.
        batch_size: Most prompts in a batch.

    Raises:
        DataError: There are no prompts.
    """

    def __init__(
        self,
        model: GradiendModel,
        objective: Objective,
        prompts: Mapping[str, Sequence[Any]],
        *,
        new_tokens: int = NEW_TOKENS,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model, self.objective = model, objective
        self.prompts = {kind: list(of) for kind, of in prompts.items() if of}
        if not self.prompts:
            raise DataError("There are no prompts to continue. Give some by kind, e.g. {'neutral': ['The old house']}.")
        self.new_tokens, self.batch_size = new_tokens, batch_size
        config = model.active_peft_config
        fillers = {name: (config.fillers or {}).get(name, ()) for name in config.feature_classes or ()}
        single = {name: [word for word in of if len(word.split()) == 1] for name, of in fillers.items()}
        self.words = {name: of for name, of in single.items() if of}  # that are counted
        self._written: dict[float, dict[str, Texts]] = {}

    def measure(self, strength: float) -> list[GenerationPoint]:
        """Measure a strength: one point for each kind of prompt. The model's strength is restored.

        Raises:
            DataError: The model generates no text, or a prompt cannot be read.
            NotFiniteError: A likelihood is NaN or infinite.
        """
        written, own = self._at(strength), self._at(0.0)
        return [self._point(strength, kind, written[kind], own[kind]) for kind in self.prompts]

    def is_sound(self, strength: float) -> bool:
        """Tell whether continuations at a strength are sound for every kind of prompt; where a likelihood is NaN, not."""
        try:
            return all(point.sound for point in self.measure(strength))
        except NotFiniteError:
            return False

    def report(self, strengths: Sequence[float]) -> GenerationReport:
        """Measure some strengths, with a few samples of each kind of prompt."""
        points = [point for strength in strengths for point in self.measure(strength)]
        samples = [
            Continuation(str(prompts[i]), kind, {str(float(s)): self._at(s)[kind].texts[i] for s in strengths})
            for kind, prompts in self.prompts.items()
            for i in spread(range(len(prompts)), SAMPLES)
        ]
        return GenerationReport(self.new_tokens, points, samples)

    def _at(self, strength: float) -> dict[str, Texts]:
        dose = strength * self.model.active_peft_config.strength_unit
        if dose not in self._written:
            self._written[dose] = {kind: self._write(prompts, strength) for kind, prompts in self.prompts.items()}
        return self._written[dose]

    def _write(self, prompts: Sequence[Any], strength: float) -> Texts:
        base = self.model.get_base_model()
        with evaluating(base), torch.inference_mode():
            with self.model.strength_at(strength):
                samples = self.objective.generate(base, prompts, tokens=self.new_tokens, batch_size=self.batch_size)
            with self.model.strength_at(0.0):
                nll = self._nll(samples)
        if not np.isfinite(nll).all():
            raise NotFiniteError(
                f"Continuations at strength {strength:g} have likelihoods that are NaN or infinite on "
                f"{int((~np.isfinite(nll)).sum())} of {len(nll)} prompts. Use a lower strength."
            )
        special = {*self.objective.processor.all_special_ids}
        tokens = [[token for token in sample.labels if token not in special] for sample in samples]
        return Texts(tokens, [self.objective.processor.decode(ids).strip() for ids in tokens], nll.tolist())

    def _nll(self, samples: Sequence[Sample]) -> Array:
        """Return the mean negative log-likelihood per token of each continuation, [prompts], under the model as it is."""
        base, found = self.model.get_base_model(), np.zeros(len(samples))
        device = next(base.parameters()).device
        for chosen in batched([sample.cost for sample in samples], self.batch_size):
            batch = self.objective.collate([samples[i] for i in chosen]).to(device)
            nll = output_nll(self.objective.log_probs(base, batch), batch.labels).double().cpu().numpy()
            found[chosen] = nll / [len(samples[i].labels) for i in chosen]
        return found

    def _point(self, strength: float, kind: str, written: Texts, own: Texts) -> GenerationPoint:
        edited = figures(written, own, self.words)
        base = figures(own, written, self.words, [*map(len, written.tokens)])
        rise = np.subtract(written.nll, own.nll)
        interval = mean_interval(rise) if len(rise) > 1 else None
        return GenerationPoint(strength, kind, len(rise), edited, base, interval, faults(edited, base))


def measure_generation(
    model: GradiendModel,
    objective: Objective,
    prompts: Mapping[str, Sequence[Any]],
    strengths: Sequence[float] = (-1.0, 0.0, 1.0),
    *,
    new_tokens: int = NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
) -> GenerationReport:
    """Let a model continue prompts at some strengths, and say whether what it writes is sound (see `GenerationProbe`)."""
    probe = GenerationProbe(model, objective, prompts, new_tokens=new_tokens, batch_size=batch_size)
    return probe.report(strengths)
