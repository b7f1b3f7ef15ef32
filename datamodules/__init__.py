"""Data shared by the models: images in [0, 1] with integer labels."""

from datamodules.images import DataError, ImageLoader, Images

__all__ = ["DataError", "ImageLoader", "Images"]
