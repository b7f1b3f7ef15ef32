"""Tests of the Trainer's arguments that select batches. Data modules obey each argument, or raise before training."""

import lightning as L
import pytest
import torch
from helpers import TINY, run

from zoo.checks.errors import UserError
from zoo.datamodules import DataError, Images, Text, Toy
from zoo.datamodules.limits import check_limits
from zoo.training.trainer import make_trainer

KINDS = {
    "images": lambda: Images("digits", batch_size=100, digits_repeat=1, eval_batch_size=60),
    "points": lambda: Toy("ring", batch_size=5000, eval_batch_size=2000),
    "text": lambda: Text("pydocs", batch_size=100, eval_batch_size=40, min_count=20),
}
SHAPES = {"images": [1, 28, 28], "points": [2], "text": [1, 28, 28]}


class Watching(L.LightningModule):
    """Model that computes a number from each batch. ``seen[stage][epoch]`` is the list of these numbers."""

    def __init__(self, shape):
        super().__init__()
        self.save_hyperparameters()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(())), {"train": {}, "val": {}}

    def look(self, stage, batch):
        total = sum(float((t.double().flatten() * torch.arange(t.numel()).add(1).log()).sum()) for t in batch)
        self.seen[stage].setdefault(self.current_epoch, []).append(total)

    def training_step(self, batch, batch_idx):
        self.look("train", batch)
        return self.w * 0

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.look("val", batch)

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture(params=KINDS)
def kind(request, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    return request.param


def trainer(**arguments) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(**{"max_epochs": 3, "accelerator": "cpu", "enable_model_summary": False} | quiet | arguments)


def fit(kind, **arguments) -> dict[str, dict[int, list[float]]]:
    model = Watching(SHAPES[kind])
    trainer(**arguments).fit(model, datamodule=KINDS[kind]())
    return model.seen


def test_the_number_of_batches_is_obeyed_and_they_are_the_first_of_each_epoch(kind):
    whole = fit(kind)
    n = len(whole["train"][0])
    assert n > 3 and whole["train"][0] != whole["train"][1]
    for limit, kept in ((2, 2), (0.5, n // 2)):
        some = fit(kind, limit_train_batches=limit, limit_val_batches=1)
        assert some["train"] == {epoch: batches[:kept] for epoch, batches in whole["train"].items()}
        assert {len(batches) for batches in some["val"].values()} == {1}


@pytest.mark.parametrize("several", [1, 2])
def test_overfitting_takes_the_same_batches_in_every_epoch(kind, several):
    epochs = fit(kind, overfit_batches=several)["train"]
    assert len(epochs[0]) == several and epochs[0] == epochs[1] == epochs[2]
    assert epochs[0] == fit(kind, max_epochs=1, limit_train_batches=several)["train"][0]


def test_new_loaders_in_each_epoch_continue_like_one_loader(kind):
    assert fit(kind, reload_dataloaders_every_n_epochs=1) == fit(kind)


def test_validation_comes_as_often_as_asked_for(kind):
    usual = fit(kind)["val"]
    n = len(usual[0])
    often = fit(kind, val_check_interval=0.5)["val"]
    assert all(often[epoch][:n] == often[epoch][n : 2 * n] == usual[epoch] for epoch in usual)
    across = fit(kind, val_check_interval=7, check_val_every_n_epoch=None)["val"]
    assert sum(map(len, across.values())) >= n
    timed = fit(kind, val_check_interval="00:00:00:01")["val"]  # the run may be over earlier
    assert all(batches[:n] == usual[epoch] for epoch, batches in timed.items())


REFUSED = {
    "trainer.limit_train_batches=0.001 is less than one of the": {"limit_train_batches": 0.001},
    "trainer.limit_val_batches=0.001 is less than one of the": {"limit_val_batches": 0.001},
    "trainer.limit_test_batches=0.001 is less than one of the": {"limit_test_batches": 0.001},
    "trainer.overfit_batches=0.001 is less than one of the": {"overfit_batches": 0.001},
    "trainer.val_check_interval=5000 is more than the": {"val_check_interval": 5000},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_leaves_nothing_is_refused_before_the_first_epoch(kind, message):
    model = Watching(SHAPES[kind])
    with pytest.raises(DataError, match=message) as error:
        trainer(**REFUSED[message]).fit(model, datamodule=KINDS[kind]())
    assert "\n" not in str(error.value) and model.seen["train"] == {}


def test_turning_off_the_distributed_sampler_is_an_error():
    class Several:
        """Stand-in for a Trainer of two processes, with the attributes that the check uses."""

        world_size, limit_train_batches, limit_val_batches, limit_test_batches = 2, 1.0, 1.0, 1.0
        val_check_interval, check_val_every_n_epoch, overfit_batches = 1.0, 1, 0.0

    loaders = {"train": range(9), "val": range(2), "test": range(2)}
    Several._accelerator_connector = trainer(use_distributed_sampler=True)._accelerator_connector
    check_limits(Several, loaders, 4)
    Several._accelerator_connector = trainer(use_distributed_sampler=False)._accelerator_connector
    with pytest.raises(DataError, match="use_distributed_sampler=false is not supported"):
        check_limits(Several, loaders, 4)


OF_THE_COMMAND_LINE = [
    ({"limit_train_batches": 2.5}, "invalid value 2.5 for limit_train_batches"),
    ({"limit_val_batches": -1}, "invalid value -1 for limit_val_batches"),
    ({"val_check_interval": -1}, "invalid value -1 for val_check_interval"),
    ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch must be an integer of at least 1, got 0"),
    ({"reload_dataloaders_every_n_epochs": -1}, "should be an int >= 0, got -1"),
    ({"max_steps": -2}, "must be a non-negative integer or -1"),
    ({"max_time": "foo"}, "is not a valid duration"),
    ({"max_epochs": True}, "max_epochs must be an integer of at least -1, got True"),
    ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be an integer of at least 1, got 0"),
    ({"log_every_n_steps": -1}, "log_every_n_steps must be an integer of at least 0, got -1"),
    ({"num_sanity_val_steps": -5}, "num_sanity_val_steps must be an integer of at least -1, got -5"),
    ({"gradient_clip_val": -1}, "gradient_clip_val must be a number of at least 0, got -1"),
    ({"gradient_clip_algorithm": "foo"}, "`gradient_clip_algorithm` foo is invalid"),
    ({"deterministic": "foo"}, "deterministic must be true, false or warn, got 'foo'"),
    ({"profiler": "foo"}, "it can only be one of"),
    ({"fast_dev_run": -1}, "fast_dev_run=-1 is not a valid configuration"),
    ({"barebones": True, "callbacks": [L.Callback()]}, "barebones=true does not allow callbacks"),
    ({"devices": 0}, "trainer.devices must be auto, a number of at least 1, or a list of GPUs, got 0"),
    ({"devices": "foo"}, "a list of GPUs, got 'foo'"),
    ({"accelerator": "foo"}, "trainer.accelerator has no 'foo'; choose one of auto, cpu"),
    ({"strategy": "foo"}, "trainer.strategy has no 'foo'; choose one of auto, ddp"),
    ({"num_nodes": 0}, "must be a positive integer"),
    ({"plugins": ["foo"]}, "plugin"),
    ({"limit_trains_batches": 1}, "Did you mean limit_train_batches?"),
    ({"foo": 1}, "the trainer has no 'foo'; choose one of accelerator, "),
    ({"sync_batchnorm": True, "strategy": "ddp", "devices": 2}, "sync_batchnorm=true needs GPUs"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), OF_THE_COMMAND_LINE, ids=[message for _, message in OF_THE_COMMAND_LINE]
)
def test_what_lightning_refuses_or_does_not_obey_is_one_line(arguments, message):
    with pytest.raises(UserError) as error:
        make_trainer(**{"accelerator": "cpu", "logger": False} | arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_the_option_shape_is_not_told_to_set_it(tmp_path):
    with pytest.raises(UserError, match=r"but examples of ring have shape \[2\]: choose other data"):
        run(tmp_path, "experiment=classifier", "data=ring")


def test_a_model_of_fewer_classes_than_the_data_have_is_refused(tmp_path):
    with pytest.raises(UserError, match="model.num_classes is 9, but digits has 10 classes"):
        run(tmp_path, *TINY["cvae"], "model.num_classes=9")
