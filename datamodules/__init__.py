"""Data modules of the models: images in [0, 1] with integer labels, text, and data with a known distribution."""

if __name__ != "zoo.datamodules":  # another name would load a second copy of the package
    raise ImportError("datamodules cannot be imported under this name: import zoo.datamodules")

from collections.abc import Sequence
from pathlib import Path

from zoo.checks.errors import UserError
from zoo.datamodules.files import DataError
from zoo.datamodules.image_arrays import ENDINGS
from zoo.datamodules.images import NAMES, Images
from zoo.datamodules.loaders import ImageLoader
from zoo.datamodules.own_images import OwnImages
from zoo.datamodules.text import TEXTS, Text, TextLoader
from zoo.datamodules.toy import DISTRIBUTIONS, Toy

__all__ = ["DISTRIBUTIONS", "DataError", "ImageLoader", "Images", "OwnImages", "Text", "TextLoader", "Toy", "by_name"]


def by_name(name: str, shape: Sequence[int] | None = None) -> Images | OwnImages | Text | Toy:
    """Return the data module of a data set, of a folder of images, of an array file or of a text file.

    The data module has default settings, except that a folder or an array file has training batches of one image. Any
    number of images is then enough.

    Args:
        name: name of the data set, or path of the folder or file.
        shape: shape (C, H, W) to which images of a folder or array file are converted. None keeps their shape.

    Raises:
        UserError: if ``name`` is neither a data set nor the path of a folder or file.
    """
    if name in NAMES:
        return Images(name)
    if name in DISTRIBUTIONS:
        return Toy(name)
    texts = [text for text in TEXTS if text != "textfile"]
    if name in texts:
        return Text(name)
    if holds_images(name):
        images = shape is not None and len(shape) == 3
        return OwnImages(
            name,
            size=shape[1:] if images else None,
            channels=shape[0] if images and shape[0] in (1, 3) else None,
            batch_size=1,
        )
    if Path(name).expanduser().is_file():
        return Text("textfile", path=name)
    known = ", ".join((*NAMES, *DISTRIBUTIONS, *texts))
    raise UserError(
        f"there are no data {name!r}: choose from {known}, or give the path of a folder of images, an array file or a "
        "text file"
    )


def published(name: str) -> bool:
    """Return whether ``name`` is a data set that everybody can use, and no data of a user."""
    return name in (*NAMES, *DISTRIBUTIONS, *TEXTS) and name != "textfile"


def holds_images(path: str) -> bool:
    """Return whether ``path`` is a folder or an array file, which :class:`OwnImages` reads."""
    place = Path(path).expanduser()
    return place.is_dir() or (place.is_file() and place.suffix.lower() in ENDINGS)
