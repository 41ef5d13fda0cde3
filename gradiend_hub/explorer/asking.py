"""Questions to a model with directions, each answered at strengths of its own; nothing is remembered between two."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradiend_hub.artifact.config import GradiendConfig
from gradiend_hub.data import require_classes
from gradiend_hub.encoding import encoder_tensors, preactivations
from gradiend_hub.errors import ConfigError, DataError
from gradiend_hub.evaluation import Report
from gradiend_hub.model import GradiendModel
from gradiend_hub.objectives import (
    CausalLMObjective,
    Example,
    ImageClassificationObjective,
    Objective,
    Sample,
    TextObjective,
)
from gradiend_hub.objectives.labels import LabelObjective
from gradiend_hub.printable import dose

SLOT = "[MASK]"
MOST_WORDS = 100
"""Words whose feature values are read at a time."""
MANY_TOKENS = 3.5
"""Tokens a word from which on a text is likely in a language that the tokenizer was not made for."""
FEW_LETTERS = 1.5
"""Letters a token below which it is, too: the tokenizer spells. In its own language it takes two or more."""
LEAST_WORDS = 3
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Shown:
    """The model's answer to one input at one setting of the strengths.

    Attributes:
        outputs: Likeliest fillings or labels with their probabilities; empty where there is no slot.
        continuation: Text that a generating model goes on with; `None` for others.
        classes: Probability of each class's outputs at the slot, by direction and class; empty where it cannot be read.
        kl: KL(base‖edited) of all outputs at the slot, in nats; `None` where there is no slot.
    """

    outputs: list[tuple[str, float]]
    continuation: str | None = None
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    kl: float | None = None


@dataclass(frozen=True)
class Word:
    """A part of a text, and its feature value in (−1, 1); `None` for what stands between words, or cannot be read."""

    text: str
    h: float | None


class Explorer:
    """A model with one or several directions, for many users at a time.

    Every question names its strengths, is answered alone, and leaves the model as it was.

    Args:
        model: With all directions loaded; its strengths are not used.
        reports: What was measured, by name of the direction.
    """

    def __init__(self, model: GradiendModel, reports: Mapping[str, Report | None] | None = None) -> None:
        self.model, self.reports = model, dict(reports or {})
        self.configs: dict[str, GradiendConfig] = dict(model.peft_config)
        self.objective: Objective = model.make_objective()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, directions: Sequence[str | Path], base_model: str | Path | None = None, **allowed: Any) -> Explorer:
        """Load directions of one base model.

        Args:
            directions: Folders or ids.
            base_model: Folder or id, if not the one that the first direction names.
            **allowed: As in `GradiendModel.from_pretrained`: `allow_related`, `allow_unverified_base`.

        Raises:
            ConfigError: There is no direction, or one twice.
            GradiendError: A direction or the base model cannot be loaded, or they do not belong together.
        """
        if not directions:
            raise ConfigError("There is no direction to explore: name at least one folder or id.")
        if len({str(Path(d)) for d in directions}) < len(directions):
            raise ConfigError(f"A direction is named twice: {', '.join(map(str, directions))}. Name each once.")
        names = _names(directions)
        model = GradiendModel.from_pretrained(
            directions[0], base_model=base_model, strength=0.0, adapter_name=names[0], **allowed
        )
        for name, direction in zip(names[1:], directions[1:], strict=True):
            model.load_adapter(str(direction), name, **allowed)
        for found in model._found.values():
            found.complete()
        return cls(model, {name: Report.find(model._found[name].folder) for name in names})

    @property
    def pictures(self) -> bool:
        """True where inputs are images."""
        return isinstance(self.objective, ImageClassificationObjective)

    def classes(self, name: str) -> tuple[str, str]:
        """Return the classes of a direction, the one of positive strength first."""
        first, second = require_classes(self.configs[name].feature_classes)
        return first, second

    def range(self, name: str) -> tuple[float, float]:
        """Return the least and greatest strength to offer: somewhat beyond the safe band, and at least ±2."""
        low, high = self.configs[name].safe_band or (-1.0, 1.0)
        return min(-2.0, round(1.5 * low, 1)), max(2.0, round(1.5 * high, 1))

    def first_input(self) -> Any:
        """Return an input to begin with: one of the report's, if it has texts."""
        for report in self.reports.values():
            for split in report.splits.values() if report else ():
                for completion in split.completions:
                    if completion.image is None:
                        return completion.text
        return "" if self.pictures else f"Today {SLOT} is here."

    # ------------------------------------------------------------------------------------------------------- questions

    def ask(self, value: Any, strengths: Mapping[str, float], *, top: int = 5, tokens: int = 16) -> tuple[Shown, Shown]:
        """Return what the base model says to an input, and what it says at strengths by direction.

        Args:
            value: A text, or an image: the bytes of its file, or whatever else `gradiend_hub.data.Picture` reads.
            strengths: Of some directions; the others are at 0.
            top: Number of likeliest outputs.
            tokens: Length of a continuation.

        Raises:
            DataError: The input cannot be read; the message says what to do.
            ConfigError: A strength is no finite number, or a direction unknown.
        """
        prompt = self._prompt(value)
        hints = [word for config in self.configs.values() for of in (config.fillers or {}).values() for word in of]
        sample, said = self._asked(prompt, hints), []
        base_log_probs: Tensor | None = None
        for at in ({}, strengths):
            with self._at(at) as base:
                answer = self.objective.complete(base, [prompt], top=top, tokens=tokens, hints=hints)[0]
                log_probs = None if sample is None else self._log_probs(sample)[0]
                classes = (
                    {} if sample is None else {n: found for n in self.configs if (found := self._chances(prompt, n))}
                )
            outputs, kl = answer.outputs, None
            if log_probs is not None:
                base_log_probs = log_probs if base_log_probs is None else base_log_probs
                kl = max(0.0, float((base_log_probs.exp() * (base_log_probs - log_probs)).sum()))
            said.append(Shown(outputs, answer.continuation, classes, kl))
        return said[0], said[1]

    def remarks(self, value: Any, strengths: Mapping[str, float]) -> list[str]:
        """Say what a user should know: strengths outside of the safe band, and a text that the model hardly knows."""
        found = []
        for name, strength in strengths.items():
            low, high = self.configs[name].safe_band or (None, None)
            if low is None or high is None:
                found.append(f"{name}: no safe band was measured, so nobody knows what this strength damages.")
            elif not low <= strength <= high:
                found.append(
                    f"{name} at {dose(strength)} is outside of the safe band, {dose(low)} to {dose(high)}: the model may "
                    "lose quality elsewhere, too. Move the slider back."
                )
        if isinstance(self.objective, TextObjective) and isinstance(value, str):
            words = [word for word in value.replace(SLOT, " ").split() if any(map(str.isalpha, word))]  # not numbers
            tokens = self.objective.tokenizer.tokenize(" ".join(words))
            unknown = tokens.count(self.objective.tokenizer.unk_token)
            letters = sum(map(str.isalnum, "".join(words)))
            spelled = len(tokens) > MANY_TOKENS * len(words) or letters < FEW_LETTERS * len(tokens)
            if len(words) >= LEAST_WORDS and (spelled or unknown > len(words) / 3):
                found.append(
                    f"The model's tokenizer takes {len(tokens)} tokens for these {len(words)} words, {unknown} of them "
                    "unknown: likely a language that the model has not learned. Write in the language of its training text."
                )
        return found

    def values(self, text: str, name: str) -> list[Word]:
        """Read a feature value at every word of a text: positive where the word speaks for the first class.

        The value is that of the gradient of the word that stands there; a word of several tokens has that of its first.

        Raises:
            DataError: The text is empty or too long, or this model or direction has no value for one word alone.
            ArtifactError: The direction was published without its encoder.
        """
        objective, config = self.objective, self.configs[name]
        if not isinstance(objective, TextObjective):
            raise DataError("Feature values are read word by word, and this model's outputs are labels, not words.")
        if config.source == "diff":
            raise DataError(
                f"The encoder of {name} reads differences between two words, so one word alone has no value. "
                "Use GradiendModel.encode with rows of both."
            )
        if not text.strip():
            raise DataError("There is no text: write a sentence.")
        text = text.replace(SLOT, "").strip()
        spans = [word.span() for word in _WORD.finditer(text)]
        if len(spans) > MOST_WORDS:
            raise DataError(f"The text has {len(spans)} words; at most {MOST_WORDS} are read at a time. Shorten it.")
        samples: list[Sample | None] = []
        for span in spans:
            found = objective.token_samples(text, [span])
            samples.append(found[0] if found else None)
        readable = [s for s in samples if s is not None]
        with self._at({}, grad=True) as base:
            encoder, bias = encoder_tensors(self.model._direction(name))
            examples = [Example(sample, sample) for sample in readable]
            z = preactivations(base, objective, examples, encoder, bias, source="factual", batch_size=16)
        h = iter(torch.tanh(z).tolist())
        words, end = [], 0
        for (low, high), sample in zip(spans, samples, strict=True):
            words += [Word(text[end:low], None)] if end < low else []
            words.append(Word(text[low:high], None if sample is None else next(h)))
            end = high
        return words

    # ---------------------------------------------------------------------------------------------------------- parts

    @contextmanager
    def _at(self, strengths: Mapping[str, float], *, grad: bool = False) -> Iterator[Any]:
        """Give the base model at strengths; one question at a time, since they are set in its weights."""
        if strange := set(strengths) - set(self.configs):
            raise ConfigError(f"There is no direction {sorted(strange)}; loaded are {list(self.configs)}.")
        wanted = {name: float(strengths.get(name, 0.0)) for name in self.configs}
        with self._lock, self.model.strength_at(wanted), torch.inference_mode(not grad):
            yield self.model.get_base_model()

    def _prompt(self, value: Any) -> Any:
        objective = self.objective
        if self.pictures:
            if value is None:
                raise DataError("There is no image: choose or drop one.")
            return objective.read_input(value)  # type: ignore[attr-defined]
        if not isinstance(value, str) or not value.strip():
            where = f" with {SLOT} where the word is to be guessed" if self.needs_slot else ""
            raise DataError(f"There is no text: write a sentence{where}.")
        if isinstance(objective, TextObjective):
            if value.count(SLOT) > 1:
                raise DataError(f"The text has {value.count(SLOT)} times {SLOT}: leave one.")
            if SLOT not in value and self.needs_slot:
                raise DataError(f"The text has no slot: write {SLOT} where the word is to be guessed.")
            tokens = len(objective.encode(value.replace(SLOT, "")).ids)
            if tokens > objective.max_length:
                raise DataError(
                    f"The text has {tokens} tokens, and the model reads {objective.max_length}. Shorten it to about "
                    f"{len(value.split()) * objective.max_length // tokens} words."
                )
        return value

    @property
    def needs_slot(self) -> bool:
        """True where the model says nothing to a text without `[MASK]`."""
        return isinstance(self.objective, TextObjective) and not isinstance(self.objective, CausalLMObjective)

    def _asked(self, prompt: Any, hints: Sequence[str]) -> Sample | None:
        """Return the sample whose outputs are compared: the slot, or what follows a text; `None` if there is none."""
        objective = self.objective
        if isinstance(objective, TextObjective):
            text = prompt if SLOT in prompt else f"{prompt.rstrip()} {SLOT}"
            return objective.asked(text, hints)
        if isinstance(objective, LabelObjective):
            inputs, cost = objective.prepared(objective.read_input(prompt))
            return Sample(inputs, (0,), (0,), cost)
        return None

    def _log_probs(self, sample: Sample) -> Tensor:
        """Log-probabilities at the positions of a sample, [S, V], in fp64, as the model is now."""
        base = self.model.get_base_model()
        batch = self.objective.collate([sample]).to(next(base.parameters()).device)
        return self.objective.log_probs(base, batch)[0].double().cpu()

    def _chances(self, prompt: Any, name: str) -> dict[str, float]:
        """Probability of each class's outputs at an input, as the model is now; none where it cannot be read."""
        fillers = self.configs[name].fillers or {}
        outputs = {of: fillers.get(of) or [] for of in self.classes(name)}
        if not all(outputs.values()):
            return {}
        if isinstance(self.objective, TextObjective) and SLOT not in prompt:
            prompt = f"{prompt.rstrip()} {SLOT}"
        row = self.objective.asked_row(prompt, outputs)
        if row is None:
            return {}
        total = dict.fromkeys(outputs, 0.0)
        for reading in self.objective.readings(row, outputs):
            log_probs = self._log_probs(reading.sample)
            for of, found in zip(outputs, reading.outputs, strict=True):
                for ids in found:
                    total[of] += math.exp(sum(float(log_probs[i, token]) for i, token in enumerate(ids)))
        return total


def _names(directions: Sequence[str | Path]) -> list[str]:
    """Names of directions for people: that of the folder or repository; with a number, where two have the same."""
    names: list[str] = []
    for direction in directions:
        plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(direction).name) or "direction"
        name, number = plain, 2
        while name in names:
            name, number = f"{plain}-{number}", number + 1
        names.append(name)
    return names
