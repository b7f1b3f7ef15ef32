"""Tests of runs with too few examples for a model. An error of one line ends them before training begins."""

import lightning as L
import pytest
from helpers import TINY, run
from processes import together

from zoo.checks.errors import UserError


class Begun(L.Callback):
    """Callback that fails when training begins."""

    def on_train_epoch_start(self, trainer, pl_module):
        raise AssertionError("training has begun")


BEGUN = "+callbacks.begun._target_=test_few_examples.Begun"


@pytest.mark.parametrize("name", ["gan", "wgan", "infogan"])
def test_batch_normalisation_wants_batches_of_two(name, tmp_path):
    with pytest.raises(UserError, match=r"batches have 1 example on each process.*set data.batch_size to at least 2$"):
        run(tmp_path, *TINY[name], "data.batch_size=1", "debug=fast", BEGUN)


def refused(folder):
    try:
        run(folder, *TINY["gan"], "data.batch_size=2", "debug=fast", "trainer=ddp", *CPUS, BEGUN)
    except UserError as error:
        return str(error)


CPUS = ["trainer.accelerator=cpu", "trainer.devices=2"]


def test_batch_normalisation_on_two_processes_wants_batches_of_four(tmp_path):
    for message in together(2, refused, tmp_path):
        assert message.endswith("needs at least 2: set data.batch_size to at least 4")


def test_more_clusters_than_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="1,408 training images are too few for 2,000 clusters; lower"):
        run(tmp_path, *TINY["vade"], "model.num_clusters=2000", "trainer.max_epochs=2", BEGUN)
