"""Data shared by the models: images in [0, 1] with integer labels, and data whose distribution is known."""

from datamodules.images import NAMES, DataError, ImageLoader, Images
from datamodules.toy import DISTRIBUTIONS, Toy

__all__ = ["DataError", "ImageLoader", "Images", "Toy", "by_name"]


def by_name(name: str) -> Images | Toy:
    """The datamodule of a data set, with its default settings.

    Raises:
        ValueError: for a name that is none.
    """
    if name not in (*NAMES, *DISTRIBUTIONS):
        raise ValueError(f"data are one of {', '.join((*NAMES, *DISTRIBUTIONS))}, got {name!r}")
    return Toy(name) if name in DISTRIBUTIONS else Images(name)
