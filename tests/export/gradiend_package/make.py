"""Makes the data of this folder with the package `gradiend` 0.2.3, in an environment of its own: `python make.py FOLDER`.

A BERT of a few thousand parameters, a GRADIEND that the package has trained on it for a few steps, the same cut to a share
of its entries and then turned round by its `invert_encoding`, and what the package itself encodes and decodes with each.
Nothing of this project is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="agg", TOKENIZERS_PARALLELISM="false")

import pandas as pd  # type: ignore[import-not-found,import-untyped]
import torch
from gradiend import TextPredictionTrainer, TrainingArguments  # type: ignore[import-not-found]
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["he", "they", "walks", "walk", "sings", "sing", "today", "often", "again", "here", "and", "then", "."]
WAYS = [" today", " often", " again", " here", " and then", ""]


def make_base(folder: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=256, initializer_range=0.5,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(SPECIAL + WORDS) + "\n", encoding="utf-8")
    BertTokenizer(str(vocabulary)).save_pretrained(folder)


def rows() -> pd.DataFrame:
    made = []
    for split in ("train", "validation", "test"):
        for verbs in (("walks", "walk"), ("sings", "sing")):
            for way in WAYS:
                for factual, other, verb in (("he", "they", verbs[0]), ("they", "he", verbs[1])):
                    kinds = {"he": "3SG", "they": "3PL"}
                    made.append({
                        "masked": f"[MASK] {verb}{way} .", "split": split, "label": factual, "alternative": other,
                        "label_class": kinds[factual], "alternative_class": kinds[other],
                    })  # fmt: skip
    return pd.DataFrame(made)


def said_of(model: Any) -> dict[str, torch.Tensor]:
    """What the package encodes of random gradients and decodes of feature factors, and what its rewriting changes."""
    trained = model.gradiend
    gradients = torch.randn(3, trained.input_dim, generator=torch.Generator().manual_seed(1)) * 0.1
    factors = torch.tensor([[1.0], [-1.0], [0.5]])
    before = dict(model.base_model.named_parameters())
    with torch.no_grad():
        rewritten = model.rewrite_base_model(learning_rate=0.25, feature_factor=1.0)
        said = {
            "gradients": gradients,
            "encoded": trained.forward_encoder(gradients).flatten(),
            "factors": factors.flatten(),
            "decoded": trained.decoder(factors),
        }
    changed = {n: p.detach() for n, p in rewritten.named_parameters() if not torch.equal(p, before[n])}
    return said | {f"rewritten.{name}": value for name, value in changed.items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder = folder.absolute()
    with tempfile.TemporaryDirectory() as workspace, contextlib.chdir(workspace):  # the package writes down paths
        make_base(Path("base"))
        arguments = TrainingArguments(
            experiment_dir="run", train_batch_size=4, learning_rate=3e-2, max_steps=30, num_train_epochs=50, max_seeds=1,
            min_convergent_seeds=None, do_eval=False, source="alternative",
        )  # fmt: skip
        trainer = TextPredictionTrainer(
            "base", data=rows(), target_classes=["3SG", "3PL"], random_state=0, args=arguments
        )
        trainer.train()
        model = trainer.get_model()
        for kind in ("whole", "cut", "inverted"):
            if kind == "cut":
                model.prune_gradiend(topk=0.2, inplace=True)
            if kind == "inverted":
                model.invert_encoding()
            frame = trainer.evaluate_encoder(split="test", return_df=True, use_cache=False)["encoder_df"]
            frame = frame[frame["type"] == "training"][["text", "factual_token", "alternative_token", "encoded"]]
            named, model.base_model.name_or_path = model.base_model.name_or_path, "us/tiny-bert"
            model.save_pretrained(str(folder / kind))
            model.base_model.name_or_path = named
            save_file(said_of(model), folder / f"{kind}.said.safetensors")
            encoded = json.loads(frame.to_json(orient="records", double_precision=9))
            (folder / f"{kind}.encoded.json").write_text(json.dumps(encoded, indent=1) + "\n", encoding="utf-8")
        shutil.copytree("base", folder / "base")
    (folder / "MAKER").write_text(
        f"Made by make.py with gradiend {version('gradiend')}, torch {version('torch')} and transformers "
        f"{version('transformers')}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
