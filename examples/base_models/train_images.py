"""Train the bundled classifiers of images from scratch on a CPU: small ViTs that tell ten digits or ten animals.

    python examples/base_models/train_images.py digits --out DIR
    pip download --no-deps animal-mnist==0.4
    python examples/base_models/train_images.py animals --wheel animal_mnist-0.4-py3-none-any.whl --out DIR

The same data, seed and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from labelled import ANIMALS, Labelled, animals, digits
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

try:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
except ImportError:  # before transformers 5.20 the only variant without torchvision
    from transformers import ViTImageProcessor as ViTImageProcessorPil


BATCH, PEAK_LR = 64, 2e-3


@dataclass(frozen=True)
class Recipe:
    """Sizes of a model and length of its training; `reach` is how many pixels an image is moved by at most."""

    labels: tuple[str, ...]
    side: int
    patch: int
    width: int
    layers: int
    epochs: int
    reach: int


RECIPES = {
    "digits": Recipe(tuple(map(str, range(10))), side=8, patch=2, width=48, layers=3, epochs=25, reach=0),
    "animals": Recipe(ANIMALS, side=28, patch=4, width=96, layers=5, epochs=16, reach=2),
}


def processor(recipe: Recipe) -> ViTImageProcessorPil:
    """Resize to the model's size, and map values to [-1, 1]."""
    size = {"height": recipe.side, "width": recipe.side}
    return ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def new_model(recipe: Recipe) -> ViTForImageClassification:
    """A small ViT with random weights."""
    config = ViTConfig(
        image_size=recipe.side,
        patch_size=recipe.patch,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        intermediate_size=2 * recipe.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(recipe.labels)),
        label2id={label: i for i, label in enumerate(recipe.labels)},
    )
    return ViTForImageClassification(config)


def tensors(rows: list[Labelled], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The images as the processor makes them, [N, 3, H, W], and the numbers of their labels, [N]."""
    images = [Image.fromarray(row.input).convert("RGB") for row in rows]
    pixels: Tensor = processor(recipe)(images, return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor([recipe.labels.index(row.label) for row in rows])


def moved(pixels: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `reach` pixels."""
    if not reach:
        return pixels
    side, padded = pixels.shape[-1], F.pad(pixels, (reach,) * 4, value=-1.0)
    places = torch.randint(0, 2 * reach + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + side, x : x + side] for p, (y, x) in zip(padded, places, strict=True)])


def figures(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of images whose label is the likeliest, and mean negative log-likelihood of the label."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(pixel_values=part).logits for part in pixels.split(256)])
    return float((logits.argmax(-1) == labels).float().mean()), float(F.cross_entropy(logits, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=sorted(RECIPES))
    parser.add_argument("--wheel", type=Path, help="wheel of the package animal-mnist")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.kind == "animals" and args.wheel is None:
        parser.error("animals need --wheel")
    torch.manual_seed(args.seed)
    recipe = RECIPES[args.kind]
    rows = digits() if args.kind == "digits" else animals(args.wheel)
    data = {n: tensors([r for r in rows if r.split == n], recipe) for n in ("train", "validation", "test")}
    model, (pixels, labels) = new_model(recipe), data["train"]
    print(f"{sum(p.numel() for p in model.parameters())} parameters; {len(labels)} images", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LR, weight_decay=0.05)
    steps = recipe.epochs * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.1)
    generator, start = torch.Generator().manual_seed(args.seed), time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "log.jsonl").open("w", encoding="utf-8") as log:
        for epoch in range(recipe.epochs):
            model.train()
            total = 0.0
            for chosen in torch.randperm(len(labels), generator=generator).split(BATCH):
                logits = model(pixel_values=moved(pixels[chosen], recipe.reach, generator)).logits
                loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            right, nll = figures(model, *data["validation"])
            entry = {"epoch": epoch + 1, "loss": round(total / len(labels), 4), "validation_accuracy": round(right, 4)}
            line = json.dumps({**entry, "validation_nll": round(nll, 4), "seconds": round(time.process_time() - start)})
            print(line, file=log, flush=True)
    right, nll = figures(model, *data["test"])
    print(f"test: {len(data['test'][1])} images, accuracy {right:.3f}, nll {nll:.3f}")
    model.to(torch.bfloat16).save_pretrained(args.out / "model")
    processor(recipe).save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
