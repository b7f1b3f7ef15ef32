"""How many temperatures annealed importance sampling takes in a validation and in a test."""

from collections.abc import Mapping
from typing import Any

TRIAL_TEMPERATURES = 10  # few temperatures, because no one uses the estimate of a trial


def annealing_temperatures(trainer, hparams: Mapping[str, Any], stage: str) -> int:
    """Return the number of temperatures for one evaluation.

    A sanity check and an evaluation of one batch, as with ``debug=fast``, are trials. They have ten temperatures. A
    test on a part of the test set is not published. Like validation, it has ``ais_temperatures``.

    Args:
        trainer: the Trainer of the run. As a limit of batches, the integer 1 is one batch, and 1.0 is all batches.
        hparams: the arguments of the model.
        stage: ``sanity``, ``val`` or ``test``.
    """
    limit = trainer.limit_test_batches if stage == "test" else trainer.limit_val_batches
    if stage == "sanity" or (isinstance(limit, int) and limit == 1):
        return TRIAL_TEMPERATURES
    return hparams["test_ais_temperatures" if stage == "test" and limit == 1.0 else "ais_temperatures"]
