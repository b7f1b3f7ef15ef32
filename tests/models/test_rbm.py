"""Tests of the RBM: gradients, chains, logged values and errors."""

import math
import re
from itertools import product
from signal import SIGTERM

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, assert_same, checkpoint, run
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from torch.testing import assert_close

import zoo
from zoo.datamodules import Images
from zoo.estimators import GradientMoments, gradient_moments
from zoo.evaluation import protocol as evaluation
from zoo.evaluation.features import Features
from zoo.functional.boltzmann import Weights, draw, energy, free_energy, hidden_logits, pseudo_log_likelihood
from zoo.functional.gibbs import burned_in_states, frame_steps, gibbs, local_chains
from zoo.functional.importance import LogPartition
from zoo.functional.noise import chunk_generator
from zoo.functional.partition import (
    ais_log_partition,
    exact_draw,
    exact_log_partition,
    log_partitions,
    validation_terms,
)
from zoo.rbm import RBM
from zoo.training.ranks import interleave
from zoo.training.schedules import at_epoch


def small(V=4, H=3, scale=1.0, seed=0, **kwargs):
    """Return an RBM of V x H units in float64, with random weights and a mean image other than 1/2."""
    generator = torch.Generator().manual_seed(seed)
    model = RBM(num_hidden=H, num_visible=V, **kwargs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator))
        model.mu.copy_(torch.rand(V, generator=generator) * 0.6 + 0.2)
    return model.eval()


def exact_log_Z(model):
    return float(exact_log_partition(model.weights().to(torch.float64)).detach())


def log_p(model):
    """Return log p(v) of every binary v, (2^V,), and all v, (2^V, V).

    Z is the sum over all v. Gradients also flow through Z.
    """
    v = torch.tensor(list(product([0.0, 1.0], repeat=len(model.b))), dtype=torch.float64)
    F = free_energy(v, model.weights())
    return -F - (-F).logsumexp(0), v


def gradient(model, loss):
    return {
        k: g
        for (k, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True)
    }


# Gradients.


@pytest.mark.equation("rbm", "cd")
@pytest.mark.equation("rbm", "pcd")
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("learning", "k", "m"), [("cd", 1, 1), ("cd", 3, 1), ("pcd", 1, 1), ("pcd", 3, 4)])
def test_the_gradient_is_the_textbook_update(learning, k, m, centred, generator):
    """The test computes the updates of Hinton 2002, Tieleman 2008 and (centred) Melchior et al. 2016 step by step.

    Chains 1 and 4 then restart. Their hidden states are drawn given two of the m random visible states.
    """
    model = small(learning=learning, centred=centred)
    B, V, H = 6, 4, 3
    u = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    v = (u(B, V) < 0.5).double()
    noise = {"u_v": u(k, B, V), "u_h": u(k, B, H), "h": u(B, H) < 0.5}
    noise |= {"restart": torch.tensor([0, 1, 0, 0, 1, 0]).bool(), "coins": (u(m, V) < 0.5).double()}
    loss, chains = model.objective(v, noise, learning)
    found = gradient(model, loss)

    with torch.no_grad():
        W = model.W
        b = model.b - W @ torch.full((H,), 0.5, dtype=torch.float64) if centred else model.b
        c = model.c - W.T @ model.mu if centred else model.c
        p_h = (v @ W + c).sigmoid()
        h = (noise["u_h"][0] < p_h).double() if learning == "cd" else noise["h"].double()
        later = list(noise["u_h"][1:]) if learning == "cd" else list(noise["u_h"])
        for step in range(k):
            v_model = (noise["u_v"][step] < (h @ W.T + b).sigmoid()).double()
            p_model = (v_model @ W + c).sigmoid()
            if step < len(later):
                h = (later[step] < p_model).double()
        for row in (1, 4):
            h[row] = (noise["u_h"][-1][row] < (noise["coins"][row % m] @ W + c).sigmoid()).double()
        mu, half = (model.mu, 0.5) if centred else (0.0, 0.0)
        positive = (v - mu).T @ (p_h - half) / B
        negative = (v_model - mu).T @ (p_model - half) / B
        exactly = {"rtol": 0, "atol": 1e-12}
        assert_close(found["W"], negative - positive, **exactly)  # the gradient is minus the update
        assert_close(found["b"], v_model.mean(0) - v.mean(0), **exactly)
        assert_close(found["c"], p_model.mean(0) - p_h.mean(0), **exactly)
        difference = (free_energy(v, Weights(W, b, c)) - free_energy(v_model, Weights(W, b, c))).mean()
        assert_close(loss, difference, **exactly)
    if learning == "pcd":
        assert torch.equal(chains, h)
    else:
        assert chains is None


@pytest.mark.equation("rbm", "log p(v)")
@pytest.mark.equation("rbm", "exact")
@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_the_exact_gradient_is_that_of_the_log_likelihood(shape):
    model = small(*shape, learning="exact")
    log_probability, v = log_p(model)
    index = [0, 3, 5, 5]
    loss, _ = model.objective(v[index], {}, "exact")
    assert_close(loss, -log_probability[index].mean())
    found = gradient(model, loss)
    for k, g in gradient(model, -log_probability[index].mean()).items():
        assert_close(found[k], g)


def test_the_centred_form_is_the_same_family():
    """E = - b'(v - mu) - c'(h - 1/2) - (v - mu)'W(h - 1/2) is the energy of weights() up to a constant."""
    model = small()
    W, b, c = (p.detach() for p in (model.W, model.b, model.c))
    v, h = (torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64) for n in (4, 3))
    dv, dh = (v - model.mu)[:, None], (h - 0.5)[None]
    centred = -(dv @ b) - dh @ c - torch.einsum("axi,ij,xbj->ab", dv, W, dh)
    difference = energy(v[:, None], h[None], Weights(*(t.detach() for t in model.weights()))) - centred
    assert_close(difference, difference[0, 0].expand(16, 8))


# Variance of the estimators.


def binary_images(n, V, seed=0):
    return [(torch.rand(n, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < 0.5).double()]


def test_estimators_of_one_gradient_and_what_they_differ_in():
    """The mean of 1,000 draws of ``exact_samples`` is ``exact`` within 4.3 standard errors.

    4.3 standard errors are below 5 % of the gradient. The estimator cd-1 has another mean, and a smaller variance than
    exact sampling (Berglund & Raiko 2013).
    """
    model, generator = small(8, 6, scale=1.5), torch.Generator().manual_seed(1)
    weights = Weights(*(t.detach() for t in model.weights()))
    u = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    drawn = exact_draw(u(512), u(512, 8), weights)
    batch = model.probe_batch([drawn[drawn[:, 0] == 1]], generator=generator)  # only examples whose first pixel is 1
    found = {}
    for name, estimator in model.gradient_estimators().items():
        moments, _ = gradient_moments(estimator, batch, range(2 if name == "exact" else 1000))
        found[name] = moments, moments.statistics()["all"]
    assert list(found) == ["cd-1", "cd-10", "pcd", "exact_samples", "exact"]
    assert found["exact"][1]["variance"] == 0
    exact = found["exact"][0].mean

    def distance(name):
        """Return |mean - exact|^2 / error and error / |exact|^2. The error is a squared standard error."""
        moments, statistics = found[name]
        error = statistics["variance"] / moments.n
        squared = sum(float((moments.mean[k] - exact[k]).square().sum()) for k in exact)
        return squared / error, error / found["exact"][1]["signal"]

    away, relative = distance("exact_samples")
    assert away < 4.3**2 and 4.3 * relative**0.5 < 0.05
    assert distance("cd-1")[0] > 100
    variance = {name: statistics["variance"] for name, (_, statistics) in found.items()}
    assert variance["cd-1"] < 0.8 * variance["exact_samples"]
    assert variance["cd-1"] < variance["cd-10"]


def test_successive_pcd_gradients_vary_more_than_exact_samples():
    """The mean of m successive gradients of a chain in equilibrium varies more than the mean over m independent draws.

    The traces of the covariances follow from the transition matrix of the chain. The test also measures them on 4,000
    chains. The relative standard error of a measured trace is sqrt(2 / 4,000) = 2.2 %. The tolerance of 10 % is 4.5
    standard errors.
    """
    model, m, n = small(scale=2.0), 5, 4000
    weights = Weights(*(t.detach() for t in model.weights()))
    log_probability, v = log_p(model)
    p = log_probability.exp().detach()
    h = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    to_h = (hidden_logits(v, weights)[:, None] * h).sum(-1).softmax(-1)  # p(h | v)
    to_v = ((h @ weights.W.T + weights.b)[:, None] * v).sum(-1).softmax(-1)
    T = to_h @ to_v

    def gradient_of(v):  # the gradient of F at each v, one row for each v
        grads = [gradient(model, free_energy(row, model.weights())) for row in v]
        return torch.stack([torch.cat([g.flatten() for g in found.values()]) for found in grads])

    g = gradient_of(v)
    g = g - p @ g

    def covariance(lag):
        return float(p @ (g * (torch.linalg.matrix_power(T, lag) @ g)).sum(-1))

    independent = covariance(0) / m
    successive = sum(covariance(abs(s - t)) for s in range(m) for t in range(m)) / m**2
    assert successive > 1.5 * independent

    generator = torch.Generator().manual_seed(0)
    u = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    table = gradient_of(v)
    place = 2.0 ** torch.arange(3, -1, -1, dtype=torch.float64)

    def measured(draws):
        """Return the trace of the covariance of the mean over m gradients at ``draws``, (m, n, V)."""
        moments = GradientMoments()
        for row in table[(draws @ place).long()].mean(0):
            moments.update({"theta": row})
        return moments.statistics()["all"]["variance"]

    chain = [exact_draw(u(n), u(n, 4), weights)]  # independent draws of p
    while len(chain) < m:
        hidden = draw(hidden_logits(chain[-1], weights), u(n, 3))
        chain.append(gibbs(hidden, u(1, n, 4), u(0, n, 3), model.machine).detach())
    alone = torch.stack([exact_draw(u(n), u(n, 4), weights) for _ in range(m)])
    assert measured(torch.stack(chain)) == pytest.approx(successive, rel=0.1)
    assert measured(alone) == pytest.approx(independent, rel=0.1)


def test_a_pcd_draw_begins_at_the_persistent_chains():
    model = small(8, 6)
    model.chains = torch.zeros(100, 6, dtype=torch.bool)
    model.chains[:, 2] = True
    batch = binary_images(8, 8)
    noise = model.gradient_estimators()["pcd"].noise(batch, chunk_generator(0, 0))
    assert torch.equal(noise["h"], model.chains[:8].double()) and noise["u_v"].shape == (1, 8, 8)
    model.chains = None  # published weights have no chains, so the model burns in new ones
    assert model.gradient_estimators()["pcd"].noise(batch, chunk_generator(0, 0))["h"].shape == (8, 6)
    assert burned_in_states(model.machine).shape == (100, 6) and burned_in_states(model.machine).std(0).max() > 0
    model.chains = torch.eye(6).bool()
    assert len(model.gradient_estimators()["pcd"].noise(batch, chunk_generator(0, 0))["h"].unique(dim=0)) > 1
    assert "pcd" not in small(8, 6, learning="cd").gradient_estimators()
    assert "exact" not in RBM(num_hidden=21).gradient_estimators()


# Uses of a trained model.


def test_marginals_and_the_most_probable_hidden_state():
    """The test enumerates all eight states of h."""
    model = small()
    _, v = log_p(model)
    h = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    weights = Weights(*(t.detach() for t in model.weights()))
    p_h = (-energy(v[:, None], h[None], weights)).softmax(-1)
    assert_close(model.transform(v), p_h @ h)
    assert_close(model.most_probable_hidden(v).double(), h[p_h.argmax(-1)])
    assert_close(model(v), model.transform(v))
    grey = torch.full((1, 4), 0.3).double()
    assert_close(model.transform(grey), (grey @ weights.W + weights.c).sigmoid())  # ``transform`` does not binarise


@pytest.mark.equation("rbm", "log p(v)")
def test_log_likelihood_is_the_enumerated_one_of_binarised_images():
    model = small()
    log_probability, v = log_p(model)
    assert_close(model.log_likelihood(v), log_probability.detach())
    assert_close(model.log_likelihood(v, log_partition=0.0), -model.free_energy(v))
    assert_close(model.log_likelihood(v, log_partition=model.log_partition()), log_probability.detach())
    assert model.log_likelihood(v[:0]).shape == (0,)
    grey, generator = torch.full((1, 4), 0.5).double(), torch.Generator()
    u = torch.rand(1, 4, generator=generator.manual_seed(3))
    expected = model.log_likelihood((u < 0.5).double())
    assert_close(model.log_likelihood(grey, generator=generator.manual_seed(3)), expected)
    assert model.log_partition() == (exact_log_Z(model),) * 3


def test_binarisation_by_threshold_or_at_random():
    x, u = torch.tensor([[0.2, 0.5, 0.51, 1.0]]), torch.tensor([[0.1, 0.6, 0.6, 0.99]])
    threshold = RBM(num_visible=4, num_hidden=3, binarisation="threshold")
    assert threshold.observe(x, u).tolist() == [[0, 0, 1, 1]]
    assert RBM(num_visible=4, num_hidden=3).observe(x, u).tolist() == [[1, 0, 0, 1]]


def test_the_energy_keeps_its_precision_under_bfloat16():
    """Under autocast, matrix products use bfloat16, and sums of hundreds of nats use float32."""
    torch.manual_seed(0)
    model = RBM(num_hidden=500)
    with torch.no_grad():
        model.b.fill_(-3.0)
        model.mu.fill_(0.13)
    v = (torch.rand(16, 784) < 0.13).float()
    exact = free_energy(v.double(), Weights(*(t.detach().double() for t in model.weights())))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = free_energy(v, model.weights())
    assert terms.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model.weights()
    assert all(torch.equal(a, b) for a, b in zip(inside, model.weights(), strict=True))
    assert (terms.double() - exact).abs().max() < 0.2  # the energies are about -40, where bfloat16 has steps of 0.25


@pytest.mark.parametrize(("learning", "k"), [("cd", 1), ("pcd", 1), ("pcd", 3)])
def test_the_gradient_survives_bfloat16(learning, k):
    """The gradient of the loss is also right under autocast.

    The chains run without gradients, and autocast caches their rounded weights. The loss must not use this cache,
    because its tensors have no gradients. Rounding changes some bits of the chains, so the gradients are close to the
    float32 gradients and not equal.
    """
    torch.manual_seed(0)
    model = RBM(num_hidden=50, learning=learning, k=k)
    v = (torch.rand(200, 784) < 0.2).float()
    noise = model.noise([v], generator=torch.Generator().manual_seed(0))
    exact = gradient(model, model.objective(v, noise, learning)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model.objective(v, noise, learning)
    for name, g in gradient(model, loss).items():
        assert (g - exact[name]).norm() < 0.1 * exact[name].norm(), name


@pytest.mark.parametrize("centred", [False, True])
def test_long_chains_have_the_means_of_the_model(centred):
    """The mean of p(v | h) over 5,000 chains of 100 steps is E[v], within 4.3 standard errors.

    Each of four pixels gives a false alarm once in 6 x 10^4 seeds. The test rejects the means of another model.
    """
    model = small(scale=0.7, centred=centred)
    log_probability, v = log_p(model)
    expected = log_probability.exp() @ v
    means = model.sample(5000, steps=100, generator=torch.Generator().manual_seed(0))
    error = means.std(0) / 5000**0.5
    assert means.shape == (5000, 4) and error.max() < 0.01
    assert ((means.mean(0) - expected).abs() < 4.3 * error).all()
    other = small(scale=0.7, centred=centred, seed=1)
    assert ((means.mean(0) - log_p(other)[0].exp() @ v).abs() > 10 * error).any()


def test_frames_show_the_chain_that_ends_in_the_sample():
    torch.manual_seed(0)
    model = RBM(num_hidden=8)
    seeded = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    frames = model.sample(3, steps=20, frames=5, generator=seeded())
    assert frames.shape == (3, 5, 1, 28, 28)
    assert torch.equal(frames[:, -1], model.sample(3, steps=20, generator=seeded()))
    assert set(frames[:, 0].unique().tolist()) == {0.0, 1.0}  # chains start at random pixels
    images = torch.rand(3, 1, 28, 28, generator=seeded()).round()
    for given in (images, list(images)):
        assert torch.equal(model.sample(3, steps=2, init=given, frames=2)[:, 0], images)
    model.probe = images[:1]
    assert torch.equal(model.sample(3, steps=2, init="data", frames=2)[:, 0], images[:1].expand(3, -1, -1, -1))
    with torch.no_grad():
        model.W[:, 3] = 50.0  # this hidden unit determines all pixels
    model.chains = torch.eye(8, dtype=torch.bool)
    begun = model.sample(50, steps=1, init="chains", frames=2, generator=seeded())[:, 0].flatten(1).mean(1)
    assert 0 < (begun == 1).sum() < 25 and ((begun == 1) | (begun == 0)).all()  # the unit is on in one chain of eight


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 1000])
def test_frames_begin_and_end_with_the_chain_and_rise(steps):
    assert frame_steps(steps, None) == [steps]
    for frames in range(2, min(steps + 1, 60) + 1):
        shown = frame_steps(steps, frames)
        assert len(shown) == frames and shown[0] == 0 and shown[-1] == steps and shown == sorted(set(shown))


def test_processes_share_chains_in_turns():
    x = torch.arange(14).view(7, 2)
    for n in (1, 2, 3, 7):
        assert torch.equal(interleave([x[r::n] for r in range(n)]), x)


# Training.


class Bytes(Images):
    """The digits data set with one invalid pixel."""

    def train_dataloader(self):
        batches = list(super().train_dataloader())
        batches[3][0][0, 0, 5, 5] = 1.5
        return batches


def trainer(**kwargs):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **{**quiet, **kwargs})


def digits(cls=Images):
    return cls("digits", batch_size=128, digits_repeat=1)


def test_a_process_keeps_the_chains_of_its_turn():
    """Process r of n takes rows r, r + n, ... of the saved or new chains. Its own rows do not change."""
    everything = torch.arange(7)[:, None].expand(7, 2) > 3
    numbered = torch.arange(7)[:, None] * torch.ones(1, 2, dtype=torch.long)
    for world_size in (1, 2, 3):
        parts = [local_chains(numbered, 7, 2, rank, world_size) for rank in range(world_size)]
        assert [part[:, 0].tolist() for part in parts] == [list(range(r, 7, world_size)) for r in range(world_size)]
    assert torch.equal(local_chains(everything[:3], 7, 2, 1, 2), everything[:3])
    torch.manual_seed(3)
    new = [local_chains(None, 8, 5, rank, 2) for rank in range(2)]
    assert torch.equal(interleave(new), local_chains(None, 8, 5, 0, 1)) and new[0].dtype == torch.bool
    torch.manual_seed(4)
    assert not torch.equal(interleave(new), local_chains(None, 8, 5, 0, 1))


def test_visible_biases_begin_at_the_data_means():
    model = RBM(num_hidden=8)
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(model, datamodule=(data := digits()))
    images = torch.cat([x for x, _ in data.train_dataloader()]).flatten(1).double()
    smoothed = (images.sum(0) + 1) / (len(images) + 2)
    assert_close(model.mu.double(), smoothed, rtol=1e-5, atol=1e-6)
    fresh = RBM(num_hidden=8, lr=1e-12)
    trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(fresh, datamodule=digits())
    assert_close(fresh.b.double(), smoothed.logit(), rtol=1e-4, atol=1e-4)
    assert fresh.probe.shape == (1000, 784) or fresh.probe.shape == (1000, 1, 28, 28)


def test_bad_pixels_are_an_error_before_the_first_step():
    with pytest.raises(ValueError, match=re.escape("pixels must be numbers from 0 to 1, got 1.5 (1 such)")):
        trainer(max_epochs=1).fit(RBM(num_hidden=8), datamodule=digits(Bytes))
    model, bad = RBM(num_hidden=8), torch.zeros(2, 1, 28, 28)
    for value in (float("nan"), -0.1, 255.0):
        bad[1, 0, 3, 4] = value
        for use in (model.transform, model.log_likelihood, lambda x: model.sample(2, init=x)):
            with pytest.raises(ValueError, match="pixels must be numbers from 0 to 1"):
                use(bad)
    with pytest.raises(ValueError, match=r"784 pixels each.*got \(2, 3\)"):
        model.transform(torch.zeros(2, 3))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_schedules_are_followed(optimiser, tmp_path):
    """The key of a step is the number of Gibbs steps. The chains stay at one address, which a CUDA graph requires."""
    seen, chains = [], {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            group = trainer.optimizers[0].param_groups[0]
            noise = pl_module.noise(batch)
            assert pl_module.graph_key() == len(noise["u_v"])
            assert pl_module.chains.data_ptr() == chains.setdefault("place", pl_module.chains.data_ptr())
            momentum = group["momentum"] if optimiser == "sgd" else group["betas"][0]
            seen.append((trainer.current_epoch, momentum, len(noise["u_v"]), group["weight_decay"]))
            assert optimiser == "sgd" or group["betas"][1] == 0.999
            step = len(seen)  # the schedule has already advanced
            assert group["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * step / 6)) / 2)

    model = RBM(8, k=[[0, 1], [2, 3]], momentum=[[0, 0.5], [1, 0.9]], optimiser=optimiser, weight_decay=0.01)
    fit = trainer(max_epochs=3, limit_train_batches=2, limit_val_batches=0, callbacks=[Look()])
    fit.fit(model, datamodule=digits())
    assert seen[::2] == seen[1::2] == [(0, 0.5, 1, 0.01), (1, 0.9, 1, 0.01), (2, 0.9, 3, 0.01)]
    assert fit.optimizers[0].param_groups[1]["weight_decay"] == 0  # biases have no weight decay
    assert [at_epoch([[0, 1], [20, 5]], e) for e in (0, 19, 20, 99)] == [1, 1, 5, 5] and at_epoch(2, 7) == 2
    assert at_epoch(((0, 1), (20, 5)), 20) == 5


def test_chains_persist_and_all_of_them_are_in_the_checkpoint(tmp_path):
    run(tmp_path, *TINY["rbm"], "trainer.max_epochs=1", "test=false")
    chains = checkpoint(tmp_path)["chains"]
    assert chains.shape == (100, 8) and chains.dtype == torch.bool
    assert not any("chain" in name for name, _ in zoo.load(tmp_path).named_buffers())
    model = zoo.load(tmp_path)
    assert torch.equal(model.chains, chains)
    assert model.sample(2, steps=1, init="chains").shape == (2, 1, 28, 28)


def test_an_interrupted_run_has_the_chains_of_an_uninterrupted_one(tmp_path):
    two = [*TINY["rbm"], "test=false"]
    run(tmp_path / "whole", *two, "trainer.max_epochs=2")
    stop = ["+callbacks.stop._target_=helpers.SendSignal", "+callbacks.stop.at=15", f"+callbacks.stop.signum={SIGTERM}"]
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", *two, "trainer.max_epochs=2", *stop)
    path = tmp_path / "parts" / "checkpoints" / "interrupted.ckpt"
    middle = checkpoint(tmp_path / "parts", "interrupted")["chains"]
    run(tmp_path / "parts", *two, "trainer.max_epochs=2", f"ckpt={path}")
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for key in ("chains", "state_dict", "current_model_state", "optimizer_states", "random_state"):
        assert_same(whole[key], parts[key], key)
    assert not torch.equal(middle, whole["chains"])


@pytest.mark.parametrize("learning", ["cd", "exact"])
def test_other_learning_raises_the_likelihood_and_keeps_no_chains(learning, tmp_path):
    few = [*TINY["rbm"], f"model.learning={learning}", "trainer.max_epochs=10", "model.lr=1", "callbacks=none"]
    few = [o for o in few if not o.startswith("callbacks.")]
    metrics = run(tmp_path, *few)
    assert "chains" not in checkpoint(tmp_path)
    fresh = RBM(num_hidden=8)
    trainer(max_epochs=0).fit(fresh, datamodule=digits())
    with torch.no_grad():
        fresh.b.copy_(zoo.load(tmp_path).mu.logit())
        fresh.mu.copy_(zoo.load(tmp_path).mu)
    before = evaluation.evaluate(fresh, Images("digits"))["test/loss"]  # a new model is close to the base-rate model
    assert metrics["test/loss"] < before - 20


def test_metrics_are_what_they_say(tmp_path):
    """The test recomputes the metrics of a run from its checkpoint. The model is small, so log Z is enumerated."""
    metrics = run(tmp_path, *TINY["rbm"], "trainer.max_epochs=1", "model.binarisation=threshold")
    model, data = zoo.load(tmp_path), Images("digits")
    data.setup()
    v = (data.splits["test"].images.flatten(1).float() / 255 > 0.5).float()
    log_Z = exact_log_Z(model)
    assert metrics["test/log_partition"] == pytest.approx(log_Z, rel=1e-6)
    assert metrics["test/loss"] == pytest.approx(float(model.free_energy(v).mean()) + log_Z, rel=1e-5)
    assert metrics["test/loss"] == pytest.approx(-float(model.log_likelihood(v).mean()), rel=1e-5)
    whole = float(pseudo_log_likelihood(v, Weights(*(t.detach() for t in model.weights()))).mean())
    assert metrics["test/pseudo_likelihood"] == pytest.approx(whole, rel=0.2)  # the metric uses 10 pixels of each image
    flat = ((v - v.mean(0)) ** 2).sum(1).mean()
    assert 0 < metrics["test/reconstruction_error"] < 1.2 * float(flat)
    train = (data.splits["train"].images.flatten(1).float() / 255 > 0.5).float()
    val = (data.splits["val"].images.flatten(1).float() / 255 > 0.5).float()
    gap = float(model.free_energy(val).mean() - model.free_energy(train).mean())
    assert metrics["val/free_energy_gap"] == pytest.approx(gap, abs=1.5)  # the gap uses 1,000 of 1,437 training images


def test_validation_is_of_float32_under_bfloat16(tmp_path):
    """The same weights have the same test metrics in both precisions."""
    run(tmp_path, *TINY["rbm"], "trainer.max_epochs=2", "model.lr=1", "test=false")
    tested = [
        trainer(precision=precision).test(zoo.load(tmp_path), datamodule=digits(), verbose=False)[0]
        for precision in ("32-true", "bf16-mixed")
    ]
    assert tested[0] == tested[1]


@pytest.mark.slow
def test_annealed_importance_sampling_on_a_trained_machine(tmp_path):
    """After training 784 x 15 units, the interval of 100 chains is shorter than 0.5 nats and contains log Z.

    The interval has three standard errors, so it misses log Z once in 370 seeds. The seed is fixed. The test
    enumerates log Z.
    """
    few = [o for o in TINY["rbm"] if "num_hidden" not in o]
    run(
        tmp_path,
        *few,
        "model.num_hidden=15",
        "trainer.max_epochs=20",
        "trainer.check_val_every_n_epoch=20",
        "test=false",
    )
    model = zoo.load(tmp_path)
    weights, base = Weights(*(t.detach() for t in model.weights())), model.mu.logit()
    assert weights.W.abs().max() > 0.5  # the model has learned
    found = ais_log_partition(weights, base, 100, 1000, generator=chunk_generator(0, 0))
    assert found.low < exact_log_Z(model) < found.high and found.high - found.low < 0.5
    # The hidden units contribute H log 2 to log Z_0. The test would detect an error of this size.
    assert not found.low < exact_log_Z(model) + 15 * math.log(2) < found.high


def test_annealing_is_of_the_weights_in_their_plain_form():
    """``log_partition`` enumerates only a layer of at most 16 units. This model has 19 x 17, so log Z is estimated.

    More temperatures give a narrower interval.
    """
    model = small(19, 17, scale=0.4)
    found, coarse = model.log_partition(300), model.log_partition(20)
    assert found.low < exact_log_Z(model) < found.high
    assert found.high - found.low < 0.5 * (coarse.high - coarse.low)
    assert model.log_partition(300) == max(model.log_partitions(300).values())
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, got 0"):
        model.log_partition(0)


def test_how_many_temperatures_and_which_estimate_count(tmp_path, monkeypatch):
    """Validation and test have different numbers of temperatures. The loss uses the estimate of log Z."""
    asked = []

    def recorded(weights, base, chains, steps, *, generator, progress=False, **units):
        asked.append((steps, chains, progress, base.abs().max().item() > 0))
        return LogPartition(500.0, 400.0, 600.0)

    monkeypatch.setattr("zoo.functional.partition.ais_log_partition", recorded)
    model = RBM(num_hidden=20, ais_temperatures=7, test_ais_temperatures=11, ais_chains=3)
    fit = trainer(max_epochs=1, limit_train_batches=2, num_sanity_val_steps=1)
    fit.fit(model, datamodule=digits())
    metrics = trainer().test(model, datamodule=digits(), verbose=False)[0]
    sides = lambda steps: [(steps, 3, False, True), (steps, 3, False, False)]  # noqa: E731
    assert [a[:3] for a in asked] == [a[:3] for a in sides(10) + sides(7) + sides(11)]
    assert asked[-2:] == sides(11)  # the mean image is known after training
    again = trainer().test(model, datamodule=digits(), verbose=False)[0]
    assert again == metrics  # the noise of binarisation is the same
    data = digits()
    data.setup()
    images = data.splits["test"].images.flatten(1).float() / 255
    v = model.observe(images, torch.rand(images.shape, generator=chunk_generator(0, 0)))
    assert metrics["test/loss"] == pytest.approx(float(model.free_energy(v).mean()) + 500, abs=1e-3)
    assert metrics["test/log_partition_low"] == 400
    gaps = [trainer().validate(model, datamodule=digits(), verbose=False)[0]["val/free_energy_gap"] for _ in range(2)]
    assert gaps[0] == gaps[1]
    alone = trainer().validate(RBM(num_hidden=20), datamodule=digits(), verbose=False)[0]
    assert "val/free_energy_gap" not in alone  # there are no training images to compare with


@pytest.mark.parametrize(("limit", "expected"), [(1.0, [7, 11]), (1, [10, 10]), (2, [7, 7])], ids=["all", "one", "two"])
def test_a_trial_of_one_batch_takes_few_temperatures(limit, expected, monkeypatch):
    """``debug=fast`` limits evaluations to one batch. For Lightning, the limit 1 is one batch, and 1.0 is all."""
    asked = []

    def recorded(model, steps, **options):
        asked.append(steps)
        return {"base_rate": LogPartition(1.0, 0.0, 2.0)}

    monkeypatch.setattr(RBM, "log_partitions", recorded)
    model = RBM(num_hidden=20, ais_temperatures=7, test_ais_temperatures=11)
    limited = trainer(limit_val_batches=limit, limit_test_batches=limit)
    limited.validate(model, datamodule=digits(), verbose=False)
    limited.test(model, datamodule=digits(), verbose=False)
    assert asked == expected


def test_the_larger_of_two_estimates_counts(generator):
    """Validation terms and ``log_partition`` use the larger of the two estimates, with its interval."""
    model = small()
    v = torch.randint(2, (5, 4), generator=generator).double()
    lower, higher = LogPartition(1.0, 0.5, 9.0), LogPartition(7.0, 6.0, 8.0)
    for partitions in ({"base_rate": lower, "coins": higher}, {"base_rate": higher, "coins": lower}):
        terms = validation_terms(v, model.machine, partitions, generator=generator)
        assert_close(terms["loss"], free_energy(v, model.weights()).mean() + 7)
        found = {k: terms[f"log_partition{k}"].item() for k in ("", "_low", "_high", "_base_rate", "_coins")}
        each = {f"_{k}": z.estimate for k, z in partitions.items()}
        assert found == {"": 7.0, "_low": 6.0, "_high": 8.0} | each
    model = small(18, 17, ais_chains=5)
    both = model.log_partitions(3)
    assert model.log_partition(3) == max(both.values()) != min(both.values())


def test_each_beginning_of_annealing_is_exact_for_its_own_machine():
    """If W = 0 and b equals the biases of the base model, the estimate is exact.

    The base model of random pixels has b = 0. The base model of the mean image has b = logit(mu).
    """
    mu, c = torch.linspace(0.1, 0.9, 17), torch.linspace(-1, 2, 18)
    for exact, b in {"base_rate": mu.logit(), "coins": torch.zeros(17)}.items():
        weights = Weights(torch.zeros(17, 18), b, c)
        found = log_partitions(weights, mu, 10, 4, generator=chunk_generator(0, 0))
        log_Z = float(F.softplus(b).sum() + F.softplus(c).sum())
        assert list(found) == ["base_rate", "coins"]
        for name, estimate in found.items():
            spread = estimate.high - estimate.low
            assert_close(estimate.estimate, log_Z, rtol=0, atol=1e-4 if name == exact else 4.0)
            assert spread < 1e-4 if name == exact else spread > 0.1


def test_mass_far_from_the_data_is_found(generator):
    """Chains that start at random pixels find probability mass far from the data.

    In a model of 60 x 2 units, one hidden unit turns all pixels on. The states with this unit on have e^20 times the
    probability mass of the others. Chains that start at the mean image, as in the published method, do not find these
    states. The test enumerates log Z.
    """
    weights = Weights(torch.zeros(60, 2), torch.full((60,), -3.0), torch.tensor([-160.0, 0.0]))
    weights.W[:, 0] = 6.0
    exact = float(exact_log_partition(Weights(*(t.double() for t in weights))))
    model = RBM(num_hidden=2, num_visible=60, centred=False)
    with torch.no_grad():
        for parameter, value in zip((model.W, model.b, model.c), weights, strict=True):
            parameter.copy_(value)
        model.mu.fill_(0.05)
    assert model.log_partitions() == {"exact": (exact_log_Z(model),) * 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.functional.partition.AT_ONCE", 0)
        found = model.log_partitions(300)
        assert found["base_rate"].high < exact - 15
        assert found["coins"].low < exact < found["coins"].high
        assert model.log_partition(300) == found["coins"]


# Errors.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_hidden": 0}, "num_hidden must be an integer of at least 1, got 0"),
        ({"learning": "sml"}, "learning must be cd, pcd or exact, got 'sml'"),
        ({"learning": "exact"}, "at most 20 units, got 784 visible and 500 hidden units"),
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"k": [[1, 5]]}, "epochs that rise from 0"),
        ({"k": [[0, 1], [0, 5]]}, "epochs that rise from 0"),
        ({"k": [[0, 1.5]]}, "k must be an integer of at least 1, got 1.5"),
        ({"k": []}, "k must be one value, or a list"),
        ({"restarts": 1}, "restarts must be below 1, got 1"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"momentum": [[0, 0.5], [5, -1]]}, "momentum must be a number of at least 0, got -1"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"weight_decay": -1}, "weight_decay must be a number of at least 0"),
        ({"binarisation": "grey"}, "binarisation must be bernoulli or threshold"),
        ({"optimiser": "lbfgs"}, "optimiser must be sgd or adam"),
        ({"centred": "yes"}, "centred must be true or false, got 'yes'"),
        ({"ais_chains": 1}, "ais_chains must be an integer of at least 2, got 1"),
    ],
)
def test_values_that_do_not_fit(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RBM(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 3, "frames": 5}, "a chain of 3 steps has at most 4 frames"),
        ({"frames": 1}, "frames must be an integer of at least 2, got 1"),
        ({"init": "zeros"}, "init, unless it is images, must be noise, data or chains, got 'zeros'"),
        ({"init": "data"}, "there are no training images outside training"),
        ({"init": "chains"}, "there are no persistent chains"),
        ({"init": torch.zeros(3, 1, 28, 28)}, "images, one tensor per chain"),
        ({"init": [0, 1]}, "images, one tensor per chain, got [0, 1]"),
        ({"init": 7}, "got 7"),
        ({"init": []}, "got []"),
    ],
)
def test_chains_that_cannot_begin(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RBM(num_hidden=8).sample(2, **wrong)


def test_earlier_calls_still_work():
    """Arguments that are now given by name also work by position. They give the same results and a warning."""
    model, x = small(), binary_images(5, 4)
    seeded = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    for name, first, rest in (
        ("noise", x, {"generator": seeded, "learning": lambda: "cd", "k": lambda: 2}),
        ("loss", x, {"generator": seeded}),
        ("probe_batch", x, {"generator": seeded}),
        ("log_likelihood", x[0], {"log_partition": lambda: 1.0}),
    ):
        method = getattr(model, name)
        with pytest.warns(DeprecationWarning, match=f"RBM.{name} by name"):
            old = method(first, *(value() for value in rest.values()))
        assert_same(old, method(first, **{key: value() for key, value in rest.items()}))
    v, h = torch.rand(2, 4).round().double(), torch.rand(2, 3).round().double()
    with pytest.warns(DeprecationWarning, match=r"RBM.hidden_logits is .machine.hidden_logits now"):
        assert torch.equal(model.hidden_logits(v), model.machine.hidden_logits(v))
    with pytest.warns(DeprecationWarning, match=r"RBM.visible_logits is .machine.visible_logits now"):
        assert torch.equal(model.visible_logits(h), model.machine.visible_logits(h))


def test_importance_samples_are_of_other_models():
    with pytest.raises(ValueError, match="the log likelihood of RBM takes no importance samples"):
        evaluation.measure(RBM(num_hidden=8), Images("digits"), evaluation.Protocol(importance_samples=5))


# scikit-learn.


def test_features_are_a_step_of_a_pipeline(tmp_path):
    run(tmp_path, *TINY["rbm"], "trainer.max_epochs=3", "model.num_hidden=30", "model.ais_temperatures=5", "test=false")
    data = Images("digits")
    data.setup()
    X = data.splits["train"].images.flatten(1).numpy() / 255
    y = data.splits["train"].labels.numpy()
    model = zoo.load(tmp_path)
    pipeline = make_pipeline(Features(str(tmp_path)), LogisticRegression(max_iter=500))
    scores = cross_val_score(clone(pipeline), X, y, cv=3)
    assert scores.min() > 0.5  # the model has 30 features and three epochs of training
    pipeline.fit(X, y)
    found = pipeline[0].transform(X[:5])
    assert found.dtype == np.float32
    assert_close(torch.from_numpy(found), model.transform(torch.from_numpy(X[:5]).float()))
    assert_close(torch.from_numpy(pipeline[0].transform(X[:5].reshape(5, 1, 28, 28))), torch.from_numpy(found))
    assert list(pipeline[0].get_feature_names_out()[:2]) == ["features0", "features1"]
    with pytest.raises(ValueError, match="pixels must be numbers from 0 to 1, got 30 "):
        pipeline.predict(X * 255)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        pipeline.predict(X * np.nan)
    with pytest.raises(ValueError, match="has no method transform"):
        Features(zoo.load("vae")).fit(X)
    assert evaluation.feature_accuracy(model, data) > 0.5
