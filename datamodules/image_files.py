"""Read image files and arrays as 8-bit images, (C, H, W) with one grey channel or three colours.

The rules for what formats can hold:

* 16-bit grey values are divided by 257 and rounded, so that 65,535 becomes 255. Pillow reads 16-bit colours as 8 bits.
* Floating-point values must be in [0, 1]. They are multiplied by 255 and rounded.
* Transparent pixels are blended with a white background.
* Palettes are replaced by their colours. A palette of grey values gives a grey image. Bits become 0 and 255.
* CMYK and other colour spaces are converted to RGB. The EXIF orientation is applied.
* The first frame of an animation and the first page of a TIFF file is used.

Images are cropped in the centre to the wanted aspect ratio, and then resized with Pillow's Lanczos filter. This filter
averages over all pixels that a new pixel covers. Pillow computes it with integers, so that all machines agree.
"""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow can also read formats that start other programs, such as EPS. Only these formats are tried.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
LARGEST = 100_000_000  # pixels; a small file can unpack to many gigabytes
GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
WHITE = 255


class Unreadable(ValueError):
    """Error for a file or an array that is no image. The message is a reason in a few words."""


def decode(content: bytes) -> np.ndarray:
    """Return the image in the content of a file, (C, H, W) uint8, where C is 1 or 3.

    Raises:
        Unreadable: if the content is no image, damaged, too large, or has values of an unknown range.
    """
    if not content:
        raise Unreadable("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the rules of this module cover what Pillow warns about
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > LARGEST:
                    raise Unreadable(f"{image.width:,} x {image.height:,} pixels are more than {LARGEST:,}")
                image.load()
                return from_pillow(image)
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable("no image of a known format") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {LARGEST:,} pixels") from None
    except MemoryError:
        raise Unreadable("too large for the memory") from None
    except Exception as error:  # for a damaged file, Pillow raises exceptions of many types
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise Unreadable(f"damaged: {reason}") from None


def from_pillow(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image of Pillow, (C, H, W) uint8, where C is 1 or 3.

    Raises:
        Unreadable: if its values have an unknown range.
    """
    image = ImageOps.exif_transpose(image)
    grey = image.mode in GREY or (image.mode in ("P", "PA") and _grey_palette(image))
    if image.mode.startswith("I;16") or image.mode == "I":
        return sixteen_bits(np.asarray(image))[None]
    if image.mode == "F":
        return fractions(np.asarray(image))[None]
    if image.has_transparency_data:
        blended = on_white(np.asarray(image.convert("RGBA")).transpose(2, 0, 1))
        return blended[:1] if grey else blended
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _grey_palette(image: Image.Image) -> bool:
    colours = np.reshape(image.getpalette("RGB") or [0, 0, 0], (-1, 3))
    return bool((colours == colours[:, :1]).all())


def sixteen_bits(values: np.ndarray) -> np.ndarray:
    """Return integers from 0 to 65,535 as 8 bits: divided by 257 and rounded."""
    if values.size and (values.min() < 0 or values.max() > 65_535):
        raise Unreadable(f"integers from {values.min():,} to {values.max():,} are more than 16 bits")
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def fractions(values: np.ndarray) -> np.ndarray:
    """Return numbers in [0, 1] as 8 bits: multiplied by 255 and rounded."""
    if not np.isfinite(values).all():
        raise Unreadable("floating-point values that are infinite or NaN")
    if values.size and (values.min() < 0 or values.max() > 1):
        raise Unreadable(f"floating-point values from {values.min():g} to {values.max():g}, outside [0, 1]")
    return np.round(values.astype(np.float64) * 255).astype(np.uint8)


def on_white(image: np.ndarray) -> np.ndarray:
    """Blend an image whose last channel is its opacity with white, (C + 1, H, W) -> (C, H, W) uint8."""
    colours, opacity = image[:-1].astype(np.int64), image[-1:].astype(np.int64)
    return ((colours * opacity + WHITE * (255 - opacity) + 127) // 255).astype(np.uint8)


def fitted(image: np.ndarray, size: Sequence[int] | None, channels: int | None) -> np.ndarray:
    """Return an image with another size and number of channels.

    Args:
        image: pixels (C, H, W) uint8, where C is 1 or 3.
        size: height and width. The centre of the image with this aspect ratio is resized. None keeps the size.
        channels: 1 converts colours to grey by the weights of ITU-R 601. 3 repeats grey values. None changes nothing.
    """
    if channels == 1 and len(image) == 3:
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L"))[None]
    if size is not None and image.shape[1:] != tuple(size):
        image = _resized(image, *size)
    return np.broadcast_to(image, (3, *image.shape[1:])) if channels == 3 and len(image) == 1 else image


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    _, H, W = image.shape
    h, w = min(H, _nearest(W * height, width)), min(W, _nearest(H * width, height))  # the largest part of the aspect
    top, left = (H - h) // 2, (W - w) // 2
    part = image[:, top : top + h, left : left + w]
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in part]
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.LANCZOS)) for p in planes])


def _nearest(a: int, b: int) -> int:
    """Return a / b, rounded, at least 1."""
    return max(1, (2 * a + b) // (2 * b))
