"""Tests of ``L.Trainer().fit(model, loader)`` with many kinds of loaders, for all models of images."""

import logging
import warnings
from collections import namedtuple

import lightning as L
import pytest
import torch
from processes import together
from small_models import MODELS
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from zoo.checks.errors import UserError
from zoo.checks.pixels import as_batch
from zoo.training.trainer import make_trainer

X, Y = torch.linspace(0, 1, 8 * 784).view(8, 1, 28, 28), torch.arange(8)
Example = namedtuple("Example", "image label")
DICTS = [{"image": x, "label": y, "path": "a.png"} for x, y in zip(X, Y.tolist(), strict=True)]
IMAGES = ("vae", "cvae", "vade", "rbm", "gan", "wgan", "infogan", "ddpm", "ddpm-labels", "score")
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
QUIET |= {"accelerator": "cpu"}


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        return iter(list(zip(X, Y, strict=True)))


class ChangingSizes:
    """A batch sampler whose batches have 2 or 3 examples."""

    def __iter__(self):
        return iter([[0, 1, 2], [3, 4], [5, 6, 7]])

    def __len__(self):
        return 3


LOADERS = {
    "dictionaries": lambda: DataLoader(DICTS, batch_size=4),
    "two workers": lambda: DataLoader(DICTS, batch_size=4, num_workers=2),
    "no length": lambda: DataLoader(Stream(), batch_size=4),
    "changing sizes": lambda: DataLoader(TensorDataset(X, Y), batch_sampler=ChangingSizes()),
}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FIRST = ["dictionaries"]  # the first tier tries the other loaders with one model of each kind
CASES = [
    pytest.param(name, loader, marks=[] if loader in FIRST or name in ("vae", "gan") else pytest.mark.slow)
    for name in IMAGES
    for loader in LOADERS
]


@pytest.mark.parametrize(("name", "loader"), CASES)
def test_a_model_trains_validates_and_tests_on_any_loader(name, loader):
    torch.manual_seed(0)
    model, data = MODELS[name](), LOADERS[loader]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = L.Trainer(max_epochs=1, **QUIET)
    trainer.fit(model, data, data)
    trainer.test(model, data, verbose=False)
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {key.split("/")[0] for key in trainer.callback_metrics} == {"test"}


class Seen(L.Callback):
    """Keep the labels of the training batches."""

    def __init__(self):
        self.labels = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.labels += as_batch(batch)[1].tolist()


def trained_together(names):
    """Train models on a plain loader, and return the labels that this process saw, and the weights."""
    found = {}
    for name in names:
        torch.manual_seed(0)
        model, seen = MODELS[name](), Seen()
        ddp = {"devices": 2, "strategy": "ddp_find_unused_parameters_true", "use_distributed_sampler": True}
        trainer = L.Trainer(max_epochs=1, callbacks=[seen], **QUIET, **ddp)
        trainer.fit(model, DataLoader(DICTS, batch_size=2), DataLoader(DICTS, batch_size=2))
        found[name] = seen.labels, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
    return found


@pytest.mark.slow
def test_two_processes_share_a_plain_loader_and_have_equal_weights():
    """Lightning gives each process a DistributedSampler. VaDE fits its mixture, and the RBM finds its mean image."""
    first, second = together(2, trained_together, IMAGES)
    for name in IMAGES:
        (ours, weights), (theirs, others) = first[name], second[name]
        assert sorted(ours + theirs) == Y.tolist()
        assert weights == others, name


@pytest.mark.parametrize("name", ["vae", "gan", "infogan"])
def test_a_trainer_of_the_zoo_takes_batches_of_every_form_in_one_execution(name):
    """Batches in dictionaries and in pairs have equal images, so the weights are equal after training."""
    weights = []
    for data in (DICTS, TensorDataset(X, Y)):
        torch.manual_seed(0)
        model = MODELS[name]()
        trainer = make_trainer(max_epochs=4, two_players="gan" in name, steps_per_execution=4, **QUIET)
        trainer.fit(model, DataLoader(data, batch_size=2))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["vae", "gan", "infogan", "score"])
def test_a_model_that_trains_without_labels_validates_without_them(name):
    trainer = L.Trainer(max_epochs=1, **QUIET)
    trainer.fit(MODELS[name](), DataLoader(DICTS, batch_size=4), DataLoader(X, batch_size=4))
    assert any(key.startswith("val/") for key in trainer.callback_metrics)


def test_the_plainest_trainer_writes_logs_and_checkpoints(tmp_path):
    trainer = L.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(MODELS["vae"](), DataLoader(DICTS, batch_size=4))
    assert list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(("name", "shape"), [("vae", (4, 1, 28, 28)), ("cvae", (4, 1, 28, 28)), ("infogan", (4,))])
@pytest.mark.parametrize("data", [DICTS, TensorDataset(X, Y)], ids=["dictionaries", "pairs"])
def test_predict_returns_what_forward_returns(name, shape, data):
    (first, second) = L.Trainer(**QUIET).predict(MODELS[name](), DataLoader(data, batch_size=4))
    assert first.shape == second.shape == shape


def test_predict_returns_the_features_of_a_boltzmann_machine():
    first, _ = L.Trainer(**QUIET).predict(MODELS["rbm"](), DataLoader(DICTS, batch_size=4))
    assert first.shape == (4, 3)


@pytest.mark.parametrize("name", ["gan", "wgan", "ddpm", "score"])
def test_predict_says_that_a_model_predicts_nothing(name):
    with pytest.raises(UserError, match=r"predicts nothing from images alone: call sample\(n\)"):
        L.Trainer(**QUIET).predict(MODELS[name](), DataLoader(DICTS, batch_size=4))


@pytest.mark.parametrize("examples", ["image", "images", "img", "pixel_values", "x"])
@pytest.mark.parametrize("labels", ["label", "labels", "y", "target"])
def test_the_usual_keys_of_a_dictionary_are_known(examples, labels):
    x, y = as_batch({"index": torch.arange(8), labels: Y, examples: X})
    assert x is X and y is Y


@pytest.mark.parametrize(
    ("batch", "length"),
    [
        (X, 1),
        ((X,), 1),
        ([X, Y], 2),
        (Example(X, Y), 2),
        ((X, Y, torch.arange(8)), 2),
        ((X, ["a caption"] * 8), 1),
        ((X, None), 1),
        ((X, [{"box": 3}] * 8), 1),
        ((X, list(range(8))), 2),
        ({"image": X}, 1),
    ],
)
def test_a_batch_has_examples_and_perhaps_labels(batch, length):
    found = as_batch(batch)
    assert found[0] is X and len(found) == length


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": X, "x": X}, "'image', 'x', and 'image' and 'x' may all be its examples: give exactly one of image,"),
        ({"image": X, "y": Y, "label": Y}, "'label' and 'y' may all be its labels: give exactly one of label, labels"),
        ({}, "the keys of a batch are none, and none is the key of its examples"),
        ({"image": "a.png"}, "got a list that begins with a str"),
        ([], r"a dictionary such as \{'image': x, 'label': y\}; got a list"),
        ("text", "got a str"),
    ],
)
def test_a_batch_of_no_known_form_is_refused_with_the_accepted_forms(batch, message):
    with pytest.raises(UserError, match=message):
        as_batch(batch)


WRONG_LABELS = [torch.rand(8), torch.full((8,), -1), torch.full((8,), 1000), torch.ones(8, 2).long()]


@pytest.mark.parametrize("labels", WRONG_LABELS)
def test_labels_that_cannot_be_counted_in_clusters_are_refused(labels):
    loader = DataLoader(TensorDataset(X, labels), batch_size=4)
    with pytest.raises(UserError, match="labels of clusters must be integers from 0 to 999"):
        L.Trainer(**QUIET).validate(MODELS["infogan"](), loader, verbose=False)


def test_clusters_are_scored_with_a_hundred_classes():
    loader = DataLoader(TensorDataset(X, torch.arange(92, 100)), batch_size=4)
    (metrics,) = L.Trainer(**QUIET).validate(MODELS["infogan"](), loader, verbose=False)
    assert 1 / 8 <= metrics["val/accuracy"] <= 1
