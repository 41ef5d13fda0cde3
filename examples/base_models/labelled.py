"""Labelled data that the bundled classifiers are trained on: images of digits and animals, and sentences with ratings."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
SENTIMENTS = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Labelled:
    """One input with its label: an image as uint8 [H, W], or a text."""

    input: Any
    label: str

    @property
    def split(self) -> str:
        """Part of the data, by the input's content: equal inputs are in the same one."""
        content = self.input.encode() if isinstance(self.input, str) else self.input.tobytes()
        share = int.from_bytes(hashlib.sha256(content).digest()[:4], "big") / 2**32
        for name, size in SPLITS.items():
            if share < size:
                return name
            share -= size
        return next(reversed(SPLITS))


def digits() -> list[Labelled]:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI, CC BY 4.0), white on black."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).astype(np.uint8)
    return [Labelled(image, str(label)) for image, label in zip(images, found.target, strict=True)]


def animals(wheel: Path) -> list[Labelled]:
    """Return the silhouettes of 28 x 28 pixels of the package animal-mnist (MIT), each one once.

    Args:
        wheel: its wheel, e.g. of `pip download --no-deps animal-mnist==0.4`. Nothing of it is run, and nothing unpickled.
    """
    with zipfile.ZipFile(wheel) as archive:
        arrays = {
            kind: gzip.decompress(archive.read(f"animal_mnist/data/Animal_MNIST/animal_{kind}_version_3.gz"))
            for kind in ("data", "label")
        }
    images = np.frombuffer(_pickled_bytes(arrays["data"]), np.uint8).reshape(-1, 28, 28)
    labels = np.frombuffer(_pickled_bytes(arrays["label"]), np.int64)
    found = {image.tobytes(): (image, label) for image, label in zip(images, labels, strict=True)}
    return [Labelled(image, ANIMALS[label]) for image, label in found.values()]


def _pickled_bytes(data: bytes) -> bytes:
    """Return the longest bytes object that a pickle holds, by reading its opcodes: the values of a pickled array."""
    found = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, bytes)]
    return max(found, key=len)


def sentiments(sdist: Path) -> list[Labelled]:
    """Return the sentences that people rated for VADER (Hutto and Gilbert, 2014), as negative, neutral or positive.

    Mean ratings of at most -0.75 are negative, of at least 0.75 positive, and within 0.3 of 0 neutral; others are left out.

    Args:
        sdist: source distribution of the package vaderSentiment, e.g. of
            `pip download --no-deps --no-binary :all: vaderSentiment==3.3.2`.
    """
    rows: dict[str, float] = {}
    with tarfile.open(sdist) as outer:
        name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        member = outer.extractfile(name)
        assert member is not None
        with tarfile.open(fileobj=io.BytesIO(member.read())) as inner:
            for name in sorted(n for n in inner.getnames() if n.endswith("_GroundTruth.txt")):
                file = inner.extractfile(name)
                assert file is not None
                rows.update(_ratings(file.read().decode("utf-8", "replace")))
    return [Labelled(text, label) for text, rating in rows.items() if (label := _sentiment(rating))]


def _ratings(table: str) -> Iterator[tuple[str, float]]:
    for line in table.splitlines():
        parts = line.split("\t")
        if len(parts) == 3 and parts[2].strip():
            yield parts[2].strip(), float(parts[1])


def _sentiment(rating: float) -> str | None:
    if abs(rating) <= 0.3:
        return "neutral"
    if abs(rating) < 0.75:
        return None
    return "positive" if rating > 0 else "negative"
