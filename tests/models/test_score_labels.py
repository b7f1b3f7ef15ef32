"""Tests of the class-conditional score model: the exact score of two Gaussian classes, guidance, and labels.

The data are points. Class 0 is N(MEANS[0], 0.09 I), and class 1 is N(MEANS[1], 0.09 I). Both classes have probability
1/2. With noise of standard deviation sigma, all variances grow by sigma^2.
"""

import copy
import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from zoo.checks.errors import UserError
from zoo.functional.guidance import draw_labels
from zoo.score import Score

F64 = torch.float64
MEANS = torch.tensor([[1.0, -0.5], [-1.5, 0.5]], dtype=F64)
VARIANCE = 0.09
NO_LABEL = 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exact_score(x, sigma, y):
    """Return the score of class ``y``, or the score of the mixture where ``y`` is NO_LABEL, (B, 2)."""
    each = (MEANS - x[:, None]) / (VARIANCE + sigma**2)[:, None, None]  # (B, 2 classes, 2)
    log_density = -(x[:, None] - MEANS).square().sum(2) / (2 * (VARIANCE + sigma**2))[:, None]
    mixture = (log_density.softmax(1)[..., None] * each).sum(1)
    return torch.where((y == NO_LABEL)[:, None], mixture, each[torch.arange(len(x)), y % 2])


class ExactNetwork(nn.Module):
    """The network F of a Score model whose score is :func:`exact_score`."""

    def __init__(self, model):
        super().__init__()
        self.float64 = nn.Parameter(torch.zeros((), dtype=F64))  # the precision of the model's data
        self.low, self.high = math.log(model.hparams.sigma_min), math.log(model.hparams.sigma_max)

    def forward(self, x, t, y):
        sigma = (t / 1000 * (self.high - self.low) + self.low).exp()
        scale = (1 + sigma**2).sqrt()[:, None]
        return (exact_score(x * scale, sigma, y) + x / scale) * sigma[:, None] * scale


@pytest.fixture
def exact():
    model = Score(shape=[2], hidden=[4], num_sigmas=8, sigma_max=4.0, num_classes=2).double()
    model.sigmas = model.sigmas.double()
    model.net = ExactNetwork(model)
    return model


@pytest.fixture(params=["points", "images"])
def random(request):
    """Return a conditional model with random weights. A new network would output zero."""
    torch.manual_seed(0)
    kind = {"shape": [2], "hidden": [8]} if request.param == "points" else {"shape": [3, 6, 7], "widths": [16]}
    model = Score(num_sigmas=3, num_classes=3, label_dropout=0.3, **kind)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def test_the_least_loss_of_two_gaussian_classes_is_exact(exact):
    """The least loss is w (D / sigma^2 - D / (0.09 + sigma^2)) / 2 for kept labels. Changed scores have larger losses.

    The loss is quadratic in the data and the noise. The mean over the nodes +-2 in each of four directions is the
    expectation of a quadratic function.
    """
    nodes = 2 * torch.cat([torch.eye(4, dtype=F64), -torch.eye(4, dtype=F64)])
    y = torch.tensor([0, 1]).repeat_interleave(8)
    x = MEANS[y] + VARIANCE**0.5 * nodes[:, :2].repeat(2, 1)
    worse = copy.deepcopy(exact)
    worse.net.forward = lambda *args: exact.net(*args) + 0.01
    for level, sigma in enumerate(exact.sigmas.tolist()):
        noise = {"level": torch.full((16,), level), "eps": nodes[:, 2:].repeat(2, 1), "u": torch.full((16,), 0.99)}
        least = sigma**2 * (1 + sigma**2) * (1 / sigma**2 - 1 / (VARIANCE + sigma**2)) / 2
        found = exact.losses([x, y], noise).mean()
        assert_close(found.item(), least, rtol=1e-9, atol=0)
        assert worse.losses([x, y], noise).mean() > found + 1e-5
        assert exact.losses([x, 1 - y], noise).mean() > found + 0.01 / (1 + sigma**2)  # with the labels exchanged


def test_a_dropped_label_trains_the_score_of_all_data(exact):
    """Labels with u below label_dropout are dropped. Their losses are those of the mixture's score."""
    x, y = torch.randn(6, 2, generator=seeded(), dtype=F64), torch.tensor([0, 1, 0, 1, 0, 1])
    noise = exact.noise([x, y], generator=seeded())
    noise["u"] = torch.tensor([0.05, 0.05, 0.0999, 0.1, 0.5, 0.9])
    sigma = exact.sigmas[noise["level"]]
    noisy = x + sigma[:, None] * noise["eps"]
    seen = torch.tensor([NO_LABEL, NO_LABEL, NO_LABEL, 1, 0, 1])
    error = exact_score(noisy, sigma, seen) + noise["eps"] / sigma[:, None]
    assert_close(exact.losses([x, y], noise), sigma**2 * (1 + sigma**2) * error.square().sum(1) / 4)


def test_guidance_is_exact(exact):
    """The guided score is (1 + w) s(x | y) - w s(x)."""
    x, sigma = torch.randn(5, 2, generator=seeded(), dtype=F64), torch.linspace(0.1, 3, 5, dtype=F64)
    y = torch.tensor([0, 1, 1, 0, 1])
    with_label, without = exact_score(x, sigma, y), exact_score(x, sigma, torch.full((5,), NO_LABEL))
    assert_close(exact(x, sigma, y), with_label)
    assert_close(exact(x, sigma), without)
    assert_close(exact(x, sigma, torch.full((5,), NO_LABEL)), without)
    assert_close(exact(x, sigma, y, guidance=1.5), 2.5 * with_label - 1.5 * without)


def test_samples_are_of_their_class_and_guidance_moves_them_away_from_the_other(exact):
    """Samples of each class have its mean, within 4.5 standard errors. One in 37,000 seeds fails for the four means.

    The standard deviation of samples is at most 0.4. Guidance moves the mean along the line between the classes.
    """
    y = torch.tensor([0, 1]).repeat(300)
    kwargs = {"steps": 30, "denoise": False}
    x = exact.sample(600, y=y, generator=seeded(), **kwargs)
    for label in (0, 1):
        assert ((x[y == label].mean(0) - MEANS[label]).abs() < 4.5 * 0.4 / 300**0.5).all()
    guided = exact.sample(600, y=y, generator=seeded(), guidance=3.0, **kwargs)
    away = MEANS[0] - MEANS[1]
    assert ((guided - x)[y == 0] @ away).mean() > 0.1 and ((guided - x)[y == 1] @ away).mean() < -0.1


def test_labels_of_samples_are_a_number_a_list_drawn_or_dropped(random):
    draw = lambda **kw: random.sample(4, steps=1, generator=seeded(), **kw)  # noqa: E731
    assert torch.equal(draw(y=1), draw(y=[1, 1, 1, 1])) and torch.equal(draw(y=1), draw(y=torch.ones(4).long()))
    assert not torch.equal(draw(y=1), draw(y=2)) and not torch.equal(draw(y=1), draw(y="dropped"))
    assert torch.equal(draw(y=1, guidance=0.0), draw(y=1)) and not torch.equal(draw(y=1, guidance=2.0), draw(y=1))
    mixed = draw(y=[0, 1, 2, 1])
    assert torch.allclose(mixed[1::2], draw(y=1)[1::2], atol=1e-5)  # the noise does not depend on the labels
    drawn = [label for label in range(3) if torch.allclose(draw()[0], draw(y=label)[0], atol=1e-5)]
    assert len(drawn) == 1
    many = draw_labels(None, 100, 3, 0.0, generator=seeded(), device=torch.device("cpu"))
    assert many.unique().tolist() == [0, 1, 2]
    with pytest.warns(DeprecationWarning, match="labels= of Score.sample is y= now"):
        assert torch.equal(draw(labels=1), draw(y=1))
    assert random.rows() == ("y", [0, 1, 2]) and Score(shape=[2]).rows() is None
    states, _ = random.chains(2, steps=1, y=[0, 2], guidance=1.0, generator=seeded())
    assert len(states) == 3 and states[0].shape == (2, *random.hparams.shape)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"y": 3}, "y must be labels, integers from 0 to 2, got 3"),
        ({"y": [0]}, "y must be one label for each of 2 images, or one for all; got 1"),
        ({"y": "dropped", "guidance": 1.0}, "guidance=1.0 needs labels, and y=dropped leaves them out"),
        ({"guidance": -1}, "guidance must be a number of at least 0, got -1"),
    ],
)
def test_wrong_labels_are_named(random, conditions, message):
    with pytest.raises(UserError, match=message):
        random.sample(2, steps=1, **conditions)


def test_a_model_that_always_saw_labels_asks_for_them():
    model = Score(shape=[2], hidden=[4], num_sigmas=3, num_classes=2, label_dropout=0.0)
    assert model.sample(2, steps=1).shape == (2, 2)  # labels are drawn
    assert Score(shape=[2], hidden=[4], num_sigmas=1, num_classes=2, label_dropout=0.0).sample(2, steps=1).shape == (
        2,
        2,
    )
    for call in (
        lambda: model(torch.zeros(1, 2), torch.ones(1)),
        lambda: model.sample(2, steps=1, y="dropped"),
        lambda: model.sample(2, steps=1, y=0, guidance=1.0),
    ):
        with pytest.raises(UserError, match="never trained without labels"):
            call()
    with pytest.raises(UserError, match="trained without labels .*: leave out y"):
        Score(shape=[2], hidden=[4])(torch.zeros(1, 2), torch.ones(1), torch.zeros(1).long())


@pytest.mark.filterwarnings("ignore")  # Lightning advises to use more workers and a logger
def test_data_without_labels_end_a_conditional_run_at_its_first_batch(tmp_path):
    model = Score(shape=[2], hidden=[4], num_classes=2)
    trainer = L.Trainer(max_steps=2, barebones=True, accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(UserError, match=r"has only x, and Score needs labels: give a batch \(x, y\)"):
        trainer.fit(model, DataLoader(torch.zeros(4, 2), batch_size=2))


def test_gradient_estimators_of_a_conditional_model_use_the_labels(random):
    """The estimator's gradient is the gradient of the loss with the same noise, and depends on the labels."""
    shape = tuple(random.hparams.shape)
    x, y = torch.rand(4, *shape, generator=seeded()), torch.tensor([0, 1, 2, 0])
    (estimator,) = random.gradient_estimators().values()
    noise = estimator.noise([x, y], generator=seeded())
    noise["u"] = torch.full((4,), 0.9)
    losses = [estimator.surrogate(estimator.params, [x, labels], noise) for labels in (y, 2 - y)]
    assert torch.equal(losses[0], random.losses([x, y], noise).mean()) and losses[0] != losses[1]
