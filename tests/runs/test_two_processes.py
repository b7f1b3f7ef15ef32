"""Tests of runs of two gloo processes, started in several ways. They write one log, and share the work."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import QUIET, TINY, checkpoint, config, model_of, run, tiers
from processes import command, done, finish, free_port, program, rows, together
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing import assert_close
from wandb_log import read_log

from zoo.commands.training import build
from zoo.ddpm import DDPM
from zoo.score import Score
from zoo.training.processes import leave_process_group
from zoo.training.trainer import _check_started

ROOT = Path(__file__).parents[2]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
ESTIMATOR = {"rbm": "cd-1", "gan": "non_saturating", "skipgram": "nce_5"}
OPPONENT = {"gan": "discriminator_loss"}
SHORT = ["trainer.max_epochs=2", "trainer.log_every_n_steps=4", "callbacks.estimator_variance.draws=5"]
SHORT += ["callbacks.estimator_variance.every_n_steps=8"]


@pytest.mark.parametrize("name", tiers(["vae", "rbm", "gan", "skipgram"], ["vae"]))
def test_two_processes_train_validate_sample_and_log_once(name, tmp_path):
    fixed = ["+callbacks.fixed._target_=helpers.NoiseOfTheExample"]
    short = [*TINY[name], *SHORT, *(fixed if name == "skipgram" else ["callbacks.samples.n=20"])]
    together(2, run, tmp_path / "two", *short, *DDP)
    run(tmp_path / "one", *short)
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")

    # Only one process logs, at the same steps as a run of one process.
    loss = OPPONENT.get(name, "loss")
    for key in (f"val/{loss}", f"train/{loss}", f"variance/{ESTIMATOR.get(name, 'pathwise')}/all"):
        assert [r["step"] for r in two if r[key]] == [r["step"] for r in one if r[key]], key
    assert sum(bool(r[f"test/{loss}"]) for r in two) == 1

    # Both runs have the same batches and different training noise. Adversarial losses therefore differ much.
    a, b = (float(r[-1][f"test/{loss}"]) for r in (two, one))
    if name == "skipgram":  # this run also has equal noise, so all numbers are equal
        for key in ("val/nll", "val/perplexity", "val/log_Z", "test/nll"):
            assert_close(*([float(r[key]) for r in rows if r[key]] for rows in (two, one)), rtol=1e-4, atol=1e-6)
    else:
        assert a != b
        if name not in OPPONENT:
            assert_close(a, b, rtol=0.1, atol=0)
    states = checkpoint(tmp_path / "two")["random_state"]
    assert len(states) == 2
    if name != "skipgram":
        assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
        assert sorted(p.name for p in (tmp_path / "two" / "samples").iterdir()) == ["epoch_001.png"]
    else:
        assert sorted(p.name for p in (tmp_path / "two" / "neighbours").iterdir()) == ["epoch_000.csv", "epoch_001.csv"]


@pytest.mark.slow
def test_more_devices_are_enough(tmp_path):
    """Lightning starts the processes. The strategy does not require gradients of both networks at each step."""
    overrides = [*without_callbacks("wgan"), "trainer=cpu", "trainer.devices=2", "trainer.max_epochs=1", "logger=wandb"]
    (run,) = finish(command(tmp_path, *overrides, "callbacks.sample_distance.n=20"), timeout=240)
    assert run.returncode == 0, run.stderr
    (log,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    (begun, *_) = (record.run for record in read_log(log) if record.run.run_id)
    assert begun.run_group == begun.display_name and "devices" not in begun.run_group  # as with one process
    assert len(checkpoint(tmp_path)["random_state"]) == 2


def by_torchrun(rank, port):
    agent = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    return ["-m", "torch.distributed.run", *agent, f"--master-port={port}"], {}


def by_slurm(rank, port):
    """Return the environment variables of ``srun --nodes=2 --ntasks-per-node=1``."""
    nodes = {"SLURM_NNODES": "2", "SLURM_NODEID": str(rank), "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "zoo"}
    tasks = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
    where = {"SLURM_JOB_ID": "7", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [], nodes | tasks | where


@pytest.mark.parametrize("start", tiers([by_torchrun, by_slurm], []))
def test_two_nodes_are_one_run(start, tmp_path):
    """Two agents start one process each, as on two machines. Only the first process writes to the run folder."""
    port, nodes = free_port(), []
    for rank in (0, 1):
        begin, environment = start(rank, port)
        arguments = [*begin, ROOT / "train.py", *TINY["vae"], "trainer=ddp", "trainer.accelerator=cpu"]
        arguments += ["trainer.devices=1", "trainer.num_nodes=2", "trainer.max_epochs=1", "logger=csv"]
        arguments += ["callbacks=none", "trainer.enable_progress_bar=false"]
        nodes.append(program(*arguments, cwd=tmp_path, **environment))
    ended = finish(*nodes)
    assert [node.returncode for node in ended] == [0, 0], ended
    (folder,) = (tmp_path / "runs" / "vae").iterdir()
    assert sum(bool(r["test/loss"]) for r in rows(folder)) == 1
    assert len(checkpoint(folder)["random_state"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def leave(stopped):
    dist.init_process_group("gloo")
    dist.barrier()  # a process that left while the other still connects would make the connection fail
    with suppress(SystemExit), leave_process_group():
        if stopped:
            raise SystemExit(143)
    return dist.is_initialized()


@pytest.mark.parametrize("stopped", [False, True])
def test_processes_leave_their_group_before_python_ends(stopped):
    """If a process stayed in its group, threads of the group could abort the process while Python exits."""
    assert together(2, leave, stopped) == [False, False]


def draw_all(folder, world_size, configurations):
    """Run a validation of each untrained model on one of ``world_size`` processes. Each draws 20 samples."""
    for name, cfg in configurations.items():
        cfg.run_dir, cfg.trainer.devices = str(folder / name), world_size
        torch.manual_seed(3)
        model, data = model_of(cfg), build(cfg.data)
        trainer = build(cfg.trainer, callbacks=[build(cfg.callbacks.samples)], max_epochs=1, logger=False)
        trainer.validate(model, datamodule=data, verbose=False)


@pytest.mark.parametrize("processes", tiers([2, 3], [3]))
def test_samples_are_the_same_pixels_on_one_and_several_processes(processes, tmp_path):
    """20 samples are drawn in a chunk of 16 and a chunk of 4, so one of three processes draws nothing."""
    few = [*QUIET, "data.batch_size=60", "callbacks.samples.n=20", "logger=none", *DDP, "trainer.limit_val_batches=1"]
    drawing = {name: config("/", *TINY[name], *few) for name in sorted(set(TINY) - {"skipgram"})}
    for n in (1, processes):
        together(n, draw_all, tmp_path / str(n), n, drawing)
    for name in sorted(set(TINY) - {"skipgram"}):
        one, several = (next((tmp_path / str(n) / name).glob("samples/*.png")).read_bytes() for n in (1, processes))
        assert one == several, name


def sharded(kind):
    """Return the relative difference between the gradients of a sharded and an unsharded U-Net."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(kind(widths=[8, 16]))
        for p in models[-1].parameters():  # some layers are initialised with zeros
            p.data.add_(0.05 * torch.randn(p.shape))
    whole, parts = models
    batch = [torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))]
    noise = whole.noise(batch, generator=torch.Generator().manual_seed(2))
    whole.losses(batch, noise).mean().backward()

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = parts

        def forward(self, x, noise):
            return self.model.losses([x], noise).mean()

    loss = FullyShardedDataParallel(Loss(), device_id=torch.device("cpu"), use_orig_params=True)
    loss(batch[0][rank::2], {k: v[rank::2] for k, v in noise.items()}).backward()
    with FullyShardedDataParallel.summon_full_params(loss, with_grads=True):
        pairs = list(zip(loss.parameters(), whole.parameters(), strict=True))
        apart = sum((p.grad - q.grad).square().sum() for p, q in pairs)
        return float((apart / sum(q.grad.square().sum() for _, q in pairs)).sqrt())


@pytest.mark.parametrize("kind", [DDPM, Score])
def test_sharded_u_nets_have_the_gradients_of_whole_ones(kind):
    """``trainer.strategy=fsdp`` needs GPUs. The test therefore uses the class of torch that this strategy uses."""
    assert max(together(2, sharded, kind)) < 1e-5


def test_sharding_without_gpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trainer.strategy=fsdp needs GPUs, and this run has none"):
        run(tmp_path, *TINY["ddpm"], "trainer.strategy=fsdp")


def without_callbacks(name):
    return [o for o in TINY[name] if not o.startswith("callbacks.")] + ["callbacks=none", "test=false"]


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_persistent_chains_are_of_each_process_and_go_on_in_any_number(first, then, tmp_path):
    """A checkpoint has the chains of all processes, in the order of one process. A resumed run splits them again."""
    few = [*without_callbacks("rbm"), "model.num_chains=31"]
    together(first, run, tmp_path, *few, "trainer.max_epochs=1", *DDP, f"trainer.devices={first}")
    chains = checkpoint(tmp_path)["chains"]
    assert chains.shape == (31, 8) and chains.dtype == torch.bool
    assert not torch.equal(chains[:30:2], chains[1:31:2])  # the two processes have different chains
    last = tmp_path / "checkpoints" / "last.ckpt"
    shown = together(then, first_chains, tmp_path, *few, f"ckpt={last}", *DDP, f"trainer.devices={then}")
    for rank, mine in enumerate(shown):
        assert mine == chains[rank::then].tolist()
    after = checkpoint(tmp_path)["chains"]
    assert after.shape == (31, 8) and not torch.equal(after, chains)


def first_chains(folder, *overrides):
    """Resume for one epoch, and return the chains that this process has at the start."""
    import helpers

    seen = []
    helpers.KeepGradients.on_train_start = lambda self, trainer, model: seen.extend(model.chains.tolist())
    helpers.KeepGradients.on_train_end = lambda self, trainer, model: None
    keep = ["+callbacks.keep._target_=helpers.KeepGradients", f"+callbacks.keep.folder={folder}"]
    run(folder, "trainer.max_epochs=2", *keep, *overrides)
    return seen


def test_as_many_are_started_as_the_trainer_wants(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun has started 2 processes, and trainer.num_nodes times .* is 1"):
        run(tmp_path, *TINY["vae"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    monkeypatch.setenv("SLURM_JOB_NAME", "zoo")
    with pytest.raises(ValueError, match="SLURM has started 3 processes, and .* is 1"):
        _check_started(1)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    _check_started(1)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(ValueError, match="monitor=val/distance needs callbacks.sample_distance"):
        # Another folder, because the first run keeps its lock until Python collects its callbacks.
        run(tmp_path / "gan", *without_callbacks("gan"), "~callbacks.sample_distance")


@pytest.mark.slow
def test_a_sweep_of_several_processes_is_refused_in_one_line(tmp_path):
    refused = done("train.py", "-m", "seed=1,2", *DDP, *TINY["vae"], f"hydra.sweep.dir={tmp_path}")
    assert refused.returncode == 1
    assert "a sweep (-m) cannot run jobs of 2 processes" in refused.stderr
    assert "Traceback" not in refused.stderr
