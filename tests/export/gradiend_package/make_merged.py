"""Makes the folder `merged` beside this file with the package `gradiend` 0.2.3: `python make_merged.py`, after make.py.

The base model, rewritten by the package itself from the folder `whole` (learning rate 0.25, feature factor 1) and saved with
`save_pretrained`, as its users publish rewritten models. Nothing of this project is imported.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="agg", TOKENIZERS_PARALLELISM="false")

import torch
from gradiend.trainer.text.prediction.model_with_gradiend import (  # type: ignore[import-not-found]
    TextPredictionModelWithGradiend,
)

HERE = Path(__file__).parent


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as workspace, contextlib.chdir(workspace):
        shutil.copytree(HERE / "base", "us/tiny-bert")  # where the folder says that its base model is
        model = TextPredictionModelWithGradiend.from_pretrained(str(HERE / "whole"))
        rewritten = model.rewrite_base_model(learning_rate=0.25, feature_factor=1.0)
        rewritten.save_pretrained(HERE / "merged")
    (HERE / "merged" / "MAKER").write_text(
        f"Made by make_merged.py with gradiend {version('gradiend')}, torch {version('torch')} and transformers "
        f"{version('transformers')}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
