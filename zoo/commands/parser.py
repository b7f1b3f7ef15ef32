"""The parser of the command ``zoo``, with the help of every command."""

import argparse
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path

import zoo
from zoo.commands import completion, distance, models, report, resuming, words
from zoo.commands.image_sets import DATA_SETS as IMAGES
from zoo.training.shell import pasted, zoo_command

POINTS = ("mixture", "ring", "moons", "swiss_roll", "line", "markov_chain")
TEXTS = ("text8", "wikitext2", "pydocs")
DATA = (
    f"data set: {', '.join(IMAGES)}; {', '.join(POINTS)}; {', '.join(TEXTS)}. The path of a folder of images, an array "
    "file or a text file is also accepted"
)
SOURCE = (
    "trained model: the name of a pretrained checkpoint (zoo list), a run folder, a checkpoint file, an exported "
    "file, or an address that zoo.load takes"
)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer, such as 16") from None


def _filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the value is empty: give a value, or leave out the option")
    return text


class Parser(argparse.ArgumentParser):
    """ArgumentParser that reports an error in one line and keeps the lines of descriptions and examples.

    Args:
        example: the words of a correct command, which errors about missing words show.
    """

    def __init__(self, *args, example: str = "", **kwargs):
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.example = example

    def error(self, message: str):
        if message.startswith("the following arguments are required") and self.example:
            message = f"{message}, for example {self.example}"
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class CommandParser(Parser):
    """The parser of the program. It reports unknown commands and unknown options, and suggests similar ones."""

    commands: dict[str, Parser]

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            self.exit(
                2, f"error: there is no command {args[0]}{_meant(args[0], self.commands)}; see {self.prog} --help\n"
            )
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:  # the parser of the command does not report these itself
            sub = self.commands[found.command] if found.command else self
            options = re.findall(r"--?[\w-]+", sub.format_usage())
            meant = "".join(_meant(word, options) for word in unknown if word.startswith("-"))
            self.exit(2, f"error: unrecognized arguments: {' '.join(unknown)}{meant}; see {sub.prog} --help\n")
        return found


def _meant(word: str, known) -> str:
    close = get_close_matches(word.partition("=")[0], list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class Version(argparse.Action):
    """Option that prints the version of the zoo."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"zoo {zoo.__version__}")
        parser.exit()


TRAIN = "Train a model, and write checkpoints, metrics and pictures to a new folder in runs/."
GROUPS = {
    "Train": {"resume": resuming.resume},
    "Models and images": {
        "list": models.list_everything,
        "sample": models.sample,
        "evaluate": models.evaluate,
        "distance": distance.distance,
        "compare": models.compare,
        "curves": models.curves,
        "report": report.report,
        "export": models.export,
        "push": models.push,
    },
    "Words": {"nearest": words.nearest, "analogy": words.analogy, "vectors": words.vectors},
    "Shell": {"completion": completion.print_script},
}
EXAMPLES = {
    "resume": ["", "runs/vae/2026-11-29_10-00-00-000000 trainer.max_epochs=20"],
    "list": ["", "'wgan*'", "--format csv"],
    "sample": ["vae -n 16 -o vae.png", "ddpm-guided -c y=3,guidance=0.5"],
    "evaluate": [
        "vae --data mnist --importance-samples 100",
        "ddpm --data mnist --samples 1000 -c num_steps=50 -c eta=1",
    ],
    "distance": [
        "mnist vae -n 10000",
        "photos/ generated/ --features inception --format json",
        "mnist:val samples.npy --features mnist",
    ],
    "compare": ["vae --estimators pathwise,score_function --draws 64", "toy"],
    "curves": ["runs/vae/* --metric val/loss -o curves.png"],
    "report": ["", "numbers", "--check", "--runs 'runs/vade/*' --metric test/accuracy"],
    "export": ["runs/vae/2026-11-29_10-00-00-000000 my-vae"],
    "push": ["runs/vae/2026-11-29_10-00-00-000000 user/my-vae --license mit", "vae user/vae --dry-run vae"],
    "nearest": ["skipgram music -n 5"],
    "analogy": ["skipgram man king woman"],
    "vectors": ["skipgram -o vectors.txt"],
    "completion": ["bash", "zsh", "fish"],
}
FIRST_STEPS = {
    "train model=vae": "train on MNIST, or on the digits of scikit-learn",
    "resume": "continue the last run",
    "sample ddpm-guided -n 8 -c y=7": "draw sevens from a pretrained model",
}


def _overview(program: str) -> str:
    groups = {title: {name: str(run.__doc__) for name, run in group.items()} for title, group in GROUPS.items()}
    groups["Train"] = {"train": TRAIN, **groups["Train"]}
    lines = ["Train, sample, evaluate, compare and publish generative models."]
    for title, commands in groups.items():
        lines += ["", f"{title}:", *(f"  {name:12}{about}" for name, about in commands.items())]
    lines += ["", f"Models ({program} train model=NAME):"]
    lines += [f"  {name:12}{_brief(models.about(name))}" for name in zoo.list_models()]
    lines += ["", "Examples:", *(f"  {f'{program} {words}':45}{about}" for words, about in FIRST_STEPS.items())]
    lines += ["", f"Help on a command: {program} sample --help"]
    return "\n".join(lines)


def _brief(text: str) -> str:
    """Return the first sentence of a text without its full stop. If it is long, return the part before its comma."""
    sentence = re.split(r"\.(?: |$)", text)[0]
    return sentence if len(sentence) <= 86 else sentence.partition(",")[0]


def parser(train: bool = False) -> CommandParser:
    """Return the parser of the command line.

    Args:
        train: whether it has the command ``train``. Only completion needs it, because Hydra reads the words after
            ``zoo train``.
    """
    program = pasted(*zoo_command())
    arguments = CommandParser(program, usage=f"{program} [-h] [--version] COMMAND ...", description=_overview(program))
    arguments.add_argument("--version", action=Version, help="show the version of the zoo and exit")
    commands = arguments.add_subparsers(
        dest="command", metavar="COMMAND", help=argparse.SUPPRESS, prog=program, parser_class=Parser
    )
    found: dict[str, Parser] = {}
    for name, run in (item for group in GROUPS.values() for item in group.items()):
        lines = [f"{program} {name} {example}".rstrip() for example in EXAMPLES[name]]
        examples = "\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])
        about = str(run.__doc__)
        found[name] = commands.add_parser(name, help=about, description=about, epilog=examples, example=lines[0])
        found[name].set_defaults(run=run)
        if name not in ("resume", "list", "distance", "curves", "report", "completion"):
            of_compare = "; or toy, an example with known exact variances" if name == "compare" else ""
            text = "run folder, or a checkpoint file in it" if name == "export" else SOURCE + of_compare
            source = found[name].add_argument("source", metavar="SOURCE", help=text)
            source.completer = completion.sources
    arguments.commands = {**found, "train": found["resume"]}
    if train:
        _add_train(commands.add_parser("train", help=TRAIN))

    sub = found["resume"]
    text = "run folder, or a checkpoint file in it (default: the run in runs/ that began or resumed last)"
    sub.add_argument("named", nargs="?", metavar="RUN", help=text).completer = completion.run_or_overrides
    text = "setting that changes, such as trainer.max_epochs=20; all other settings are those of the run"
    _add_overrides(sub, text, completion.overrides)
    sub = found["completion"]
    sub.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help="bash, zsh or fish")
    sub = found["list"]
    text = "names with wildcards, such as 'wgan*', of the models and checkpoints to list (default: all)"
    sub.add_argument("patterns", nargs="*", metavar="PATTERN", help=text).completer = completion.names
    text = "table, or csv or json with all numbers on the cards of the checkpoints (default: table)"
    sub.add_argument("--format", choices=("table", "csv", "json"), default="table", metavar="FORMAT", help=text)
    sub = found["sample"]
    _add_class(sub)
    sub.add_argument("-n", type=_integer, default=64, metavar="N", help="number of samples, at least 1 (default: 64)")
    _add_seed(sub)
    _add_output(sub, "samples.png")
    _add_conditions(sub)
    text = (
        "data set whose test images start the chains, for models that sample by chains: "
        f"{', '.join(IMAGES)}, or the path of images (default: chains start from noise)"
    )
    images = sub.add_argument("--images", type=_filled, metavar="DATA", help=text)
    images.completer = lambda prefix, **kwargs: [*IMAGES, *completion.files(prefix)]
    sub = found["evaluate"]
    _add_class(sub)
    _add_data(sub, "the data of the run, or of the card of a pretrained checkpoint")
    sub.add_argument(
        "--words",
        type=_path,
        metavar="FOLDER",
        help="folder with the published word sets, for models of words (default: the copies in gensim)",
    )
    _add_protocol(sub)
    text = "write the metrics to the card of a pretrained or exported checkpoint, by the protocol of the card"
    sub.add_argument("--update-card", action="store_true", help=text)
    _add_distance(found["distance"])
    sub = found["compare"]
    _add_class(sub)
    sub.add_argument(
        "--estimators",
        type=_filled,
        metavar="NAMES",
        help="names of gradient estimators, separated by commas (default: all estimators of the model)",
    )
    sub.add_argument(
        "--draws",
        type=_integer,
        metavar="N",
        help="gradients to draw from each estimator, at least 2 (default: 256; for toy, 100000)",
    )
    _add_data(sub, "the data of the run, or of the card of a pretrained checkpoint")
    sub.add_argument(
        "--batch-size",
        type=_integer,
        metavar="N",
        help="examples in the batch, at least 1 (default: 64 images, or 4 rows of 32 words)",
    )
    _add_seed(sub)
    _add_output(sub, "comparison.png")
    text = "also write the table to a results file, which zoo report reads (default: write none)"
    sub.add_argument("--csv", type=_path, metavar="FILE", help=text)
    sub = found["curves"]
    text = "run folder that holds a metrics.csv"
    sub.add_argument("runs", nargs="+", type=_path, metavar="RUN", help=text).completer = completion.runs
    text = "column of metrics.csv to draw (default: val/loss)"
    metric = sub.add_argument("--metric", default="val/loss", metavar="NAME", help=text)
    text = "column of metrics.csv for the horizontal axis; also prints the correlation (default: epochs)"
    against = sub.add_argument("--against", metavar="NAME", help=text)
    metric.completer = against.completer = completion.columns
    _add_output(sub, "curves.png")
    _add_report(found["report"])
    sub = found["nearest"]
    sub.add_argument("word", metavar="WORD", help="word of the vocabulary")
    sub.add_argument("-n", type=_integer, default=10, metavar="N", help="number of words, at least 1 (default: 10)")
    sub = found["analogy"]
    for name in "abc":
        sub.add_argument(name, metavar=name.upper(), help="word of the vocabulary")
    sub.add_argument("-n", type=_integer, default=5, metavar="N", help="number of words, at least 1 (default: 5)")
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
    text = "folder to write to (default: zoo/weights in a checkout, and the working folder for an installed zoo)"
    sub.add_argument("--folder", type=_path, metavar="FOLDER", help=text)
    sub.add_argument("--force", action="store_true", help="replace an existing checkpoint with this name")
    text = (
        "type of the stored weights, float32 or float16. Weights that float16 changes too much stay float32 "
        "(default: float16 for word vectors, float32 for other models)"
    )
    sub.add_argument("--dtype", choices=("float32", "float16"), metavar="DTYPE", help=text)
    text = "names of networks that stay float32 with --dtype float16, separated by commas (default: none)"
    sub.add_argument("--keep", type=_filled, metavar="NETWORKS", help=text)
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
    return arguments


def _add_report(sub: argparse.ArgumentParser) -> None:
    text = "names of tables to print (default: list the tables and their sources)"
    sub.add_argument("names", nargs="*", metavar="NAME", help=text).completer = completion.tables
    text = "markdown or csv (default: markdown)"
    sub.add_argument("--format", choices=("markdown", "csv"), default="markdown", metavar="FORMAT", help=text)
    text = "exit with status 1 if a table of the documentation differs from its source, and print a line for each"
    sub.add_argument("--check", action="store_true", help=text)
    sub.add_argument("--write", action="store_true", help="write all tables into the pages of the documentation")
    text = "checkout with README.md, docs and zoo/weights (default: the checkout or the installed package of the zoo)"
    sub.add_argument("--folder", type=_path, metavar="FOLDER", help=text)
    text = (
        "run folders, or cards of exported runs, that differ in nothing except the seed. Print the mean of each test "
        "metric, its spread over seeds, and the 95 %% interval of the mean, by Student's t (default: none)"
    )
    sub.add_argument("--runs", nargs="+", default=[], metavar="RUN", help=text).completer = completion.runs
    text = "metric of the runs; repeat --metric for several (default: all metrics of the test)"
    metric = sub.add_argument("--metric", action="append", default=[], metavar="NAME", help=text)
    metric.completer = completion.columns
    text = "print the points of the learning curves of --metric instead, also for runs with different settings"
    sub.add_argument("--points", action="store_true", help=text)
    text = "also write a results file (.csv), or a picture of the values of all seeds (.png) (default: write nothing)"
    sub.add_argument("-o", "--output", type=_path, metavar="FILE", help=text)


def _add_distance(sub: argparse.ArgumentParser) -> None:
    kinds = (
        "a folder of images, a .npy, .npz or .pt file, a data set, or a trained model that draws samples. Data with "
        "parts give their test images, and NAME:val or NAME:train give another part"
    )
    text = f"the real images: {kinds}"
    sub.add_argument("real", metavar="REAL", help=text).completer = _images
    text = "the samples, of the same kinds. The order matters for precision, recall, density and coverage"
    sub.add_argument("samples_of", metavar="SAMPLES", help=text).completer = _images
    text = (
        "network of the features: mnist or fashion_mnist, a classifier of grey images of 28 x 28 pixels, or inception, "
        "for the FID of papers (default: mnist)"
    )
    names = ("mnist", "fashion_mnist", "inception")
    sub.add_argument("--features", choices=names, default="mnist", metavar="FEATURES", help=text)
    text = "crop the centre of all images and resize it to N x N pixels; inception resizes images itself (default: no)"
    sub.add_argument("--size", type=_integer, metavar="N", help=text)
    sub.add_argument("--grey", action="store_true", help="convert colours to grey (default: colours stay)")
    text = "samples to draw from a model (default: as many as the other set has images, and at most 10000)"
    sub.add_argument("-n", type=_integer, metavar="N", help=text)
    _add_seed(sub)
    _add_conditions(sub)
    _add_class(sub)
    text = "table, csv or json (default: table)"
    sub.add_argument("--format", choices=("table", "csv", "json"), default="table", metavar="FORMAT", help=text)


def _images(prefix: str, **kwargs) -> list[str]:
    return [*IMAGES, *completion.sources(prefix), *completion.files(prefix, "npy", "npz", "pt")]


def _add_conditions(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-c",
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the model's sample method, such as y=3 or num_steps=50,eta=1; in Python, "
        "help(zoo.load(SOURCE).sample) explains them (default: none)",
    )


def _add_train(sub: argparse.ArgumentParser) -> None:
    _add_overrides(sub, "setting", completion.overrides)
    sub.add_argument("-m", "--multirun", action="store_true", help="run a job for each value")
    sub.add_argument("--cfg", choices=("job", "hydra", "all"), help="show the configuration and exit")
    sub.add_argument("--hydra-help", action="store_true", help="show the flags of Hydra")


def _add_overrides(sub: argparse.ArgumentParser, text: str, completer) -> None:
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=text).completer = completer
    text = "folder with configurations of models outside the zoo (default: the folder that the run records)"
    sub.add_argument("--config-dir", metavar="FOLDER", help=text)


def _add_class(sub: argparse.ArgumentParser) -> None:
    text = "class of a model that is not part of the zoo, such as my_package.made.MADE (default: a class of the zoo)"
    sub.add_argument("--class", dest="model_class", metavar="CLASS", help=text)


def _add_seed(sub: argparse.ArgumentParser) -> None:
    text = "seed of all noise, from 0 to 2^32 - 1; the same seed gives the same result (default: 0)"
    sub.add_argument("--seed", type=_integer, default=0, metavar="N", help=text)


def _add_output(sub: argparse.ArgumentParser, name: str) -> None:
    text = f"PNG file to write (default: {name})"
    sub.add_argument("-o", "--output", type=_path, default=Path(name), metavar="FILE", help=text)


def _add_data(sub: argparse.ArgumentParser, default: str, what: str = DATA) -> None:
    data = sub.add_argument("--data", type=_filled, metavar="DATA", help=f"{what} (default: {default})")
    data.completer = _data
    text = (
        "import the data module that the run records, also from outside the zoo. Use this only for checkpoints that "
        "you trust (default: it is not imported)"
    )
    sub.add_argument("--trust-data", action="store_true", help=text)


def _data(prefix: str, **kwargs) -> list[str]:
    return [*IMAGES, *POINTS, *TEXTS, *completion.files(prefix)]


def _add_protocol(sub: argparse.ArgumentParser) -> None:
    text = "importance samples per test image, for models with log p(x); 0 skips this measurement (default: 0)"
    sub.add_argument("--importance-samples", type=_integer, default=0, metavar="N", help=text)
    text = "test images for the full bound of a diffusion model, a multiple of 5; 0 skips it (default: 0)"
    sub.add_argument("--bound-images", type=_integer, default=0, metavar="N", help=text)
    text = "samples to score, at least 2 (default: 10000 for adversarial models, none for others)"
    sub.add_argument("--samples", type=_integer, metavar="N", help=text)
    text = "settings of the scored samples, such as num_steps=50,eta=1; repeat -c to score several (default: none)"
    sub.add_argument("-c", "--condition", action="append", default=[], metavar="NAME=VALUE", help=text)
