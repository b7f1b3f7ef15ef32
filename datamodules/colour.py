"""Published sets of colour images: CIFAR-10, SVHN and CelebA.

The addresses, file names and MD5 digests are those of torchvision's classes. Every file is compared with its digest
before it is parsed.
"""

import io
import logging
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from zoo.checks.errors import UserError
from zoo.datamodules.files import (
    READ_ERRORS,
    DataError,
    Missing,
    damaged,
    fetch_missing,
    ignoring_case,
    locked,
    md5_of,
    read_published,
)
from zoo.datamodules.splits import Split, joined, shuffled
from zoo.training.files import atomic_write

log = logging.getLogger(__name__)

SHAPES = {"cifar10": (3, 32, 32), "svhn": (3, 32, 32), "celeba": (3, 64, 64)}
FOLDERS = {"cifar10": "CIFAR10", "svhn": "SVHN", "celeba": "celeba"}  # in the data folder; case does not matter
CIFAR10_FOLDER = "cifar-10-batches-py"

# CelebA's aligned images have 178 x 218 pixels. The central square of 148 pixels is resized to 64 x 64, as in Larsen et
# al. (2016) and Hou et al. (2017). Other papers crop 108, 140 or 178 pixels. Their numbers are not comparable.
CELEBA_CROP, CELEBA_SIZE = 148, 64
CELEBA_IMAGES, CELEBA_SPLITS, CELEBA_ATTRIBUTES = (
    "img_align_celeba.zip",
    "list_eval_partition.txt",
    "list_attr_celeba.txt",
)
CELEBA_DECODED = f"celeba-crop{CELEBA_CROP}-{CELEBA_SIZE}x{CELEBA_SIZE}.npy"
# The address to which Google's page for large files leads. Another answer than the file is an error, because its digest
# differs.
DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
DECODED_AT_ONCE = 512  # images that wait for the disk or the decoder


def fetch(name: str, root: Path, attribute: str | None = None) -> None:
    """Download and verify the missing files of ``name``. For CelebA, also decode the images if no run did it before.

    Args:
        name: a key of ``SHAPES``.
        root: the data folder.
        attribute: the attribute that labels CelebA. If it is None, the file of the attributes is not needed.

    Raises:
        DataError: if a file is missing and cannot be downloaded, is damaged, or cannot be written.
        UserError: if CelebA has no such attribute.
    """
    missing = {"cifar10": _cifar10_missing, "svhn": _svhn_missing, "celeba": _celeba_missing}[name]
    files = {
        "cifar10": f"cifar-10-python.tar.gz or the folder {CIFAR10_FOLDER}",
        "svhn": "train_32x32.mat and test_32x32.mat",
        "celeba": f"{CELEBA_IMAGES}, {CELEBA_SPLITS} and {CELEBA_ATTRIBUTES} from "
        "http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    }[name]
    remedy = (
        f"Put {files} into {_folder(name, root)}, or connect to the network (ZOO_DATA sets another folder than data/)"
    )

    def files_missing() -> list[Missing]:
        return missing(root, attribute)

    fetch_missing(name, files_missing, remedy)
    if name == "celeba":
        if attribute is not None:
            _celeba_attribute(root, attribute)
        _decode_celeba(root)


def load_split(name: str, root: Path, attribute: str | None = None) -> dict[str, Split]:
    """Return the training, validation and test images of ``name``, which :func:`fetch` has found.

    CIFAR-10 and SVHN come with training and test images. A fixed seed chooses a tenth of the training images as
    validation images. CIFAR-10 has 45,000, 5,000 and 10,000 images, and SVHN has 65,932, 7,325 and 26,032. CelebA has
    its own three lists: 162,770, 19,867 and 19,962 images. CelebA's images stay in a file that is mapped into memory.

    Args:
        name: a key of ``SHAPES``.
        root: the data folder.
        attribute: the attribute that labels CelebA: 1 where it is present and 0 elsewhere. None gives no labels.

    Raises:
        DataError: if a file is missing or damaged.
        UserError: if CelebA has no such attribute.
    """
    if name == "celeba":
        return _load_celeba(root, attribute)
    everything, test = _load_cifar10(root) if name == "cifar10" else _load_svhn(root)
    held_out = len(everything.images) // 10
    train, val = shuffled(everything, [len(everything.images) - held_out, held_out])
    return {"train": train, "val": val, "test": test}


def _published(name: str):
    import torchvision.datasets

    return {
        "cifar10": torchvision.datasets.CIFAR10,
        "svhn": torchvision.datasets.SVHN,
        "celeba": torchvision.datasets.CelebA,
    }[name]


def _folder(name: str, root: Path) -> Path:
    """Return the folder of ``name``, which may have another case, or may not exist yet."""
    return ignoring_case(root / FOLDERS[name]) or root / FOLDERS[name]


def _folders(name: str, root: Path) -> Iterator[Path]:
    """Yield the folders that can hold the files of ``name``: its own folder, and the data folder except for CelebA."""
    yield _folder(name, root)
    if name != "celeba":
        yield root


def _find(name: str, root: Path, file: str) -> Path | None:
    found = (ignoring_case(folder / file) for folder in _folders(name, root))
    return next((path for path in found if path is not None), None)


def _missing(name: str, root: Path, files: dict[str, tuple[str, str]]) -> list[Missing]:
    """Return the ``files`` that are absent. ``files`` is {name of the file: (address, MD5 digest)}."""
    return [
        Missing(_folder(name, root) / file, [address], lambda path, md5=md5: md5_of(path) == md5)
        for file, (address, md5) in files.items()
        if _find(name, root, file) is None
    ]


# CIFAR-10 (Krizhevsky, 2009). The files of its "python version" are pickles. torchvision downloads this version, so it
# is the one that people have on disk. A file is unpickled after its digest was compared. The unpickler allows only the
# three names that an array needs, so even a forged file could not run code.


def _cifar10_files() -> dict[str, str]:
    """Return {file: MD5 digest}. The last file has the test images."""
    published = _published("cifar10")
    return dict([*published.train_list, *published.test_list])


def _cifar10_missing(root: Path, attribute: str | None) -> list[Missing]:
    published = _published("cifar10")
    if _cifar10_folder(root) is not None:
        return []
    return _missing("cifar10", root, {published.filename: (published.url, published.tgz_md5)})


def _cifar10_folder(root: Path) -> Path | None:
    """Return the folder with all unpacked files of CIFAR-10, or None."""
    for parent in _folders("cifar10", root):
        for folder in (parent / CIFAR10_FOLDER, parent):
            if all((folder / file).is_file() for file in _cifar10_files()):
                return folder
    return None


def _load_cifar10(root: Path) -> tuple[Split, Split]:
    """Return the training images and the test images."""
    *train, test = [_cifar10_part(path, content) for path, content in _cifar10_contents(root)]
    return joined(train), test


def _cifar10_contents(root: Path) -> list[tuple[Path, bytes]]:
    """Return the path and the verified content of each file, from the folder or from the archive."""
    files = _cifar10_files()
    if (folder := _cifar10_folder(root)) is not None:
        return [(folder / file, read_published(folder / file, md5)) for file, md5 in files.items()]
    archive = _find("cifar10", root, _published("cifar10").filename)
    if archive is None:
        raise DataError(f"cifar10 is missing: it belongs in {_folder('cifar10', root)}")
    contents = {}
    try:
        with tarfile.open(archive) as opened:
            for member in opened:  # in the order of the archive, because a step back decompresses it again
                name = Path(member.name).name
                if name in files and (content := opened.extractfile(member)) is not None:
                    contents[name] = read_published(archive, files[name], content)
        return [(archive, contents[file]) for file in files]
    except (KeyError, tarfile.TarError, *READ_ERRORS) as error:
        raise damaged(archive, error) from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of dictionaries, lists, numbers, strings and NumPy arrays. Every other name is an error."""

    def find_class(self, module: str, name: str):
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):  # its name in the NumPy of 2009
            return np._core.multiarray._reconstruct
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return lambda letters, align, copy: np.dtype(letters)  # NumPy 2.4 warns about the integers in the file
        raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not use")


def _cifar10_part(path: Path, content: bytes) -> Split:
    """Return the images (n, 3, 32, 32) uint8 and the labels (n,) uint8 of one file."""
    try:
        part = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        images, labels = part["data"], part["labels"]
        if images.dtype != np.uint8:
            raise ValueError(f"its numbers are {images.dtype}")
        images = torch.from_numpy(images.reshape(-1, *SHAPES["cifar10"]).copy())
        return Split(images, torch.tensor(labels, dtype=torch.uint8))
    except Exception as error:  # a pickle can raise any error
        raise damaged(path, error) from error


# SVHN (Netzer et al., 2011), the cropped digits. The third set of files ("extra") is not used.


def _svhn_missing(root: Path, attribute: str | None) -> list[Missing]:
    lists = _published("svhn").split_list
    return _missing("svhn", root, {lists[part][1]: (lists[part][0], lists[part][2]) for part in ("train", "test")})


def _load_svhn(root: Path) -> tuple[Split, Split]:
    """Return the training images and the test images."""
    from scipy.io import loadmat

    parts = []
    for part in ("train", "test"):
        _, file, md5 = _published("svhn").split_list[part]
        path = _find("svhn", root, file)
        if path is None:
            raise DataError(f"{file} of svhn is missing: it belongs in {_folder('svhn', root)}")
        content = loadmat(io.BytesIO(read_published(path, md5)))
        images = np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1))  # the file has (32, 32, 3, n)
        labels = content["y"].reshape(-1) % 10  # the file gives the digit 0 the label 10
        parts.append(Split(torch.from_numpy(images), torch.from_numpy(labels)))
    return parts[0], parts[1]


# CelebA (Liu et al., 2015), the aligned images.


def _celeba_missing(root: Path, attribute: str | None) -> list[Missing]:
    wanted = [CELEBA_SPLITS]
    if attribute is not None:
        wanted.append(CELEBA_ATTRIBUTES)
    if _find("celeba", root, CELEBA_DECODED) is None and _celeba_folder(root) is None:
        wanted.append(CELEBA_IMAGES)
    published = {file: (DRIVE.format(key), md5) for key, md5, file in _published("celeba").file_list}
    return _missing("celeba", root, {file: published[file] for file in wanted})


def _celeba_folder(root: Path) -> Path | None:
    """Return the folder of the unpacked images, or None."""
    folder = _find("celeba", root, Path(CELEBA_IMAGES).stem)
    if folder is None or not folder.is_dir():
        return None
    inner = folder / folder.name  # some archives hold the folder twice
    return inner if inner.is_dir() else folder


def _celeba_list(root: Path, file: str) -> list[list[str]]:
    """Return the lines of a list of CelebA, each split into words."""
    path = _find("celeba", root, file)
    if path is None:
        raise DataError(f"{file} of celeba is missing: it belongs in {_folder('celeba', root)}")
    md5 = next(md5 for _, md5, name in _published("celeba").file_list if name == file)
    return [line.split() for line in read_published(path, md5).decode().splitlines() if line.strip()]


def _celeba_names(root: Path) -> list[list[str]]:
    """Return the file names of the training, validation and test images."""
    lines = _celeba_list(root, CELEBA_SPLITS)
    return [[name for name, part in lines if part == wanted] for wanted in "012"]


def _celeba_attribute(root: Path, attribute: str) -> dict[str, int]:
    """Return {file name: 1 if the image has the attribute, else 0}.

    Raises:
        UserError: if CelebA has no such attribute.
    """
    _, names, *lines = _celeba_list(root, CELEBA_ATTRIBUTES)
    if attribute not in names:
        raise UserError(f"data.attribute is {attribute!r}, but CelebA has the attributes {', '.join(names)}")
    column = 1 + names.index(attribute)
    return {line[0]: int(line[column] == "1") for line in lines}


def _decode_celeba(root: Path) -> None:
    """Decode, crop and resize the images once. Write them to one file, in the order of the three lists."""
    if _find("celeba", root, CELEBA_DECODED) is not None:
        return
    with locked("celeba"):
        if _find("celeba", root, CELEBA_DECODED) is not None:  # another process has just written it
            return
        names = [name for part in _celeba_names(root) for name in part]
        path = _folder("celeba", root) / CELEBA_DECODED
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *SHAPES["celeba"])}
        log.info("decoding %s images of CelebA to %s; this happens once", f"{len(names):,}", path)
        read, source = _celeba_reader(root)
        with atomic_write(path) as file, ThreadPoolExecutor() as threads:
            np.lib.format.write_array_header_1_0(file, header)
            with tqdm(total=len(names), desc="decoding CelebA", unit="images", unit_scale=True) as bar:
                for begin in range(0, len(names), DECODED_AT_ONCE):
                    some = names[begin : begin + DECODED_AT_ONCE]
                    for image in threads.map(lambda name: _celeba_image(read, source, name), some):
                        file.write(image)
                    bar.update(len(some))


def _celeba_reader(root: Path) -> tuple[Callable[[str], bytes], Path]:
    """Return a function of a file name that returns the bytes of an image, and the folder or archive that it reads."""
    if (folder := _celeba_folder(root)) is not None:
        return lambda name: (folder / name).read_bytes(), folder
    path = _find("celeba", root, CELEBA_IMAGES)
    if path is None:
        raise DataError(f"{CELEBA_IMAGES} of celeba is missing: it belongs in {_folder('celeba', root)}")
    md5 = next(md5 for _, md5, name in _published("celeba").file_list if name == CELEBA_IMAGES)
    if md5_of(path) != md5:
        raise damaged(path)
    archive = zipfile.ZipFile(path)
    return lambda name: archive.read(f"{Path(CELEBA_IMAGES).stem}/{name}"), path


def _celeba_image(read: Callable[[str], bytes], source: Path, name: str) -> bytes:
    """Return the bytes of an image after crop and resize, (3, 64, 64) uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read(name))) as image:
            left, top = ((side - CELEBA_CROP) // 2 for side in image.size)
            square = image.convert("RGB").crop((left, top, left + CELEBA_CROP, top + CELEBA_CROP))
            small = square.resize((CELEBA_SIZE, CELEBA_SIZE), Image.Resampling.BILINEAR)
            return np.asarray(small).transpose(2, 0, 1).tobytes()
    except (KeyError, ValueError, SyntaxError, *READ_ERRORS) as error:  # Pillow raises these for a broken image
        raise DataError(
            f"{name} of celeba cannot be read from {source} ({error}): unpack or download it again"
        ) from error


def _load_celeba(root: Path, attribute: str | None) -> dict[str, Split]:
    path = _find("celeba", root, CELEBA_DECODED)
    if path is None:
        raise DataError(f"{CELEBA_DECODED} of celeba is missing: it belongs in {_folder('celeba', root)}")
    names = _celeba_names(root)
    shape = (sum(map(len, names)), *SHAPES["celeba"])
    try:
        # Copy on write: PyTorch warns about arrays that cannot be written. No page is copied, because none is written.
        images = np.load(path, mmap_mode="c", allow_pickle=False)
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.dtype} numbers of shape {images.shape} instead of {shape}")
    except (ValueError, *READ_ERRORS) as error:
        raise DataError(f"{path} is damaged ({error}): delete it, and the next run decodes the images again") from error
    has = None if attribute is None else _celeba_attribute(root, attribute)
    splits, begin = {}, 0
    for split, part in zip(("train", "val", "test"), names, strict=True):
        labels = None if has is None else torch.tensor([has[name] for name in part], dtype=torch.uint8)
        splits[split] = Split(torch.from_numpy(images[begin : begin + len(part)]), labels)
        begin += len(part)
    return splits
