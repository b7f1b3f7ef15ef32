"""InfoGAN: a GAN that also gives the generator a code c. A network Q infers the code from the generated image.

Chen et al., "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets",
2016, arXiv:1606.03657. Lecture notes (docs/references.md): [DSL 13.5].

    L_I(G, Q) = H(c) + E_{c ~ p(c), x = G(z, c)}[ log Q(c | x) ]              eq. 5, [DSL 13.5.3]    InfoGAN.information
                <= I(c; G(z, c))
    V_InfoGAN = V(D, G) - lambda L_I(G, Q), minimised over G and Q, maximised over D    eq. 6    InfoGAN.generator_terms

    p(c)      = (1/K) 2^-D: a category uniform on 0 .. K-1, and D numbers uniform in [-1, 1]      InfoGAN.noise
    Q(c | x)  = softmax over categories, and N(mu(x), diag sigma^2(x)) for the numbers            InfoGAN.posterior
    L_cat     = log K + E log Q(c | x) <= H(c) = log K, which a perfect Q reaches                 categorical_bound
    L_num     = D log 2 + E log N(c | mu(x), diag sigma^2(x)), without an upper limit             continuous_bound

Symbols: x are images in [0, 1], (B, C, H, W). z ~ N(0, I), (B, z_dim). ``category`` is (B,), and ``continuous``, the
D numbers, is (B, D). In eq. 6, D is the discriminator, and lambda has two values: ``info_weight`` for L_cat, and
``continuous_weight`` for L_num. fake are images in [-1, 1]. logits are (B,).
Logged with the prefixes train/, val/ and test/: discriminator_loss = -V and generator_loss, which includes -lambda L_I.
zoo/gan.py explains D_x, D_G_z, value and js. mi_categorical and mi_continuous are the two parts of L_I, in nats. Only
val/ and test/ have mi_ceiling = log K and the scores accuracy, nmi and ari, which compare categories with labels.
Training never uses labels.

Differs from the paper:
- As in the paper, the discriminator and Q share convolutions and one linear layer. Only the discriminator's step trains
  the shared layers. This step maximises V alone, as in eq. 6. The generator's step trains Q's own two layers. In the
  authors' code, the discriminator's step trains all of Q, with -lambda L_I in its loss.
- In training, Q infers categories from randomly deformed images (``deformation``). The generator then cannot encode a
  category in the position of a line. Q infers the continuous code from images without deformation.
- Q's variance is learned, as in the paper. The authors' code fixes it at 1, which makes L_I a loose bound.
- ``cluster`` maximises the mean of log Q over eight deformed copies of an image. The deformations are half as strong as
  in training, and equal for all images. One copy without deformation gives 1.6 times as many errors.
- In training, BatchNorm normalises real images and generated images separately. Each process normalises its own images.
- Evaluation uses BatchNorm statistics of generated images. Only ``cluster`` uses statistics of real images, which are
  deformed at half strength.
- z is normal. In the authors' code it is uniform. The generator's loss is non-saturating, as in the authors' code.
- The layers are smaller than in the paper. Evaluation uses the exponential moving average of both networks.
- [DSL 13.5] prints log Q(c' | x) in the last line of the bound. The correct term is log Q(c | x). [DSL 13.5] also
  prints integrals over the categorical code. The correct form has sums.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checks.codes import Codes, Numbers, as_codes, as_numbers
from zoo.checks.errors import UserError
from zoo.checks.inputs import checks_inputs, grey_images, images, numbers
from zoo.checks.old_forms import accepts_old_form
from zoo.checks.values import check_fraction, check_image_shape, check_integer, check_not_negative, check_positive
from zoo.estimators import GradientEstimator, Noise, Params, call_with
from zoo.functional.clusters import ClusterTable
from zoo.functional.deformation import deform
from zoo.functional.densities import at_least_float32, log_normal
from zoo.functional.latents import one_hot
from zoo.functional.noise import chunk_generator, rand, randn, uniform_labels
from zoo.gan import generator_objective, jensen_shannon, value_function
from zoo.nets.adversarial import ConvGenerator, ConvTrunk, centre, uncentre
from zoo.nets.description import described
from zoo.training.adversarial import (
    as_statistics,
    check_batches,
    flat_statistics,
    generate,
    recompute_batch_norm,
    running_statistics,
    step,
)
from zoo.training.loaders import first_training_images

READINGS = 8  # deformed copies of an image from which ``cluster`` infers the category


def categorical_bound(logits: Tensor, category: Tensor) -> Tensor:
    """Return log K + mean log Q(c | x), () nats, for categories (B,) and unnormalised log probabilities (B, K)."""
    return math.log(logits.shape[-1]) - F.cross_entropy(logits, category)


def continuous_bound(mu: Tensor, logvar: Tensor, continuous: Tensor) -> Tensor:
    """Return D log 2 + mean log N(c | mu, sigma^2), () nats, for codes uniform in [-1, 1]^D, (B, D) each."""
    return continuous.shape[-1] * math.log(2) + log_normal(continuous, mu, logvar).mean()


@described
@accepts_old_form("noise", "discriminator_loss", "generator_loss")
@checks_inputs(x=images, images=grey_images, features=numbers(lambda self: (self.hparams.features,), leading=False))
class InfoGAN(L.LightningModule):
    """GAN with a categorical and a continuous code as inputs of the generator. A network Q infers both from the image.

    Args:
        z_dim: dimensions of z.
        num_categories: K, the number of categories, at least 2.
        num_continuous: D, the number of continuous codes, at least 1.
        width: channels of the networks at half the sides of the images.
        features: size of the layer that the discriminator and Q share.
        info_weight: lambda of the categories, at least 0.
        continuous_weight: lambda of the continuous codes, at least 0.
        deformation: strength of the deformation of images from which Q infers categories in training. 0 turns it off.
        lr_discriminator: learning rate of the discriminator's Adam.
        lr_generator: learning rate of the Adam that trains the generator and Q.
        beta1: beta_1 of Adam, at least 0 and below 1.
        shape: shape of an image, [C, H, W].

    Raises:
        UserError: if an argument has a value that is not allowed.
    """

    def __init__(
        self,
        z_dim: int = 62,
        num_categories: int = 10,
        num_continuous: int = 2,
        width: int = 32,
        features: int = 256,
        info_weight: float = 1.0,
        continuous_weight: float = 0.1,
        deformation: float = 0.15,
        lr_discriminator: float = 5e-4,
        lr_generator: float = 1e-3,
        beta1: float = 0.5,
        shape: Sequence[int] = (1, 28, 28),
    ):
        super().__init__()
        check_integer("z_dim", z_dim)
        check_integer("num_continuous", num_continuous)
        check_integer("width", width)
        check_integer("features", features)
        check_integer("num_categories", num_categories, least=2)
        check_not_negative("info_weight", info_weight)
        check_not_negative("continuous_weight", continuous_weight)
        check_not_negative("deformation", deformation)
        check_positive("lr_discriminator", lr_discriminator)
        check_positive("lr_generator", lr_generator)
        check_fraction("beta1", beta1)
        check_image_shape("shape", shape)
        shape = list(shape)
        self.save_hyperparameters()
        self.automatic_optimization = False
        K, D = num_categories, num_continuous
        self.generator = ConvGenerator(z_dim + K + D, width, shape)
        trunk = ConvTrunk(width, "batch", shape)
        layer = lambda n_in, n_out: [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU(0.2)]  # noqa: E731
        self.trunk = nn.Sequential(trunk, *layer(trunk.out_features, features))
        self.head = nn.Linear(features, 1)
        self.code = nn.Sequential(*layer(features, 128), nn.Linear(128, K + 2 * D))
        # BatchNorm statistics of trunk and Q on real images. The BatchNorm layers hold the statistics on samples.
        self.register_buffer("real_statistics", flat_statistics(running_statistics(self.readers())))
        self.agreement = ClusterTable(num_categories)

    # The networks. ``trunk`` and ``head`` are the discriminator. The layers ``code`` are Q's own.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Return noise: z (B, z_dim), category (B,), continuous (B, D), affine (B, 2, 3) and bumps (B, 2, 4, 4)."""
        B, drawn = len(batch[0]), {"generator": generator, "device": batch[0].device}
        K, D = self.hparams.num_categories, self.hparams.num_continuous
        return {
            "z": randn(B, self.hparams.z_dim, **drawn),
            "category": uniform_labels(B, K, **drawn),  # p(c); the next line draws the numbers
            "continuous": 2 * rand(B, D, **drawn) - 1,
            "affine": randn(B, 2, 3, **drawn),
            "bumps": randn(B, 2, 4, 4, **drawn),
        }

    def inputs(self, noise: Noise) -> Tensor:
        """Return the generator's input, (B, z_dim + K + D): z, the one-hot category and the continuous code."""
        category = one_hot(noise["category"], self.hparams.num_categories, noise["z"].dtype)
        return torch.cat([noise["z"], category, noise["continuous"]], -1)

    def logits(self, features: Tensor) -> Tensor:
        """Return l = log D - log(1 - D), (B,), from features of the trunk, (B, F)."""
        return at_least_float32(self.head(features)).squeeze(-1)

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Q(c | x) from features (B, F): logits (B, K) of categories, mu and logvar (B, D) of the numbers."""
        K, D = self.hparams.num_categories, self.hparams.num_continuous
        return at_least_float32(self.code(features)).split([K, D, D], dim=-1)

    def discriminator_terms(self, x: Tensor, noise: Noise) -> dict[str, Tensor]:
        """Return ``loss`` = -V, ``value`` and ``js``, nats, and ``D_x`` and ``D_G_z``, for images ``x`` in [0, 1]."""
        with torch.no_grad():
            fake = self.generator(self.inputs(noise))
        real = centre(x, self.hparams.shape)
        real_logits, fake_logits = self.logits(self.trunk(real)), self.logits(self.trunk(fake))
        value = value_function(real_logits, fake_logits)
        means = {"D_x": real_logits.sigmoid().mean(), "D_G_z": fake_logits.sigmoid().mean()}
        return {"loss": -value, "value": value, "js": jensen_shannon(value), **means}

    def deformed(self, x: Tensor, noise: Noise, share: float = 1.0) -> Tensor:
        """Return randomly deformed images (B, C, H, W) in [0, 1]. The strength is ``share`` times ``deformation``."""
        return deform(x, noise["affine"], noise["bumps"], share * self.hparams.deformation)

    def information(self, fake: Tensor, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return L_I of category and numbers, () nats each. In training, Q infers categories from deformed images."""
        category_logits, mu, logvar = self.posterior(features)
        if self.hparams.deformation > 0 and self.training:
            # ``deform`` sets pixels from outside the image to 0. 0 is black only if images are in [0, 1].
            category_logits, _, _ = self.posterior(self.trunk(2 * self.deformed(fake / 2 + 0.5, noise) - 1))
        return (
            categorical_bound(category_logits, noise["category"]),
            continuous_bound(mu, logvar, noise["continuous"]),
        )

    def generator_terms(self, noise: Noise) -> dict[str, Tensor]:
        """Return ``loss`` = -log D(G(z, c)) - ``bound``, ``bound`` = lambda L_I, and both parts of L_I."""
        fake = self.generator(self.inputs(noise))
        features = self.trunk(fake)
        categorical, continuous = self.information(fake, features, noise)
        bound = self.hparams.info_weight * categorical + self.hparams.continuous_weight * continuous
        loss = generator_objective(self.logits(features), "non_saturating") - bound  # V_InfoGAN
        return {"loss": loss, "bound": bound, "mi_categorical": categorical, "mi_continuous": continuous}

    def discriminator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return :meth:`discriminator_terms`. The discriminator minimises ``loss``."""
        return self.discriminator_terms(batch[0], self.noise(batch, generator=generator))

    def generator_loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw noise and return :meth:`generator_terms`. Only the size of ``batch`` is used."""
        return self.generator_terms(self.noise(batch, generator=generator))

    # Training, by Lightning's manual optimisation.

    def on_train_start(self):
        check_batches(self)

    def graph_key(self) -> None:
        """Return None: all training steps have the same operations."""

    def training_step(self, batch, batch_idx):
        d_optimiser, g_optimiser = self.optimizers()
        terms = step(self, d_optimiser, self.discriminator_loss, batch, counts=True)
        seen = self._log("train", "discriminator", terms)
        terms = step(self, g_optimiser, self.generator_loss, batch, counts=False)
        seen |= self._log("train", "generator", terms)
        return seen

    def _log(self, stage: str, network: str, terms: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
        self.log(f"{stage}/{network}_loss", terms["loss"], prog_bar=True, **kwargs)
        self.log_dict({f"{stage}/{k}": v for k, v in terms.items() if k not in ("loss", "bound")}, **kwargs)
        return {f"{network}_loss" if k == "loss" else k: v.detach() for k, v in terms.items()}

    def on_validation_epoch_start(self):
        if (images := first_training_images(self.trainer, 5000)) is not None:
            self.take_statistics(images)

    def take_statistics(self, images: Tensor) -> None:
        """Recompute the BatchNorm statistics on samples, and ``real_statistics`` on deformed ``images``.

        Args:
            images: (N, C, H, W), uint8.
        """

        def see_samples(i: int) -> None:
            noise = self.noise([torch.zeros(250, 1, device=self.device)], generator=chunk_generator(0, i))
            self.posterior(self.trunk(self.generator(self.inputs(noise))))

        def see_images(i: int) -> None:
            generator = chunk_generator(0, i)
            some = images[torch.randint(len(images), (250,), generator=generator).to(images.device)]
            x = some.to(self.device).float() / 255
            self.posterior(self._features(x, self.noise([x], generator=generator)))

        readers = self.readers()
        recompute_batch_norm(nn.ModuleDict(readers), see_images)
        self.real_statistics.copy_(flat_statistics(running_statistics(readers)))
        recompute_batch_norm(self, see_samples)

    def _features(self, x: Tensor, noise: Noise) -> Tensor:
        """Return features of the trunk, (B, F), from images ``x`` in [0, 1] that are deformed at half strength."""
        return self.trunk(centre(self.deformed(x, noise, 0.5), self.hparams.shape))

    def readers(self) -> dict[str, nn.Module]:
        """Return the modules that compute Q, by name: ``trunk`` and Q's own layers, ``code``."""
        return {"trunk": self.trunk, "code": self.code}

    def validation_step(self, batch, batch_idx, stage="val"):
        generator = chunk_generator(self.global_rank, batch_idx)  # the same noise in every epoch
        how = {"sync_dist": True, "batch_size": len(batch[0])}
        self._log(stage, "discriminator", self.discriminator_loss(batch, generator=generator), **how)
        self._log(stage, "generator", self.generator_loss(batch, generator=generator), **how)
        self.log(f"{stage}/mi_ceiling", math.log(self.hparams.num_categories), **how)
        if batch_idx == 0:
            self.agreement.reset()  # an interrupted evaluation may have left counts
        if len(batch) > 1:
            self.agreement.update(self.cluster(batch[0]), batch[1])

    def on_validation_epoch_end(self, stage="val"):
        scores = self.agreement.compute() if self.agreement.update_called else {}  # no scores without labels
        self.log_dict({f"{stage}/{k}": v for k, v in scores.items()}, sync_dist=True)
        self.agreement.reset()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def on_test_epoch_end(self):
        self.on_validation_epoch_end(stage="test")

    def configure_optimizers(self):
        discriminator, betas = [*self.trunk.parameters(), *self.head.parameters()], (self.hparams.beta1, 0.999)
        generator = [*self.generator.parameters(), *self.code.parameters()]
        return [
            torch.optim.Adam(discriminator, lr=self.hparams.lr_discriminator, betas=betas),
            torch.optim.Adam(generator, lr=self.hparams.lr_generator, betas=betas),
        ]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "infogan"

    # Uses of a trained model.

    def forward(self, x: Tensor) -> Tensor:
        return self.cluster(x)

    @torch.no_grad()
    def cluster(self, x: Tensor) -> Tensor:
        """Return the most probable category, 0 .. K-1, (B,), for images ``x`` in [0, 1], (B, C, H, W).

        The category maximises the mean of log Q(c | x) over ``READINGS`` copies with fixed deformations.
        """
        readings = READINGS if self.hparams.deformation > 0 else 1
        ways = self.noise([x.new_zeros(readings, 1)], generator=chunk_generator(0, 0))

        def read() -> Tensor:
            log_Q = 0.0
            for i in range(readings):
                way = {k: ways[k][i : i + 1].expand(len(x), *ways[k].shape[1:]) for k in ("affine", "bumps")}
                log_Q = log_Q + self.posterior(self._features(x, way))[0].log_softmax(-1)
            return log_Q.argmax(-1)

        return call_with(self, as_statistics(self.real_statistics, running_statistics(self.readers())), read)

    def rows(self) -> tuple[str, list[int]]:
        """Return the name and the values of the argument of :meth:`sample` that varies between rows of a picture."""
        return "category", list(range(self.hparams.num_categories))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        category: Codes | None = None,
        continuous: Numbers | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw ``n`` images with given or random codes.

        Args:
            category: n categories 0 .. K-1, or one category for all images. None draws random categories.
            continuous: (n, D) numbers, or D numbers for all images, or one number for all D numbers of all images. The
                generator is trained on numbers from -1 to 1. None draws random numbers.

        Returns:
            (n, C, H, W), in [0, 1].

        Raises:
            UserError: if a code has a type, shape or value that is not allowed.
        """
        noise = self.noise([torch.zeros(n, 1, device=self.device)], generator=generator)
        K, D = self.hparams.num_categories, self.hparams.num_continuous
        if category is not None:
            noise["category"] = as_codes("category", category, n, K, self.device)
        if continuous is not None and n:
            noise["continuous"] = as_numbers("continuous", continuous, n, D, self.device)
        return uncentre(generate(self.generator, self.inputs(noise)), self.hparams.shape)

    @torch.no_grad()
    def vary(self, code: int = 0, steps: int = 10, *, generator: torch.Generator | None = None) -> Tensor:
        """Return a grid of images: a row for each value of one continuous code, a column for each category.

        The values are from -2 to 2 (paper, fig. 2). All images have the same z. The other continuous codes are 0.

        Args:
            code: index of the continuous code, from 0 to D - 1.
            steps: number of values, at least 2.

        Returns:
            (steps, K, C, H, W), in [0, 1].

        Raises:
            UserError: if ``code`` or ``steps`` has a value that is not allowed.
        """
        K, D = self.hparams.num_categories, self.hparams.num_continuous
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < D:
            raise UserError(f"code must be an integer from 0 to {D - 1}, got {code!r}")
        check_integer("steps", steps, least=2)
        values = torch.zeros(steps, K, D, device=self.device)
        values[..., code] = torch.linspace(-2, 2, steps, device=self.device)[:, None]
        z = randn(self.hparams.z_dim, generator=generator, device=self.device)
        noise = {
            "z": z.expand(steps * K, -1),
            "category": torch.arange(K, device=self.device).repeat(steps),
            "continuous": values.flatten(0, 1),
        }
        images = uncentre(generate(self.generator, self.inputs(noise)), self.hparams.shape)
        return images.unflatten(0, (steps, K))

    # Gradient estimators.

    def gradient_estimators(self) -> dict[str, GradientEstimator]:
        """Return gradient estimators by name. ``generator`` (whole loss) and ``bound`` (-lambda L_I) are for generator
        and Q. ``discriminator`` (-V) is for trunk and head. A draw has one z for each image of the batch."""
        named = dict(self.named_parameters())
        discriminator = {k: p for k, p in named.items() if k.startswith(("trunk.", "head."))}
        generator = {k: p for k, p in named.items() if k not in discriminator}

        def estimator(name: str, params: Params, loss: Callable[[Any, Noise], Tensor]) -> GradientEstimator:
            # torch.func.vmap has no batching rule for the deformation.
            return GradientEstimator.of(self, name, params, self.noise, loss, batched=False)

        return {
            "generator": estimator("generator", generator, lambda _, noise: self.generator_terms(noise)["loss"]),
            "bound": estimator("bound", generator, lambda _, noise: -self.generator_terms(noise)["bound"]),
            "discriminator": estimator(
                "discriminator", discriminator, lambda batch, noise: self.discriminator_terms(batch[0], noise)["loss"]
            ),
        }
