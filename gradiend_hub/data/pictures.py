"""Images as values: the bytes of an image file, decoded within limits, whoever they are from.

Decoders have been the way in for attackers, and a file of a kilobyte can stand for gigabytes of pixels. So only common
formats are decoded, after their size was read from the header, and a text never names a file or an address.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradiend_hub.errors import DataError, first_line
from gradiend_hub.lazy import require

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are decoded; of several frames, the first."""

MOST_BYTES = 2**26
"""Largest image file."""

MOST_PIXELS = 2**26
"""Most pixels of an image: 200 MB in RGB."""

MOST_STRETCH = 64
"""Most times that one side may be as long as the other: scaled by its shorter side, the longer one would be huge."""

_URI = re.compile(r"data:image/(?:png|jpeg|webp);base64,([A-Za-z0-9+/]+={0,2})")
_PURPOSE = "Reading images"


@dataclass(frozen=True)
class Picture:
    """An image file in memory. Equal bytes are equal pictures.

    Attributes:
        data: Its bytes; `read` has checked that they can be decoded.
    """

    data: bytes

    @classmethod
    def read(cls, value: Any) -> Picture:
        """Make a picture of whatever stands for an image in a record.

        Args:
            value: An image of PIL, the bytes of a file, `{"bytes": …}` (an image of `datasets` that is not decoded), a
                `pathlib.Path`, an array or nested lists of integers 0 … 255 of shape [H, W] or [H, W, channels], or a
                `data:image/…;base64,…` address.

        Raises:
            DataError: It is none of these, or no image, or one beyond the limits.
        """
        picture = cls(_bytes_of(value))
        try:
            picture.open()
        except DataError as error:
            if isinstance(value, Path):
                raise DataError(f"{value}: {error}") from error
            raise
        return picture

    def open(self) -> Any:
        """Decode it: an image of PIL of eight bits a channel, turned as its camera says.

        Raises:
            DataError: It is no image, or one beyond the limits.
        """
        image_module, operations = require("PIL.Image", _PURPOSE), require("PIL.ImageOps", _PURPOSE)
        if len(self.data) > MOST_BYTES:
            raise DataError(f"the image has {len(self.data):,} bytes, more than the {MOST_BYTES:,} that are read.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image_module.DecompressionBombWarning)
                warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # damaged metadata
                image = image_module.open(io.BytesIO(self.data), formats=FORMATS)
                _require_size(image.size)
                image.load()
                return operations.exif_transpose(_of_eight_bits(image))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # every decoder has errors of its own
            unknown = isinstance(error, image_module.UnidentifiedImageError)
            reason = "its format is unknown" if unknown else first_line(error)
            raise DataError(
                f"this is no image that can be read: {reason}. Expected a whole file, of at most {MOST_PIXELS:,} pixels, in "
                f"one of the formats {', '.join(FORMATS)}."
            ) from error

    @cached_property
    def name(self) -> str:
        """Name in texts, made of the content."""
        return f"image {hashlib.sha256(self.data).hexdigest()[:12]}"

    def __str__(self) -> str:
        return self.name

    def uri(self) -> str:
        """Return it as a `data:` address, in PNG unless it is JPEG or WebP; `read` reads it back, pixel by pixel."""
        kind = next((kind for start, kind in _STARTS.items() if self.data.startswith(start)), None)
        data = self.data if kind is not None else _png(self.open())
        return f"data:image/{kind or 'png'};base64,{base64.b64encode(data).decode()}"

    def thumbnail(self, side: int) -> Picture:
        """Return it as PNG of at most `side` pixels a side; one that is smaller keeps its size."""
        image = self.open().convert("RGB")
        image.thumbnail((side, side))
        return Picture(_png(image))


_STARTS = {b"\x89PNG\r\n": "png", b"\xff\xd8\xff": "jpeg"}


def _bytes_of(value: Any) -> bytes:
    """Return the bytes of an image file."""
    if isinstance(value, Picture):
        return value.data
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return _of_uri(value)
    if isinstance(value, Path):
        return _of_file(value)
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        raise DataError(
            f"expected an image, found a mapping with the keys {sorted(map(str, value))[:5]} and no 'bytes'. Let `datasets` "
            "decode the column: dataset.cast_column('image', datasets.Image())."
        )
    image_module = require("PIL.Image", _PURPOSE)
    if isinstance(value, image_module.Image):
        _require_size(value.size)
        try:
            return _png(image_module.fromarray(_pixels(value)) if value.mode in ("I", "F") else value)
        except DataError:
            raise
        except (OSError, SyntaxError, ValueError) as error:  # opened, and decoded only now
            raise DataError(f"this image of PIL cannot be decoded: {first_line(error)}. Give a whole file.") from error
    if isinstance(value, Sequence) or hasattr(value, "__array__"):
        return _png(image_module.fromarray(_pixels(value)))
    raise DataError(
        f"expected an image (of PIL, bytes of a file, or an array of integers 0 … 255), found {value!r:.80}."
    )


def _of_uri(text: str) -> bytes:
    match = _URI.fullmatch(text) if len(text) <= 2 * MOST_BYTES else None
    if match is None:
        raise DataError(
            f"expected an image, found the text {text[:80]!r}. A text never names a file here: give the opened image, its "
            "bytes, a pathlib.Path, or let `datasets` read it, dataset.cast_column('image', datasets.Image())."
        )
    try:
        return base64.b64decode(match[1], validate=True)
    except binascii.Error as error:
        raise DataError(f"the image's base64 is damaged: {error}.") from error


def _of_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES:,} bytes, which is the most that is read of an image.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the image {path} cannot be read: {error.strerror or error}.") from error


def _pixels(value: Any) -> np.ndarray[Any, Any]:
    """Return pixels [H, W] or [H, W, 3 or 4] as uint8."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"expected an image, found lists of unequal length: {error}.") from error
    whole = array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255
    if not whole or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(
            "expected an image as integers 0 … 255 of shape [H, W] or [H, W, 1, 3 or 4], found an array of "
            f"{array.dtype} and shape {list(array.shape)}."
        )
    _require_size((array.shape[1], array.shape[0]))
    return array.astype(np.uint8)[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array.astype(np.uint8)


def _of_eight_bits(image: Any) -> Any:
    """Return an image whose values have eight bits. Those of sixteen lose the lower ones: PIL would cut them off at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = require("PIL.Image", _PURPOSE).fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey.info = image.info
        return grey
    if image.mode in ("I", "F"):
        raise DataError(
            f"the image has values of 32 bits (mode {image.mode!r}), whose range nothing tells. Save it with 8 or 16 bits, "
            "or give its pixels as integers 0 … 255."
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")  # a palette of several transparencies
    return image


def _require_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise DataError(f"the image has {width} x {height} pixels, more than the {MOST_PIXELS:,} that are read.")
    if min(size) < 1 or max(size) > MOST_STRETCH * min(size):
        raise DataError(
            f"the image has {width} x {height} pixels; one side may be at most {MOST_STRETCH} times the other."
        )


def _png(image: Any) -> bytes:
    """Encode an image without loss; what PNG has no form for becomes RGB."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
