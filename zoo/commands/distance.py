"""The command ``zoo distance``, which compares two sets of images."""

import argparse
import csv
import json
import logging
import math
import sys
from typing import TYPE_CHECKING

import zoo
from zoo.checks.errors import UserError
from zoo.commands import image_sets
from zoo.commands.columns import aligned
from zoo.commands.conditions import parse_conditions

if TYPE_CHECKING:
    from torch import nn

    from zoo.commands.image_sets import ImageSet, Place
    from zoo.evaluation.distances import Estimate

log = logging.getLogger(__name__)

FEW = 2048  # images below which the bias of the Frechet distance is large; also the number of features of Inception
MOST_SAMPLES = 10_000  # default of the number of samples that a model draws


def distance(args: argparse.Namespace) -> None:
    """Measure FID, KID, precision, recall, density and coverage between two sets of images."""
    places = image_sets.find(args.real), image_sets.find(args.samples_of)
    check_options(places, args)

    from zoo.commands.inputs import device_of_commands
    from zoo.evaluation.distances import classifier_distances, feature_distances
    from zoo.evaluation.feature_networks import feature_network, features_of

    device = device_of_commands()
    network = feature_network(args.features).to(device)
    real, samples = read_sets(places, network, args)
    warn(real, samples)
    features = [features_of(found.images, network, device, found.name, progress=True) for found in (real, samples)]
    if args.features == "inception":
        found = feature_distances(*features, progress=True)
    else:  # the FID and the KID of papers are those of Inception
        found = classifier_distances(*features)
    print_distances(found, real, samples, args)


def check_options(places: "tuple[Place, Place]", args: argparse.Namespace) -> None:
    """Check that the options suit the features and the kinds of the two sets."""
    if args.size is not None and args.features != "inception" and args.size != 28:
        raise UserError(f"{args.features} features need images of 28 x 28 pixels: give --size 28, got {args.size}")
    if any(place.kind == "model" for place in places):
        return
    of_models = {"-n": args.n is not None, "-c": args.condition, "--class": args.model_class}
    if given := [option for option, value in of_models.items() if value]:
        raise UserError(
            f"{given[0]} is an option of models that draw samples, and neither {args.real} nor {args.samples_of} is a "
            f"model: leave out {given[0]}"
        )


def read_sets(places: "tuple[Place, Place]", network: "nn.Module", args: argparse.Namespace) -> "list[ImageSet]":
    """Return both sets of images. A model draws as many samples as the other set has images, or at most 10,000.

    Models draw after all checks, because samples can take hours.
    """
    from zoo.evaluation.feature_networks import check_images

    found: dict[Place, ImageSet] = {}
    for place in places:
        if place.kind != "model" and place not in found:
            found[place] = image_sets.read(place, args.size, args.grey)
            check_images(network, found[place].images, found[place].name)
    n = args.n or min([MOST_SAMPLES, *(len(images.images) for images in found.values())])
    conditions = parse_conditions(",".join(args.condition))
    models = {place: load(place, n, conditions, network, args) for place in places if place.kind == "model"}
    for place, model in models.items():
        drawn = image_sets.samples_of(model, place.name, n, args.seed, conditions)
        found[place] = drawn._replace(images=image_sets.fitted_images(drawn.images, args.size, args.grey))
    sets = [found[place] for place in places]
    for images in sets:
        if len(images.images) < 2:
            raise UserError(f"{images.name} has {len(images.images)} image, and distances need at least 2")
    return sets


def load(place: "Place", n: int, conditions: dict[str, object], network: "nn.Module", args: argparse.Namespace):
    """Return a trained model whose samples under ``conditions`` suit the network. This draws one sample."""
    from zoo.commands.inputs import knows_words, on_device
    from zoo.evaluation.feature_networks import check_images
    from zoo.sampling.chunks import try_conditions
    from zoo.training.command_line import named_class

    kind = None if args.model_class is None else named_class(args.model_class)
    model = on_device(zoo.load(place.name, kind))
    if knows_words(model):
        raise UserError(f"{place.name} is a {type(model).__name__}, which draws no images: name another model")
    sample = try_conditions(model, n, conditions).cpu()
    if args.size is None and not args.grey:
        check_images(network, sample, place.name)
    return model


def warn(real: "ImageSet", samples: "ImageSet") -> None:
    """Warn if the sets have different sizes, or too few images for the FID."""
    sizes = [len(images.images) for images in (real, samples)]
    if sizes[0] != sizes[1]:
        log.warning(
            "warning: the sets have %s and %s images. The bias of the FID depends on the sizes, and so do precision, "
            "recall, density and coverage. Compare only results of equal sizes",
            *(f"{n:,}" for n in sizes),
        )
    if min(sizes) < FEW:
        log.warning(
            "warning: the FID of fewer than %s images has a large upward bias, here with %s. The KID has none",
            f"{FEW:,}",
            f"{min(sizes):,}",
        )


def print_distances(
    found: "dict[str, Estimate]", real: "ImageSet", samples: "ImageSet", args: argparse.Namespace
) -> None:
    """Print the estimates as a table, or as csv or json. An error that is not defined is left empty."""
    rows = [(name, value, None if math.isnan(error) else error) for name, (value, error) in found.items()]
    if args.format == "json":
        sides = {side: {"name": s.name, "n": len(s.images)} for side, s in (("real", real), ("samples", samples))}
        metrics = {name: {"value": value, "standard_error": error} for name, value, error in rows}
        print(json.dumps({"features": args.features, **sides, "metrics": metrics}, indent=2))
    elif args.format == "csv":
        table = csv.writer(sys.stdout, lineterminator="\n")
        sides = (args.features, real.name, len(real.images), samples.name, len(samples.images))
        table.writerow(["metric", "value", "standard_error", "features", "real", "n_real", "samples", "n_samples"])
        table.writerows([name, value, error, *sides] for name, value, error in rows)
    else:
        _print_table(rows, real, samples, args.features)


def _print_table(
    rows: list[tuple[str, float, float | None]], real: "ImageSet", samples: "ImageSet", features: str
) -> None:
    from zoo.evaluation.units import rounded
    from zoo.functional.progress import counted

    for title, images in (("real", real), ("samples", samples)):
        print(f"{title:10}{images.name}, {counted(len(images.images), images.noun)}")
    print(f"{'features':10}{features}\n")
    cells = [("METRIC", "VALUE", "STANDARD ERROR")]
    cells += [(name, rounded(value), "" if error is None else f"{error:.2g}") for name, value, error in rows]
    print("\n".join(aligned(cells, right=(1, 2))))
