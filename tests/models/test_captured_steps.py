"""Tests of training steps: a CUDA graph can hold them, because they read no values and repeat the same operations.

The tests run on the CPU. They record all operations of training steps: the forward pass, the backward pass and the
optimiser step.
"""

import itertools
import warnings
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from small_models import data_of
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from zoo.cvae import CVAE
from zoo.ddpm import DDPM
from zoo.estimators.by_name import ESTIMATORS
from zoo.functional.diffusion import PREDICTIONS, TIMESTEPS
from zoo.functional.latents import LATENTS
from zoo.gan import GAN, GENERATOR_LOSSES
from zoo.infogan import InfoGAN
from zoo.rbm import RBM
from zoo.score import Score
from zoo.skipgram import OBJECTIVES, SkipGram
from zoo.vade import VaDE
from zoo.vae import VAE
from zoo.wgan import WGAN

# Operations whose result or shape depends on values. On a GPU, the CPU waits for them.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "argwhere", "_coalesce"}
WAITS |= {"_unique2", "_unique", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount", "lift_fresh"}
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
MASKS = (torch.bool, torch.uint8)
# Functions that create a tensor on the CPU unless the argument ``device`` is given.
CREATES = {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.logspace, torch.ones, torch.zeros}
CREATES |= {torch.rand, torch.randn, torch.randint, torch.randperm, torch.scalar_tensor, torch.empty_strided}
FROM_THE_CPU = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.cpu, torch.Tensor.numpy}
FROM_THE_CPU |= {torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__}
FROM_THE_CPU |= {torch.Tensor.__int__, torch.Tensor.__index__, torch.Tensor.pin_memory}


class Functions(TorchFunctionMode):
    """Raise an error if a function creates a tensor on the CPU or reads values from the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FROM_THE_CPU or (func in CREATES and kwargs.get("device") is None):
            raise AssertionError(f"{resolve_name(func)} in a training step")
        return func(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Record all operations. Raise an error if an operation waits for the device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "aten":  # without the marks of the profiler
            self.check(func.overloadpacket.__name__, args, kwargs)
            self.seen.append((str(func), *map(_written, pytree.tree_leaves((args, kwargs)))))
        return func(*args, **kwargs)

    @staticmethod
    def check(name, args, kwargs):
        masked = name in MASKED and any(i is not None and i.dtype in MASKS for i in args[1])
        one = name == "multinomial" and (args[1] == 1 or not any(arg is True for arg in args))
        sizes = name == "repeat_interleave" and kwargs.get("output_size") is None
        assert name not in WAITS and not masked and not one and not sizes, f"{name} in a training step"


def _written(x):
    """Return an argument of an operation as a CUDA graph sees it: numbers by value, tensors by shape and dtype."""
    if isinstance(x, torch.Tensor):
        return (tuple(x.shape), x.dtype, tuple(x.stride()) if x.layout is torch.strided else None)
    return "generator" if isinstance(x, torch.Generator) else repr(x)


class Watch(L.Callback):
    """Record each training step. ``steps`` holds (graph key, operations) of each step.

    The steps have the options of steps on a GPU: fused optimisers, a tensor as learning rate, and dense gradients.
    """

    def __init__(self):
        self.steps = []

    def on_train_start(self, trainer, pl_module):
        for group in (group for optimiser in trainer.optimizers for group in optimiser.param_groups):
            if "fused" in group:
                group |= {"lr": torch.tensor(group["lr"]), "fused": True, "foreach": False}
        for module in pl_module.modules():
            if isinstance(module, torch.nn.Embedding):
                module.sparse = False
        # With automatic optimisation, optimizer_step calls training_step and the backward pass.
        name = "optimizer_step" if pl_module.automatic_optimization else "training_step"
        whole_step = getattr(pl_module, name)

        def watched(*args, **kwargs):
            key = pl_module.graph_key()
            # In its first step, an optimiser creates its state. RMSprop creates a part of it on the CPU.
            first = key not in dict(self.steps)
            with nullcontext() if first else Functions(), Operations() as operations:
                out = whole_step(*args, **kwargs)
            self.steps.append((key, operations.seen))
            return out

        setattr(pl_module, name, watched)


class Data(L.LightningDataModule):
    """Data with the given training batches. Its corpus has the words ``a`` to ``e``."""

    def __init__(self, batches):
        super().__init__()
        self.save_hyperparameters({"batch_size": len(batches[0][0]), "window": 2}, logger=False)
        self.batches = batches
        self.corpus = SimpleNamespace(words=list("abcde"), counts=np.arange(5, 0, -1))
        self.keep = torch.ones(5)

    def train_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def steps_of(model, batches=3, epochs=1, size=4, **options):
    """Train a model for ``batches`` batches of ``size`` examples in each epoch, and return its steps (see Watch)."""
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", barebones=True, callbacks=[watch], **options)
        x = data_of(model, batches * size)
        rows = x if isinstance(model, SkipGram) else [x, torch.arange(len(x)) % 5]
        whole = [list(batch) for batch in zip(*(t.split(size) for t in rows), strict=True)]
        trainer.fit(model, datamodule=Data(whole))
    return watch.steps


def assert_repeated(steps, keys):
    """Assert that steps with equal keys have equal operations, and that the keys are ``keys``.

    The first step with a key may differ, because optimisers then create their state.
    """
    assert {key for key, _ in steps} == set(keys)
    for key in keys:
        first, *others = [seen for k, seen in steps if k == key][1:]
        assert others and len(first) > 10
        for other in others:
            differences = [pair for pair in itertools.zip_longest(first, other) if pair[0] != pair[1]]
            assert not differences, differences[0]


SMALL = {"latent_dim": 2, "hidden": [4]}
# With few hidden units, all of them may be dead, and the latents of all images are then equal.
CLUSTERS = {"latent_dim": 2, "hidden": [32], "num_clusters": 3, "pretrain_epochs": 1, "restarts": 1}
VAES = {
    f"{objective} {latent} {name}": {"objective": objective, "latent": latent, "estimator": name}
    for (objective, latent), names in ESTIMATORS.items()
    for name in names
}
VAES |= {f"wake_sleep {latent}": {"objective": "wake_sleep", "latent": latent} for latent in LATENTS}
VAES |= {
    "gaussian likelihood": {"likelihood": "gaussian"},
    "dreams": {"objective": "wake_sleep", "likelihood": "gaussian"},
    "discretised logistic": {"likelihood": "discretised_logistic"},
    "dequantised": {"likelihood": "gaussian_dequantised"},
    "dreams of grey values": {"objective": "wake_sleep", "likelihood": "discretised_logistic"},
    "conv": {"net": "conv", "hidden": [2]},
    "annealed": {"latent": "bernoulli", "estimator": "gumbel_softmax", "temperature_end": 0.1},
    "annealed categories": {"latent": "categorical", "estimator": "straight_through", "temperature_end": 0.1},
}
POINTS = {"network": "mlp", "shape": [2], "hidden": [4]}
SEQUENCES = {"network": "sequence", "shape": [5, 3], "hidden": [4], "width": 4}
PLANE = {"shape": [2], "hidden": [4], "num_sigmas": 3}
UNET = {"widths": [8], "steps": 30}
CONSTANT = {
    **{f"vae {name}": partial(VAE, **SMALL | {"num_samples": 2} | options) for name, options in VAES.items()},
    "cvae": partial(CVAE, **SMALL),
    "cvae standard": partial(CVAE, **SMALL, prior="standard", likelihood="gaussian"),
    "cvae conv": partial(CVAE, **SMALL | {"hidden": [2]}, net="conv", likelihood="discretised_logistic"),
    "infogan": partial(InfoGAN, width=2, features=8),
    "infogan upright": partial(InfoGAN, width=2, features=8, deformation=0.0),
    "infogan colour": partial(InfoGAN, width=2, features=8, shape=[3, 12, 15], num_categories=3),
    "gan labels": partial(GAN, width=2, features=8, num_classes=5, shape=[3, 12, 15]),
    "gan labels mlp": partial(GAN, **POINTS, num_classes=5),
    "gan sequence": partial(GAN, **SEQUENCES),
    "gan soft sequence": partial(GAN, **SEQUENCES, relaxation="gumbel_softmax"),
    **{f"gan {loss}": partial(GAN, **POINTS, generator_loss=loss) for loss in GENERATOR_LOSSES},
    **{f"ddpm {t}": partial(DDPM, **UNET, timesteps=t) for t in TIMESTEPS},
    **{f"ddpm {p}": partial(DDPM, **UNET, predict=p) for p in PREDICTIONS},
    "ddpm labels": partial(DDPM, **UNET, num_classes=10),
    "ddpm colour": partial(DDPM, **UNET, shape=[3, 7, 10], attention=[0], dropout=0.1, lr_decay=False),
    "score": partial(Score, widths=[8], num_sigmas=3),
    "score sliced": partial(Score, widths=[8], num_sigmas=3, objective="sliced"),
    "score labels": partial(Score, widths=[8], num_sigmas=3, num_classes=10, shape=[3, 7, 10]),
    "score points labels": partial(Score, **PLANE, num_classes=10, objective="sliced"),
    "score ncsn": partial(Score, **PLANE, weights="ncsn"),
    "score explicit": partial(Score, **PLANE, objective="explicit"),
    "score projections": partial(Score, **PLANE, objective="sliced", projections=2, variance_reduced=False),
    "score of the data": partial(Score, **PLANE | {"num_sigmas": 0}, objective="sliced"),
    **{f"rbm {how}": partial(RBM, num_hidden=3, num_chains=4, learning=how) for how in ("cd", "pcd", "exact")},
    "rbm adam": partial(RBM, num_hidden=3, num_chains=4, optimiser="adam"),
    "rbm gaussian": partial(RBM, num_hidden=3, num_chains=4, visible="gaussian"),
    "rbm gaussian cd": partial(RBM, num_hidden=3, learning="cd", visible="gaussian"),
    **{f"skipgram {o}": partial(SkipGram, dim=4, objective=o) for o in OBJECTIVES},
}


@pytest.mark.parametrize("name", CONSTANT)
def test_a_step_reads_no_values_and_repeats_the_same_operations(name):
    model = CONSTANT[name]()
    steps = steps_of(model)
    assert_repeated(steps, {steps[0][0]})


@pytest.mark.parametrize(
    ("model", "batches", "epochs"),
    [
        (partial(GAN, width=2, discriminator_steps=3), 12, 1),
        (partial(GAN, width=2, features=0, discriminator_steps=3, num_classes=5), 12, 1),
        (partial(WGAN, width=2, n_critic=3), 12, 1),
        (partial(WGAN, width=2, n_critic=3, num_classes=5), 12, 1),
        (partial(WGAN, **POINTS, n_critic=3, lipschitz="clip", num_classes=5), 6, 2),
        (partial(WGAN, **POINTS, n_critic=3, lipschitz="clip"), 6, 2),  # an epoch does not end with a generator step
        (partial(VaDE, **CLUSTERS), 6, 2),
        (partial(VaDE, **CLUSTERS, deformation=0.0), 6, 2),
    ],
)
def test_steps_with_equal_keys_repeat_the_same_operations(model, batches, epochs):
    """Some models have two kinds of steps: with and without a generator step, or pretraining and training."""
    steps = steps_of(model(), batches, epochs)
    assert len(steps) == 12
    assert_repeated(steps, {False, True})
    assert len({tuple(seen[-20:]) for _, seen in steps[3:]}) > 1  # the two kinds of steps do differ


def test_clipped_gradients_and_single_examples_wait_for_nothing():
    steps_of(VAE(**SMALL), gradient_clip_val=1.0)
    steps_of(DDPM(**UNET, timesteps="importance"), size=1)
    steps_of(CVAE(**SMALL), size=1)


@pytest.mark.parametrize("operation", [
    lambda x: x.max().item(),
    lambda x: x[x > 0],
    lambda x: x.nonzero(),
    lambda x: torch.tensor(1.0) + x,
    lambda x: torch.zeros(3),
    lambda x: x.unique(),
    lambda x: torch.equal(x, x),
    lambda x: x.masked_select(x > 0),
    lambda x: torch.multinomial(x, 1, replacement=True),
    lambda x: torch.multinomial(x, 2),
    lambda x: bool(x.any()),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: x.repeat_interleave(x.long()),
    lambda x: torch.nn.functional.one_hot(x.long(), 10),
])  # fmt: skip
def test_the_watch_finds_operations_that_wait(operation):
    with pytest.raises(AssertionError, match="in a training step"), Functions(), Operations():
        operation(torch.ones(3, device="cpu"))


def test_the_watch_finds_a_number_that_changes():
    def number(tau):
        with Operations() as operations:
            torch.ones(3) / tau
        return operations.seen

    assert number(0.5) != number(0.4)
    assert number(torch.full((), 0.5)) == number(torch.full((), 0.5))
