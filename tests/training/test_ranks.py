"""What processes hold in turns, put together again; how processes other than the first begin."""

import lightning as L
import pytest
import torch
from processes import together

from zoo.training.processes import overrides_of_process
from zoo.training.ranks import all_rows, equal_rows, gathered
from zoo.training.trainer import quiet_lightning


def put_together(rows):
    """Of rows r, r + n, ... on process r what each function makes, as this process has it."""
    quiet_lightning()
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    trainer.strategy.setup_environment()
    x = 10.0 * torch.arange(rows)[:, None] + torch.arange(2)
    mine = x[trainer.global_rank :: 2]
    equal = equal_rows(mine, trainer).tolist() if rows % 2 == 0 else None
    return all_rows(mine, trainer).tolist(), gathered(mine, trainer).tolist(), equal


@pytest.mark.parametrize("rows", [6, 7])
def test_rows_come_together_in_their_order(rows):
    """On every process the same; of seven rows the last, which has no partner, is in what checkpoints hold alone."""
    x = (10.0 * torch.arange(rows)[:, None] + torch.arange(2)).tolist()
    for everywhere, kept, equal in together(2, put_together, rows):
        assert everywhere == x[:6] and kept == x
        assert equal == (x if rows == 6 else None)


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID"])
def test_a_process_other_than_the_first_has_no_run_folder_and_no_log(variable):
    """The folder is named by the time, so that each process would have its own."""
    assert overrides_of_process(["model=vae"], {}) == overrides_of_process(["model=vae"], {variable: "0"}) == []
    quiet = ["hydra.output_subdir=null", "hydra/job_logging=none"]
    assert overrides_of_process(["model=vae"], {variable: "2"}) == ["hydra.run.dir=.", *quiet]
    assert overrides_of_process(["hydra.run.dir=a"], {variable: "2"}) == quiet
