"""Data modules of the models: images in [0, 1] with integer labels, text, and data with a known distribution."""

if __name__ != "zoo.datamodules":  # another name would load a second copy of the package
    raise ImportError("datamodules cannot be imported under this name: import zoo.datamodules")

from pathlib import Path

from zoo.checks.errors import UserError
from zoo.datamodules.files import DataError
from zoo.datamodules.images import NAMES, Images
from zoo.datamodules.loaders import ImageLoader
from zoo.datamodules.own_images import OwnImages
from zoo.datamodules.text import TEXTS, Text, TextLoader
from zoo.datamodules.toy import DISTRIBUTIONS, Toy

__all__ = ["DISTRIBUTIONS", "DataError", "ImageLoader", "Images", "OwnImages", "Text", "TextLoader", "Toy", "by_name"]


def by_name(name: str) -> Images | Text | Toy:
    """Return the data module of a data set or of a text file, with default settings.

    Args:
        name: name of the data set, or path of the text file.

    Raises:
        UserError: if ``name`` is neither a data set nor the path of a file.
    """
    if name in NAMES:
        return Images(name)
    if name in DISTRIBUTIONS:
        return Toy(name)
    texts = [text for text in TEXTS if text != "textfile"]
    if name in texts:
        return Text(name)
    if Path(name).expanduser().is_file():
        return Text("textfile", path=name)
    known = ", ".join((*NAMES, *DISTRIBUTIONS, *texts))
    raise UserError(f"there are no data {name!r}: choose from {known}, or give the path of a text file that exists")
