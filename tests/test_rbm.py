"""The module around the machine: its gradients, its chains, its numbers, what it refuses."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from zoo.boltzmann import Weights, energy, free_energy
from zoo.rbm import RBM


def small(V=4, H=3, scale=1.0, seed=0, **kwargs):
    """An RBM of V x H units in float64, with weights of some size and a mean image that is not 1/2."""
    generator = torch.Generator().manual_seed(seed)
    model = RBM(num_hidden=H, num_visible=V, **kwargs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator))
        model.mu.copy_(torch.rand(V, generator=generator) * 0.6 + 0.2)
    return model.eval()


def log_p(model):
    """log p(v) of every binary v by adding up exp(-F) over all of them, differentiable; (2^V,) and the v, (2^V, V)."""
    v = torch.tensor(list(product([0.0, 1.0], repeat=model.hparams.num_visible)), dtype=torch.float64)
    F = free_energy(v, model.weights())
    return -F - (-F).logsumexp(0), v


def gradient(model, loss):
    return {
        k: g
        for (k, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True)
    }


# The gradient.


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("learning", "k"), [("cd", 1), ("cd", 3), ("pcd", 1), ("pcd", 3)])
def test_the_gradient_is_the_textbook_update(learning, k, centred, generator):
    """Hinton 2002; Tieleman 2008, and in the centred form Melchior et al. 2016, with the Gibbs steps written out."""
    model = small(learning=learning, centred=centred)
    B, V, H = 6, 4, 3
    u = lambda *s: torch.rand(*s, generator=generator, dtype=torch.float64)  # noqa: E731
    v = (u(B, V) < 0.5).double()
    noise = {"u_v": u(k, B, V), "u_h": u(k, B, H), "h": u(B, H) < 0.5}
    terms, chains = model.objective(v, noise, learning)
    found = gradient(model, terms["loss"])

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
        mu, half = (model.mu, 0.5) if centred else (0.0, 0.0)
        positive = (v - mu).T @ (p_h - half) / B
        negative = (v_model - mu).T @ (p_model - half) / B
        assert_close(found["W"], negative - positive)  # descended: minus the update
        assert_close(found["b"], v_model.mean(0) - v.mean(0))
        assert_close(found["c"], p_model.mean(0) - p_h.mean(0))
        assert_close(terms["free_energy"], free_energy(v, Weights(W, b, c)).mean())
    if learning == "pcd":
        assert chains.dtype == torch.bool and torch.equal(chains, h.bool())
    else:
        assert chains is None


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_the_exact_gradient_is_that_of_the_log_likelihood(shape):
    model = small(*shape, learning="exact")
    log_probability, v = log_p(model)
    index = [0, 3, 5, 5]
    terms, _ = model.objective(v[index], {}, "exact")
    assert_close(terms["loss"], -log_probability[index].mean())
    for k, g in gradient(model, -log_probability[index].mean()).items():
        assert_close(gradient(model, model.objective(v[index], {}, "exact")[0]["loss"])[k], g)


def test_the_centred_form_is_the_same_family():
    """E = - b'(v - mu) - c'(h - 1/2) - (v - mu)'W(h - 1/2), up to a constant, is that of weights()."""
    model = small()
    W, b, c = (p.detach() for p in (model.W, model.b, model.c))
    v, h = (torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64) for n in (4, 3))
    dv, dh = (v - model.mu)[:, None], (h - 0.5)[None]
    centred = -(dv @ b) - dh @ c - torch.einsum("axi,ij,xbj->ab", dv, W, dh)
    difference = energy(v[:, None], h[None], Weights(*(t.detach() for t in model.weights()))) - centred
    assert_close(difference, difference[0, 0].expand(16, 8))
