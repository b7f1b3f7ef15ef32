"""Tests of reading: files and arrays of every kind give exactly computed pixels, and bad files give a reason."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.datamodules import DataError
from zoo.datamodules.image_arrays import ArrayFile
from zoo.datamodules.image_files import Unreadable, decode, fitted, on_white, sixteen_bits

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)  # (H, W, C)
GREY = COLOURS[..., 0]


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def palette(colours, indices, **options):
    image = Image.new("P", (len(indices), 1))
    image.putpalette(sum(colours, []))
    image.putdata(indices)
    return saved(image, **options)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, clockwise
    return saved(COLOURS, exif=exif)


def frames():
    return saved(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)])


def blend(colour, opacity):
    return round((colour * opacity + 255 * (255 - opacity)) / 255)


FULL, HALF = [200, 100, 0, 255], [200, 100, 0, 128]
FILES = {
    "colours": (saved(COLOURS), COLOURS.transpose(2, 0, 1)),
    "grey": (saved(GREY), GREY[None]),
    "bits": (saved(Image.fromarray(GREY > 99)), (GREY > 99)[None] * 255),
    "16 bits": (saved(np.uint16([[0, 128, 129, 257, 32_768, 65_535]])), [[[0, 0, 1, 1, 128, 255]]]),
    "16 bits in pgm": (b"P5 3 1 65535\n" + np.array([0, 257, 65_535], ">u2").tobytes(), [[[0, 1, 255]]]),
    "16 bits in tif": (saved(np.uint16([[0, 257, 65_535]]), "TIFF"), [[[0, 1, 255]]]),
    "fractions": (saved(np.float32([[0, 0.25, 1]]), "TIFF"), [[[0, 64, 255]]]),
    "opacity": (saved(np.uint8([[FULL, HALF, [9, 9, 9, 0]]])), [[[c, blend(c, 128), 255]] for c in (200, 100, 0)]),
    "grey with opacity": (saved(np.uint8([[[50, 255], [50, 128], [50, 0]]])), [[[50, blend(50, 128), 255]]]),
    "palette": (palette([[10, 20, 30], [40, 50, 60]], [1, 0]), [[[40, 10]], [[50, 20]], [[60, 30]]]),
    "grey palette": (palette([[10] * 3, [40] * 3], [1, 0]), [[[40, 10]]]),
    "palette with opacity": (palette([[10] * 3, [40] * 3], [1, 0], transparency=0), [[[40, 255]]]),
    "cmyk": (saved(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF"), [[[0]], [[255]], [[255]]]),
    "turned": (turned(), np.rot90(COLOURS, -1).transpose(2, 0, 1)),
    "frames": (frames(), GREY[None]),
    "webp": (saved(COLOURS, "WEBP", lossless=True), COLOURS.transpose(2, 0, 1)),
    "bmp": (saved(COLOURS, "BMP"), COLOURS.transpose(2, 0, 1)),
    "ppm": (saved(COLOURS, "PPM"), COLOURS.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_gives_exactly_these_pixels(kind):
    content, expected = FILES[kind]
    image = decode(content)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_a_jpeg_file_gives_nearly_its_pixels():
    smooth = np.add.outer(np.arange(16), np.arange(16)).astype(np.uint8) * 8
    np.testing.assert_allclose(decode(saved(smooth, "JPEG", quality=95))[0].astype(int), smooth, atol=4)


def png_of(width, height):
    """Return a PNG file whose header says that it has this many pixels. It has no data."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"a text", "no image of a known format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
    "half a png": (saved(COLOURS)[:-40], "damaged"),
    "half a jpeg": (saved(np.tile(COLOURS, (20, 20, 1)), "JPEG")[:900], "damaged"),
    "no pixels": (png_of(0, 5), "damaged|no image"),
    "a bomb": (png_of(12_000, 12_000), "12,000 x 12,000 pixels"),
    "a larger bomb": (png_of(60_000, 60_000), "pixels"),
    "fractions above 1": (saved(np.float32([[0, 3]]), "TIFF"), "from 0 to 3, outside"),
    "not a number": (saved(np.float32([[0, math.nan]]), "TIFF"), "infinite or NaN"),
    "32 bits": (saved(np.int32([[0, 70_000]]), "TIFF"), "more than 16 bits"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gives_a_reason(kind):
    content, reason = BAD[kind]
    with pytest.raises(Unreadable, match=reason):
        decode(content)


def test_colours_become_grey_by_their_weights_and_grey_becomes_three_equal_channels():
    image = COLOURS.transpose(2, 0, 1)
    red, green, blue = image.astype(int)
    luma = (19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16  # 0.299, 0.587 and 0.114
    np.testing.assert_array_equal(fitted(image, None, 1), luma[None])
    np.testing.assert_array_equal(fitted(GREY[None], None, 3), np.stack([GREY] * 3))
    assert fitted(image, None, None) is image


@pytest.mark.parametrize(
    ("size", "part"),
    [((6, 3), np.s_[:, 1:4]), ((2, 5), np.s_[2:4, :]), ((5, 5), np.s_[0:5, :]), ((6, 5), np.s_[:, :])],
)
def test_the_centre_is_cropped_to_the_aspect_and_kept_as_it_is_where_it_has_the_size(size, part):
    np.testing.assert_array_equal(fitted(GREY[None], size, 1)[0], GREY[part])


def lanczos(row, n):
    """Return ``row``, (m,), resized to n pixels with a Lanczos filter of three lobes in floating point."""
    m, result = len(row), []
    scale = max(1, m / n)
    for i in range(n):
        centre = (i + 0.5) * m / n
        x = (np.arange(m) + 0.5 - centre) / scale
        weights = np.where(abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        result.append(weights @ row / weights.sum())
    return np.clip(result, 0, 255)


@pytest.mark.parametrize("side", [5, 16, 40])
def test_resizing_averages_with_a_lanczos_filter(side):
    image = np.random.default_rng(1).integers(0, 256, (16, 16)).astype(np.uint8)
    rows = np.round([lanczos(row, side) for row in image.astype(float)])
    expected = np.round([lanczos(column, side) for column in rows.T]).T
    np.testing.assert_allclose(fitted(image[None], (side, side), 1)[0].astype(int), expected, atol=1)


# Arrays.


def array_file(folder, array, name="a.npy", **named):
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **named)
    else:
        torch.save(array, path)
    return ArrayFile(path)


HWC = np.stack([COLOURS, COLOURS[::-1]])
ARRAYS = {
    "channels last": (HWC, HWC.transpose(0, 3, 1, 2)),
    "channels first": (HWC.transpose(0, 3, 1, 2), HWC.transpose(0, 3, 1, 2)),
    "without channels": (HWC[..., 0], HWC[:, None, :, :, 0]),
    "16 bits": (np.uint16([[[0, 129, 65_535]]]), [[[[0, 1, 255]]]]),
    "fractions": (np.array([[[0, 0.25, 1]]]), [[[[0, 64, 255]]]]),
    "truth values": (np.array([[[True, False]]]), [[[[255, 0]]]]),
    "64 bits": (np.array([[[7, 255]]]), [[[[7, 255]]]]),
    "opacity": (np.uint8([[[FULL, HALF]] * 5]), [[[[c, blend(c, 128)]] * 5 for c in (200, 100, 0)]]),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("name", ["a.npy", "a.pt"])
def test_an_array_gives_exactly_these_pixels(kind, name, tmp_path):
    array, expected = ARRAYS[kind]
    if name == "a.pt":
        array = torch.from_numpy(array.copy())
    source = array_file(tmp_path, array, name)
    np.testing.assert_array_equal([source.read(i) for i in range(len(source))], expected)
    assert source.labels is None and source.parts is None


def test_labels_and_parts_come_with_the_arrays(tmp_path):
    x = np.zeros((3, 4, 4), np.uint8)
    np.save(tmp_path / "b_labels.npy", np.array(["dog", "cat", "dog"]))
    beside = array_file(tmp_path, x, "b.npy")
    assert beside.classes == ["cat", "dog"] and beside.labels.tolist() == [1, 0, 1]
    named = array_file(tmp_path, None, "c.npz", images=x, labels=np.array([5, 5, 9]))
    assert named.classes == ["5", "9"] and named.labels.tolist() == [0, 0, 1]
    pair = array_file(tmp_path, (torch.from_numpy(x), torch.tensor([[1], [0], [1]])), "d.pt")
    assert pair.labels.tolist() == [1, 0, 1]
    keras = array_file(tmp_path, None, "e.npz", x_test=x[:1], y_test=[3], x_train=x[:2], y_train=[3, 4])
    assert keras.parts == ["train", "train", "test"] and keras.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 4), np.uint8), r"shape \[3, 4\]"),
        (np.zeros((3, 4, 0), np.uint8), r"shape \[3, 4, 0\]"),
        (np.zeros((0, 4, 4), np.uint8), "no images"),
        (np.zeros((3, 7, 8, 9), np.uint8), r"shape \[3, 7, 8, 9\]"),
        (np.array(["a"]), "must be numbers"),
        (np.array([object()]), "cannot be read safely: it holds Python objects"),
    ],
)
def test_an_array_that_is_no_set_of_images_is_named(array, reason, tmp_path):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=reason):
        ArrayFile(tmp_path / "a.npy")


def test_an_array_file_that_is_damaged_or_has_no_images_is_named(tmp_path):
    for name in ("a.npy", "a.npz", "a.pt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match="cannot be read safely"):
            ArrayFile(tmp_path / name)
    with pytest.raises(DataError, match="has the arrays pictures, but no images"):
        array_file(tmp_path, None, "b.npz", pictures=np.zeros((2, 4, 4)))
    with pytest.raises(DataError, match="labels of shape"):
        array_file(tmp_path, None, "c.npz", x=np.zeros((2, 4, 4)), y=np.zeros(3, int))


class Pickled:
    """An object whose unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    bomb = Pickled(tmp_path / "exploded")
    np.save(tmp_path / "a.npy", np.array([bomb]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=np.array([bomb]))
    torch.save({"x": bomb}, tmp_path / "a.pt")
    for name in ("a.npy", "a.npz", "a.pt"):
        with pytest.raises(DataError, match="cannot be read safely: it holds Python objects"):
            ArrayFile(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_values_of_an_unknown_range_are_named_for_each_image(tmp_path):
    source = array_file(tmp_path, np.array([[[0, 300]], [[0, -1]], [[0, 5]]]))
    for i, reason in ((0, "from 0 to 300"), (1, "from -1 to 0")):
        with pytest.raises(Unreadable, match=reason):
            source.read(i)
    assert source.read(2).tolist() == [[[0, 5]]]


def test_every_colour_is_blended_with_white_at_every_opacity_and_rounded():
    colour, opacity = np.meshgrid(np.arange(256), np.arange(256))
    exact = (colour * opacity + 255 * (255 - opacity)) / 255
    assert np.array_equal(on_white(np.stack([colour, opacity]).astype(np.uint8))[0], np.floor(exact + 0.5))


def test_every_value_of_sixteen_bits_is_rounded():
    values = np.arange(65_536)
    assert np.array_equal(sixteen_bits(values), np.floor(values / 257 + 0.5))
