"""Folders of images that tests make."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def digit_folders(folder: Path, n: int = 600) -> Path:
    """Write ``n`` digits of scikit-learn as grey PNG files of 28 x 28 pixels, in a folder for each class.

    Returns:
        the folder that holds the folders ``0`` to ``9``.
    """
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:n], digits.target[:n], strict=True)):
        path = folder / str(label) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image * 255 / 16).round().astype("uint8"))
        grey.resize((28, 28), Image.Resampling.BICUBIC).save(path)
    return folder
