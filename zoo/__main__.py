"""Command line for trained models, ``python -m zoo COMMAND``. The command for training is ``python train.py``."""

import sys
from pathlib import Path

import zoo

# ``python -m`` searches the working folder first. A user's random.py or lightning/ there would hide the library.
# The working folder is removed from the path unless it holds the zoo itself.
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).absolute() != zoo.WEIGHTS.parent.parent:
    del sys.path[0]

import argparse
import json
import math
import os
import re

from zoo.checks.errors import UserError
from zoo.training.error_lines import one_line_errors
from zoo.training.interruption import ended_by_signals

PROGRAM = "python -m zoo"
IMAGES = "mnist, fashion_mnist, digits, mnist_or_digits"
DATA = (
    f"data set: {IMAGES}; mixture, ring, moons, swiss_roll, line, markov_chain; text8, wikitext2, pydocs. The path of "
    "a folder of images, an array file or a text file is also accepted"
)
SOURCE = (
    f"trained model: the name of a pretrained checkpoint ({PROGRAM} list), a run folder, a checkpoint file, or an "
    "address that zoo.load takes"
)
# ``list`` shows the first of these metrics that the card of a checkpoint has.
MAIN_METRICS = ("test/log_likelihood", "bits_per_dim", "test/accuracy", "classifier_fid", "fisher_divergence")
MAIN_METRICS += ("energy_distance", "analogies", "test/loss")


def list_everything(args: argparse.Namespace) -> None:
    """List the models and the pretrained checkpoints."""
    print("Models. Train one with: python train.py model=NAME")
    for name in zoo.list_models():
        print(f"  {name:{max(map(len, zoo.list_models()))}}  {_about(name)}")
    print("\nPretrained checkpoints. Load one in Python with: zoo.load(NAME)")
    rows = [("NAME", "MODEL", "DATA", "PARAMETERS", "MAIN METRIC")]
    for name in zoo.list_checkpoints():
        card = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        rows.append((name, card["model"], card["data"], f"{card['parameters']:,}", _main_metric(card["metrics"])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, model, data, parameters, metric in rows:
        left = "  ".join(f"{text:{width}}" for text, width in zip((name, model, data), widths[:3], strict=True))
        print(f"  {left}  {parameters:>{widths[3]}}  {metric}")


def _about(model: str) -> str:
    """Return what a model is: the first line of the docstring of its file, without the model's name."""
    file = Path(zoo.__file__).parent / f"{zoo.MODELS[model].split('.')[1]}.py"
    with file.open(encoding="utf-8") as lines:
        line = lines.readline().strip().strip('"')
    before, _, after = line.partition(": ")
    if before.lower().replace("-", "").removesuffix(" model") == model:
        return after[:1].upper() + after[1:]
    return line


def _main_metric(metrics: dict[str, float]) -> str:
    for main in MAIN_METRICS:
        for name in metrics:
            if name == main or name.startswith(f"{main}/"):
                return f"{name.removeprefix('test/')} {_with_unit(name, metrics)}"
    return ""


def _with_unit(name: str, metrics: dict[str, float]) -> str:
    """Return a metric with its unit. Its name may end in conditions of samples, as in ``classifier_fid/eta=1``."""
    from zoo.evaluation.units import with_unit

    def plain(name: str) -> str:
        return "/".join(part for part in name.split("/") if "=" not in part)

    return with_unit(plain(name), metrics[name], {plain(other) for other in metrics})


def _print_metrics(metrics: dict[str, float]) -> None:
    for name in metrics:
        print(f"{name}: {_with_unit(name, metrics)}")


def sample(args: argparse.Namespace) -> None:
    """Draw samples from a trained model and write them as one PNG picture."""
    from zoo.functional.progress import counted
    from zoo.sampling.chunks import check_conditions, sample_chunks
    from zoo.sampling.pictures import picture, save_grid

    conditions = _conditions(",".join(args.condition))
    model = _on_device(_load(args))
    if args.images and "init" in conditions:
        raise UserError("--images and -c init=... both set where the chains start: leave out one of them")
    if args.images:
        conditions["init"] = _test_images(args.images, args.n, model)
    conditions = check_conditions(model, conditions)
    n, conditions, columns = picture(model, args.n, conditions)
    save_grid(sample_chunks(model, n, args.seed, progress=True, **conditions), args.output, columns)
    rows = f", {columns} in a row, one row for each value of {model.rows()[0]}" if n != args.n else ""
    print(f"Wrote {counted(n, 'sample')} to {_pasted(args.output)}{rows}")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a trained model on test data, and word vectors on the published word sets."""
    from zoo.evaluation import protocol as evaluation

    model, metrics = _on_device(_load(args)), {}
    words = _knows_words(model)
    if words:  # checked before the work begins
        from zoo.evaluation.words import find_word_sets, measure_words

        evaluation.check_protocol(_protocol(args), model)
        sets = find_word_sets(args.words)
    if not words or args.data or model.predicts:
        data = _data(args, model)
        if words:
            metrics = evaluation.evaluate(model, data)
        else:
            metrics, _ = evaluation.measure(model, data, _protocol(args), progress=True)
    if words:
        metrics |= measure_words(model, sets)
    _print_metrics(metrics)


def compare(args: argparse.Namespace) -> None:
    """Compare the variance of gradient estimators, as a table and a figure."""
    from zoo.checks.pixels import as_batch
    from zoo.evaluation import comparison
    from zoo.sampling.pictures import save_figure

    draws = (100_000 if args.source == "toy" else 256) if args.draws is None else args.draws
    if args.source == "toy":
        results = comparison.toy(draws, args.seed)
        print(comparison.toy_table(results))
        save_figure(comparison.toy_figure(results), args.output)
    else:
        model = _on_device(_load(args))
        names = args.estimators.split(",") if args.estimators else None
        data = _data(args, model)
        batch = [t.to(model.device) for t in as_batch(next(iter(data.val_dataloader())))]
        size = args.batch_size or min(4 if _knows_words(model) else 64, len(batch[0]))
        if size > len(batch[0]):
            raise UserError(f"batch-size must be at most {len(batch[0])}, the size of a validation batch, got {size}")
        batch = [t[:size] for t in batch]
        results = comparison.compare_model(model, batch, names, draws, args.seed, progress=True)
        print(comparison.table(results))
        save_figure(comparison.figure(results), args.output)
    print(f"Wrote the figure to {_pasted(args.output)}")


def curves(args: argparse.Namespace) -> None:
    """Draw a metric of one or more runs over epochs, or against another metric."""
    from zoo.evaluation import curves
    from zoo.evaluation.units import with_unit
    from zoo.functional.progress import counted
    from zoo.sampling.pictures import save_figure
    from zoo.training.tables import read_rows

    if args.against:
        pairs = {str(run): curves.read_pairs(run, args.against, args.metric) for run in args.runs}
        for name, points in pairs.items():
            print(f"{name}: {curves.correlation(points)} of {args.metric} with {args.against}")
        save_figure(curves.scatter(pairs, args.against, args.metric), args.output)
        print(f"Wrote the figure to {_pasted(args.output)}")
        return
    found = {str(run): curves.read_curve(run, args.metric) for run in args.runs}
    for name, (unit, points) in found.items():
        columns = {column for row in read_rows(Path(name, "metrics.csv")) for column in row}
        (place, value), unit_of_place = points[-1], unit.removesuffix("s")
        print(f"{name}: {args.metric} {with_unit(args.metric, value, columns)} after {counted(place, unit_of_place)}")
    save_figure(curves.figure({k: points for k, (_, points) in found.items()}, args.metric, unit), args.output)
    print(f"Wrote the figure to {_pasted(args.output)}")


def nearest(args: argparse.Namespace) -> None:
    """List the words whose vectors are nearest to the vector of a word."""
    _print_words(_words(args.source).nearest, args.word, args.n)


def analogy(args: argparse.Namespace) -> None:
    """List the words that complete the analogy: A is to B as C is to ..."""
    _print_words(_words(args.source).analogy, args.a, args.b, args.c, args.n)


def vectors(args: argparse.Namespace) -> None:
    """Write word vectors in the word2vec format, which gensim's KeyedVectors reads."""
    model = _words(args.source)
    model.export(args.output, args.binary)
    print(f"Wrote {len(model.words):,} vectors of {model.hparams.dim} numbers to {_pasted(args.output)}")


def _knows_words(model: object) -> bool:
    from zoo.checks import capabilities  # imported here, because importing typing takes a tenth of the time of ``list``

    return isinstance(model, capabilities.Words)


def _words(source: str):
    model = zoo.load(source)
    if not _knows_words(model):
        raise UserError(f"{source} is a {type(model).__name__}, which has no words: name a skip-gram model")
    return model


def _print_words(find, *arguments) -> None:
    for word, cosine in find(*arguments):
        print(f"{cosine:.3f}  {word}")


def export(args: argparse.Namespace) -> None:
    """Publish a training checkpoint in zoo/weights, with a card that holds its metrics."""
    from zoo import hub
    from zoo.hub import exporting

    protocol = _protocol(args)
    weights = exporting.export(args.source, args.name, args.force, protocol, True, args.data, args.trust_data)
    print(f"Wrote {weights} ({weights.stat().st_size / 1e6:.1f} MB) and its card")
    _print_metrics(hub.read_card(args.name)["metrics"])


def _protocol(args: argparse.Namespace):
    from zoo.evaluation.protocol import Protocol

    several = [_conditions(text) for text in args.condition] or [{}]
    return Protocol(args.importance_samples, args.bound_images, args.samples, tuple(several))


def _conditions(text: str) -> dict[str, object]:
    """Return the text ``a=1,b=2`` as a dictionary."""
    found = [_condition(part) for part in re.split(r",(?=\w+=)", text)] if text else []
    if len(twice := [name for name, _ in found]) > len(set(twice)):
        raise UserError(f"each condition must be given once, got {text}")
    return dict(found)


def _condition(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"a condition must be written name=value, such as num_steps=100; got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        if value.isidentifier():
            return name, value
        raise UserError(f"a condition must be a number, a word, true, false, null or a list; got {text!r}") from None


def _test_images(name: str, n: int, model) -> list:
    from zoo.datamodules import by_name
    from zoo.datamodules.access import make_ready, name_of, size_of, split_of
    from zoo.datamodules.splits import as_floats

    data = make_ready(by_name(name, _image_shape(model)))
    _check_examples(model, data)
    if (known := size_of(data, "test")) < n:
        raise UserError(f"n must be at most {known:,}, the number of test images in {name_of(data)}; got {n:,}")
    return list(as_floats(split_of(data, "test", n).images))


def _image_shape(model) -> tuple[int, ...] | None:
    """Return the shape of the model's images, or None if it has other examples."""
    from zoo.checks.inputs import shape_of

    shape = None if _knows_words(model) else shape_of(model)
    return shape if isinstance(shape, tuple) and len(shape) == 3 else None


def _data(args: argparse.Namespace, model):
    """Return the data of the run, or the data that ``--data`` names, ready for use.

    For pretrained checkpoints, the default is mnist_or_digits.

    Raises:
        UserError: if the model cannot take these data, or if the data of the run are not recorded, gone or changed.
    """
    from zoo import hub
    from zoo.datamodules import by_name
    from zoo.datamodules.access import make_ready
    from zoo.training.command_line import check_kind

    record, words = hub.record_of(args.source), _knows_words(model)
    if record is not None:
        data = hub.data_of(record, args.data, args.trust_data, _image_shape(model))
    elif args.data is None and words:
        raise UserError(f"{args.source} does not record its training text: name a text with --data")
    elif args.data is None and args.source in zoo.list_checkpoints() and hub.read_card(args.source).get("data_digest"):
        raise UserError(f"{args.source} was trained on images of its author: name images with --data PATH")
    else:
        data = by_name(args.data or "mnist_or_digits", _image_shape(model))
    check_kind(model, data)
    make_ready(data)
    if record is not None and args.data is None:
        hub.check_unchanged(data, record)
    _check_examples(model, data)
    return data


def _check_examples(model, data) -> None:
    """Check that the model takes the test examples of the data, and that there are labels if it needs them."""
    from zoo.checks.inputs import shape_of
    from zoo.checks.pixels import as_batch
    from zoo.datamodules.access import name_of

    if _knows_words(model):
        model.check_vocabulary(data.corpus.words)
        return
    batch = as_batch(next(iter(data.test_dataloader())))
    example, shape, name = list(batch[0].shape[1:]), shape_of(model), type(model).__name__
    if (math.prod(example) != shape) if isinstance(shape, int) else (example != list(shape)):
        wanted = f"{shape} pixels" if isinstance(shape, int) else f"shape {list(shape)}"
        raise UserError(
            f"{name} takes examples of {wanted}, and the examples of {name_of(data)} have {example}: choose other data "
            "with --data"
        )
    if model.hparams.get("num_classes") is not None and len(batch) < 2:
        raise UserError(f"{name} needs labels, and {name_of(data)} has none: choose data with labels with --data")


def _load(args: argparse.Namespace):
    """Return the trained model that the command line names."""
    if args.model_class is None:
        return zoo.load(args.source)
    from zoo.training.command_line import named_class

    return zoo.load(args.source, named_class(args.model_class))


def _on_device(model):
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _pasted(path: Path) -> str:
    from zoo.training.shell import pasted

    return pasted(path)


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
        "list": list_everything,
        "sample": sample,
        "evaluate": evaluate,
        "compare": compare,
        "curves": curves,
        "export": export,
    },
    "Words": {"nearest": nearest, "analogy": analogy, "vectors": vectors},
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


def main() -> None:
    with one_line_errors():
        arguments = parser()
        args = arguments.parse_args()
        if args.command is None:
            arguments.print_help()
            return
        if args.command == "list":
            list_everything(args)
            return
        from zoo.training.arguments import check_arguments
        from zoo.training.threads import prepare_threads

        prepare_threads()
        check_arguments(args)
        for text in vars(args).get("condition", []):
            _conditions(text)
        work(args)


def work(args: argparse.Namespace) -> None:
    """Run a command that needs torch, and print each log message on its own line."""
    import logging

    from zoo.training.messages import log_above_bars

    logging.basicConfig(format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    with log_above_bars():
        args.run(args)


if __name__ == "__main__":
    with ended_by_signals():
        main()
