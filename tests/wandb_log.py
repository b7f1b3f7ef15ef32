"""Read the log of an offline Weights & Biases run."""

import time

from zoo.training.wandb_parts import records


def read_log(path):
    """Return the records of a .wandb file."""
    return [record for _, _, record in records(path.read_bytes())]


def wait_for_exit(log):
    """Wait until a log is complete. The service of wandb can write for some time after finish() returns."""
    for _ in range(600):  # on a busy machine, this takes longer
        if any(record.WhichOneof("record_type") == "exit" for record in read_log(log)):
            return
        time.sleep(0.1)
    raise AssertionError(f"{log} has no end")
