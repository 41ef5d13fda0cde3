"""`apply`: what a model says at several strengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gradiend_hub import GradiendModel
from gradiend_hub.data import require_classes
from gradiend_hub.data.casing import Casing
from gradiend_hub.evaluation import StrengthProbe
from gradiend_hub.evaluation.completions import ask
from gradiend_hub.evaluation.measure import compared_strengths
from gradiend_hub.objectives import Objective
from gradiend_hub.printable import printable

from .console import Story
from .looking import ApplyOptions
from .options import numbers
from .quiet import quiet
from .tables import beyond_band, strength_text

_COLUMN = 20
"""Width of the guesses at one strength."""

Guesses = Sequence[tuple[str, float]]
"""Words of the vocabulary, each with its probability at the slot."""


def show_texts(direction: str, texts: Sequence[str], options: ApplyOptions, story: Story) -> dict[str, Any]:
    """Print guesses and completions of every text, at the usual strengths and the recommended one if none are given.

    Raises:
        GradiendError: the direction or its base cannot be loaded, or a text has no slot that the model could fill.
    """
    given = numbers(options.strengths)
    with quiet(story):
        with story.step("Load", told=False):
            model = GradiendModel.from_pretrained(
                direction, base_model=options.base, revision=options.revision, strength=0.0, **options.allowed
            )
        config = model.active_peft_config
        if not given:
            config.require_supported_strength()
        objective = model.make_objective()
        strengths = given or compared_strengths(model.active_peft_config)
        styles = class_styles(model)
        results = []
        for text in texts:
            prompt = objective.prompt_of(text)
            size = {"top": options.top, "tokens": options.tokens}
            said = {s: ask(model, objective, [prompt], s, **size)[0] for s in strengths}
            tables: list[Table] = []
            at: dict[float, dict[str, Any]] = {s: {"strength": s} for s in strengths}
            if any(found.outputs for found in said.values()):
                at_slot = {s: found.outputs for s, found in said.items()}
                classes = class_probabilities(model, objective, prompt, strengths)
                tables += guesses_tables(at_slot, styles, classes, width=story.console.width)
                for s, guesses_at in at_slot.items():
                    at[s]["guesses"] = [{"word": word, "probability": chance} for word, chance in guesses_at]
                    at[s]["classes"] = classes.get(s)
            if any(found.continuation is not None for found in said.values()):
                tables.append(_completions_table({s: found.continuation or "" for s, found in said.items()}))
                for s, found in said.items():
                    at[s]["completion"] = found.continuation
            story.show(Text(f"\n{text}", style="bold"), *tables, sep="\n")
            results.append({"text": text, "at": [*at.values()]})
        if warning := beyond_band(model.active_peft_config, strengths):
            story.show(f"\n{warning}")
    return {"direction": direction, "texts": results, "warning": warning}


def guesses(model: GradiendModel, objective: Objective, text: str, strength: float, *, top: int) -> Guesses:
    """Return the likeliest words at the slot of `text`, at a strength."""
    return ask(model, objective, [text], strength, top=top, tokens=0)[0].outputs


def class_probabilities(
    model: GradiendModel, objective: Objective, prompt: Any, strengths: Sequence[float]
) -> dict[float, dict[str, float]]:
    """Return the probability of every class's outputs at an input, by strength and class: of words, all their tokens read.

    There is none if the direction does not say which outputs its classes have, or one input alone does not tell them.
    """
    config = model.active_peft_config
    names = require_classes(config.feature_classes)
    outputs = {name: (config.fillers or {}).get(name) or [] for name in names}
    row = objective.asked_row(prompt, outputs) if all(outputs.values()) else None
    if row is None:
        return {}
    probe = StrengthProbe(model, objective, [row])
    return {s: probe.measure(s).probability[names[0]] for s in strengths}


def class_styles(model: GradiendModel) -> Callable[[str], str]:
    """Return a function from words to the colour of their class."""
    config = model.active_peft_config
    colours = zip(require_classes(config.feature_classes), ("cyan", "magenta"), strict=True)
    styles = {word: colour for name, colour in colours for word in (config.fillers or {}).get(name, [])}
    key = Casing(config.fillers).key
    return lambda word: styles.get(key(word), "")


def guesses_tables(
    at_strength: Mapping[float, Guesses],
    styles: Callable[[str], str],
    classes: Mapping[float, Mapping[str, float]] | None = None,
    *,
    width: int,
) -> list[Table]:
    """Return tables of strengths side by side, as many in a table as fit into `width`, with the classes' probabilities."""
    strengths = list(at_strength)
    per_table = max(1, width // _COLUMN)
    return [
        _guesses_table({s: at_strength[s] for s in strengths[i : i + per_table]}, styles, classes or {})
        for i in range(0, len(strengths), per_table)
    ]


def _guesses_table(
    at_strength: Mapping[float, Guesses],
    styles: Callable[[str], str],
    classes: Mapping[float, Mapping[str, float]],
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for strength in at_strength:
        table.add_column(f"strength {strength_text(strength)}", width=_COLUMN - 3, no_wrap=True)
    for rank in zip(*at_strength.values(), strict=True):
        shown = [(f"{100 * chance:5.1f} % ", (printable(word, 80), styles(word))) for word, chance in rank]
        table.add_row(*(Text.assemble(*parts) for parts in shown))
    if classes:
        table.add_section()
        for name in next(iter(classes.values())):
            table.add_row(*(f" {classes[s][name]:.3f} P({printable(name, 40)})" for s in at_strength))
    return table


def _completions_table(completed: Mapping[float, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("strength", justify="right")
    table.add_column("goes on with", overflow="fold")
    for strength, text in completed.items():
        table.add_row(strength_text(strength), Text(text.strip()))
    return table
