"""The diffusion against Gaussian data, whose every conditional is known."""

import pytest
import torch
from torch.testing import assert_close

from zoo.ddpm import DDPM, ancestral_sample, ddim_sample, linear_betas, predict_x0, q_sample, simple_loss
from zoo.nets import UNet


def exact_eps(betas, s2):
    """E[eps | x_t] for data N(0, s2): with v_t = abar s2 + 1 - abar the variance of x_t, sqrt(1 - abar) x_t / v_t."""
    abar = (1 - betas).cumprod(0)

    def eps_model(xt, t):
        a = abar[t].view(-1, *[1] * (xt.ndim - 1))
        return (1 - a).sqrt() * xt / (a * s2 + 1 - a)

    return eps_model


def test_the_schedule_is_the_papers_and_keeps_its_end():
    betas = linear_betas(1000)
    assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))
    for steps in (50, 200, 1000, 4000):
        betas = linear_betas(steps)
        assert betas.dtype == torch.float64
        assert betas.min() > 0 and betas.max() < 1
    end = [(1 - linear_betas(steps)).log().sum() for steps in (1000, 2000)]
    assert_close(end[0], end[1], rtol=0.02, atol=0)  # log abar_T: about -10 either way
    with pytest.raises(ValueError, match=r"more than 20 steps.*got 20"):
        linear_betas(20)


def test_q_sample_is_the_one_step_kernels_composed(generator):
    """Mean and variance of eq. 2 applied t + 1 times are those of eq. 4, for every t."""
    betas = linear_betas(100)
    abar = (1 - betas).cumprod(0)
    mean, var = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    x0 = torch.tensor([[1.7]], dtype=torch.float64)
    for t, beta in enumerate(betas):
        mean, var = (1 - beta).sqrt() * mean, (1 - beta) * var + beta
        zero, one = (q_sample(x0, torch.tensor([t]), torch.full_like(x0, e), abar) for e in (0.0, 1.0))
        assert_close(zero, mean * x0)
        assert_close((one - zero) ** 2, var.view(1, 1))


def test_the_step_back_is_bayes_rule():
    """One ancestral step from x_t with x0 known has the mean and variance of q(x_{t-1} | x_t, x0)."""
    betas = linear_betas(30)
    abar = (1 - betas).cumprod(0)
    x0, xt, t = 0.3, -1.1, 17
    a, a_prev, beta = abar[t], abar[t - 1], betas[t]
    # Prior N(sqrt(a_prev) x0, 1 - a_prev) times likelihood N(x_t; sqrt(1 - beta) x_{t-1}, beta).
    precision = 1 / (1 - a_prev) + (1 - beta) / beta
    mean = (a_prev.sqrt() * x0 / (1 - a_prev) + (1 - beta).sqrt() * xt / beta) / precision

    # The chain's own step, by running it with a network that always says the noise which belongs to x0, from t on.
    class Stop(Exception):
        pass

    seen = []

    def eps_model(x, step):
        seen.append((int(step[0]), x.clone()))
        if len(seen) == 2:
            raise Stop
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    generator = torch.Generator().manual_seed(1)
    x = torch.full((100_000, 1), xt, dtype=torch.float64)
    with pytest.raises(Stop):
        ancestral_sample(eps_model, x, betas[: t + 1], generator, clip=False)
    assert [s for s, _ in seen] == [t, t - 1]
    drawn = seen[1][1]
    assert abs(drawn.mean() - mean) < 4.3 * (1 / precision / 100_000) ** 0.5  # false alarm once in 60,000
    assert_close(drawn.var(), 1 / precision, rtol=4.3 * (2 / 100_000) ** 0.5, atol=0)


@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0])
def test_ancestral_sampling_of_gaussian_data(s2):
    """With the exact noise predictor every step is linear, so the output's variance follows a scalar recursion."""
    betas = linear_betas(50)
    abar = (1 - betas).cumprod(0)
    abar_prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    v = torch.ones((), dtype=torch.float64)
    for t in reversed(range(50)):
        # eq. 11: x_{t-1} = (x_t - beta / sqrt(1 - abar) eps) / sqrt(alpha) + sigma z
        factor = (1 - betas[t] / (abar[t] * s2 + 1 - abar[t])) / (1 - betas[t]).sqrt()
        v = factor**2 * v + betas[t] * (1 - abar_prev[t]) / (1 - abar[t])
    n = 200_000
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    drawn = ancestral_sample(exact_eps(betas, s2), x, betas, generator, clip=False)
    assert_close(drawn.var(), v, rtol=4.3 * (2 / n) ** 0.5, atol=0)  # false alarm once in 60,000


@pytest.mark.parametrize("s2", [0.25, 4.0])
def test_ddim_follows_the_flow_of_gaussian_data(s2):
    """The deterministic sampler scales x_T by a product of exact factors; with many steps it reaches the variance."""
    betas = linear_betas(1000)
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    out = ddim_sample(exact_eps(betas, s2), x, betas, num_steps=1000, clip=False)
    a = (1 - betas).prod()
    flow = (s2 / (a * s2 + 1 - a)) ** 0.5  # the probability flow keeps the ratio of x to its standard deviation
    assert_close(out, flow * x, rtol=0.005, atol=0)  # the error of a thousand steps: 0.3 % and 0.15 %
    one = ddim_sample(exact_eps(betas, s2), x, betas, num_steps=1, clip=False)
    assert_close(one, predict_x0(x, exact_eps(betas, s2)(x, torch.tensor([999])), a, clip=False))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_on_a_subset_is_its_equations(eta):
    """Seven of fifty steps, each written out: eq. 12 of Song et al. with the coarse chain's posterior deviation."""
    betas, s2 = linear_betas(50), 0.25
    abar = (1 - betas).cumprod(0)
    start = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    generator, x = torch.Generator().manual_seed(2), start
    for i, i_prev in zip([49, 41, 33, 24, 16, 8, 0], [41, 33, 24, 16, 8, 0, None], strict=True):
        a, a_prev = abar[i], abar[i_prev] if i_prev is not None else torch.ones((), dtype=torch.float64)
        eps = (1 - a).sqrt() * x / (a * s2 + 1 - a)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = eta * ((1 - a / a_prev) * (1 - a_prev) / (1 - a)).sqrt()
        x = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).sqrt() * eps
        if eta > 0 and i_prev is not None:
            x = x + sigma * torch.randn(3, 1, generator=generator)
    ours = ddim_sample(exact_eps(betas, s2), start, betas, 7, eta, torch.Generator().manual_seed(2), clip=False)
    assert_close(ours, x)


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_all_steps_and_all_noise_is_the_ancestral_sampler(clip, generator):
    betas = linear_betas(40)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    eps_model = exact_eps(betas, 0.5)
    a = ancestral_sample(eps_model, x, betas, torch.Generator().manual_seed(7), clip)
    b = ddim_sample(eps_model, x, betas, 40, 1.0, torch.Generator().manual_seed(7), clip)
    assert_close(a, b)


def test_clipping_keeps_samples_in_range(generator):
    betas = linear_betas(30)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    wide = exact_eps(betas, 100.0)
    rounding = 1 + 1e-12
    assert ancestral_sample(wide, x, betas, generator).abs().max() <= rounding
    assert ddim_sample(wide, x, betas, 30).abs().max() <= rounding
    assert ddim_sample(wide, x, betas, 30, clip=False).abs().max() > 2


def test_the_exact_predictor_reaches_the_least_loss(generator):
    """For N(0, s2) data the least L_simple at step t is Var(eps | x_t) = abar s2 / (abar s2 + 1 - abar)."""
    s2, T, n = 0.5, 100, 400_000
    betas = linear_betas(T)
    abar = (1 - betas).cumprod(0)
    x0 = s2**0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    t = torch.randint(T, (n,), generator=generator)
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    loss = simple_loss(x0, t, eps, abar, exact_eps(betas, s2))
    least = (abar * s2 / (abar * s2 + 1 - abar)).mean()
    error = loss.std() / n**0.5
    assert 4.3 * error < 0.02 * least  # a false alarm once in 60,000
    assert abs(loss.mean() - least) < 4.3 * error


def test_bad_steps_and_noise_are_named():
    betas, x = linear_betas(30), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="between 1 and the model's 30 steps, got 31"):
        ddim_sample(lambda x, t: x, x, betas, 31)
    with pytest.raises(ValueError, match="eta must be a number between 0 and 1, got 2"):
        ddim_sample(lambda x, t: x, x, betas, 10, eta=2)
    with pytest.raises(ValueError, match="more than 20 steps"):
        DDPM(steps=10)
    with pytest.raises(ValueError, match=r"multiples of 8, one per level, got \[12\]"):
        DDPM(widths=[12])
    with pytest.raises(ValueError, match=r"28 pixels do not divide by patch \* 2\^\(levels - 1\) = 8"):
        DDPM(widths=[8, 8, 8])
    with pytest.raises(ValueError, match="whole number, got '100'"):
        DDPM(steps="100")


@pytest.fixture
def small():
    torch.manual_seed(0)
    return DDPM(steps=50, widths=[8, 16], blocks=1)


def test_the_first_loss_is_that_of_predicting_zero(small, generator):
    """The network starts at zero, so the loss is the mean of eps^2: 1, within 4.3 standard errors (once in 60,000)."""
    batch = [torch.rand(64, 1, 28, 28, generator=generator), torch.zeros(64)]
    loss = small.loss(batch, generator)["loss"]
    assert abs(loss - 1) < 4.3 * (2 / (64 * 784)) ** 0.5


def test_images_enter_in_minus_one_to_one(small):
    """At t = 0 hardly any noise is added: the network must be shown 2 x - 1."""
    shown = []
    small.net.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    x, eps = torch.rand(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    small.noise = lambda batch, generator: {"t": torch.zeros(2, dtype=torch.long), "eps": eps}
    small.loss([x, None])
    assert_close(shown[0], small.abar[0].sqrt() * (2 * x - 1))


def test_the_modules_schedule_is_linear(small):
    betas = linear_betas(50)
    assert_close(small.betas.double(), betas, rtol=1e-6, atol=0)
    assert_close(small.abar.double(), (1 - betas).cumprod(0), rtol=1e-6, atol=0)
    assert_close(betas.diff(), torch.full((49,), (20 / 50 - 0.1 / 50) / 49, dtype=torch.float64))


def test_every_step_is_drawn_and_each_example_has_its_own(small, generator):
    """20,000 uniform draws of 50 steps: each count within 4.5 standard errors of 400; false alarm once in 3,000."""
    t = small.noise([torch.zeros(20_000, 1, 1, 1)], generator)["t"]
    assert t.min() == 0
    assert (t.bincount(minlength=50) - 400).abs().max() < 4.5 * (400 * 49 / 50) ** 0.5
    assert len(t.bincount()) == 50


def test_a_network_that_knows_the_image_samples_it(small):
    """The noise that belongs to x0 = -0.5 everywhere: every sampler returns its grey, 0.25."""
    small.forward = lambda x, t: (x - small.abar[t[0]].sqrt() * -0.5) / (1 - small.abar[t[0]]).sqrt()
    for kw in ({"num_steps": 5}, {"num_steps": None}):
        images = small.sample(2, generator=torch.Generator().manual_seed(0), **kw)
        assert_close(images, torch.full((2, 1, 28, 28), 0.25), rtol=1e-3, atol=0)


def test_samples_are_images_and_depend_on_the_seed_alone(small):
    draw = lambda seed, **kw: small.sample(3, generator=torch.Generator().manual_seed(seed), **kw)  # noqa: E731
    for kw in ({"num_steps": 5}, {"num_steps": 5, "eta": 1.0}, {"num_steps": None}):
        a, b, c = draw(0, **kw), draw(0, **kw), draw(1, **kw)
        assert a.shape == (3, 1, 28, 28) and a.min() >= 0 and a.max() <= 1
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_schedules_stay_out_of_checkpoints(small):
    assert all(name.startswith("net.") for name in small.state_dict())


def test_every_parameter_learns(small, generator):
    """After a step away from the zero initialisation, every parameter has a gradient that is finite and not zero."""
    batch = [torch.rand(16, 1, 28, 28, generator=generator), torch.zeros(16)]
    optimiser = torch.optim.Adam(small.parameters(), 1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        small.loss(batch, generator)["loss"].backward()
        optimiser.step()
    for name, p in small.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_unet_keeps_shapes_and_refuses_others():
    net = UNet(1, [8, 8], blocks=1)
    assert net(torch.zeros(2, 1, 32, 28), torch.tensor([0, 5])).shape == (2, 1, 32, 28)
    with pytest.raises(ValueError, match=r"multiples of 4, got \(30, 30\)"):
        net(torch.zeros(2, 1, 30, 30), torch.tensor([0, 5]))
