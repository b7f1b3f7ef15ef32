"""Test of the sanity check before training, which uses only a few images."""

from helpers import TINY, run
from lightning.pytorch import Callback

SEEN = []


class Rows(Callback):
    """Callback that records the number of rows of each validation batch, and whether it is in the sanity check."""

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        SEEN.append((trainer.sanity_checking, len(batch[0])))


def test_the_sanity_check_uses_32_images_and_a_validation_all(tmp_path):
    """The digits have 180 images for validation. One batch has all of them."""
    SEEN.clear()
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "test=false", "logger=none"]
    rows = "+callbacks.rows._target_=test_sanity_check.Rows"
    run(tmp_path, *TINY["vae"], *few, "trainer.num_sanity_val_steps=1", "~callbacks.samples", rows)
    assert SEEN[0] == (True, 32)
    assert (False, 180) in SEEN and not any(n < 180 for checking, n in SEEN if not checking)
