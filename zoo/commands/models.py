"""Commands for models of images and points: list, sample, evaluate, compare, curves, export and push."""

import argparse
from pathlib import Path

import zoo
from zoo.checks.errors import UserError
from zoo.checks.names import did_you_mean
from zoo.commands.columns import aligned
from zoo.commands.conditions import parse_conditions
from zoo.commands.inputs import data_for, knows_words, load_model, on_device, starting_images
from zoo.commands.listing import print_rows
from zoo.evaluation.results import card_at
from zoo.training.shell import pasted, zoo_command

# ``list`` shows the first of these metrics that the card of a checkpoint has.
MAIN_METRICS = ("test/log_likelihood", "bits_per_dim", "test/accuracy", "classifier_fid", "fisher_divergence")
MAIN_METRICS += ("energy_distance", "analogies", "test/loss")


def list_everything(args: argparse.Namespace) -> None:
    """List the models and the pretrained checkpoints."""
    patterns = args.patterns or "*"
    models, checkpoints = zoo.list_models(patterns), zoo.list_checkpoints(patterns)
    if args.format != "table":
        print_rows(checkpoints, args.format)
        return
    if models:
        print(f"Models. Train one with: {pasted(*zoo_command())} train model=NAME")
        print("  " + "\n  ".join(aligned([(name, about(name)) for name in models])))
    if checkpoints:
        print(f"{chr(10) if models else ''}Pretrained checkpoints. Load one in Python with: zoo.load(NAME)")
        _print_table(checkpoints)
    if not models and not checkpoints:
        known = [*zoo.list_models(), *zoo.list_checkpoints()]
        print(f"Nothing matches {' '.join(args.patterns)}.{did_you_mean(args.patterns[0], known)}")


def _print_table(checkpoints: list[str]) -> None:
    rows = [("NAME", "MODEL", "DATA", "PARAMETERS", "MAIN METRIC")]
    for name in checkpoints:
        card = card_at(zoo.WEIGHTS / f"{name}.json")
        rows.append((name, card["model"], card["data"], f"{card['parameters']:,}", _main_metric(card["metrics"])))
    print("  " + "\n  ".join(aligned(rows, right=(3,))))


def about(model: str) -> str:
    """Return what a model is: the first line of the docstring of its file, without the model's name."""
    file = Path(zoo.__file__).parent / f"{zoo.MODELS[model].split('.')[1]}.py"
    with file.open(encoding="utf-8") as lines:
        line = lines.readline().strip().strip('"')
    before, _, after = line.partition(": ")
    if before.lower().replace("-", "").removesuffix(" model") == model:
        return after[:1].upper() + after[1:]
    return line


def _main_metric(metrics: dict[str, float]) -> str:
    from zoo.evaluation.units import metric_texts

    for main in MAIN_METRICS:
        for name in metrics:
            if name == main or name.startswith(f"{main}/"):
                return f"{name.removeprefix('test/')} {metric_texts(metrics)[name]}"
    return ""


def _print_metrics(metrics: dict[str, float], counts: dict[str, int] | None = None) -> None:
    from zoo.evaluation.units import metric_texts

    for name, text in metric_texts(metrics, counts).items():
        print(f"{name}: {text}")


def sample(args: argparse.Namespace) -> None:
    """Draw samples from a trained model and write them as one PNG picture."""
    from zoo.functional.progress import counted
    from zoo.sampling.chunks import check_conditions, sample_chunks
    from zoo.sampling.pictures import picture, save_grid

    conditions = parse_conditions(",".join(args.condition))
    model = on_device(load_model(args))
    if args.images and "init" in conditions:
        raise UserError("--images and -c init=... both set where the chains start: leave out one of them")
    if args.images:
        conditions["init"] = starting_images(args.images, args.n, model)
    conditions = check_conditions(model, conditions)
    n, conditions, columns = picture(model, args.n, conditions)
    save_grid(sample_chunks(model, n, args.seed, progress=True, **conditions), args.output, columns)
    rows = f", {columns} in a row, one row for each value of {model.rows()[0]}" if n != args.n else ""
    print(f"Wrote {counted(n, 'sample')} to {pasted(args.output)}{rows}")


def evaluate(args: argparse.Namespace) -> None:
    """Measure a trained model on test data, and word vectors on the published word sets."""
    from zoo.evaluation import protocol as evaluation

    if args.update_card:
        _update_card(args)
        return
    model, metrics, evidence = on_device(load_model(args)), {}, {}
    words = knows_words(model)
    if args.words and not words:
        raise UserError(f"--words is an option of models of words, and {args.source} has none: leave out --words")
    if words:  # checked before the work begins
        from zoo.evaluation.words import find_word_sets, measure_words

        evaluation.check_protocol(_protocol(args) or evaluation.Protocol(), model)
        sets = find_word_sets(args.words)
    if not words or args.data or model.predicts:
        data = data_for(args, model)
        if words:
            metrics = evaluation.evaluate(model, data)
        else:
            metrics, evidence = evaluation.measure(model, data, _protocol(args), progress=True)
    if words:
        metrics |= measure_words(model, sets)
    _print_metrics(metrics, evidence.get("counts"))


def _update_card(args: argparse.Namespace) -> None:
    """Measure the metrics of a published checkpoint again, and write them to its card."""
    from zoo import hub
    from zoo.hub.refreshing import refresh

    unused = {"--words": args.words, "--trust-data": args.trust_data, "--class": args.model_class}
    if given := [option for option, value in unused.items() if value]:
        raise UserError(f"--update-card measures by the card, and takes no {given[0]}: leave out {given[0]}")
    before = (hub.card_of(args.source) or {}).get("metrics", {})
    card = refresh(args.source, _protocol(args), True, args.data)
    metrics = card["metrics"]
    _print_metrics(metrics, card["counts"])
    changed = [name for name in metrics if name in before and before[name] != metrics[name]]
    print(f"Wrote {len(metrics)} metrics to the card of {args.source}, {len(changed)} of them with another value")
    for name in changed:
        print(f"  {name} was {before[name]:.6g} and is {metrics[name]:.6g}")


def compare(args: argparse.Namespace) -> None:
    """Compare the variance of gradient estimators, as a table and a figure."""
    from zoo.checks.pixels import as_batch
    from zoo.evaluation import comparison
    from zoo.evaluation.results import write_results
    from zoo.sampling.pictures import save_figure

    if args.csv and args.source == "toy":
        raise UserError("--csv writes results of a model, not of toy: leave out --csv")
    of_models = {"--estimators": args.estimators, "--data": args.data, "--batch-size": args.batch_size}
    of_models |= {"--class": args.model_class, "--trust-data": args.trust_data}
    if args.source == "toy" and (given := [option for option, value in of_models.items() if value]):
        raise UserError(f"{given[0]} is an option of trained models, and toy is an example: leave out {given[0]}")
    draws = (100_000 if args.source == "toy" else 256) if args.draws is None else args.draws
    if args.source == "toy":
        results = comparison.toy(draws, args.seed)
        print(comparison.toy_table(results))
        save_figure(comparison.toy_figure(results), args.output)
    else:
        model = on_device(load_model(args))
        names = args.estimators.split(",") if args.estimators else None
        data = data_for(args, model)
        batch = [t.to(model.device) for t in as_batch(next(iter(data.val_dataloader())))]
        size = args.batch_size or min(4 if knows_words(model) else 64, len(batch[0]))
        if size > len(batch[0]):
            raise UserError(f"batch-size must be at most {len(batch[0])}, the size of a validation batch, got {size}")
        batch = [t[:size] for t in batch]
        results = comparison.compare_model(model, batch, names, draws, args.seed, progress=True)
        print(comparison.table(results))
        save_figure(comparison.figure(results), args.output)
        if args.csv:
            write_results(args.csv, _about(args, model), comparison.COLUMNS, comparison.cells(results))
            print(f"Wrote the table to {pasted(args.csv)}")
    print(f"Wrote the figure to {pasted(args.output)}")


def _about(args: argparse.Namespace, model) -> dict[str, object]:
    """Return how the results of ``zoo compare`` were measured, for the beginning of a results file."""
    from zoo.callbacks.run_record import hardware
    from zoo.training.shell import shareable

    options = {"estimators": None, "draws": None, "data": None, "batch_size": None, "seed": 0}
    given = {name: value for name, default in options.items() if (value := getattr(args, name)) != default}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = pasted("zoo", "compare", *map(shareable, [args.source, *words]))
    return {"command": command, "seed": args.seed, "hardware": hardware(model.device)}


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
        print(f"Wrote the figure to {pasted(args.output)}")
        return
    found = {str(run): curves.read_curve(run, args.metric) for run in args.runs}
    by_unit = {unit: name for name, (unit, _) in found.items()}
    if len(by_unit) > 1:
        raise UserError(
            f"{args.metric} is logged by epochs in {by_unit['epochs']} and by steps in {by_unit['steps']}: "
            "draw these runs in two pictures"
        )
    for name, (unit, points) in found.items():
        columns = {column for row in read_rows(Path(name, "metrics.csv")) for column in row}
        (place, value), unit_of_place = points[-1], unit.removesuffix("s")
        print(f"{name}: {args.metric} {with_unit(args.metric, value, columns)} after {counted(place, unit_of_place)}")
    save_figure(curves.figure({k: points for k, (_, points) in found.items()}, args.metric, unit), args.output)
    print(f"Wrote the figure to {pasted(args.output)}")


def export(args: argparse.Namespace) -> None:
    """Write the weights of a run to one file, with a card that holds its metrics."""
    from zoo import hub
    from zoo.hub import exporting

    protocol = _protocol(args)
    weights = exporting.export(
        args.source,
        args.name,
        args.force,
        protocol,
        True,
        args.data,
        args.trust_data,
        args.folder,
        args.dtype,
        tuple(args.keep.split(",")) if args.keep else (),
    )
    source = args.name if args.folder == zoo.WEIGHTS else str(weights)
    print(f"Wrote {pasted(weights)} ({weights.stat().st_size / 1e6:.1f} MB) and its card")
    print(f'Load it in Python with: zoo.load("{source}")')
    card = hub.card_of(source)
    _print_metrics(card["metrics"], card["counts"])
    for name, moved in (card["rounding"] or {}).items():
        error = "no known error" if moved["error"] is None else f"standard error {moved['error']:.3g}"
        print(f"{name}: {moved['float32']:.6g} in float32, {moved['float16']:.6g} in float16, {error}")


def push(args: argparse.Namespace) -> None:
    """Publish a trained model in a repository of the Hugging Face Hub, with its metrics."""
    from zoo.hub import pushing

    place = pushing.push(
        args.source,
        args.repo,
        private=args.private,
        license=args.license,
        folder=args.dry_run,
        protocol=_protocol(args),
        progress=True,
        data=args.data,
        trust=args.trust_data,
    )
    if args.dry_run is None:
        print(f'Pushed to {place}. Load it in Python with: zoo.load("hf:{args.repo}")')
    else:
        print(f"Wrote the files of {args.repo} to {pasted(args.dry_run)}. Nothing was uploaded")


def _protocol(args: argparse.Namespace):
    """Return the protocol of the command line, or None if it has no option about the protocol."""
    from zoo.evaluation.protocol import Protocol

    if not (args.importance_samples or args.bound_images or args.samples is not None or args.condition):
        return None

    several = [parse_conditions(text) for text in args.condition] or [{}]
    return Protocol(args.importance_samples, args.bound_images, args.samples, tuple(several))
