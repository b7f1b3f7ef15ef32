"""Odd and bad images, arrays and folders, and what the data module of images makes of each.

    PYTHONPATH=.:tests python tests/bad_images.py    # the whole table

A case is read, and then its pixels or labels are compared with known ones, or it is refused with a known message.
"""

import io
import os
import re
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from zoo.checks.errors import UserError
from zoo.datamodules import OwnImages

SIDE = 8
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
OPACITY = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
MANY = np.random.default_rng(3).integers(0, 256, (20, SIDE, SIDE), dtype=np.uint8)
LABELS = np.arange(20) % 2


class Case(NamedTuple):
    """An input of the data module.

    Attributes:
        name: description.
        make: function of an empty folder that writes the input. It returns options of OwnImages besides ``path``.
        expected: a pattern of the message; or the last image (H, W), (C, H, W) or None; or a function of the module.
        options: options of OwnImages.
    """

    name: str
    make: Callable[[Path], dict[str, Any] | None]
    expected: Any
    options: dict[str, Any] = {}  # noqa: RUF012


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes) -> np.ndarray:
    """Return the pixels that Pillow reads, (H, W) or (C, H, W)."""
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG file made by hand. ``rows`` are the bytes of the rows, each after a filter byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def file_case(name: str, content: bytes, expected: Any, file: str = "z.png", **options: Any) -> Case:
    """Return the case of one odd file, which is the last one, in a folder of grey images."""

    def make(folder: Path) -> None:
        good(folder)
        (folder / file).write_bytes(content)

    return Case(name, make, expected, options)


def good(folder: Path, n: int = 6, side: int = SIDE) -> None:
    """Write ``n`` grey images."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(np.resize(MANY[i], (side, side))).save(folder / f"a{i}.png")


def blended(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return colours (H, W) or (H, W, 3) on white."""
    weight = opacity if colours.ndim == 2 else opacity[..., None]
    return np.round((colours * weight.astype(float) + 255.0 * (255 - weight)) / 255).astype(np.uint8)


def first(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) as (3, H, W)."""
    return pixels.transpose(2, 0, 1)


def image_files() -> Iterator[Case]:
    grey, jpeg = encoded(GREY), encoded(COLOUR, "JPEG", quality=95)
    yield file_case("empty file", b"", "z.png: the file is empty")
    yield file_case("text", b"these are no pixels", "z.png: no image of a known format")
    yield file_case("web page", b"<!DOCTYPE html><html>log in</html>", "z.png: no image of a known format")
    for part in (10, 30, len(grey) // 2, len(grey) - 40):
        yield file_case(f"PNG of {part} of {len(grey)} bytes", grey[:part], "z.png: (no image|damaged)")
    yield file_case("PNG without its end chunk", grey[:-12], GREY)
    for part in (15, len(jpeg) // 3, len(jpeg) // 2, len(jpeg) * 9 // 10):
        yield file_case(f"JPEG of {part} of {len(jpeg)} bytes", jpeg[:part], "z.jpg: (no image|damaged)", "z.jpg")
    flipped = bytearray(grey)
    flipped[-20] ^= 255
    yield file_case("PNG with a wrong byte", bytes(flipped), "z.png: damaged")
    yield file_case("PNG named .jpg", grey, GREY, "z.jpg")
    yield file_case("JPEG named .png", jpeg, decoded(jpeg))
    yield file_case("PNG without an ending", grey, GREY, "z")
    yield file_case("PNG named .txt", grey, GREY, "z.txt")
    deep = np.random.default_rng(4).integers(0, 65_536, (SIDE, SIDE), dtype=np.uint16)
    yield file_case("16-bit grey PNG", encoded(deep), np.round(deep / 257).astype(np.uint8))
    wide = np.random.default_rng(5).integers(0, 65_536, (SIDE, SIDE, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    yield file_case("16-bit colour PNG", png(SIDE, SIDE, 16, 2, rows), first((wide >> 8).astype(np.uint8)))
    palette = Image.fromarray(COLOUR).quantize(16)
    yield file_case("palette", encoded(palette), first(np.asarray(palette.convert("RGB"))))
    clear = encoded(palette, transparency=bytes([0, 128, *[255] * 14]))
    rgba = np.asarray(Image.open(io.BytesIO(clear)).convert("RGBA"))
    yield file_case("palette with transparency", clear, first(blended(rgba[..., :3], rgba[..., 3])))
    yield file_case("RGBA", encoded(np.dstack([COLOUR, OPACITY])), first(blended(COLOUR, OPACITY)))
    yield file_case("grey with opacity", encoded(np.dstack([GREY, OPACITY])), blended(GREY, OPACITY))
    bits = GREY > 127
    yield file_case("1 bit", encoded(Image.fromarray(bits)), bits.astype(np.uint8) * 255)
    cmyk = encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95)
    expected = first(np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))
    yield file_case("CMYK JPEG", cmyk, expected, "z.jpg")
    soft = encoded(GREY, "JPEG")
    yield file_case("grey JPEG", soft, decoded(soft), "z.jpg")
    progressive = encoded(COLOUR, "JPEG", progressive=True)
    yield file_case("progressive JPEG", progressive, decoded(progressive), "z.jpg")
    turned = {1: GREY, 2: GREY[:, ::-1], 3: GREY[::-1, ::-1], 4: GREY[::-1], 5: GREY.T, 6: np.rot90(GREY, -1)}
    turned |= {7: GREY[::-1, ::-1].T, 8: np.rot90(GREY)}
    for orientation, pixels in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield file_case(f"EXIF orientation {orientation}", encoded(GREY, exif=exif), pixels)
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    yield file_case("animated GIF", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), GREY, "z.gif")
    yield file_case("TIFF of two pages", encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), GREY)
    fraction = (GREY / 255).astype(np.float32)
    yield file_case("TIFF of numbers in [0, 1]", encoded(fraction, "TIFF"), GREY, "z.tif")
    yield file_case("TIFF of other numbers", encoded(fraction * 9, "TIFF"), "floating-point values from .*outside")
    yield file_case("TIFF of NaN", encoded(fraction * np.nan, "TIFF"), "infinite or NaN")
    yield file_case("BMP", encoded(COLOUR, "BMP"), first(COLOUR), "z.bmp")
    yield file_case("WebP", encoded(COLOUR, "WEBP", lossless=True), first(COLOUR), "z.webp")
    yield file_case("PPM", encoded(COLOUR, "PPM"), first(COLOUR), "z.ppm")
    yield file_case("bomb of 60,000 x 60,000", png(60_000, 60_000, 8, 0, b""), "z.png: .*more than 100,000,000")
    yield file_case("image of 10,001 x 10,001", png(10_001, 10_001, 8, 0, b""), "z.png: .*more than 100,000,000")
    yield file_case("PNG of 0 x 0", png(0, 0, 8, 0, b""), "z.png: (no image|damaged)")
    yield file_case("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "z.svg: no image of a known format", "z.svg")
    yield file_case("PDF", encoded(GREY, "PDF"), "z.pdf: no image of a known format", "z.pdf")
    yield file_case("EPS", encoded(GREY, "EPS"), "z.eps: no image of a known format", "z.eps")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.png", grey)
    yield file_case("zip archive", packed.getvalue(), "z.zip: no image of a known format", "z.zip")
    yield file_case("list of files", b"name,label\na0.png,1\n", "z.csv: no image of a known format", "z.csv")
    yield file_case("one colour image among grey ones", encoded(COLOUR), first(COLOUR))
    luma = np.asarray(Image.fromarray(COLOUR).convert("L"))
    yield file_case("colour image with channels=1", encoded(COLOUR), luma, channels=1)
    yield file_case("grey image with channels=3", grey, np.stack([GREY] * 3), channels=3)
    big = np.kron(GREY, np.ones((3, 3), np.uint8))
    yield file_case("mixed sizes", encoded(big), r"images of 2 sizes.*8 x 8 \(6\), 24 x 24 \(1\).*data.size=8")
    yield file_case("mixed sizes with size=8", encoded(big), lambda data: data.shape == [1, 8, 8], size=8)
    yield file_case("one pixel with size=8", encoded(GREY[:1, :1]), np.full((8, 8), GREY[0, 0]), size=8)
    line = np.full((1, 500), 77, np.uint8)
    yield file_case("a line of 1 x 500 with size=8", encoded(line), np.full((8, 8), 77), size=8)
    yield file_case("the file skipped by skip=true", b"no image", lambda data: len(data.prepared.kept) == 6, skip=True)


def options_cases() -> Iterator[Case]:
    for key, value, message in [
        ("size", 0, "data.size must be an integer >= 1|data.size.*0"),
        ("size", -4, "data.size"),
        ("size", 8.5, "data.size"),
        ("size", "8x8", "data.size"),
        ("size", [8], "data.size must be an integer or .height, width."),
        ("size", 100_000, "data.size.*100000|data.size.*100,000"),
        ("channels", 2, r"data.channels must be 1 \(grey\), 3 \(colours\) or null, got 2"),
        ("channels", "RGB", "data.channels must be 1"),
        ("val_fraction", 0, "data.val_fraction must be above 0"),
        ("test_fraction", 0.95, "must be below 1, got 1.05"),
        ("batch_size", 1000, "data.batch_size is 1000, but an epoch has"),
        ("memory_limit", -1, "data.memory_limit"),
        ("path", "", "data.path is empty"),
        ("path", 7, "data.path is 7, but must be text"),
        ("path", "~nobody-of-this-name/x", "data.path.*nobody-of-this-name"),
    ]:
        yield Case(f"data.{key}={value}", good, message, {key: value})


def array_case(name: str, arrays: Any, expected: Any, file: str = "x.npy", **options: Any) -> Case:
    """Return the case of an array, or of a dictionary of arrays in a .npz file, or of an object in a .pt file."""

    def make(folder: Path) -> dict[str, Any]:
        path = folder / file
        if isinstance(arrays, bytes):
            path.write_bytes(arrays)
        elif file.endswith(".pt"):
            torch.save(arrays, path)
        elif isinstance(arrays, dict):
            np.savez(path, **arrays)
        else:
            np.save(path, arrays)
        return {"path": str(path)}

    return Case(name, make, expected, options)


class Runs:
    """An object whose pickle runs code."""

    def __reduce__(self):
        return os.mkdir, ("/nowhere/at/all",)


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **array) if isinstance(array, dict) else np.save(file, array)
    return file.getvalue()


def arrays() -> Iterator[Case]:
    unit = MANY / 255
    yield array_case("bytes", MANY, MANY[-1])
    yield array_case("numbers in [0, 1]", unit, MANY[-1])
    yield array_case("half precision", (MANY > 127).astype(np.float16), (MANY[-1] > 127) * 255)
    for name, value in (("NaN", np.nan), ("infinity", np.inf)):
        wrong = unit.copy()
        wrong[5, 0, 0] = value
        yield array_case(name, wrong, "image 5: floating-point values that are infinite or NaN")
    yield array_case("numbers in [-1, 1]", unit * 2 - 1, "no images that can.*values from -.*outside")
    yield array_case("numbers in [0, 255]", MANY.astype(np.float32), "floating-point values from .* to 255, outside")
    yield array_case("objects (a pickle)", np.array([None, {}], object), "it holds Python objects")
    yield array_case("booleans", MANY > 127, (MANY[-1] > 127) * 255)
    yield array_case("complex numbers", MANY.astype(complex), "values of type complex128")
    yield array_case("texts", MANY.astype(str), "values of type <U")
    yield array_case("dates", MANY.astype("M8[s]"), "values of type datetime64")
    yield array_case("records", np.zeros(9, [("a", "u1"), ("b", "u1")]), "values of type ")
    yield array_case("64-bit integers", MANY.astype(np.int64), MANY[-1])
    yield array_case("negative integers", MANY.astype(np.int16) - 9, "image 0: integers from -")
    yield array_case("integers above 255", MANY.astype(np.int32) * 2, "integers from .*outside 0 to 255")
    yield array_case("16 bits", MANY.astype(np.uint16) * 257, MANY[-1])
    yield array_case("16 bits, big-endian", (MANY.astype(np.uint16) * 257).astype(">u2"), MANY[-1])
    yield array_case("Fortran order", np.asfortranarray(MANY), MANY[-1])
    colours = np.random.default_rng(6).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    yield array_case("channels last", colours, first(colours[-1]))
    yield array_case("channels first", colours.transpose(0, 3, 1, 2), first(colours[-1]))
    yield array_case("one image", MANY[0], r"shape \[8, 8\], but images must be")
    yield array_case("five dimensions", MANY[None, None], r"shape \[1, 1, 20, 8, 8\]")
    yield array_case("five channels", np.zeros((9, 5, 8, 8), "u1"), r"shape \[9, 5, 8, 8\].*1 to 4 channels")
    yield array_case("no images", MANY[:0], "has no images: its arrays are empty")
    yield array_case("images without pixels", MANY[:, :0], r"shape \[20, 0, 8\]")
    yield array_case("two images", MANY[:2], "has too few images")
    yield array_case("a single number", np.uint8(3), r"shape \[\]")
    yield array_case("cut .npy", saved(MANY)[:-9], "it is damaged")
    yield array_case("empty .npy", b"", "x.npy cannot be read")
    yield array_case("text named .npy", b"1 2 3", "x.npy cannot .* another format")
    yield array_case("cut .npz", saved({"x": MANY})[:-30], "it is damaged", "x.npz")
    yield array_case("text named .npz", b"1 2 3", "x.npz cannot .* another format", "x.npz")
    yield array_case("compressed .npy", zlib.compress(saved(MANY)), "is no folder and no .npy", "x.npy.gz")
    yield array_case(".npz with other names", {"a": MANY, "b": LABELS}, "arrays a, b, but no images: name", "x.npz")
    yield array_case(".npz with objects", {"x": np.array([None])}, "Python objects", "x.npz")
    yield array_case("only x_test", {"x_test": MANY}, "has x_test, but no images x_train", "x.npz")

    def labelled(name: str, y: Any, expected: Any) -> Case:
        return array_case(f"labels: {name}", {"x": MANY, "y": y}, expected, "x.npz")

    yield labelled("integers", LABELS, lambda data: data.source.labels.tolist() == LABELS.tolist())
    yield labelled("too few", LABELS[:-1], r"labels of shape \[19\], but must have one for each of 20 images")
    yield labelled("names", np.array(["cat", "dog"])[LABELS], lambda data: data.source.classes == ["cat", "dog"])
    yield labelled("negative", LABELS - 1, lambda data: data.source.classes == ["-1", "0"] and data.num_classes == 2)
    yield labelled("huge", LABELS * 10**15, lambda data: data.source.labels.tolist() == LABELS.tolist())
    yield labelled("numbers with a fraction", LABELS / 2, "labels of type float64")
    yield labelled("one-hot", np.eye(2)[LABELS], r"labels of shape \[20, 2\]")
    yield labelled("a column", LABELS[:, None], lambda data: data.source.labels.tolist() == LABELS.tolist())
    yield labelled("one class", LABELS * 0, lambda data: data.num_classes is None)
    yield labelled("a class of one image", np.arange(20) // 19, "1: 1 training images")
    tensor = torch.from_numpy(MANY)
    yield array_case(".pt: a tensor", tensor, MANY[-1], "x.pt")
    yield array_case(
        ".pt: images and labels", (tensor, torch.tensor(LABELS)), lambda data: data.num_classes == 2, "x.pt"
    )
    yield array_case(".pt: a dictionary", {"images": tensor, "labels": LABELS.tolist()}, MANY[-1], "x.pt")
    yield array_case(".pt: bfloat16", (tensor > 127).bfloat16(), (MANY[-1] > 127) * 255, "x.pt")
    yield array_case(".pt: lists of different lengths", {"x": [[1], [2, 3]]}, "x.pt: its entry x is no array", "x.pt")
    yield array_case(".pt: with code", [Runs()], "Python objects", "x.pt")
    yield array_case(".pt: a state of a model", {"layer.weight": tensor}, "but no images", "x.pt")
    yield array_case(".pt: a number", 3, "holds a int", "x.pt")
    yield array_case(".pt: cut", b"PK\3\4", "x.pt cannot be read", "x.pt")


def classes(folder: Path, *names: str, n: int = 6) -> None:
    for name in names:
        good(folder / name, n)


def folders() -> Iterator[Case]:
    def does(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            for step in steps:
                step(folder)

        return make

    def labels(*names: str) -> Callable[[Any], bool]:
        return lambda data: data.source.classes == list(names) and len(data.source) == 6 * len(names)

    def sizes(train: int, val: int, test: int) -> Callable[[Any], bool]:
        return lambda data: [len(s.images) for s in data.splits.values()] == [train, val, test]

    yield Case("missing folder", lambda f: {"path": str(f / "none")}, "none does not exist: give a folder of images")
    yield Case("empty folder", does(), "has no images")
    yield Case(
        "a text file",
        lambda f: {"path": [(f / "a.txt").write_text("a", encoding="utf-8"), str(f / "a.txt")][1]},
        "is no folder",
    )
    yield Case(
        "an image file", lambda f: {"path": [good(f), str(f / "a0.png")][1]}, "a0.png is no folder.*give the folder"
    )
    yield Case("class folders", lambda f: classes(f, "b", "a"), labels("a", "b"))
    yield Case("one class folder", lambda f: classes(f, "a"), lambda d: d.num_classes is None and len(d.source) == 6)
    yield Case("class of one image", does(lambda f: classes(f, "a"), lambda f: classes(f, "b", n=1)), "b: 1 training")
    yield Case("class of two images", does(lambda f: classes(f, "a"), lambda f: classes(f, "b", n=2)), "b: 2 training")
    yield Case("folders inside classes", lambda f: classes(f, "a/x/y", "b/z"), labels("a", "b"))
    hidden = does(good, lambda f: (f / ".hidden.png").write_bytes(b"x"), lambda f: good(f / ".git"))
    yield Case("hidden files and folders", hidden, lambda d: len(d.source) == 6)
    apple = does(lambda f: classes(f, "a", "b"), lambda f: classes(f / "__MACOSX", "a"))
    yield Case("__MACOSX", apple, labels("a", "b"))
    yield Case("Thumbs.db", does(good, lambda f: (f / "Thumbs.db").write_bytes(b"x")), lambda d: len(d.source) == 6)
    yield Case("loop of links", does(good, lambda f: (f / "z").symlink_to(f)), "z/: a link to a folder above it")
    yield Case(
        "broken link", does(good, lambda f: (f / "z.png").symlink_to(f / "none")), "z.png: a link to a missing file"
    )
    link = does(lambda f: good(f / ".real"), lambda f: (f / "a").symlink_to(f / ".real"))
    yield Case("link to a folder", link, lambda d: len(d.source) == 6)
    yield Case("named pipe", does(good, lambda f: os.mkfifo(f / "z.png")), "z.png: a pipe, socket or device")
    yield Case(
        "empty class folder", does(lambda f: classes(f, "a", "b"), lambda f: (f / "c").mkdir()), "c/: an empty folder"
    )
    loose = does(lambda f: classes(f, "a", "b"), good)
    yield Case("images beside class folders", loose, "a0.png")
    for name in ("ünïcode 日本", "a b", "a=b,c", "new\nline", "$HOME", "-a", "'quote\"", "a\\b", "x" * 200):
        shown = repr(name)[:30]
        yield Case(f"class named {shown}", lambda f, name=name: classes(f, name, "zz"), lambda d: d.num_classes == 2)
        inner = lambda f, name=name: {"path": [good(f / name), str(f / name)][1]}  # noqa: E731
        yield Case(f"folder named {shown}", inner, lambda d: len(d.source) == 6)
    raw = os.fsdecode(b"\xff\xfe")
    yield Case("name that is no UTF-8", lambda f: classes(f, raw, "a"), lambda d: d.num_classes == 2)
    broken = does(good, lambda f: (f / f"{raw}\n.png").write_bytes(b""))
    yield Case("empty file of such a name", broken, "the file is empty")
    yield Case("train alone", lambda f: classes(f, "train/a", "train/b"), sizes(8, 2, 2))
    yield Case("train and val", lambda f: classes(f, "train", "val"), sizes(5, 6, 1))
    yield Case("train, valid and test", lambda f: classes(f, "train", "valid", "test"), sizes(6, 6, 6))
    yield Case("Train and TEST", lambda f: classes(f, "Train", "TEST"), sizes(5, 1, 6))
    yield Case("val without train", lambda f: classes(f, "val", "test"), "no folder train")
    yield Case(
        "val and valid", lambda f: classes(f, "train", "val", "valid"), "two folders of val images, val and valid"
    )
    unknown = does(lambda f: classes(f, "train/a", "train/b", "val/a", "val/c"))
    yield Case("val with an unknown class", unknown, "c: 0 training images")
    yield Case(
        "train, test and another",
        lambda f: classes(f, "train", "test", "extra"),
        "test and train, and also extra",
    )
    yield Case("a class named train", lambda f: classes(f, "train", "tree"), labels("train", "tree"))


def cases() -> list[Case]:
    found = [*image_files(), *options_cases(), *arrays(), *folders()]
    assert len({case.name for case in found}) == len(found)
    return found


def outcome(case: Case, folder: Path) -> tuple[bool, str]:
    """Return whether a case got what it should, and what it got: ``read``, or the message."""
    folder.mkdir(parents=True)
    options = {"path": str(folder), "batch_size": 2, **(case.make(folder) or {}), **case.options}
    try:
        data = OwnImages(**options)
        stored = data.prepared.pixels  # setup gives them back
        last = stored[len(stored) - 1 :][0].numpy()
        data.setup()
        next(iter(data.train_dataloader()))
    except UserError as error:
        got = str(error).replace(str(folder), "...")
        return isinstance(case.expected, str) and bool(re.search(case.expected, got, re.DOTALL)), got
    except Exception as error:
        return False, f"NO MESSAGE, BUT {type(error).__name__}: {error}"
    if isinstance(case.expected, str):
        return False, f"read, but should be refused: {case.expected}"
    if callable(case.expected):
        return bool(case.expected(data)), "read"
    wanted = case.expected if np.ndim(case.expected) == 3 else np.broadcast_to(case.expected, last.shape)
    right = last.shape == wanted.shape and bool((last == wanted).all())
    return right, "read" if right else f"read, but wrongly: {last.ravel()[:8]} in place of {wanted.ravel()[:8]}"


def main() -> int:
    wrong, read = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZOO_DATA"] = f"{folder}/data"
        for i, case in enumerate(cases()):
            right, got = outcome(case, Path(folder, f"{i:03}"))
            wrong, read = wrong + (not right), read + (got == "read")
            print(f"{i + 1:3} {'  ' if right else '!!'} {case.name:34} {got.replace(chr(10), ' | ')[:300]!s}")
    print(f"{len(cases())} cases: {read} read, {len(cases()) - read - wrong} refused with their message, {wrong} wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
