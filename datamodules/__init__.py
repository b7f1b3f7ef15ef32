"""Data shared by the models: images in [0, 1] with integer labels, and data whose distribution is known."""

from datamodules.images import DataError, ImageLoader, Images
from datamodules.toy import Toy

__all__ = ["DataError", "ImageLoader", "Images", "Toy"]
