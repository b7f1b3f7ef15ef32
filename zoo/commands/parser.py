"""The parser of ``python -m zoo``, with the help of every command."""

import argparse
import os
from pathlib import Path

from zoo.commands import models, words

PROGRAM = "python -m zoo"
IMAGES = "mnist, fashion_mnist, digits, mnist_or_digits, cifar10, svhn, celeba"
DATA = (
    f"data set: {IMAGES}; mixture, ring, moons, swiss_roll, line, markov_chain; text8, wikitext2, pydocs. The path of "
    "a folder of images, an array file or a text file is also accepted"
)
SOURCE = (
    f"trained model: the name of a pretrained checkpoint ({PROGRAM} list), a run folder, a checkpoint file, or an "
    "address that zoo.load takes"
)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


class Parser(argparse.ArgumentParser):
    """ArgumentParser that reports an error in one line and keeps the lines of descriptions and examples."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:  # the parser of the command does not report these itself
            command = f"{self.prog} {found.command}" if found.command else self.prog
            self.exit(2, f"error: unrecognized arguments: {' '.join(unknown)}; see {command} --help\n")
        return found

    def error(self, message: str):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


GROUPS = {
    "Models and images": {
        "list": models.list_everything,
        "sample": models.sample,
        "evaluate": models.evaluate,
        "compare": models.compare,
        "curves": models.curves,
        "export": models.export,
        "push": models.push,
    },
    "Words": {"nearest": words.nearest, "analogy": words.analogy, "vectors": words.vectors},
}
EXAMPLES = {
    "list": [""],
    "sample": ["vae -n 16 -o vae.png", "ddpm-guided -c y=3,guidance=0.5"],
    "evaluate": [
        "vae --data mnist --importance-samples 100",
        "ddpm --data mnist --samples 1000 -c num_steps=50 -c eta=1",
    ],
    "compare": ["vae --estimators pathwise,score_function --draws 64", "toy"],
    "curves": ["runs/vae/* --metric val/loss -o curves.png"],
    "export": ["runs/vae/2026-11-29_10-00-00-000000 my-vae"],
    "push": ["runs/vae/2026-11-29_10-00-00-000000 user/my-vae --license mit", "vae user/vae --dry-run vae"],
    "nearest": ["skipgram music -n 5"],
    "analogy": ["skipgram man king woman"],
    "vectors": ["skipgram -o vectors.txt"],
}


def _overview() -> str:
    lines = ["Sample, evaluate, compare and publish trained models."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:10}{run.__doc__}" for name, run in commands.items())]
    lines += ["", f"Help on a command:  {PROGRAM} sample --help", "Train a model:      python train.py --help"]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(PROGRAM, usage=f"{PROGRAM} COMMAND ...", description=_overview())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS, prog=PROGRAM)
    found = {}
    for name, run in (item for group in GROUPS.values() for item in group.items()):
        lines = [f"  {PROGRAM} {name} {example}".rstrip() for example in EXAMPLES[name]]
        examples = "\n".join(["Example:" if len(lines) == 1 else "Examples:", *lines])
        found[name] = commands.add_parser(name, description=run.__doc__, epilog=examples)
        found[name].set_defaults(run=run)
        if name not in ("list", "curves"):
            of_compare = "; or toy, an example with known exact variances" if name == "compare" else ""
            found[name].add_argument("source", metavar="SOURCE", help=SOURCE + of_compare)

    sub = found["sample"]
    _add_class(sub)
    sub.add_argument("-n", type=int, default=64, metavar="N", help="number of samples, at least 1 (default: 64)")
    _add_seed(sub)
    _add_output(sub, "samples.png")
    sub.add_argument(
        "-c",
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the model's sample method, such as y=3 or num_steps=50,eta=1; in Python, "
        "help(zoo.load(SOURCE).sample) explains them (default: none)",
    )
    sub.add_argument(
        "--images",
        metavar="DATA",
        help=f"data set whose test images start the chains, for models that sample by chains: {IMAGES}, or the path of "
        "images (default: chains start from noise)",
    )
    sub = found["evaluate"]
    _add_class(sub)
    _add_data(sub, "the data of the run; for a pretrained checkpoint, mnist_or_digits")
    sub.add_argument(
        "--words",
        type=_path,
        metavar="FOLDER",
        help="folder with the published word sets, for models of words (default: the copies in gensim)",
    )
    _add_protocol(sub)
    sub = found["compare"]
    _add_class(sub)
    sub.add_argument(
        "--estimators",
        metavar="NAMES",
        help="names of gradient estimators, separated by commas (default: all estimators of the model)",
    )
    sub.add_argument(
        "--draws",
        type=int,
        metavar="N",
        help="gradients to draw from each estimator, at least 2 (default: 256; for toy, 100000)",
    )
    _add_data(sub, "the data of the run; for a pretrained checkpoint, mnist_or_digits")
    sub.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="examples in the batch, at least 1 (default: 64 images, or 4 rows of 32 words)",
    )
    _add_seed(sub)
    _add_output(sub, "comparison.png")
    sub = found["curves"]
    sub.add_argument("runs", nargs="+", type=_path, metavar="RUN", help="run folder that holds a metrics.csv")
    sub.add_argument(
        "--metric", default="val/loss", metavar="NAME", help="column of metrics.csv to draw (default: val/loss)"
    )
    sub.add_argument(
        "--against",
        metavar="NAME",
        help="column of metrics.csv for the horizontal axis; also prints the correlation (default: epochs)",
    )
    _add_output(sub, "curves.png")
    sub = found["nearest"]
    sub.add_argument("word", metavar="WORD", help="word of the vocabulary")
    sub.add_argument("-n", type=int, default=10, metavar="N", help="number of words, at least 1 (default: 10)")
    sub = found["analogy"]
    for name in "abc":
        sub.add_argument(name, metavar=name.upper(), help="word of the vocabulary")
    sub.add_argument("-n", type=int, default=5, metavar="N", help="number of words, at least 1 (default: 5)")
    sub = found["vectors"]
    sub.add_argument(
        "-o",
        "--output",
        type=_path,
        default=Path("vectors.txt"),
        metavar="FILE",
        help="file to write: .txt, .vec and .w2v are text, .bin is binary; .gz, .bz2 and .xz compress it "
        "(default: vectors.txt)",
    )
    sub.add_argument("--binary", action="store_true", help="write the binary format (default: by the name of FILE)")
    sub = found["export"]
    sub.add_argument("name", metavar="NAME", help="name to publish under: lower-case letters, digits and hyphens")
    _add_data(sub, "the place that the run records", "present path of the data of the run, if they have moved")
    _add_protocol(sub)
    sub.add_argument("--force", action="store_true", help="replace an existing checkpoint with this name")
    sub = found["push"]
    sub.add_argument(
        "repo", metavar="REPO", help="repository of the Hugging Face Hub, user/repo; it is made if missing"
    )
    sub.add_argument("--private", action="store_true", help="make a private repository")
    sub.add_argument(
        "--license", metavar="NAME", help="license for the repository's README, such as mit (default: none)"
    )
    text = "write the files to this folder and upload nothing (default: upload them)"
    sub.add_argument("--dry-run", type=_path, metavar="FOLDER", help=text)
    _add_data(sub, "the place that the run records", "present path of the data of the run, if they have moved")
    _add_protocol(sub)
    return parser


def _add_class(sub: argparse.ArgumentParser) -> None:
    text = "class of a model that is not part of the zoo, such as my_package.made.MADE (default: a class of the zoo)"
    sub.add_argument("--class", dest="model_class", metavar="CLASS", help=text)


def _add_seed(sub: argparse.ArgumentParser) -> None:
    text = "seed of all noise, from 0 to 2^32 - 1; the same seed gives the same result (default: 0)"
    sub.add_argument("--seed", type=int, default=0, metavar="N", help=text)


def _add_output(sub: argparse.ArgumentParser, name: str) -> None:
    text = f"PNG file to write (default: {name})"
    sub.add_argument("-o", "--output", type=_path, default=Path(name), metavar="FILE", help=text)


def _add_data(sub: argparse.ArgumentParser, default: str, what: str = DATA) -> None:
    sub.add_argument("--data", metavar="DATA", help=f"{what} (default: {default})")
    text = (
        "import the data module that the run records, also from outside the zoo. Use this only for checkpoints that "
        "you trust (default: it is not imported)"
    )
    sub.add_argument("--trust-data", action="store_true", help=text)


def _add_protocol(sub: argparse.ArgumentParser) -> None:
    text = "importance samples per test image, for models with log p(x); 0 skips this measurement (default: 0)"
    sub.add_argument("--importance-samples", type=int, default=0, metavar="N", help=text)
    text = "test images for the full bound of a diffusion model, a multiple of 5; 0 skips it (default: 0)"
    sub.add_argument("--bound-images", type=int, default=0, metavar="N", help=text)
    text = "samples to score, at least 2 (default: 10000 for adversarial models, none for others)"
    sub.add_argument("--samples", type=int, metavar="N", help=text)
    text = "settings of the scored samples, such as num_steps=50,eta=1; repeat -c to score several (default: none)"
    sub.add_argument("-c", "--condition", action="append", default=[], metavar="NAME=VALUE", help=text)
