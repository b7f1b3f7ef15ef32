"""The sets of images that ``zoo distance`` compares: data sets, folders, array files, and samples of models."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import zoo
from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.checks.sources import check_source
from zoo.commands.inputs import without_settings

if TYPE_CHECKING:
    import torch

DATA_SETS = ("mnist", "fashion_mnist", "digits", "mnist_or_digits", "cifar10", "svhn", "celeba")
SPLITS = ("train", "val", "test")
ARRAYS = (".npy", ".npz", ".pt", ".pth")
ADDRESS = r"(hf|wandb|file|https?):"


class Place(NamedTuple):
    """Where a set of images is.

    Attributes:
        kind: ``data`` (a data set), ``path`` (images in a folder or an array file) or ``model`` (a trained model).
        name: name of the data set or checkpoint, or the path.
        split: part of the data, or None if the user did not name one.
    """

    kind: str
    name: str
    split: str | None = None


class ImageSet(NamedTuple):
    """Images to compare.

    Attributes:
        name: name in tables and messages.
        images: images (n, C, H, W), bytes or floats in [0, 1]: a tensor, or an object that returns one for a slice.
        noun: ``image`` or ``sample``.
    """

    name: str
    images: Any
    noun: str = "image"


def find(text: str) -> Place:
    """Return the place of the images that a word of the command line names.

    Raises:
        UserError: if there are no such data, path or model.
    """
    whole = os.path.expanduser(text)
    name, colon, split = text.rpartition(":")
    if os.path.exists(whole) and text not in (*DATA_SETS, *zoo.list_checkpoints()):
        return Place("path" if _holds_images(Path(whole)) else "model", whole)
    if re.match(ADDRESS, text) or text in zoo.list_checkpoints():
        return Place("model", check_source(text))
    if text in DATA_SETS:
        return Place("data", text)
    place = os.path.expanduser(name)
    if colon and (name in DATA_SETS or os.path.exists(place)):
        if split not in SPLITS:
            raise UserError(f"a part of {name} must be {', '.join(SPLITS)}, got {split!r}")
        return Place("data", name, split) if name in DATA_SETS else Place("path", place, split)
    raise UserError(
        f"there are no images {text!r}: give a data set ({', '.join(DATA_SETS)}), a folder of images, a .npy, .npz "
        f"or .pt file, or a trained model{'.' if (meant := did_you_mean(text, _known())) else ''}{meant}"
    )


def _known() -> list[str]:
    return [*DATA_SETS, *zoo.list_checkpoints()]


def _holds_images(path: Path) -> bool:
    """Return whether a path holds images. Other paths hold a trained model."""
    if path.is_dir():
        return not (path / "checkpoints").is_dir() and not any(path.glob("*.ckpt"))
    return path.suffix.lower() in ARRAYS


def read(place: Place, size: int | None, grey: bool) -> ImageSet:
    """Return the images of a data set, a folder or an array file. Without a split, data with parts give the test part.

    Args:
        place: result of :func:`find`, of another kind than ``model``.
        size: height and width to which images are cropped and resized. None keeps their size.
        grey: whether colours become grey.

    Raises:
        UserError: if there are no such images, or if they cannot be read.
    """
    return _data_set(place, size, grey) if place.kind == "data" else _own_images(place, size, grey)


def _data_set(place: Place, size: int | None, grey: bool) -> ImageSet:
    from zoo.datamodules import by_name
    from zoo.datamodules.access import make_ready, name_of, split_of

    data, split = make_ready(by_name(place.name)), place.split or "test"
    return ImageSet(f"{name_of(data)}:{split}", fitted_images(split_of(data, split).images, size, grey))


def _own_images(place: Place, size: int | None, grey: bool) -> ImageSet:
    import numpy as np
    import torch

    from zoo.datamodules.files import DataError
    from zoo.datamodules.image_store import Options, Subset, prepare
    from zoo.datamodules.own_images import GIB, source_at

    try:
        source = source_at(Path(place.name))
        options = Options(
            None if size is None else (size, size), 1 if grey else None, skip=False, cache=False, memory_limit=4 * GIB
        )
        prepared = prepare(source, options)
    except DataError as error:
        raise DataError(_in_words_of_the_command(str(error))) from error
    images, parts = prepared.pixels, source.parts
    if parts is None:
        if place.split is not None:
            raise UserError(f"{place.name} has no parts train, val and test: leave out :{place.split}")
        return ImageSet(place.name, images)
    split = place.split or "test"
    rows = torch.from_numpy(np.flatnonzero(np.array(parts)[prepared.kept] == split))
    if not len(rows):
        raise UserError(
            f"{place.name} has the parts {', '.join(sorted(set(parts)))}, and no part {split}: name one, such as "
            f"{place.name}:train"
        )
    return ImageSet(f"{place.name}:{split}", images[rows] if isinstance(images, torch.Tensor) else Subset(images, rows))


def _in_words_of_the_command(message: str) -> str:
    """Return an error of the data module with the option --size of the command, instead of data.size."""
    message = re.sub(r"data\.size, such as data\.size=\[?(\d+)[,\d]*\]?,", r"--size, such as --size \1,", message)
    return without_settings(message)


class FittedImages:
    """Images with another size or number of channels. They are converted whenever they are used.

    Args:
        images: images (n, C, H, W), bytes: a tensor, or an object that returns one for a slice.
        size: height and width, or None.
        channels: 1 for grey images, or None.
    """

    def __init__(self, images: Any, size: tuple[int, int] | None, channels: int | None):
        self.images, self.size, self.channels = images, size, channels
        self.shape = (len(images), channels or images.shape[1], *(size or images.shape[2:]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> "torch.Tensor":
        import numpy as np
        import torch

        from zoo.datamodules.image_files import fitted

        some = self.images[index].cpu().numpy()
        return torch.from_numpy(np.stack([fitted(image, self.size, self.channels) for image in some]))


def fitted_images(images: Any, size: int | None, grey: bool) -> Any:
    """Return images with the size and the colours that the options of the command ask for.

    Args:
        images: images (n, C, H, W), bytes or floats in [0, 1]. Floats are rounded to bytes if an option is given.
        size: height and width, or None.
        grey: whether colours become grey.
    """
    if size is None and not grey:
        return images
    import torch

    if isinstance(images, torch.Tensor) and images.is_floating_point():
        images = (images * 255).round().byte()
    return FittedImages(images, None if size is None else (size, size), 1 if grey else None)


def samples_of(model: Any, name: str, n: int, seed: int, conditions: dict[str, object]) -> ImageSet:
    """Return samples of a model as a set of images.

    Args:
        model: trained model, in eval mode.
        name: name of the set.
        n: number of samples.
        seed: seed of the noise.
        conditions: conditions of the samples.

    Raises:
        UserError: if the model draws no images, or takes no such conditions.
    """
    from zoo.sampling.chunks import check_conditions, sample_chunks

    conditions = check_conditions(model, conditions)
    return ImageSet(name, sample_chunks(model, n, seed, progress=True, **conditions), "sample")
