"""Images of records: the same pixels whatever they are given as, and none beyond the limits."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradiend_hub.data import Picture
from gradiend_hub.errors import DataError

PIXELS = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7) * 7


def file_of(image: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises pixels that are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_form_has_the_same_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    (tmp_path / "a.png").write_bytes(file_of(image))
    forms: list[Any] = [
        image, PIXELS, PIXELS[..., None], PIXELS.tolist(), PIXELS.astype(np.int64), file_of(image), tmp_path / "a.png",
        {"bytes": file_of(image), "path": None}, file_of(image, "BMP"), Picture.read(image),
        "data:image/png;base64," + base64.b64encode(file_of(image)).decode(),
    ]  # fmt: skip
    for form in forms:
        picture = Picture.read(form)
        assert np.array_equal(np.asarray(picture.open().convert("L")), PIXELS)
        again = Picture.read(picture.uri())
        assert np.array_equal(np.asarray(again.open().convert("L")), PIXELS)
    assert Picture.read(image) == Picture.read(PIXELS) and len({Picture.read(image), Picture.read(PIXELS)}) == 1
    assert Picture.read(image).name != Picture.read(255 - PIXELS).name


def test_a_photo_stays_a_jpeg_and_is_turned_as_its_camera_says() -> None:
    image, exif = Image.fromarray(np.repeat(PIXELS[..., None], 3, 2)), Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    picture = Picture.read(buffer.getvalue())
    assert picture.uri().startswith("data:image/jpeg;base64,") and Picture.read(picture.uri()) == picture
    assert picture.open().size == (5, 7)
    assert Image.open(io.BytesIO(picture.thumbnail(4).data)).size == (3, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "no image that can be read"),
        (b"GIF89a", "no image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
        (file_of(Image.fromarray(PIXELS))[:-30], "no image that can be read"),
        (png_of_size(100_000, 100_000), "no image that can be read|pixels, more than"),
        (png_of_size(9_000, 9_000), "9000 x 9000 pixels, more than the 67,108,864"),
        (png_of_size(60_000, 1), "one side may be at most 64 times the other"),
        (png_of_size(0, 4), "no image that can be read|one side"),
        ("/etc/passwd", "A text never names a file here"),
        ("https://example.org/a.png", "A text never names a file here"),
        ("file:///etc/passwd", "A text never names a file here"),
        ("data:image/svg+xml;base64,AAAA", "A text never names a file here"),
        ("data:image/png;base64,AAA", "base64 is damaged|no image that can be read"),
        ("data:image/png;base64,AAAA", "no image that can be read"),
        ({"path": "/etc/passwd", "bytes": None}, "cast_column"),
        ({"path": "/etc/passwd"}, "cast_column"),
        (Path("/nowhere/a.png"), r"the image .*a\.png cannot be read"),
        (None, "expected an image"),
        (7, "expected an image"),
        ([[1, 2], [3]], "lists of unequal length|found an array"),
        ([[0.5, 1.0]], "integers 0 … 255"),
        ([[300, 1]], "integers 0 … 255"),
        ([], "integers 0 … 255"),
        (np.zeros((2, 2, 2), np.uint8), "integers 0 … 255"),
        (np.zeros((4, 400), np.uint8), "one side may be"),
    ],
)  # fmt: skip
def test_what_is_no_image(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Picture.read(value)


@pytest.mark.parametrize("form", ["file", "image", "TIFF"])
def test_values_of_sixteen_bits_lose_the_lower_eight(form: str) -> None:
    """As they are, PIL makes 255 of all that are larger."""
    deep = Image.fromarray(PIXELS.astype(np.uint16) << 8 | 17)
    picture = Picture.read(deep if form == "image" else file_of(deep, "PNG" if form == "file" else "TIFF"))
    assert np.array_equal(np.asarray(picture.open().convert("RGB"))[..., 0], PIXELS)
    assert np.array_equal(np.asarray(Picture.read(picture.uri()).open().convert("L")), PIXELS)


def test_values_of_thirty_two_bits_are_those_of_eight_or_refused() -> None:
    whole = Image.fromarray(PIXELS.astype(np.int32))
    assert whole.mode == "I" and np.array_equal(np.asarray(Picture.read(whole).open().convert("L")), PIXELS)
    for values, message in (
        (PIXELS.astype(np.int32) + 300, "integers 0 … 255"),
        (PIXELS.astype(np.float32), "integers 0 … 255"),
        (np.full((4, 4), np.nan, np.float32), "integers 0 … 255"),
    ):
        with pytest.raises(DataError, match=message):
            Picture.read(Image.fromarray(values))
        with pytest.raises(DataError, match="values of 32 bits"):
            Picture.read(file_of(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_images_of_every_mode_become_pixels(mode: str) -> None:
    image = Image.fromarray(np.stack([PIXELS, 255 - PIXELS, PIXELS // 2], -1))
    image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    found = np.asarray(Picture.read(image).open().convert("RGB"))
    assert found.shape == (5, 7, 3) and np.array_equal(found, np.asarray(image.convert("RGB")))


def test_palettes_of_several_transparencies_and_frames() -> None:
    """No warning comes of either, and of several frames the first is read."""
    image = Image.fromarray(PIXELS).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert np.asarray(Picture.read(file_of(image)).open().convert("RGB")).shape == (5, 7, 3)
    buffer = io.BytesIO()
    frames = [Image.fromarray(values) for values in (PIXELS, 255 - PIXELS)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(np.asarray(Picture.read(buffer.getvalue()).open().convert("L")), PIXELS)


def test_an_image_that_was_opened_and_is_cut_off() -> None:
    cut = Image.open(io.BytesIO(file_of(Image.fromarray(PIXELS))[:-30]))
    with pytest.raises(DataError, match="cannot be decoded"):
        Picture.read(cut)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradiend_hub.data.pictures.MOST_BYTES", 40)
    (tmp_path / "a.png").write_bytes(file_of(Image.fromarray(PIXELS)))
    with pytest.raises(DataError, match="more than 40 bytes"):
        Picture.read(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than the 40 that are read"):
        Picture.read((tmp_path / "a.png").read_bytes())
