"""Tests of the diffusion on Gaussian data, where all conditional distributions are known."""

import math

import pytest
import torch
from helpers import exact_x0
from torch.testing import assert_close

from zoo.functional.diffusion import (
    append_losses,
    cosine_betas,
    importance,
    linear_betas,
    make_chain,
    posterior_mean,
    predicted_eps,
    predicted_x0,
    prediction_target,
    q_sample,
    simple_loss,
    stratified_steps,
)
from zoo.functional.diffusion_samplers import ancestral_steps, ddim_encode, ddim_steps, ddim_subset, frames, last, slerp

SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def ancestral(chain, *args, **kwargs):
    return last(ancestral_steps(*args[:2], chain, *args[2:], **kwargs), len(chain.betas), "")


def ddim(x0_model, x, chain, num_steps, *args, **kwargs):
    return last(ddim_steps(x0_model, x, chain, num_steps, *args, **kwargs), num_steps, "")


def test_the_linear_schedule_is_the_papers_and_keeps_its_end():
    betas = linear_betas(1000)
    assert_close(betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))
    assert_close(betas.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=torch.float64))
    end = [(1 - linear_betas(steps)).log().sum() for steps in (1000, 2000)]
    assert_close(end[0], end[1], rtol=0.02, atol=0)  # log abar_T is about -10 for both


def test_the_cosine_schedule_is_its_equation():
    """abar_t = g(t) / g(0) at every step except the last, where beta_t is limited to 0.999."""
    abar = make_chain(cosine_betas(1000)).abar
    g = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    expected = torch.tensor([v / g[0] for v in g[1:-1]], dtype=torch.float64)
    assert_close(abar[:-1], expected, rtol=1e-9, atol=0)
    assert_close(abar[-1] / abar[-2], torch.tensor(1e-3, dtype=torch.float64))


@pytest.mark.parametrize("steps", [21, 50, 1000, 4000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_stay_inside(schedule, steps):
    chain = make_chain(SCHEDULES[schedule](steps))
    assert chain.betas.dtype == torch.float64
    assert chain.betas.min() > 0 and chain.betas.max() < 1
    assert chain.abar.min() > 0 and chain.posterior_variance[0] == 0 and chain.posterior_variance[1:].min() > 0
    assert_close(chain.one_minus_abar, 1 - chain.abar)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (linear_betas(20), r"with 20 steps beta_20 is 1:"),
        (linear_betas(10), r"with 10 steps beta_6 is 1\."),
        (torch.tensor([0.1, 0.0, 0.2]), "beta_2 is 0:"),
        (torch.tensor([0.1, math.nan]), "beta_2 is nan:"),
        (torch.tensor([0.5]), "at least 2 steps, got 1"),
    ],
)
def test_schedules_that_leave_zero_to_one_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        make_chain(betas)


@pytest.mark.equation("ddpm", "q(x_t | x_0)")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample_is_the_one_step_kernels_composed(schedule):
    """For every t, the composition of t + 1 steps has the mean and variance of ``q_sample``.

    The steps are eq. 2, and ``q_sample`` is eq. 4, of Ho et al. 2020.
    """
    chain = make_chain(SCHEDULES[schedule](100))
    mean, var = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    x0 = torch.tensor([[1.7]], dtype=torch.float64)
    for t, beta in enumerate(chain.betas):
        mean, var = (1 - beta).sqrt() * mean, (1 - beta) * var + beta
        zero, one = (q_sample(x0, torch.tensor([t]), torch.full_like(x0, e), chain) for e in (0.0, 1.0))
        assert_close(zero, mean * x0)
        assert_close((one - zero) ** 2, var.view(1, 1))


@pytest.mark.parametrize("t", [0, 1, 17, 29])
def test_the_posterior_is_bayes_rule(t):
    """The posterior q(x_{t-1} | x_t, x0) [DSL eq. 14.45] agrees with Bayes' rule.

    The prior of x_{t-1} is N(sqrt(abar_{t-1}) x0, 1 - abar_{t-1}). The likelihood of x_t is
    N(sqrt(1 - beta) x_{t-1}, beta).
    """
    chain = make_chain(linear_betas(30))
    x0, xt, beta = 0.3, -1.1, chain.betas[t]
    ours = posterior_mean(*torch.tensor([[[x0]], [[xt]]], dtype=torch.float64), torch.tensor([t]), chain)
    if t == 0:
        assert_close(ours.item(), x0, rtol=1e-12, atol=0)
        return
    a_prev = chain.abar[t - 1]
    precision = 1 / (1 - a_prev) + (1 - beta) / beta
    mean = (a_prev.sqrt() * x0 / (1 - a_prev) + (1 - beta).sqrt() * xt / beta) / precision
    assert_close(ours, mean.view(1, 1))
    assert_close(chain.posterior_variance[t], 1 / precision)


@pytest.mark.equation("ddpm", "x_{t-1}")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_step_back_is_drawn_from_it(variance):
    """One step of the sampler from x_t, with x0 known, has the mean and variance of the posterior.

    The two pixels of an image are independent. The tolerance is 4.3 standard errors, with false alarms once in 10,000
    seeds.
    """
    chain, n, t = make_chain(linear_betas(18 + 12)), 100_000, 17
    short = make_chain(linear_betas(30)[: t + 1])
    x = torch.full((n, 2), -1.1, dtype=torch.float64)
    given = torch.Generator().manual_seed(1)
    steps = ancestral_steps(lambda x, _: torch.full_like(x, 0.3), x, short, variance, generator=given)
    i, drawn, _ = next(steps)
    assert i == t
    mean = posterior_mean(torch.full((1, 2), 0.3).double(), x[:1], torch.tensor([t]), chain)
    sigma2 = chain.posterior_variance[t] if variance == "posterior" else chain.betas[t]
    assert ((drawn.mean(0) - mean).abs() < 4.3 * (sigma2 / n) ** 0.5).all()
    limits = {"rtol": 4.3 * (2 / n) ** 0.5, "atol": 4.3 * float(sigma2) / n**0.5}
    assert_close(torch.cov(drawn.T), sigma2 * torch.eye(2, dtype=torch.float64), **limits)


@pytest.mark.equation("ddpm", "x_{t-1}")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_last_step_back_adds_no_noise(variance, generator):
    """With x0 known, every sample is x0, for both variances (algorithm 2: z = 0 at the last step)."""
    x = torch.randn(9, 1, generator=generator, dtype=torch.float64)
    chain, known = make_chain(linear_betas(30)), lambda x, _: torch.full_like(x, 0.3)
    assert_close(ancestral(chain, known, x, variance, generator=generator), torch.full_like(x, 0.3))


@pytest.mark.equation("ddpm", "L_simple")
@pytest.mark.equation("ddpm", "L_v")
@pytest.mark.equation("ddpm", "x0_hat")
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_predictions_say_the_same(predict, generator):
    """The target and x_t give the image and the noise. The loss of predicting zero is the mean square of the target."""
    chain = make_chain(cosine_betas(50))
    x0, eps = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.arange(50)
    xt, target = q_sample(x0, t, eps, chain), prediction_target(predict, x0, t, eps, chain)
    assert_close(predicted_x0(predict, target, xt, t, chain)[:-1], x0[:-1], rtol=1e-9, atol=1e-9)
    assert_close(predicted_eps(x0, xt, t, chain), eps)
    assert_close(simple_loss(x0, t, eps, chain, predict, lambda xt, t: target), torch.zeros(50, dtype=torch.float64))
    zero = simple_loss(x0, t, eps, chain, predict, lambda xt, t: torch.zeros_like(xt))
    assert_close(zero, target.square().mean(1))


@pytest.mark.equation("ddpm", "x0_hat")
@pytest.mark.parametrize("predict", ["eps", "v"])
def test_the_best_outputs_give_the_posterior_mean_of_the_image(predict):
    """For N(m, s2) data, the best outputs are E[eps | x_t] and E[v | x_t]. They give E[x_0 | x_t], by Bayes' rule."""
    chain, m, s2 = make_chain(linear_betas(30)), 0.4, 0.5
    t = torch.arange(30)
    xt = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
    a = chain.abar[:, None]
    mean = (m / s2 + a.sqrt() * xt / (1 - a)) / (1 / s2 + a / (1 - a))
    eps = (1 - a).sqrt() * (xt - a.sqrt() * m) / (a * s2 + 1 - a)
    output = eps if predict == "eps" else a.sqrt() * eps - (1 - a).sqrt() * mean
    assert_close(predicted_x0(predict, output, xt, t, chain), mean)


@pytest.mark.equation("ddpm", "L_v")
def test_v_is_the_velocity_of_the_circle(generator):
    """v = d x_t / d phi for sqrt(abar) = cos phi and sqrt(1 - abar) = sin phi (Salimans & Ho 2022, appendix D)."""
    chain = make_chain(cosine_betas(50))
    x0, eps = (torch.randn(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    phi = torch.atan2(chain.one_minus_abar.sqrt(), chain.abar.sqrt())[:, None].requires_grad_()
    xt = phi.cos() * x0 + phi.sin() * eps
    v = torch.stack([torch.autograd.grad(xt[:, d].sum(), phi, retain_graph=True)[0][:, 0] for d in range(3)], 1)
    assert_close(prediction_target("v", x0, torch.arange(50), eps, chain), v)


@pytest.mark.equation("ddpm", "x_{t-1}")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("s2", [0.25, 1.0, 4.0])
def test_ancestral_sampling_of_gaussian_data(s2, variance):
    """With the exact prediction, every step is linear. The variance of the sample then follows a scalar recursion."""
    chain = make_chain(linear_betas(50))
    v = torch.ones((), dtype=torch.float64)
    for t in reversed(range(50)):
        # Ho et al. 2020, eq. 11: x_{t-1} = (x_t - beta / sqrt(1 - abar) eps) / sqrt(alpha) + sigma z
        factor = (1 - chain.betas[t] / (chain.abar[t] * s2 + 1 - chain.abar[t])) / (1 - chain.betas[t]).sqrt()
        sigma2 = chain.posterior_variance[t] if variance == "posterior" else chain.betas[t]
        v = factor**2 * v + (sigma2 if t > 0 else 0)
    n = 200_000
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    drawn = ancestral(chain, exact_x0(chain, s2), x, variance, generator=generator, clip=False)
    assert_close(drawn.var(), v, rtol=4.3 * (2 / n) ** 0.5, atol=0)  # false alarms once in 60,000 seeds


@pytest.mark.parametrize("s2", [0.25, 4.0])
def test_ddim_follows_the_flow_of_gaussian_data(s2):
    """On Gaussian data, the deterministic sampler multiplies x_T by a factor.

    With 1,000 steps, the factor is close to the factor of the probability flow.
    """
    chain = make_chain(linear_betas(1000))
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    out = ddim(exact_x0(chain, s2), x, chain, 1000, clip=False)
    a = chain.abar[-1]
    flow = (s2 / (a * s2 + 1 - a)) ** 0.5  # the probability flow keeps the ratio of x to its standard deviation
    assert_close(out, flow * x, rtol=0.005, atol=0)  # the discretisation errors are 0.3 % and 0.15 %
    one = ddim(exact_x0(chain, s2), x, chain, 1, clip=False)
    assert_close(one, exact_x0(chain, s2)(x, torch.tensor([999, 999])))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_on_a_subset_is_its_equations(eta):
    """The test takes seven of fifty steps by eq. 12 of Song et al. 2021.

    sigma_t is the posterior standard deviation of the chain with seven steps, times eta.
    """
    chain, s2 = make_chain(linear_betas(50)), 0.25
    start = torch.randn(3, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    generator, x = torch.Generator().manual_seed(2), start
    assert ddim_subset(50, 7) == [0, 8, 16, 24, 33, 41, 49]
    for i, i_prev in zip([49, 41, 33, 24, 16, 8, 0], [41, 33, 24, 16, 8, 0, None], strict=True):
        a, a_prev = chain.abar[i], chain.abar[i_prev] if i_prev is not None else torch.ones((), dtype=torch.float64)
        eps = (1 - a).sqrt() * x / (a * s2 + 1 - a)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        sigma = eta * ((1 - a / a_prev) * (1 - a_prev) / (1 - a)).sqrt()
        x = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).sqrt() * eps
        if eta > 0 and i_prev is not None:
            x = x + sigma * torch.randn(3, 1, generator=generator)
    ours = ddim(exact_x0(chain, s2), start, chain, 7, eta, generator=torch.Generator().manual_seed(2), clip=False)
    assert_close(ours, x)


@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_all_steps_and_all_noise_is_the_ancestral_sampler(clip, generator):
    """The two samplers yield equal x_{t-1} and x0_hat at every step."""
    chain = make_chain(linear_betas(40))
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    model = exact_x0(chain, 0.5)
    a = list(ancestral_steps(model, x, chain, "posterior", generator=torch.Generator().manual_seed(7), clip=clip))
    b = list(ddim_steps(model, x, chain, 40, 1.0, generator=torch.Generator().manual_seed(7), clip=clip))
    assert [i for i, *_ in a] == [i for i, *_ in b] == list(range(39, -1, -1))
    for (_, *ours), (_, *theirs) in zip(a, b, strict=True):
        assert_close(ours, theirs)


def test_clipping_keeps_samples_in_range(generator):
    chain = make_chain(linear_betas(30))
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    wide = exact_x0(chain, 100.0)
    rounding = 1 + 1e-12
    assert ancestral(chain, wide, x, generator=generator).abs().max() <= rounding
    assert ddim(wide, x, chain, 30).abs().max() <= rounding
    assert ddim(wide, x, chain, 30, clip=False).abs().max() > 2


def test_a_corrector_runs_at_the_level_just_reached(generator):
    chain, seen = make_chain(linear_betas(30)), []

    def correct(x, i):
        seen.append(i)
        return x + 1

    ancestral(chain, exact_x0(chain, 1.0), torch.zeros(2, 1), generator=generator, correct=correct)
    assert seen == list(range(28, -1, -1))
    seen.clear()
    ddim(exact_x0(chain, 1.0), torch.zeros(2, 1), chain, 4, correct=correct)
    assert seen == [19, 10, 0]


@pytest.mark.parametrize("s2", [0.25, 4.0])
def test_encoding_undoes_the_deterministic_sampler(s2):
    """The encoder and the sampler follow the flow in opposite directions. With 1,000 steps their errors are small."""
    chain = make_chain(cosine_betas(1000))
    x = torch.tensor([[0.4], [-0.7]], dtype=torch.float64)
    noise = ddim_encode(exact_x0(chain, s2), x, chain, 1000)
    assert_close(noise, x / s2**0.5, rtol=0.03, atol=0)
    assert_close(ddim(exact_x0(chain, s2), noise, chain, 1000, clip=False), x, rtol=0.01, atol=0)


def test_frames_are_spread_evenly_and_end_at_the_end(generator):
    chain = make_chain(linear_betas(30))
    steps = lambda: ancestral_steps(exact_x0(chain, 1.0), torch.ones(2, 1), chain, clip=False)  # noqa: E731
    torch.manual_seed(0)
    every = list(steps())
    torch.manual_seed(0)
    xt, x0 = frames(steps(), 30, 4)
    assert xt.shape == x0.shape == (2, 4, 1)
    for k, step in enumerate([0, 10, 19, 29]):
        assert torch.equal(xt[:, k], every[step][1]) and torch.equal(x0[:, k], every[step][2])


def test_the_arc_keeps_the_length_and_the_angle(generator):
    a, b = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    a, b = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    arc = slerp(a, b, torch.linspace(0, 1, 5))
    assert_close(arc[:, 0], a)
    assert_close(arc[:, -1], b)
    assert_close(arc.norm(dim=2), torch.ones(5, 5, dtype=torch.float64))
    angles = torch.acos((arc[:, 1:] * arc[:, :-1]).sum(2))
    assert_close(angles, (torch.acos((a * b).sum(1)) / 4)[:, None].expand(5, 4))
    assert_close(slerp(a, a, torch.tensor([0.5]))[:, 0], a)


@pytest.mark.equation("ddpm", "L_simple")
@pytest.mark.equation("ddpm", "L_v")
@pytest.mark.parametrize("predict", ["eps", "v"])
def test_the_exact_predictor_reaches_the_least_loss(predict, generator):
    """For N(0, s2) data, the minimum of the loss at step t is the variance of the target given x_t.

    For eps it is abar s2 / (abar s2 + 1 - abar). For v it is s2 / (abar s2 + 1 - abar).
    """
    s2, T, n = 0.5, 100, 400_000
    chain = make_chain(linear_betas(T))
    x0 = s2**0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    t = torch.randint(T, (n,), generator=generator)
    eps = torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def model(xt, t):
        x0 = exact_x0(chain, s2)(xt, t)
        eps = predicted_eps(x0, xt, t, chain)
        a = chain.abar[t][:, None]
        return eps if predict == "eps" else a.sqrt() * eps - (1 - a).sqrt() * x0

    loss = simple_loss(x0, t, eps, chain, predict, model)
    least = ((chain.abar if predict == "eps" else 1) * s2 / (chain.abar * s2 + 1 - chain.abar)).mean()
    error = loss.std() / n**0.5
    assert 4.3 * error < 0.02 * least  # false alarms once in 60,000 seeds
    assert abs(loss.mean() - least) < 4.3 * error


def test_stratified_steps_are_one_in_each_stratum_and_uniform_each(generator):
    t = stratified_steps(torch.rand(1, generator=generator).expand(50), 1000)
    assert sorted(t.div(20, rounding_mode="floor").tolist()) == list(range(50))
    # Over many batches, the fourth step of a batch is uniform. Its counts are equal within 4.5 standard errors.
    u = torch.rand(2000, generator=generator)
    counts = torch.stack([stratified_steps(number.expand(5), 10)[3] for number in u]).bincount(minlength=10)
    assert (counts - 200).abs().max() < 4.5 * (200 * 0.9) ** 0.5
    assert stratified_steps(torch.full((4,), 1 - 1e-9, dtype=torch.float64), 7).max() == 6


def test_importance_is_by_the_root_of_the_mean_square():
    history = torch.tensor([[1.0, 1.0], [3.0, 4.0], [0.0, 2.0]])
    assert_close(importance(history, torch.tensor([2, 1, 2])), torch.full((3,), 1 / 3, dtype=torch.float64))
    root = torch.tensor([1.0, 12.5**0.5, 2**0.5], dtype=torch.float64)
    p = importance(history, torch.tensor([2, 3, 2]))
    assert_close(p, 0.999 * root / root.sum() + 0.001 / 3)
    assert_close(p.sum().item(), 1.0)


def test_the_last_loss_of_each_step_is_appended(generator):
    """A loop over the examples of random batches gives the same history. Many steps occur several times in a batch."""
    history, count = torch.zeros(7, 3), torch.zeros(7, dtype=torch.long)
    expected, counts = history.clone(), [0] * 7
    for _ in range(10):
        t, losses = torch.randint(7, (6,), generator=generator), torch.rand(6, generator=generator)
        append_losses(history, count, t, losses)
        for step, loss in dict(zip(t.tolist(), losses, strict=True)).items():  # a later loss replaces an earlier one
            expected[step] = torch.cat([expected[step, 1:], loss[None]])
            counts[step] += 1
        assert torch.equal(history, expected) and count.tolist() == counts


@pytest.mark.parametrize(
    ("num_steps", "eta", "message"),
    [
        (31, 0, "between 1 and the model's 30 steps, got 31"),
        (True, 0, "between 1 and the model's 30 steps, got True"),
        (10, 2, "eta must be a number between 0 and 1, got 2"),
    ],
)
def test_bad_steps_and_noise_are_named(num_steps, eta, message):
    chain = make_chain(linear_betas(30))
    with pytest.raises(ValueError, match=message):
        next(ddim_steps(lambda x, t: x, torch.zeros(1, 1), chain, num_steps, eta))
