"""A strength that changes while a model generates: a function of the step, of the text so far, or of both.

Before every forward of a generation the schedule is asked for the strengths, and they hold for the tokens that this forward
reads: the prompt at step 0, the newest token after that. With a cache (the default), keys and values of earlier tokens stay
what they were at the strength at which they were read, as a person's earlier words stay said; with `use_cache=False` the
whole text is read anew at the strength of each step, which costs as much as generating without a cache does.

Low-rank directions run beside the weights (`side_path`), with a strength for each row. Others change the weights in place
between two steps, so all rows have one strength then. Beams of one row share its strength, and the schedule sees the best
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Real
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from gradiend_hub.errors import ConfigError, EditError

from .rows import ROWS, numbers_by_row
from .side_path import NoRowsError, SidePath
from .tuner import GradiendTuner

READ = ("input_ids", "decoder_input_ids", "inputs_embeds", "decoder_inputs_embeds")

Schedule = Callable[[int, torch.Tensor], Any]
"""`(step, tokens) → strength`: a number, one for each row, or either by name of the direction."""


class _Asked(StoppingCriteria):  # type: ignore[misc]
    """Sees the text after every step (and never stops it), and asks the schedule before the next forward."""

    def __init__(
        self, schedule: Schedule, current: Mapping[str, float], apply: Callable[[dict[str, list[float]]], None]
    ) -> None:
        self.schedule, self.current, self.apply = schedule, dict(current), apply
        self.names: set[str] = set()
        self.waiting: torch.Tensor | None = None
        self.before: int | None = None  # tokens before the first step's

    def strengths(self, step: int, tokens: torch.Tensor, loaded: Sequence[str], batch: int) -> dict[str, list[float]]:
        """Return the schedule's strengths at a step: one number for each row, by direction."""
        said = self.schedule(step, tokens)
        if not isinstance(said, Mapping):
            if len(self.current) != 1:
                raise ConfigError(
                    f"schedule: {len(self.current)} directions are active; return a dictionary of {list(self.current)}."
                )
            said = {next(iter(self.current)): said}
        known = loaded if step == 0 else self.names
        if strange := [name for name in said if name not in known]:
            raise ConfigError(f"schedule, step {step}: there is no direction {strange[0]!r}; expected {sorted(known)}.")
        rows = max(len(tokens), 1)
        found = {}
        for name, values in {**self.current, **said}.items():
            if isinstance(values, Real) or (isinstance(values, torch.Tensor) and values.ndim == 0):
                values = [float(values)] * rows  # numbers_by_row refuses what is not finite
            count = rows if len(values) == rows else batch  # of beams, one for all of a row
            found[name] = numbers_by_row(f"{name} (schedule, step {step})", values, count)
        self.names = set(found)
        return found

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.before is None:
            self.before = input_ids.shape[1] - 1
        self.waiting = input_ids
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate_by(
    schedule: Schedule,
    generate: Callable[..., Any],
    base: nn.Module,
    current: Mapping[str, float],
    loaded: Sequence[str],
    apply: Callable[[dict[str, list[float]]], None],
    args: tuple[Any, ...],
    inputs: dict[str, Any],
) -> Any:
    """Generate with the strengths that a schedule gives at each step.

    Args:
        schedule: As the argument `schedule` of `GradiendModel.generate`.
        generate: The model's own `generate`.
        base: The base model, before whose forwards the schedule is asked.
        current: Current strength of the active directions.
        loaded: Names of all directions.
        apply: Sets the strength of every row, by name.
        args: Positional arguments of `generate`.
        inputs: Keyword arguments of `generate`.

    Raises:
        ConfigError: If the schedule is no function, or returns no finite number for a row.
    """
    if not callable(schedule):
        raise ConfigError(f"schedule: expected a function of step and tokens, found {type(schedule).__name__}.")
    prompt = next((v for v in (*(inputs.get(name) for name in ROWS), *args) if isinstance(v, torch.Tensor)), None)
    if prompt is None or not prompt.ndim:
        raise ConfigError("schedule: expected a batch of prompts, e.g. generate(input_ids=..., schedule=...).")
    batch = len(prompt)
    tokens = prompt if prompt.ndim == 2 else prompt.new_zeros((batch, 0), dtype=torch.long)
    asked = _Asked(schedule, current, apply)
    if prompt.ndim == 2 and not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        asked.before = prompt.shape[1]
    apply(asked.strengths(0, tokens, loaded, batch))

    def before_forward(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if asked.waiting is not None:
            text, asked.waiting = asked.waiting, None
            assert asked.before is not None
            rows = next(len(x) for x in (*given, *(named.get(n) for n in READ)) if isinstance(x, torch.Tensor))
            if len(text) != rows:  # more candidates of beams than go on
                text = text.unflatten(0, (batch, -1))[:, 0]
            apply(asked.strengths(text.shape[1] - asked.before, text, loaded, batch))

    others = inputs.pop("stopping_criteria", None) or []
    hook = base.register_forward_pre_hook(before_forward, with_kwargs=True)
    try:
        return generate(*args, **inputs, stopping_criteria=StoppingCriteriaList([*others, asked]))
    finally:
        hook.remove()


class SteppedStrengths:
    """Sets the strengths of each step: beside the weights where all directions have a place there, else in the weights.

    Args:
        tuner: The tuner of the model.
        set_strength: Sets strengths by name in the weights.
    """

    def __init__(self, tuner: GradiendTuner, set_strength: Callable[[dict[str, float]], None]) -> None:
        self._tuner, self._set_strength, self._stack = tuner, set_strength, ExitStack()
        self._side: SidePath | None = None

    def __enter__(self) -> SteppedStrengths:
        return self

    def __exit__(self, _: Any, error: BaseException | None, *__: Any) -> None:
        self._stack.close()
        if isinstance(error, NoRowsError):
            raise EditError(
                "schedule: a layer of this model joins the rows of a batch. Generate row by row, or with `strengths`."
            ) from error

    def apply(self, strengths: dict[str, list[float]]) -> None:
        """Let these strengths of the rows hold from now on.

        Raises:
            EditError: If rows differ, and a direction has no place beside the weights.
        """
        if self._side is not None:
            self._side.set_strengths(strengths)
        elif SidePath.fits(self._tuner, list(strengths)):
            if any(self._tuner.attached[name].strength for name in strengths):
                self._set_strength(dict.fromkeys(strengths, 0.0))
            self._side = self._stack.enter_context(SidePath(self._tuner, strengths))
        else:
            for name, values in strengths.items():
                if len(set(values)) > 1:
                    raise EditError(
                        f"schedule: rows with different strengths {sorted(set(values))[:4]} need a direction that runs "
                        f"beside the weights, and {name!r} does not (it is not low-rank). Return one number for all rows, "
                        "or learn with rank=8."
                    )
            self._set_strength({name: values[0] for name, values in strengths.items()})
