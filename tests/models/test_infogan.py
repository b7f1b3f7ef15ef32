"""Tests of InfoGAN: the bound on the mutual information, codes given to ``sample``, and predictions of Q."""

import math
import re

import pytest
import torch
from helpers import TINY, assert_same, checkpoint, run
from torch import nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Independent, Normal
from torch.func import grad
from torch.testing import assert_close

import zoo
from zoo.callbacks import Codes
from zoo.functional.deformation import deform
from zoo.functional.noise import chunk_generator
from zoo.infogan import InfoGAN, categorical_bound, continuous_bound
from zoo.sampling.chunks import sample_chunks
from zoo.sampling.pictures import picture
from zoo.vae import VAE


def small(**kwargs):
    torch.manual_seed(0)
    return InfoGAN(**{"width": 4, "features": 8, "z_dim": 3, **kwargs})


def images(n=6):
    return [torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.zeros(n, dtype=torch.long)]


@pytest.mark.equation("infogan", "L_cat")
def test_the_categorical_bound_is_at_most_its_ceiling(generator):
    category = torch.arange(10).repeat(50)
    for scale in (0.0, 1.0, 30.0):
        logits = scale * torch.randn(500, 10, generator=generator, dtype=torch.float64)
        assert categorical_bound(logits, category) <= math.log(10)
        # H(c) + E log Q, by torch.distributions.
        expected = math.log(10) + TorchCategorical(logits=logits).log_prob(category).mean()
        assert_close(categorical_bound(logits, category), expected)
    assert_close(categorical_bound(torch.zeros(500, 10), category).item(), 0.0, atol=1e-6, rtol=0)  # a uniform Q


@pytest.mark.equation("infogan", "L_cat")
def test_a_perfect_code_network_reaches_the_ceiling():
    category = torch.arange(10)
    perfect = 100 * torch.eye(10, dtype=torch.float64)
    assert_close(categorical_bound(perfect, category).item(), math.log(10))


@pytest.mark.equation("infogan", "L_cat")
def test_the_bound_is_the_information_where_q_is_the_posterior():
    """The bound equals the mutual information of c and x only if Q is the posterior.

    x equals c with probability 0.7. With probability 0.3, x is drawn uniformly.
    """
    K, keep = 4, 0.7
    p_x_given_c = keep * torch.eye(K, dtype=torch.float64) + (1 - keep) / K
    joint = p_x_given_c / K
    information = (joint * (joint / (joint.sum(0) * joint.sum(1, keepdim=True))).log()).sum()
    posterior = joint / joint.sum(0)  # p(c | x), columns x
    bound = lambda Q: math.log(K) + (joint * Q.log()).sum()  # noqa: E731
    assert_close(bound(posterior), information)
    assert bound(0.9 * posterior + 0.1 / K) < information
    # Each pair (c, x) occurs in proportion to its probability, so means over the examples are expectations.
    c, x = torch.cartesian_prod(torch.arange(K), torch.arange(K)).unbind(-1)
    counts = (joint[c, x] * 1600).round().long()
    c, x = c.repeat_interleave(counts), x.repeat_interleave(counts)
    assert_close(categorical_bound(posterior[:, x].T.log(), c), information)


@pytest.mark.equation("infogan", "L_I(G, Q)")
@pytest.mark.equation("infogan", "V_InfoGAN")
@pytest.mark.equation("infogan", "Q(c | x)")
def test_the_terms_of_a_channel_in_closed_form():
    """z is a symbol that equals the category with probability 0.7. Q sees the symbol and the sign of the number.

    Q(c | x) is the posterior of the category. For the number, Q is the best Gaussian given the sign, N(+-1/2, 1/12).
    Its bound log 2 - log(2 pi e / 12) / 2 is less than the information log 2. All pairs of a category and a symbol
    occur in proportion to their probabilities, each with 1,000 evenly spaced numbers. D is constant.
    """
    K, keep = 4, 0.7
    model = small(z_dim=1, num_categories=K, num_continuous=1, deformation=0.0, info_weight=2.0, continuous_weight=0.5)
    joint = (keep * torch.eye(K) + (1 - keep) / K) / K
    c, x = torch.cartesian_prod(torch.arange(K), torch.arange(K)).unbind(-1)
    counts = (joint[c, x] * 160).round().long()
    c, x = (t.repeat_interleave(counts).repeat_interleave(1000) for t in (c, x))
    numbers = ((torch.arange(1000) + 0.5) / 500 - 1).repeat(160)
    order = torch.randperm(160_000)
    noise = {"z": x[order, None].float(), "category": c[order], "continuous": numbers[order, None]}

    def code(features):  # the features are the inputs of the generator: z, one-hot category, number
        log_posterior, mu = (joint * K).log()[features[:, 0].long()], features[:, -1:].sign() / 2
        return torch.cat([log_posterior, mu, torch.full_like(mu, -math.log(12))], 1)

    model.generator, model.trunk, model.head = nn.Identity(), nn.Identity(), nn.Linear(1 + K + 1, 1)
    model.code.forward = code
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, 0.4)
    terms = model.generator_terms(noise)
    information = (joint * (joint * K * K).log()).sum().item()
    number = math.log(2) - 0.5 * math.log(2 * math.pi * math.e / 12)
    exact = {"rtol": 1e-4, "atol": 0}
    assert_close(terms["mi_categorical"].item(), information, **exact)
    assert_close(terms["mi_continuous"].item(), number, **exact)
    D = 1 / (1 + math.exp(-0.4))
    assert_close(terms["loss"].item(), -math.log(D) - (2.0 * information + 0.5 * number), **exact)


@pytest.mark.equation("infogan", "L_num")
def test_the_continuous_bound_has_no_ceiling(generator):
    c = 2 * torch.rand(100, 2, generator=generator, dtype=torch.float64) - 1
    mu, logvar = c + 0.1, torch.full_like(c, -2.0)
    expected = 2 * math.log(2) + Independent(Normal(mu, (logvar / 2).exp()), 1).log_prob(c).mean()
    assert_close(continuous_bound(mu, logvar, c), expected)
    # The best Q that ignores x is the Gaussian closest to the uniform prior. Its bound is below 0.
    nothing = continuous_bound(torch.zeros_like(c), torch.full_like(c, math.log(1 / 3)), c)
    assert -0.5 < nothing < 0
    assert continuous_bound(c, torch.full_like(c, -20.0), c) > 10


@pytest.mark.equation("infogan", "p(c)")
def test_codes_are_drawn_from_their_priors():
    """The categories pass a chi-squared test with 9 degrees of freedom (false alarm once in 1e5).

    For the other codes, the test compares moments.
    """
    noise = small().noise([torch.zeros(20_000, 1)], generator=chunk_generator(0, 0))
    counts = noise["category"].bincount(minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 39.4 and len(counts) == 10
    u = noise["continuous"]
    assert u.shape == (20_000, 2) and u.abs().max() <= 1
    assert u.mean().abs() < 4.5 * math.sqrt(1 / 3 / 40_000)
    # The codes are independent: the two numbers, and the numbers and the category.
    assert u.prod(1).mean().abs() < 4.5 / 3 / math.sqrt(20_000)
    by_category = torch.stack([u[noise["category"] == c].mean(0) for c in range(10)])
    assert (by_category.abs() < 4.5 * (1 / 3 / counts[:, None]).sqrt()).all()
    assert (u.square().mean() - 1 / 3).abs() < 4.5 * math.sqrt(4 / 45 / 40_000)


def test_the_generator_is_told_the_code():
    model = small()
    noise = model.noise(images(), generator=chunk_generator(0, 0))
    inputs = model.inputs(noise)
    assert inputs.shape == (6, 3 + 10 + 2)
    assert torch.equal(inputs[:, :3], noise["z"]) and torch.equal(inputs[:, 13:], noise["continuous"])
    assert torch.equal(inputs[:, 3:13].argmax(-1), noise["category"])


def test_the_discriminator_and_q_see_images_centred():
    model, (x, _) = small().eval(), images()
    noise = model.noise([x], generator=chunk_generator(0, 0))
    D = model.head(model.trunk(2 * x - 1)).squeeze(-1).sigmoid()
    assert_close(model.discriminator_terms(x, noise)["D_x"], D.mean())
    discriminator, generator = small(lr_discriminator=3e-4, lr_generator=7e-4, beta1=0.2).configure_optimizers()
    assert discriminator.param_groups[0]["lr"] == 3e-4 and generator.param_groups[0]["lr"] == 7e-4
    assert discriminator.param_groups[0]["betas"] == generator.param_groups[0]["betas"] == (0.2, 0.999)


def test_a_category_is_read_from_eight_deformed_copies():
    model, x = small(deformation=0.8).eval(), torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    model.take_statistics((x * 255).byte())  # with these statistics, predictions differ between images
    ways = model.noise([torch.zeros(8, 1)], generator=chunk_generator(0, 0))
    real = small(deformation=0.8).eval()
    real.load_state_dict(model.state_dict())
    at = 0
    for part in (real.trunk, real.code):  # statistics of real images replace the model's
        for m in part.modules():
            for name in ("running_mean", "running_var") if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) else ():
                n = len(getattr(m, name))
                getattr(m, name).copy_(model.real_statistics[at : at + n])
                at += n
    log_Q = []
    for affine, bumps in zip(ways["affine"], ways["bumps"], strict=True):
        copy = deform(x, affine.expand(40, -1, -1), bumps.expand(40, -1, -1, -1), 0.4)
        log_Q.append(real.code(real.trunk(2 * copy - 1))[:, :10].log_softmax(-1))
    assert at == len(model.real_statistics) and torch.equal(model.cluster(x), sum(log_Q).argmax(-1))
    assert any(not torch.equal(one.argmax(-1), sum(log_Q).argmax(-1)) for one in log_Q)
    assert torch.equal(model.cluster(x[3:]), model.cluster(x)[3:])
    plain = small(deformation=0.0).eval()
    assert torch.equal(plain.cluster(x), plain.code(plain.trunk(2 * x - 1))[:, :10].argmax(-1))


def test_validation_recomputes_batchnorm_statistics():
    """The statistics in the BatchNorm modules depend only on samples. ``real_statistics`` uses the images."""
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running_mean" in k or k == "real_statistics"}
    model.eval().take_statistics(torch.zeros(50, 1, 28, 28, dtype=torch.uint8))
    after = {k: v.clone() for k, v in model.state_dict().items()}
    assert all(not torch.equal(after[k], v) for k, v in before.items())
    model.take_statistics(torch.full((50, 1, 28, 28), 255, dtype=torch.uint8))
    for key, value in model.state_dict().items():
        assert torch.equal(value, after[key]) == (key != "real_statistics"), key


def test_deformation_fills_the_outside_with_black():
    """An image that is moved out of the frame becomes black. Black is -1 for the networks."""
    model = small()
    noise = model.noise(images(), generator=chunk_generator(0, 0))
    noise["affine"] = torch.zeros(6, 2, 3)
    noise["affine"][:, 0, 2] = 100.0
    noise["bumps"] = torch.zeros(6, 2, 4, 4)
    fake = model.generator(model.inputs(noise))
    categorical, _ = model.information(fake, model.trunk(fake), noise)
    black = model.posterior(model.trunk(torch.full((6, 1, 28, 28), -1.0)))[0]
    assert_close(categorical, categorical_bound(black, noise["category"]), rtol=1e-3, atol=1e-4)


@pytest.mark.equation("infogan", "V_InfoGAN")
def test_the_terms_add_up():
    model = small(deformation=0.0).eval()
    noise = model.noise(images(), generator=chunk_generator(0, 0))
    terms = model.generator_terms(noise)
    fake = model.generator(model.inputs(noise))
    logits, mu, logvar = model.posterior(model.trunk(fake))
    D = model.head(model.trunk(fake)).squeeze(-1).sigmoid()
    categorical = math.log(10) + logits.log_softmax(-1)[range(6), noise["category"]].mean()
    assert_close(terms["mi_categorical"], categorical)
    assert_close(terms["mi_continuous"], continuous_bound(mu, logvar, noise["continuous"]))
    assert_close(terms["bound"], categorical + 0.1 * terms["mi_continuous"])
    assert_close(terms["loss"], -D.log().mean() - terms["bound"])


def test_categories_are_read_from_deformed_images_and_numbers_are_not():
    plain, deformed = small(deformation=0.0), small(deformation=0.3)
    noise = plain.noise(images(), generator=chunk_generator(0, 0))
    a, b = plain.generator_terms(noise), deformed.generator_terms(noise)
    assert a["mi_continuous"] == b["mi_continuous"] and a["mi_categorical"] != b["mi_categorical"]
    deformed.load_state_dict(plain.state_dict())
    # In evaluation, no image is deformed, so both models have the same terms.
    assert deformed.eval().generator_terms(noise) == plain.eval().generator_terms(noise)
    plain.train(), deformed.train()
    # With zero noise, a deformation does not change the image. The map to [0, 1] and back is the identity.
    a = plain.generator_terms(noise)
    still = {**noise, "affine": 0 * noise["affine"], "bumps": 0 * noise["bumps"]}
    assert_close(deformed.generator_terms(still)["mi_categorical"], a["mi_categorical"], rtol=1e-4, atol=1e-5)


def test_each_networks_loss_trains_that_network_alone():
    """Trunk and head are trained only on V. Generator and Q also train on the bound (Chen et al. 2016, eq. 6)."""
    model = small()
    d_optimiser, g_optimiser = model.configure_optimizers()
    names = {id(p): name for name, p in model.named_parameters()}
    of = lambda optimiser: {names[id(p)] for group in optimiser.param_groups for p in group["params"]}  # noqa: E731
    assert {n.split(".")[0] for n in of(d_optimiser)} == {"trunk", "head"}
    assert {n.split(".")[0] for n in of(g_optimiser)} == {"generator", "code"}
    assert of(d_optimiser) | of(g_optimiser) == set(names.values())
    model.discriminator_loss(images())["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == of(d_optimiser)


def test_steps_are_batches(tmp_path):
    run(tmp_path, *TINY["infogan"], "callbacks=none", "trainer.max_epochs=1", "test=false")
    last = checkpoint(tmp_path)
    assert last["global_step"] == 11
    assert [s["state"][0]["step"].item() for s in last["optimizer_states"]] == [11, 11]


def test_an_estimators_draw_is_the_gradient_of_a_step():
    model, batch = small().train(), images()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for name, e in model.gradient_estimators().items():
        noise = e.noise(batch, chunk_generator(0, 3))
        drawn = grad(e.surrogate)({k: v.detach() for k, v in e.params.items()}, batch, noise)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), name
        model.zero_grad(set_to_none=True)
        terms = model.discriminator_terms(batch[0], noise) if name == "discriminator" else model.generator_terms(noise)
        (-terms["bound"] if name == "bound" else terms["loss"]).backward()
        model.load_state_dict(before)
        for k, p in e.params.items():
            assert_close(drawn[k], p.grad, rtol=1e-3, atol=1e-6, msg=lambda m, k=k: f"{k}: {m}")


def test_samples_of_given_codes():
    model = small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    draw = lambda n=4, **codes: model.sample(n, generator=chunk_generator(0, 0), **codes)  # noqa: E731
    free = draw()
    assert free.shape == (4, 1, 28, 28) and free.min() >= 0 and free.max() <= 1
    noise = model.noise([torch.zeros(4, 1)], generator=chunk_generator(0, 0))
    assert torch.equal(draw(category=noise["category"].tolist()), free)  # z does not depend on given codes
    assert torch.equal(draw(continuous=noise["continuous"].tolist()), free)
    assert not torch.equal(draw(category=3), draw(category=4))
    assert torch.equal(draw(continuous=0.5), draw(continuous=[0.5, 0.5]))
    assert not torch.equal(draw(continuous=[0.5, 0.5]), draw(continuous=[0.5, -0.5]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    n, conditions, columns = picture(model, 20, {})
    assert (n, columns) == (20, 2) and conditions["category"] == [k for k in range(10) for _ in range(2)]
    assert sample_chunks(model, n, 0, **conditions).shape == (20, 1, 28, 28)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"category": 10}, "category must lie between 0 and 9, got 10"),
        ({"category": [1, 2]}, "category must be one integer for each of the 4 images, or one for all; got 2"),
        ({"category": 1.5}, "got 1.5"),
        ({"continuous": [1.0, 2.0, 3.0]}, "continuous must be a number, 2 numbers, or 2 for each of 4 images"),
        ({"continuous": "left"}, "got 'left'"),
        ({"continuous": float("nan")}, "got nan"),
    ],
)
def test_codes_that_do_not_fit(codes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small().sample(4, **codes)


def test_one_code_is_varied():
    model = small().eval()
    grid = model.vary(1, steps=5, generator=chunk_generator(0, 0))
    assert grid.shape == (5, 10, 1, 28, 28)
    z = torch.randn(3, generator=chunk_generator(0, 0))
    one_hot = torch.eye(10)[7]
    expected = (
        model.generator(torch.cat([z, one_hot, torch.tensor([0.0, 1.0])])[None]) / 2 + 0.5
    )  # 1.0 is the fourth of five values from -2 to 2
    assert_close(grid[3, 7], expected[0].clamp(0, 1))
    with pytest.raises(ValueError, match="code must be an integer from 0 to 1, got 2"):
        model.vary(2)
    with pytest.raises(ValueError, match="steps must be an integer of at least 2, got 1"):
        model.vary(0, steps=1)


def test_a_run_draws_its_codes_and_scores_its_categories(tmp_path):
    metrics = run(tmp_path, *TINY["infogan"], "trainer.max_epochs=1")
    assert {"test/accuracy", "test/nmi", "test/mi_categorical", "test/mi_ceiling"} <= set(metrics)
    assert_close(metrics["test/mi_ceiling"], math.log(10), rtol=1e-6, atol=0)
    assert metrics["test/mi_categorical"] <= math.log(10)
    assert sorted(p.name for p in (tmp_path / "codes").iterdir()) == ["code0_epoch_000.png", "code1_epoch_000.png"]
    model = zoo.load(tmp_path)
    assert model.cluster(images()[0]).shape == (6,)
    with pytest.raises(ValueError, match="VAE has no method vary"):
        Codes(tmp_path).setup(None, VAE(), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_categories": 1}, "num_categories must be an integer of at least 2, got 1"),
        ({"num_continuous": 0}, "num_continuous must be an integer of at least 1, got 0"),
        ({"info_weight": -1}, "info_weight must be a number of at least 0"),
        ({"lr_discriminator": 0}, "lr_discriminator must be a positive number"),
        ({"deformation": None}, "deformation must be a number of at least 0"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        InfoGAN(**arguments)


def test_earlier_calls_still_work():
    model, batch = small(), [torch.rand(4, 1, 28, 28), torch.zeros(4)]
    seeded = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    for name in ("noise", "discriminator_loss", "generator_loss"):
        with pytest.warns(DeprecationWarning, match=f"give generator= of InfoGAN.{name} by name"):
            old = getattr(model, name)(batch, seeded())
        assert_same(old, getattr(model, name)(batch, generator=seeded()))
