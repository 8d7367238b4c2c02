"""Images from strangers: what is read as it is shown, and what is refused in one sentence with a remedy."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.media import picture as module
from pipeline.media.picture import inspect_picture, read_picture

RED, BLUE = (200, 30, 30), (20, 40, 220)


def two_colours(mode="RGB", size=(6, 4)):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def claiming(width, height):
    """A PNG of some dozen bytes whose header claims a size, and whose only row is cut off."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\1")[:4])
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        pytest.param("a.png", two_colours, {}, id="png"),
        pytest.param("a.jpg", two_colours, {"quality": 95, "subsampling": 0}, id="jpeg"),
        pytest.param("a.webp", two_colours, {"lossless": True}, id="webp"),
        pytest.param("a.bmp", two_colours, {}, id="bmp"),
        pytest.param("a.tiff", two_colours, {}, id="tiff"),
        pytest.param("a.gif", two_colours, {}, id="gif-of-one-picture"),
        pytest.param("a.png", lambda: two_colours().quantize(4), {}, id="palette"),
        pytest.param("a.png", lambda: two_colours("RGBA"), {}, id="opaque-alpha"),
        pytest.param("a.jpg", lambda: two_colours("CMYK"), {"quality": 95, "subsampling": 0}, id="cmyk"),
        pytest.param("a.anything", two_colours, {"format": "PNG"}, id="no-matter-its-name"),
    ],
)
def test_is_read_as_it_is_shown(tmp_path, name, make, options):
    path = saved(tmp_path / name, make(), **options)
    pixels = read_picture(path)
    assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
    # JPEG and a palette of the web round colours a little
    assert np.abs(pixels[:, 0].astype(int) - RED).max() < 30 and np.abs(pixels[:, -1].astype(int) - BLUE).max() < 30
    assert (inspect_picture(path).height, inspect_picture(path).width) == (4, 6)


def test_grey_is_three_equal_channels(tmp_path):
    pixels = read_picture(saved(tmp_path / "a.png", two_colours("L")))
    assert (pixels == pixels[..., :1]).all() and np.ptp(pixels) > 0


@pytest.mark.parametrize("turn", range(1, 9))
def test_turned_as_the_camera_says(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    expected = np.asarray(two_colours())
    # undo what the viewer will do
    stored = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
              5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x), 7: lambda x: np.rot90(x[:, ::-1]),
              8: lambda x: np.rot90(x, -1)}[turn](expected)  # fmt: skip
    path = saved(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    if turn == 7:  # transverse: mirrored along the other diagonal
        stored = expected[::-1, ::-1].swapaxes(0, 1)
        saved(path, Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read_picture(path), expected)
    assert (inspect_picture(path).height, inspect_picture(path).width) == (4, 6)


def animation(path, kind):
    frames = [two_colours(), two_colours().transpose(Image.Transpose.FLIP_LEFT_RIGHT), two_colours()]
    return saved(path, frames[0], format=kind, save_all=True, append_images=frames[1:])


def half_transparent(path):
    image = two_colours("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return saved(path, image)


def deep(path):
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(path)
    return path


def cut(path, **options):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, **options)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path


def written(path, data):
    path.write_bytes(data)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


DAMAGED = r"is damaged \(OSError\); copy or download it again"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(lambda p: p, r"cannot read the image .*x.png: No such file.*; check the path", id="none"),
        pytest.param(lambda p: p.parent, r"cannot read the image .*: Is a directory; check the path", id="folder"),
        pytest.param(pipe, r"it is not an ordinary file; check the path", id="pipe"),
        pytest.param(lambda p: written(p, b"hello"), r"x.png is not a PNG.* or TIFF image; save it as", id="text"),
        pytest.param(lambda p: written(p, b""), r"x.png is not a PNG", id="empty"),
        pytest.param(lambda p: written(p, EPS), r"x.png is not a PNG", id="postscript"),
        pytest.param(lambda p: written(p, b"\0\0\0\x18ftypisom"), r"x.png is not a PNG", id="video"),
        pytest.param(lambda p: written(p, claiming(20_000, 20_000)), r"at most 134 megapixels", id="20000x20000"),
        pytest.param(lambda p: written(p, claiming(12_000, 12_000)), r"is 12,000 x 12,000; use", id="12000x12000"),
        pytest.param(lambda p: written(p, claiming(2**31 - 1, 2**31 - 1)), r"far too large", id="exabytes"),
        pytest.param(lambda p: written(p, claiming(40, 40)), DAMAGED, id="header-only"),
        pytest.param(lambda p: written(p, claiming(0, 40)), r"is (damaged|not a PNG)", id="no-columns"),
        pytest.param(lambda p: cut(p, format="PNG"), DAMAGED, id="cut-png"),
        pytest.param(lambda p: cut(p, format="JPEG"), DAMAGED, id="cut-jpeg"),
        pytest.param(lambda p: animation(p, "GIF"), r"is an animation of 3 pictures; save one of them", id="gif"),
        pytest.param(lambda p: animation(p, "PNG"), r"is an animation of 3 pictures", id="apng"),
        pytest.param(lambda p: animation(p, "WEBP"), r"is an animation of 3 pictures", id="webp"),
        pytest.param(half_transparent, r"has transparent parts, which have no colour; put it on", id="alpha"),
        pytest.param(deep, r"another kind than 8 bits \(I;16.*\); save it as 8-bit PNG or JPEG", id="16-bits"),
    ],
)
def test_is_refused_in_one_sentence(tmp_path, make, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        inspect_picture(make(tmp_path / "x.png"))
    assert "\n" not in str(refused.value)


def test_a_name_that_no_file_can_have():
    with pytest.raises(ValueError, match="no file can have this name"):
        inspect_picture("x\ud800.png")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.png", two_colours())
    monkeypatch.setattr(module, "MAX_PIXELS", 20)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="is 6 x 4; use one of at most"):
        inspect_picture(path)
