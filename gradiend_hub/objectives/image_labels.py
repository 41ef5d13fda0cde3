"""Classifiers of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from gradiend_hub.data import Picture
from gradiend_hub.errors import BaseModelError, DataError, first_line

from .labels import ConceptMixin, LabelObjective
from .samples import Batch

SHOWN_SIDE = 96
"""Pixels of the longer side of an image that card and report show."""

MOST_TRAVELLING = 24_000
"""Most bytes of an image that travels with a direction as it is: a self-test has up to sixteen."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Mode of PIL's images by the number of channels that a model reads."""


class ImageClassificationObjective(LabelObjective):
    """A label direction of a classifier of images: the same image, another label.

    Args:
        processor: The base model's image processor.
        labels: Names of the model's labels, in their order.
        channels: Channels that the model reads.
        name_or_path: How messages call the base model.
    """

    name = "image_classification"
    task = "image-classification"
    asks = "IMAGE.png"
    auto_class = AutoModelForImageClassification
    heads = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    columns: ClassVar[tuple[str, ...]] = ("image", "label")
    column = "image"

    def __init__(self, processor: Any, *, channels: int = 3, **options: Any) -> None:
        super().__init__(processor, **options)
        self.channels = channels

    @classmethod
    def traits(cls, model: nn.Module, processor: Any, max_length: int | None) -> dict[str, Any]:
        """Return the labels, and how many channels the model reads."""
        channels = getattr(getattr(model, "config", None), "num_channels", None) or 3
        return super().traits(model, processor, max_length) | {"channels": channels}

    @classmethod
    def load_processor(cls, name_or_path: str, **hub: Any) -> Any:
        """Load the image processor, the variant that needs no torchvision: both resize a little differently.

        Raises:
            BaseModelError: There is none.
        """
        newer = find_spec("transformers.image_processing_backends") is not None
        variant: dict[str, Any] = {"backend": "pil"} if newer else {"use_fast": False}
        try:
            return AutoImageProcessor.from_pretrained(name_or_path, **variant, **hub)
        except (OSError, ValueError) as error:
            raise BaseModelError(
                f"There is no image processor beside {name_or_path} ({first_line(error)}). Save it there, "
                "processor.save_pretrained(FOLDER), or give it as processing_class."
            ) from error

    @property
    def key(self) -> str:
        """Name, and what the processor does."""
        settings = self.processor.to_json_string() if hasattr(self.processor, "to_json_string") else ""
        return f"{self.name}, {self.channels} channels, {settings}"

    def read_input(self, value: Any) -> Picture:
        """Check that it is an image, within the limits of `Picture`."""
        return Picture.read(value)

    def input_record(self, value: Picture) -> str:
        """Return the image as a `data:` address."""
        return value.uri()

    def prepared(self, value: Picture) -> tuple[dict[str, Any], int]:
        """Return the image file's bytes: pixels would take a hundred times the memory, so batches are made of them."""
        return {"image": value.data}, 1

    def collate_inputs(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Process the images: [B, channels, H, W].

        Raises:
            DataError: The processor cannot take an image, leaves images of different sizes, or makes values that are not
                finite.
        """
        mode = MODES.get(self.channels, "RGB")
        images = [Picture(row["image"]).open().convert(mode) for row in inputs]
        try:
            with np.errstate(all="ignore"):
                found: Tensor = self.processor(images=images, return_tensors="pt")["pixel_values"]
        except (ValueError, RuntimeError, TypeError) as error:
            raise DataError(
                f"The image processor of {self.name_or_path} cannot make one batch of {len(images)} images of the sizes "
                f"{sorted({image.size for image in images})[:4]}: {error}"
            ) from error
        if not bool(found.isfinite().all()):
            raise DataError(
                f"The image processor of {self.name_or_path} makes pixel values that are not finite. Its image_std is "
                f"{getattr(self.processor, 'image_std', None)}, by which they are divided; correct preprocessor_config.json."
            )
        return {"pixel_values": found}

    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return log-probabilities of the labels: [B, 1, V], fp32 or wider."""
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        pixels = batch.inputs["pixel_values"].to(dtype)
        return super().log_probs(model, Batch({"pixel_values": pixels}, batch.positions, batch.labels))

    def small_row(self, row: Any) -> Any:
        """Return the row with images of at most a few thousand pixels, if its own are large files."""
        inputs = {name: getattr(row, name) for name in ("input", "counterfactual") if hasattr(row, name)}
        small = {
            name: picture.thumbnail(SHOWN_SIDE)
            for name, picture in inputs.items()
            if len(picture.data) > MOST_TRAVELLING
        }
        return replace(row, **small)

    def prompt_of(self, text: str) -> Picture:
        """Read the image file that a user names on a command line."""
        return Picture.read(Path(text))

    def picture(self, prompt: Picture) -> str:
        """Return a thumbnail."""
        return prompt.thumbnail(SHOWN_SIDE).uri()

    def named(self, inputs: Mapping[str, Any]) -> str:
        """Return the image's name, by its content."""
        return Picture(inputs["image"]).name


class ImageConceptObjective(ConceptMixin, ImageClassificationObjective):
    """A concept direction of a classifier of images: a counterfactual image, the same label."""

    name = "image_concept"
    columns = ("image", "counterfactual", "label")
