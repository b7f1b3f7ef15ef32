"""Data shared by the models: images in [0, 1] with integer labels, text, and data whose distribution is known."""

from datamodules.files import DataError
from datamodules.images import NAMES, ImageLoader, Images
from datamodules.text import Text, TextLoader
from datamodules.toy import DISTRIBUTIONS, Toy

__all__ = ["DISTRIBUTIONS", "DataError", "ImageLoader", "Images", "Text", "TextLoader", "Toy", "by_name"]


def by_name(name: str) -> Images | Toy:
    """The datamodule of a data set of images or points, with its default settings.

    Raises:
        ValueError: for a name that is none.
    """
    if name not in (*NAMES, *DISTRIBUTIONS):
        raise ValueError(f"data are one of {', '.join((*NAMES, *DISTRIBUTIONS))}, got {name!r}")
    return Toy(name) if name in DISTRIBUTIONS else Images(name)
