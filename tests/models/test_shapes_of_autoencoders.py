"""Tests of VAE, CVAE and VaDE on images of any shape, with each network and each likelihood."""

import logging
import math
import warnings

import lightning as L
import pytest
import torch
from helpers import config, model_of, run
from PIL import Image
from processes import together
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from zoo.callbacks.latents import Latents, manifold, traverse
from zoo.checks.errors import UserError
from zoo.cvae import CVAE
from zoo.functional.likelihoods import LIKELIHOODS
from zoo.nets.layers import ConvDecoder, ConvEncoder
from zoo.nets.sizes import halvings
from zoo.sampling.pictures import save_grid
from zoo.vade import VaDE
from zoo.vae import VAE

SHAPES = [(3, 32, 32), (1, 32, 32), (3, 64, 64), (1, 28, 28), (3, 30, 37)]
MODELS = {
    "vae": lambda **arguments: VAE(latent_dim=3, **arguments),
    "cvae": lambda **arguments: CVAE(latent_dim=3, num_classes=4, **arguments),
    "vade": lambda **arguments: VaDE(latent_dim=3, num_clusters=4, **arguments),
}
NETS = {"mlp": {"net": "mlp", "hidden": [8]}, "conv": {"net": "conv", "hidden": [4]}}
GREY_VALUES = ("gaussian_dequantised", "discretised_logistic")
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


def made(name, shape, net="mlp", **arguments):
    torch.manual_seed(0)
    return MODELS[name](shape=list(shape), **NETS[net], **arguments)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def examples(shape, n, seed=0):
    """Return ``n`` images of 256 grey values, and labels 0 to 3. Images with one label have similar colours."""
    y = torch.arange(n) % 4
    base = torch.rand(4, *shape, generator=seeded(9))
    noise = torch.rand(n, *shape, generator=seeded(seed))
    return ((0.9 * base[y] + 0.1 * noise) * 255).round() / 255, y


def trainer(**arguments):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return L.Trainer(accelerator="cpu", **{**QUIET, **arguments})


def fit(trainer, *given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(*given)


def given(name, y):
    return {"y": y} if name == "cvae" else {}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_and_samples_images_of_its_shape(name, shape, net, tmp_path):
    model = made(name, shape, net)
    x, y = examples(shape, 5)
    model.loss([x, y], generator=seeded(1))["loss"].backward()
    for key, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
    model.eval()
    drawn = model.sample(2, generator=seeded(2))
    assert drawn.shape == (2, *shape) and drawn.min() >= 0 and drawn.max() <= 1
    assert torch.equal(drawn, model.sample(2, generator=seeded(2)))
    assert not torch.equal(drawn, model.sample(2, generator=seeded(3)))
    assert model.reconstruct(x, **given(name, y)).shape == x.shape
    found = model.log_likelihood(x, num_samples=2, generator=seeded(4), **given(name, y))
    assert found.shape == (5,) and found.isfinite().all()
    saver = trainer()
    saver.strategy.connect(model)
    saver.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    again = type(model).load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert again.hparams.shape == list(shape) and type(again.hparams.shape) is list
    assert torch.equal(again.sample(2, generator=seeded(2)), drawn)


def losses(model, x, y, steps=200):
    optimiser, found = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for step in range(steps):
        batch = torch.randint(len(x), (8,), generator=seeded(step))
        loss = model.loss([x[batch], y[batch]], generator=seeded(1000 + step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


FIRST_TIER = {("vae", (3, 30, 37), "conv"), ("cvae", (1, 32, 32), "mlp")}
TRAINED = [
    pytest.param(*case, marks=[] if case in FIRST_TIER else pytest.mark.slow, id="-".join(map(str, case)))
    for case in ((name, shape, net) for name in MODELS for shape in SHAPES for net in NETS)
]


@pytest.mark.parametrize(("name", "shape", "net"), TRAINED)
def test_the_loss_falls_over_200_steps(name, shape, net):
    """With the discretised logistic, the loss falls by at least 0.5 bits per dimension."""
    model = made(name, shape, net, likelihood="discretised_logistic")
    found = losses(model, *examples(shape, 64))
    assert all(math.isfinite(loss) for loss in found)
    fallen = (sum(found[:10]) - sum(found[-10:])) / 10 / (math.prod(shape) * math.log(2))
    assert fallen > 0.5


@pytest.mark.parametrize("shape", [*SHAPES, (2, 7, 5), (1, 1, 1), (4, 100, 3)], ids=str)
def test_convolutions_halve_the_sides_until_they_are_at_most_seven(shape):
    """Sides that cannot be halved are padded inside. Every pixel of the image reaches the features."""
    encoder, decoder = ConvEncoder(shape, 6, width=2), ConvDecoder(shape, 6, width=2)
    maps = []
    for layer in encoder.layers:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, out: maps.append(tuple(out.shape[1:])))
    x = torch.rand(2, *shape, requires_grad=True)
    features = encoder(x)
    times = max(1, halvings(shape))
    assert [m[0] for m in maps] == [2 * 2**i for i in range(times)]
    assert maps[-1][1:] == tuple(-(-side // 2**times) for side in shape[1:]) and max(maps[-1][1:]) <= 7
    with torch.no_grad():
        for p in encoder.parameters():
            p.fill_(0.1)
    encoder(x).sum().backward()
    assert features.shape == (2, 6) and (x.grad != 0).all()
    assert decoder(torch.rand(3, 2, 6)).shape == (3, 2, *shape)


def test_the_label_reaches_the_convolutions_of_the_encoder():
    model = made("cvae", (3, 9, 10), "conv")
    x, y = examples((3, 9, 10), 4)
    assert not torch.allclose(model.encode(x, y).mu, model.encode(x, (y + 1) % 4).mu)
    with torch.no_grad():
        model.encoder.layers[0].weight[:, 3:] = 0  # the channels of the labels
    assert torch.equal(model.encode(x, y).mu, model.encode(x, (y + 1) % 4).mu)
    z = torch.rand(2, 5, 4, 3)  # any number of axes stands before the examples
    assert model.decode(z, y).shape == (2, 5, 4, 3, 9, 10)
    assert_close(model.decode(z, y)[1, 2], model.decode(z[1, 2], y))


@pytest.mark.parametrize("wrong", [[28, 28], [2], [1, 28, 0], [1, 28, 28.0], "auto", 784, [True, 28, 28]], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_shapes_that_are_no_images_are_refused(name, wrong):
    with pytest.raises(UserError, match="shape must be the channels, the height and the width of an image, such as"):
        MODELS[name](shape=wrong)


def test_a_model_refuses_images_of_another_shape():
    with pytest.raises(UserError, match=r"must have the shape \(B, 3, 32, 32\); got \(2, 1, 28, 28\)"):
        made("vae", (3, 32, 32)).reconstruct(torch.rand(2, 1, 28, 28))


# Likelihoods of 256 grey values.


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_with_every_likelihood(name, likelihood):
    model = made(name, (3, 6, 5), likelihood=likelihood, **({"pretrain_epochs": 0} if name == "vade" else {}))
    x, y = examples((3, 6, 5), 8)
    model.loss([x, y], generator=seeded(1))["loss"].backward()
    for key, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    metrics = trainer(max_epochs=1).validate(model, loader, verbose=False)[0]
    tested = trainer(max_epochs=1).test(model, loader, verbose=False)[0]
    if likelihood in GREY_VALUES:
        assert_close(metrics["val/bpd"], metrics["val/loss"] / (90 * math.log(2)))
        assert_close(tested["test/bpd"], metrics["val/bpd"])
        assert 4 < metrics["val/bpd"] < 14  # 8 bits describe a uniform pixel
    else:
        assert not any("bpd" in key for key in {**metrics, **tested})
    probed = model.probe_batch([x, y], generator=seeded(5))
    for estimator in model.gradient_estimators().values():
        noise = estimator.noise(probed, seeded(6))
        surrogate = estimator.surrogate({k: p.detach() for k, p in estimator.params.items()}, probed, noise)
        assert surrogate.isfinite()


@pytest.mark.parametrize("objective", ["elbo", "iwae", "wake_sleep"])
def test_bits_per_dimension_are_those_of_the_bound(objective):
    """At beta = 3, the loss is no bound of log p(x). The bits are still those of the ELBO."""
    beta = 3.0 if objective == "elbo" else 1.0
    model = made("vae", (2, 4, 4), likelihood="discretised_logistic", objective=objective, num_samples=2, beta=beta)
    terms = model.bound(examples((2, 4, 4), 6), generator=seeded(1))
    bound = terms["loss"] if objective == "iwae" else terms["nll"] + terms["kl"]
    assert_close(terms["bpd"], bound / (32 * math.log(2)))
    assert (objective == "elbo") == (not torch.isclose(terms["bpd"], terms["loss"] / (32 * math.log(2))))


@pytest.mark.parametrize("likelihood", GREY_VALUES)
@pytest.mark.parametrize("name", ["vae", "cvae"])
def test_log_likelihood_equals_an_integral_over_one_latent(name, likelihood):
    """log p(x) of an image of 12 pixels is an integral over one latent, computed on a grid of 4,001 points.

    The test allows 4.5 standard errors of the mean weight, which other draws estimate: at most 0.05 nats. A false alarm
    has a probability of about 1 in 100,000.
    """
    torch.manual_seed(1)
    kind = {"vae": VAE, "cvae": lambda **a: CVAE(num_classes=4, **a)}[name]
    model = kind(latent_dim=1, hidden=[6], shape=[3, 2, 2], likelihood=likelihood).double()
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.mul_(1.5)
        getattr(model, model.pixels.scale).fill_(-1.0)
    x, y = examples((3, 2, 2), 2)
    x = x.double()
    with torch.no_grad():
        observed = model.observe(x, torch.rand(x.shape, generator=seeded(7)))  # as the method draws first
        z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
        at = z[:, None, None].expand(-1, 2, 1)
        prior = -z.square() / 2 - math.log(2 * math.pi) / 2
        log_joint = model.log_px(observed, at, *given(name, y).values()) + prior[:, None]
        exact = log_joint.logsumexp(0) + math.log(18 / 4000)
        q = model.encode(observed, *given(name, y).values())
        eps = torch.randn(2000, 2, 1, generator=seeded(8), dtype=torch.float64)
        log_q = -eps.square().sum(-1) / 2 - math.log(2 * math.pi) / 2 - q.logvar.sum(-1) / 2
        drawn = q.draw(eps)
        weights = model.log_px(observed, drawn, *given(name, y).values())
        weights = weights - drawn.square().sum(-1) / 2 - math.log(2 * math.pi) / 2 - log_q
        error = 4.5 * (weights - exact).exp().std(0) / 40_000**0.5
        assert (error < 0.05).all() and (weights.mean(0) < exact - 0.1).all()
    found = model.log_likelihood(x, num_samples=40_000, generator=seeded(7), **given(name, y))
    assert ((found - exact).abs() < error).all()


@pytest.mark.parametrize("name", ["vae", "cvae"])
def test_a_white_decoder_costs_the_bits_of_its_distribution(name):
    """With zero weights, the location is 0 and the posterior is the prior. bpd is then the mean of -log2 P(k)."""
    model = made(name, (3, 16, 16), likelihood="discretised_logistic")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # log scale 0, so the scale is 1
    k = torch.arange(768).view(1, 3, 16, 16) % 256
    p = ((k + 0.5) / 255).double().sigmoid() - torch.where(k == 0, 0.0, ((k - 0.5) / 255).double().sigmoid())
    p = torch.where(k == 255, 1 - (254.5 / 255 * torch.ones(1, dtype=torch.float64)).sigmoid(), p)
    loss = model.loss([k / 255, torch.zeros(1, dtype=torch.long)], generator=seeded(0))
    assert_close(loss["loss"] / (768 * math.log(2)), -p.log2().mean().float())
    assert_close(loss["kl"], torch.tensor(0.0))


# Data without our datamodule, and pictures.


@pytest.mark.parametrize(("form", "net"), [("tensors", "mlp"), ("tuples of one", "mlp"), ("pairs", "conv")])
def test_vade_fits_its_mixture_to_the_images_of_a_plain_loader(form, net, caplog):
    """The mixture is fitted to all 40 images. Accuracy is logged only if there are labels."""
    x, y = examples((3, 8, 9), 40)
    data = {"tensors": x, "tuples of one": TensorDataset(x), "pairs": TensorDataset(x, y % 3)}[form]
    model = made("vade", (3, 8, 9), net, pretrain_epochs=1, restarts=2)
    caplog.set_level(logging.INFO, "zoo")
    fitting = trainer(max_epochs=2)
    fit(fitting, model, DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=20))
    assert model.initialised and "fitted to 40 latents" in caplog.text
    assert ("val/accuracy" in fitting.callback_metrics) == (form == "pairs")
    assert fitting.global_step == 6


class Stream(IterableDataset):
    """A stream of images without a length."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


@pytest.mark.parametrize(("pretrain_epochs", "limit", "images"), [(1, 1.0, 40), (0, 1.0, 40), (0, 2, 32)])
def test_vade_fits_its_mixture_to_a_stream_of_images(pretrain_epochs, limit, images, caplog):
    """With a limit on training batches, the mixture is fitted to the images of these batches."""
    x, _ = examples((3, 8, 9), 40)
    model = made("vade", (3, 8, 9), pretrain_epochs=pretrain_epochs, restarts=1)
    caplog.set_level(logging.INFO, "zoo")
    fit(trainer(max_epochs=2, limit_train_batches=limit), model, DataLoader(Stream(x), batch_size=16))
    assert model.initialised and f"fitted to {images} latents" in caplog.text


class CountBatches(L.Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(trainer.current_epoch)


@pytest.mark.slow
def test_fitting_the_mixture_takes_no_batch_from_persistent_workers():
    """A loader with persistent workers has one iterator. A second pass over it would end the epoch of training."""
    x, _ = examples((1, 8, 8), 40)
    loader = DataLoader(TensorDataset(x), batch_size=10, shuffle=True, num_workers=1, persistent_workers=True)
    model, counted = made("vade", (1, 8, 8), pretrain_epochs=0, restarts=1), CountBatches()
    fit(trainer(max_epochs=2, callbacks=[counted]), model, loader)
    assert model.initialised and counted.batches == [0] * 4 + [1] * 4


def fit_on(world_size):
    """Train VaDE on a plain loader. Return the sums of the images that fit the mixture, and the trained means."""
    model, x = made("vade", (3, 4, 5), pretrain_epochs=1, restarts=1), examples((3, 4, 5), 40)[0]
    seen, fitted, initialise = [], [], model.initialise_mixture
    model.encoder.register_forward_hook(lambda module, given, out: seen.append(given[0].sum((1, 2, 3)).tolist()))

    def recorded():
        seen.clear()
        initialise()
        fitted.extend(seen[::2])  # each second call encodes deformed images

    model.initialise_mixture = recorded
    strategy = "ddp" if world_size > 1 else "auto"
    fit(trainer(max_epochs=2, strategy=strategy, devices=world_size), model, DataLoader(x, batch_size=5, shuffle=True))
    return sum(fitted, []), model.mu_c.detach().tolist()


@pytest.mark.slow
def test_two_processes_share_the_images_of_a_plain_loader():
    """Each image is encoded by exactly one process. Both processes have the same mixture."""
    (first, means), (second, same) = together(2, fit_on, 2)
    everything = examples((3, 4, 5), 40)[0].sum((1, 2, 3)).tolist()
    assert len(first) == len(second) == 20 and means == same
    assert sorted(first + second) == pytest.approx(sorted(everything))


def test_vade_asks_for_as_many_images_as_clusters_before_training():
    x, _ = examples((1, 8, 8), 3)
    with pytest.raises(UserError, match="3 training images are too few for 4 clusters"):
        fit(trainer(max_epochs=1), made("vade", (1, 8, 8)), DataLoader(x, batch_size=1))


def pixels(path):
    """Return the pixels of a picture, (channels, H, W), uint8."""
    return pil_to_tensor(Image.open(path))


def test_pictures_of_the_latents_are_in_colour(tmp_path):
    """The decoder returns blue for every latent."""
    model = VAE(latent_dim=2, hidden=[4], shape=[3, 5, 7]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.decoder[0][-1].bias.view(3, -1)[:2] = -20
        model.decoder[0][-1].bias.view(3, -1)[2] = 20
    x, y = examples((3, 5, 7), 12)
    assert traverse(model, x).shape == (2, 9, 3, 5, 7) and manifold(model, 4).shape == (16, 3, 5, 7)
    loader = DataLoader(TensorDataset(x, y), batch_size=12)
    fit(trainer(callbacks=[Latents(tmp_path, n=10)], max_epochs=1), model, loader, loader)
    for name in ("traversals", "manifold"):
        picture = pixels(tmp_path / name / "epoch_000.png")
        assert picture.shape[0] == 3 and picture[2].max() == 255 and picture[0].max() < 200  # 128 between images
    save_grid(torch.stack([torch.zeros(3, 5, 7), model.decode(torch.zeros(1, 2))[0]]), tmp_path / "a.png", 2)
    assert pixels(tmp_path / "a.png")[:, 4, 12].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["vae", "cvae", "vade"])
def test_the_command_takes_the_shape_of_the_data(name, tmp_path):
    cfg = config(tmp_path, f"model={name}", "data=digits")
    assert cfg.model.shape == "auto"
    model = model_of(cfg)
    assert model.hparams.shape == [1, 28, 28] and model.hparams.get("num_classes", 10) == 10


def test_a_run_with_convolutions_and_grey_values_logs_bits(tmp_path):
    overrides = ["model=cvae", "data=digits", "data.digits_repeat=1", "model.net=conv", "model.hidden=[2]"]
    overrides += ["model.likelihood=discretised_logistic", "model.latent_dim=2", "trainer.max_epochs=1"]
    metrics = run(tmp_path, *overrides)
    assert_close(metrics["test/bpd"], metrics["test/loss"] / (784 * math.log(2)))
