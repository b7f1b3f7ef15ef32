"""Tests of the DDPM module: network inputs, sampling, bound and gradient estimators.

test_diffusion.py and test_diffusion_bound.py in tests/functional test the equations.
"""

import math
from functools import partial

import lightning as L
import pytest
import torch
from helpers import TINY, assert_same, checkpoint, run
from torch.testing import assert_close

from zoo.ddpm import DDPM
from zoo.functional import diffusion, diffusion_bound, diffusion_samplers
from zoo.functional.diffusion import cosine_betas, linear_betas, make_chain, posterior_mean, q_sample
from zoo.functional.diffusion_bound import prior_kl
from zoo.functional.langevin import langevin_sample
from zoo.nets.unet import UNet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 10, "schedule": "linear"}, r"with 10 steps beta_6 is 1\."),
        ({"steps": 1}, "steps must be an integer of at least 2, got 1"),
        ({"steps": "100"}, "integer of at least 2, got '100'"),
        ({"schedule": "sqrt"}, "schedule must be linear or cosine, got 'sqrt'"),
        ({"predict": "noise"}, "predict must be eps, x0 or v, got 'noise'"),
        ({"variance": "learned"}, "variance must be posterior or beta, got 'learned'"),
        ({"timesteps": "low"}, "timesteps must be uniform, stratified or importance, got 'low'"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"label_dropout": 1}, "label_dropout must be below 1, got 1"),
        ({"widths": 32}, "widths must be a list of integers of at least 1, such as .*, got 32"),
        ({"widths": None}, "widths must be a list of integers"),
        ({"widths": ["a", 8]}, "widths must be a list of integers"),
        ({"widths": [8.0, 16]}, r"widths must be a list of integers .*, got \[8.0, 16\]"),
        ({"blocks": True}, "blocks must be an integer of at least 1, got True"),
        ({"blocks": 1.5}, "blocks must be an integer of at least 1, got 1.5"),
        ({"patch": "x"}, "patch must be an integer of at least 1, got 'x'"),
        ({"widths": [12]}, r"multiples of 8, one per level, got \[12\]"),
        ({"widths": [8] * 6}, "patch=2 and 6 widths need a side of more than 32 pixels, the images have 28 x 28"),
        ({"shape": [3, 4, 4], "patch": 8}, "patch=8 and 2 widths need a side of more than 8 pixels"),
        ({"shape": [2]}, r"shape must be \[C, H, W\] for images, got \[2\]"),
        ({"shape": [0, 28, 28]}, r"shape must be a list of integers of at least 1, .*, got \[0, 28, 28\]"),
        ({"attention": [2]}, r"attention must be a list of different levels from 0 to 1, .*, got \[2\]"),
        ({"attention": [0, 0]}, r"attention must be a list of different levels .*, got \[0, 0\]"),
        ({"attention": 16}, "attention must be a list of different levels .*, got 16"),
        ({"dropout": 1}, "dropout must be below 1, got 1"),
        ({"lr_decay": 0}, "lr_decay must be true or false, got 0"),
        ({"lr": 0}, "lr must be a positive number, got 0"),
        ({"warmup": -1}, "warmup must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDPM(**arguments)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"num_steps": 51}, "between 1 and the model's 50 steps, got 51"),
        ({"eta": -1}, "eta must be a number between 0 and 1, got -1"),
        ({"y": 3}, "trained without labels"),
        ({"guidance": 1.0}, "trained without labels .* no guidance"),
        ({"guidance": -1}, "guidance must be a number of at least 0, got -1"),
        ({"num_steps": None, "eta": 0.5}, "eta must be 0 for the whole chain .*, got 0.5"),
        ({"frames": 1}, "frames must be an integer of at least 2, got 1"),
        ({"frames": 9, "num_steps": 5}, "at most 5, the number of sampling steps, got 9"),
        ({"show": "eps"}, "show must be xt or x0, got 'eps'"),
        ({"show": "x0"}, "show=x0 needs a number of frames"),
        ({"corrector_steps": 2, "corrector_snr": 1e20}, r"NaN or infinite with guidance=0.0, corrector_snr=1e\+20"),
        ({"corrector_steps": -1}, "corrector_steps must be an integer of at least 0, got -1"),
        ({"corrector_snr": 0}, "corrector_snr must be a positive number, got 0"),
    ],
)
def test_bad_conditions_are_named(small, conditions, message):
    with pytest.raises(ValueError, match=message):
        small.sample(1, **conditions)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return DDPM(steps=50, widths=[8, 16], predict="eps", schedule="linear")


@pytest.fixture
def labelled():
    """Return a model with labels and random weights. A new network would output zero."""
    torch.manual_seed(0)
    model = DDPM(steps=50, widths=[8, 16], num_classes=3, label_dropout=0.3)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def grey(n, generator):
    return torch.randint(256, (n, 1, 28, 28), generator=generator) / 255


def test_the_first_loss_is_that_of_predicting_zero(small, generator):
    """A new network predicts zero, so the expected loss is E[eps^2] = 1. The test fails once in 60,000 seeds."""
    batch = [torch.rand(64, 1, 28, 28, generator=generator), torch.zeros(64)]
    loss = small.loss(batch, generator=generator)["loss"]
    assert abs(loss - 1) < 4.3 * (2 / (64 * 784)) ** 0.5


@pytest.mark.equation("ddpm", "q(x_t | x_0)")
def test_images_enter_in_minus_one_to_one(small):
    """With eps = 0, the network's input at t = 0 is sqrt(abar_0) (2 x - 1)."""
    shown = []
    small.net.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    x, eps = torch.rand(2, 1, 28, 28), torch.zeros(2, 1, 28, 28)
    small.losses([x, None], {"t": torch.zeros(2, dtype=torch.long), "eps": eps})
    assert_close(shown[0], small.abar[0].sqrt() * (2 * x - 1))


def test_the_modules_schedule_is_linear(small):
    betas = linear_betas(50)
    assert_close(small.betas.double(), betas, rtol=1e-6, atol=0)
    assert_close(small.abar.double(), (1 - betas).cumprod(0), rtol=1e-6, atol=0)
    assert_close(DDPM(steps=50).abar[10], make_chain(cosine_betas(50)).abar[10].float())


def test_every_step_is_drawn_and_each_example_has_its_own(small, generator):
    """Among 20,000 draws, each of 50 steps occurs 400 times within 4.5 standard errors (fails once in 3,000 seeds)."""
    t = small.noise([torch.zeros(20_000, 1, 1, 1)], generator=generator)["t"]
    assert t.min() == 0
    assert (t.bincount(minlength=50) - 400).abs().max() < 4.5 * (400 * 49 / 50) ** 0.5
    assert len(t.bincount()) == 50


def test_a_network_that_knows_the_image_samples_it(small):
    """The network predicts the noise for x0 = -0.5 in all pixels. Both samplers return its grey value, 0.25."""
    small.forward = lambda x, t, y: (x - small.abar[t[0]].sqrt() * -0.5) / (1 - small.abar[t[0]]).sqrt()
    for kw in ({"num_steps": 5}, {"num_steps": None}):
        images = small.sample(2, generator=torch.Generator().manual_seed(0), **kw)
        assert_close(images, torch.full((2, 1, 28, 28), 0.25), rtol=1e-3, atol=0)


def test_fifty_steps_are_the_default_and_fewer_where_there_are_fewer():
    model = DDPM(steps=20, widths=[8])
    a, b = (model.sample(1, generator=torch.Generator().manual_seed(0), **kw) for kw in ({}, {"num_steps": 20}))
    assert torch.equal(a, b)
    assert model.decode(model.encode(a)).shape == a.shape


def test_samples_are_images_and_depend_on_the_seed_alone(small):
    draw = lambda seed, **kw: small.sample(3, generator=torch.Generator().manual_seed(seed), **kw)  # noqa: E731
    for kw in ({"num_steps": 5}, {"num_steps": 5, "eta": 1.0}, {"num_steps": None}):
        a, b, c = draw(0, **kw), draw(0, **kw), draw(1, **kw)
        assert a.shape == (3, 1, 28, 28) and a.min() >= 0 and a.max() <= 1
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_schedules_stay_out_of_checkpoints(small):
    assert all(name.startswith("net.") for name in small.state_dict())


def test_every_parameter_learns(small, generator):
    """After two optimiser steps, every parameter has a finite gradient that is not zero."""
    batch = [torch.rand(16, 1, 28, 28, generator=generator), torch.zeros(16)]
    optimiser = torch.optim.Adam(small.parameters(), 1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        small.loss(batch, generator=generator)["loss"].backward()
        optimiser.step()
    for name, p in small.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_one_unet_takes_images_of_any_sides():
    net = UNet(1, [8, 8], blocks=1)
    for sides in ((32, 28), (30, 30), (5, 37)):
        assert net(torch.zeros(2, 1, *sides), torch.tensor([0, 5])).shape == (2, 1, *sides)


def test_every_way_to_draw_steps(generator):
    """Without a loss history, all three ways draw uniformly.

    With a history, ``importance`` draws step t with probability p_t. The loss of this step has the weight 1 / (T p_t).
    """
    model = DDPM(steps=50, widths=[8], timesteps="importance")
    batch = [torch.zeros(40_000, 1, 1, 1)]
    for timesteps in ("uniform", "stratified", "importance"):  # without a history, importance is uniform
        noise = model.noise(batch, generator=generator, timesteps=timesteps)
        assert (noise["t"].bincount(minlength=50) - 800).abs().max() < 4.5 * (800 * 49 / 50) ** 0.5
        assert_close(noise["weight"], torch.ones(40_000))
    model.loss_history.copy_(torch.arange(1.0, 51)[:, None].expand(50, 10))
    model.loss_count.fill_(10)
    noise = model.noise(batch, generator=generator)
    p = 0.999 * torch.arange(1.0, 51) / 1275 + 0.001 / 50
    z = (noise["t"].bincount(minlength=50) - 40_000 * p) / (40_000 * p * (1 - p)).sqrt()
    assert z.abs().max() < 4.5  # for all fifty counts together, this fails once in 3,000 seeds
    assert_close(noise["weight"], 1 / (50 * p[noise["t"]]))
    with pytest.raises(ValueError, match="needs a history of losses, and timesteps=uniform keeps none"):
        DDPM(steps=50, widths=[8]).noise(batch, generator=generator, timesteps="importance")


def test_the_last_ten_losses_of_each_step_are_remembered():
    model = DDPM(steps=5, widths=[8], timesteps="importance")
    for k in range(12):
        losses = torch.tensor([float(k), 10.0 * k])
        diffusion.append_losses(model.loss_history, model.loss_count, torch.tensor([1, 3]), losses)
    assert model.loss_history[1].tolist() == list(range(2, 12))
    assert model.loss_history[3].tolist() == [10.0 * k for k in range(2, 12)]
    assert model.loss_history[[0, 2, 4]].sum() == 0 and model.loss_count.tolist() == [0, 12, 0, 12, 0]
    assert "loss_history" in model.state_dict()


def test_a_step_is_weighted_and_the_history_is_not(generator):
    """The training loss has the weights 1 / (T p_t), with p_t not uniform. The history stores plain losses."""
    torch.manual_seed(0)
    model = DDPM(steps=4, widths=[8], timesteps="importance")
    torch.nn.init.normal_(model.net.out[2].weight, std=0.1, generator=generator)
    model.loss_history.copy_(torch.arange(1.0, 5)[:, None].expand(4, 10))
    model.loss_count.fill_(10)
    batch = [torch.rand(6, 1, 28, 28, generator=generator), torch.zeros(6)]
    noise = model.noise(batch, generator=generator)
    losses = model.losses(batch, noise).detach()
    assert (noise["weight"] - 1).abs().min() > 0.1
    model.noise, model.log = lambda batch: noise, lambda *args, **kwargs: None
    model.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert_close(model.training_step(batch, 0).detach(), (noise["weight"] * losses).mean())
    for t in noise["t"].unique():
        assert_close(model.loss_history[t, -1], losses[noise["t"] == t][-1])  # the newest loss of step t


def test_what_the_estimators_of_the_training_loss_are(generator):
    """Each estimator returns the weighted mean of the losses. Tests above check the weights and the drawn steps."""
    model = DDPM(steps=20, widths=[8], timesteps="importance")
    torch.nn.init.normal_(model.net.out[2].weight, std=0.1, generator=generator)
    model.loss_history.uniform_(generator=generator)
    model.loss_count.fill_(10)
    batch = [torch.rand(6, 1, 28, 28, generator=generator), torch.zeros(6)]
    estimators = model.gradient_estimators()
    bounds = [f"bound_{form}{chain}" for chain in ("", "_chain") for form in ("single", "joint")]
    assert list(estimators) == ["uniform", "stratified", "importance", *bounds]
    assert list(DDPM(steps=101, widths=[8]).gradient_estimators()) == ["uniform", "stratified", *bounds[:2]]
    for name in ("uniform", "stratified", "importance"):
        noise = estimators[name].noise(batch, generator)
        assert torch.equal(noise["weight"], torch.ones(6)) == (name != "importance")
        value = estimators[name].surrogate(dict(model.named_parameters()), batch, noise)
        assert_close(value, (noise["weight"] * model.losses(batch, noise)).mean())
    for name in bounds:
        value = estimators[name].surrogate(
            dict(model.named_parameters()), batch, estimators[name].noise(batch, generator)
        )
        assert value.isfinite() and value > 0


@pytest.mark.parametrize("num_classes", [None, 3])
def test_the_estimators_of_the_bound_are_its_forms_per_dimension(num_classes, generator):
    """Each estimator returns the mean over the batch of one form of the bound, per dimension.

    With labels, the prediction x0_hat depends on the labels.
    """
    torch.manual_seed(0)
    model = DDPM(steps=5, widths=[8], num_classes=num_classes)
    torch.nn.init.normal_(model.net.out[2].weight, std=0.1, generator=generator)
    x, y = torch.randint(256, (3, 1, 28, 28), generator=generator) / 255, torch.tensor([0, 1, 2])
    settings = (partial(model.x0_hat, y=None if num_classes is None else y), model.chain, "posterior", True)
    for form in ("single_draw", "joint_draw", "single_chain", "joint_chain"):
        estimator = model.gradient_estimators()[f"bound_{form.removesuffix('_draw')}"]
        noise = estimator.noise([x, y], generator)
        step = [noise["t"]] if "t" in noise else []
        value = estimator.surrogate(dict(model.named_parameters()), [x, y], noise)
        expected = getattr(diffusion_bound, form)(2 * x - 1, *step, noise["eps"], *settings)
        assert_close(value, expected.mean() / 784)


def test_validation_spreads_the_steps_evenly(generator):
    """Ten images are evaluated at ten different steps. The noise is the same in every epoch."""
    model = DDPM(steps=10, widths=[8])
    model.log = lambda *args, **kwargs: None
    batch = [torch.rand(10, 1, 28, 28, generator=generator), torch.zeros(10)]
    first, again = (model.validation_step(batch, 3) for _ in range(2))
    assert first["step"].sort().values.tolist() == list(range(10))
    assert torch.equal(first["step"], again["step"]) and torch.equal(first["losses"], again["losses"])


def test_importance_sampling_trains(tmp_path):
    """A run of three epochs, with averaged weights, fills the loss history of every step."""
    few = ["model.steps=10", "model.timesteps=importance", "callbacks.samples.conditions.num_steps=2"]
    run(
        tmp_path,
        *TINY["ddpm"],
        *few,
        "trainer.max_epochs=3",
        "trainer.limit_train_batches=4",
        "test=false",
        "callbacks.estimator_variance.compare=[uniform,importance]",
        "callbacks.estimator_variance.draws=2",
        "callbacks.estimator_variance.batch_size=8",
        "callbacks.estimator_variance.every_n_steps=11",
    )
    state = checkpoint(tmp_path)["state_dict"]
    assert state["loss_count"].min() >= 10 and (state["loss_history"] > 0).all()


def test_losses_do_not_depend_on_who_else_is_in_the_batch(labelled, generator):
    """Each example has its own random numbers, so a batch can be split over processes."""
    batch = [torch.rand(6, 1, 28, 28, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])]
    noise = labelled.noise(batch, generator=generator)
    whole = labelled.losses(batch, noise)
    half = labelled.losses([t[3:] for t in batch], {k: v[3:] for k, v in noise.items()})
    assert_close(whole[3:], half, rtol=1e-5, atol=1e-6)


def test_the_rate_rises_over_the_warm_up_and_falls_to_nothing():
    """The test checks the first step, the last step of the warm-up, the middle and the end of a run of 20 steps."""
    from zoo.score import Score

    for model in (DDPM(steps=4, widths=[8], lr=0.1, warmup=4), Score(widths=[8], num_sigmas=2, lr=0.1, warmup=4)):
        trainer = L.Trainer(max_steps=20, logger=False, enable_checkpointing=False, accelerator="cpu")
        model.trainer = trainer
        schedule = model.configure_optimizers()["lr_scheduler"]["scheduler"]
        rate = schedule.lr_lambdas[0]
        half = lambda step: (1 + math.cos(math.pi * step / 20)) / 2  # noqa: E731
        expected = [half(0) / 4, half(3), half(10), 0.0]
        assert_close([rate(step) for step in (0, 3, 10, 20)], expected)
        assert schedule.optimizer.param_groups[0]["initial_lr"] == 0.1


def test_labels_reach_the_network_and_are_dropped_as_often_as_said(labelled, generator):
    seen = []
    labelled.net.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    n = 2000
    batch = [torch.zeros(n, 1, 28, 28), torch.full((n,), 2)]
    noise = labelled.noise([torch.zeros(n, 1, 1, 1)], generator=generator) | {"eps": torch.zeros(n, 1, 28, 28)}
    labelled.losses(batch, noise)
    dropped = (seen[0] == 3).double().mean()
    assert set(seen[0].tolist()) == {2, 3}
    assert abs(dropped - 0.3) < 4.5 * (0.21 / n) ** 0.5
    with pytest.raises(ValueError, match="y must be labels, integers from 0 to 2, got 7"):
        labelled.losses([batch[0], torch.full((n,), 7)], noise)
    labelled(torch.zeros(2, 1, 28, 28), torch.zeros(2, dtype=torch.long))
    assert seen[1].tolist() == [3, 3]


def test_a_model_that_always_saw_labels_needs_them():
    model = DDPM(steps=20, widths=[8], num_classes=3, label_dropout=0)
    for conditions in ({"y": "dropped"}, {"y": 1, "guidance": 1.0}):
        with pytest.raises(ValueError, match="never trained without labels"):
            model.sample(1, **conditions)
    assert model.sample(1, y=1).shape == (1, 1, 28, 28)


def test_guidance_is_its_equation(labelled, generator):
    """eps is (1 + w) eps(x, y) - w eps(x), also for a network that predicts v. w = 0 is the conditional model."""
    x, t = torch.randn(4, 1, 28, 28, generator=generator), torch.tensor([0, 10, 30, 45])
    y = torch.tensor([0, 1, 2, 0])
    eps = lambda y, w=0.0: -labelled.score(x, t, y, w) * labelled.one_minus_abar[t].view(-1, 1, 1, 1).sqrt()  # noqa: E731
    assert_close(eps(y, 2.0), 3 * eps(y) - 2 * eps(None), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(eps(y), eps(None))


def test_samples_with_labels_come_in_rows(labelled):
    assert labelled.rows() == ("y", [0, 1, 2])
    draw = partial(labelled.sample, 3, num_steps=3)
    one, two, free = (draw(generator=torch.Generator().manual_seed(0), y=y) for y in ([0, 1, 2], [0, 2, 2], "dropped"))
    assert torch.equal(one[[0, 2]], two[[0, 2]]) and not torch.equal(one[1], two[1]) and not torch.equal(one, free)
    with pytest.raises(ValueError, match="integers from 0 to 2, got 3"):
        draw(y=3)
    with pytest.raises(ValueError, match="guidance=2 needs labels, and y=dropped leaves them out"):
        draw(y="dropped", guidance=2)


def test_samples_that_run_off_to_infinity_are_refused(labelled):
    """Without this error, a picture would show NaN as black."""
    with pytest.raises(ValueError, match=r"NaN or infinite with guidance=1e\+300, corrector_snr=0.1"):
        labelled.sample(2, y=1, guidance=1e300, num_steps=4)


def test_without_labels_they_are_drawn_uniformly(labelled):
    """Each sample equals the sample of one label with the same noise. Each label has about 200 of 600 samples."""
    draw = lambda y: labelled.sample(600, generator=torch.Generator().manual_seed(0), num_steps=1, y=y, guidance=1)  # noqa: E731
    under = torch.stack([draw(y) for y in range(3)])
    match = (draw(None) == under).flatten(2).all(2)
    assert torch.equal(match.sum(0), torch.ones(600, dtype=torch.long))
    assert (match.sum(1) - 200).abs().max() < 4.5 * (600 * 2 / 9) ** 0.5  # fails once in 50,000 seeds


@pytest.mark.equation("ddpm", "score")
def test_the_score_of_normal_data(small):
    """With the exact prediction of eps for N(0, I) data, the score is -x, the score of N(0, I)."""
    small.forward = lambda x, t, y=None: small.one_minus_abar[t].view(-1, 1, 1, 1).sqrt() * x
    x = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert_close(small.score(x, torch.tensor([0, 10, 20, 30, 49])), -x, rtol=1e-3, atol=1e-3)
    # Data with added noise N(0, sigma^2 I) are N(0, (1 + sigma^2) I).
    for sigma in small.sigmas[[3, 20, 45]].tolist():
        blurred = small.blurred_score((1 + sigma**2) ** 0.5 * x, torch.full((5,), sigma))
        assert_close(blurred, -x / (1 + sigma**2) ** 0.5, rtol=1e-3, atol=1e-3)


def test_a_noise_level_between_two_steps_is_replaced_by_the_one_with_the_nearest_logarithm(small):
    """The level lies above the geometric mean of two levels and below their arithmetic mean."""
    small.forward = lambda x, t, y=None: small.one_minus_abar[t].view(-1, 1, 1, 1).sqrt() * x
    x = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    lower, upper = small.sigmas[[-2, -1]]
    between = 0.9 * (lower * upper).sqrt() + 0.1 * (lower + upper) / 2
    at_lower, at_between, at_upper = (small.blurred_score(x, s[None]) for s in (lower, between, upper))
    assert torch.equal(at_between, at_upper) and not torch.equal(at_between, at_lower)


def test_a_corrector_is_langevin_at_the_level_reached(small):
    """The last DDIM step has no corrector. With two steps, the corrector runs after the first."""
    torch.nn.init.normal_(small.net.out[2].weight, std=0.1, generator=torch.Generator().manual_seed(1))
    plain = small.sample(2, generator=torch.Generator().manual_seed(0), num_steps=1)
    assert torch.equal(
        plain, small.sample(2, generator=torch.Generator().manual_seed(0), num_steps=1, corrector_steps=3)
    )
    ours = small.sample(
        2, generator=torch.Generator().manual_seed(0), num_steps=2, corrector_steps=3, corrector_snr=0.2
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 28, 28, generator=generator)
    with torch.no_grad():
        last, first = torch.full((2,), 49), torch.zeros(2, dtype=torch.long)
        x0 = small.x0_hat(x, last).clamp(-1, 1)
        eps = (x - small.abar[49].sqrt() * x0) / small.one_minus_abar[49].sqrt()
        x = small.abar[0].sqrt() * x0 + small.one_minus_abar[0].sqrt() * eps
        x = langevin_sample(lambda x: small.score(x, first), x, 3, snr=0.2, generator=generator)
        x0 = small.x0_hat(x, first).clamp(-1, 1)
    assert_close(ours, x0 / 2 + 0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_steps", [10, None])
def test_frames_show_intermediate_states_and_end_in_the_sample(small, num_steps):
    draw = partial(small.sample, 2, num_steps=num_steps)
    end = draw(generator=torch.Generator().manual_seed(0))
    for show in ("xt", "x0"):
        way = draw(generator=torch.Generator().manual_seed(0), frames=4, show=show)
        assert way.shape == (2, 4, 1, 28, 28) and way.min() >= 0 and way.max() <= 1
        assert torch.equal(way[:, -1], end)  # after the last step, x_{t-1} equals x0_hat


def test_images_are_encoded_and_come_back(small, generator):
    """Encoding and decoding return the images, also at both ends of an interpolation.

    The network returns the exact prediction of eps for N(0, I) data.
    """
    small.forward = lambda x, t, y=None: small.one_minus_abar[t].view(-1, 1, 1, 1).sqrt() * x
    x = grey(2, generator)
    noise = small.encode(x)
    assert_close(small.decode(noise), x, rtol=0, atol=0.05)  # fifty steps to encode and fifty to decode
    between = small.interpolate(noise[:1], noise[1:], between=5)
    assert between.shape == (1, 5, 1, 28, 28)
    assert_close(between[0, [0, -1]], x, rtol=0, atol=0.05)
    with pytest.raises(ValueError, match="between must be an integer of at least 2, got 1"):
        small.interpolate(noise[:1], noise[1:], between=1)


@pytest.mark.equation("ddpm", "-log p(x_0)")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_bound_of_a_network_that_knows_the_image(variance, generator):
    """If x0_hat is the image, L_0 and L_T have closed forms. With the posterior variance, L_t is 0 for 0 < t < T."""
    model = DDPM(steps=30, widths=[8], variance=variance)
    x = grey(3, generator)
    model.x0_hat = lambda xt, t, y=None: 2 * x - 1
    terms = model.bound_terms(x, generator=generator)
    assert terms.shape == (31, 3)
    assert_close(terms[-1], prior_kl(2 * x - 1, make_chain(cosine_betas(30)).to(torch.float32)), rtol=1e-3, atol=0)
    sigma = (model.posterior_variance[1] if variance == "posterior" else model.betas[0]).sqrt().item()
    inside = ((x > 0) & (x < 1)).flatten(1).sum(1)
    half = 0.5 * (1 + math.erf(1 / 255 / sigma / 2**0.5))  # mass of an end bin, which is open on one side
    expected = -(inside * math.log(2 * half - 1) + (784 - inside) * math.log(half))
    assert_close(terms[0], expected, rtol=1e-3, atol=0)
    if variance == "posterior":
        assert terms[1:-1].abs().max() < 0.05
    assert_close(model.log_likelihood(x, generator=generator), -terms.sum(0), rtol=1e-3, atol=0.1)


def test_the_bound_is_of_the_chain_that_is_sampled(small, generator):
    """At t = 2, L_t is |m - m'|^2 / (2 sigma_t^2).

    m is the mean of q(x_{t-1} | x_t, x0). m' is the mean of the sampler's step, with x0_hat clipped.
    """
    torch.nn.init.normal_(small.net.out[2].weight, std=0.1, generator=torch.Generator().manual_seed(1))
    x = grey(2, generator)
    terms = small.bound_terms(x, generator=torch.Generator().manual_seed(5))
    noise = torch.Generator().manual_seed(5)
    for _ in range(3):
        eps = torch.randn(2, 1, 28, 28, generator=noise)
    t = torch.full((2,), 2)
    with torch.no_grad():
        xt = q_sample(2 * x - 1, t, eps, small.chain)
        ours, theirs = 2 * x - 1, small.x0_hat(xt, t).clamp(-1, 1)
    gap = posterior_mean(ours, xt, t, small.chain) - posterior_mean(theirs, xt, t, small.chain)
    assert_close(terms[2], gap.square().flatten(1).sum(1) / (2 * small.posterior_variance[2]), rtol=1e-3, atol=1e-2)


def test_earlier_calls_still_work(small):
    batch, seeded = [torch.rand(2, 1, 28, 28), torch.tensor([0, 1])], lambda: torch.Generator().manual_seed(7)
    for name, first in (("noise", batch), ("loss", batch), ("bound_terms", batch[0]), ("log_likelihood", batch[0])):
        with pytest.warns(DeprecationWarning, match=f"give generator= of DDPM.{name} by name"):
            old = getattr(small, name)(first, seeded())
        assert_same(old, getattr(small, name)(first, generator=seeded()))
    labelled = DDPM(steps=30, widths=[8], num_classes=3)
    with pytest.warns(DeprecationWarning, match="labels= of DDPM.sample is y= now"):
        old = labelled.sample(2, labels=1, num_steps=2, generator=seeded())
    assert torch.equal(old, labelled.sample(2, y=1, num_steps=2, generator=seeded()))
    x = torch.randn(2, 3)
    with pytest.warns(DeprecationWarning, match="give generator= of ancestral_steps by name"):
        old = list(diffusion_samplers.ancestral_steps(lambda x, t: x, x, small.chain, "posterior", seeded()))
    new = list(diffusion_samplers.ancestral_steps(lambda x, t: x, x, small.chain, "posterior", generator=seeded()))
    assert_same(old, new)
