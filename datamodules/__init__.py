"""Data shared by the models: images in [0, 1] with integer labels, text, and data whose distribution is known."""

if __name__ != "zoo.datamodules":  # a module under two names would be two modules
    raise ImportError("datamodules is imported as zoo.datamodules")

import os
from pathlib import Path

from zoo.checks.errors import UserError
from zoo.datamodules.files import DataError
from zoo.datamodules.images import NAMES, ImageLoader, Images
from zoo.datamodules.text import TEXTS, Text, TextLoader
from zoo.datamodules.toy import DISTRIBUTIONS, Toy

__all__ = ["DISTRIBUTIONS", "DataError", "ImageLoader", "Images", "Text", "TextLoader", "Toy", "by_name"]


def by_name(name: str) -> Images | Text | Toy:
    """The datamodule of a data set by its name, or of a text file by its path, with default settings.

    Raises:
        UserError: for a name that is none.
    """
    if name in NAMES:
        return Images(name)
    if name in DISTRIBUTIONS:
        return Toy(name)
    texts = [text for text in TEXTS if text != "textfile"]
    if name in texts:
        return Text(name)
    if (path := Path(os.path.expanduser(name))).is_file():
        return Text("textfile", path=str(path))
    known = ", ".join((*NAMES, *DISTRIBUTIONS, *texts))
    raise UserError(f"data are one of {known}, or the path of a text file that is there, got {name!r}")
