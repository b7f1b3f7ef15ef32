"""Draw the pictures of the documentation and of the README into ``docs/pictures``.

    python docs/make/pictures.py               # all pictures
    python docs/make/pictures.py NAME ...      # some pictures
    python docs/make/pictures.py --list        # their names and captions
    python docs/make/pictures.py --check       # compare the folder with the list of pictures; draws nothing

The pictures come from the pretrained checkpoints and from the files in ``docs/results``. They need no other data and no
network. On one machine, the same checkpoints and files give the same pixels.
"""

import argparse
import sys
from pathlib import Path

import chart_pictures
import data_pages
import explaining_pictures
import house_picture
import model_pictures
import torch
import training_pictures
from drawing import PICTURES, ROOT, png, styled
from tqdm import tqdm

from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.training.files import atomic_write

MODULES = (model_pictures, chart_pictures, data_pages, explaining_pictures, house_picture, training_pictures)
REGISTRY = {name: picture for module in MODULES for name, picture in module.PICTURES.items()}
CAPTIONS = {name: picture.caption for name, picture in REGISTRY.items()}


def drawn(name: str) -> bytes:
    """Return a picture as the bytes of a PNG file. One thread draws it, so the number of cores changes no pixel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with styled():
            return png(REGISTRY[name].draw())
    finally:
        torch.set_num_threads(threads)


def differences(folder: Path = PICTURES) -> list[str]:
    """Return a sentence for each picture that is missing in ``folder``, and for each file that is no picture."""
    files = {path.stem for path in folder.glob("*.png")}
    missing = [
        f"{name}.png is missing: run python docs/make/pictures.py {name}" for name in sorted(REGISTRY.keys() - files)
    ]
    unknown = [f"{name}.png is no picture of the list: remove it" for name in sorted(files - REGISTRY.keys())]
    return missing + unknown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a picture; without names, all are drawn")
    parser.add_argument("--list", action="store_true", help="print the names and captions")
    parser.add_argument("--check", action="store_true", help="fail if a picture is missing or not in the list")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in REGISTRY]:
        hint = did_you_mean(unknown[0], REGISTRY)
        parser.error(f"there is no picture {', '.join(unknown)}; --list prints the names.{hint}")
    if given.list:
        print("\n".join(f"{name:24} {caption}" for name, caption in CAPTIONS.items()))
        return 0
    if given.check:
        found = differences()
        print("\n".join(found) or f"all {len(REGISTRY)} pictures are in {PICTURES.relative_to(ROOT)}")
        return 1 if found else 0
    with tqdm(given.names or REGISTRY, unit="picture") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            try:
                image = drawn(name)
                PICTURES.mkdir(exist_ok=True)
                with atomic_write(PICTURES / f"{name}.png") as file:
                    file.write(image)
            except UserError as error:
                parser.exit(1, f"\nerror: {name}: {error}\n")
            except OSError as error:
                parser.exit(1, f"\nerror: {name}: {error.filename}: {error.strerror}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped: the pictures drawn so far are complete")
