"""Three small directions of the bundled masked model, trained once, with real rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradiend_hub import GradiendConfig, GradiendTrainer
from gradiend_hub.base_model import load_base_model
from tests.once import once
from tests.training.support import arguments

FRAMES = [
    "In the evening the {} came to our house and sat down by the fire.",
    "We were told that the {} had lived in the old house before.",
    "Nobody in the village knew the {} who came that day.",
    "Last year the {} went away to live in another town.",
    "Then the {} said to them that it was late.",
    "I saw the {} in the garden when the sun was low.",
    "After that the {} wrote a long letter to the king.",
    "They said the {} would come back in the morning.",
]
GENDER = {"male": ["man", "king", "father", "son", "brother", "boy"],
          "female": ["woman", "queen", "mother", "daughter", "sister", "girl"]}  # fmt: skip


def gender_rows(frames: list[str]) -> list[dict[str, str]]:
    """Both words of each pair in each frame."""
    found = []
    for frame in frames:
        for one, other in zip(GENDER["male"], GENDER["female"], strict=True):
            for word, alternative, of, to in ((one, other, "male", "female"), (other, one, "female", "male")):
                found.append({"masked": frame.format("[MASK]"), "factual": word, "alternative": alternative,
                              "factual_class": of, "alternative_class": to})  # fmt: skip
    return found


def train(base: Any, folder: Path, classes: list[str], rows: Any, held_out: Any, neutral: Any, **options: Any) -> Path:
    """Train a closed form on two layers, measure and save it."""
    config = GradiendConfig(feature_classes=classes, scope=["*.layer.1.*", "*.layer.2.*"])
    args = arguments(
        folder,
        **{
            "solver": "closed_form",
            "per_device_train_batch_size": 8,
            "max_steps": 24,
            "controls": 1,
            "quality_tokens": 100,
            **options,
        },
    )
    trainer = GradiendTrainer(
        base, config, args, train_dataset=rows, eval_dataset=held_out, neutral_dataset=neutral,
        neutral_train_dataset=neutral,
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    return folder


@pytest.fixture(scope="session")
def compared_base(masked_path: Path) -> Any:
    """The bundled masked model, which tests leave as it was."""
    return load_base_model(masked_path)


@pytest.fixture(scope="session")
def compared(
    compared_base: Any, pronouns: Any, neutral: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders of "number", a damage-aware "aware" and a sparse "gender" direction. Tests only read them."""
    texts = neutral.select(range(10))
    rows, held_out = pronouns["train"].select(range(400)), pronouns["validation"].select(range(12))
    gender, other = gender_rows(FRAMES[:6]), gender_rows(FRAMES[6:])

    def make(folder: Path) -> None:
        number = ["3SG", "3PL"]
        train(compared_base, folder / "number", number, rows, held_out, texts)
        train(compared_base, folder / "aware", number[::-1], rows, held_out, texts, decoder="damage_aware")
        sparse = {"final_density": 0.05, "max_steps": 12}
        train(compared_base, folder / "gender", ["male", "female"], gender, other, texts, **sparse)

    folder = once(tmp_path_factory, "compared", make)
    return {name: folder / name for name in ("number", "aware", "gender")}
