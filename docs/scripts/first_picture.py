"""Draw README's picture, of a direction that `gradiend-hub train examples/train.yaml` has made.

    python docs/scripts/first_picture.py out/pronouns-masked

Every value is read from the model: the probabilities of the words at the slot of two sentences, at 41 strengths.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gradiend_hub.explorer import Explorer

PICTURE = Path(__file__).parents[1] / "pictures" / "first.png"
TEXTS = ("The boy ran home because [MASK] felt ill.", "The boys ran home because [MASK] felt ill.")
WORDS = {"he": "#00609c", "she": "#4f9bd0", "it": "#a9d0ec", "they": "#b3480a"}
STRENGTHS = np.linspace(-2, 2, 41)


def chances(explorer: Explorer, text: str, strengths: Sequence[float]) -> dict[str, list[float]]:
    """Return the probability of each word at the slot of a text, at each strength."""
    (name,) = explorer.configs
    found: dict[str, list[float]] = {word: [] for word in WORDS}
    for strength in strengths:
        _, edited = explorer.ask(text, {name: float(strength)}, top=len(explorer.model.tokenizer))
        said = dict(edited.outputs)
        for word, values in found.items():
            values.append(said[word])
    return found


def draw(explorer: Explorer) -> Figure:
    """Draw the words' shares over strength, one panel for each text."""
    (config,) = explorer.configs.values()
    figure = Figure(figsize=(10, 3.4), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(TEXTS), sharey=True)
    for axes, text in zip(panels, TEXTS, strict=True):
        found = chances(explorer, text, list(STRENGTHS))
        bands = axes.stackplot(STRENGTHS, *found.values(), colors=list(WORDS.values()), labels=list(WORDS))
        for band in bands:
            band.set_edgecolor("white")
        axes.set(title=text, xlabel="strength", xlim=(-2, 2), ylim=(0, 1))
        axes.set_xticks([-2, -1, 0, 1, 2], ["−2", "−1", "0: the base model", "+1", "+2"])
        for end in config.safe_band or ():
            if abs(end) < 2:
                axes.axvline(end, color="black", linestyle=":", linewidth=1)
    panels[0].set_ylabel("probability at the slot")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, reverse=True)
    return figure


if __name__ == "__main__":
    draw(Explorer.load([sys.argv[1]])).savefig(PICTURE, dpi=110, metadata={"Software": None})
