"""Small files in the published formats of CIFAR-10, SVHN and CelebA, with torchvision's digests replaced by theirs."""

import hashlib
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

IMAGES = {"cifar10": 10, "svhn": 40, "celeba": 12}  # images in a file of CIFAR-10, in SVHN's training file, in CelebA


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def pixels(n: int, seed: int, shape=(3, 32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def pickled(images: np.ndarray, labels: list[int]) -> bytes:
    """Return a file of CIFAR-10 as Python 2 and the NumPy of 2009 pickle it: (n, 3072) bytes, labels, a name."""

    def text(content: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(content)) + content  # BINSTRING, a string of Python 2

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)

    rows = images.reshape(len(images), -1)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR("
    array += number(1) + b"(" + number(rows.shape[0]) + number(rows.shape[1]) + b"t"
    array += b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
    array += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array += b"\x89" + text(rows.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    content = text(b"data") + array + text(b"labels") + listed + text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}(" + content + b"u."


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5(content)


def make_cifar10(folder: Path, monkeypatch, packed: bool = False) -> tuple[np.ndarray, list[int]]:
    """Write CIFAR-10's six files, or its archive, into ``folder``. Return all images and labels, in their order."""
    n = IMAGES["cifar10"]
    images, labels = pixels(6 * n, 1), np.random.default_rng(2).integers(0, 10, 6 * n).tolist()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {name: pickled(images[i * n : (i + 1) * n], labels[i * n : (i + 1) * n]) for i, name in enumerate(names)}
    published = torchvision.datasets.CIFAR10
    monkeypatch.setattr(published, "train_list", [[name, md5(files[name])] for name in names[:5]])
    monkeypatch.setattr(published, "test_list", [[name, md5(files[name])] for name in names[5:]])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as opened:
        for name in reversed(names):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(files[name])
            opened.addfile(member, io.BytesIO(files[name]))
    monkeypatch.setattr(published, "tgz_md5", md5(archive.getvalue()))
    if packed:
        write(folder / published.filename, archive.getvalue())
    else:
        for name, content in files.items():
            write(folder / "cifar-10-batches-py" / name, content)
    return images, labels


def make_svhn(folder: Path, monkeypatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write SVHN's training and test files. Return {part: (images, labels)}. The file has 10 for the digit 0."""
    made, lists = {}, dict(torchvision.datasets.SVHN.split_list)
    for part, n, seed in (("train", IMAGES["svhn"], 3), ("test", 20, 4)):
        images, labels = pixels(n, seed), np.random.default_rng(seed).integers(0, 10, n)
        file = io.BytesIO()
        stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": stored}, do_compression=True)
        lists[part] = [lists[part][0], lists[part][1], write(folder / lists[part][1], file.getvalue())]
        made[part] = images, labels
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    return made


def make_celeba(folder: Path, monkeypatch, packed: bool = True) -> dict[str, list[np.ndarray]]:
    """Write CelebA's images and lists. Return {part: images after crop and resize}, computed with Pillow alone.

    Image i is smiling if i is divisible by 3. The parts take turns: train, train, val, test, train, ...
    """
    names = [f"{i:06}.jpg" for i in range(1, IMAGES["celeba"] + 1)]
    parts, archive, expected = [0, 0, 1, 2], io.BytesIO(), {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(archive, "w") as opened:
        for i, name in enumerate(names):
            coarse = Image.fromarray(pixels(1, 10 + i, (6, 5, 3))[0])
            file = io.BytesIO()
            coarse.resize((178, 218)).save(file, "JPEG", quality=95)
            opened.writestr(f"img_align_celeba/{name}", file.getvalue())
            if not packed:
                write(folder / "img_align_celeba" / name, file.getvalue())
            decoded = np.asarray(Image.open(file))[35 : 35 + 148, 15 : 15 + 148]
            small = np.asarray(Image.fromarray(decoded).resize((64, 64), Image.Resampling.BILINEAR))
            expected[("train", "val", "test")[parts[i % 4]]].append(small.transpose(2, 0, 1))
    lists = {
        "list_eval_partition.txt": "".join(f"{name} {parts[i % 4]}\n" for i, name in enumerate(names)),
        "list_attr_celeba.txt": f"{len(names)}\nMale Smiling \n"
        + "".join(f"{name} -1 {' 1' if i % 3 == 0 else '-1'}\n" for i, name in enumerate(names)),
    }
    digests = {name: write(folder / name, content.encode()) for name, content in lists.items()}
    digests["img_align_celeba.zip"] = md5(archive.getvalue())
    if packed:
        write(folder / "img_align_celeba.zip", archive.getvalue())
    listed = [(key, digests.get(name, old), name) for key, old, name in torchvision.datasets.CelebA.file_list]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", listed)
    return expected
