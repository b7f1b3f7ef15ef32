"""The command line beside train.py: ``python -m zoo list | sample | evaluate | compare | curves | export``, and of
models of words ``nearest | analogy | vectors``."""

import sys
from pathlib import Path

import zoo

# ``python -m`` looks for every module in the working folder first. There a user's own random.py or lightning/ would be
# taken for the library's; the folder is left out, except where it holds the zoo itself.
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]).absolute() != zoo.WEIGHTS.parent.parent:
    del sys.path[0]

import argparse
import json
import os
import re

from zoo.checks.errors import UserError
from zoo.training.error_lines import errors_for_people
from zoo.training.interruption import ended_by_signals

SAMPLES = "per test image, for log p(x) of a model that has it, such as 5000; 0, the default, leaves it out"
BOUND = "test images, a multiple of 5, for the full variational bound of a diffusion; 0, the default, leaves it out"
JUDGED = "drawn and judged; by default 10,000 of a model of two players, and none of others"
CONDITIONS = "of the samples that are judged, num_steps=50,eta=1; given again, they are judged again"
DATA = (
    "mnist, fashion_mnist, digits, mnist_or_digits; mixture, ring, moons, swiss_roll, line, markov_chain; text8, "
    "wikitext2, pydocs, or the path of a text file"
)
VECTORS = "the file, vectors.txt by default; .bin is the binary format, and .gz, .bz2 and .xz are packed"
CLASS = "class of a model that is not part of the zoo, such as my_package.made.MADE"
SOURCE = "name of a pretrained checkpoint, path of a training checkpoint, or a run folder"


def list_everything(args: argparse.Namespace) -> None:
    """Models that can be trained and checkpoints that can be loaded."""
    print("models, python train.py model=<name>:")
    for name in zoo.list_models():
        print(f"  {name}")
    print("pretrained checkpoints, zoo.load(<name>):")
    for name in zoo.list_checkpoints():
        card = json.loads((zoo.WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        metrics = ", ".join(f"{key} {value:.4g}" for key, value in card["metrics"].items())
        print(f"  {name:12} {card['model']} on {card['data']}, {card['parameters'] / 1e6:.1f} M parameters; {metrics}")


def sample(args: argparse.Namespace) -> None:
    """Draw samples of a trained model as one picture."""
    from zoo.sampling.chunks import check_conditions, sample_chunks
    from zoo.sampling.pictures import picture, save_grid

    conditions = _conditions(",".join(args.condition))
    model = _on_device(_load(args))
    if args.images and "init" in conditions:
        raise UserError("--images says where chains begin, and so does -c init=...: leave out one of them")
    if args.images:
        conditions["init"] = _test_images(args.images, args.n)
    conditions = check_conditions(model, conditions)
    n, conditions, columns = picture(model, args.n, conditions)
    save_grid(sample_chunks(model, n, args.seed, progress=True, **conditions), args.output, columns)
    rows = f", in rows of {columns} for each value of {model.rows()[0]}" if n != args.n else ""
    print(f"{n} samples in {_pasted(args.output)}{rows}")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a trained model on test images, or vectors of words by the published sets."""
    from zoo.evaluation import protocol as evaluation

    model, metrics = _on_device(_load(args)), {}
    words = _knows_words(model)
    if words:  # before the work, not after it
        from zoo.evaluation.words import find_word_sets, measure_words

        evaluation.check_protocol(_protocol(args), model, "text")
        sets = find_word_sets(args.words)
    if not words or args.data or model.predicts:
        data = _data(args, model)
        if words:
            metrics = evaluation.evaluate(model, data)
        else:
            metrics, _ = evaluation.measure(model, data, _protocol(args), progress=True)
    if words:
        metrics |= measure_words(model, sets)
    for name, value in metrics.items():
        print(f"{name}: {value:.6g}")


def compare(args: argparse.Namespace) -> None:
    """Measure gradient estimators side by side; ``toy`` is the seeds' example, beside its exact values."""
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
        size = args.batch_size or (4 if _knows_words(model) else 64)
        batch = [t.to(model.device) for t in next(iter(data.val_dataloader()))]
        if size > len(batch[0]):
            raise UserError(f"batch-size must be at most {len(batch[0])}, of one batch of validation, got {size}")
        batch = [t[:size] for t in batch]
        results = comparison.compare_model(model, batch, names, draws, args.seed, progress=True)
        print(comparison.table(results))
        save_figure(comparison.figure(results), args.output)
    print(f"figure in {_pasted(args.output)}")


def curves(args: argparse.Namespace) -> None:
    """Draw one metric of several runs against epochs."""
    from zoo.evaluation import curves
    from zoo.sampling.pictures import save_figure

    if args.against:
        pairs = {str(run): curves.read_pairs(run, args.against, args.metric) for run in args.runs}
        for name, points in pairs.items():
            print(f"{name}: {curves.correlation(points)} of {args.metric} with {args.against}")
        save_figure(curves.scatter(pairs, args.against, args.metric), args.output)
        print(f"figure in {_pasted(args.output)}")
        return
    found = {str(run): curves.read_curve(run, args.metric) for run in args.runs}
    for name, (unit, points) in found.items():
        print(f"{name}: {args.metric} {points[-1][1]:.6g} after {points[-1][0]} {unit}")
    save_figure(curves.figure({k: points for k, (_, points) in found.items()}, args.metric, unit), args.output)
    print(f"figure in {_pasted(args.output)}")


def nearest(args: argparse.Namespace) -> None:
    """The words nearest to a word."""
    _print_words(_words(args.source).nearest, args.word, args.n)


def analogy(args: argparse.Namespace) -> None:
    """What is to C as B is to A."""
    _print_words(_words(args.source).analogy, args.a, args.b, args.c, args.n)


def vectors(args: argparse.Namespace) -> None:
    """Write vectors of words in the word2vec format, which gensim's KeyedVectors reads."""
    model = _words(args.source)
    model.export(args.output, args.binary)
    print(f"{len(model.words):,} words, {model.hparams.dim} numbers each, in {_pasted(args.output)}")


def _knows_words(model: object) -> bool:
    from zoo.checks import capabilities  # typing is a tenth of what ``list`` takes

    return isinstance(model, capabilities.Words)


def _words(source: str):
    model = zoo.load(source)
    if not _knows_words(model):
        raise UserError(f"{type(model).__name__} knows no words; a skip-gram model does")
    return model


def _print_words(find, *arguments) -> None:
    for word, cosine in find(*arguments):
        print(f"{cosine:.3f}  {word}")


def export(args: argparse.Namespace) -> None:
    """Publish a training checkpoint in zoo/weights."""
    from zoo import hub
    from zoo.hub import exporting

    weights = exporting.export(args.source, args.name, args.force, _protocol(args), progress=True)
    print(f"{weights} ({weights.stat().st_size / 1e6:.1f} MB) and its card")
    for name, value in hub.read_card(args.name)["metrics"].items():
        print(f"{name}: {value:.6g}")


def _protocol(args: argparse.Namespace):
    from zoo.evaluation.protocol import Protocol

    several = [_conditions(text) for text in args.condition] or [{}]
    return Protocol(args.importance_samples, args.bound_images, args.samples, tuple(several))


def _conditions(text: str) -> dict[str, object]:
    """``a=1,b=2`` as a dictionary."""
    found = [_condition(part) for part in re.split(r",(?=\w+=)", text)] if text else []
    if len(twice := [name for name, _ in found]) > len(set(twice)):
        raise UserError(f"each condition is given once, got {text}")
    return dict(found)


def _condition(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"a condition is written name=value, such as num_steps=100; got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        if value.isidentifier():
            return name, value
        raise UserError(f"a condition is a number, a word, true, false, null or a list; got {text!r}") from None


def _test_images(name: str, n: int) -> list:
    from zoo.datamodules import Images

    data = Images(name)
    data.setup()
    images = data.splits["test"].images[:n]
    if len(images) < n:
        raise UserError(f"{data.used} has {len(images):,} test images, fewer than {n:,} chains")
    return list(images[:, None].float() / 255)


def _data(args: argparse.Namespace, model):
    """The data that are named, or else those of the run that learned words, or digits; set up, and such as fit."""
    from zoo import hub
    from zoo.datamodules import by_name
    from zoo.training.command_line import check_kind

    words = _knows_words(model)
    recorded = hub.record_of(args.source) if words else None
    if words and recorded is None and args.data is None:
        raise UserError(f"{args.source} does not record what it was trained on: name data with --data")
    if recorded:  # the vocabulary and the windows of the run, of whatever text
        data = hub.data_of(recorded, args.data)
    else:
        data = by_name(args.data or "mnist_or_digits")
    check_kind(model, data)
    data.setup()
    _check_shape(model, data)
    return data


def _check_shape(model, data) -> None:
    if _knows_words(model):
        model.check_vocabulary(data.corpus.words)
        return
    example = list(next(iter(data.test_dataloader()))[0].shape[1:])
    shape = list(model.hparams.get("shape", [1, 28, 28]))
    if shape != example:
        raise UserError(
            f"{type(model).__name__} is made for examples of shape {shape}, and those of {data.used} have {example}: "
            "choose others with --data"
        )


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
    """One that says what is wrong in one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; {self.prog} -h lists what there is\n")


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = Parser("python -m zoo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run, name: str, source: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        if source:
            sub.add_argument("source", help=SOURCE)
        return sub

    def with_class(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--class", dest="model_class", metavar="CLASS", help=CLASS)

    def protocol(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--importance-samples", type=int, default=0, help=SAMPLES)
        sub.add_argument("--bound-images", type=int, default=0, help=BOUND)
        sub.add_argument("--samples", type=int, help=JUDGED)
        sub.add_argument("-c", "--condition", action="append", default=[], help=CONDITIONS)

    command(list_everything, "list", source=False)
    sub = command(sample, "sample")
    with_class(sub)
    sub.add_argument("-n", type=int, default=64, help="how many, 64 by default")
    sub.add_argument("--seed", type=int, default=0, help="the same seed gives the same pixels")
    sub.add_argument("-o", "--output", type=_path, default=Path("samples.png"), help="the picture, a PNG")
    sub.add_argument("-c", "--condition", action="append", default=[], help="of the model's sample, num_steps=50,eta=1")
    sub.add_argument("--images", help="data set at whose test images chains begin, where samples are chains")
    sub = command(evaluate, "evaluate")
    with_class(sub)
    sub.add_argument("--data", help=f"{DATA}; by default mnist_or_digits, or the text of the run")
    sub.add_argument("--words", type=_path, help="folder of the published sets of words; by default gensim's own")
    protocol(sub)
    sub = command(compare, "compare")
    with_class(sub)
    sub.add_argument("--estimators", help="names with commas between them; all that the model has by default")
    sub.add_argument("--draws", type=int, help="gradients of each, 256 by default (toy: 100,000)")
    sub.add_argument("--data", help=f"whose validation set the batch is from, likewise: {DATA}")
    sub.add_argument("--batch-size", type=int, help="images in the batch, 64 by default, or rows of 32 words, 4")
    sub.add_argument("--seed", type=int, default=0, help="of all noise")
    sub.add_argument("-o", "--output", type=_path, default=Path("comparison.png"), help="the figure, a PNG")
    sub = command(curves, "curves", source=False)
    sub.add_argument("runs", nargs="+", type=_path, help="run folders, each with its metrics.csv")
    sub.add_argument("--metric", default="val/loss", help="a column of metrics.csv, val/loss by default")
    sub.add_argument("--against", help="another column: one against the other, with their correlation, not over time")
    sub.add_argument("-o", "--output", type=_path, default=Path("curves.png"), help="the figure, a PNG")
    sub = command(nearest, "nearest")
    sub.add_argument("word")
    sub.add_argument("-n", type=int, default=10, help="how many, 10 by default")
    sub = command(analogy, "analogy")
    for name in "abc":
        sub.add_argument(name, metavar=name.upper())
    sub.add_argument("-n", type=int, default=5, help="how many, 5 by default")
    sub = command(vectors, "vectors")
    sub.add_argument(
        "-o",
        "--output",
        type=_path,
        default=Path("vectors.txt"),
        help="the file, vectors.txt by default; .bin is the binary format, and .gz, .bz2 and .xz are packed",
    )
    sub.add_argument("--binary", action="store_true", help="the binary format, not the one of text")
    sub = command(export, "export")
    sub.add_argument("name", help="lower-case letters, digits and hyphens")
    protocol(sub)
    sub.add_argument("--force", action="store_true", help="replace a checkpoint of that name")
    return parser


def main() -> None:
    with errors_for_people():
        args = parser().parse_args()
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
    """Run a command that needs torch, with its messages on lines of their own."""
    import logging

    from zoo.training.messages import lines_of_their_own

    logging.basicConfig(format="%(message)s")
    logging.getLogger("zoo").setLevel(logging.INFO)
    with lines_of_their_own():
        args.run(args)


if __name__ == "__main__":
    with ended_by_signals():
        main()
