"""The model and the data that a command line names."""

import argparse

import zoo
from zoo.checks.errors import UserError


def load_model(args: argparse.Namespace):
    """Return the trained model that the command line names."""
    if args.model_class is None:
        return zoo.load(args.source)
    from zoo.training.command_line import named_class

    return zoo.load(args.source, named_class(args.model_class))


def device_of_commands() -> str:
    """Return the device on which commands compute: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(model):
    """Return the model on the GPU if there is one."""
    return model.to(device_of_commands())


def knows_words(model: object) -> bool:
    """Return whether the model has vectors of words."""
    from zoo.checks import capabilities  # imported here, because importing typing takes a tenth of the time of ``list``

    return isinstance(model, capabilities.Words)


def ready(data):
    """Return the data, ready for use. Errors about images of the user name no settings, which commands do not have."""
    from zoo.datamodules.access import make_ready
    from zoo.datamodules.files import DataError

    try:
        return make_ready(data)
    except DataError as error:
        raise DataError(without_settings(str(error))) from error


def without_settings(message: str) -> str:
    """Return an error about images of the user without the settings data.path and data.skip of a training."""
    return message.replace(", or leave them out with data.skip=true", "").replace("data.path=", "")


def starting_images(name: str, n: int, model) -> list:
    """Return the first ``n`` test images of the data ``name``, (C, H, W) each, in [0, 1].

    Raises:
        UserError: if there are too few test images, or if the model takes other examples.
    """
    from zoo.datamodules import by_name
    from zoo.datamodules.access import name_of, size_of, split_of
    from zoo.datamodules.splits import as_floats

    data = ready(by_name(name, image_shape(model)))
    check_examples(model, data)
    if (known := size_of(data, "test")) < n:
        raise UserError(f"n must be at most {known:,}, the number of test images in {name_of(data)}; got {n:,}")
    return list(as_floats(split_of(data, "test", n).images))


def image_shape(model) -> tuple[int, ...] | None:
    """Return the shape of the model's images, or None if it has other examples."""
    from zoo.checks.inputs import shape_of

    return None if knows_words(model) or len(shape_of(model)) != 3 else shape_of(model)


def data_for(args: argparse.Namespace, model):
    """Return the data of the run, or the data that ``--data`` names, ready for use.

    For pretrained checkpoints, the default is the data on the card. For MNIST, it is mnist_or_digits.

    Raises:
        UserError: if the model cannot take these data, or if the data of the run are not recorded, gone or changed.
    """
    from zoo import hub
    from zoo.datamodules import by_name
    from zoo.training.command_line import check_kind

    record, words = hub.record_of(args.source), knows_words(model)
    if record is not None:
        data = hub.data_of(record, args.data, args.trust_data, image_shape(model))
    elif args.data is None and words:
        raise UserError(f"{args.source} does not record its training text: name a text with --data")
    elif args.data is None and not of_published_data(args.source):
        raise UserError(f"{args.source} was trained on images of its author: name images with --data PATH")
    else:
        data = by_name(args.data or data_on_card(args.source), image_shape(model))
    check_kind(model, data, "--data")
    ready(data)
    if record is not None and args.data is None:
        hub.check_unchanged(data, record)
    check_examples(model, data)
    return data


def of_published_data(source: str) -> bool:
    """Return whether the card of a model names data that everybody can use, or whether the model has no card."""
    from zoo import hub
    from zoo.datamodules import published

    card = hub.card_of(source)
    return card is None or published(card["data"])


def data_on_card(source: str) -> str:
    """Return the name of the data on the card of a model. MNIST and models without a card give mnist_or_digits."""
    from zoo import hub

    card = hub.card_of(source)
    return "mnist_or_digits" if card is None or card["data"] == "mnist" else card["data"]


def check_examples(model, data) -> None:
    """Check that the model takes the test examples of the data, and that there are labels if it needs them."""
    from zoo.checks.inputs import shape_of
    from zoo.checks.pixels import as_batch
    from zoo.datamodules.access import name_of

    if knows_words(model):
        model.check_vocabulary(data.corpus.words)
        return
    batch = as_batch(next(iter(data.test_dataloader())))
    example, shape, name = list(batch[0].shape[1:]), list(shape_of(model)), type(model).__name__
    if example != shape:
        raise UserError(
            f"{name} takes examples of shape {shape}, and the examples of {name_of(data)} have {example}: choose other "
            "data with --data"
        )
    if model.hparams.get("num_classes") is not None and len(batch) < 2:
        raise UserError(f"{name} needs labels, and {name_of(data)} has none: choose data with labels with --data")
