"""Classifier of digits, for the evaluation of samples of generative models.

The classifier is not one of the ten generative models. ``zoo.evaluation`` uses it for two measurements. The first is
the fraction of class-conditional samples that the classifier recognises as their label. The second is the distance
between two sets of images in the features of the classifier.

The network is convolutional, with batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167). It is trained with
cross-entropy on randomly augmented images and smoothed labels (Szegedy et al. 2016, arXiv:1512.00567, sec. 7):

    loss(x, y) = -sum_k q_k log p(k | A(x)),    q_k = (1 - s) [k = y] + s / K

Symbols:

    x        images in [0, 1], (B, 1, 28, 28)
    y        labels, (B,)
    K        number of classes
    s        label smoothing
    A(x)     image under a random affine map, and mirrored with probability f
    f        probability of a mirror image
    theta    matrix of the affine map from output positions to input positions, (B, 2, 3), in units of half an image

Logged metrics:

    train/loss              the loss above, nats per example
    train/accuracy          fraction of augmented images classified correctly
    {val,test}/loss         cross-entropy without augmentation and label smoothing, nats per example
    {val,test}/accuracy     fraction of images classified correctly
"""

import math
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from zoo.checks.errors import UserError
from zoo.checks.old_forms import accepts_old_form
from zoo.estimators import Noise
from zoo.functional.noise import rand
from zoo.training.schedules import half_cosine


def random_affine(u: Tensor, shift: float, rotate: float, scale: float, shear: float) -> Tensor:
    """Return a random affine map for each image, (B, 2, 3), in the form of ``torch.nn.functional.affine_grid``.

    Args:
        u: uniform noise in [0, 1), (B, 5), for shift in x and y, rotation, scaling, shear.
        shift: largest shift, in pixels of an image 28 pixels wide.
        rotate: largest rotation in degrees, in both directions.
        scale: largest relative change of size.
        shear: largest shear in degrees.
    """
    dx, dy, turn, grow, lean = (2 * u - 1).unbind(-1)
    angle, size, slope = turn * math.radians(rotate), 1 + grow * scale, torch.tan(lean * math.radians(shear))
    cos, sin = angle.cos() / size, angle.sin() / size
    rows = [cos, slope * cos - sin, dx * shift / 14, sin, slope * sin + cos, dy * shift / 14]
    return torch.stack(rows, -1).view(-1, 2, 3)


def move(x: Tensor, theta: Tensor) -> Tensor:
    """Apply affine maps ``theta`` (B, 2, 3) to images (B, 1, H, W), with bilinear interpolation and black padding."""
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


@accepts_old_form("noise", "loss")
class Classifier(L.LightningModule):
    """Convolutional classifier of images of 28 x 28 pixels.

    Args:
        num_classes: number of classes, K.
        widths: channels at resolutions 28 x 28, 14 x 14 and 7 x 7.
        num_features: size of the last hidden layer, which :meth:`features` returns.
        lr: largest learning rate of Adam. The learning rate rises over the first fifth of the run and then falls to
            zero along half a cosine.
        label_smoothing: s in the loss, at least 0 and below 1; 0 turns smoothing off.
        shift: largest shift of a training image, in pixels.
        rotate: largest rotation of a training image, in degrees.
        scale: largest relative change of size of a training image.
        shear: largest shear of a training image, in degrees.
        flip: probability that a training image is mirrored from left to right; 0 suits digits, 0.5 suits clothes.

    Raises:
        UserError: for a value outside its range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        num_features: int = 128,
        lr: float = 3e-3,
        label_smoothing: float = 0.05,
        shift: float = 2.0,
        rotate: float = 10.0,
        scale: float = 0.1,
        shear: float = 10.0,
        flip: float = 0.0,
    ):
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 2:
            raise UserError(f"num_classes must be an integer of at least 2, got {num_classes!r}")
        if not isinstance(num_features, int) or num_features < 1:
            raise UserError(f"num_features must be an integer of at least 1, got {num_features!r}")
        if isinstance(widths, int | str) or len(widths) != 3 or any(not isinstance(w, int) or w < 1 for w in widths):
            raise UserError(f"widths must be three integers of at least 1, such as [16, 32, 64], got {widths!r}")
        if not isinstance(lr, int | float) or not lr > 0:
            raise UserError(f"lr must be a positive number, got {lr!r}")
        for key, value, limit in [
            ("label_smoothing", label_smoothing, 1),
            ("shift", shift, 28),
            ("rotate", rotate, 180),
            ("scale", scale, 1),
            ("shear", shear, 90),
        ]:
            if not isinstance(value, int | float) or not 0 <= value < limit:
                raise UserError(f"{key} must be a number of at least 0 and below {limit}, got {value!r}")
        if not isinstance(flip, int | float) or not 0 <= flip <= 1:
            raise UserError(f"flip must be a probability from 0 to 1, got {flip!r}")
        widths = list(widths)
        self.save_hyperparameters()

        def block(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

        a, b, c = widths
        self.body = nn.Sequential(
            nn.Conv2d(1, a, 5, padding=2, bias=False),  # (B, a, 28, 28)
            nn.BatchNorm2d(a),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *block(a, b),  # (B, b, 14, 14)
            *block(b, b),
            nn.MaxPool2d(2),
            *block(b, c),  # (B, c, 7, 7)
            *block(c, c),
            nn.MaxPool2d(2),  # (B, c, 3, 3)
            nn.Flatten(),
            nn.Linear(9 * c, num_features),
            nn.ReLU(),
        ).to(memory_format=torch.channels_last)  # on a CPU, 1.5 times as fast as the default format
        self.head = nn.Linear(num_features, num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    # Use.

    def features(self, x: Tensor) -> Tensor:
        """Return the activations of the last hidden layer, (B, F), >= 0, for images ``x`` (B, 1, 28, 28) in [0, 1]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of p(y | x), (B, K)."""
        return self.head(self.features(x))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return the most probable label, (B,), of each image ``x`` (B, 1, 28, 28) in [0, 1]."""
        return self(x).argmax(-1)

    # Training.

    def noise(self, batch, *, generator: torch.Generator | None = None) -> Noise:
        """Return the noise of the augmentation: ``u``, (B, 5), and with mirror images ``mirrored``, (B,), bool."""
        x = batch[0]
        noise = {"u": rand(len(x), 5, generator=generator, device=x.device)}
        if self.hparams.flip:
            noise["mirrored"] = rand(len(x), generator=generator, device=x.device) < self.hparams.flip
        return noise

    def loss(self, batch, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return ``loss``, nats per example with smoothed labels, and ``accuracy``. Both use augmented images."""
        x, y = batch
        h = self.hparams
        noise = self.noise(batch, generator=generator)
        if "mirrored" in noise:
            x = torch.where(noise["mirrored"].view(-1, 1, 1, 1), x.flip(-1), x)
        logits = self(move(x, random_affine(noise["u"], h.shift, h.rotate, h.scale, h.shear)))
        loss = F.cross_entropy(logits, y, label_smoothing=h.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(-1) == y).float().mean()}

    def training_step(self, batch, batch_idx):
        terms = self.loss(batch)
        self.log_dict({f"train/{k}": v for k, v in terms.items()}, prog_bar=True)
        return terms

    def validation_step(self, batch, batch_idx, stage="val"):
        x, y = batch
        logits = self(x)
        if batch_idx == 0:
            self.accuracy.reset()  # an interrupted evaluation can leave counts
        self.accuracy.update(logits, y)
        self.log(f"{stage}/loss", F.cross_entropy(logits, y), sync_dist=True, batch_size=len(x))
        self.log(f"{stage}/accuracy", self.accuracy)  # Lightning computes it over all batches and processes

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, stage="test")

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = max(1, self.trainer.estimated_stepping_batches)  # infinite for max_epochs=-1

        def rise_and_fall(step: int) -> float:
            return min((step + 1) / (0.2 * steps), half_cosine(max(0.0, step / steps - 0.2), 0.8))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rise_and_fall)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = "classifier"
